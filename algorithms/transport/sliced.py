"""Sliced transport: the mean of one-dimensional problems over directions."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.errors import Caution, IllPosed
from algorithms.iterate import Status, Stop, Watch, quietly, unwatched
from algorithms.linear.relaxed_line import Floats, Relaxed, solve_relaxed, summed
from algorithms.linear.shared_slices import Slicing, gap_of, solve_shared
from algorithms.linear.slices import directions as drawn_directions
from algorithms.linear.slices import in_order, interval, potentials, projected, pulls
from algorithms.measures import PROVED, same_mass, weights

# Numbers held at once by each array of a chunk of directions.
CELLS = 1 << 21
# Two-sided normal quantile of 95 %.
NORMAL = 1.959963984540054
# Ascent of one direction: steps, and the shortest step in radians.
ASCENTS, SHORTEST = 100, 1e-7
BEST_FIRST: tuple[Status, ...] = (
    "converged",
    "stagnated",
    "max_iter",
    "diverged",
    "interrupted",
)

Notion = Literal["balanced", "suot", "usot"]


@dataclass(frozen=True)
class Certificate:
    """What tells how far to trust the mean.

    Attributes:
        low: lower end of the normal 95 % interval of the mean over all directions.
        high: its upper end.
        smallest: the cheapest direction.
        largest: the dearest of those drawn.
        count: directions drawn.
        exact: there is one direction only, in dimension one: no error of sampling.
        duality_gap: mean gap of the one-dimensional problems, at these directions.
    """

    low: float
    high: float
    smallest: float
    largest: float
    count: int
    exact: bool
    duality_gap: float


@dataclass(frozen=True)
class SlicedCost:
    """The mean over directions, each of them, the dearest, and how far to trust it."""

    value: Float[Tensor, ""]
    distance: float
    std_error: float
    slices: Float[Tensor, "L"]
    theta: Float[Tensor, "L d"]
    marginal_a: Float[Tensor, "n"]
    marginal_b: Float[Tensor, "m"]
    max_value: float
    max_direction: Float[Tensor, "d"]
    certificate: Certificate
    stop: Stop
    cautions: tuple[Caution, ...]


@dataclass(frozen=True)
class Sums:
    """What a notion brings: values by direction, slopes, marginals, the price of these, the gap."""

    slices: Float[Tensor, "L"]
    to_x: Float[Tensor, "n d"]
    to_y: Float[Tensor, "m d"]
    to_a: Float[Tensor, "n"]
    to_b: Float[Tensor, "m"]
    mu: Float[Tensor, "n"]
    nu: Float[Tensor, "m"]
    lost: float
    gap: float
    stop: Stop


def sliced(
    x: Float[Tensor, "n d"],
    y: Float[Tensor, "m d"],
    a: Float[Tensor, "n"] | None = None,
    b: Float[Tensor, "m"] | None = None,
    p: float = 2.0,
    directions: int = 100,
    notion: Notion = "balanced",
    rho_a: float | None = None,
    rho_b: float | None = None,
    maximum: bool = False,
    tol: float = 1e-3,
    max_iter: int = 500,
    *,
    generator: torch.Generator,
    watch: Watch = unwatched,
) -> SlicedCost:
    r"""Estimate `mean over directions theta of W_p^p(theta x, theta y)`.

    `theta` is uniform on the unit sphere and W the transport cost `sum P_ij |u_i - v_j|^p` of the
    projections. `balanced` keeps both marginals. `suot` lets those of every direction give way on
    their own: the mean of `min_P <P, C> + rho_a KL(P 1 | a) + rho_b KL(P^T 1 | b)`. `usot` shares
    one pair of marginals: `min_(mu, nu) mean W(mu, nu) + rho_a KL(mu | a) + rho_b KL(nu | b)`,
    which is at least as large and discards the same points in all directions. Balanced by sorting
    and merging, all directions at once; `suot` one direction after the other, as `transport.line`;
    `usot` by Frank-Wolfe on the mean of the potentials.

    Shapes: x (n, d), y (m, d), a (n,), b (m,); L directions.

    Args:
        a: source weights, at least zero; None is uniform with mass one.
        b: target weights; balanced, rescaled to the mass of a where they differ by rounding.
        p: exponent, at least 1.
        directions: how many are drawn; in dimension one there is one, which is all.
        rho_a: price of source marginals other than a, in units of the cost; None is exact. Only,
            and on one side at least, where marginals give way.
        rho_b: likewise for the target.
        maximum: climb from the dearest direction (balanced only): a local maximum over theta,
            which bounds the largest from below.
        tol: relative duality gap at which unbalanced problems end.
        max_iter: steps of the unbalanced problem, of each direction for `suot`.
        generator: draws the directions; the same state gives the same.
        watch: asked between chunks of directions, directions (`suot`) or steps (`usot`).

    Returns:
        A `SlicedCost`: `value`, `distance` (its p-th root), `std_error` of the mean over
        directions, `slices` (of each direction; for `usot` without the price of the marginals,
        which is in the value), `theta`, marginals (`suot`: their mean), `max_value` and
        `max_direction`, a `Certificate`, the `Stop`, cautions.

    Notes:
        float64 inside. Time O(L (n + m) log(n + m)), memory O(L) and one chunk of directions.
        Gradients of `value` by the envelope theorem, at the directions drawn: for x and y the
        plans, for a and b the mean potentials (along equal masses), or rho (1 - e^{-f/rho});
        subgradients where projections coincide or plans are not unique.

    References:
        Rabin, Peyre, Delon, Bernot 2012, doi:10.1007/978-3-642-24785-9_37 (sliced); Sejourne,
        Bonet, Fatras, Nadjahi, Courty 2023, arXiv:2306.07176 (suot and usot).
    """
    _refuse(x, y, p, directions, tol)
    _refuse_penalties(notion, rho_a, rho_b, maximum)
    a, b = weights("a", a, len(x), x), weights("b", b, len(y), y)
    b, cautions = same_mass(a, b) if notion == "balanced" else (b, ())
    theta = drawn_directions(directions, x.shape[1], x.detach().double(), generator)
    u, v, p_a, p_b = (z.detach().double() for z in (x, y, a, b))
    here, there = p_a.nonzero()[:, 0], p_b.nonzero()[:, 0]
    dear_a, dear_b = (math.inf if rho is None else rho for rho in (rho_a, rho_b))
    q = Slicing(u[here], v[there], p_a[here], p_b[there], dear_a, dear_b, p, theta, CELLS)
    if notion == "balanced":
        sums = _balanced(q, watch)
    elif notion == "suot":
        sums = _separate(q, tol, max_iter, watch)
    else:
        sums = _together(q, tol, max_iter, watch)
    mean, error = interval(sums.slices)
    found = mean + sums.lost
    value = _attached(found, (x, y, a, b), sums, (here, there))
    at = int(sums.slices.argmax())
    largest, direction = float(sums.slices[at]), theta[at]
    if maximum and len(sums.slices) == len(theta):
        largest, direction = _ascended(q, largest, direction)
    certificate = Certificate(
        found - NORMAL * error, found + NORMAL * error, float(sums.slices.amin()),
        float(sums.slices[at]), len(sums.slices), x.shape[1] == 1, sums.gap,
    )  # fmt: skip
    mu, nu = (
        x.new_zeros(len(w)).index_copy(0, place, z.to(x))
        for w, place, z in ((a, here, sums.mu), (b, there, sums.nu))
    )
    slices, theta = sums.slices.to(x), theta[: len(sums.slices)].to(x)
    distance = max(found, 0.0) ** (1 / p)
    return SlicedCost(
        value, distance, error, slices, theta, mu, nu, largest, direction.to(x), certificate,
        sums.stop, cautions,
    )  # fmt: skip


def _refuse(x: Tensor, y: Tensor, p: float, directions: int, tol: float) -> None:
    for field, z in (("x", x), ("y", y)):
        if not z.numel() or not bool(z.isfinite().all()):
            raise IllPosed(field, "is empty or holds NaN or infinity; expected finite points")
    if not 1 <= p < math.inf:
        raise IllPosed("p", f"is {p:g}: below 1 the cost is concave, and no plan in order is best")
    if directions < 1:
        raise IllPosed("directions", f"is {directions}; expected at least 1")
    if not 0 < tol < math.inf:
        raise IllPosed("tol", f"is {tol:g}; expected a positive number")
    both = torch.cat([x.detach(), y.detach()]).double()
    span = float(torch.linalg.vector_norm(both.amax(0) - both.amin(0)))
    if not math.isfinite(span) or p * math.log(max(span, 1.0)) > math.log(torch.finfo(x.dtype).max):
        raise IllPosed("x", f"a distance of {span:g} to the power p overflows; rescale it")


def _refuse_penalties(
    notion: Notion, rho_a: float | None, rho_b: float | None, maximum: bool
) -> None:
    gives_way = notion != "balanced"
    for field, rho in (("rho_a", rho_a), ("rho_b", rho_b)):
        if rho is None:
            continue
        if not gives_way:
            raise IllPosed(field, "is given, but `balanced` keeps both marginals; ask suot or usot")
        if not 0 < rho < math.inf:
            raise IllPosed(field, f"is {rho:g}; expected a positive number, or null if exact")
    if gives_way and rho_a is None and rho_b is None:
        raise IllPosed("rho_a", f"{notion} needs rho_a or rho_b: both marginals would be exact")
    if maximum and gives_way:
        raise IllPosed("maximum", f"there is no ascent for {notion}; leave it out or ask balanced")


def _attached(
    found: float, inputs: tuple[Tensor, ...], sums: Sums, present: tuple[Tensor, Tensor]
) -> Float[Tensor, ""]:
    """Give the value its slopes: linear terms that are zero here. Absent points have none."""
    value = inputs[0].new_tensor(found)
    slopes = (sums.to_x, sums.to_y, sums.to_a, sums.to_b)
    for z, slope, at in zip(inputs, slopes, (*present, *present), strict=True):
        if z.requires_grad:
            part = z[at]
            value = value + ((part - part.detach()) * slope.to(z)).sum()
    return value


def _balanced(q: Slicing, watch: Watch) -> Sums:
    """Sort and merge, chunk by chunk."""
    done: list[Tensor] = []
    to_x, to_y = torch.zeros_like(q.x), torch.zeros_like(q.y)
    to_a, to_b = torch.zeros_like(q.a), torch.zeros_like(q.b)
    for at, s in q.parts():
        if done and not watch(sum(map(len, done)), 0.0):
            break
        plans = in_order(s, q.a, q.b, q.p)
        f, g = potentials(s, plans)
        of_x, of_y = pulls(s, plans, q.p)
        to_x += of_x.T @ q.theta[at]  # (L, n), (L, d) -> (n, d)
        to_y += of_y.T @ q.theta[at]
        to_a += f.sum(0)
        to_b += g.sum(0)
        done.append(plans.costs())
    slices = torch.cat(done)
    count, value = len(slices), float(slices.mean())
    to_x, to_y, to_a, to_b = (z / count for z in (to_x, to_y, to_a, to_b))
    gap = value - float(q.a @ to_a + q.b @ to_b)
    proved = gap <= PROVED[torch.float64] * (float(to_a.abs().amax()) * float(q.a.sum()) + value)
    status: Status = "interrupted" if count < len(q.theta) else "stagnated"
    stop = Stop("converged" if proved and count == len(q.theta) else status, count, max(gap, 0.0))
    centre = q.a @ to_a / q.a.sum()
    return Sums(slices, to_x, to_y, to_a - centre, to_b + centre, q.a, q.b, 0.0, gap, stop)


def _separate(q: Slicing, tol: float, max_iter: int, watch: Watch) -> Sums:
    """Solve each direction with marginals of its own."""
    to_x, to_y = torch.zeros_like(q.x), torch.zeros_like(q.y)
    sums = [torch.zeros_like(w) for w in (q.a, q.b, q.a, q.b)]
    values: list[float] = []
    gap, steps, worst = 0.0, 0, list[Status]()
    for at, s in q.parts():
        for row, theta in enumerate(q.theta[at]):
            if values and not watch(len(values), gap / len(values)):
                worst.append("interrupted")
                break
            by_x, by_y = s.by_x[row], s.by_y[row]
            arrays = (s.X[row], s.Y[row], q.a[by_x], q.b[by_y])
            X, Y, A, B = (z.cpu().numpy() for z in arrays)
            asked = Relaxed(X, Y, A, B, q.rho_a, q.rho_b, q.p)
            found, stop = solve_relaxed(asked, tol=tol, max_iter=max_iter, watch=quietly(watch))
            plan = found.plan
            signed = asked.x[plan.rows] - asked.y[plan.cols]
            slope = torch.from_numpy(plan.mass * q.p * abs(signed) ** (q.p - 1)).to(q.x)
            slope *= torch.from_numpy(signed).to(q.x).sign()
            rows, cols = (torch.from_numpy(z).to(by_x) for z in (plan.rows, plan.cols))
            to_x.index_add_(0, by_x[rows], slope[:, None] * theta)
            to_y.index_add_(0, by_y[cols], -slope[:, None] * theta)
            parts = (
                _priced(found.f, q.rho_a), _priced(found.g, q.rho_b),
                torch.from_numpy(summed(plan.rows, plan.mass, len(asked.x))),
                torch.from_numpy(summed(plan.cols, plan.mass, len(asked.y))),
            )  # fmt: skip
            for total, part, by in zip(sums, parts, (by_x, by_y, by_x, by_y), strict=True):
                total.index_add_(0, by, part.to(total))
            values.append(found.value)
            gap, steps = gap + max(found.gap, 0.0), max(steps, stop.iterations)
            worst.append(stop.status)
    slices, count = q.x.new_tensor(values), len(values)
    status = max(worst, key=BEST_FIRST.index)
    mean = gap / count
    relative = mean / max(float(slices.mean()), 1e-6 * q.roof)
    to_a, to_b, mu, nu = (z / count for z in sums)
    stop = Stop(status, steps, relative)
    return Sums(slices, to_x / count, to_y / count, to_a, to_b, mu, nu, 0.0, mean, stop)


def _priced(f: Tensor | Floats, rho: float) -> Tensor:
    """Differentiate by the weights: f, or `rho (1 - e^{-f/rho})`."""
    z = torch.as_tensor(f)
    return z if rho == math.inf else -rho * torch.expm1(-z / rho)


def _together(q: Slicing, tol: float, max_iter: int, watch: Watch) -> Sums:
    """Share one pair of marginals."""
    state, stop = solve_shared(q, tol=tol, max_iter=max_iter, watch=watch)
    best = state.best
    to_x, to_y = torch.zeros_like(q.x), torch.zeros_like(q.y)
    for at, s in q.parts():
        of_x, of_y = pulls(s, in_order(s, best.mu, best.nu, q.p), q.p)
        to_x += of_x.T @ q.theta[at] / len(q.theta)
        to_y += of_y.T @ q.theta[at] / len(q.theta)
    to_a, to_b = _priced(state.f, q.rho_a), _priced(state.g, q.rho_b)
    lost, gap = best.value - float(best.costs.mean()), best.value - state.dual
    stop = Stop(stop.status, stop.iterations, gap_of(q, state))
    return Sums(best.costs, to_x, to_y, to_a, to_b, best.mu, best.nu, lost, gap, stop)


def _ascended(
    q: Slicing, value: float, theta: Float[Tensor, "d"]
) -> tuple[float, Float[Tensor, "d"]]:
    """Climb along the gradient on the sphere, with steps that halve when they fail."""
    length = 0.5
    for _ in range(ASCENTS):
        s = projected(q.x, q.y, theta[None])
        of_x, of_y = pulls(s, in_order(s, q.a, q.b, q.p), q.p)
        slope = of_x[0] @ q.x + of_y[0] @ q.y
        slope = slope - (slope @ theta) * theta
        size = float(torch.linalg.vector_norm(slope))
        if size == 0:
            break
        while length > SHORTEST:
            moved = math.cos(length) * theta + math.sin(length) * slope / size
            moved = moved / torch.linalg.vector_norm(moved)
            higher = float(in_order(projected(q.x, q.y, moved[None]), q.a, q.b, q.p).costs()[0])
            if higher > value:
                value, theta, length = higher, moved, min(2 * length, 0.5)
                break
            length /= 2
        else:
            break
    return value, theta
