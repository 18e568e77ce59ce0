"""Transport on the line and on the circle, by sorting."""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from algorithms.entropic.implicit import Envelope
from algorithms.errors import Caution, IllPosed
from algorithms.iterate import Stop, Watch, iterate, unwatched
from algorithms.linear.relaxed_line import NEGLIGIBLE, Relaxed, solve_relaxed
from algorithms.measures import PROVED, same_mass, weights
from algorithms.sparse import SparsePlan

# Masses below this share of the total are rounding of cumulative sums.
NO_MASS = 1e-15
# The search on the circle ends when the gap is below this share of (period / 2)^p times mass.
CLOSED = 1e-13
# Halvings of the interval of cuts after which float64 has no number left inside.
HALVINGS = 60
# Pairs whose dual constraint is checked: beyond, rows are sampled, or proof would outweigh answer.
PAIRS = 200_000_000
# Pairs held at once.
BLOCK = 1 << 20

Space = Literal["line", "circle"]


@dataclass(frozen=True)
class Certificate:
    """What proves the plan optimal, recomputed from plan and potentials.

    Attributes:
        marginal_error_a: `|P 1 - a|_1`; where a may give way, `|P 1 - a e^{-f/rho_a}|_1`.
        marginal_error_b: `|P^T 1 - b|_1`, likewise.
        dual_infeasibility: largest `max(f_i + g_j - c(x_i, y_j), 0)`.
        pairs_checked: over so many pairs.
        duality_gap: `value` less the dual value; rounding may make it slightly negative.
    """

    marginal_error_a: float
    marginal_error_b: float
    dual_infeasibility: float
    pairs_checked: int
    duality_gap: float


@dataclass(frozen=True)
class LinePlan:
    """An optimal coupling in order, its marginals and potentials, and their proof."""

    plan: SparsePlan
    marginal_a: Float[Tensor, "n"]
    marginal_b: Float[Tensor, "m"]
    f: Float[Tensor, "n"]
    g: Float[Tensor, "m"]
    value: Float[Tensor, ""]
    transport_cost: float
    mass: float
    distance: float
    offset: float
    certificate: Certificate
    stop: Stop
    cautions: tuple[Caution, ...]


@dataclass(frozen=True)
class Problem:
    """Sorted points (float64), cumulated weights, exponent, and period (infinite on the line)."""

    x: Float[Tensor, "n"]
    y: Float[Tensor, "m"]
    ends_a: Float[Tensor, "n"]
    ends_b: Float[Tensor, "m"]
    p: float
    period: float


@dataclass(frozen=True)
class Walk:
    """One staircase: its cells, its potentials, its cost, and the slope of the cost in theta.

    Columns that lie `k` periods further carry the index `col + k m`; `first` is where it starts.
    """

    theta: float
    rows: Int[Tensor, "k"]
    cols: Int[Tensor, "k"]
    mass: Float[Tensor, "k"]
    f: Float[Tensor, "n"]
    g: Float[Tensor, "m"]  # of columns first, first + 1, ..., first + m - 1
    first: int
    cost: float
    slope: float = 0.0


@dataclass(frozen=True)
class Bracket:
    """Two cuts with the optimal one between: the cost falls at `low` and rises at `high`."""

    low: Walk
    high: Walk

    @property
    def share(self) -> float:
        """Weigh `low` so that both slopes cancel."""
        (s, t) = self.low.slope, self.high.slope
        return t / (t - s) if t > s else 1.0

    @property
    def bound(self) -> float:
        """Bound the optimum from below: where the tangents at both ends cross."""
        at = [w.cost - w.slope * w.theta for w in (self.low, self.high)]
        return self.share * at[0] + (1 - self.share) * at[1]

    @property
    def best(self) -> Walk:
        """Choose the cheaper end."""
        return min(self.low, self.high, key=lambda walk: walk.cost)


