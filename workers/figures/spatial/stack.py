"""Picture of a stack: all slices as they came, and in one frame."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workers.figures.style import BLUE, ORANGE, plane, sheet

# Okabe and Ito's palette, told apart by all readers; more slices share a lightness ramp.
PALETTE = [BLUE, ORANGE, "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000"]
MARKERS = "osD^vP*"
NAMED = len(PALETTE)


def draw(question: Mapping[str, Any], answer: Mapping[str, Any]) -> Figure:
    """Draw the slices over one another before and after, and how far matched spots lie apart."""
    before = [piece.coordinates.numpy() for piece in question["slices"]]
    after = [np.asarray(placed["aligned"]) for placed in answer["slices"]]
    figure = sheet(11, 4.8)
    one, two, bars = figure.subplots(1, 3)
    size = float(np.clip(9_000 / max(sum(map(len, before)), 1), 1.5, 40))
    for axes, places, title in ((one, before, "as they came"), (two, after, "in one frame")):
        for k, points in enumerate(places):
            name = f"slice {k}" + (" (kept)" if k == answer["reference"] else "")
            axes.scatter(
                *points.T, s=size, c=colour(k, len(places)), marker=MARKERS[k % NAMED],
                linewidths=0, alpha=0.75, label=name,
            )  # fmt: skip
        plane(axes, title, "file unit")
    if len(before) <= NAMED:
        two.legend(
            loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=4, frameon=False, fontsize=8
        )
    _bars(bars, answer)
    certificate = answer["certificate"]
    figure.suptitle(
        f"{len(before)} slices, {question['policy']}: matched spots lie "
        f"{certificate['mismatch']:.2f} pitches apart (root mean square)"
        + ("" if answer["status"] == "converged" else f", status {answer['status']}"),
        fontsize=12,
    )
    return figure


def colour(k: int, count: int) -> Any:
    """Choose the colour of a slice."""
    if count <= NAMED:
        return PALETTE[k]
    return colormaps["viridis"](k / (count - 1))


def _bars(axes: Axes, answer: Mapping[str, Any]) -> None:
    pairs = answer["pairs"][:30]
    height = np.arange(len(pairs))
    axes.barh(height, [pair["mismatch"] for pair in pairs], color=BLUE, height=0.6)
    for at, pair in zip(height, pairs, strict=True):
        axes.annotate(f" {pair['value']:.3f}", (pair["mismatch"], at), va="center", fontsize=8)
    axes.set_yticks(height, [f"{pair['source']} to {pair['target']}" for pair in pairs])
    axes.set_ylim(max(len(pairs), 4) - 0.5, -0.5)
    axes.margins(x=0.2)
    axes.set_xlabel(
        "distance of matched spots (pitches)\nbeside each bar: its objective", fontsize=9
    )
    axes.set_ylabel("pair of slices", fontsize=9)
    axes.set_title("alignments", fontsize=11)
    axes.tick_params(labelsize=8)
