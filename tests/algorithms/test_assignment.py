"""Assignment from a matching: as good as scipy's, whatever the start; compiled loops behind it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from algorithms.linear import assignment
from algorithms.linear.assignment import best_assignment

ROUNDING = 1e-12  # sums of a few hundred float64 numbers of size one
KINDS = ("plane", "uniform", "integers", "product", "equal")
NEARLY = [("plane", 1e-4), ("plane", 1e-3), ("uniform", 1e-4), ("uniform", 1e-3)]


def costs(kind, n, seed):
    draw = np.random.default_rng(seed)
    if kind == "plane":
        x, y = draw.random((n, 2)), draw.random((n, 2))
        return ((x[:, None] - y) ** 2).sum(-1)
    if kind == "uniform":
        return draw.random((n, n)) - 0.5
    if kind == "integers":
        return draw.integers(0, 4, (n, n)).astype(float)
    return np.outer(np.arange(n), np.arange(n)) / n**2 if kind == "product" else np.ones((n, n))


def value(C, choice):
    assert sorted(choice) == list(range(len(C)))
    return C[np.arange(len(C)), choice].sum()


@pytest.mark.parametrize("kind", KINDS)
@given(n=st.integers(1, 40), seed=st.integers(0, 10_000), share=st.floats(0, 1))
@settings(max_examples=12, deadline=None)
def test_law_as_good_as_scipy_from_any_start(kind, n, seed, share):
    C = costs(kind, n, seed)
    best = linear_sum_assignment(C)[1]
    C = C[:, best]  # the diagonal is optimal, then some of it is not
    moved = np.flatnonzero(np.random.default_rng(seed).random(n) < share)
    C[:, moved] = C[:, np.roll(moved, 1)]
    least = value(C, linear_sum_assignment(C)[1])
    assert value(C, best_assignment(C)) == pytest.approx(least, abs=ROUNDING * n)


@pytest.mark.skipif(assignment.numba is None, reason="numba is not installed")
@pytest.mark.parametrize(("kind", "noise"), [*((kind, 0.0) for kind in KINDS), *NEARLY])
def test_the_compiled_loops_need_no_help_near_the_optimum(kind, noise):
    C = costs(kind, 200, 3)
    C = C[:, linear_sum_assignment(C)[1]] + noise * np.random.default_rng(1).random((200, 200))
    found = assignment._from_diagonal(C)
    least = value(C, linear_sum_assignment(C)[1])
    assert value(C, found) == pytest.approx(least, abs=200 * ROUNDING)


@pytest.mark.skipif(assignment.numba is None, reason="numba is not installed")
def test_a_start_that_is_of_no_use_is_given_up():
    assert not len(assignment._from_diagonal(costs("uniform", 200, 0)))
