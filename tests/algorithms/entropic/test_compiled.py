"""Compiled loops do what tensor code does, in any type and for any number of rows."""

import numpy as np
import pytest
import torch

from algorithms.entropic import compiled, scaling
from algorithms.entropic.scaling import Problem, solve
from tests.problems.transport import cloud, random_cost, random_weights

# Relative error of sums in float64, of products with kernels in float32.
DOUBLE, SINGLE = 1e-13, 1e-6
REACH = 1e8


def test_exp_is_exp_over_its_whole_range() -> None:
    Z = torch.linspace(-689.0, 689.0, 10_001, dtype=torch.float64)[None]
    E = Z.clone()
    sums, products = compiled.exponentiate(E.numpy(), np.zeros(1), -690.0, 690.0, True)
    torch.testing.assert_close(E, Z.exp(), rtol=1e-15, atol=0)
    assert sums[0] == pytest.approx(float(Z.exp().sum()), rel=DOUBLE)
    assert products[0] == pytest.approx(float((Z * Z.exp()).sum()), rel=DOUBLE)


def test_exponents_out_of_range_are_cut_and_forbidden_ones_are_zero() -> None:
    Z = torch.tensor([[-torch.inf, -800.0, 0.0, 800.0]], dtype=torch.float64)
    compiled.exponentiate(Z.numpy(), np.zeros(1), -690.0, 690.0, False)
    assert Z[0, :3].tolist() == [0.0, 0.0, 1.0]
    assert float(Z[0, 3]) == pytest.approx(np.exp(690.0), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("n", [1, 3, 4, 9])
def test_a_kernel_its_sums_and_its_products(dtype: torch.dtype, n: int) -> None:
    C, f, g = random_cost(n, 7, 1), cloud(n, 1, 2)[:, 0], cloud(7, 1, 3)[:, 0]
    K = torch.empty(n, 7, dtype=dtype)
    s, t = compiled.filled(C, f, g, 2.0, -80.0, K)
    expected = (f[:, None] + g - 2 * C).exp()
    share = DOUBLE if dtype == torch.float64 else SINGLE
    torch.testing.assert_close(K.double(), expected, rtol=share, atol=0)
    torch.testing.assert_close(s, expected.sum(1), rtol=share, atol=0)
    torch.testing.assert_close(t, expected.sum(0), rtol=share, atol=0)
    wide = K.double()
    u, v = random_weights(n, 4), random_weights(7, 5)
    Kv = torch.from_numpy(compiled.multiply(K.numpy(), v.numpy()))
    torch.testing.assert_close(Kv, wide @ v, rtol=DOUBLE, atol=0)
    Ku = torch.from_numpy(compiled.multiply_transposed(K.numpy(), u.numpy()))
    torch.testing.assert_close(Ku, wide.T @ u, rtol=DOUBLE, atol=0)


@pytest.mark.parametrize("w", [1.0, 1.6])
@pytest.mark.parametrize("n", [1, 6, 8])
def test_sweeps_are_the_sweeps_of_tensor_code(
    w: float, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = Problem(random_cost(n, 5, 1), random_weights(n, 2), random_weights(5, 3), 0.2)
    zero = torch.zeros_like(p.a), torch.zeros_like(p.b)
    state = scaling.scaled(p, *zero, torch.empty_like(p.C))
    state = scaling.replace(state, relaxation=w)
    loops = scaling.sweeps(p, state, 4, 0.0)
    monkeypatch.setattr(compiled, "numba", None)
    tensors = state
    for _ in range(4):
        tensors = scaling.sweep(p, tensors)
    for name in ("u", "v", "s", "t"):
        torch.testing.assert_close(
            getattr(loops, name), getattr(tensors, name), rtol=DOUBLE, atol=0
        )
    assert loops.sweeps == 4


def test_sweeps_end_when_done_and_when_scalings_go_far() -> None:
    K = np.full((4, 4), 1 / 16)
    even = np.full(4, 1 / 4)
    done = np.stack([even, np.ones(4), even])
    assert compiled.scale_kernel(K, done.copy(), done.copy(), 1.0, 10, 1e-12, REACH) == 0
    far = np.stack([np.array([1e-12, 0.3, 0.3, 0.4]), np.ones(4), even])
    assert compiled.scale_kernel(K, far, done.copy(), 1.0, 10, 1e-15, REACH) == 1
    lost = np.stack([even, np.full(4, np.nan), even])
    assert compiled.scale_kernel(K, lost, done.copy(), 1.5, 10, 1e-15, REACH) == 1


@pytest.mark.parametrize("epsilon", [0.3, 0.01, 0.002])
def test_with_and_without_numba_the_answer_is_the_same(
    epsilon: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = Problem(random_cost(30, 25, 1), random_weights(30, 2), random_weights(25, 3), epsilon)
    loops = solve(p, tol=1e-10, max_iter=10_000)
    monkeypatch.setattr(compiled, "numba", None)
    tensors = solve(p, tol=1e-10, max_iter=10_000)
    assert loops.stop.status == tensors.stop.status == "converged"
    torch.testing.assert_close(loops.plan, tensors.plan, atol=1e-9, rtol=0)


def test_weights_too_small_for_float32_keep_a_wide_kernel() -> None:
    a = torch.tensor([1 - 1e-14, 1e-14], dtype=torch.float64)
    p = Problem(random_cost(2, 2, 1), a, a.flip(0), 0.1)
    assert scaling.start(p, 1e-6, 10).K.dtype == torch.float64
    solved = solve(p, tol=1e-12, max_iter=1000)
    assert solved.stop.status == "converged"
    assert float((solved.rows - a).abs().sum()) < 1e-12
