"""What pictures of masks and of values share: a few rows, their entries by kind, one threshold."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from workers.figures.style import BLUE, GREY, ORANGE, sheet

Array = NDArray[np.float64]
MOST_ROWS, ACROSS = 6, 3
MOST_POINTS = 4000  # of a row: beyond, a picture shows no more and weighs much


def panels(count: int, subject: str) -> tuple[Figure, list[Axes]]:
    """Open one panel for each row shown, with room for a legend below."""
    across = min(count, ACROSS)
    down = -(-count // across)
    figure = sheet(max(4.2 * across, 6.0), 3.3 * down + 0.8)
    axes = figure.subplots(down, across, squeeze=False)
    for empty in axes.flat[count:]:
        empty.set_axis_off()
    figure.suptitle(subject, fontsize=11)
    return figure, list(axes.flat[:count])


def written(answer: Mapping[str, Any], n: int) -> Array:
    """Take the rows of an answer, also where they are given by their entries."""
    if answer["y"] is not None:
        return np.asarray(answer["y"], dtype=np.float64)
    offsets, columns, values = (
        np.asarray(answer["entries"][name]) for name in ("offsets", "columns", "values")
    )
    y = np.zeros((len(offsets) - 1, n))
    y[np.repeat(np.arange(len(offsets) - 1), np.diff(offsets)), columns] = values
    return y


def some(kind: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Pick at most so many entries of a kind, evenly."""
    places = np.flatnonzero(kind)
    return places[:: -(-len(places) // MOST_POINTS) or 1]


def scatter(axes: Axes, x: Array, y: Array, kinds: Mapping[str, NDArray[np.bool_]]) -> None:
    """Draw entries by kind: zero, between, full."""
    looks = zip(kinds.items(), (GREY, ORANGE, BLUE), ("o", "D", "s"), strict=True)
    for (name, kind), colour, marker in looks:
        at = some(kind)
        axes.scatter(x[at], y[at], c=colour, marker=marker, s=26, label=name, zorder=3)
    axes.grid(color="#e5e5e5", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9)


def legend(figure: Figure, axes: Axes) -> None:
    """Name the kinds once, below all panels."""
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), fontsize=9)
