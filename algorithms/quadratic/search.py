"""Which solver looks for a Gromov-Wasserstein plan, and how far."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.entropic.rounding import round_plan
from algorithms.errors import IllPosed
from algorithms.iterate import Watch
from algorithms.quadratic.dense import SMOOTHING, random_cost, solve_dense
from algorithms.quadratic.entropic import solve_entropic
from algorithms.quadratic.objective import Found, Pair
from algorithms.quadratic.partial import solve_partial
from algorithms.quadratic.points import Attempt, solve_points
from algorithms.quadratic.semi import solve_semi
from algorithms.simplex import network_simplex
from algorithms.spaces import Cloud
from algorithms.sparse import SparsePlan

Constraint = Literal["balanced", "partial", "semi_relaxed"]
Method = Literal["auto", "conditional_gradient", "entropic", "proximal"]

# Default strength of entropic and proximal, as a share of the scale of the objective.
STRENGTH = 0.05
# Default tolerances and steps: between clouds, between other spaces, with entropy.
POINTS_TOL, DENSE_TOL, SMOOTH_TOL = 1e-4, 1e-7, 1e-6
DENSE_STEPS, SMOOTH_STEPS = 1000, 500
# Random starts of descents with a line search.
RANDOM_STARTS = {"balanced": 24, "partial": 99, "semi_relaxed": 49}


@dataclass(frozen=True)
class Search:
    """How to look for a plan.

    Attributes:
        mass: total of the plan.
        method: `auto` until it is resolved.
        epsilon: strength; None where the method has none, or before it is resolved.
        starts: random starts; None is what the solver needs by itself.
        plan0: one more start, feasible.
        tol: None is the method's own.
        max_iter: likewise.
    """

    constraint: Constraint
    mass: float
    method: Method
    epsilon: float | None
    starts: int | None
    plan0: Float[Tensor, "n m"] | None
    tol: float | None
    max_iter: int | None


def resolved(pair: Pair, search: Search) -> Search:
    """Fill in what was left to the routine; refuse what does not go together."""
    smooth = search.method in ("entropic", "proximal")
    if smooth and search.constraint != "balanced":
        raise IllPosed("method", f"{search.constraint} has only conditional_gradient")
    if search.epsilon is not None and not smooth:
        raise IllPosed("epsilon", "belongs to the methods entropic and proximal")
    if not smooth:
        return replace(search, method="conditional_gradient")
    epsilon = strength(pair, STRENGTH) if search.epsilon is None else search.epsilon
    if not 0 < epsilon < float("inf"):
        raise IllPosed("epsilon", f"is {epsilon}; it must be positive and finite")
    return replace(search, epsilon=epsilon)


def strength(pair: Pair, share: float) -> float:
    """Take a share of `alpha s^2 + (1 - alpha) mean |C|`, s the larger of both mean costs."""
    linear = 0.0
    if pair.M is not None:
        linear = float(pair.a @ pair.M.abs() @ pair.b / (pair.a.sum() * pair.b.sum()))
    quadratic = pair.scale**2 * float(pair.a.sum())
    return share * (pair.alpha * quadratic + (1 - pair.alpha) * linear)


def feasible(
    pair: Pair, plan0: Float[Tensor, "n m"], constraint: Constraint, mass: float
) -> Float[Tensor, "n m"]:
    """Move a given plan to the constraints."""
    given = plan0.detach().double().cpu()
    if given.shape != pair.shape:
        raise IllPosed("plan0", f"has shape {tuple(given.shape)}; expected {pair.shape}")
    if not bool(given.isfinite().all()) or float(given.amin()) < 0 or float(given.sum()) <= 0:
        raise IllPosed("plan0", "must be finite, not negative, and have mass")
    given = given * (mass / given.sum())
    match constraint:
        case "balanced":
            return round_plan(given, pair.a, pair.b)
        case "semi_relaxed":
            # rows without mass are sent in the proportions of b
            mu = given.sum(1, keepdim=True)
            even = pair.a[:, None] * (pair.b / pair.b.sum())
            return torch.where(mu > 0, given * (pair.a[:, None] / mu), even)
        case "partial":
            return _capped(given, pair.a, pair.b, mass)


def _capped(
    P: Float[Tensor, "n m"], a: Float[Tensor, "n"], b: Float[Tensor, "m"], mass: float
) -> Float[Tensor, "n m"]:
    """Scale rows and columns below a and b; what that takes away goes where there is room."""
    mu = P.sum(1)
    lower = P * torch.where(mu > a, a / mu, 1.0)[:, None]
    nu = lower.sum(0)
    lower = lower * torch.where(nu > b, b / nu, 1.0)
    rows, cols = (a - lower.sum(1)).clamp_min(0), (b - lower.sum(0)).clamp_min(0)
    left = mass - float(lower.sum())
    if left <= 0 or float(rows.sum()) == 0 or float(cols.sum()) == 0:
        return lower
    return lower + rows[:, None] * cols * (left / (rows.sum() * cols.sum()))


def searched(
    pair: Pair, search: Search, generator: torch.Generator, watch: Watch
) -> tuple[list[Found], list[Attempt]]:
    """Run the solver that fits; plans best first, and what became of every start."""
    if pair.alpha == 0 and search.constraint == "balanced" and search.epsilon is None:
        found = [_linear(pair)]
    elif search.epsilon is not None:
        found = _entropic(pair, search, generator, watch)
    elif all_listed(pair, search):
        return solve_points(
            pair,
            starts=search.starts,
            plan0=search.plan0,
            tol=POINTS_TOL if search.tol is None else search.tol,
            max_iter=search.max_iter,
            generator=generator,
            watch=watch,
        )
    else:
        found = _descended(pair, search, generator, watch)
    return found, [Attempt(one.start, max(pair.shape), one.value) for one in found]


def all_listed(pair: Pair, search: Search) -> bool:
    """Decide whether the search runs between clouds: it alone tells of every start."""
    clouds = isinstance(pair.X, Cloud) and isinstance(pair.Y, Cloud)
    smooth, linear = search.epsilon is not None, pair.alpha == 0
    return clouds and search.constraint == "balanced" and not smooth and not linear


def _linear(pair: Pair) -> Found:
    """Solve the linear problem that is left where alpha is zero."""
    assert pair.M is not None
    vertex = network_simplex(pair.a, pair.b, pair.M)
    plan = SparsePlan(vertex.rows, vertex.cols, vertex.mass)
    value = float(vertex.transport_cost)
    return Found(plan, value, "linear", 1, "converged", vertex.f, vertex.g)


def _descended(pair: Pair, search: Search, generator: torch.Generator, watch: Watch) -> list[Found]:
    """Descend by conditional gradient with a line search, from the solver's starts."""
    tol = DENSE_TOL if search.tol is None else search.tol
    steps = DENSE_STEPS if search.max_iter is None else search.max_iter
    given = search.plan0 is not None
    random = RANDOM_STARTS[search.constraint] if search.starts is None else search.starts
    match search.constraint:
        case "balanced":
            solve = partial(solve_dense, starts=random + 1 + len(SMOOTHING) + given)
        case "partial":
            solve = partial(solve_partial, mass=search.mass, starts=random + 1)
        case "semi_relaxed":
            solve = partial(solve_semi, starts=random + 1)
    return solve(
        pair, plan0=search.plan0, tol=tol, max_iter=steps, generator=generator, watch=watch
    )


def _entropic(pair: Pair, search: Search, generator: torch.Generator, watch: Watch) -> list[Found]:
    """Descend smoothly from the product or the given plan, and from random vertices if asked."""
    assert search.epsilon is not None
    first = "product" if search.plan0 is None else "given"
    begun = [(first, search.plan0)]
    for number in range(search.starts or 0):
        vertex = network_simplex(pair.a, pair.b, random_cost(pair, generator))
        plan = SparsePlan(vertex.rows, vertex.cols, vertex.mass).dense(*pair.shape)
        begun.append((f"random {number}", plan))
    found = [
        replace(
            solve_entropic(
                pair,
                epsilon=search.epsilon,
                proximal=search.method == "proximal",
                plan0=plan,
                tol=SMOOTH_TOL if search.tol is None else search.tol,
                max_iter=SMOOTH_STEPS if search.max_iter is None else search.max_iter,
                watch=watch,
            ),
            start=name,
        )
        for name, plan in begun
    ]
    return sorted(found, key=lambda one: one.value)
