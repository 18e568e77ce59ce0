"""Transport on the line with marginals that may give way, by corrective Frank-Wolfe rounds."""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from algorithms.iterate import Stop, Watch, iterate, quietly, unwatched
from algorithms.linear.interior import Restricted, solve_cells
from algorithms.linear.monotone import c_transform

Floats = NDArray[np.float64]
Places = NDArray[np.int64]
# Between points whose cost is above this many rho_a + rho_b a plan carries e^-30 of their mass.
FAR = 30.0
# Plain steps that are tried first: a few milliseconds, after which gaps fall like 1/k.
PLAIN = 40
# A correction is as accurate as this share of the gap that is asked, within limits.
ACCURACY, FINEST, COARSEST = 1e-4, 1e-13, 1e-6
# Halvings of the step's interval in a line search.
SEARCH = 50
# Cells kept from round to round, by slack, for each point; neighbours taken around each minimum.
KEPT, AROUND = 3, (-1, 0, 1)
# Steps without a smaller gap: rounding is all there is.
PATIENCE = 8
# The gap is read relative to the value, or to this share of what destroying everything costs.
NEGLIGIBLE = 1e-6


@dataclass(frozen=True)
class Relaxed:
    """Sorted points, their weights, both penalties (infinite: exact), the exponent."""

    x: Floats
    y: Floats
    a: Floats
    b: Floats
    rho_a: float
    rho_b: float
    p: float

    @property
    def roof(self) -> float:
        """Price the destruction of everything that may be destroyed."""
        sides = ((self.a, self.rho_a), (self.b, self.rho_b))
        return sum(rho * float(w.sum()) for w, rho in sides if rho < math.inf)


@dataclass(frozen=True)
class Stairs:
    """A plan in order, the prices of its cells, and potentials that are tight on them."""

    rows: Places
    cols: Places
    mass: Floats
    price: Floats
    f: Floats
    g: Floats


@dataclass(frozen=True)
class Found:
    """The best plan and the best potentials so far, with the values that they prove."""

    plan: Stairs
    f: Floats
    g: Floats
    value: float
    dual: float
    cells: Places
    plain: int = 0

    @property
    def gap(self) -> float:
        """Bound the distance of both values from the optimum."""
        return self.value - self.dual


def solve_relaxed(
    p: Relaxed, *, tol: float, max_iter: int, watch: Watch = unwatched
) -> tuple[Found, Stop]:
    r"""Minimise `<P, C> + rho_a KL(P 1 | a) + rho_b KL(P^T 1 | b)`; a gap of `tol` ends it.

    The dual maximises `rho_a <a, 1 - e^{-f/rho_a}> + rho_b <b, 1 - e^{-g/rho_b}>` over
    `f_i + g_j <= C_ij`, at the best shift (f + t, g - t). Its gradient is the pair of marginals
    `(a e^{-f/rho_a}, b e^{-g/rho_b})`, so that a Frank-Wolfe step asks for the potentials of a
    balanced problem, by sorting. Plain steps come first. Where they crawl, a round maximises over
    the constraints of few cells, those that staircases and c-transforms touched, and a c-transform
    makes the result feasible everywhere.

    References: Sejourne, Vialard, Peyre 2022, arXiv:2201.00730, sections 2 and 4.
    """
    near_a, _ = c_transform(p.y[p.b > 0], p.x, np.zeros(int((p.b > 0).sum())), p.p)
    near_b, _ = c_transform(p.x[p.a > 0], p.y, np.zeros(int((p.a > 0).sum())), p.p)
    limit = FAR * (p.rho_a + p.rho_b)
    keep_a, keep_b = (p.a > 0) & (near_a <= limit), (p.b > 0) & (near_b <= limit)
    if not keep_a.any() or not keep_b.any():
        return _destroyed(p, near_a), Stop("converged", 0, 0.0)
    inner = replace(p, x=p.x[keep_a], y=p.y[keep_b], a=p.a[keep_a], b=p.b[keep_b])
    found, stop = iterate(
        lambda found: _round(inner, found, tol, watch),
        lambda found: found.gap / max(abs(found.value), NEGLIGIBLE * inner.roof),
        _start(inner),
        tol=tol,
        max_iter=max_iter,
        patience=PATIENCE,
        watch=watch,
    )
    f, _ = c_transform(inner.y, p.x, found.g, p.p)
    f, g = _capped(p, f)
    plan, at_a, at_b = found.plan, np.flatnonzero(keep_a), np.flatnonzero(keep_b)
    some = plan.mass > 0
    rows, cols = at_a[plan.rows[some]], at_b[plan.cols[some]]
    plan = Stairs(rows, cols, plan.mass[some], plan.price[some], f, g)
    left = replace(p, a=p.a[~keep_a], b=p.b[~keep_b]).roof
    found = replace(found, plan=plan, f=f, g=g, value=found.value + left)
    return replace(found, dual=dual_value(p, f, g)), stop


