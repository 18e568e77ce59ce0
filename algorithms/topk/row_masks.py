r"""Masks of rows with the power regularizer, in compiled loops: one walk over each row.

The threshold is searched among the few entries that it may cut, in float64 whatever the type of
the row. Sums over entries are branchless, so that they are vectorised, and counts are exact.
"""

from typing import Any, no_type_check

import numpy as np
from numpy.typing import NDArray

from algorithms.entropic.compiled import compiled
from algorithms.topk.row_selection import two_ranks

Array = NDArray[Any]
EPS = 2.0**-52
SWEEPS = 1200  # halvings of doubles end sooner
NOWHERE = 1e250  # the threshold of a row that keeps nothing (all) lies beyond all distances


@compiled(any_order=True)
@no_type_check
def _sums_1(w: Array, m: int, t: float) -> tuple[float, float, float]:
    """Count entries that are 1, and add the others' masks and slopes, for r = 1."""
    full, S, D = 0.0, 0.0, 0.0
    for j in range(m):
        z = w[j] - t
        full += 1.0 if z >= 1.0 else 0.0
        v = 1.0 if (z > 0.0) & (z < 1.0) else 0.0
        S += v * z  # a product, not a choice: choices of a sum become branches
        D += v
    return full, S, D


@compiled(any_order=True)
@no_type_check
def _sums_2(w: Array, m: int, t: float) -> tuple[float, float, float]:
    full, S, D = 0.0, 0.0, 0.0
    for j in range(m):
        z = w[j] - t
        full += 1.0 if z >= 1.0 else 0.0
        v = z if (z > 0.0) & (z < 1.0) else 0.0
        S += v * v
        D += v
    return full, S, 2.0 * D


@compiled(any_order=True)
@no_type_check
def _sums_3(w: Array, m: int, t: float) -> tuple[float, float, float]:
    full, S, D = 0.0, 0.0, 0.0
    for j in range(m):
        z = w[j] - t
        full += 1.0 if z >= 1.0 else 0.0
        v = z if (z > 0.0) & (z < 1.0) else 0.0
        S += v * v * v
        D += v * v
    return full, S, 3.0 * D


@compiled()
@no_type_check
def _sums_any(w: Array, m: int, t: float, r: float) -> tuple[float, float, float]:
    full, S, D = 0.0, 0.0, 0.0
    for j in range(m):
        z = w[j] - t
        if z >= 1.0:
            full += 1.0
        elif z > 0.0:
            v = z ** (r - 1.0)
            S += v * z
            D += v
    return full, S, r * D


@compiled()
@no_type_check
def sums(w: Array, m: int, t: float, r: float) -> tuple[float, float, float]:
    """Count entries that are 1; add masks and slopes of those between."""
    if r == 1.0:
        return _sums_1(w, m, t)
    if r == 2.0:
        return _sums_2(w, m, t)
    if r == 3.0:
        return _sums_3(w, m, t)
    return _sums_any(w, m, t, r)


@compiled()
@no_type_check
def _search(w: Array, m: int, owed: float, r: float, gap: float) -> tuple[float, int]:
    """Find t in [-1, gap] with `count + sum = owed`; also the sweeps that it took.

    Newton's step where it falls strictly inside the bracket and is at most half of the step
    before, else the middle: steps or brackets are halved.
    """
    low, high = -1.0, max(gap, -1.0)
    t, before, rounding = (low + high) / 2, high - low, EPS * (2 + np.log2(m + 2.0) / 2)
    for sweep in range(1, SWEEPS):
        full, S, D = sums(w, m, t, r)
        F = (full - owed) + S
        if F >= 0.0:
            low = t
        if F <= 0.0:
            high = t
        newton, mid = t + F / D if D > 0.0 else np.inf, (low + high) / 2
        inside = (low < newton) & (newton < high)
        if abs(F) <= rounding * S + EPS * D / 2 or not (low < mid < high):
            return newton if inside else t, sweep
        step = newton if inside and abs(newton - t) <= before / 2 else mid
        if inside and abs(newton - t) <= EPS * max(abs(t), 0.25):
            return newton, sweep
        before, t = abs(step - t), step
    return t, SWEEPS


@compiled()
@no_type_check
def _window(row: Array, a: float, floor: float, ceiling: float, scale: float, w: Array) -> Any:
    """Write the distances of entries between two bounds; count them and those above."""
    m, above = 0, 0
    for j in range(row.shape[0]):
        x = np.float64(row[j])
        w[m] = (x - a) * scale
        above += x >= ceiling
        m += (x > floor) & (x < ceiling)
    return m, above


@compiled()
@no_type_check
def power(z: float, r: float) -> float:
    """Raise a number in [0, 1] to the power r."""
    if r == 1.0:
        return z
    if r == 2.0:
        return z * z
    if r == 3.0:
        return z * z * z
    return z**r


@compiled()
@no_type_check
def _write(row: Array, a: float, scale: float, t: float, r: float, y: Array) -> None:
    """Write the mask of a row."""
    if r == 1.0:
        for j in range(row.shape[0]):
            z = (np.float64(row[j]) - a) * scale - t
            z = z if z > 0.0 else 0.0
            y[j] = z if z < 1.0 else 1.0
    elif r == 2.0:
        for j in range(row.shape[0]):
            z = (np.float64(row[j]) - a) * scale - t
            z = z if z > 0.0 else 0.0
            z = z if z < 1.0 else 1.0
            y[j] = z * z
    elif r == 3.0:
        for j in range(row.shape[0]):
            z = (np.float64(row[j]) - a) * scale - t
            z = z if z > 0.0 else 0.0
            z = z if z < 1.0 else 1.0
            y[j] = z * z * z
    else:
        for j in range(row.shape[0]):
            z = (np.float64(row[j]) - a) * scale - t
            y[j] = 0.0 if z <= 0.0 else (1.0 if z >= 1.0 else z**r)


