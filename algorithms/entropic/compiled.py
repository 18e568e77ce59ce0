"""Loops over the entries of a kernel that a CPU runs in one pass: half the traffic of tensor code.

Without numba, or on another device, callers fall back on tensor code; see docs/decisions/006.
"""

import math
from collections.abc import Callable
from typing import Any, no_type_check

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

try:
    import numba
except ImportError:  # pragma: no cover
    numba = None

# exp(x) = 2^k exp(r): adding MAGIC rounds x / log 2 to the integer k and leaves k in the low bits.
MAGIC, BIAS, MANTISSA = 1.5 * 2.0**52, 1023, 52
LOG2_HIGH = float.fromhex("0x1.62e42fee00000p-1")  # its multiples by k are exact
LOG2_LOW = 1.9082149292705877e-10  # log 2 less that, with digits that the difference would lose
PER_LOG2 = 1 / math.log(2)
# Taylor's polynomial on |r| <= log(2)/2, highest power first: relative error 3e-16.
TAYLOR = tuple(1 / math.factorial(k) for k in range(12, -1, -1))
C12, C11, C10, C9, C8, C7, C6, C5, C4, C3, C2, C1, C0 = TAYLOR
# Sums may be taken in any order; nothing may be assumed about NaN and infinity.
ANY_ORDER = {"reassoc", "contract", "nsz", "arcp"}
Array = NDArray[Any]


