"""Transport by plans of low rank: clusters of the source, clusters of the target, pair by pair."""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.errors import Caution, IllPosed
from algorithms.geometry import factors
from algorithms.iterate import Status, Stop, Watch, iterate, quietly, unwatched
from algorithms.linear.clusters import centres, grouped, nearest_of, pair_groups
from algorithms.linear.factored import (
    ROUNDS_EACH,
    STRENGTHS,
    Costs,
    Factors,
    Search,
    alternated,
    begun,
    block,
    descended,
)
from algorithms.linear.halving import bijection, split_masses
from algorithms.measures import same_mass, weights

# Steps over which the rounded cost must have fallen by less than tol for a search to end.
WINDOW = 10
# Steps before that: every entropic strength has had its rounds.
SCHEDULE = len(STRENGTHS) * ROUNDS_EACH
# Leaves and block passes of the bijection whose pairs are grouped: a percent is good enough.
LEAF, PASSES = 128, 5
# Entropic strength of the plans to centres, in units of the independent cost.
TO_CENTRES = 0.1
# A plan this near to the independent cost may sit at a saddle.
SADDLE = 1e-3
# Marginals of the returned plan: sums of rounded numbers.
EXACT = {torch.float64: 1e-12, torch.float32: 1e-5}

BEST_FIRST: tuple[Status, ...] = (
    "converged",
    "stagnated",
    "max_iter",
    "diverged",
    "interrupted",
)

Method = Literal["alternation", "mirror_descent"]
Origin = Literal["hard_pairs", "pairs", "centres", "product"]


@dataclass(frozen=True)
class Certificate:
    """What tells how good the plan is, recomputed in float64 from what is returned.

    Attributes:
        marginal_error_a: `|P 1 - a|_1` of the plan `P = Q diag(1/g) R^T`.
        marginal_error_b: `|P^T 1 - b|_1`, likewise.
        marginal_error_q: `|Q 1 - a|_1 + |Q^T 1 - g|_1`.
        marginal_error_r: `|R 1 - b|_1 + |R^T 1 - g|_1`.
        independent_value: the cost of `a b^T`, the plan of rank one.
        ratio: value over it.
        lower_bound: no plan, of any rank, costs less (Gelbrich: means and covariances).
        upper_bound: cost of a feasible plan of high rank; the optimum over all ranks is below.
    """

    marginal_error_a: float
    marginal_error_b: float
    marginal_error_q: float
    marginal_error_r: float
    independent_value: float
    ratio: float
    lower_bound: float
    upper_bound: float


@dataclass(frozen=True)
class LowRankPlan:
    """The factors of a plan, its cost, and how good it is."""

    Q: Float[Tensor, "n r"]
    R: Float[Tensor, "m r"]
    g: Float[Tensor, "r"]
    value: Float[Tensor, ""]
    transport_cost: Float[Tensor, ""]
    origin: Origin
    certificate: Certificate
    stop: Stop
    cautions: tuple[Caution, ...]


@dataclass(frozen=True)
class Clouds:
    """Centred clouds with positive weights in float64, and the cost between them."""

    x: Float[Tensor, "n d"]
    y: Float[Tensor, "m d"]
    costs: Costs