def line(
    x: Float[Tensor, "n"],
    y: Float[Tensor, "m"],
    a: Float[Tensor, "n"] | None = None,
    b: Float[Tensor, "m"] | None = None,
    p: float = 2.0,
    space: Space = "line",
    period: float = 1.0,
    rho_a: float | None = None,
    rho_b: float | None = None,
    tol: float = 1e-8,
    max_iter: int = 100,
    *,
    watch: Watch = unwatched,
) -> LinePlan:
    r"""Solve `min_P <P, C> + rho_a KL(P 1 | a) + rho_b KL(P^T 1 | b)`, `C_ij = |x_i - y_j|^p`.

    `KL(p|q) = sum p log(p/q) - p + q`; without rho_a the constraint is `P 1 = a`, without rho_b
    `P^T 1 = b`. Balanced, on the line, mass is matched in order: one sort of each cloud and one
    merge of the cumulated weights. On the circle `|x - y|` is the length of the shorter arc; mass
    is matched in order once it is known how much of b, `theta`, stays behind the cut: the cost is
    convex and piecewise linear in theta, and is minimised by crossing tangents and halving. At the
    best theta the potentials of the two adjoining staircases, mixed so that they close up around
    the circle, solve the dual. Where marginals give way: Frank-Wolfe on the translation-invariant
    dual, whose linear step is the balanced problem; where plain steps crawl, rounds that maximise
    over the constraints of few cells by an interior point method.

    Shapes: x, a (n,), y, b (m,).

    Args:
        a: source weights, at least zero; None is uniform with mass one.
        b: target weights; balanced, they are rescaled to the mass of a where they differ by less
            than 1e-5 of it; of any mass otherwise.
        p: exponent, at least 1; below, plans in order are not optimal.
        period: circumference of the circle; points are taken modulo it. The line has none.
        rho_a: price of a source marginal that differs from a, in units of the cost; None is an
            exact marginal. Not on the circle.
        rho_b: likewise for the target; the two are independent.
        tol: the unbalanced iteration ends when the duality gap is below this share of the value,
            or of a millionth of the price of destroying everything, if that is more.
        max_iter: steps and rounds of the unbalanced iteration.
        watch: asked between cuts on the circle, and between steps where marginals give way; the
            balanced line is done before it could be asked.

    Returns:
        A `LinePlan`: the sparse `plan`, of at most n + m entries; its marginals `marginal_a`,
        `marginal_b`; `f`, `g`, in the gauge `<f, a> = 0` if balanced; `value`, divergences
        included; `transport_cost` <P, C> and `mass` of the plan; `distance`, which is
        `value^(1/p)`: balanced, the Wasserstein distance when the mass is 1, and mass^(1/p) times
        that of the normalised measures otherwise; `offset`, the theta above (0 on the line); a
        `Certificate`; the `Stop`, whose residual is the gap (relative where marginals give way) and
        whose iterations are cuts in pairs, or steps; cautions.

    Notes:
        float64 inside, on the device of x (unbalanced: on the CPU). Time O((n + m) log(n + m)), on
        the circle times some ten to sixty cuts; unbalanced, some ten rounds of twenty sparse
        linear systems. The certificate looks at all pairs up to 2e8, at whole rows beyond.
        At the optimum `P 1 = a e^{-f/rho_a}`, and with both sides relaxed
        `value = rho_a m(a) + rho_b m(b) - (rho_a + rho_b) mass`. Pairs dearer than
        30 (rho_a + rho_b) are left out; the gap knows it.
        Gradients of `value` by the envelope theorem: the plan for x and y; for a and b the
        potentials, along changes that keep the masses equal, or `rho (1 - e^{-f/rho})` where a
        marginal gives way; subgradients where plan or potentials are not unique (f, g are not when
        two partial sums of a and b coincide).

    References:
        Santambrogio 2015, doi:10.1007/978-3-319-20828-2, section 2.2 (line); Delon, Salomon,
        Sobolevskii 2010, arXiv:0902.3527, section 4 (circle); Sejourne, Vialard, Peyre 2022,
        arXiv:2201.00730, section 4 (unbalanced).
    """
    balanced = rho_a is None and rho_b is None
    _refuse(x, y, p, space, period)
    _refuse_penalties(rho_a, rho_b, space, tol)
    a, b = weights("a", a, len(x), x), weights("b", b, len(y), y)
    b, cautions = same_mass(a, b) if balanced else (b, ())
    across = period if space == "circle" else math.inf
    u, v = (_wrapped(z.detach().double(), across) for z in (x, y))
    by_u, by_v = u.argsort(stable=True), v.argsort(stable=True)
    ends_a, ends_b = (w.detach().double()[o].cumsum(0) for w, o in ((a, by_u), (b, by_v)))
    problem = Problem(u[by_u], v[by_v], ends_a, ends_b, p, across)
    if not balanced:
        sorted_weights = a.detach().double()[by_u], b.detach().double()[by_v]
        walk, stop = _relaxed(problem, sorted_weights, (rho_a, rho_b), tol, max_iter, watch)
    elif space == "circle":
        walk, stop = _around(problem, watch)
    else:
        walk = _walk(problem, 0.0)
        stop = Stop("converged", 1, 0.0)
    some = walk.mass > (NO_MASS * problem.ends_a[-1] if balanced else 0.0)
    rows, cols, mass = by_u[walk.rows[some]], by_v[walk.cols[some] % len(y)], walk.mass[some]
    f, g = torch.empty_like(u), torch.empty_like(v)
    f[by_u] = walk.f
    g[by_v] = walk.g.roll(walk.first % len(y))
    centre = a.detach().double() @ f / problem.ends_a[-1] if balanced else 0.0
    f, g, mass = (w.to(a) for w in (f - centre, g + centre, mass))
    plan = SparsePlan(rows, cols, mass)
    sides = [
        Side(w.detach().double(), z.double(), rho, a.dtype)
        for w, z, rho in ((a, f, rho_a), (b, g, rho_b))
    ]
    marginals = [
        torch.zeros_like(side.w).index_add(0, at, mass.double())
        for side, at in zip(sides, (rows, cols), strict=True)
    ]
    prices = _arc(x[rows] - y[cols], across).pow(p)  # (nnz,)
    moved = float(prices.detach().double() @ mass.double())
    found = moved + sum(s.divergence(mu) for s, mu in zip(sides, marginals, strict=True))
    value = Envelope.apply(
        a.new_tensor(found), prices, a, b, mass, *(s.price().to(a) for s in sides)
    )
    certificate = _certificate(u, v, sides, marginals, found, problem)
    if balanced:
        stop = _judged(stop, certificate, problem, PROVED[a.dtype])
    else:
        stop = _judged_relaxed(stop, certificate, problem, found, sides, tol)
    if certificate.pairs_checked < len(x) * len(y):
        cautions = (*cautions, _sampled(certificate.pairs_checked, len(x) * len(y)))
    distance = max(found, 0.0) ** (1 / p)
    leaves, comes = (mu.to(a) for mu in marginals)
    offset, total = walk.theta, float(mass.double().sum())
    return LinePlan(
        plan, leaves, comes, f, g, value, moved, total, distance, offset, certificate, stop,
        cautions,
    )  # fmt: skip


