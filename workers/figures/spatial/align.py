"""Picture of an alignment: what was matched with what, and both slices before and after."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray

from workers.figures.style import BLUE, GREY, ORANGE, plane, sheet

Places = NDArray[np.float64]
# Masses of whole plans are 1 up to rounding.
PARTIAL = 1e-9
# More spots than this are drawn as pixels, also in a vector file, which they would make enormous.
AS_PIXELS = 5000
# Area of the markers in the legend: those of large slices are too small to tell colours apart.
VISIBLE = 0.2  # pitches: the least height of the curve's axis, so that rounding looks like zero
LEGEND = 30.0


def draw(question: Mapping[str, Any], answer: Mapping[str, Any]) -> Figure:
    """Draw source and target in matching colours, both before and after; of partial plans more.

    Where a share of the mass is matched, the mass that each source spot carries is drawn, and the
    curve by which the share was chosen; spots without a partner are grey crosses.
    """
    source = question["source"].coordinates.numpy()
    target = question["target"].coordinates.numpy()
    aligned, plan = answer["aligned"], answer["plan"]
    lone, alone = answer["unmatched_source"], answer["unmatched_target"]
    partial = answer["mass_moved"] < 1 - PARTIAL
    figure = sheet(14, 9.2) if partial else sheet(10, 9.2)
    panels = figure.subplots(2, 3 if partial else 2)
    size = marker_size(len(source) + len(target))
    carried, reached = _carried(_colours(source), plan, len(target))
    _matched(panels[0, 0], source, _colours(source), ~lone, size)
    _matched(panels[0, 1], target, carried, reached & ~alone, size)
    plane(panels[0, 0], "source: colour is place", "file unit")
    plane(panels[0, 1], "target: colour of the spots matched with it", "file unit")
    for axes, moved, title in ((panels[1, 0], source, "before"), (panels[1, 1], aligned, "after")):
        axes.scatter(*target.T, s=size, c=BLUE, marker="s", linewidths=0, label="target")
        axes.scatter(*moved[~lone].T, s=0.55 * size, c=ORANGE, linewidths=0, label="source")
        if lone.any():
            _lone(axes, moved[lone], size)
        plane(axes, title, "file unit")
    _legend(panels[1, 0])
    if partial:
        _curve(panels[0, 2], answer)
        _mass(panels[1, 2], aligned, plan, size)
    figure.suptitle(_caption(answer), fontsize=12)
    if len(source) + len(target) > AS_PIXELS:
        for axes in figure.axes:
            for spots in axes.collections:
                spots.set_rasterized(True)
    return figure


def marker_size(spots: int) -> float:
    """Choose a marker area that fills a panel without covering neighbours."""
    return float(np.clip(14_000 / max(spots, 1), 1.5, 60))


def _legend(axes: Axes) -> None:
    legend = axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3, frameon=False)
    for handle in legend.legend_handles:
        if isinstance(handle, PathCollection):
            handle.set_sizes(np.maximum(handle.get_sizes(), LEGEND))


def _matched(axes: Axes, places: Places, colours: Places, known: NDArray[Any], size: float) -> None:
    _lone(axes, places[~known], size)
    axes.scatter(*places[known].T, s=size, c=colours[known], linewidths=0)


def _lone(axes: Axes, places: Places, size: float) -> None:
    axes.scatter(*places.T, s=0.4 * size, c=GREY, marker="x", linewidths=0.8, label="unmatched")


def _curve(axes: Axes, answer: Mapping[str, Any]) -> None:
    """Draw the distortion at each share of the mass, and the share that was taken."""
    axes.set_xlabel("share of the mass matched", fontsize=9)
    axes.set_title("distances disagree above the overlap", fontsize=11)
    axes.set_ylabel("rms distortion (pitches)", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.axvline(answer["mass_moved"], color=GREY, linestyle="--")
    shares = [point["mass"] for point in answer["curve"]]
    distortions = [point["distortion_rms"] for point in answer["curve"]]
    axes.plot(shares, distortions, "o-", color=BLUE)
    axes.set_ylim(0, 1.05 * max(*distortions, VISIBLE))
    chosen = f"matched: {answer['mass_moved']:.2f}"
    axes.annotate(
        chosen, (answer["mass_moved"], 1.0), (-6, -14), xycoords=("data", "axes fraction"),
        textcoords="offset points", ha="right", fontsize=9,
    )  # fmt: skip


def _mass(axes: Axes, aligned: Places, plan: Mapping[str, NDArray[Any]], size: float) -> None:
    """Shade each source spot by the mass that it carries, as a share of the most."""
    mass = np.bincount(plan["rows"], plan["mass"], minlength=len(aligned))
    shades = axes.scatter(
        *aligned.T, s=size, c=mass / mass.max(), cmap="cividis", vmin=0, vmax=1, linewidths=0
    )
    plane(axes, "after: mass that a source spot carries", "file unit")
    axes.figure.colorbar(shades, ax=axes, label="share of the largest")


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
    if answer["solver"] == "hierarchical":
        words.insert(0, "hierarchical")
    if answer["mass_moved"] < 1 - PARTIAL:
        words.append(f"mass {answer['mass_moved']:.2f}")
    scores = answer["scores"]
    if scores["label_accuracy"] is not None:
        words.append(f"label accuracy {scores['label_accuracy']:.3f}")
    if scores["landmark_error_median"] is not None:
        words.append(f"median landmark error {scores['landmark_error_median']:.2f} pitches")
    if answer["status"] != "converged":
        words.append(f"status {answer['status']}")
    return ", ".join(words)
