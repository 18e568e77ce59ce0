"""Unbalanced transport on few candidates, against the dense solver and what must hold of it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithms.entropic import unbalanced
from algorithms.marginals import KL
from algorithms.spatial.sparse_unbalanced import Candidates, solve

# Both solvers end at 1e-10 of the mass; entries are near 1e-3.
SAME = 1e-9


def problem(n, m, seed, offset=0.0):
    drawn = torch.Generator().manual_seed(seed)
    C = 3 * torch.rand(n, m, dtype=torch.float64, generator=drawn) + offset
    a = torch.rand(n, dtype=torch.float64, generator=drawn) + 0.1
    b = torch.rand(m, dtype=torch.float64, generator=drawn) + 0.1
    return C, a / a.sum(), b / b.sum()


def everyone(C):
    n, m = C.shape
    return Candidates(torch.arange(m).repeat(n, 1), C)


def solved(candidates, a, b, epsilon=0.05, rho=1.0, tol=1e-10, **more):
    return solve(candidates, a, b, epsilon=epsilon, rho=rho, tol=tol, max_iter=5000, **more)


@pytest.mark.parametrize("epsilon", [0.02, 0.05, 1.0])
@pytest.mark.parametrize("rho", [0.1, 1.0, 50.0])
def test_full_candidates_are_the_dense_problem(epsilon, rho):
    C, a, b = problem(30, 23, 0)
    ours = solved(everyone(C), a, b, epsilon, rho)
    dense = unbalanced.Problem(C, a, b, epsilon, KL(rho), KL(rho))
    theirs = unbalanced.solve(dense, tol=1e-10, max_iter=20_000)
    assert ours.stop.status == theirs.stop.status == "converged"
    assert (ours.mass - theirs.plan).abs().max() < SAME


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 1000))
def test_forbidden_pairs_are_infinite_costs(seed):
    C, a, b = problem(20, 15, seed)
    drawn = torch.Generator().manual_seed(seed)
    cols = torch.rand(20, 15, generator=drawn).argsort(1)[:, :6]
    ours = solved(Candidates(cols, C.gather(1, cols)), a, b)
    reached = torch.zeros(15, dtype=torch.bool).index_fill(0, cols.ravel().unique(), True)
    walls = torch.full_like(C, torch.inf).scatter(1, cols, C.gather(1, cols))[:, reached]
    dense = unbalanced.Problem(walls, a, b[reached], 0.05, KL(1.0), KL(1.0))
    theirs = unbalanced.solve(dense, tol=1e-10, max_iter=20_000)
    plan = torch.zeros_like(C).scatter(1, cols, ours.mass)
    assert (plan[:, reached] - theirs.plan).abs().max() < SAME
    assert (ours.columns - plan.sum(0)).abs().max() < SAME
    assert not bool(ours.columns[~reached].any())


def test_scaling_of_costs():
    C, a, b = problem(20, 15, 3)
    once = solved(everyone(C), a, b)
    twice = solved(everyone(4 * C), a, b, epsilon=0.2, rho=4.0)
    assert (once.mass - twice.mass).abs().max() < SAME


def test_restart_from_the_answer_stops_at_once():
    C, a, b = problem(20, 15, 4)
    once = solved(everyone(C), a, b)
    again = solved(everyone(C), a, b, tol=1e-8, f=once.f)
    assert again.stop.iterations == 0
    assert (once.mass - again.mass).abs().max() < SAME


@pytest.mark.parametrize("offset", [-30.0, 40.0])
@pytest.mark.parametrize("epsilon", [1e-3, 100.0])
def test_extreme_costs_stay_finite(offset, epsilon):
    C, a, b = problem(8, 6, 5, offset)
    found = solve(everyone(C), a, b, epsilon=epsilon, rho=1.0, tol=1e-8, max_iter=200)
    assert math.isfinite(found.stop.residual)
    assert bool(found.mass.isfinite().all())
    assert bool(found.f.isfinite().all())


def test_one_pair():
    cost, rho, epsilon = 0.3, 1.0, 0.05
    one = torch.ones(1, dtype=torch.float64)
    found = solved(Candidates(torch.zeros(1, 1, dtype=torch.long), cost * one[None]), one, one)
    # cost + 2 rho log p + epsilon log p = 0
    assert float(found.mass) == pytest.approx(math.exp(-cost / (2 * rho + epsilon)), abs=SAME)


def test_few_sweeps_are_told():
    C, a, b = problem(20, 15, 6)
    found = solve(everyone(C), a, b, epsilon=0.01, rho=50.0, tol=1e-14, max_iter=10)
    assert found.stop.status == "max_iter"
    assert found.stop.residual > 1e-14
