r"""Newton's method on the semi-dual of a small balanced entropic problem, in compiled loops.

With `v = b / K^T u` columns are exact, and `F(log u) = <a, log u> - <b, log K^T u>` is what is left
to maximise: its gradient is the error of the rows, its Hessian minus the Laplacian of the graph
with the weights `W = P diag(1/b) P^T`. A Laplacian is eliminated without subtracting anything, so
that directions in which a plan is nearly undetermined, where sweeps crawl, keep their digits.

References:
    Grassmann, Taksar, Heyman 1985, Oper. Res. 33(5) (elimination); Cuturi, Peyre 2016,
    arXiv:1503.02533 (semi-dual).
"""

import math
from typing import Any, no_type_check

import numpy as np

from algorithms.entropic.compiled import (
    Array,
    apart,
    compiled,
    multiply,
    multiply_transposed,
    within,
)

# Newton steps, and those in a row that may leave the error above WORTH of the best one.
STEPS, PATIENCE, WORTH = 60, 12, 0.9
# Largest change of a log-scaling in one step; halvings of a step; share of slope that is growth.
LONGEST, HALVINGS, ARMIJO = 20.0, 30, 1e-4
# Slopes below this are lost in the rounding of F: steps are then full, and judged by the error.
FLAT = 1e-11


@compiled()
@no_type_check
def climb(K: Array, rows: Array, columns: Array, tol: float, steps: int, reach: float) -> int:
    """Maximise F from the scalings given; return the steps made, -1 where it did not converge.

    `rows` holds a, u and s = K v; `columns` holds b, v and t = K^T u, as in `scale_kernel`.
    """
    (a, u, s), (b, v, t) = (rows[0], rows[1], rows[2]), (columns[0], columns[1], columns[2])
    least, idle = np.inf, 0
    for step in range(steps + 1):
        v[:] = b / t
        s[:] = multiply(K, v)
        error = apart(u, a, s) + apart(v, b, t)
        if error <= tol:
            return step
        idle = 0 if error < WORTH * least else idle + 1
        least = min(least, error)
        if step == steps or idle > PATIENCE or not (within(u, reach) and within(v, reach)):
            return -1
        gradient = a - u * s
        x = eliminate(couplings(K, u, v, b), gradient.copy())
        x -= 0.5 * (x.max() + x.min())
        if not advance(K, rows, columns, x, gradient):
            return -1
    return -1


@compiled()
@no_type_check
def couplings(K: Array, u: Array, v: Array, b: Array) -> Array:
    """Compute the lower half of `W = P diag(1/b) P^T`."""
    n, m = K.shape
    Q, W = np.empty((n, m)), np.empty((n, n))
    scale = v / np.sqrt(b)
    for i in range(n):
        for j in range(m):
            Q[i, j] = u[i] * K[i, j] * scale[j]
        W[i, : i + 1] = multiply(Q[: i + 1], Q[i])
    return W


@compiled()
@no_type_check
def eliminate(W: Array, r: Array) -> Array:
    """Solve for x the Laplacian of the weights below the diagonal of W, `x_0 = 0`; spoils both."""
    n = r.shape[0]
    for k in range(n - 1, 0, -1):
        row = W[k, :k] / W[k, :k].sum()
        for i in range(1, k):
            w = W[k, i]
            for j in range(i):
                W[i, j] += w * row[j]
        for i in range(k):
            r[i] += row[i] * r[k]
        r[k] /= W[k, :k].sum()
        W[k, :k] = row
    r[0] = 0.0
    for k in range(1, n):
        for i in range(k):
            r[k] += W[k, i] * r[i]
    return r


@compiled()
@no_type_check
def advance(K: Array, rows: Array, columns: Array, x: Array, gradient: Array) -> bool:
    """Take the longest of the steps x, x/2, ... that raises F enough; False when none does."""
    (a, u), (b, t) = (rows[0], rows[1]), (columns[0], columns[2])
    slope, longest = 0.0, 0.0
    for i in range(x.shape[0]):
        slope += gradient[i] * x[i]
        longest = max(longest, abs(x[i]))
    if not (slope > 0 and longest < np.inf):
        return False
    length, start = min(1.0, LONGEST / longest), u.copy()
    before = t.copy()
    for _ in range(HALVINGS):
        grown = 0.0
        for i in range(x.shape[0]):
            u[i] = start[i] * math.exp(length * x[i])
            grown += a[i] * length * x[i]
        t[:] = multiply_transposed(K, u)
        for j in range(b.shape[0]):
            grown -= b[j] * math.log(t[j] / before[j])
        if grown >= ARMIJO * length * slope or slope < FLAT:
            return True
        length *= 0.5
    return False


@compiled()
@no_type_check
def solve_one(K: Array, rows: Array, columns: Array, tol: float, steps: int, reach: float) -> Any:
    """Climb in the scalings of the shorter side: a step costs the square of it."""
    if K.shape[0] <= K.shape[1]:
        return climb(K, rows, columns, tol, steps, reach)
    return climb(np.ascontiguousarray(K.T), columns, rows, tol, steps, reach)
