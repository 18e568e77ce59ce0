"""Transport on the line and on the circle, by sorting."""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from algorithms.errors import Caution, IllPosed
from algorithms.iterate import Stop, Watch, iterate, unwatched
from algorithms.sparse import SparsePlan
from algorithms.transport.implicit import Envelope
from algorithms.transport.measures import same_mass, weights

# Masses below this share of the total are rounding of cumulative sums.
NO_MASS = 1e-15
# The search on the circle ends when the gap is below this share of (period / 2)^p times mass.
CLOSED = 1e-13
# Halvings of the interval of cuts after which float64 has no number left inside.
HALVINGS = 60
# Gap and infeasibility above this share of the largest cost were not proved to be zero.
PROVED = {torch.float64: 1e-9, torch.float32: 1e-5}
# Pairs whose dual constraint is checked: beyond, rows are sampled, or proof would outweigh answer.
PAIRS = 200_000_000
# Pairs held at once.
BLOCK = 1 << 20

Space = Literal["line", "circle"]


@dataclass(frozen=True)
class Certificate:
    """What proves the plan optimal, recomputed from plan and potentials.

    Attributes:
        marginal_error_a: `|P 1 - a|_1`.
        marginal_error_b: `|P^T 1 - b|_1`.
        dual_infeasibility: largest `max(f_i + g_j - c(x_i, y_j), 0)`.
        pairs_checked: over so many pairs.
        duality_gap: `value - <a, f> - <b, g>`; rounding may make it slightly negative.
    """

    marginal_error_a: float
    marginal_error_b: float
    dual_infeasibility: float
    pairs_checked: int
    duality_gap: float


@dataclass(frozen=True)
class LinePlan:
    """An optimal coupling in order, its potentials, and their proof."""

    plan: SparsePlan
    f: Float[Tensor, "n"]
    g: Float[Tensor, "m"]
    value: Float[Tensor, ""]
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
    *,
    watch: Watch = unwatched,
) -> LinePlan:
    r"""Solve `min_P sum_ij P_ij |x_i - y_j|^p` over `P >= 0`, `P 1 = a`, `P^T 1 = b`.

    On the line mass is matched in order: one sort of each cloud and one merge of the cumulated
    weights. On the circle `|x - y|` is the length of the shorter arc; mass is matched in order
    once it is known how much of b, `theta`, stays behind the cut: the cost is convex and
    piecewise linear in theta, and is minimised by crossing tangents and halving. At the best
    theta the potentials of the two adjoining staircases, mixed so that they close up around the
    circle, solve the dual.

    Shapes: x, a (n,), y, b (m,).

    Args:
        a: source weights, at least zero; None is uniform with mass one.
        b: target weights; rescaled to the mass of a where they differ by less than 1e-5 of it.
        p: exponent, at least 1; below, plans in order are not optimal.
        period: circumference of the circle; points are taken modulo it. The line has none.
        watch: asked between cuts on the circle; the line is done before it could be asked.

    Returns:
        A `LinePlan`: the sparse `plan`, of at most n + m entries; `f`, `g` in the gauge
        `<f, a> = 0`; `value`; `distance`, which is `value^(1/p)`: the Wasserstein distance when
        the mass is 1, and mass^(1/p) times that of the normalised measures otherwise; `offset`,
        the theta above (0 on the line); a `Certificate`; the `Stop`, with the gap as residual and
        the cuts tried in pairs as iterations; cautions.

    Notes:
        float64 inside, on the device of x. Time O((n + m) log(n + m)), on the circle times some
        ten to sixty cuts; the certificate looks at all pairs up to 2e8, at whole rows beyond.
        Gradients of `value` by the envelope theorem: the plan for x and y, f and g for a and b,
        along changes that keep the masses equal; subgradients where plan or potentials are not
        unique (f, g are not when two partial sums of a and b coincide).

    References:
        Santambrogio 2015, doi:10.1007/978-3-319-20828-2, section 2.2 (line); Delon, Salomon,
        Sobolevskii 2010, arXiv:0902.3527, section 4 (circle).
    """
    _refuse(x, y, p, space, period)
    a, b = weights("a", a, len(x), x), weights("b", b, len(y), x)
    b, cautions = same_mass(a, b)
    across = period if space == "circle" else math.inf
    u, v = (_wrapped(z.detach().double(), across) for z in (x, y))
    by_u, by_v = u.argsort(stable=True), v.argsort(stable=True)
    ends_a, ends_b = (w.detach().double()[o].cumsum(0) for w, o in ((a, by_u), (b, by_v)))
    problem = Problem(u[by_u], v[by_v], ends_a, ends_b, p, across)
    if space == "circle":
        walk, stop = _around(problem, watch)
    else:
        walk = _walk(problem, 0.0)
        stop = Stop("converged", 1, 0.0)
    some = walk.mass > NO_MASS * problem.ends_a[-1]
    rows, cols, mass = by_u[walk.rows[some]], by_v[walk.cols[some] % len(y)], walk.mass[some]
    f, g = torch.empty_like(u), torch.empty_like(v)
    f[by_u] = walk.f
    g[by_v] = walk.g.roll(walk.first % len(y))
    centre = a.detach().double() @ f / problem.ends_a[-1]
    f, g, mass = (w.to(a) for w in (f - centre, g + centre, mass))
    gap = x[rows] - y[cols]  # (nnz,)
    prices = _arc(gap, across).pow(p)
    found = (prices.detach().double() @ mass.double()).to(a)
    value = Envelope.apply(found, prices, a, b, mass, f, g)
    certificate = _certificate(u, v, (a, b), SparsePlan(rows, cols, mass), (f, g), problem)
    stop = _judged(stop, certificate, problem, PROVED[a.dtype])
    distance = float(found) ** (1 / p)
    if certificate.pairs_checked < len(x) * len(y):
        cautions = (*cautions, _sampled(certificate.pairs_checked, len(x) * len(y)))
    plan, offset = SparsePlan(rows, cols, mass), walk.theta
    return LinePlan(plan, f, g, value, distance, offset, certificate, stop, cautions)


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
    measures: tuple[Float[Tensor, "n"], Float[Tensor, "m"]],
    plan: SparsePlan,
    potentials: tuple[Float[Tensor, "n"], Float[Tensor, "m"]],
    problem: Problem,
) -> Certificate:
    a, b = (w.detach().double() for w in measures)
    f, g = (w.double() for w in potentials)
    mass = plan.mass.double()
    off_a = torch.zeros_like(a).index_add(0, plan.rows, mass) - a
    off_b = torch.zeros_like(b).index_add(0, plan.cols, mass) - b
    price = _arc(u[plan.rows] - v[plan.cols], problem.period).pow(problem.p)
    gap = float(price @ mass - a @ f - b @ g)
    every = -(-len(u) * len(v) // PAIRS)
    u, f, beyond = u[::every], f[::every], 0.0
    rows = max(1, BLOCK // len(v))
    for i in range(0, len(u), rows):
        cost = _arc(u[i : i + rows, None] - v, problem.period).pow(problem.p)  # (rows, m)
        beyond = max(beyond, float((f[i : i + rows, None] + g - cost).amax()))
    errors = float(off_a.abs().sum()), float(off_b.abs().sum())
    return Certificate(*errors, beyond, len(u) * len(v), gap)


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


def _sampled(seen: int, pairs: int) -> Caution:
    return Caution(
        "dual_sampled",
        f"the dual constraint was checked on {seen} of {pairs} pairs",
        "the potentials are feasible by construction; fewer than 2e8 pairs are checked entirely",
    )
