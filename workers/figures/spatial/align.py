"""Picture of an alignment: what was matched with what, and both slices before and after."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from workers.figures.style import BLUE, GREY, ORANGE, plane, sheet

Places = NDArray[np.float64]


def draw(question: Mapping[str, Any], answer: Mapping[str, Any]) -> Figure:
    """Draw four panels: source and target in matching colours, and both before and after."""
    source = question["source"].coordinates.numpy()
    target = question["target"].coordinates.numpy()
    aligned, plan = answer["aligned"], answer["plan"]
    figure = sheet(10, 9.2)
    (one, two), (before, after) = figure.subplots(2, 2)
    size = marker_size(len(source) + len(target))
    colours = _colours(source)
    carried, matched = _carried(colours, plan, len(target))
    kept = np.isin(np.arange(len(source)), plan["rows"])
    _matched(one, source, colours, kept, size)
    _matched(two, target, carried, matched, size)
    plane(one, "source: colour is place", "file unit")
    plane(two, "target: colour of the spots matched with it", "file unit")
    for axes, moved, title in ((before, source, "before"), (after, aligned, "after")):
        axes.scatter(*target.T, s=size, c=BLUE, marker="s", linewidths=0, label="target")
        axes.scatter(*moved.T, s=0.55 * size, c=ORANGE, linewidths=0, label="source")
        plane(axes, title, "file unit")
    before.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, frameon=False)
    figure.suptitle(_caption(answer), fontsize=12)
    return figure


def marker_size(spots: int) -> float:
    """Choose a marker area that fills a panel without covering neighbours."""
    return float(np.clip(14_000 / max(spots, 1), 1.5, 60))


def _matched(axes: Axes, places: Places, colours: Places, known: NDArray[Any], size: float) -> None:
    axes.scatter(*places[~known].T, s=0.4 * size, c=GREY, marker="x", linewidths=0.8)
    axes.scatter(*places[known].T, s=size, c=colours[known], linewidths=0)


def _colours(places: Places) -> Places:
    """Give every place a colour that varies smoothly and in lightness along one axis."""
    low, high = places.min(0), places.max(0)
    s, t = ((places - low) / np.where(high > low, high - low, 1)).T
    corners = np.array(
        [[0.0, 0.18, 0.42], [0.0, 0.62, 0.45], [0.80, 0.30, 0.10], [0.98, 0.90, 0.35]]
    )
    weights = np.stack([(1 - s) * (1 - t), s * (1 - t), (1 - s) * t, s * t], 1)
    return weights @ corners


def _carried(
    colours: Places, plan: Mapping[str, NDArray[Any]], n: int
) -> tuple[Places, NDArray[np.bool_]]:
    mass, blend = np.zeros(n), np.zeros((n, 3))
    np.add.at(mass, plan["cols"], plan["mass"])
    np.add.at(blend, plan["cols"], plan["mass"][:, None] * colours[plan["rows"]])
    known = mass > 0
    blend[known] /= mass[known, None]
    return np.clip(blend, 0, 1), known


def _caption(answer: Mapping[str, Any]) -> str:
    words = [f"objective {answer['value']:.4f}", f"rotation {answer['rotation_degrees']:.1f} deg"]
    scores = answer["scores"]
    if scores["label_accuracy"] is not None:
        words.append(f"label accuracy {scores['label_accuracy']:.3f}")
    if scores["landmark_error_median"] is not None:
        words.append(f"median landmark error {scores['landmark_error_median']:.2f} pitches")
    if answer["status"] != "converged":
        words.append(f"status {answer['status']}")
    return ", ".join(words)
