"""Picture of a partial coupling."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from workers.figures.transport.plan import draw_plan

# Entries below this share of the largest are left out of an entropic plan, which has mass anywhere.
SHOWN = 0.02


def draw(question: Mapping[str, Any], answer: Mapping[str, Any]) -> Figure:
    """Draw the plan; points that no line touches keep (nearly) all their mass."""
    sparse, plan = answer["plan"], answer["dense"]
    if plan is None:
        plan = np.zeros((len(answer["f"]), len(answer["g"])))
        plan[sparse["rows"], sparse["cols"]] = sparse["mass"]
    else:
        plan = np.where(plan >= SHOWN * plan.max(), plan, 0.0)
    caption = (
        f"optimal plan of mass {question['mass']:.4g}, <P, C> {answer['transport_cost']:.4g}, "
        f"price of mass {answer['lam']:.4g}, gap {answer['certificate']['duality_gap']:.1e}"
    )
    return draw_plan(question, plan, caption)
