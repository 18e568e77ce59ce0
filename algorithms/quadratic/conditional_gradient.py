"""Conditional gradient for the Gromov-Wasserstein objective, over any polytope of plans."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.iterate import Stop, Watch, iterate, unwatched
from algorithms.quadratic.objective import Found, Pair, Plan
from algorithms.sparse import SparsePlan

# A decrease below this share of the terms that cancel in the objective is rounding.
ROUNDING = 1e-14
# Plans with at most this many entries for each point are returned by entries.
SPARSE = 4


@dataclass(frozen=True)
class Corner:
    """A vertex of the polytope that minimises a linear cost, with potentials that prove it.

    `duals` are those that the solver itself wants to begin from, for a cost near by.
    """

    plan: SparsePlan
    f: Float[Tensor, "n"]
    g: Float[Tensor, "m"]
    duals: tuple[Tensor, Tensor] | None = None


# (cost, corner of a nearby cost or None) -> corner
Oracle = Callable[[Tensor, Corner | None], Corner]


@dataclass(frozen=True)
class Descent:
    r"""A plan P, the corner V that its gradient points to, and the objective in between.

    With `E = V - P` the objective of `P + t E` is `value - gap t + curvature t^2`.

    Attributes:
        L: `Pair.local_cost(P)`, carried along: it is linear in P.
        ahead: `Pair.local_cost(V)`.
        value: the objective of P.
        gap: `<gradient, P - V> >= 0`; zero means that P is stationary.
        curvature: `alpha <L(E), E>`, of any sign.
        noise: what rounding may do to `value`.
    """

    P: Float[Tensor, "n m"]
    L: Float[Tensor, "n m"]
    corner: Corner
    ahead: Float[Tensor, "n m"]
    value: float
    gap: float
    curvature: float
    noise: float

    @property
    def length(self) -> float:
        """Minimise the quadratic along the segment, exactly."""
        if 2 * self.curvature <= self.gap:
            return 1.0
        return self.gap / (2 * self.curvature)

    @property
    def drop(self) -> float:
        """Tell what the next step will gain, relative to the value; less than rounding is none."""
        t = self.length
        gain = self.gap * t - self.curvature * t * t
        return max(0.0, gain - self.noise) / max(self.value, self.noise, 1e-300)


def descend(
    pair: Pair,
    oracle: Oracle,
    plan: Plan,
    *,
    start: str,
    tol: float,
    max_iter: int,
    watch: Watch = unwatched,
) -> Found:
    """Step to corners of the polytope with exact line search, until a step gains `tol` or less.

    One linear problem and one product `Cx V Cy` of a sparse V each step; the potentials that are
    returned belong to the gradient at the returned plan. The objective never rises.
    """
    P = plan.dense(*pair.shape) if isinstance(plan, SparsePlan) else plan
    state, stop = iterate(
        lambda state: forward(pair, oracle, state),
        lambda state: state.drop,
        seen(pair, oracle, P, pair.local_cost(plan), None),
        tol=tol,
        max_iter=max_iter,
        watch=watch,
    )
    return found(state, start, stop)


def seen(
    pair: Pair,
    oracle: Oracle,
    P: Float[Tensor, "n m"],
    L: Float[Tensor, "n m"],
    warm: Corner | None,
) -> Descent:
    """Find the corner that the gradient at P points to, and the objective on the way there."""
    slope = 2 * pair.alpha * L
    if pair.M is not None:
        slope.add_(pair.M, alpha=1 - pair.alpha)
    corner = oracle(slope, warm)
    V, ahead = corner.plan, pair.local_cost(corner.plan)
    quadratic, linear = pair.alpha * torch.vdot(L.ravel(), P.ravel()), pair.linear(P)
    value = quadratic + (1 - pair.alpha) * linear
    E = P.neg()
    E.index_put_((V.rows, V.cols), V.mass, accumulate=True)
    gap = -torch.vdot(slope.ravel(), E.ravel())
    curvature = pair.alpha * torch.vdot((ahead - L).ravel(), E.ravel())
    # the terms of L are squared costs, which cancel where spaces are alike
    size = pair.alpha * (pair.scale * P.sum()).square() + value.abs()
    noise = ROUNDING * (torch.vdot(slope.abs_().ravel(), P.ravel()) + size)
    numbers = torch.stack([value, gap, curvature, noise]).tolist()
    return Descent(P, L, corner, ahead, numbers[0], max(0.0, numbers[1]), *numbers[2:])


def forward(pair: Pair, oracle: Oracle, state: Descent) -> Descent:
    """Go to the best point of the segment between the plan and its corner."""
    t, V = state.length, state.corner.plan
    if t == 1.0:
        return seen(pair, oracle, V.dense(*pair.shape), state.ahead, state.corner)
    P = state.P * (1 - t)
    P.index_put_((V.rows, V.cols), t * V.mass, accumulate=True)
    return seen(pair, oracle, P, torch.lerp(state.L, state.ahead, t), state.corner)


def found(state: Descent, start: str, stop: Stop) -> Found:
    """Report a descent; plans of few entries by these."""
    plan: Plan = state.P
    rows, cols = plan.nonzero(as_tuple=True)
    if len(rows) <= SPARSE * sum(plan.shape):
        plan = SparsePlan(rows, cols, plan[rows, cols])
    f, g = state.corner.f, state.corner.g
    return Found(plan, state.value, start, stop.iterations, stop.status, f, g, stop.residual)
