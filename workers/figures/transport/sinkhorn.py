"""Picture of an entropic coupling."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from workers.figures.style import BLUE, ORANGE, sheet
from workers.figures.transport.plan import draw_plan

MOST_ENTRIES = 25_000_000


def draw(question: Mapping[str, Any], answer: Mapping[str, Any]) -> Figure:
    """Draw the plan, or its entries; without either, what each point gives and gets."""
    gap = answer["certificate"]["duality_gap"]
    caption = (
        f"entropic plan of mass {answer['mass']:.4g}, epsilon {answer['epsilon']:.3g}, "
        f"<P, C> {answer['transport_cost']:.4g}"
    ) + ("" if gap is None else f", gap {gap:.1e}")
    plan, entries = answer["plan"], answer["entries"]
    n, m = len(answer["f"]), len(answer["g"])
    if plan is None and entries is not None and n * m <= MOST_ENTRIES:
        plan = np.zeros((n, m))
        plan[entries["rows"], entries["cols"]] = entries["mass"]
        caption += f"\nwithout {answer['dropped']:.2g} of its mass, in small entries"
    return (
        _marginals(question, answer, caption)
        if plan is None
        else draw_plan(question, plan, caption)
    )


def _marginals(question: Mapping[str, Any], answer: Mapping[str, Any], caption: str) -> Figure:
    """Draw the marginals of the plan against the weights, point by point."""
    figure = sheet(9, 4.5)
    sides = (
        ("source", question["a"], answer["rows"], ORANGE),
        ("target", question["b"], answer["columns"], BLUE),
    )
    for axes, (side, weights, marginal, colour) in zip(figure.subplots(1, 2), sides, strict=True):
        have: NDArray[Any] = np.asarray(marginal)
        asked = np.full(len(have), 1 / len(have)) if weights is None else weights.numpy()
        top = 1.05 * max(asked.max(), have.max())
        axes.plot([0, top], [0, top], color="#999999", linewidth=1, label="all of it")
        axes.scatter(asked, have, color=colour, s=14, label=f"{side} points")
        axes.set_xlabel(f"weight of a {side} point")
        axes.set_ylabel("mass that the plan moves there")
        axes.legend(loc="upper left", frameon=False)
    figure.suptitle(caption, fontsize=11)
    return figure
