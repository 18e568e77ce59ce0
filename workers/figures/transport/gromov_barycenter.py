"""Picture of a Gromov-Wasserstein barycenter: the mean in the plane, the inputs in its shades."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from workers.figures.style import BLUE, plane, sheet

SHADES = "cividis"
MOST_INPUTS = 3


def draw(question: Mapping[str, Any], answer: Mapping[str, Any]) -> Figure:
    """Draw the mean by its first two axes, up to three inputs, and how far each input is.

    The mean is shaded by its first axis; each input by what its plan brings to its points. Inputs
    given by costs have no places: only their distance is shown.
    """
    places = np.asarray(answer["coordinates"])
    order = np.argsort(np.argsort(places[:, 0]))
    shade = order / max(1, len(places) - 1)
    inputs = [(k, one.x.numpy()) for k, one in enumerate(question["spaces"]) if one.x is not None][
        :MOST_INPUTS
    ]
    figure = sheet(4.2 * (len(inputs) + 2), 4.8)
    panels = figure.subplots(1, len(inputs) + 2, squeeze=False)[0]
    _cloud(panels[0], places, shade, "barycenter", "scaling")
    for panel, (k, x) in zip(panels[1:], inputs, strict=False):
        _cloud(panel, _flat(x), _carried(answer["plans"][k], shade, len(x)), f"space {k}", "axis")
    gw = np.asarray(answer["gw"])
    panels[-1].bar(range(len(gw)), np.maximum(gw, 0), color=BLUE)
    panels[-1].set_xticks(range(len(gw)))
    panels[-1].set_xlabel("space")
    panels[-1].set_ylabel("GW(C, C_k), units of squared costs")
    panels[-1].set_title("distance of each space", fontsize=11)
    figure.suptitle(
        f"mean of {len(gw)} spaces, value {answer['value']:.4g}; two axes hold "
        f"{answer['shown']:.0%} of it",
        fontsize=11,
    )
    return figure


def _cloud(axes: Axes, x: NDArray[Any], shade: NDArray[Any], title: str, unit: str) -> None:
    axes.scatter(*x.T, s=16, c=shade, cmap=SHADES, vmin=0, vmax=1)
    plane(axes, title, unit)


def _carried(plan: Mapping[str, Any], shade: NDArray[Any], m: int) -> NDArray[Any]:
    """Average the shades that arrive at each point; nothing where no mass does."""
    total, mass = np.zeros(m), np.zeros(m)
    moved = np.asarray(plan["mass"])
    np.add.at(total, plan["cols"], moved * shade[plan["rows"]])
    np.add.at(mass, plan["cols"], moved)
    return np.divide(total, mass, out=np.full(m, np.nan), where=mass > 0)


def _flat(x: NDArray[Any]) -> NDArray[Any]:
    """Turn a cloud to its first two principal axes."""
    x = x - x.mean(0)
    axes = np.linalg.svd(x, full_matrices=False)[2]
    x = x @ axes[:2].T
    return x if x.shape[1] == 2 else np.column_stack([x, np.zeros(len(x))])
