"""The k-th largest of one row in compiled loops: by insertion, by a heap, or by partition."""

from typing import Any, no_type_check

import numpy as np
from numpy.typing import NDArray

from algorithms.entropic.compiled import compiled

Array = NDArray[Any]
# So many of the largest entries are kept sorted; more in a heap, up to these bounds; else all of
# the row is partitioned.
SORTED, HEAP, HEAP_SHARE = 16, 64, 8
# Rounds of partition, in doublings of the row, before the rest is sorted instead.
PATIENCE = 3


@compiled()
@no_type_check
def two_ranks(row: Array, k: float, magnitudes: bool, scratch: Array) -> tuple[float, float]:
    """Find the entries of ranks ceil(k) and floor(k) + 1, of magnitudes if asked; 0 < k < n.

    `scratch` holds as many entries as the row.
    """
    n, lower = row.shape[0], int(np.floor(k)) + 1
    if lower <= SORTED:
        b, a = _by_insertion(row, lower, magnitudes, scratch)
    elif lower <= max(HEAP, n // HEAP_SHARE):
        b, a = _by_heap(row, lower, magnitudes, scratch)
    else:
        b, a = _by_partition(row, lower, magnitudes, scratch)
    return (a, b) if np.ceil(k) < lower else (b, b)


@compiled()
@no_type_check
def _by_insertion(row: Array, m: int, magnitudes: bool, best: Array) -> tuple[float, float]:
    """Keep the m largest in falling order; return the m-th and the one before (itself if none)."""
    for i in range(m):
        best[i] = -np.inf
    least = -np.inf
    for j in range(row.shape[0]):
        v = abs(row[j]) if magnitudes else row[j]
        if v > least:
            i = m - 1
            while i > 0 and best[i - 1] < v:
                best[i] = best[i - 1]
                i -= 1
            best[i] = v
            least = best[m - 1]
    return best[m - 1], best[max(m - 2, 0)]


@compiled()
@no_type_check
def _sink(heap: Array, m: int, v: float) -> None:
    """Replace the least entry of a heap, and restore its order."""
    i, child = 0, 1
    while child < m:
        if child + 1 < m and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= v:
            break
        heap[i] = heap[child]
        i, child = child, 2 * child + 1
    heap[i] = v


@compiled()
@no_type_check
def _by_heap(row: Array, m: int, magnitudes: bool, heap: Array) -> tuple[float, float]:
    """Keep the m largest with the least of them on top."""
    for i in range(m):
        heap[i] = -np.inf
    for j in range(row.shape[0]):
        v = abs(row[j]) if magnitudes else row[j]
        if v > heap[0]:
            _sink(heap, m, v)
    before = heap[1] if m > 1 else heap[0]
    if m > 2 and heap[2] < before:
        before = heap[2]
    return heap[0], before


@compiled()
@no_type_check
def _by_partition(row: Array, m: int, magnitudes: bool, copy: Array) -> tuple[float, float]:
    """Partition a copy around medians of three until the m-th largest is in its place."""
    n = row.shape[0]
    for j in range(n):
        copy[j] = abs(row[j]) if magnitudes else row[j]
    at = n - m
    low, high = 0, n - 1
    rounds = PATIENCE * int(np.log2(n) + 1)
    while low < high:
        if rounds == 0:  # an order made to defeat medians of three
            copy[low : high + 1].sort()
            break
        rounds -= 1
        mid = (low + high) // 2
        x, y, z = copy[low], copy[mid], copy[high]
        pivot = max(min(x, y), min(max(x, y), z))
        i, j = low, high
        while i <= j:
            while copy[i] < pivot:
                i += 1
            while copy[j] > pivot:
                j -= 1
            if i <= j:
                copy[i], copy[j] = copy[j], copy[i]
                i += 1
                j -= 1
        if at <= j:
            high = j
        elif at >= i:
            low = i
        else:
            break
    b, before = copy[at], np.inf
    for j in range(at + 1, n):
        before = min(before, copy[j])
    return b, before if at + 1 < n else b