@compiled(any_order=True)
@no_type_check
def _tally(w: Array, m: int, t: float, y: Array) -> tuple[float, float, float]:
    """Count ones and entries between in the window; add the masks `y` of the latter."""
    full, between, total = 0.0, 0.0, 0.0
    for j in range(m):
        z = w[j] - t
        full += 1.0 if z >= 1.0 else 0.0
        v = 1.0 if (z > 0.0) & (z < 1.0) else 0.0
        between += v
        total += v * np.float64(y[j])
    return full, between, total


@compiled()
@no_type_check
def masks(x: Array, k: Array, lam: Array, r: float, y: Array, found: Array, counts: Array) -> None:
    """Write the masks of rows.

    Args:
        y: (B, n), takes the masks.
        found: (3, B), takes the anchors a, the thresholds t with `tau = a + lam t`, and what the
            sums of the masks miss of k.
        counts: (3, B), takes the numbers of ones, of entries between, and of sweeps.
    """
    B, n = x.shape
    w, scratch = np.empty(n + 1), np.empty(n, x.dtype)
    for i in range(B):
        row = x[i]
        if k[i] <= 0.0 or k[i] >= n:
            every = k[i] > 0.0
            a = np.float64(row.min() if every else row.max())
            found[0, i], found[1, i], found[2, i] = a, (-NOWHERE if every else NOWHERE), 0.0
            counts[0, i], counts[1, i], counts[2, i] = (n if every else 0), 0, 0
            y[i, :] = 1.0 if every else 0.0
            continue
        first, second = two_ranks(row, k[i], False, scratch)
        a, b, scale = np.float64(first), np.float64(second), 1.0 / lam[i]
        m, above = _window(row, a, a - lam[i], b + lam[i], scale, w)
        t, sweeps = _search(w, m, k[i] - above, r, (b - a) * scale)
        _write(w[:m], 0.0, 1.0, t, r, y[i])  # as they are rounded to the type of y
        full, between, total = _tally(w, m, t, y[i])
        _write(row, a, scale, t, r, y[i])
        found[0, i], found[1, i] = a, t
        found[2, i] = abs((above + full - k[i]) + total)
        counts[0, i], counts[1, i], counts[2, i] = above + full, between, sweeps


@compiled(any_order=True)
@no_type_check
def _weigh(row: Array, g: Array, a: float, scale: float, t: float, r: float) -> tuple[float, float]:
    """Add slopes, and slopes times cotangents, of the entries between."""
    D, q = 0.0, 0.0
    if r == 1.0:
        for j in range(row.shape[0]):
            z = (np.float64(row[j]) - a) * scale - t
            v = 1.0 if (z > 0.0) & (z < 1.0) else 0.0
            D += v
            q += v * np.float64(g[j])
    elif r == 2.0 or r == 3.0:
        square = r == 3.0
        for j in range(row.shape[0]):
            z = (np.float64(row[j]) - a) * scale - t
            v = z if (z > 0.0) & (z < 1.0) else 0.0
            v = v * v if square else v
            D += v
            q += v * np.float64(g[j])
    else:
        for j in range(row.shape[0]):
            z = (np.float64(row[j]) - a) * scale - t
            if (z > 0.0) & (z < 1.0):
                v = z ** (r - 1.0)
                D += v
                q += v * np.float64(g[j])
    return D, q


@compiled(any_order=True)
@no_type_check
def _spread(
    row: Array, g: Array, a: float, scale: float, t: float, r: float, mean: float, out: Array
) -> float:
    """Write the gradient of a row; return its product with the distances."""
    found, size = 0.0, r * scale
    if r == 1.0:
        for j in range(row.shape[0]):
            z = (np.float64(row[j]) - a) * scale - t
            v = z if (z > 0.0) & (z < 1.0) else 0.0
            d = (size if v > 0.0 else 0.0) * (np.float64(g[j]) - mean)
            found += d * v
            out[j] = d
    elif r == 2.0 or r == 3.0:
        square = r == 3.0
        for j in range(row.shape[0]):
            z = (np.float64(row[j]) - a) * scale - t
            v = z if (z > 0.0) & (z < 1.0) else 0.0
            d = size * (v * v if square else v) * (np.float64(g[j]) - mean)
            found += d * v
            out[j] = d
    else:
        for j in range(row.shape[0]):
            z = (np.float64(row[j]) - a) * scale - t
            if (z > 0.0) & (z < 1.0):
                d = size * z ** (r - 1.0) * (np.float64(g[j]) - mean)
                found += d * z
                out[j] = d
            else:
                out[j] = 0.0
    return found


@compiled()
@no_type_check
def masks_back(
    x: Array, g: Array, lam: Array, r: float, found: Array, out: Array, more: Array
) -> None:
    """Pull cotangents of masks back: to x in `out`, to k and lam in the rows of `more`."""
    for i in range(x.shape[0]):
        a, t, scale = found[0, i], found[1, i], 1.0 / lam[i]
        D, q = _weigh(x[i], g[i], a, scale, t, r)
        if D > 0.0:
            more[0, i] = q / D
            more[1, i] = -_spread(x[i], g[i], a, scale, t, r, q / D, out[i])
        else:
            out[i, :] = 0.0
            more[0, i], more[1, i] = 0.0, 0.0
