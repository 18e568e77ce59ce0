"""Streamed transport is the dense one, whatever the marginals and the cost."""

import math
import os
import subprocess
import sys

import pytest
import torch

from algorithms.entropic import compiled, streamed, unbalanced
from algorithms.entropic.streamed import apply_streamed, solve_streamed, top_streamed
from algorithms.geometry import CostMatrix, Geometry, PointClouds
from algorithms.iterate import Watch
from algorithms.marginals import KL, TV, Balanced, Berg, Free, Marginal, Range
from tests.problems.transport import cloud, random_weights

# Two solvers stopped at TIGHT agree to the error times the condition of the problem.
TIGHT, AGREES = 1e-12, 1e-9
# Sums of n float64 terms of size one.
ROUNDING = 1e-13
EPSILON = 0.3
# Sweeps crawl between a range and a balanced side.
RANGED = (Range(0.5, 1.5), Balanced())
MARGINALS = [
    (Balanced(), Balanced()),
    (KL(1.0), KL(0.5)),
    (Balanced(), KL(0.7)),
    (TV(1.0), TV(2.0)),
    RANGED,
    (Balanced(), Free()),
    (Berg(1.0), KL(1.0)),
]


def problem(n: int = 40, m: int = 30, d: int = 3) -> tuple[PointClouds, torch.Tensor, torch.Tensor]:
    clouds = PointClouds(cloud(n, d, 1), 0.8 * cloud(m, d, 2) + 0.5)
    return clouds, random_weights(n, 3), random_weights(m, 4)


def dense(
    geometry: Geometry, a: torch.Tensor, b: torch.Tensor, sides: tuple[Marginal, Marginal]
) -> unbalanced.Solved:
    p = unbalanced.Problem(geometry.matrix(), a, b, EPSILON, *sides)
    return unbalanced.solve(p, tol=TIGHT, max_iter=20_000)


