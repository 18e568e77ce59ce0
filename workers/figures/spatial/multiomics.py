"""Picture of a multi-omics match: both modalities in one plane, and the plan between them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from workers.figures.style import BLUE, GREY, ORANGE, sheet

Points = NDArray[np.float64]
MARKERS = "osD^vP*X<>"
# The categories of Okabe and Ito, told apart by every reader.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
# Plans are drawn in at most so many cells a side.
CELLS = 200


def draw(question: Mapping[str, Any], answer: Mapping[str, Any]) -> Figure:
    """Draw the images among the target cells by modality, by label where known, and the plan."""
    target, images = (np.asarray(answer[key], float) for key in ("target", "images"))
    y, z = _plane(target, images)
    labels = [question.get(key) for key in ("labels_x", "labels_y")]
    labelled = labels[0] is not None and labels[1] is not None
    figure = sheet(14.4 if labelled else 9.6, 5.6)
    panels = list(figure.subplots(1, 3 if labelled else 2))
    size = float(np.clip(9000 / len(y), 6, 50))
    one = panels[0]
    one.scatter(*y.T, s=size, c=BLUE, marker="s", linewidths=0, alpha=0.7, label="target")
    one.scatter(*z.T, s=size, c=ORANGE, linewidths=0, alpha=0.7, label="source, moved")
    _dress(one, "both modalities")
    if labelled:
        _by_label(panels[1], y, z, [np.asarray(own).astype(int) for own in labels], size)
    _matrix(panels[-1], figure, np.asarray(answer["plan"], float), labels if labelled else None)
    figure.suptitle(_caption(answer), fontsize=12)
    return figure


def _plane(target: Points, images: Points) -> tuple[Points, Points]:
    """Project on the first two principal axes of the target; one feature gets a zero beside it."""
    centre = target.mean(0)
    axes = np.linalg.svd(target - centre, full_matrices=False)[2][:2]
    both = [(points - centre) @ axes.T for points in (target, images)]
    y, z = (np.pad(p, ((0, 0), (0, 2 - p.shape[1]))) for p in both)
    return y, z


def _by_label(
    axes: Axes, y: Points, z: Points, labels: list[NDArray[np.int64]], size: float
) -> None:
    names = sorted({int(v) for own in labels for v in own if v >= 0})
    for at, name in enumerate(names):
        colour = COLOURS[at % len(COLOURS)]
        own = [points[which == name] for points, which in zip((z, y), labels, strict=True)]
        axes.scatter(*own[1].T, s=1.3 * size, facecolors="none", edgecolors=colour, marker="s",
                     linewidths=0.8)  # fmt: skip
        axes.scatter(*own[0].T, s=size, c=colour, marker=MARKERS[at % len(MARKERS)], linewidths=0,
                     label=str(name))  # fmt: skip
    for points, which in zip((z, y), labels, strict=True):
        axes.scatter(*points[which < 0].T, s=0.5 * size, c=GREY, linewidths=0)
    _dress(axes, "by label: filled source, open target")


def _matrix(axes: Axes, figure: Figure, plan: Points, labels: list[Any] | None) -> None:
    """Draw the plan, pooled to cells, rows and columns by label where there are some."""
    order = [np.arange(size) for size in plan.shape]
    if labels is not None:
        order = [np.argsort(np.asarray(own), kind="stable") for own in labels]
    pooled = plan[order[0]][:, order[1]]
    for axis in (0, 1):
        cuts = np.unique(np.linspace(0, plan.shape[axis], CELLS + 1).astype(int)[:-1])
        pooled = np.add.reduceat(pooled, cuts, axis=axis)
    shade = np.sqrt(pooled / pooled.max()) if pooled.max() > 0 else pooled
    picture = axes.imshow(
        shade, cmap="cividis", aspect="auto", vmin=0, vmax=1,
        extent=(0, plan.shape[1], plan.shape[0], 0),
    )  # fmt: skip
    sorted_by = "by label" if labels is not None else "in file order"
    axes.set_title("plan", fontsize=11)
    axes.set_xlabel(f"target cell ({sorted_by})", fontsize=9)
    axes.set_ylabel(f"source cell ({sorted_by})", fontsize=9)
    axes.tick_params(labelsize=8)
    bar = figure.colorbar(picture, ax=axes, orientation="horizontal", shrink=0.8)
    bar.set_label("square root of mass, as a share of the largest", fontsize=9)


def _dress(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=11)
    axes.set_xlabel("first axis of the target (normalised units)", fontsize=9)
    axes.set_ylabel("second axis of the target (normalised units)", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=6, frameon=False,
                columnspacing=0.9, handletextpad=0.2)  # fmt: skip


def _caption(answer: Mapping[str, Any]) -> str:
    words = [f"value {answer['value']:.5g}", f"k {answer['k']}"]
    if answer["epsilon"] is not None:
        words.append(f"epsilon {answer['epsilon']:g}")
    scores = answer["scores"]
    if scores["foscttm"] is not None:
        words.append(f"FOSCTTM {scores['foscttm']:.3f}")
    if scores["label_transfer_accuracy"] is not None:
        words.append(f"label transfer {scores['label_transfer_accuracy']:.3f}")
    if answer["status"] != "converged":
        words.append(f"status {answer['status']}")
    return ", ".join(words)
