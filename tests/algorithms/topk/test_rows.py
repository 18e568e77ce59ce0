import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from algorithms.topk import rows as compiled_rows
from algorithms.topk.operator import soft_mask, soft_values, solve_mask, solve_values
from algorithms.topk.row_selection import two_ranks
from algorithms.topk.selection import around, around_one, kth_largest
from algorithms.topk.windows import LONG_ROW
from tests.problems.topk_rows import FOUR_THIRDS, exact_mask, exact_values, grid, rows

DOUBLE = 1e-14  # asked of float64 against fifty digits
SINGLE = 1e-7  # asked of float32 in compiled loops: rounding of a mask of at most 1
SINGLE_TENSOR = 5e-7  # asked of float32 in tensor code
SCALED = 4e-15  # of values, in units of the largest: a handful of roundings
SUM = 1e-15  # of k: masks of float64 sum to it up to the rounding of the sum
N = 18
exponents = pytest.mark.parametrize("p", [2.0, 1.5, FOUR_THIRDS])
paths = pytest.mark.parametrize("compiled", [True, False])


@pytest.mark.slow
@exponents
@paths
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_masks_to_fifty_digits(p, compiled, dtype):
    allowed = DOUBLE if dtype == torch.float64 else SINGLE if compiled else SINGLE_TENSOR
    drawn = torch.cat([x.to(dtype) for x in rows(N, 1).values()])
    for k, lam in list(grid(N))[(0 if compiled else 1) :: 3]:
        found = solve_mask(drawn, k, lam, p=p, compiled=compiled)
        for row, y in zip(drawn, found.y, strict=True):
            wrong = (y.double() - exact_mask(row, k, lam, p)).abs().max()
            assert float(wrong) <= allowed, (k, lam)
        if dtype == torch.float64:
            assert float((found.y.sum(1) - k).abs().max()) <= SUM * max(k, 4)


@pytest.mark.slow
@exponents
@paths
def test_values_to_fifty_digits(p, compiled):
    drawn = torch.cat([x for name, x in rows(N, 2).items() if name != "cauchy"])
    for k, lam in ((1, 0.05), (4, 0.7), (9, 6.0), (N - 1, 0.3)):
        found = solve_values(drawn, k, lam, p=p, compiled=compiled)
        for row, y in zip(drawn, found.y, strict=True):
            wrong = (y - exact_values(row, k, lam, p)).abs().max() / row.abs().max()
            assert float(wrong) <= SCALED, (k, lam)


@paths
def test_single_and_double_agree_on_large_offsets(compiled):
    x = rows(400, 3)["offset"].float()
    for p in (2.0, FOUR_THIRDS):
        single = solve_mask(x, 20, 1e-4, p=p, compiled=compiled).y
        double = solve_mask(x.double(), 20, 1e-4, p=p, compiled=compiled).y
        assert float((single.double() - double).abs().max()) <= SINGLE


