"""Semi-relaxed Gromov-Wasserstein: the source is given, the masses of the target are found."""

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.iterate import Watch, quietly, unwatched
from algorithms.quadratic.conditional_gradient import Corner, Oracle, descend
from algorithms.quadratic.dense import from_vertices, product
from algorithms.quadratic.many_starts import best_of, by_value, dense
from algorithms.quadratic.objective import Found, Pair, Plan
from algorithms.quadratic.quantised import quantised
from algorithms.sparse import SparsePlan

# As for balanced problems: cells above so many points, and how far to descend between them.
FEW, CELLS, COARSE_TOL, LIFTED = 250, 200, 1e-6, 2


def solve_semi(
    pair: Pair,
    *,
    starts: int = 50,
    plan0: Plan | None = None,
    tol: float = 1e-9,
    max_iter: int = 1000,
    generator: torch.Generator,
    watch: Watch = unwatched,
) -> list[Found]:
    r"""Find plans `P 1 = a`, with columns as they come, that no linear step improves.

    A linear problem is solved by the least cost of each row. `Pair.b` only weighs starts: the
    product a b^T first, then maps to random points. The best first; their g is zero.
    """
    oracle = rowwise(pair)
    descent = partial(descend, pair, oracle, tol=tol, max_iter=max_iter, watch=watch)
    first = ("product", product(pair)) if plan0 is None else ("given", plan0)
    if starts == 1:
        return [descent(first[1], start=first[0])]
    if max(pair.shape) <= FEW:
        begun = from_vertices(pair, oracle, first, starts, generator)
        return best_of(pair, oracle, begun, tol=tol, max_iter=max_iter, watch=watch)
    small = quantised(pair, CELLS, generator)
    inner = rowwise(small.pair)
    begun = from_vertices(small.pair, inner, ("product", product(small.pair)), starts, generator)
    pool = best_of(small.pair, inner, begun, tol=max(tol, COARSE_TOL), max_iter=max_iter,
                   watch=quietly(watch))  # fmt: skip
    ends = [descent(first[1], start=first[0])]
    for end in pool[:LIFTED]:
        lifted = small.spread(dense(small.pair, end.plan), pair.a, pair.b)
        ends.append(descent(lifted, start=f"cells, {end.start}"))
    return by_value(ends)


def rowwise(pair: Pair) -> Oracle:
    """Solve linear problems over the plans with P 1 = a: every row goes where it is cheapest."""
    rows = torch.arange(len(pair.a), device=pair.a.device)

    def solve(C: Float[Tensor, "n m"], before: Corner | None) -> Corner:
        f, cols = C.min(1)  # (n, m) -> (n,)
        return Corner(SparsePlan(rows, cols, pair.a), f, torch.zeros_like(pair.b))

    return solve