def low_rank(
    x: Float[Tensor, "n d"],
    y: Float[Tensor, "m d"],
    a: Float[Tensor, "n"] | None = None,
    b: Float[Tensor, "m"] | None = None,
    *,
    rank: int,
    method: Method = "alternation",
    tol: float = 1e-4,
    max_iter: int = 200,
    generator: torch.Generator,
    watch: Watch = unwatched,
) -> LowRankPlan:
    r"""Seek `min <P, C>` over `P = Q diag(1/g) R^T`, Q in Pi(a, g), R in Pi(b, g).

    C_ij = |x_i - y_j|^2, used through factors of width d + 2, never as a matrix; g has `rank`
    entries. The problem is not convex: two searches and one hard plan compete. The hard plan
    groups the pairs of a bijection (of a mass-splitting plan, where weights differ) by their
    midpoints. One search starts there, the other at entropic plans to the k-means++ centres of
    both clouds. A search alternates: Q is the entropic plan for the cost `A (B^T R)/g`, then R
    likewise, at strengths that fall; every round is rounded to exact marginals and the best is
    kept. `mirror_descent` goes on from the winner with steps in Q, R and g.

    Shapes: x (n, d), y (m, d), a (n,), b (m,); r at most `rank`.

    Args:
        a: source weights, at least zero; None is uniform with mass one.
        b: target weights; rescaled to the mass of a where they differ by less than 1e-5 of it.
        rank: number of groups. 1 is the independent plan; from min(n, m) on, the plan is not
            blurred at all and as good as the bijection.
        method: `mirror_descent` is a polish: some percent better at best, ten times the time.
        tol: a search ends when the rounded cost fell by less than this share in ten steps.
        max_iter: steps of each search.
        generator: draws the first centres and the directions of the bijection.
        watch: asked between steps whether to go on.

    Returns:
        A `LowRankPlan`: `Q`, `R`, `g` of exact marginals, groups without mass left out; `value`
        and `transport_cost`, both <P, C>: an upper bound of the squared Wasserstein distance,
        larger by about the variance within groups, which is most of it when the clouds nearly
        coincide; `origin`, where the winner came from; a `Certificate`; the `Stop`, with the
        relative fall over ten steps as residual; cautions.

    Notes:
        float64 inside. Time O((n + m) r (d + 60)) a step, memory O((n + m)(r + d)).
        Gradients of `value` for x and y hold the plan fixed: `2 (a_i x_i - sum_j P_ij y_j)`. They
        are those of the optimum by the envelope theorem only as far as the plan is optimal.

    References:
        Scetbon, Cuturi, Peyre 2021, arXiv:2103.04737 (the problem, mirror descent with Dykstra's
        projection); Gelbrich 1990, doi:10.1002/mana.19901470121 (lower bound).
    """
    for field, z in (("x", x), ("y", y)):
        if not z.numel() or not bool(z.isfinite().all()):
            raise IllPosed(field, "is empty or holds NaN or infinity; expected finite points")
    if rank < 1:
        raise IllPosed("rank", f"is {rank}; a plan has at least rank 1")
    if not 0 < tol < math.inf:
        raise IllPosed("tol", f"is {tol:g}; expected a positive number")
    a, b = weights("a", a, len(x), x), weights("b", b, len(y), y)
    b, cautions = same_mass(a, b)
    mass = float(a.detach().double().sum())
    clouds, here, there = _present(x, y, a, b, mass)
    draw = torch.Generator().manual_seed(generator.initial_seed())
    found, origin, upper, stop = _best(clouds, rank, method, tol, max_iter, draw, watch)
    Q = x.new_zeros(len(x), len(found.g)).index_copy(0, here, (mass * found.Q).to(x))
    R = x.new_zeros(len(y), len(found.g)).index_copy(0, there, (mass * found.R).to(x))
    g = (mass * found.g).to(x)
    returned = Factors(*(z.double() for z in (Q, R, g)))
    A, B = factors(x.double(), y.double())
    value = (((A.T @ returned.Q) * (B.T @ returned.R)).sum(0) / returned.g).sum()
    certificate = _certificate(
        clouds, returned, (a.double(), b.double()), float(value.detach()), upper, mass
    )
    worst = max(certificate.marginal_error_a, certificate.marginal_error_b)
    if stop.status == "converged" and worst > EXACT[x.dtype] * mass:
        stop = replace(stop, status="stagnated")
    if rank > 1 and certificate.ratio > 1 - SADDLE:
        cautions = (*cautions, _independent(certificate.ratio))
    value = value.to(x.dtype)
    return LowRankPlan(Q, R, g, value, value, origin, certificate, stop, cautions)


