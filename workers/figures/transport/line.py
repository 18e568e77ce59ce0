"""Picture of a plan in order."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from workers.figures.style import BLUE, GREY, ORANGE, sheet

MOST_LINES = 4000


def draw(question: Mapping[str, Any], answer: Mapping[str, Any]) -> Figure:
    """Draw the heaviest entries of the plan, from the source above to the target below."""
    x, y, plan = question["x"].numpy(), question["y"].numpy(), answer["plan"]
    if circle := question["space"] == "circle":
        x, y = x % question["period"], y % question["period"]
    rows, cols, mass = (np.asarray(plan[name]) for name in ("rows", "cols", "mass"))
    heavy = np.argsort(mass)[-MOST_LINES:]
    start, end = x[rows[heavy]], y[cols[heavy]]
    if circle:  # the shorter way, which may leave the drawing on one side
        end = (
            start
            + (end - start)
            - question["period"] * np.round((end - start) / question["period"])
        )
    ends = np.stack([np.stack([start, np.ones_like(start)], 1), np.stack([end, 0 * end], 1)], 1)
    figure = sheet(8, 4)
    axes = figure.subplots()
    lines = LineCollection(list(ends), colors=GREY)
    lines.set_alpha(np.clip(mass[heavy] / mass.max(), 0.05, 1.0).tolist())
    axes.add_collection(lines)
    axes.scatter(x, np.ones_like(x), c=ORANGE, s=30, label="source", zorder=2)
    axes.scatter(y, np.zeros_like(y), c=BLUE, s=30, marker="s", label="target", zorder=2)
    axes.set_yticks([0, 1], ["target", "source"])
    axes.set_xlabel("place (unit of the points)")
    axes.set_title(
        f"plan in order on the {question['space']}, p {question['p']:.3g}, "
        f"distance {answer['distance']:.4g}, gap {answer['certificate']['duality_gap']:.1e}",
        fontsize=11,
    )
    return figure
