r"""Values of rows kept by magnitude, in compiled loops: one walk over each row.

As in `magnitude`: rows are measured in their k-th largest magnitude c, where lam is
`lam c^(p-2)`, the anchor 1 and the threshold `1 + lam t`. For r = 1, 2 and 3 powers are products,
so that the loops are vectorised; other exponents have loops of their own.
"""

from typing import Any, no_type_check

import numpy as np
from numpy.typing import NDArray

from algorithms.entropic.compiled import compiled
from algorithms.topk.row_masks import EPS, SWEEPS
from algorithms.topk.row_selection import two_ranks

Array = NDArray[Any]
LEAST, MOST = 1e-140, 1e140  # as in `magnitude`: lam beyond them acts like them
STEPS = 64


@compiled()
@no_type_check
def shrunk_one(lam: float, r: float) -> float:
    """Solve `v + lam v^(1/r) = 1` for v, by steps from above."""
    if r == 1.0:
        return 1.0 / (1.0 + lam)
    if r > 1.0:  # in w = v^(1/r)
        w = min(1.0 / lam, 1.0)
        for _ in range(STEPS):
            step = (w**r + lam * w - 1.0) / (r * w ** (r - 1.0) + lam)
            if not step > 0.0:
                break
            w -= step
        return w**r
    e, v = 1.0 / r, min(1.0, (1.0 / lam) ** r)
    for _ in range(STEPS):
        step = (v + lam * v**e - 1.0) / (1.0 + lam * e * v ** (e - 1.0))
        if not step > 0.0:
            break
        v -= step
    return v


@compiled(any_order=True)
@no_type_check
def _sums_low(w: Array, m: int, t: float, r: float, theta: float) -> tuple[float, float, float]:
    """Count capped entries; add values and slopes of the block, for r = 1, 2 or 3."""
    capped, S, D = 0.0, 0.0, 0.0
    two, three = r >= 2.0, r >= 3.0
    for j in range(m):
        z = w[j] - t
        v = z if z > 0.0 else 0.0
        bend = (v if two else (1.0 if z > 0.0 else 0.0)) * (v if three else 1.0)
        free = 1.0 if v * bend < theta else 0.0
        capped += 1.0 - free
        S += free * (v * bend)
        D += free * bend
    return capped, S, r * D


@compiled()
@no_type_check
def _sums_any(w: Array, m: int, t: float, r: float, theta: float) -> tuple[float, float, float]:
    capped, S, D = 0.0, 0.0, 0.0
    for j in range(m):
        z = w[j] - t
        if z > 0.0:
            y = z**r
            if y >= theta:
                capped += 1.0
            else:
                S += y
                D += y / z
    return capped, S, r * D


@compiled()
@no_type_check
def products(r: float) -> bool:
    """Tell whether powers to r are products."""
    return r == 1.0 or r == 2.0 or r == 3.0


@compiled()
@no_type_check
def _search(
    w: Array, m: int, owed: float, lam: float, r: float, ends: tuple[float, float]
) -> tuple[float, int]:
    """Find t with `sum of the block = (owed - capped) (1 + lam t)`; see `row_masks`."""
    low, high = ends[0], max(ends[1], ends[0])
    unit, low_powers = abs(low) / 4, products(r)
    t, before, rounding = (low + high) / 2, high - low, EPS * (2 + np.log2(m + 2.0) / 2)
    for sweep in range(1, SWEEPS):
        theta = 1.0 + lam * t
        if low_powers:
            capped, S, D = _sums_low(w, m, t, r, theta)
        else:
            capped, S, D = _sums_any(w, m, t, r, theta)
        rest = owed - capped
        F, D = S - rest * theta, D + lam * rest
        if F >= 0.0:
            low = t
        if F <= 0.0:
            high = t
        newton, mid = t + F / D if D > 0.0 else np.inf, (low + high) / 2
        inside = (low < newton) & (newton < high)
        size = S + abs(rest * theta)
        if abs(F) <= rounding * size + EPS * unit * D or not (low < mid < high):
            return newton if inside else t, sweep
        step = newton if inside and abs(newton - t) <= before / 2 else mid
        if inside and abs(newton - t) <= EPS * max(abs(t), unit):
            return newton, sweep
        before, t = abs(step - t), step
    return t, SWEEPS


