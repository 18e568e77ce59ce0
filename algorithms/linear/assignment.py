"""Assignment of equal masses, exact, begun at a matching that is nearly optimal.

Columns relax the potentials of the matching that is given (Bellman and Ford); what stays tight
keeps its partner; every other row finds one along a shortest augmenting path. Ten times the pace
of a solver that begins with nothing, where few rows change partners; where many would, that one.
"""

from typing import Any, no_type_check

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from algorithms.entropic.compiled import compiled, numba

Array = NDArray[Any]

# Each round costs one pass over the matrix; a matching that is optimal ends them early. Beyond
# this, rows left without a partner no longer become fewer as fast as rounds cost.
ROUNDS = 12
# Where more rows than this share are then without a partner, a solver without a start is faster.
STRANGERS = 0.4


def best_assignment(C: Array) -> NDArray[np.int64]:
    """Find the permutation with the least `sum_i C_i,p(i)`; the diagonal is where it starts.

    Shapes: C (s, s), finite, -> (s,). The answer is optimal up to the rounding of sums; among
    several it is a deterministic function of C. The interpreter lock is released.

    Notes:
        O(s^3) at worst, O(s^2) where the diagonal is optimal. Where it is far from that, and
        without numba, scipy's routine answers, which does not use the diagonal.

    References:
        Jonker, Volgenant 1987, doi:10.1007/BF02278710; Crouse 2016, doi:10.1109/TAES.2016.140952.
    """
    found = np.empty(0, np.int64) if numba is None else _from_diagonal(C)
    return found if len(found) else linear_sum_assignment(C)[1]


@compiled(any_order=True, numbers=True)
@no_type_check
def _relax(C: Array, v: Array) -> bool:
    """Lower the column potentials until the diagonal is tight, or rounds are spent.

    Tells whether it became tight: the diagonal is then optimal.
    """
    for _ in range(ROUNDS):
        fallen = 0.0  # a sum of numbers above zero, without a branch: loops stay vectorised
        for i in range(C.shape[0]):
            row = C[i]
            u = row[i] - v[i]
            for j in range(C.shape[1]):
                lower = min(v[j], row[j] - u)
                fallen += v[j] - lower
                v[j] = lower
        if fallen == 0:
            return True
    return False


@compiled(numbers=True)
@no_type_check
def _keep(C: Array, u: Array, v: Array, row_of: Array, col_of: Array) -> None:
    """Make the row potentials as large as they may be; pair along what is tight."""
    s = C.shape[0]
    for i in range(s):
        least = np.inf
        for j in range(s):
            least = min(least, C[i, j] - v[j])
        u[i] = least
        if C[i, i] - v[i] == least:
            row_of[i], col_of[i] = i, i
    for i in range(s):
        for j in range(s):
            if col_of[i] < 0 and row_of[j] < 0 and C[i, j] - v[j] == u[i]:
                row_of[j], col_of[i] = i, j


@compiled(numbers=True)
@no_type_check
def _augment(C: Array, start: int, u: Array, v: Array, row_of: Array, col_of: Array) -> None:
    """Give one row a partner along the shortest path to a free column (Dijkstra)."""
    s = C.shape[0]
    far, before = C[start] - u[start] - v, np.full(s, start)
    todo, done = np.arange(s), np.empty(s, np.int64)
    left, count, end = s, 0, -1
    while end < 0:
        low, at = np.inf, 0
        for k in range(left):
            w = far[todo[k]]
            if w < low or (w == low and row_of[todo[k]] < 0):
                low, at = w, k
        j = todo[at]
        left -= 1
        todo[at] = todo[left]
        if row_of[j] < 0:
            end = j
            continue
        done[count] = j
        count += 1
        row, base = C[row_of[j]], low - u[row_of[j]]
        for k in range(left):
            other = todo[k]
            w = row[other] - v[other] + base
            if w < far[other]:
                far[other], before[other] = w, row_of[j]
    u[start] += low
    for k in range(count):
        j = done[k]
        u[row_of[j]] += low - far[j]
        v[j] -= low - far[j]
    j = end
    while True:
        i = before[j]
        row_of[j] = i
        col_of[i], j = j, col_of[i]
        if i == start:
            return


@compiled(numbers=True)
@no_type_check
def _from_diagonal(C: Array) -> Array:
    """Solve; an empty answer says that the diagonal is too far from optimal to be of use."""
    s = C.shape[0]
    v = np.zeros(s)
    if _relax(C, v):
        return np.arange(s)
    u, row_of, col_of = np.empty(s), np.full(s, -1), np.full(s, -1)
    _keep(C, u, v, row_of, col_of)
    if (col_of < 0).sum() > STRANGERS * s:
        return np.empty(0, np.int64)
    for i in range(s):
        if col_of[i] < 0:
            _augment(C, i, u, v, row_of, col_of)
    return col_of
