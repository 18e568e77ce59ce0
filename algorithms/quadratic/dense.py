"""Balanced Gromov-Wasserstein, fused or not, for any costs: many starts, exact linear steps."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.entropic.rounding import round_plan
from algorithms.iterate import Watch, quietly, unwatched
from algorithms.quadratic.conditional_gradient import Corner, Oracle, descend
from algorithms.quadratic.entropic import solve_entropic
from algorithms.quadratic.many_starts import best_of, by_value, dense
from algorithms.quadratic.objective import Found, Pair, Plan
from algorithms.quadratic.quantised import quantised
from algorithms.simplex import network_simplex
from algorithms.sparse import SparsePlan

# Above so many points, starts are compared between so many cells a side.
FEW, CELLS = 250, 200
# Between cells, steps that gain less than this share end a descent.
COARSE_TOL = 1e-6
# Entropic strengths of the smoothed starts, in units of the gradient.
SMOOTHING, RANDOM_SMOOTHING = (0.1, 0.05, 0.02), 0.03
SMOOTH_TOL, SMOOTH_STEPS = 1e-3, 30
# Up to so many points the three best of the cells are lifted, and one start has no cells.
SEVERAL, LIFTED = 1000, 3


def solve_dense(
    pair: Pair,
    *,
    starts: int = 28,
    plan0: Plan | None = None,
    tol: float = 1e-9,
    max_iter: int = 1000,
    generator: torch.Generator,
    watch: Watch = unwatched,
) -> list[Found]:
    r"""Find plans of U(a, b) that no linear step improves; the best first.

    The starts are a given plan, the product a b^T, entropic plans of falling strength, and
    random vertices, every other one smoothed. Beyond a few hundred points they are compared
    between cells, and the best that differ are lifted: the mass between two cells is shared among
    their points as a product.

    Args:
        starts: how many; where one, it is the given plan or else the product, for all points.
        plan0: a feasible plan.
        tol: a step that gains no more than this share of the objective ends a descent.
        max_iter: steps of one descent.
    """
    oracle = balanced(pair)
    descent = partial(descend, pair, oracle, tol=tol, max_iter=max_iter, watch=watch)
    if starts == 1 or (plan0 is None and max(pair.shape) == 1):
        first = ("product", product(pair)) if plan0 is None else ("given", plan0)
        return [descent(first[1], start=first[0])]
    if max(pair.shape) <= FEW:
        begun = _starts(pair, starts, plan0, generator)
        return best_of(pair, oracle, begun, tol=tol, max_iter=max_iter, watch=watch)
    small = quantised(pair, CELLS, generator)
    pool = best_of(
        small.pair,
        balanced(small.pair),
        _starts(small.pair, starts, None, generator),
        tol=max(tol, COARSE_TOL),
        max_iter=max_iter,
        watch=quietly(watch),
    )
    several = max(pair.shape) <= SEVERAL
    ends = [] if plan0 is None else [descent(plan0, start="given")]
    if several:
        ends.append(descent(product(pair), start="product"))
    for end in pool[: LIFTED if several else 1]:
        lifted = small.spread(dense(small.pair, end.plan), pair.a, pair.b)
        ends.append(descent(round_plan(lifted, pair.a, pair.b), start=f"cells, {end.start}"))
    return by_value(ends)


def balanced(pair: Pair) -> Oracle:
    """Solve linear problems over U(a, b) exactly, each from the potentials of the one before."""

    def solve(C: Float[Tensor, "n m"], before: Corner | None) -> Corner:
        vertex = network_simplex(pair.a, pair.b, C, warm=before and before.duals)
        entries = (t.to(C.device) for t in (vertex.rows, vertex.cols, vertex.mass))
        f, g = vertex.f.to(C.device), vertex.g.to(C.device)
        return Corner(SparsePlan(*entries), f, g, (vertex.f, vertex.g))

    return solve


def product(pair: Pair) -> Float[Tensor, "n m"]:
    """Return a b^T, scaled to the mass of both."""
    return pair.a[:, None] * (pair.b / pair.b.sum())


def gradient_scale(pair: Pair) -> float:
    """Measure the size of the gradient: squared mean costs times mass, and mean linear costs."""
    linear = 0.0 if pair.M is None else float(pair.M.abs().mean())
    quadratic = pair.scale**2 * float(pair.a.sum())
    return pair.alpha * quadratic + (1 - pair.alpha) * linear


def random_cost(pair: Pair, generator: torch.Generator) -> Float[Tensor, "n m"]:
    """Draw a cost whose optimal plan is a random vertex."""
    drawn = torch.rand(pair.shape, dtype=pair.a.dtype, device=generator.device, generator=generator)
    return drawn.to(pair.a)


def from_vertices(
    pair: Pair,
    oracle: Oracle,
    first: tuple[str, Plan],
    count: int,
    generator: torch.Generator,
) -> Iterator[tuple[str, Plan]]:
    """Make so many starts as they are asked for: one that is given, then random vertices."""
    yield first
    for k in range(count - 1):
        yield f"random {k}", oracle(random_cost(pair, generator), None).plan


def _starts(
    pair: Pair, count: int, plan0: Plan | None, generator: torch.Generator
) -> Iterator[tuple[str, Plan]]:
    """Make starts as they are asked for: the plain ones first, then random vertices."""
    unit = gradient_scale(pair)
    plain: list[tuple[str, Callable[[], Plan]]] = []
    if plan0 is not None:
        plain.append(("given", lambda: plan0))
    plain.append(("product", lambda: product(pair)))
    plain += [(f"entropic {s}", partial(_smooth, pair, s * unit, None)) for s in SMOOTHING]
    for name, make in plain[:count]:
        yield name, make()
    oracle = balanced(pair)
    for k in range(count - len(plain)):
        plan = oracle(random_cost(pair, generator), None).plan
        yield f"random {k}", _smooth(pair, RANDOM_SMOOTHING * unit, plan) if k % 2 else plan


def _smooth(pair: Pair, epsilon: float, plan: Plan | None) -> Plan:
    if epsilon <= 0:  # all costs are zero: every plan is as good
        return product(pair) if plan is None else plan
    return solve_entropic(
        pair, epsilon=epsilon, plan0=plan, tol=SMOOTH_TOL, max_iter=SMOOTH_STEPS
    ).plan