@compiled()
@no_type_check
def _window(row: Array, c: float, floor: float, ceiling: float, scale: float, w: Array) -> Any:
    """Write the distances of magnitudes between two bounds; count them and those above."""
    m, above = 0, 0
    for j in range(row.shape[0]):
        s = abs(np.float64(row[j]))
        w[m] = (s - c) * scale
        above += s >= ceiling
        m += (s > floor) & (s < ceiling)
    return m, above


@compiled()
@no_type_check
def _write(row: Array, c: float, lam: float, t: float, r: float, y: Array) -> None:
    """Write the values of a row that pools some, with their bias undone."""
    scale, theta = 1.0 / (c * lam), 1.0 + lam * t
    two, three, low_powers = r >= 2.0, r >= 3.0, products(r)
    for j in range(row.shape[0]):
        s = abs(np.float64(row[j]))
        z = (s - c) * scale - t
        v = z if z > 0.0 else 0.0
        if low_powers:
            u = v * (v if two else 1.0) * (v if three else 1.0)
        else:
            u = v**r if v > 0.0 else 0.0
        u = s if u >= theta else c * (u + lam * v)
        y[j] = u if row[j] > 0.0 else 0.0 - u


@compiled()
@no_type_check
def _tally(w: Array, m: int, t: float, r: float, theta: float) -> tuple[float, float, float]:
    """Count capped entries, add the block, count it."""
    if products(r):
        capped, S, _ = _sums_low(w, m, t, r, theta)
    else:
        capped, S, _ = _sums_any(w, m, t, r, theta)
    positive = 0
    for j in range(m):
        positive += w[j] > t
    return capped, S, positive - capped


@compiled()
@no_type_check
def _plain(row: Array, least: float, y: Array) -> int:
    """Write the entries of a row whose magnitude is at least `least`; count them."""
    kept = 0
    for j in range(row.shape[0]):
        keeps = abs(np.float64(row[j])) >= least
        y[j] = row[j] if keeps else 0.0
        kept += keeps
    return kept


@compiled()
@no_type_check
def values(x: Array, k: Array, lam: Array, r: float, y: Array, found: Array, counts: Array) -> None:
    """Write the values of rows, kept by magnitude, with their bias undone.

    Args:
        y: (B, n), takes the values.
        found: (6, B), takes the scales c, the anchors (1; 0 where k entries are not 0), the
            thresholds t, lam in units of the scaled row, 1 where a row pools nothing, and what
            the block misses of its share of the thresholds, over the threshold.
        counts: (3, B), takes the numbers of capped entries, of the block, and of sweeps.
    """
    B, n = x.shape
    w, scratch, p = np.empty(n + 1), np.empty(n, x.dtype), 1.0 + 1.0 / r
    for i in range(B):
        row = x[i]
        counts[1, i], counts[2, i] = 0, 0
        found[0, i], found[1, i], found[2, i] = 1.0, 0.0, 0.0
        found[3, i], found[4, i], found[5, i] = min(max(lam[i], LEAST), MOST), 1.0, 0.0
        if k[i] <= 0.0:
            y[i, :] = 0.0
            counts[0, i] = 0
            continue
        if k[i] >= n:
            counts[0, i] = _plain(row, 0.0, y[i])
            continue
        first, second = two_ranks(row, k[i], True, scratch)
        c, b = np.float64(first), np.float64(second)
        if c == 0.0:
            counts[0, i] = _plain(row, 0.0, y[i])
            continue
        b, strength = b / c, min(max(lam[i] * c ** (p - 2.0), LEAST), MOST)
        lowest = shrunk_one(strength, r)
        found[0, i], found[1, i], found[3, i] = c, 1.0, strength
        if lowest >= b:
            found[2, i] = (b - 1.0) / strength
            counts[0, i] = _plain(row, c, y[i])
            continue
        ceiling = c * (b + strength * b ** (p - 1.0))
        m, above = _window(row, c, c * lowest, ceiling, 1.0 / (c * strength), w)
        ends = (-(lowest ** (p - 1.0)), (b - 1.0) / strength)
        t, sweeps = _search(w, m, k[i] - above, strength, r, ends)
        theta = 1.0 + strength * t
        capped, pooled, block = _tally(w, m, t, r, theta)
        _write(row, c, strength, t, r, y[i])
        found[2, i], found[4, i] = t, 0.0
        found[5, i] = abs(pooled / theta - (k[i] - above - capped))
        counts[0, i], counts[1, i], counts[2, i] = above + capped, block, sweeps