@dataclass(frozen=True)
class Side:
    """One side of the dual: weights and potential in float64, and what deviating costs."""

    w: Float[Tensor, "k"]
    f: Float[Tensor, "k"]
    rho: float | None
    dtype: torch.dtype

    def kept(self) -> Float[Tensor, "k"]:
        """Compute the marginal that the potential asks for: `w e^{-f/rho}`, or w."""
        return self.w if self.rho is None else self.w * (-self.f / self.rho).exp()

    def bound(self) -> float:
        """Evaluate this side's part of the dual value."""
        return float(self.w @ self.price())

    def price(self) -> Float[Tensor, "k"]:
        """Differentiate the value by the weights: f, or `rho (1 - e^{-f/rho})`."""
        return self.f if self.rho is None else -self.rho * torch.expm1(-self.f / self.rho)

    def divergence(self, mu: Float[Tensor, "k"]) -> float:
        """Evaluate `rho KL(mu | w)`; nothing where the marginal is exact."""
        if self.rho is None:
            return 0.0
        kl = torch.special.xlogy(mu, mu / self.w.clamp_min(1e-300)) - mu + self.w
        return self.rho * float(kl.sum())


def _refuse(x: Tensor, y: Tensor, p: float, space: Space, period: float) -> None:
    """Refuse what has no answer by sorting."""
    if not p >= 1:
        raise IllPosed("p", f"is {p:g}: below 1 the cost is concave, and no plan in order is best")
    if space == "circle" and not 0 < period < math.inf:
        raise IllPosed("period", f"is {period:g}; a circle has a positive, finite length")
    for field, z in (("x", x), ("y", y)):
        if not z.numel():
            raise IllPosed(field, "is empty; a measure needs points")
        if not bool(z.isfinite().all()):
            raise IllPosed(field, "holds NaN or infinity; every entry must be finite")
    both = torch.cat([x.detach(), y.detach()]).double()
    # the first cuts move points by up to three turns
    span = 3 * period if space == "circle" else float(both.amax() - both.amin())
    try:
        finite = span**p <= torch.finfo(x.dtype).max
    except OverflowError:
        finite = False
    if not finite:
        field = "period" if space == "circle" else "x"
        raise IllPosed(field, f"a distance of {span:g} to the power p overflows; rescale it")