def kept(w: Floats, f: Floats, rho: float) -> Floats:
    """Compute what a potential keeps of the weights: `w e^{-f/rho}`, all where rho is infinite."""
    return w if rho == math.inf else w * np.exp(-f / rho)


def shifted(p: Relaxed, f: Floats, g: Floats) -> tuple[Floats, Floats]:
    """Move to f + t, g - t, which keep equal masses on both sides: the best shift there is."""
    logs = [_log_mass(w, z, rho) for w, z, rho in ((p.a, f, p.rho_a), (p.b, g, p.rho_b))]
    t = (logs[0] - logs[1]) / (1 / p.rho_a + 1 / p.rho_b)
    return f + t, g - t


def dual_value(p: Relaxed, f: Floats, g: Floats) -> float:
    """Evaluate the dual objective; f, g are feasible."""
    return _bound(p.a, f, p.rho_a) + _bound(p.b, g, p.rho_b)


def divergence(mu: Floats, w: Floats, rho: float) -> float:
    """Evaluate `rho KL(mu | w)`, without the term of an exact marginal."""
    if rho == math.inf:
        return 0.0
    some = mu > 0
    ratio = np.log(mu[some] / w[some])
    return rho * float(mu[some] @ ratio - mu.sum() + w.sum())


def stairs(p: Relaxed, mu: Floats, nu: Floats) -> Stairs:
    """Match mu and nu in order; f grows on a step down, g on a step right.

    Masses that differ are made equal on the side that may give way.
    """
    n = len(mu)
    if p.rho_b == math.inf:
        mu = mu * (nu.sum() / mu.sum())
    else:
        nu = nu * (mu.sum() / nu.sum())
    ends = np.concatenate([mu.cumsum()[:-1], nu.cumsum()[:-1]])
    order = np.argsort(ends, kind="stable")
    down = order < n - 1
    rows, cols = (np.concatenate([[0], s.cumsum()]) for s in (down, ~down))
    mass = np.diff(np.concatenate([[0.0], ends[order], [mu.sum()]])).clip(0)
    price = np.abs(p.x[rows] - p.y[cols]) ** p.p
    rise = np.diff(price)
    f, g = (np.concatenate([[0.0], rise[s].cumsum()]) for s in (down, ~down))
    return Stairs(rows, cols, mass, price, f, g + price[0])


def summed(at: Places, mass: Floats, size: int) -> Floats:
    """Add up masses by place."""
    return np.bincount(at, mass, size).astype(np.float64)


def _log_mass(w: Floats, z: Floats, rho: float) -> float:
    some = w > 0
    if rho == math.inf:
        return math.log(float(w.sum()))
    logs = np.log(w[some]) - z[some] / rho
    return float(logs.max() + np.log(np.exp(logs - logs.max()).sum()))


def _bound(w: Floats, z: Floats, rho: float) -> float:
    return float(w @ z) if rho == math.inf else -rho * float(w @ np.expm1(-z / rho))


def _destroyed(p: Relaxed, near_a: Floats) -> Found:
    """Answer for measures so far apart that nothing travels."""
    f, g = _capped(p, near_a)
    none = np.zeros(0, dtype=np.int64)
    plan = Stairs(none, none, np.zeros(0), np.zeros(0), f, g)
    return Found(plan, f, g, p.roof, dual_value(p, f, g), none)


def _capped(p: Relaxed, f: Floats) -> tuple[Floats, Floats]:
    """Make potentials of all points, of which next to nothing is kept where the cap binds.

    Pairs of points that were left out cost more than both caps together. And the price of an
    outlier, of 1e12 say, would leave an error of 1e-4 in all that it is added to.
    """
    f = np.minimum(f, FAR * p.rho_a)
    g, _ = c_transform(p.x, p.y, f, p.p)
    return shifted(p, f, np.minimum(g, FAR * p.rho_b))


def _start(p: Relaxed) -> Found:
    """Share the price of the cheapest partner; take the cells of neighbours and of a and b."""
    near_x, _ = c_transform(p.y, p.x, np.zeros(len(p.y)), p.p)
    share = 1.0 if p.rho_a == math.inf else p.rho_a / (p.rho_a + p.rho_b)
    f = share * near_x if p.rho_b < math.inf else np.zeros_like(near_x)
    g, place = c_transform(p.x, p.y, f, p.p)
    _, back = c_transform(p.y, p.x, np.zeros(len(p.y)), p.p)
    cells = _around(p, [(place, np.arange(len(p.y))), (np.arange(len(p.x)), back)])
    whole = stairs(p, p.a, p.b)
    start = Found(whole, f, g, math.inf, -math.inf, np.union1d(cells, _keys(p, whole)))
    start = _better(p, start, whole, f, g)
    if float(np.ptp(np.concatenate([p.x, p.y]))) ** p.p > FAR * (p.rho_a + p.rho_b):
        return replace(start, plain=PLAIN)
    return _better(p, start, whole, whole.f, whole.g)  # large rho: nearly balanced


def _keys(p: Relaxed, plan: Stairs) -> Places:
    return plan.rows * len(p.y) + plan.cols


