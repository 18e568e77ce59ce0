"""Picture of sliced transport: what the directions cost."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from workers.figures.style import BLUE, ORANGE, sheet


def draw(question: Mapping[str, Any], answer: Mapping[str, Any]) -> Figure:
    """Draw a histogram of the directions, the mean with its interval, and the dearest found."""
    slices, seen = np.asarray(answer["slices"]), answer["certificate"]
    figure = sheet(8, 4.5)
    axes = figure.subplots()
    axes.hist(slices, bins=max(5, min(40, len(slices) // 5)), color=BLUE, alpha=0.6,
              label=f"{len(slices)} directions")  # fmt: skip
    mean = float(slices.mean())
    half = (seen["high"] - seen["low"]) / 2
    axes.axvspan(mean - half, mean + half, color=ORANGE, alpha=0.35, label="95 % of the mean")
    axes.axvline(mean, color=ORANGE, lw=2, label="mean")
    axes.axvline(answer["max_value"], color="black", ls="--", lw=1, label="dearest found")
    axes.set_xlabel("cost of a direction (unit of the points to the power p)")
    axes.set_ylabel("directions")
    axes.set_title(
        f"sliced transport, {question['notion']}, p {question['p']:.3g}: value "
        f"{answer['value']:.4g}, distance {answer['distance']:.4g}, "
        f"standard error {answer['std_error']:.1e}",
        fontsize=11,
    )
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=4, frameon=False)
    return figure