@compiled(any_order=True)
@no_type_check
def _weigh(row: Array, g: Array, c: float, lam: float, t: float, r: float) -> Any:
    """Add over the block d, (1 + d) g, d z and d z g; count what is capped."""
    scale, theta, size = 1.0 / (c * lam), 1.0 + lam * t, r / lam
    two, three, low_powers = r >= 2.0, r >= 3.0, products(r)
    D, q, dz, dzg, capped = 0.0, 0.0, 0.0, 0.0, 0.0
    for j in range(row.shape[0]):
        x = np.float64(row[j])
        z = (abs(x) - c) * scale - t
        v = z if z > 0.0 else 0.0
        some = 1.0 if z > 0.0 else 0.0
        if low_powers:
            bend = (v if two else some) * (v if three else 1.0)
        else:
            bend = v ** (r - 1.0) if v > 0.0 else 0.0
        free = some if v * bend < theta else 0.0
        d = free * size * (bend if free > 0.0 else 0.0)
        v = v if free > 0.0 else 0.0
        h = np.float64(g[j]) if x > 0.0 else -np.float64(g[j])
        D += d
        q += (free + d) * h
        dz += d * v
        dzg += d * v * h
        capped += some - free
    return D, q, dz, dzg, capped


@compiled()
@no_type_check
def _spread(
    row: Array, g: Array, c: float, lam: float, t: float, r: float, mean: float, out: Array
) -> None:
    """Write the gradient of a row that pools some."""
    scale, theta, size = 1.0 / (c * lam), 1.0 + lam * t, r / lam
    two, three, low_powers = r >= 2.0, r >= 3.0, products(r)
    for j in range(row.shape[0]):
        x = np.float64(row[j])
        z = (abs(x) - c) * scale - t
        v = z if z > 0.0 else 0.0
        if low_powers:
            bend = (v if two else 1.0) * (v if three else 1.0)
        else:
            bend = v ** (r - 1.0) if v > 0.0 else 0.0
        d = size * bend
        h = np.float64(g[j])
        inner = (1.0 + d) * h - d * (mean if x > 0.0 else -mean)
        inner = inner if z > 0.0 else 0.0
        out[j] = h if v * bend >= theta else inner


@compiled()
@no_type_check
def _plain_back(row: Array, g: Array, least: float, out: Array) -> None:
    for j in range(row.shape[0]):
        s = abs(np.float64(row[j]))
        out[j] = g[j] if (s >= least) & (s > 0.0) else 0.0


@compiled()
@no_type_check
def values_back(
    x: Array, k: Array, g: Array, r: float, found: Array, out: Array, more: Array
) -> None:
    """Pull cotangents of values back: to x in `out`, to lam in `more`."""
    for i in range(x.shape[0]):
        c, a, t, lam = found[0, i], found[1, i], found[2, i], found[3, i]
        more[i] = 0.0
        if k[i] <= 0.0:
            out[i, :] = 0.0
        elif found[4, i] > 0.0:
            _plain_back(x[i], g[i], a * c, out[i])
        else:
            D, q, dz, dzg, capped = _weigh(x[i], g[i], c, lam, t, r)
            owed = D + max(k[i] - capped, 0.0)
            mean = q / owed if owed > 0.0 else 0.0
            sinks = dz / owed if owed > 0.0 else 0.0
            _spread(x[i], g[i], c, lam, t, r, mean, out[i])
            more[i] = (sinks * q - dzg) * c ** (1.0 / r)
