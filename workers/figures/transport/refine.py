"""Picture of a refined plan."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from algorithms.geometry import PointClouds
from workers.figures.style import BLUE, GREY, ORANGE, plane, sheet

MOST_LINES = 1500
MOST_POINTS = 20_000


def draw(question: Mapping[str, Any], answer: Mapping[str, Any]) -> Figure:
    """Draw lines between matched points of the plane, or the distribution of the costs."""
    x, y, plan = question["x"], question["y"], answer["plan"]
    rows, cols, mass = (np.asarray(plan[name]) for name in ("rows", "cols", "mass"))
    seen = answer["certificate"]
    caption = (
        f"cost {answer['value']:.4g}, at most {seen['relative_gap']:.1%} of it above the optimum "
        f"({len(rows):,} entries)"
    )
    figure = sheet(8, 7)
    axes = figure.subplots()
    if x.shape[1] != 2:
        pairs = torch.from_numpy(rows), torch.from_numpy(cols)
        costs = PointClouds(x, y, question["cost"]).entries(*pairs)
        axes.hist(np.asarray(costs), bins=60, weights=mass, color=BLUE)
        axes.axvline(answer["value"] / mass.sum(), color=ORANGE, label="mean")
        axes.set_title(caption, fontsize=11)
        axes.set_xlabel("cost of a matched pair")
        axes.set_ylabel("mass")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), frameon=False)
        return figure
    x, y = x.numpy(), y.numpy()
    # every few entries, rather than some at random: the same picture for the same answer
    some = np.unique(np.linspace(0, len(rows) - 1, MOST_LINES).astype(int))
    lines = np.stack([x[rows[some]], y[cols[some]]], 1)
    axes.add_collection(LineCollection(list(lines), colors=GREY, linewidths=0.8))
    of_x, of_y = (z[:: -(-len(z) // MOST_POINTS)] for z in (x, y))
    size = float(np.clip(3000 / len(of_x), 1, 30))
    axes.scatter(*of_x.T, c=ORANGE, s=size, label="source", zorder=2)
    axes.scatter(*of_y.T, c=BLUE, s=size, marker="s", label="target", zorder=2)
    drawn = "" if len(some) == len(rows) else f"lines: {len(some):,} of the entries"
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2, frameon=False, title=drawn or None
    )
    plane(axes, caption, "unit of the points")
    return figure
