"""Picture of a Sinkhorn divergence: the debiased potentials on the points."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from workers.figures.style import plane, sheet


def draw(question: Mapping[str, Any], answer: Mapping[str, Any]) -> Figure:
    """Colour planar points by the derivative of the divergence in their weight; else plot it."""
    geometry = question["geometry"]
    x, y = geometry.x.numpy(), geometry.y.numpy()
    up, down = answer["f"] - answer["f_aa"], answer["g"] - answer["g_bb"]
    up, down = up - np.mean(up), down - np.mean(down)
    caption = (
        f"Sinkhorn divergence {answer['divergence']:.4g}, epsilon {question['epsilon']:.3g}, "
        f"within [{answer['certificate']['lower']:.4g}, {answer['certificate']['upper']:.4g}]"
    )
    figure = sheet(8, 7)
    axes = figure.subplots()
    planar = x.shape[1] == 2
    reach = max(float(np.abs(up).max()), float(np.abs(down).max())) or 1.0
    for points, slope, marker, name in ((x, up, "o", "source"), (y, down, "s", "target")):
        drawn = axes.scatter(
            points[:, 0],
            points[:, 1] if planar else slope,
            c=slope,
            cmap="coolwarm",
            vmin=-reach,
            vmax=reach,
            marker=marker,
            edgecolors="black",
            linewidths=0.5,
            label=name,
        )
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2, frameon=False)
    if planar:
        figure.colorbar(drawn, label="derivative in the weight, centred (unit of the cost)")
        plane(axes, caption, "unit of the points")
        return figure
    axes.set_title(caption, fontsize=11)
    axes.set_xlabel("first coordinate (unit of the points)")
    axes.set_ylabel("derivative in the weight, centred (unit of the cost)")
    return figure
