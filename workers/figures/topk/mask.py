"""Picture of relaxed masks."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from workers.figures.topk.rows import MOST_ROWS, legend, panels, scatter, written

# Where a mask may lie strictly between 0 and 1, from so many lam before the threshold on.
BAND = {"power": (0.0, "tau to tau + lam"), "two_sided": (-1.0, "tau - lam to tau + lam")}


def draw(question: Mapping[str, Any], answer: Mapping[str, Any]) -> Figure:
    """Draw the mask of each of the first rows against its scores, and where its threshold is."""
    x = question["x"].numpy()
    y, tau, lam = written(answer, x.shape[1]), answer["tau"], answer["lam"]
    count = min(len(x), MOST_ROWS)
    shown = "" if count == len(x) else f", rows 0 to {count - 1} of {len(x)}"
    figure, axes = panels(count, f"relaxed mask ({question['regularizer']}){shown}")
    for row in range(count):
        here, level, strength = axes[row], float(tau[row]), float(lam[row])
        kinds = {"0": y[row] <= 0, "between": (y[row] > 0) & (y[row] < 1), "1": y[row] >= 1}
        here.axvline(level, color="black", linestyle="--", linewidth=1, label="threshold tau")
        if question["regularizer"] in BAND:
            low, name = BAND[question["regularizer"]]
            ends = level + low * strength, level + strength
            here.axvspan(*ends, color="#F5E6C8", zorder=0, label=name)
        scatter(here, x[row], y[row], kinds)
        here.set_ylim(-0.06, 1.06)
        here.set_xlabel("score (unit of x)", fontsize=9)
        here.set_ylabel("mask", fontsize=9)
        total, kept = y[row].sum(), np.count_nonzero(y[row])
        here.set_title(f"row {row}: sum {total:.4g}, {kept} entries not 0", fontsize=10)
    legend(figure, axes[0])
    return figure
