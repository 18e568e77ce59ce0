"""Picture of a transfer: labels on the target tissue, how sure they are, and where labels went."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from workers.figures.spatial.align import marker_size
from workers.figures.spatial.multiomics import COLOURS, MARKERS
from workers.figures.style import GREY, plane, sheet

Places = NDArray[np.float64]
UNMATCHED, RECEIVED = "unmatched", 0.5
WRITTEN = 8  # tables of at most so many labels have their numbers written in


def draw(question: Mapping[str, Any], answer: Mapping[str, Any]) -> Figure:
    """Draw the labels and their confidence, the transition table, and the first gene carried."""
    places = question["target"].coordinates.numpy()
    size = marker_size(len(places))
    labelled, table, carried = (answer[key] for key in ("labels", "transition", "imputation"))
    panels = 1 + (labelled is not None) + (table is not None) + (carried is not None)
    columns, lines = (1, 1) if panels == 1 else (2, (panels + 1) // 2)
    figure = sheet(5.4 * columns, 6.0 * lines)
    axes = [figure.add_subplot(lines, columns, k + 1) for k in range(panels)]
    if labelled is not None:
        _labels(axes.pop(0), places, list(labelled), list(answer["names"]), size)
        sure = np.asarray(answer["confidence"], float)
        _map(axes.pop(0), figure, places, sure, size, "confidence", "score of the label", (0, 1))
    else:
        received = np.asarray(answer["received"], float)
        _map(axes.pop(0), figure, places, received, size, "mass received", "share of 1/m", None)
    if table is not None:
        _transition(axes.pop(0), figure, table)
    if carried is not None:
        gene = np.asarray(carried["expression"], float)[:, 0]
        name = carried["genes"][0]
        _map(axes.pop(0), figure, places, gene, size, f"{name}, carried", "source counts", None)
    figure.suptitle(_caption(answer), fontsize=12)
    return figure


def _labels(axes: Axes, z: Places, labels: list[str], names: list[str], size: float) -> None:
    own = np.array(labels)
    for at, name in enumerate(names):
        colour, marker = COLOURS[at % len(COLOURS)], MARKERS[at % len(MARKERS)]
        axes.scatter(*z[own == name].T, s=size, c=colour, marker=marker, linewidths=0, label=name)
    left = own == UNMATCHED
    if left.any():
        axes.scatter(*z[left].T, s=size, c=GREY, marker="x", linewidths=1, label=UNMATCHED)
    plane(axes, "transferred label", "file unit")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False,
                fontsize=9)  # fmt: skip


def _map(
    axes: Axes,
    figure: Figure,
    z: Places,
    values: Places,
    size: float,
    title: str,
    meaning: str,
    ends: tuple[float, float] | None,
) -> None:
    low, high = ends or (None, None)
    dots = axes.scatter(*z.T, s=size, c=values, cmap="cividis", vmin=low, vmax=high, linewidths=0)
    plane(axes, title, "file unit")
    figure.colorbar(dots, ax=axes, orientation="horizontal", shrink=0.8).set_label(
        meaning, fontsize=9
    )


def _transition(axes: Axes, figure: Figure, table: Mapping[str, Any]) -> None:
    share = np.asarray(table["share"], float)
    picture = axes.imshow(share, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    for names, axis in ((table["target_labels"], axes.xaxis), (table["source_labels"], axes.yaxis)):
        axis.set_ticks(range(len(names)), [str(name)[:18] for name in names])
    axes.tick_params(axis="x", rotation=45, labelsize=8)
    axes.tick_params(axis="y", labelsize=8)
    axes.set_xlabel("target label", fontsize=9)
    axes.set_ylabel("source label", fontsize=9)
    axes.set_title("where labels went", fontsize=11)
    if max(share.shape) <= WRITTEN:
        for (row, column), value in np.ndenumerate(share):
            ink = "black" if value > 0.6 else "white"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=ink, fontsize=8)
    bar = figure.colorbar(picture, ax=axes, orientation="horizontal", shrink=0.8)
    bar.set_label("share of the source label's mass", fontsize=9)


def _caption(answer: Mapping[str, Any]) -> str:
    if answer["labels"] is not None:
        left, whole = list(answer["labels"]).count(UNMATCHED), len(answer["labels"])
    else:
        received = np.asarray(answer["received"], float)
        left, whole = int((received < RECEIVED).sum()), len(received)
    words = [f"{left} of {whole} target spots unmatched"]
    seen = answer["agreement"]
    if seen["accuracy"] is not None:
        words.append(f"label accuracy {seen['accuracy']:.3f}")
    if seen["round_trip"] is not None:
        words.append(f"round trip {seen['round_trip']:.3f}")
    return ", ".join(words)