@pytest.mark.parametrize("n", [7, 64, 200, 1000])
@pytest.mark.parametrize("magnitudes", [True, False])
def test_ranks_of_rows_in_any_order(n, magnitudes):
    orders = [x[0] for x in rows(n, 4).values()]
    pipe = torch.arange(n, dtype=torch.float64)
    orders += [torch.minimum(pipe, n - pipe), -pipe, _against_medians(n)]
    for x in orders:
        high = (x.abs() if magnitudes else x).sort(descending=True).values
        for k in {0.5, 1.0, 2.0, 5.5, n / 4 // 1, n / 2 // 1 + 0.25, n - 1.0, n - 0.5}:
            if not 0 < k < n:
                continue
            a, b = two_ranks(x.numpy(), k, magnitudes, np.empty(n))
            assert (a, b) == (high[int(np.ceil(k)) - 1], high[int(k)]), k


def _against_medians(n: int) -> torch.Tensor:
    """Order a row so that medians of three split off least: every round takes two entries."""
    half = n // 2
    odd = torch.arange(1, half + 1, dtype=torch.float64)
    killer = torch.stack([odd, half + odd], 1).flatten()
    return torch.cat([killer, torch.zeros(n - 2 * half, dtype=torch.float64)])


def test_selection_with_a_sample_is_exact_whatever_the_sample():
    n = 70_000
    for x in rows(n, 5).values():
        for row in (x[0], x[0].sort().values, x[0].reshape(-1, 4).T.flatten()):
            high = row.sort(descending=True).values
            for k in (1, n // 50, n // 2, n):
                assert kth_largest(row, k) == float(high[k - 1])
            for k in (n // 50, n // 2 + 0.5):
                a, b = (float(v[0]) for v in around(row[None], torch.tensor([float(k)])))
                assert around_one(row, float(k)) == (a, b)


@pytest.mark.slow
@pytest.mark.parametrize("p", [2.0, FOUR_THIRDS])
def test_regimes_agree(p):
    seen = set()
    for B, n, k, lam in (
        (3, 60, 5, 0.3),
        (3, 3000, 50, 0.1),
        (3, 3000, 1500, 3.0),
        (1, LONG_ROW, LONG_ROW // 10, 0.1),
        (1, LONG_ROW, 300, 0.1),
    ):
        generator = torch.Generator().manual_seed(n)
        x, g = torch.randn(2, B, n, generator=generator, dtype=torch.float64)
        leaf = x.clone().requires_grad_()
        y = soft_mask(leaf, k, lam, p=p)
        (dx,) = torch.autograd.grad((y * g).sum(), leaf)
        y = y.detach()
        found = solve_mask(x, k, lam, p=p, compiled=False)
        seen.add(found.regime)
        assert float((found.y - y).abs().max()) < DOUBLE
        for name in ("support", "saturated", "interior"):
            assert torch.equal(getattr(found, name), getattr(solve_mask(x, k, lam, p=p), name))
        assert float((found.y.sum(1) - k).abs().max()) < 1e-10  # a sum of up to 1e4 masks
        pulled = _pulled(x, lam, found, p, g)
        assert float((pulled - dx).abs().max()) < 1e-9 * float(dx.abs().max())
    assert seen == {"narrow", "wide", "selected"}


def _pulled(x, lam, found, p, g):
    from algorithms.topk.derivatives import pull_mask
    from algorithms.topk.response import response

    strength = torch.tensor(lam, dtype=torch.float64)
    return pull_mask(x, strength, found.solved, response(p, "power"), g)[0]


@pytest.mark.parametrize("p", [2.0, FOUR_THIRDS, 1.7])
def test_compiled_values_have_the_gradients_of_tensor_code(p):
    from algorithms.topk.derivatives import pull_values

    x = torch.cat([*rows(40, 6).values(), torch.zeros(1, 40, dtype=torch.float64)])
    g = torch.randn(x.shape, generator=torch.Generator().manual_seed(6), dtype=x.dtype)
    k = torch.tensor([3.0, 0, 40, 39, 20, 1, 7, 5], dtype=torch.float64)
    lam = torch.linspace(0.1, 2, 8, dtype=torch.float64)
    leaves = x.clone().requires_grad_(), lam.clone().requires_grad_()
    dx, dlam = torch.autograd.grad((soft_values(leaves[0], k, leaves[1], p=p) * g).sum(), leaves)
    found = solve_values(x, k, lam, p=p, compiled=False)
    assert found.regime == "wide"
    other = pull_values(x, k, found.solved, g, p=p, debias=True)
    assert float((dx - other[0]).abs().max()) < 1e-11 * float(dx.abs().max())
    assert float((dlam - other[1]).abs().max()) < 1e-11 * float(1 + dlam.abs().max())


def test_threads_share_rows_without_changing_them():
    x = torch.randn(3000, 64, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    k, lam = (torch.full((3000,), v, dtype=torch.float64) for v in (4.0, 0.5))
    before = torch.get_num_threads()
    answers = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            y, found, counts = compiled_rows.mask_rows(x, k, lam, 1.0)
            dx, more = compiled_rows.pull_mask_rows(x, x, lam, 1.0, found)
            v, kept, kinds = compiled_rows.value_rows(x, k, lam, 1.0)
            dv, along = compiled_rows.pull_value_rows(x, k, x, 1.0, kept)
            answers.append((y, found, counts, dx, more, v, kept, kinds, dv, along))
    finally:
        torch.set_num_threads(before)
    for one, two in zip(*answers, strict=True):
        assert torch.equal(one, two)


def test_until_the_loops_are_compiled_tensor_code_answers():
    x = torch.randn(2, 30, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    after = solve_mask(x, 4, 0.5)
    thread = compiled_rows.compile_ahead()
    thread.join()
    again = solve_mask(x, 4, 0.5)
    assert (after.regime, again.regime) == ("compiled", "compiled")
    assert not compiled_rows.runs_on(x.half())


@pytest.mark.slow
def test_without_numba_tensor_code_answers():
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "import torch\n"
        "from algorithms.topk.operator import solve_mask, solve_values\n"
        "from algorithms.topk.rows import compile_rows\n"
        "x = torch.tensor([[1.0, 0.8, 0.5, 0.1, -0.4]], dtype=torch.float64)\n"
        "mask, kept = solve_mask(x, 2, 0.5), solve_values(x, 2, 0.5)\n"
        "pooled = solve_mask(x, 2, 0.5, method='pav')\n"
        "assert torch.allclose(mask.y, pooled.y)\n"
        "print(mask.regime, kept.regime, compile_rows(), mask.y.tolist())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr
    regime, other, seconds, y = done.stdout.split(" ", 3)
    assert (regime, other, float(seconds)) == ("wide", "wide", 0.0)
    assert torch.tensor(eval(y))[0].tolist() == pytest.approx([1, 0.8, 0.2, 0, 0])
