"""The best of many descents: all roughly, the best few that differ to the end."""

import math
from collections.abc import Iterable

from jaxtyping import Float
from torch import Tensor

from algorithms.iterate import Watch, quietly, unwatched
from algorithms.quadratic.conditional_gradient import Oracle, descend
from algorithms.quadratic.objective import Found, Pair, Plan
from algorithms.sparse import SparsePlan

# All starts descend until a step gains less than this share, the best few further.
ROUGH, ROUGH_STEPS, REFINED = 1e-2, 20, 8
# Plans that place less than this share of the mass differently lead to the same place.
SAME = 0.3


def best_of(
    pair: Pair,
    oracle: Oracle,
    starts: Iterable[tuple[str, Plan]],
    *,
    tol: float,
    max_iter: int,
    watch: Watch = unwatched,
) -> list[Found]:
    """Descend from every start; return where the best lead that differ, the best first."""
    ends: list[Found] = []
    inner = quietly(watch)
    for name, plan in starts:
        if ends and not inner(len(ends), math.inf):
            break
        ends.append(
            descend(
                pair, oracle, plan, start=name, tol=max(tol, ROUGH),
                max_iter=min(max_iter, ROUGH_STEPS), watch=inner,
            )
        )  # fmt: skip
    few = distinct(pair, by_value(ends))[:REFINED]
    return distinct(
        pair,
        by_value([
            descend(
                pair, oracle, end.plan, start=end.start, tol=tol, max_iter=max_iter, watch=watch
            )
            for end in few
        ]),
    )  # fmt: skip


def by_value(ends: list[Found]) -> list[Found]:
    """Put the best first."""
    return sorted(ends, key=lambda end: end.value)


def distinct(pair: Pair, ends: list[Found]) -> list[Found]:
    """Drop plans that are nearly the same as a better one; the order is kept."""
    kept: list[tuple[Found, Tensor]] = []
    for end in ends:
        P = dense(pair, end.plan)
        if all(float((P - Q).abs().sum()) > SAME * float(P.sum()) for _, Q in kept):
            kept.append((end, P))
    return [end for end, _ in kept]


def dense(pair: Pair, plan: Plan) -> Float[Tensor, "n m"]:
    """Write a plan out."""
    return plan.dense(*pair.shape) if isinstance(plan, SparsePlan) else plan
