"""Pool adjacent violators: the method of sorting operators, of which top-k needs one block."""

from typing import Any, no_type_check

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from algorithms.entropic.compiled import compiled

Array = NDArray[Any]
STEPS = 200  # of a safeguarded Newton search; halvings of doubles end sooner


@compiled()
@no_type_check
def _level(s: Array, first: int, last: int, W: float, lam: float, r: float, mag: bool) -> float:
    """Solve `sum sign(s-v) |s-v|^r / lam^r = W (v if mag else 1)` over a block of entries."""
    m = last - first
    total = 0.0
    for j in range(first, last):
        total += s[j]
    if r == 1.0:
        return total / (m + lam * W) if mag else (total - lam * W) / m
    low, high = s[last - 1] - lam * (W + 1.0), s[first]
    if mag:
        low = 0.0
    v = (low + high) / 2
    for _ in range(STEPS):
        F, D = -W * (v if mag else 1.0), W if mag else 0.0
        for j in range(first, last):
            z = (s[j] - v) / lam
            bend = abs(z) ** (r - 1.0) if z != 0.0 else 0.0
            F += bend * z
            D += r * bend / lam
        if F >= 0.0:
            low = v
        if F <= 0.0:
            high = v
        mid = (low + high) / 2
        if not (low < mid < high):
            return v
        newton = v + F / D if D > 0.0 else mid
        step = newton if low < newton < high else mid
        if step == v:
            return v
        v = step
    return v


@compiled()
@no_type_check
def pool_row(s: Array, k: float, lam: float, r: float, mag: bool, blocks: Array) -> float:
    """Pool one falling row from the left, and return the value of the block at rank ceil(k).

    `blocks` (3, n) lends room for the first entry, the weight and the value of each block.
    """
    n, count = s.shape[0], 0
    for j in range(n):
        first, W = j, min(max(k - j, 0.0), 1.0)
        v = _level(s, j, j + 1, W, lam, r, mag)
        while count > 0 and blocks[2, count - 1] < v:
            count -= 1
            first, W = int(blocks[0, count]), W + blocks[1, count]
            v = _level(s, first, j + 1, W, lam, r, mag)
        blocks[0, count], blocks[1, count], blocks[2, count] = first, W, v
        count += 1
    at, found = int(np.ceil(k)) - 1, 0
    while found + 1 < count and blocks[0, found + 1] <= at:
        found += 1
    return blocks[2, found]


@compiled()
@no_type_check
def _pool_rows(s: Array, k: Array, lam: Array, r: float, mag: bool, v: Array) -> None:
    blocks = np.empty((3, s.shape[1]))
    for i in range(s.shape[0]):
        v[i] = pool_row(s[i], k[i], lam[i], r, mag, blocks)


def pooled(
    s: Float[Tensor, "B n"],
    k: Float[Tensor, "B"],
    lam: Float[Tensor, "B"],
    r: float,
    *,
    magnitudes: bool,
) -> Float[Tensor, "B"]:
    """Compute the isotonic solution at rank ceil(k) of each falling row, float64."""
    v = np.empty(s.shape[0])
    given = (t.detach().cpu().contiguous().numpy() for t in (s, k, lam))
    _pool_rows(*given, r, magnitudes, v)
    return torch.from_numpy(v).to(s.device)
