"""The c-transform on the line, by halving: minima of a Monge matrix move one way."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Places = NDArray[np.int64]


def c_transform(x: Floats, y: Floats, f: Floats, p: float) -> tuple[Floats, Places]:
    r"""Compute `g_j = min_i |x_i - y_j|^p - f_i` for sorted x and y, and where it is reached.

    The matrix is Monge for p >= 1, so the places of its column minima do not decrease with j:
    those of every second column bound the search in the others. Time O((n + m) log m), level by
    level without a loop over points.

    References: Aggarwal, Klawe, Moran, Shor, Wilber 1987, doi:10.1007/BF01840359 (totally monotone
    matrices).
    """
    n, m = len(x), len(y)
    value, place = np.empty(m), np.zeros(m, dtype=np.int64)
    step = 1 << (m.bit_length() - 1)
    while step:
        here = np.arange(step - 1, m, 2 * step)
        above = np.minimum(here + step, m - 1)
        low = np.where(here >= step, place[np.maximum(here - step, 0)], 0)
        high = np.where(here + step < m, place[above], n - 1)
        starts = np.concatenate([[0], np.cumsum(high - low + 1)])
        column = np.repeat(np.arange(len(here)), high - low + 1)
        row = np.arange(starts[-1]) - starts[column] + low[column]
        price = np.abs(x[row] - y[here[column]]) ** p - f[row]
        value[here] = np.minimum.reduceat(price, starts[:-1])
        reached = np.flatnonzero(price == value[here][column])
        first = np.searchsorted(column[reached], np.arange(len(here)))
        place[here] = row[reached[first]]
        step //= 2
    return value, place
