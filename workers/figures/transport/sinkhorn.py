"""Picture of an entropic coupling."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from workers.figures.transport.plan import draw_plan


def draw(question: Mapping[str, Any], answer: Mapping[str, Any]) -> Figure:
    """Draw the plan."""
    caption = (
        f"entropic plan, epsilon {question['epsilon']:.3g}, <P, C> {answer['transport_cost']:.4g}, "
        f"gap {answer['certificate']['duality_gap']:.1e}"
    )
    return draw_plan(question, answer["plan"], caption)
