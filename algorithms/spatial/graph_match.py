"""Gromov-Wasserstein plans between two matrices of distances: entropic, unbalanced, partial."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.entropic.rounding import round_plan
from algorithms.iterate import Stop, Watch
from algorithms.quadratic.conditional_gradient import Oracle
from algorithms.quadratic.dense import random_cost
from algorithms.quadratic.entropic import solve_entropic, transported
from algorithms.quadratic.objective import Pair
from algorithms.quadratic.partial import capped, solve_partial
from algorithms.simplex import network_simplex
from algorithms.spaces import Relations
from algorithms.sparse import SparsePlan
from algorithms.transport.unbalanced_gromov import unbalanced_gromov

# Random vertices that a partial search tries when no start is given.
PARTIAL_STARTS = 30
# Marginals of the certificate's own step are met to a share of its length, at best to THOROUGH,
# in so many thousand sweeps.
LOOSE, STEP_SHARE, THOROUGH = 1e-4, 0.05, 1e-9
ROUNDS = 20


@dataclass(frozen=True)
class Problem:
    """Two spaces by their distances, with uniform weights of mass one."""

    Dx: Float[Tensor, "n n"]
    Dy: Float[Tensor, "m m"]
    pair: Pair = field(init=False)

    def __post_init__(self) -> None:
        """Weigh all points alike."""
        n, m = len(self.Dx), len(self.Dy)
        a, b = self.Dx.new_full((n,), 1 / n), self.Dy.new_full((m,), 1 / m)
        object.__setattr__(self, "pair", Pair(Relations(self.Dx), Relations(self.Dy), a, b))


@dataclass(frozen=True)
class Bounds:
    """Which plans are allowed, and how far to go: at most one of rho and mass is given."""

    rho: float | None
    mass: float | None
    tol: float
    max_iter: int


@dataclass(frozen=True)
class Ending:
    """A plan, its value, where it began, why it ended, and the fixed-point residual if known."""

    plan: Float[Tensor, "n m"]
    value: float
    start: str
    stop: Stop
    residual: float | None = None


def solved(
    problem: Problem,
    epsilon: float | None,
    bounds: Bounds,
    plan0: Float[Tensor, "n m"] | None,
    start: str,
    generator: torch.Generator,
    watch: Watch,
) -> Ending:
    """Descend from a plan, or from the product; the value is without entropy."""
    pair = problem.pair
    if bounds.mass is not None:
        found = solve_partial(
            pair, mass=bounds.mass, starts=1 if plan0 is not None else PARTIAL_STARTS,
            plan0=plan0, tol=bounds.tol, max_iter=bounds.max_iter, generator=generator,
            watch=watch,
        )[0]  # fmt: skip
        plan = found.plan
        P = plan.dense(*pair.shape) if isinstance(plan, SparsePlan) else plan
        stop = Stop(found.status, found.steps, found.residual)
        return Ending(P, float(pair.quadratic(P)) / float(P.sum()) ** 2, start, stop)
    assert epsilon is not None
    if bounds.rho is not None:
        got = unbalanced_gromov(
            Cx=problem.Dx, Cy=problem.Dy, rho_a=bounds.rho, rho_b=bounds.rho, epsilon=epsilon,
            tol=bounds.tol, max_iter=bounds.max_iter, plan0=plan0, watch=watch,
        )  # fmt: skip
        residual = got.certificate.fixed_point_residual
        return Ending(got.plan, float(pair.quadratic(got.plan)), start, got.stop, residual)
    found = solve_entropic(
        pair, epsilon=epsilon, plan0=plan0, tol=bounds.tol, max_iter=bounds.max_iter, watch=watch
    )
    assert isinstance(found.plan, Tensor)
    stop = Stop(found.status, found.steps, found.residual)
    return Ending(found.plan, float(pair.quadratic(found.plan)), start, stop)


def residual_of(problem: Problem, end: Ending, epsilon: float | None, bounds: Bounds) -> float:
    """Measure, from the plan alone, how far it is from stationary."""
    if end.residual is not None:
        return end.residual
    pair, P = problem.pair, end.plan
    if bounds.mass is not None:
        return gap_share(pair, P, capped(pair, bounds.mass))
    assert epsilon is not None
    return step_length(pair, P, epsilon)


def step_length(pair: Pair, P: Float[Tensor, "n m"], epsilon: float) -> float:
    """Measure how far a full step of entropic descent would move a plan of mass one, in L1.

    The step is solved until its own marginals are off by a small share of that length.
    """
    slope, f = pair.gradient(P), torch.zeros_like(pair.a)
    tol, length = LOOSE, 0.0
    for _ in range(ROUNDS):
        step, f = transported(slope, pair.a, pair.b, epsilon, f, tol)
        length = float((round_plan(step, pair.a, pair.b) - P).abs().sum())
        tol = max(THOROUGH, STEP_SHARE * length)
        if float((step.sum(0) - pair.b).abs().sum()) <= tol:
            break
    return length


def gap_share(pair: Pair, P: Float[Tensor, "n m"], oracle: Oracle) -> float:
    """Measure how much less the best vertex would cost to first order: 0 at a stationary plan."""
    slope = pair.gradient(P)
    best = oracle(slope, None).plan
    gap = float((slope * P).sum() - best.mass @ slope[best.rows, best.cols])
    scale = float((slope * P).sum().abs())
    return gap / scale if scale > 0 else gap


def random_plan(
    problem: Problem, bounds: Bounds, generator: torch.Generator
) -> Float[Tensor, "n m"]:
    """Draw a vertex of the plans, of the mass asked for."""
    pair = problem.pair
    vertex = network_simplex(pair.a, pair.b, random_cost(pair, generator))
    plan = SparsePlan(vertex.rows, vertex.cols, vertex.mass).dense(*pair.shape)
    return plan * (1.0 if bounds.mass is None else bounds.mass)
