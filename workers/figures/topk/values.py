"""Picture of relaxed values."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from workers.figures.topk.rows import MOST_ROWS, legend, panels, scatter, written


def draw(question: Mapping[str, Any], answer: Mapping[str, Any]) -> Figure:
    """Draw what is kept of each entry of the first rows, beside what the hard choice would keep."""
    x = question["x"].numpy()
    y, tau = written(answer, x.shape[1]), answer["tau"]
    count, signed = min(len(x), MOST_ROWS), question["mode"] == "signed"
    shown = "" if count == len(x) else f", rows 0 to {count - 1} of {len(x)}"
    kind = "signed" if signed else "by magnitude"
    kind += ", debiased" if answer["debiased"] else ""
    figure, axes = panels(count, f"relaxed values ({kind}){shown}")
    for row in range(count):
        here, level = axes[row], float(tau[row])
        unchanged = np.isclose(y[row], x[row], rtol=1e-6, atol=0) & (y[row] != 0)
        kinds = {
            "0": y[row] == 0,
            "shrunk": (y[row] != 0) & ~unchanged,
            "kept as it is": unchanged,
        }
        ends = np.array([x[row].min(), x[row].max()])
        here.plot(ends, ends, color="#bbbbbb", linewidth=1, zorder=1, label="y = x")
        for side in (level,) if signed else (level, -level):
            name = "threshold tau" if side == level else None
            here.axvline(side, color="black", linestyle="--", linewidth=1, label=name)
        scatter(here, x[row], y[row], kinds)
        here.set_xlabel("entry x (its own unit)", fontsize=9)
        here.set_ylabel("value kept (unit of x)", fontsize=9)
        here.set_title(f"row {row}: {np.count_nonzero(y[row])} entries not 0", fontsize=10)
    legend(figure, axes[0])
    return figure
