"""Balanced Gromov-Wasserstein, fused or not, for any costs: many starts, exact linear steps."""

import math
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.iterate import Watch, quietly, unwatched
from algorithms.simplex import network_simplex
from algorithms.sparse import SparsePlan
from algorithms.transport.conditional_gradient import Corner, Oracle, descend
from algorithms.transport.gromov_entropic import solve_entropic
from algorithms.transport.quadratic import Found, Pair, Plan
from algorithms.transport.quantised import quantised
from algorithms.transport.rounding import round_plan

# Above this many points, starts are compared between so many cells a side.
CELLS, FEW = 200, 250
# Entropic strengths of the smoothed starts, in units of the gradient.
SMOOTHING = (0.1, 0.05, 0.02)
RANDOM_SMOOTHING = 0.03
SMOOTH_TOL, SMOOTH_STEPS = 1e-3, 30
# All starts descend until a step gains less than this share, the best few further.
ROUGH, ROUGH_STEPS, REFINED, FINE = 1e-2, 20, 8, 1e-6
# Plans that place less than this share of the mass differently lead to the same place.
SAME = 0.3
# How many of the small plans become starts of the whole problem, by its size.
LIFTED = {1000: 3}


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
    random vertices. Beyond a few hundred points they are compared between cells, and the best
    that differ are lifted: mass between two cells is shared among their points as a product.

    Args:
        starts: how many; one is the given plan or else the product, for all points at once.
        plan0: a feasible plan.
        tol: relative gain of a step that ends a descent.
        max_iter: steps of one descent.
    """
    oracle = balanced(pair)
    descent = Descender(pair, oracle, tol, max_iter, watch)
    first = ("given", plan0) if plan0 is not None else ("product", product(pair))
    if starts == 1:
        return [descent(*first)]
    if max(pair.shape) <= FEW:
        return refined(pair, oracle, _starts(pair, starts, plan0, generator), descent)
    small = quantised(pair, CELLS, generator)
    rough = Descender(small.pair, balanced(small.pair), FINE, max_iter, quietly(watch))
    begun = _starts(small.pair, starts, None, generator)
    pool = refined(small.pair, balanced(small.pair), begun, rough)
    lifted = next((k for n, k in LIFTED.items() if max(pair.shape) <= n), 1)
    ends = [descent(*first)] if plan0 is not None or lifted > 1 else []
    for end in pool[:lifted]:
        P = small.spread(dense(end.plan, small.pair), pair.a, pair.b)
        ends.append(descent(end.start, round_plan(P, pair.a, pair.b)))
    return sorted(ends, key=lambda end: end.value)


class Descender:
    """Descends from one start after another, and tells the watch of each."""

    def __init__(self, pair: Pair, oracle: Oracle, tol: float, max_iter: int, watch: Watch) -> None:
        """Keep the problem and the limits; `done` counts the descents."""
        self.pair, self.oracle = pair, oracle
        self.tol, self.max_iter, self.watch = tol, max_iter, watch
        self.done = 0

    def __call__(self, start: str, plan: Plan) -> Found:
        """Descend from one plan."""
        self.done += 1
        return descend(
            self.pair, self.oracle, plan, start=start, tol=self.tol, max_iter=self.max_iter,
            watch=self.watch,
        )  # fmt: skip


def refined(
    pair: Pair, oracle: Oracle, starts: Iterator[tuple[str, Plan]], descent: Descender
) -> list[Found]:
    """Descend roughly from every start, then to the end from the best few that differ."""
    watch = quietly(descent.watch)
    ends: list[Found] = []
    for name, plan in starts:
        if ends and not watch(len(ends), math.inf):
            break
        ends.append(
            descend(pair, oracle, plan, start=name, tol=ROUGH, max_iter=ROUGH_STEPS, watch=watch)
        )
    ends = distinct(pair, sorted(ends, key=lambda end: end.value))[:REFINED]
    ends = [descent(end.start, end.plan) for end in ends]
    return distinct(pair, sorted(ends, key=lambda end: end.value))


def balanced(pair: Pair) -> Oracle:
    """Solve linear problems over U(a, b) exactly, each from the potentials of the one before."""

    def solve(C: Float[Tensor, "n m"], warm: Corner | None) -> Corner:
        duals = None if warm is None or warm.f is None or warm.g is None else (warm.f, warm.g)
        vertex = network_simplex(pair.a, pair.b, C, warm=duals)
        rows, cols, mass, f, g = (
            t.to(C.device) for t in (vertex.rows, vertex.cols, vertex.mass, vertex.f, vertex.g)
        )
        return Corner(SparsePlan(rows, cols, mass), f, g)

    return solve


def product(pair: Pair) -> Float[Tensor, "n m"]:
    """Return a b^T, scaled to the mass of both."""
    return pair.a[:, None] * (pair.b / pair.b.sum())


def _starts(
    pair: Pair, count: int, plan0: Plan | None, generator: torch.Generator
) -> Iterator[tuple[str, Plan]]:
    """Make starts as they are asked for: the plain ones first, then random vertices."""
    unit = gradient_scale(pair)
    plain: list[tuple[str, Callable[[], Plan]]] = []
    if plan0 is not None:
        plain.append(("given", lambda: plan0))
    plain.append(("product", lambda: product(pair)))
    for share in SMOOTHING:
        plain.append((f"entropic {share}", lambda s=share: _smooth(pair, s * unit, None)))
    for name, make in plain[:count]:
        yield name, make()
    oracle = balanced(pair)
    for k in range(count - len(plain)):
        C = torch.rand(pair.shape, dtype=torch.float64, device=generator.device,
                       generator=generator)  # fmt: skip
        plan = oracle(C.to(pair.a), None).plan
        if k % 2:
            plan = _smooth(pair, RANDOM_SMOOTHING * unit, plan)
        yield f"random {k}", plan


def gradient_scale(pair: Pair) -> float:
    """Measure the size of the gradient: squared mean costs times mass, and mean linear costs."""
    linear = 0.0 if pair.M is None else float(pair.M.abs().mean())
    quadratic = pair.scale**2 * float(pair.a.sum())
    return pair.alpha * quadratic + (1 - pair.alpha) * linear


def _smooth(pair: Pair, epsilon: float, plan: Plan | None) -> Plan:
    if epsilon <= 0:  # all costs are zero: every plan is as good
        return product(pair) if plan is None else plan
    return solve_entropic(
        pair, epsilon=epsilon, plan0=plan, tol=SMOOTH_TOL, max_iter=SMOOTH_STEPS
    ).plan


def dense(plan: Plan, pair: Pair) -> Float[Tensor, "n m"]:
    """Write a plan out."""
    return plan.dense(*pair.shape) if isinstance(plan, SparsePlan) else plan


def distinct(pair: Pair, ends: list[Found]) -> list[Found]:
    """Drop plans that are nearly the same as a better one; the order is kept."""
    kept: list[tuple[Found, Tensor]] = []
    for end in ends:
        P = dense(end.plan, pair)
        if all(float((P - Q).abs().sum()) > SAME * float(P.sum()) for _, Q in kept):
            kept.append((end, P))
    return [end for end, _ in kept]
