"""Picture of a warp: where the motion puts the spots, and how the displacement bends them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from workers.figures.style import BLUE, ORANGE, plane, sheet


def draw(question: Mapping[str, Any], answer: Mapping[str, Any]) -> Figure:
    """Draw the displacement as arrows on the moved slice, and the warped slice on the target."""
    target = question["target"].coordinates.numpy()
    aligned, warped = np.asarray(answer["aligned"]), np.asarray(answer["warped"])
    length = np.linalg.norm(warped - aligned, axis=1) / answer["pitch"]
    figure = sheet(10, 5.2)
    one, two = figure.subplots(1, 2)
    arrows = one.quiver(
        *aligned.T, *(warped - aligned).T, length, cmap="viridis", angles="xy",
        scale_units="xy", scale=1, width=0.005,
    )  # fmt: skip
    one.scatter(*aligned.T, s=3, c="#999999", linewidths=0)
    one.update_datalim(warped)
    bar = figure.colorbar(arrows, ax=one, shrink=0.8)
    bar.set_label("displacement (pitches)", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    plane(one, "displacement after the rigid motion", "file unit of the target")
    size = float(np.clip(9_000 / max(len(target) + len(warped), 1), 1.5, 45))
    two.scatter(*target.T, s=size, c=BLUE, marker="s", linewidths=0, label="target")
    two.scatter(*warped.T, s=0.6 * size, c=ORANGE, linewidths=0, label="source, warped")
    plane(two, "both slices", "file unit of the target")
    two.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False)
    figure.suptitle(_caption(question, answer), fontsize=11)
    return figure


def _caption(question: Mapping[str, Any], answer: Mapping[str, Any]) -> str:
    certificate, ratio = answer["certificate"], answer["hull_ratio"]
    words = [
        str(question["method"]),
        f"distance to barycentres {certificate['rigid_error']:.2f} rigid, "
        f"{certificate['warp_error']:.2f} warped (pitches)",
        f"{certificate['folds']} folds in {certificate['places']} places",
    ]
    if ratio is not None:
        words.append(f"hull {ratio:.2f}")
    if answer["status"] != "converged":
        words.append(f"status {answer['status']}")
    return ", ".join(words)