def _around(p: Relaxed, pairs: list[tuple[Places, Places]]) -> Places:
    """Name the cells of pairs and of their neighbours in a row or column."""
    n, m = len(p.x), len(p.y)
    keys = [(i + d).clip(0, n - 1) * m + j for i, j in pairs for d in AROUND]
    keys += [i * m + (j + d).clip(0, m - 1) for i, j in pairs for d in AROUND]
    return np.unique(np.concatenate(keys))


def _better(p: Relaxed, found: Found, plan: Stairs, f: Floats, g: Floats) -> Found:
    """Keep the cheaper plan and the higher potentials."""
    f, g = shifted(p, f, g)
    mu, nu = summed(plan.rows, plan.mass, len(p.x)), summed(plan.cols, plan.mass, len(p.y))
    value = float(plan.price @ plan.mass)
    value += divergence(mu, p.a, p.rho_a) + divergence(nu, p.b, p.rho_b)
    dual = dual_value(p, f, g)
    if value < found.value:
        found = replace(found, plan=plan, value=value)
    return replace(found, f=f, g=g, dual=dual) if dual > found.dual else found


def _exact(p: Relaxed, mu: Floats, nu: Floats) -> tuple[Floats, Floats]:
    """Give the sides that do not give way their weights."""
    return (p.a if p.rho_a == math.inf else mu), (p.b if p.rho_b == math.inf else nu)


def _round(p: Relaxed, found: Found, tol: float, watch: Watch) -> Found:
    """Take plain steps first, then correct."""
    if found.plain >= PLAIN:
        return _corrected(p, found, tol, watch)
    mu, nu = kept(p.a, found.f, p.rho_a), kept(p.b, found.g, p.rho_b)
    plan = stairs(p, mu, nu)
    t = _line_search(p, (mu, nu), (plan.f - found.f, plan.g - found.g))
    f, g = found.f + t * (plan.f - found.f), found.g + t * (plan.g - found.g)
    moved = _better(p, found, plan, f, g)
    cells = np.union1d(moved.cells, _keys(p, plan))
    return replace(moved, cells=cells, plain=found.plain + 1)


def _line_search(
    p: Relaxed, marginals: tuple[Floats, Floats], steps: tuple[Floats, Floats]
) -> float:
    """Maximise the dual, at its best shift, between two pairs of potentials."""

    def slope(t: float) -> float:
        total = 0.0
        for w, d, rho in zip(marginals, steps, (p.rho_a, p.rho_b), strict=True):
            z = -t * d / rho
            now = w * np.exp(z - z.max())
            total += float(now @ d / now.sum())
        return total

    low, high = 0.0, 1.0
    if slope(1.0) >= 0:
        return 1.0
    for _ in range(SEARCH):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return low


def _corrected(p: Relaxed, found: Found, tol: float, watch: Watch) -> Found:
    """Solve on the cells, mend what other cells forbid, and choose the next cells."""
    n, m = len(p.x), len(p.y)
    rows, cols = found.cells // m, found.cells % m
    C = np.abs(p.x[rows] - p.y[cols]) ** p.p
    inverse = np.repeat([1 / p.rho_a, 1 / p.rho_b], [n, m])
    accuracy = min(max(ACCURACY * tol, FINEST), COARSEST)
    cells = Restricted(rows, cols, C, np.concatenate([p.a, p.b]), inverse, n)
    z, P = solve_cells(cells, _inside(cells), accuracy=accuracy, watch=quietly(watch))
    mu, nu = summed(rows, P, n), summed(cols, P, m)
    plan = stairs(p, *_exact(p, mu, nu))
    cheapest, place = c_transform(p.x, p.y, z[:n], p.p)
    _, back = c_transform(p.y, p.x, z[n:], p.p)
    g = np.minimum(z[n:], cheapest)
    f, last = c_transform(p.y, p.x, g, p.p)
    moved = _better(p, found, plan, f, g)
    slack = C - f[rows] - g[cols]
    most = KEPT * (n + m)
    near = found.cells[np.argsort(slack, kind="stable")[:most]]
    j, i = np.arange(m), np.arange(n)
    fresh = _around(p, [(place, j), (i, back), (i, last)])
    return replace(moved, cells=np.unique(np.concatenate([near, fresh, _keys(p, plan)])))


def _inside(cells: Restricted) -> Floats:
    """Share the cheapest cost of each point's cells, less a margin: strictly feasible."""
    N = len(cells.weights)
    cheapest = np.full(N, np.inf)
    np.minimum.at(cheapest, cells.rows, cells.C)
    np.minimum.at(cheapest, cells.n + cells.cols, cells.C)
    first, second = cells.inverse[0], cells.inverse[-1]
    share = second / (first + second)
    z = cheapest * np.repeat([share, 1 - share], [cells.n, N - cells.n])
    margin = 0.5 * min(1 / max(first, second), float(np.median(cells.C)))
    return z - max(margin, 1e-300)
