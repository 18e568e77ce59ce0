"""Picture of a match between two spaces, and of what stays unmatched."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from workers.figures.style import BLUE, GREY, ORANGE, sheet

MOST_CELLS = 1500


def draw(question: Mapping[str, Any], answer: Mapping[str, Any]) -> Figure:
    """Draw the plan as a heat map, with its marginals along the edges over the weights."""
    plan = np.asarray(answer["plan"])
    n, m = plan.shape
    a, b = (
        np.full(k, 1 / k) if question[name] is None else question[name].numpy()
        for name, k in (("a", n), ("b", m))
    )
    figure = sheet(8, 7)
    grid = figure.add_gridspec(2, 2, width_ratios=(1, 4), height_ratios=(1, 4))
    heat = figure.add_subplot(grid[1, 1])
    step = [-(-size // MOST_CELLS) for size in plan.shape]
    blocks = np.add.reduceat(plan, np.arange(0, n, step[0]), 0)
    blocks = np.add.reduceat(blocks, np.arange(0, m, step[1]), 1)
    extent = (-0.5, m - 0.5, n - 0.5, -0.5)
    image = heat.imshow(blocks, cmap="cividis", aspect="auto", extent=extent, interpolation="none")
    figure.colorbar(image, ax=heat, label="mass" if step == [1, 1] else "mass of a block")
    heat.set_xlabel("target index j")
    heat.tick_params(labelleft=False)
    left, top = figure.add_subplot(grid[1, 0]), figure.add_subplot(grid[0, 1])
    left.stairs(a, np.arange(n + 1) - 0.5, orientation="horizontal", color=GREY, fill=True)
    left.stairs(answer["rows"], np.arange(n + 1) - 0.5, orientation="horizontal", color=ORANGE)
    left.set_ylim(n - 0.5, -0.5)
    left.invert_xaxis()
    left.set_ylabel("source index i")
    left.set_xlabel("mass: grey a, line P1", fontsize=9)
    top.stairs(b, np.arange(m + 1) - 0.5, color=GREY, fill=True)
    top.stairs(answer["columns"], np.arange(m + 1) - 0.5, color=BLUE)
    top.set_xlim(-0.5, m - 0.5)
    top.tick_params(labelbottom=False)
    top.set_ylabel("mass: grey b, line Pᵀ1", fontsize=9)
    top.set_title(
        f"unbalanced Gromov-Wasserstein, value {answer['value']:.4g}, mass {answer['mass']:.4g}, "
        f"residual {answer['certificate']['fixed_point_residual']:.1e}",
        fontsize=11,
    )
    return figure
