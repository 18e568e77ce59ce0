"""Pictures of couplings: lines between points of the plane, or the matrix as a heat map."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray

from algorithms.geometry import PointClouds
from workers.figures.style import BLUE, GREY, ORANGE, plane, sheet

MOST_LINES = 4000
MOST_CELLS = 1500


def draw_plan(question: Mapping[str, Any], plan: NDArray[Any], caption: str) -> Figure:
    """Draw a dense coupling: over the points when they lie in the plane, else as a heat map."""
    geometry = question["geometry"]
    figure = sheet(8, 7)
    axes = figure.subplots()
    if isinstance(geometry, PointClouds) and geometry.x.shape[1] == 2:
        x, y = geometry.x.numpy(), geometry.y.numpy()
        rows, cols = np.nonzero(plan > 0)
        order = np.argsort(plan[rows, cols])[-MOST_LINES:]
        rows, cols = rows[order], cols[order]
        share = plan[rows, cols] / plan.max()
        lines = LineCollection(list(np.stack([x[rows], y[cols]], 1)), colors=GREY)
        lines.set_alpha(np.clip(share, 0.03, 1.0).tolist())
        axes.add_collection(lines)
        axes.scatter(*x.T, c=ORANGE, s=30, label="source", zorder=2)
        axes.scatter(*y.T, c=BLUE, s=30, marker="s", label="target", zorder=2)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2, frameon=False)
        plane(axes, caption, "unit of the points")
        return figure
    step = [-(-size // MOST_CELLS) for size in plan.shape]
    blocks = np.add.reduceat(plan, np.arange(0, plan.shape[0], step[0]), 0)
    blocks = np.add.reduceat(blocks, np.arange(0, plan.shape[1], step[1]), 1)
    extent = (-0.5, plan.shape[1] - 0.5, plan.shape[0] - 0.5, -0.5)
    image = axes.imshow(blocks, cmap="cividis", aspect="auto", extent=extent, interpolation="none")
    figure.colorbar(image, label="mass" if step == [1, 1] else "mass of a block")
    axes.set_title(caption, fontsize=11)
    axes.set_xlabel("target index j")
    axes.set_ylabel("source index i")
    return figure