def _present(
    x: Tensor, y: Tensor, a: Tensor, b: Tensor, mass: float
) -> tuple[Clouds, Tensor, Tensor]:
    """Leave out points without weight, move the common mean to zero, and let masses be one."""
    p, q = (w.detach().double() / mass for w in (a, b))
    here, there = p.nonzero()[:, 0], q.nonzero()[:, 0]
    p, q = p[here], q[there]
    u, v = x.detach().double()[here], y.detach().double()[there]
    centre = (p @ u + q @ v) / (p.sum() + q.sum())
    u, v = u - centre, v - centre
    if not bool(torch.stack([u.square().sum(), v.square().sum()]).isfinite().all()):
        raise IllPosed("x", "squared distances overflow; rescale the points")
    return Clouds(u, v, Costs(*factors(u, v), p, q)), here, there


def _best(
    clouds: Clouds,
    rank: int,
    method: Method,
    tol: float,
    max_iter: int,
    draw: torch.Generator,
    watch: Watch,
) -> tuple[Factors, Origin, float, Stop]:
    """Run the starts, keep the cheapest rounded plan; also what the pairs themselves cost."""
    c, scale = clouds.costs, clouds.costs.independent()
    product = Factors(c.a[:, None], c.b[:, None], c.a.new_ones(1))
    pairs = _pairs(clouds, draw, watch)
    upper = float(pairs[2] @ (clouds.x[pairs[0]] - clouds.y[pairs[1]]).square().sum(1))
    hard = _hard(clouds, pairs, rank, draw)
    candidates: list[tuple[Factors, Origin]] = [
        (product, "product"),
        (hard.rounded(c), "hard_pairs"),
    ]
    if rank == 1 or scale <= 0:
        return product, "product", upper, Stop("converged", 0, 0.0)
    if rank >= min(len(c.a), len(c.b)):  # nothing is blurred: no search could do better
        found = min(candidates, key=lambda one: one[0].cost(c))
        return *found, upper, Stop("converged", 0, 0.0)
    stops: list[Stop] = []
    starts: list[tuple[Factors, Origin]] = [
        (hard, "pairs"),
        (_to_centres(clouds, rank, draw), "centres"),
    ]
    for number, (start, origin) in enumerate(starts):
        search, stop = _searched(
            c, begun(c, start), scale, tol, max_iter, watch if number == 0 else quietly(watch)
        )
        candidates.append((search.best, origin))
        stops.append(stop)
    found, origin = min(candidates, key=lambda one: one[0].cost(c))
    if method == "mirror_descent":
        search, stop = _searched(c, begun(c, found), None, tol, max_iter, quietly(watch))
        stops.append(stop)
        found = search.best
    statuses: list[Status] = [stop.status for stop in stops]
    status: Status = max(statuses, key=BEST_FIRST.index)
    steps, residual = sum(stop.iterations for stop in stops), max(stop.residual for stop in stops)
    return found, origin, upper, Stop(status, steps, residual)


def _searched(
    c: Costs, start: Search, scale: float | None, tol: float, max_iter: int, watch: Watch
) -> tuple[Search, Stop]:
    """Alternate with a scale for the entropic strengths; descend without."""
    least = SCHEDULE if scale is not None else WINDOW

    def fall(search: Search) -> float:
        if search.steps < least:
            return 1.0
        return (search.costs[-1 - WINDOW] - search.costs[-1]) / max(search.costs[-1], 1e-300)

    return iterate(
        lambda s: descended(c, s) if scale is None else alternated(c, s, scale),
        fall,
        start,
        tol=tol,
        max_iter=max_iter,
        watch=watch,
    )


def _pairs(clouds: Clouds, draw: torch.Generator, watch: Watch) -> tuple[Tensor, Tensor, Tensor]:
    """Pair the points: a bijection where weights are all equal, else a plan that splits masses."""
    (x, y), a, b = (z.cpu() for z in (clouds.x, clouds.y)), clouds.costs.a, clouds.costs.b
    level = float(a[0])
    if (
        len(a) == len(b)
        and bool((a == level).all())
        and bool(((b - level).abs() < 1e-12 * level).all())
    ):
        sigma = bijection(x, y, leaf=LEAF, passes=PASSES, generator=draw, watch=quietly(watch))
        plan = torch.arange(len(x)), sigma, a.cpu()
    else:
        plan = split_masses(x, a.cpu(), y, b.cpu(), generator=draw)
    rows, cols, mass = (z.to(a.device) for z in plan)
    return rows, cols, mass