def _refuse_penalties(rho_a: float | None, rho_b: float | None, space: Space, tol: float) -> None:
    for field, rho in (("rho_a", rho_a), ("rho_b", rho_b)):
        if rho is None:
            continue
        if not 0 < rho < math.inf:
            raise IllPosed(field, f"is {rho:g}; expected a positive number, or null if exact")
        if space == "circle":
            raise IllPosed(
                field,
                "marginals give way on the line only; ask transport.sinkhorn with a cost matrix",
            )
    if not 0 < tol < math.inf:
        raise IllPosed("tol", f"is {tol:g}; expected a positive number")


def _wrapped(z: Float[Tensor, "k"], period: float) -> Float[Tensor, "k"]:
    return z.remainder(period) if period < math.inf else z


def _arc(gap: Float[Tensor, "*k"], period: float) -> Float[Tensor, "*k"]:
    """Measure the shorter way, differentiably."""
    if period == math.inf:
        return gap.abs()
    return (gap - period * (gap.detach() / period).round()).abs()


def _walk(problem: Problem, theta: float) -> Walk:
    """Walk the staircase on which source level t meets target level t + theta, 0 <= t <= mass.

    Along it every cell is tight: f grows by the rise of the cost on a step down, g on a step
    right. The sorted cost is Monge, so such potentials are feasible everywhere.
    """
    n, m, total = len(problem.x), len(problem.y), float(problem.ends_a[-1])
    turns = math.floor(theta / total)
    start = theta - turns * total
    if problem.period == math.inf:
        first, right = 0, problem.ends_b[:-1]
    else:
        level = problem.ends_b.new_tensor(start)
        first = min(int(torch.searchsorted(problem.ends_b, level, right=True)), m - 1)
        ends = problem.ends_b
        right = torch.cat([ends[first:] - start, ends[:first] + (total - start)])
    cuts = torch.cat([problem.ends_a[:-1], right])
    order = cuts.argsort(stable=True)
    down = order < n - 1
    rows, cols = (torch.cat([s.new_zeros(1), s.cumsum(0)]) for s in (down.long(), (~down).long()))
    edges = torch.cat([cuts.new_zeros(1), cuts[order].clamp(0, total), cuts.new_full((1,), total)])
    mass = edges.diff()
    first += turns * m
    cols = cols + first
    price = (problem.x[rows] - _lifted(problem, cols)).abs().pow(problem.p)
    rise = price.diff()
    f = torch.cat([price.new_zeros(1), rise[down].cumsum(0)])
    g = price[0] + torch.cat([price.new_zeros(1), rise[~down].cumsum(0)])
    # on the circle the last column is the first one a turn later: C'(theta) is what g gained
    slope = float(g[-1] - g[0]) if problem.period < math.inf else 0.0
    return Walk(theta, rows, cols, mass, f, g[:m], first, float(price @ mass), slope)


def _relaxed(
    problem: Problem,
    sorted_weights: tuple[Float[Tensor, "n"], Float[Tensor, "m"]],
    penalties: tuple[float | None, float | None],
    tol: float,
    max_iter: int,
    watch: Watch,
) -> tuple[Walk, Stop]:
    """Let marginals give way: cells of the best plan, and the best potentials."""
    x, y, a, b = (z.cpu().numpy() for z in (problem.x, problem.y, *sorted_weights))
    rho_a, rho_b = (math.inf if rho is None else rho for rho in penalties)
    asked = Relaxed(x, y, a, b, rho_a, rho_b, problem.p)
    found, stop = solve_relaxed(asked, tol=tol, max_iter=max_iter, watch=watch)
    arrays = found.plan.rows, found.plan.cols, found.plan.mass, found.f, found.g
    on = problem.x.device
    rows, cols, mass, f, g = (torch.from_numpy(z).to(on) for z in arrays)
    return Walk(0.0, rows, cols, mass, f, g, 0, found.value), stop


def _lifted(problem: Problem, cols: Int[Tensor, "k"]) -> Float[Tensor, "k"]:
    """Unroll the target points along the line."""
    y, m = problem.y[cols % len(problem.y)], len(problem.y)
    if problem.period == math.inf:
        return y
    # whole turns as float64: integers times a number would be float32
    return y + problem.period * torch.div(cols, m, rounding_mode="floor").to(y)