@pytest.mark.parametrize(
    "sides", [pytest.param(s, marks=pytest.mark.slow) if s == RANGED else s for s in MARGINALS]
)
def test_streamed_is_dense(sides: tuple[Marginal, Marginal]) -> None:
    geometry, a, b = problem()
    whole = dense(geometry, a, b, sides)
    found = solve_streamed(
        geometry, a, b, EPSILON, marginal_a=sides[0], marginal_b=sides[1], tol=TIGHT
    )
    assert found.stop.status == "converged"
    torch.testing.assert_close(found.rows, whole.rows, atol=AGREES, rtol=0)
    torch.testing.assert_close(found.columns, whole.columns, atol=AGREES, rtol=0)
    cost = (whole.plan * geometry.matrix()).sum()
    assert float(found.transport_cost) == pytest.approx(float(cost), abs=AGREES)
    assert float(found.mass) == pytest.approx(float(whole.plan.sum()), abs=AGREES)


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean", "cosine", "lp", "wfr", "matrix"])
def test_every_cost_streams(cost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(streamed.BLOCK, "cpu", 64)  # blocks of two rows
    clouds, a, b = problem()
    geometry: Geometry = CostMatrix(clouds.matrix())
    if cost != "matrix":
        geometry = PointClouds(clouds.x, clouds.y, cost, p=1.5, delta=1.0)  # type: ignore[arg-type]
        geometry = (
            geometry
            if cost != "wfr"
            else PointClouds(0.5 * clouds.x, 0.5 * clouds.y, "wfr", delta=0.8)
        )
    sides = (KL(1.0), KL(2.0))
    whole = dense(geometry, a, b, sides)
    found = solve_streamed(
        geometry, a, b, EPSILON, marginal_a=sides[0], marginal_b=sides[1], tol=TIGHT
    )
    torch.testing.assert_close(found.rows, whole.rows, atol=AGREES, rtol=0)
    C = geometry.matrix()
    cost_of = torch.where(whole.plan > 0, whole.plan * C, 0.0).sum()
    assert float(found.transport_cost) == pytest.approx(float(cost_of), abs=AGREES)
    V = cloud(30, 2, 5)
    again = apply_streamed(geometry, a, b, found.f, found.g, EPSILON, V)
    torch.testing.assert_close(again, whole.plan @ V, atol=AGREES, rtol=0)


def test_the_largest_entries_of_each_row() -> None:
    geometry, a, b = problem()
    whole = dense(geometry, a, b, (Balanced(), Balanced()))
    rows, cols, mass = top_streamed(geometry, a, b, whole.f, whole.g, EPSILON, 3)
    largest = whole.plan.topk(3, dim=1)
    torch.testing.assert_close(mass.view(-1, 3), largest.values, atol=ROUNDING, rtol=0)
    torch.testing.assert_close(cols.view(-1, 3), largest.indices)
    assert rows.tolist() == [i for i in range(40) for _ in range(3)]
    every = top_streamed(geometry, a, b, whole.f, whole.g, EPSILON, 1000)
    assert len(every[2]) == 40 * 30


@pytest.mark.parametrize("sides", [(Balanced(), Balanced()), (KL(1.0), KL(1.0))])
def test_a_sample_starts_it_near(sides: tuple[Marginal, Marginal]) -> None:
    geometry, a, b = problem(2100, 2000)
    asked = {"marginal_a": sides[0], "marginal_b": sides[1], "tol": 1e-4}
    begun: dict[str, float] = {}

    def first(name: str) -> Watch:
        return lambda i, error: begun.setdefault(name, error) > 0 if i == 0 else True

    sampled = solve_streamed(geometry, a, b, EPSILON, **asked, watch=first("sampled"))
    zero = torch.zeros_like(a), torch.zeros_like(b)
    plain = solve_streamed(
        geometry, a, b, EPSILON, f0=zero[0], g0=zero[1], **asked, watch=first("plain")
    )
    assert begun["sampled"] < begun["plain"] / 2
    assert float(sampled.transport_cost) == pytest.approx(float(plain.transport_cost), abs=1e-3)


def test_a_restart_from_the_answer_stops_at_once() -> None:
    geometry, a, b = problem()
    first = solve_streamed(geometry, a, b, EPSILON, tol=1e-9)
    again = solve_streamed(geometry, a, b, EPSILON, f0=first.f, g0=first.g, tol=1e-8)
    assert again.stop.status == "converged"
    assert again.stop.iterations == 0


@pytest.mark.parametrize("epsilon", [1e-3, 1e-2, 1e3])
def test_tiny_and_huge_epsilon_end_with_a_true_status(epsilon: float) -> None:
    geometry, a, b = problem()
    found = solve_streamed(geometry, a, b, epsilon, tol=1e-6, max_iter=300)
    C = geometry.matrix()
    P = a[:, None] * b * ((found.f[:, None] + found.g - C) / epsilon).exp()
    error = float((P.sum(1) - a).abs().sum() + (P.sum(0) - b).abs().sum())
    assert found.stop.residual == pytest.approx(error, abs=AGREES)
    assert (found.stop.status == "converged") == (error <= 1e-6)
    assert math.isfinite(float(found.transport_cost))


def test_far_outliers_do_not_lose_sums() -> None:
    geometry, a, b = problem()
    x = geometry.x.clone()
    x[0] = 60.0  # at epsilon 0.3 its whole row is below the range of float64
    found = solve_streamed(PointClouds(x, geometry.y), a, b, EPSILON, tol=1e-6)
    assert found.stop.status == "converged"
    assert float((found.rows - a).abs().sum()) < 1e-6


def test_tensor_code_does_what_compiled_loops_do(monkeypatch: pytest.MonkeyPatch) -> None:
    geometry, a, b = problem()
    loops = solve_streamed(geometry, a, b, EPSILON, tol=TIGHT)
    monkeypatch.setattr(compiled, "numba", None)
    tensors = solve_streamed(geometry, a, b, EPSILON, tol=TIGHT)
    torch.testing.assert_close(loops.f, tensors.f, atol=AGREES, rtol=0)
    assert float(loops.transport_cost) == pytest.approx(float(tensors.transport_cost), abs=AGREES)


def test_it_is_interrupted_between_sweeps() -> None:
    geometry, a, b = problem()
    found = solve_streamed(geometry, a, b, EPSILON, tol=TIGHT, watch=lambda i, _: i < 3)
    assert found.stop.status == "interrupted"
    assert found.stop.iterations == 3


@pytest.mark.slow
def test_no_matrix_is_stored() -> None:
    """In a process of its own: 12,000 points would make a matrix of 1.15 GB."""
    asked = (
        "import resource, torch; from algorithms.geometry import PointClouds;"
        "from algorithms.entropic.streamed import solve_streamed;"
        "torch.set_num_threads(1); z = torch.rand(2, 12_000, 3, dtype=torch.float64);"
        "w = torch.full((12_000,), 1 / 12_000, dtype=torch.float64);"
        "solve_streamed(PointClouds(*z), w, w, 0.1, max_iter=2);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run(
        [sys.executable, "-c", asked], capture_output=True, text=True, env=os.environ, check=True
    )
    assert int(done.stdout) * 1024 < 1.1e9  # 0.7 of it are libraries and compiled loops