def _hard(
    clouds: Clouds, pairs: tuple[Tensor, Tensor, Tensor], rank: int, draw: torch.Generator
) -> Factors:
    """Put each pair in one group; if there are enough, each point of the smaller cloud too."""
    rows, cols, mass = pairs
    n, m = len(clouds.x), len(clouds.y)
    if rank >= min(n, m):
        labels = rows if n <= m else cols
    else:
        labels = pair_groups(clouds.x[rows], clouds.y[cols], mass, rank, draw)
    _, labels = labels.unique(return_inverse=True)
    r = int(labels.amax()) + 1
    (g,) = grouped(labels, r, mass)
    Q, R = (
        mass.new_zeros(size, r).index_put((at, labels), mass, accumulate=True)
        for size, at in ((n, rows), (m, cols))
    )
    return Factors(Q, R, g)


def _to_centres(clouds: Clouds, rank: int, draw: torch.Generator) -> Factors:
    """Send both clouds to common centres, at a strength that leaves them blurred."""
    c, z = clouds.costs, torch.cat([clouds.x, clouds.y])
    w = torch.cat([c.a, c.b])
    places = centres(z, w, rank, draw)
    (g,) = grouped(nearest_of(z, places), len(places), w)
    places, g = places[g > 0], g[g > 0] / 2
    epsilon = TO_CENTRES * c.independent() / float(c.a.sum())
    Q, R = (
        block(-2 * z @ places.T + places.square().sum(1), w, g, epsilon, torch.zeros_like(g))[0]
        for z, w in ((clouds.x, c.a), (clouds.y, c.b))
    )
    return Factors(Q, R, g)


def _certificate(
    clouds: Clouds,
    seen: Factors,
    measures: tuple[Tensor, Tensor],
    value: float,
    upper: float,
    mass: float,
) -> Certificate:
    """Judge what is returned; the bounds are those of clouds of mass one."""
    (a, b), g = (w.detach() for w in measures), seen.g
    of_q, of_r = seen.Q.sum(0), seen.R.sum(0)
    independent = mass * clouds.costs.independent()
    return Certificate(
        marginal_error_a=float((seen.Q @ (of_r / g) - a).abs().sum()),
        marginal_error_b=float((seen.R @ (of_q / g) - b).abs().sum()),
        marginal_error_q=float((seen.Q.sum(1) - a).abs().sum() + (of_q - g).abs().sum()),
        marginal_error_r=float((seen.R.sum(1) - b).abs().sum() + (of_r - g).abs().sum()),
        independent_value=independent,
        ratio=value / independent if independent > 0 else 1.0,
        lower_bound=mass * _gelbrich(clouds),
        upper_bound=mass * upper,
    )


def _gelbrich(clouds: Clouds) -> float:
    r"""Compute `|mean difference|^2 + tr(S + T) - 2 tr (S^{1/2} T S^{1/2})^{1/2}`.

    Gaussians of the same means and covariances are no further apart than any two measures.
    """
    c = clouds.costs
    moved: list[Tensor] = []
    means: list[Tensor] = []
    for z, w in ((clouds.x, c.a), (clouds.y, c.b)):
        means.append(w @ z)
        moved.append(w.sqrt()[:, None] * (z - means[-1]))  # S = moved^T moved
    X, Y = (torch.linalg.qr(z, mode="r").R if len(z) > z.shape[1] else z for z in moved)
    shared = torch.linalg.svdvals(X @ Y.T).sum()
    apart = (means[0] - means[1]).square().sum()
    spread = X.square().sum() + Y.square().sum() - 2 * shared
    return float(apart + spread.clamp_min(0))


def _independent(ratio: float) -> Caution:
    return Caution(
        "near_independent",
        f"the cost is {ratio:.5f} of that of the independent plan, from every start",
        "the clouds may share no structure of this rank; raise the rank, or ask transport.exact",
    )
