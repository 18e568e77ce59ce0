"""Gromov-Wasserstein: optimal transport between spaces that share no coordinates."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.errors import Caution, IllPosed
from algorithms.iterate import Stop, Watch, unwatched
from algorithms.measures import SAME_MASS, same_mass, weights
from algorithms.quadratic.bounds import first_lower_bound, moment_bound, second_lower_bound
from algorithms.quadratic.objective import Found, Pair, Plan, marginals
from algorithms.quadratic.points import Attempt
from algorithms.quadratic.search import (
    Constraint,
    Method,
    Search,
    all_listed,
    feasible,
    resolved,
    searched,
    strength,
)
from algorithms.simplex import network_simplex
from algorithms.spaces import Cloud, Relations, Space, space
from algorithms.sparse import SparsePlan

# Values this close, relatively, are one value: descents to the same plan end much closer.
SAME_VALUE = 1e-6
# And values closer than this share of the squared costs: the rounding of their constants.
NO_VALUE = 1e-13
# Largest cost within a space: its square, summed over all pairs, is still a number.
LARGEST = 1e70
# All pairs of at most so many points a side are sorted for the second lower bound.
SORTED = 1000
# Plans with at most this many entries a point are returned by their entries.
THIN = 4
# A lower bound below this share of the value says little about how good the plan is.
FAR = 0.5


@dataclass(frozen=True)
class Certificate:
    """What is known of the plan, recomputed in float64, and how far it may be from the best.

    Attributes:
        marginal_error_a: `|P 1 - a|_1`; for `partial` the excess over a.
        marginal_error_b: `|P^T 1 - b|_1`, likewise; 0 for `semi_relaxed`.
        mass_error: `|sum P - mass|`, the mass that was asked for.
        first_lower_bound: bound of the quadratic part from eccentricities.
        second_lower_bound: bound of it from the distributions of all costs.
        moment_bound: bound of it from the moments of two clouds.
        linear_bound: the least `<C, P>`.
        lower_bound: what no plan goes below.
        gap: `value - lower_bound`.
        starts_tried: starts that `attempts` lists; all of them where both spaces are clouds and
            the plan is balanced, else the best of those that ended apart.
        starts_reached: starts that ended at the value of the answer.
        distinct_values: values at which starts ended between all points.
    """

    marginal_error_a: float
    marginal_error_b: float
    mass_error: float
    first_lower_bound: float | None
    second_lower_bound: float | None
    moment_bound: float | None
    linear_bound: float | None
    lower_bound: float
    gap: float
    starts_tried: int
    starts_reached: int
    distinct_values: int


@dataclass(frozen=True)
class GromovPlan:
    """The best plan found, by entries or as a matrix, its value, and what speaks for it."""

    plan: SparsePlan | None
    dense_plan: Float[Tensor, "n m"] | None
    value: Float[Tensor, ""]
    gw: float
    transport_cost: float
    method: str
    epsilon: float | None
    attempts: tuple[Attempt, ...]
    certificate: Certificate
    stop: Stop
    cautions: tuple[Caution, ...]


def gromov(
    x: Float[Tensor, "n d"] | None = None,
    y: Float[Tensor, "m e"] | None = None,
    *,
    Cx: Float[Tensor, "n n"] | None = None,
    Cy: Float[Tensor, "m m"] | None = None,
    a: Float[Tensor, "n"] | None = None,
    b: Float[Tensor, "m"] | None = None,
    C: Float[Tensor, "n m"] | None = None,
    alpha: float = 1.0,
    constraint: Constraint = "balanced",
    mass: float | None = None,
    method: Method = "auto",
    epsilon: float | None = None,
    starts: int | None = None,
    plan0: Float[Tensor, "n m"] | None = None,
    tol: float | None = None,
    max_iter: int | None = None,
    generator: torch.Generator,
    watch: Watch = unwatched,
) -> GromovPlan:
    r"""Minimise `alpha sum_ijkl (Cx_ik - Cy_jl)^2 P_ij P_kl + (1 - alpha) <C, P>` over plans P.

    Cx (n, n) and Cy (m, m) are costs within two spaces, given or `Cx_ik = |x_i - x_k|^2`; P is
    balanced (`P 1 = a`, `P^T 1 = b`), partial (`P 1 <= a`, `P^T 1 <= b`, `sum P = mass`), or
    semi-relaxed (`P 1 = a`). Not convex: many starts, compared between centres of cells, of which
    the best descend between all points by exact conditional gradient. For two clouds the state is
    the matrix `X^T P Y`, and no matrix within a space is ever formed.

    Shapes: x (n, d), y (m, e), Cx (n, n), Cy (m, m), a (n,), b (m,), C (n, m), plan0 (n, m).

    Args:
        x, Cx: the source, by one of the two; and so y, Cy the target.
        a: source weights; None is uniform with mass one. And so b; balanced, they have one mass.
        C: linear cost, of the fused problem alone; alpha is then below one.
        method: `auto` is `conditional_gradient`; `entropic` adds `epsilon KL(P | a b^T)`, and
            `proximal` takes steps that are short in KL. The last two are for `balanced`.
        epsilon: None is 0.05 times `alpha s^2 + (1 - alpha) mean |C|`, s the larger mean cost.
        starts: random starts besides those that the method always tries.
        plan0: one more start, moved to the constraints where it does not meet them.
        tol: a start is at rest when a step lowers its value by less than this share (`entropic`
            and `proximal`: when it moves less than this share of the mass); None is 1e-4 between
            clouds, 1e-7 for other conditional gradients, 1e-6 for `entropic` and `proximal`.
        max_iter: steps of each start between all points; None is 8 between clouds of more than
            200 points, where a step costs a second, 50 below, 1,000 for costs, 500 for `entropic`
            and `proximal`.
        generator: draws starts and centres.
        watch: asked before each step; when it says no, the best feasible plan so far is returned.

    Returns:
        A `GromovPlan`: `plan` by entries, or `dense_plan` where most entries carry mass; `value`,
        the objective at this plan (for `entropic` with the KL term); `gw` and `transport_cost`,
        its parts; `method`, `epsilon`; `attempts`, what became of every start; a `Certificate`;
        the `Stop` of the start that won; cautions.

    Notes:
        float64 on the CPU inside. Between clouds O(n m (n + m)) a step of exact transport, memory
        O(n m); with a matrix O(n^2 m + n m^2) more. The plan is the best of what was tried, never
        proved optimal: `certificate.gap` bounds what better plans could gain.
        Gradients: of `value` with P fixed, which is right where P is a strict local minimum.

    References:
        Memoli 2011, doi:10.1007/s10208-011-9093-5 (the problem, bounds); Peyre, Cuturi, Solomon
        2016 (entropic); Vayer et al. 2019, arXiv:1805.09114 (fused, line search); Chapel, Alaya,
        Gasso 2020, arXiv:2002.08276 (partial); Vincent-Cuaz et al. 2022, arXiv:2110.02753
        (semi-relaxed); Xu et al. 2019, arXiv:1901.06003 (proximal).
    """
    X, Y = space("x", x, "Cx", Cx), space("y", y, "Cy", Cy)
    a, b, cautions = _weights(X, Y, a, b, constraint)
    live = Pair(
        _wide(X), _wide(Y), _double(a), _double(b), None if C is None else _double(C), alpha
    )
    pair = _detached(live)
    _check(pair, C)
    total = _travels(pair, constraint, mass)
    given = None if plan0 is None else feasible(pair, plan0, constraint, total)
    how = Search(constraint, total, method, epsilon, starts, given, tol, max_iter)
    search = resolved(pair, how)
    found, attempts = searched(pair, search, generator, watch)
    best = found[0]
    plan = _returned(best.plan, X.like)
    certificate = _certificate(pair, search, plan, best, attempts)
    value = _value(live, pair, plan, search)
    cautions += _cautioned(certificate, float(value.detach()), all_listed(pair, search))
    rest = Stop(best.status, best.steps, best.residual)
    return GromovPlan(
        plan if isinstance(plan, SparsePlan) else None,
        plan if isinstance(plan, Tensor) else None,
        value.to(X.like),
        float(pair.quadratic(_exact(plan))),
        float(pair.linear(_exact(plan))),
        search.method,
        search.epsilon,
        tuple(sorted(attempts, key=lambda one: (-one.points, one.value))),
        certificate,
        rest,
        cautions,
    )


def _weights(
    X: Space, Y: Space, a: Tensor | None, b: Tensor | None, constraint: Constraint
) -> tuple[Float[Tensor, "n"], Float[Tensor, "m"], tuple[Caution, ...]]:
    """Complete the weights, and bring them to one mass where the constraint asks for it."""
    if constraint == "semi_relaxed" and b is not None:
        raise IllPosed("b", "semi_relaxed leaves the weights of the target free; give none")
    a, b = weights("a", a, X.size, X.like), weights("b", b, Y.size, X.like)
    if constraint == "balanced":
        return a, *same_mass(a, b)
    return a, b * a.detach().sum() if constraint == "semi_relaxed" else b, ()


def _wide(Z: Space) -> Space:
    return Cloud(_double(Z.x)) if isinstance(Z, Cloud) else Relations(_double(Z.C))


def _double(z: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    return z.double().cpu()


def _detached(live: Pair) -> Pair:
    """Leave the graph."""
    X, Y = (
        Cloud(Z.x.detach()) if isinstance(Z, Cloud) else Relations(Z.C.detach())
        for Z in (live.X, live.Y)
    )
    M = None if live.M is None else live.M.detach()
    return Pair(X, Y, live.a.detach(), live.b.detach(), M, live.alpha)


def _check(pair: Pair, C: Float[Tensor, "n m"] | None) -> None:
    """Refuse costs whose squares leave the range of numbers, and C without alpha or the reverse."""
    if not 0 <= pair.alpha <= 1:
        raise IllPosed("alpha", f"is {pair.alpha}; it must be in [0, 1]")
    if (C is None) != (pair.alpha == 1):
        raise IllPosed("C", f"is for alpha < 1, and alpha < 1 needs it; alpha is {pair.alpha}")
    if C is not None and C.shape != pair.shape:
        raise IllPosed("C", f"has shape {tuple(C.shape)}; expected {pair.shape}")
    if pair.M is not None and not bool(pair.M.isfinite().all()):
        raise IllPosed("C", "holds NaN or infinity; every entry must be finite")
    for fields, Z in ((("x", "Cx"), pair.X), (("y", "Cy"), pair.Y)):
        cloud = isinstance(Z, Cloud)
        values = Z.x if isinstance(Z, Cloud) else Z.C
        if not values.numel():
            raise IllPosed(fields[0 if cloud else 1], "is empty")
        limit = LARGEST ** (0.5 if cloud else 1.0)
        if float(values.abs().amax()) > limit:
            raise IllPosed(
                fields[0 if cloud else 1],
                f"reaches {float(values.abs().amax()):.1e}; squares of costs would overflow beyond"
                f" {limit:.0e}: rescale",
            )


def _travels(pair: Pair, constraint: Constraint, mass: float | None) -> float:
    """Return the mass of the plan."""
    if (mass is None) == (constraint == "partial"):
        raise IllPosed("mass", f"is {mass}; it belongs to partial, which needs it")
    if mass is None:
        return float(pair.a.sum())
    least = min(float(pair.a.sum()), float(pair.b.sum()))
    if not (math.isfinite(mass) and 0 < mass <= least * (1 + SAME_MASS)):
        raise IllPosed("mass", f"is {mass:.9g}; at most the smaller total, {least:.9g}, can travel")
    return min(mass, least)


def _returned(plan: Plan, like: Tensor) -> Plan:
    """Bring a plan to the type of the inputs; one of few entries is written by these."""
    if isinstance(plan, Tensor):
        rows, cols = plan.nonzero(as_tuple=True)
        if len(rows) > THIN * sum(plan.shape):
            return plan.to(like)
        plan = SparsePlan(rows, cols, plan[rows, cols])
    some = plan.mass > 0
    rows, cols = (z[some].to(like.device) for z in (plan.rows, plan.cols))
    return SparsePlan(rows, cols, plan.mass[some].to(like))


def _exact(plan: Plan) -> Plan:
    """Take a returned plan for float64 computation, as it is."""
    if isinstance(plan, Tensor):
        return _double(plan)
    return SparsePlan(plan.rows.cpu(), plan.cols.cpu(), _double(plan.mass))


def _value(live: Pair, pair: Pair, plan: Plan, search: Search) -> Float[Tensor, ""]:
    """Compute the objective at the plan, in the graph of the costs."""
    fixed = _exact(plan)
    value = live.objective(fixed)
    if search.method != "entropic" or not isinstance(fixed, Tensor):
        return value
    assert search.epsilon is not None
    apart = torch.xlogy(fixed, fixed) - torch.xlogy(fixed, pair.a[:, None] * pair.b)
    return value + search.epsilon * (apart.sum() - fixed.sum() + pair.a.sum() * pair.b.sum())


def _certificate(
    pair: Pair, search: Search, plan: Plan, best: Found, attempts: list[Attempt]
) -> Certificate:
    """Recompute the constraints from what is returned, and bound what any plan can reach."""
    fixed = _exact(plan)
    off = [one - w for one, w in zip(marginals(fixed, *pair.shape), (pair.a, pair.b), strict=True)]
    if search.constraint == "partial":
        off = [o.clamp_min(0) for o in off]
    elif search.constraint == "semi_relaxed":
        off[1] = torch.zeros_like(off[1])
    moved = fixed.sum() if isinstance(fixed, Tensor) else fixed.mass.sum()
    bounds = _bounds(pair) if search.constraint == "balanced" else (None, None, None, None)
    quadratic = max([0.0, *(bound for bound in bounds[:3] if bound is not None)])
    linear = bounds[3]
    if linear is None:
        least = 0.0 if pair.M is None else min(0.0, float(pair.M.amin()))
        linear = least * search.mass
    lower = pair.alpha * quadratic + (1 - pair.alpha) * linear
    value = float(_value(pair, pair, plan, search))
    ends = sorted(one.value for one in attempts if one.points == max(pair.shape))
    room = max(SAME_VALUE * abs(best.value), NO_VALUE * strength(pair, 1.0))
    distinct = [e for k, e in enumerate(ends) if k == 0 or e - ends[k - 1] > room]
    off_a, off_b = (float(o.abs().sum()) for o in off)
    return Certificate(
        off_a,
        off_b,
        abs(float(moved) - search.mass),
        *bounds,
        lower,
        value - lower,
        len(attempts),
        sum(e <= best.value + room for e in ends),
        len(distinct),
    )


def _bounds(pair: Pair) -> tuple[float | None, float | None, float | None, float | None]:
    second = second_lower_bound(pair) if max(pair.shape) <= SORTED else None
    linear = None
    if pair.M is not None:
        linear = float(network_simplex(pair.a, pair.b, pair.M).transport_cost)
    return first_lower_bound(pair), second, moment_bound(pair), linear


def _cautioned(seen: Certificate, value: float, all_listed: bool) -> tuple[Caution, ...]:
    cautions = ()
    if all_listed and seen.starts_tried > 1 and seen.starts_reached <= 1:
        cautions += (
            Caution(
                "one_start_reached",
                f"1 of {seen.starts_tried} starts ended at the value {value:.6g}: another"
                " search may find a better plan",
                f"ask with another seed, or with starts={4 * seen.starts_tried}",
            ),
        )
    if seen.gap > FAR * abs(value):
        cautions += (
            Caution(
                "optimality_unknown",
                f"the best lower bound is {seen.lower_bound:.6g}, far below the value {value:.6g}",
                "the plan may or may not be optimal: compare seeds, more starts, other methods",
            ),
        )
    return cautions
