"""Newton's method on the semi-dual: its linear system, its answer, its ways to give up."""

import numpy as np
import pytest

from algorithms.entropic.semidual import eliminate, solve_one

# A Laplacian is eliminated to the last digits but few.
EXACT = 1e-12
TOL, STEPS, REACH = 1e-12, 60, 1e40


def scalings(weights: np.ndarray, sums: np.ndarray) -> np.ndarray:
    return np.stack([weights, np.ones_like(weights), sums])


def problem(n: int, m: int, sharp: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    draw = np.random.default_rng(n + m)
    a, b = draw.uniform(0.5, 1.5, n), draw.uniform(0.5, 1.5, m)
    a, b = a / a.sum(), b / b.sum()
    K = a[:, None] * b * np.exp(-sharp * draw.uniform(size=(n, m)))
    return K, scalings(a, K.sum(1)), scalings(b, K.sum(0))


@pytest.mark.parametrize("n", [2, 3, 7])
def test_a_laplacian_is_eliminated(n: int) -> None:
    draw = np.random.default_rng(n)
    W = draw.uniform(size=(n, n))
    W += W.T
    np.fill_diagonal(W, 0.0)
    r = draw.normal(size=n)
    r -= r.mean()
    x = eliminate(W.copy(), r.copy())
    assert np.abs(np.diag(W.sum(1)) @ x - W @ x - r).max() < EXACT
    assert x[0] == 0


def test_couplings_that_nearly_vanish_keep_their_digits() -> None:
    weak = 1e-30
    W = np.array([[0.0, 1.0, weak], [1.0, 0.0, 0.0], [weak, 0.0, 0.0]])
    x = eliminate(W.copy(), np.array([-weak, 0.0, weak]))
    assert x == pytest.approx([0.0, 0.0, 1.0], rel=EXACT)


@pytest.mark.parametrize(("n", "m"), [(2, 9), (9, 2), (6, 6)])
@pytest.mark.parametrize("sharp", [1.0, 10.0, 30.0])
def test_both_marginals_are_met(n: int, m: int, sharp: float) -> None:
    K, rows, columns = problem(n, m, sharp)
    made = solve_one(K, rows, columns, TOL, STEPS, REACH)
    assert 0 < made <= STEPS
    P = rows[1][:, None] * K * columns[1]
    assert np.abs(P.sum(1) - rows[0]).sum() + np.abs(P.sum(0) - columns[0]).sum() < 2 * TOL


def test_no_step_is_made_that_was_not_allowed() -> None:
    K, rows, columns = problem(5, 4, 30.0)
    assert solve_one(K, rows, columns, TOL, 0, REACH) == -1
    assert solve_one(*problem(5, 4, 30.0), TOL, STEPS, 1.5) == -1


def test_parts_that_do_not_touch_are_given_up() -> None:
    K, rows, columns = np.eye(2) / 2, np.array([0.3, 0.7]), np.array([0.4, 0.6])
    made = solve_one(K, scalings(rows, K.sum(1)), scalings(columns, K.sum(0)), TOL, STEPS, REACH)
    assert made == -1
