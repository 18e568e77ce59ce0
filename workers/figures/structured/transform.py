"""Picture of new points among the targets that they were sent to."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from workers.figures.style import BLUE, plane, sheet


def draw(question: Mapping[str, Any], answer: Mapping[str, Any]) -> Figure:
    """Draw targets and images on the first principal axes of the targets, shaded by spread."""
    y, images = question["y"].numpy(), np.asarray(answer["images"])
    mean = y.mean(0)
    basis = np.linalg.svd(y - mean, full_matrices=False)[2][:2]
    flat, moved = ((z - mean) @ basis.T for z in (y, images))
    if flat.shape[1] == 1:
        flat, moved = (np.column_stack([z, np.zeros(len(z))]) for z in (flat, moved))
    figure = sheet(8, 6)
    axes = figure.subplots()
    axes.scatter(*flat.T, s=24, facecolors="none", edgecolors=BLUE, label="target")
    seen = axes.scatter(*moved.T, s=20, c=np.asarray(answer["spread"]), cmap="cividis",
                        marker="D", label="image of a new point")  # fmt: skip
    figure.colorbar(seen, ax=axes, label="targets it goes to, effectively")
    plane(axes, f"{len(images)} new points among {len(y)} targets", "principal axis of y")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), frameon=False, ncols=2)
    return figure
