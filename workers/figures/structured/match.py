"""Picture of a structured match: the map, the trace of the objective, and where points went."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from workers.figures.style import BLUE, GREY, ORANGE, plane, sheet

MOST_LINES = 400
# Blue is negative, orange-brown positive, white zero: told apart by all readers.
SIGNED = "PuOr_r"


def draw(question: Mapping[str, Any], answer: Mapping[str, Any]) -> Figure:
    """Draw the map as a heat map, F after each turn, and targets with the images of sources."""
    figure = sheet(13.5, 5.2)
    left, middle, right = figure.subplots(1, 3, width_ratios=(5, 3.4, 5))
    _map(figure, left, np.asarray(answer["map"]))
    _trace(middle, np.asarray(answer["history"]), answer["attempts"])
    _places(right, question["y"].numpy(), np.asarray(answer["images"]), _best(answer))
    seen, name = answer["certificate"], question["regularizer"].name
    figure.suptitle(
        f"{name}, epsilon {answer['epsilon']:.3g}: value {answer['value']:.6g}, "
        f"{seen['starts_reached']} of {seen['starts_tried']} starts reached it, fixed-point "
        f"residual {seen['fixed_point_residual']:.1e}"
        + (", COLLAPSED" if seen["collapsed"] else ""),
        fontsize=11,
    )
    return figure


def _map(figure: Figure, axes: Axes, M: NDArray[Any]) -> None:
    size = float(np.abs(M).max()) or 1.0
    image = axes.imshow(M, cmap=SIGNED, vmin=-size, vmax=size, aspect="auto", interpolation="none")
    bar = figure.colorbar(image, ax=axes, location="right")
    bar.set_label("entry of the map (units of x times y, over q)", fontsize=9)
    zeros = 100 * float((M == 0).mean())
    axes.set_title(f"map M, {zeros:.1f} % zeros", fontsize=11)
    axes.set_xlabel("source feature", fontsize=9)
    axes.set_ylabel("target feature", fontsize=9)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))


def _trace(axes: Axes, history: NDArray[Any], attempts: list[Any]) -> None:
    turns = np.arange(1, len(history) + 1)
    axes.plot(turns, history, color=BLUE, marker="o", markersize=4, label="best end, each turn")
    values = np.sort([one["value"] for one in attempts])
    places = np.linspace(1, max(2, len(history)), len(values))
    axes.plot(
        places, values, color=ORANGE, linestyle="none", marker="_", label="ends of all starts"
    )
    axes.set_title("objective F", fontsize=11)
    axes.set_xlabel("turn; starts in order", fontsize=9)
    axes.set_ylabel("F", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(labelsize=8)
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), frameon=False, fontsize=9)


def _best(answer: Mapping[str, Any]) -> NDArray[Any]:
    """Find the target that most of each source goes to; -1 where nothing leaves."""
    if answer["dense_plan"] is not None:
        return np.asarray(answer["dense_plan"]).argmax(1)
    best, most = np.full(len(answer["images"]), -1), np.zeros(len(answer["images"]))
    plan = answer["plan"]
    for i, j, mass in zip(plan["rows"], plan["cols"], plan["mass"], strict=True):
        if mass > most[i]:
            best[i], most[i] = j, mass
    return best


def _places(axes: Axes, y: NDArray[Any], images: NDArray[Any], best: NDArray[Any]) -> None:
    """Project targets and images to the first principal axes of the targets; join matches."""
    mean = y.mean(0)
    basis = np.linalg.svd(y - mean, full_matrices=False)[2][:2]
    flat, moved = ((z - mean) @ basis.T for z in (y, images))
    if flat.shape[1] == 1:
        flat, moved = (np.column_stack([z, np.zeros(len(z))]) for z in (flat, moved))
    some = np.flatnonzero(best >= 0)[:MOST_LINES]
    lines = np.stack([moved[some], flat[best[some]]], 1)
    axes.add_collection(LineCollection(list(lines), colors=GREY, linewidths=0.5))
    axes.scatter(*flat.T, s=22, facecolors="none", edgecolors=BLUE, label="target")
    axes.scatter(
        *moved.T, s=10, c=ORANGE, label="image of a source, joined to its likeliest target"
    )
    plane(axes, "matches", "principal axis of y")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), frameon=False, fontsize=9, ncols=2)