def compiled(
    *, any_order: bool = False, numbers: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile a loop when it is first called, keep it on disk, and let other threads run.

    `numbers` promises that no entry is NaN, without which minima are not vectorised.
    """
    if numba is None:  # pragma: no cover
        return lambda loop: loop
    flags = (ANY_ORDER if any_order else {"contract"}) | ({"nnan"} if numbers else set())
    return numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=flags)


def runs_on(like: Tensor) -> bool:
    """Tell whether the compiled loops serve this tensor."""
    return numba is not None and like.device.type == "cpu"


@compiled()
@no_type_check
def exponential(x: float) -> float:
    """Compute exp of x in [-700, 700], in operations that a compiler can vectorise."""
    shifted = x * PER_LOG2 + MAGIC
    k = shifted - MAGIC
    r = (x - k * LOG2_HIGH) - k * LOG2_LOW
    p = ((((C12 * r + C11) * r + C10) * r + C9) * r + C8) * r + C7
    p = ((((((p * r + C6) * r + C5) * r + C4) * r + C3) * r + C2) * r + C1) * r + C0
    bits = np.float64(shifted).view(np.int64)
    return p * np.int64((bits + BIAS) << MANTISSA).view(np.float64)


@compiled(any_order=True)
@no_type_check
def total(row: Array) -> float:
    """Add the entries of a row."""
    found = 0.0
    for j in range(row.shape[0]):
        found += row[j]
    return found


@compiled(any_order=True, numbers=True)
@no_type_check
def transforms(C: Array) -> tuple[Array, Array, float]:
    """Compute the c-transform g of zero, that of g, and the extent of C, of finite entries."""
    n, m = C.shape
    f, g, high = np.empty(n), C[0].astype(np.float64), -np.inf
    for i in range(n):
        for j in range(m):
            g[j] = min(g[j], C[i, j])
            high = max(high, C[i, j])
    for i in range(n):
        low = np.inf
        for j in range(m):
            low = min(low, C[i, j] - g[j])
        f[i] = low
    return f, g, high - g.min()


@compiled()
@no_type_check
def fill(C: Array, left: Array, right: Array, scale: float, lowest: float, K: Array) -> Any:
    """Write `K_ij = exp(max(left_i + right_j - scale C_ij, lowest))`; return both sums."""
    n, m = C.shape
    s, t, row = np.empty(n), np.zeros(m), np.empty(m)
    for i in range(n):
        for j in range(m):
            row[j] = exponential(max(left[i] + right[j] - scale * C[i, j], lowest))
        for j in range(m):
            K[i, j] = row[j]
            t[j] += row[j]
        s[i] = total(row)
    return s, t


@compiled(any_order=True)
@no_type_check
def dots(K: Array, i: int, v: Array, s: Array) -> None:
    """Multiply rows i, ..., i + 3 with v."""
    k0, k1, k2, k3 = K[i], K[i + 1], K[i + 2], K[i + 3]
    s0, s1, s2, s3 = 0.0, 0.0, 0.0, 0.0
    for j in range(v.shape[0]):
        s0 += k0[j] * v[j]
        s1 += k1[j] * v[j]
        s2 += k2[j] * v[j]
        s3 += k3[j] * v[j]
    s[i], s[i + 1], s[i + 2], s[i + 3] = s0, s1, s2, s3


@compiled(any_order=True)
@no_type_check
def spread(K: Array, i: int, u: Array, t: Array) -> None:
    """Add rows i, ..., i + 3, times their u, to t."""
    k0, k1, k2, k3 = K[i], K[i + 1], K[i + 2], K[i + 3]
    u0, u1, u2, u3 = u[i], u[i + 1], u[i + 2], u[i + 3]
    for j in range(t.shape[0]):
        t[j] += k0[j] * u0 + k1[j] * u1 + k2[j] * u2 + k3[j] * u3


@compiled(any_order=True)
@no_type_check
def dot(k: Array, v: Array) -> float:
    """Multiply one row with v."""
    found = 0.0
    for j in range(v.shape[0]):
        found += k[j] * v[j]
    return found


@compiled(any_order=True)
@no_type_check
def spread_one(k: Array, u: float, t: Array) -> None:
    """Add one row, times u, to t."""
    for j in range(t.shape[0]):
        t[j] += k[j] * u


@compiled()
@no_type_check
def rescale(z: Array, target: Array, sums: Array, w: float, first: int, last: int) -> None:
    """Set `z <- z (target / (z sums))^w` between two indices."""
    if w == 1.0:
        for i in range(first, last):
            z[i] = target[i] / sums[i]
    else:
        for i in range(first, last):
            z[i] *= (target[i] / (z[i] * sums[i])) ** w


@compiled(any_order=True)
@no_type_check
def apart(z: Array, target: Array, sums: Array) -> float:
    """Compute the L1 error of a marginal `z sums`."""
    found = 0.0
    for i in range(z.shape[0]):
        found += abs(z[i] * sums[i] - target[i])
    return found


@compiled()
@no_type_check
def within(z: Array, reach: float) -> bool:
    """Tell whether all scalings lie between 1/reach and reach; NaN does not."""
    found, low = True, 1 / reach
    for i in range(z.shape[0]):
        found &= (z[i] >= low) & (z[i] <= reach)
    return found


@compiled()
@no_type_check
def scale_kernel(
    K: Array, rows: Array, columns: Array, w: float, count: int, tol: float, reach: float
) -> int:
    """Sweep at most `count` times, reading K once a sweep; return the number of sweeps made.

    `rows` holds a, u and s = K v; `columns` holds b, v and t = K^T u. Ends early when the marginal
    errors are within `tol` together, and after a sweep that takes a scaling beyond `reach`.
    """
    (a, u, s), (b, v, t) = (rows[0], rows[1], rows[2]), (columns[0], columns[1], columns[2])
    n = K.shape[0]
    fours = n - n % 4
    for done in range(count):
        if apart(u, a, s) + apart(v, b, t) <= tol:
            return done
        rescale(v, b, t, w, 0, v.shape[0])
        t[:] = 0.0
        for i in range(0, fours, 4):
            dots(K, i, v, s)
            rescale(u, a, s, w, i, i + 4)
            spread(K, i, u, t)
        for i in range(fours, n):
            s[i] = dot(K[i], v)
            rescale(u, a, s, w, i, i + 1)
            spread_one(K[i], u[i], t)
        if not (within(u, reach) and within(v, reach)):
            return done + 1
    return count


@compiled()
@no_type_check
def multiply(K: Array, v: Array) -> Array:
    """Compute K v in float64, whatever the type of K."""
    n = K.shape[0]
    fours, s = n - n % 4, np.empty(n)
    for i in range(0, fours, 4):
        dots(K, i, v, s)
    for i in range(fours, n):
        s[i] = dot(K[i], v)
    return s


@compiled()
@no_type_check
def multiply_transposed(K: Array, u: Array) -> Array:
    """Compute K^T u in float64, whatever the type of K."""
    n = K.shape[0]
    fours, t = n - n % 4, np.zeros(K.shape[1])
    for i in range(0, fours, 4):
        spread(K, i, u, t)
    for i in range(fours, n):
        spread_one(K[i], u[i], t)
    return t


@compiled()
@no_type_check
def columns_scaled(K: Array, v: Array) -> tuple[Array, Array]:
    """Multiply the columns of K by v in place; return the sums of its rows and columns."""
    n, m = K.shape
    s, t = np.empty(n), np.zeros(m)
    for i in range(n):
        for j in range(m):
            K[i, j] *= v[j]
            t[j] += K[i, j]
        s[i] = total(K[i])
    return s, t


def filled(
    C: Float[Tensor, "n m"],
    left: Float[Tensor, "n"],
    right: Float[Tensor, "m"],
    scale: float,
    lowest: float,
    out: Float[Tensor, "n m"],
) -> tuple[Float[Tensor, "n"], Float[Tensor, "m"]]:
    """Fill `out` with `exp(max(left_i + right_j - scale C_ij, lowest))`; return its sums."""
    s, t = fill(C.contiguous().numpy(), left.numpy(), right.numpy(), scale, lowest, out.numpy())
    return torch.from_numpy(s), torch.from_numpy(t)


@compiled(any_order=True)
@no_type_check
def weighed(z: Array, e: Array) -> float:
    """Add the entries of e times those of z."""
    found = 0.0
    for j in range(z.shape[0]):
        found += z[j] * e[j]
    return found


@compiled()
@no_type_check
def exponentiate(
    Z: Array, left: Array, lowest: float, highest: float, products: bool
) -> tuple[Array, Array]:
    """Write `E_ij = exp(left_i + Z_ij)` over Z, zero below `lowest`; return its row sums.

    If asked also returns the sums of `E_ij (left_i + Z_ij)`.
    """
    n, m = Z.shape
    s, found, row = np.empty(n), np.zeros(n), np.empty(m)
    for i in range(n):
        for j in range(m):
            row[j] = left[i] + Z[i, j]
        for j in range(m):
            z = exponential(min(max(row[j], lowest), highest))
            Z[i, j] = z if row[j] >= lowest else 0.0
        s[i] = total(Z[i])
        if products:
            for j in range(m):
                row[j] = max(row[j], lowest)
            found[i] = weighed(row, Z[i])
    return s, found


@compiled()
@no_type_check
def add_across(E: Array, u: Array, t: Array) -> None:
    """Add E^T u to t in float64, whatever the type of E."""
    n = E.shape[0]
    fours = n - n % 4
    for i in range(0, fours, 4):
        spread(E, i, u, t)
    for i in range(fours, n):
        spread_one(E[i], u[i], t)
