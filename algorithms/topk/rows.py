"""Compiled rows behind tensors: several threads walk over them, and worker starts compile them.

Without numba, or on another device, the tensor regimes answer instead; see docs/decisions/006.
"""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from algorithms.entropic.compiled import runs_on as loops_run_on
from algorithms.topk.row_masks import masks, masks_back
from algorithms.topk.row_values import values, values_back

log = logging.getLogger(__name__)
# Entries for which a second thread pays for being told.
A_THREAD = 100_000
TYPES = (torch.float32, torch.float64)
WORTH_TELLING = 3.0  # seconds: they were compiled, not loaded from disk
# Set unless loops are being compiled: until then tensor code answers.
_at_rest = threading.Event()
_at_rest.set()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Keep threads at hand; made in the process that uses them, so that a fork has its own."""
    return ThreadPoolExecutor(threads, thread_name_prefix="rows")


def _shared(rows: int, entries: int, walk: Callable[[slice], None]) -> None:
    """Walk over all rows, with as many threads as torch may use and the work is worth."""
    threads = min(torch.get_num_threads(), rows, max(1, entries // A_THREAD))
    if threads < 2:
        walk(slice(0, rows))
        return
    each = -(-rows // threads)
    parts = [slice(i, min(i + each, rows)) for i in range(0, rows, each)]
    for done in [_pool(threads).submit(walk, part) for part in parts]:
        done.result()


def mask_rows(
    x: Float[Tensor, "B n"],
    k: Float[Tensor, "B"],
    lam: Float[Tensor, "B"],
    r: float,
    *,
    out: Float[Tensor, "B n"] | None = None,
) -> tuple[Float[Tensor, "B n"], Float[Tensor, "3 B"], Int[Tensor, "3 B"]]:
    """Compute masks; see `row_masks.masks` for the meaning of what comes with them."""
    return _computed(masks, 3, (x, k, lam), r, out)


def pull_mask_rows(
    x: Float[Tensor, "B n"],
    g: Float[Tensor, "B n"],
    lam: Float[Tensor, "B"],
    r: float,
    found: Float[Tensor, "_ B"],
    *,
    out: Float[Tensor, "B n"] | None = None,
) -> tuple[Float[Tensor, "B n"], Float[Tensor, "2 B"]]:
    """Pull cotangents of masks back to x, and to k and lam of each row."""
    more = torch.empty(2, x.shape[0], dtype=torch.float64)
    return _pulled(masks_back, (x, g, lam), r, found, more, out), more


def value_rows(
    x: Float[Tensor, "B n"],
    k: Float[Tensor, "B"],
    lam: Float[Tensor, "B"],
    r: float,
    *,
    out: Float[Tensor, "B n"] | None = None,
) -> tuple[Float[Tensor, "B n"], Float[Tensor, "6 B"], Int[Tensor, "3 B"]]:
    """Compute de-biased values; see `row_values.values` for what comes with them."""
    return _computed(values, 6, (x, k, lam), r, out)


def pull_value_rows(
    x: Float[Tensor, "B n"],
    k: Float[Tensor, "B"],
    g: Float[Tensor, "B n"],
    r: float,
    found: Float[Tensor, "_ B"],
    *,
    out: Float[Tensor, "B n"] | None = None,
) -> tuple[Float[Tensor, "B n"], Float[Tensor, "B"]]:
    """Pull cotangents of de-biased values back to x, and to lam of each row."""
    more = torch.empty(x.shape[0], dtype=torch.float64)
    return _pulled(values_back, (x, k, g), r, found, more, out), more


def _computed(
    loop: Callable[..., None],
    kinds: int,
    given: tuple[Tensor, Tensor, Tensor],
    r: float,
    out: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Let a loop fill rows, with so many numbers of each row found on the way, and three counts."""
    B, n = given[0].shape
    y = torch.empty_like(given[0], memory_format=torch.contiguous_format) if out is None else out
    found = torch.empty(kinds, B, dtype=torch.float64)
    counts = torch.empty(3, B, dtype=torch.int64)
    asked = [v.contiguous().numpy() for v in given]
    rows, numbers, counted = (v.numpy() for v in (y, found, counts))

    def walk(part: slice) -> None:
        loop(*(v[part] for v in asked), r, rows[part], numbers[:, part], counted[:, part])

    _shared(B, B * n, walk)
    return y, found, counts


def _pulled(
    loop: Callable[..., None],
    given: tuple[Tensor, Tensor, Tensor],
    r: float,
    found: Tensor,
    more: Tensor,
    out: Tensor | None,
) -> Tensor:
    """Let a loop pull cotangents back to rows, and into `more`, whose last axis are rows."""
    B, n = given[0].shape
    dx = torch.empty_like(given[0], memory_format=torch.contiguous_format) if out is None else out
    asked = [v.contiguous().numpy() for v in given]
    seen, rows, ends = found.numpy(), dx.numpy(), more.numpy()

    def walk(part: slice) -> None:
        loop(*(v[part] for v in asked), r, seen[:, part], rows[part], ends[..., part])

    _shared(B, B * n, walk)
    return dx


def runs_on(like: Tensor) -> bool:
    """Tell whether compiled rows serve this tensor, now."""
    return like.dtype in TYPES and loops_run_on(like) and _at_rest.is_set()


def compile_rows() -> float:
    """Compile every loop for both types, or load it from disk; tell how long that took."""
    began = time.perf_counter()
    for dtype in TYPES:
        x = torch.tensor([[3.0, 2.0, 1.5, 0.0]], dtype=dtype)
        k, lam = torch.full((1,), 2.0, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
        if not loops_run_on(x):
            return 0.0
        pull_mask_rows(x, x, lam, 1.0, mask_rows(x, k, lam, 1.0)[1])
        pull_value_rows(x, k, x, 1.0, value_rows(x, k, lam, 1.0)[1])
    seconds = time.perf_counter() - began
    level = logging.WARNING if seconds > WORTH_TELLING else logging.INFO
    log.log(level, "row loops of the relaxed top-k are ready after %.1f s", seconds)
    return seconds


def compile_ahead() -> threading.Thread:
    """Compile in a thread of its own, so that no question waits for it: some seconds once."""
    _at_rest.clear()

    def work() -> None:
        try:
            compile_rows()
        finally:
            _at_rest.set()

    thread = threading.Thread(target=work, name="compile-rows", daemon=True)
    thread.start()
    return thread