def _around(problem: Problem, watch: Watch) -> tuple[Walk, Stop]:
    """Find the cut of the circle, and close the potentials."""
    total = float(problem.ends_a[-1])
    # a turn back all of y lies below x, a turn on above: before, the cost falls; beyond, it rises
    # (at the turn itself the slope may already be that of the other side)
    start = Bracket(_walk(problem, -1.5 * total), _walk(problem, 1.5 * total))

    def step(state: Bracket) -> Bracket:
        low, high = state.low, state.high
        if high.slope > low.slope:
            cross = high.cost - high.slope * high.theta - low.cost + low.slope * low.theta
            cross /= low.slope - high.slope
            state = _narrowed(state, _walk(problem, min(max(cross, low.theta), high.theta)))
        middle = (state.low.theta + state.high.theta) / 2
        return _narrowed(state, _walk(problem, middle))

    state, stop = iterate(
        step,
        lambda state: max(state.best.cost - state.bound, 0.0),
        start,
        tol=CLOSED * (problem.period / 2) ** problem.p * total,
        max_iter=HALVINGS,
        watch=watch,
    )
    return _closed(state, len(problem.y)), stop


def _narrowed(state: Bracket, walk: Walk) -> Bracket:
    if walk.slope < 0:
        return replace(state, low=walk)
    return replace(state, high=walk) if walk.slope > 0 else Bracket(walk, walk)


def _closed(state: Bracket, m: int) -> Walk:
    """Mix the potentials of both ends so that they gain nothing on a turn around the circle."""
    best, share = state.best, state.share
    f = share * state.low.f + (1 - share) * state.high.f
    index = torch.arange(m, device=f.device)
    mixed = torch.zeros_like(state.low.g)
    for walk, part in ((state.low, share), (state.high, 1 - share)):
        column = (index + best.first - walk.first) % m  # where the walk met the same point
        turns = torch.div(index + best.first - walk.first, m, rounding_mode="floor")
        mixed += part * (walk.g[column] + walk.slope * turns.to(mixed))
    return replace(best, f=f, g=mixed)


def _certificate(
    u: Float[Tensor, "n"],
    v: Float[Tensor, "m"],
    sides: list[Side],
    marginals: list[Tensor],
    value: float,
    problem: Problem,
) -> Certificate:
    off_a, off_b = (
        float((mu - side.kept()).abs().sum()) for side, mu in zip(sides, marginals, strict=True)
    )
    gap = value - sum(s.bound() for s in sides)
    f, g = sides[0].f, sides[1].f
    every = -(-len(u) * len(v) // PAIRS)
    u, f, beyond = u[::every], f[::every], 0.0
    rows = max(1, BLOCK // len(v))
    for i in range(0, len(u), rows):
        cost = _arc(u[i : i + rows, None] - v, problem.period).pow(problem.p)  # (rows, m)
        beyond = max(beyond, float((f[i : i + rows, None] + g - cost).amax()))
    return Certificate(off_a, off_b, beyond, len(u) * len(v), gap)


def _judged(stop: Stop, seen: Certificate, problem: Problem, share: float) -> Stop:
    """Call an answer converged only where its certificate proves it, up to rounding."""
    z = torch.cat([problem.x, problem.y])
    span = problem.period / 2 if problem.period < math.inf else float(z.amax() - z.amin())
    scale, total = span**problem.p, float(problem.ends_a[-1])
    proved = seen.duality_gap <= share * scale * total and seen.dual_infeasibility <= share * scale
    proved = proved and max(seen.marginal_error_a, seen.marginal_error_b) <= share * total
    status = stop.status
    if status != "interrupted":
        status = "converged" if proved else "stagnated"
    return Stop(status, stop.iterations, max(seen.duality_gap, 0.0))


def _judged_relaxed(
    stop: Stop, seen: Certificate, problem: Problem, value: float, sides: list[Side], tol: float
) -> Stop:
    """Hold what is returned, rounded to the type of the inputs, against what was asked."""
    z = torch.cat([problem.x, problem.y])
    scale = float(z.amax() - z.amin()) ** problem.p
    roof = sum(side.rho * float(side.w.sum()) for side in sides if side.rho is not None)
    most = max(abs(value), NEGLIGIBLE * roof)
    share = PROVED[sides[0].dtype]
    gap, room = seen.duality_gap, share * (scale * float(problem.ends_a[-1]) + roof)
    within = gap <= tol * most + (room if share > tol else 1e-3 * share * roof)
    lost = stop.status == "converged" and not (within and seen.dual_infeasibility <= share * scale)
    return Stop("stagnated" if lost else stop.status, stop.iterations, max(gap, 0.0) / most)


def _sampled(seen: int, pairs: int) -> Caution:
    return Caution(
        "dual_sampled",
        f"the dual constraint was checked on {seen} of {pairs} pairs",
        "the potentials are feasible by construction; fewer than 2e8 pairs are checked entirely",
    )
