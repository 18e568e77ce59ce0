"""Barycenters whose points move: alternate plans and weighted means."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.geometry import PointClouds
from algorithms.iterate import Stop, Watch, iterate, quietly
from algorithms.transport.exact import exact
from algorithms.transport.sinkhorn import sinkhorn


@dataclass(frozen=True)
class Moving:
    """Points, and the plans from them to every cloud.

    Attributes:
        goal: the weighted means of what each point is matched with: where it goes next.
        costs: `<P_k, C_k>` of each cloud.
        value: the weighted sum of the objectives.
        gap: the largest duality gap of a plan.
        row_error: largest L1 error of the plans' rows.
        column_error: and of their columns.
        moved: largest step, over the size of the clouds.
    """

    x: Float[Tensor, "n d"]
    goal: Float[Tensor, "n d"]
    costs: Float[Tensor, "K"]
    value: float
    gap: float
    row_error: float
    column_error: float
    moved: float


@dataclass(frozen=True)
class Clouds:
    """Clouds, their weights, mixture weights, and the entropic strength (None: exact plans)."""

    points: Sequence[Float[Tensor, "_ d"]]
    weights: Sequence[Float[Tensor, "_"]]
    lam: Float[Tensor, "K"]
    epsilon: float | None
    scale: float


def settle(
    asked: Clouds, x: Float[Tensor, "n d"], *, tol: float, max_iter: int, watch: Watch
) -> tuple[Moving, Stop]:
    """Move every point to the mean of its matches until none moves; the objective only falls."""
    return iterate(
        lambda state: _matched(asked, state.goal, quietly(watch)),
        lambda state: state.moved,
        _matched(asked, x, quietly(watch)),
        tol=tol,
        max_iter=max_iter,
        watch=watch,
    )


def _matched(asked: Clouds, x: Float[Tensor, "n d"], watch: Watch) -> Moving:
    n = len(x)
    goal, costs = torch.zeros_like(x), torch.zeros_like(asked.lam)
    state = Moving(x, goal, costs, 0.0, 0.0, 0.0, 0.0, 0.0)
    for k, (y, b) in enumerate(zip(asked.points, asked.weights, strict=True)):
        a = torch.full((n,), 1.0, dtype=x.dtype, device=x.device) * (b.sum() / n)
        geometry, lam = PointClouds(x, y), float(asked.lam[k])
        if asked.epsilon is None:
            answer = exact(geometry, a, b, watch=watch)
            plan = answer.plan
            rows = torch.zeros_like(x).index_add(0, plan.rows, plan.mass[:, None] * y[plan.cols])
        else:
            answer = sinkhorn(geometry, a, b, epsilon=asked.epsilon, tol=1e-9, watch=watch)
            assert answer.plan is not None
            rows = answer.plan @ y
        goal += lam * rows / a[:, None]
        costs[k] = answer.transport_cost
        seen = answer.certificate
        state = replace(
            state,
            value=state.value + lam * float(answer.value),
            gap=max(state.gap, seen.duality_gap or 0.0),
            row_error=max(state.row_error, seen.marginal_error_a),
            column_error=max(state.column_error, seen.marginal_error_b),
        )
    moved = float((goal - x).square().sum(1).amax().sqrt()) / asked.scale
    return replace(state, moved=moved)
