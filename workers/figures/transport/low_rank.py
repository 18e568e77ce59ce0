"""Picture of a plan of low rank: both clouds, and which group sends its mass where."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from workers.figures.style import BLUE, ORANGE, sheet

THICKEST = 6.0


def draw(question: Mapping[str, Any], answer: Mapping[str, Any]) -> Figure:
    """Draw an arrow for each group, from the mean of its sources to the mean of its targets."""
    x, y, names = _flat(np.asarray(question["x"]), np.asarray(question["y"]))
    Q, R, g = (np.asarray(answer[name]) for name in ("Q", "R", "g"))
    start, end = Q.T @ x / g[:, None], R.T @ y / g[:, None]
    figure = sheet(8, 7)
    axes = figure.subplots()
    axes.scatter(*x.T, c=ORANGE, s=12, alpha=0.5, label="source", linewidths=0)
    axes.scatter(*y.T, c=BLUE, s=12, alpha=0.5, marker="s", label="target", linewidths=0)
    for here, there, width in zip(start, end, THICKEST * np.sqrt(g / g.max()), strict=True):
        style = {"arrowstyle": "-|>", "color": "black", "lw": 0.3 * width, "mutation_scale": 8}
        axes.annotate("", xy=tuple(there), xytext=tuple(here), arrowprops=style)
    axes.set_xlabel(names[0], fontsize=9)
    axes.set_ylabel(names[1], fontsize=9)
    axes.set_aspect("equal", "datalim")
    seen = answer["certificate"]
    axes.set_title(
        f"plan of rank {len(g)}, arrows between group means, width by mass\n"
        f"cost {answer['value']:.4g}, {100 * seen['ratio']:.3g} % of the independent plan, "
        f"a plan of full rank {seen['upper_bound']:.4g}",
        fontsize=11,
    )
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2, frameon=False)
    return figure


def _flat(x: NDArray[Any], y: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], tuple[str, str]]:
    """Show points of the plane as they are, others along the two principal axes of both clouds."""
    d = x.shape[1]
    if d == 2:
        return x, y, ("x (unit of the points)", "y (unit of the points)")
    if d == 1:
        return np.pad(x, ((0, 0), (0, 1))), np.pad(y, ((0, 0), (0, 1))), ("x", "(none)")
    both = np.concatenate([x, y])
    centre = both.mean(0)
    axes = np.linalg.svd(both - centre, full_matrices=False)[2][:2]
    names = "first principal axis (unit of the points)", "second principal axis"
    return (x - centre) @ axes.T, (y - centre) @ axes.T, names
