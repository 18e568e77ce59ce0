"""Picture of a Gromov-Wasserstein plan: colours carried from one space to the other."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from workers.figures.style import BLUE, GREY, ORANGE, plane, sheet

MOST_ATTEMPTS = 60
SHADES = "cividis"


def draw(question: Mapping[str, Any], answer: Mapping[str, Any]) -> Figure:
    """Draw both clouds, the target in the colours that the plan brings; and where starts ended.

    Without points the plan itself is drawn, rows and columns in the order of their shades.
    """
    plan = _dense(answer, question)
    figure = sheet(13, 5.2)
    if question["x"] is not None and question["y"] is not None:
        left, middle, right = figure.subplots(1, 3, width_ratios=(5, 5, 3))
        x, y = (_flat(question[name].numpy()) for name in ("x", "y"))
        shade = np.argsort(np.argsort(x[:, 0])) / max(1, len(x) - 1)
        nu = plan.sum(0)
        carried = np.divide(plan.T @ shade, nu, out=np.full(len(y), np.nan), where=nu > 0)
        _cloud(left, x, shade, plan.sum(1), "source, shaded by its first axis")
        _cloud(middle, y, carried, nu, "target, in the shades that arrive")
    else:
        wide, right = figure.subplots(1, 2, width_ratios=(10, 3))
        image = wide.imshow(plan, cmap=SHADES, aspect="auto", interpolation="none")
        figure.colorbar(image, label="mass")
        wide.set_title("plan", fontsize=11)
        wide.set_xlabel("target index j")
        wide.set_ylabel("source index i")
    _attempts(right, answer, max(plan.shape))
    certificate = answer["certificate"]
    figure.suptitle(
        f"value {answer['value']:.5g}, at least {certificate['lower_bound']:.5g}; "
        f"{certificate['starts_reached']} of {certificate['starts_tried']} starts reached it",
        fontsize=11,
    )
    return figure


def _dense(answer: Mapping[str, Any], question: Mapping[str, Any]) -> NDArray[Any]:
    if answer["dense_plan"] is not None:
        return np.asarray(answer["dense_plan"])
    n, m = (
        len(question[points] if question[points] is not None else question[costs])
        for points, costs in (("x", "Cx"), ("y", "Cy"))
    )
    plan = np.zeros((n, m))
    sparse = answer["plan"]
    plan[sparse["rows"], sparse["cols"]] = sparse["mass"]
    return plan


def _flat(x: NDArray[Any]) -> NDArray[Any]:
    """Turn a cloud to its first two principal axes."""
    x = x - x.mean(0)
    axes = np.linalg.svd(x, full_matrices=False)[2]
    x = x @ axes[:2].T
    return x if x.shape[1] == 2 else np.column_stack([x, np.zeros(len(x))])


def _cloud(
    axes: Axes, x: NDArray[Any], shade: NDArray[Any], mass: NDArray[Any], title: str
) -> None:
    reached = mass > 0
    axes.scatter(*x[~reached].T, s=12, c=GREY, marker="x", label="no mass" if any(~reached) else "")
    axes.scatter(*x[reached].T, s=14, c=shade[reached], cmap=SHADES, vmin=0, vmax=1)
    plane(axes, title, "principal axis")
    if not reached.all():
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), frameon=False)


def _attempts(axes: Axes, answer: Mapping[str, Any], points: int) -> None:
    """Show at which values the starts ended, those between all points apart from the others."""
    attempts = answer["attempts"][:MOST_ATTEMPTS]
    for done, colour, marker, label in (
        (True, ORANGE, "o", "ended, all points"),
        (False, BLUE, "s", "given up, on centres"),
    ):
        places = [k for k, one in enumerate(attempts) if (one["points"] == points) == done]
        if places:
            values = [attempts[k]["value"] for k in places]
            axes.scatter(places, values, s=22, c=colour, marker=marker, label=label)
    low = answer["certificate"]["lower_bound"]
    axes.axhline(low, color="black", linestyle="--", linewidth=1, label="lower bound")
    axes.set_title("value of each start", fontsize=11)
    axes.set_xlabel("starts")
    axes.set_ylabel("objective")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=1, frameon=False, fontsize=9)
