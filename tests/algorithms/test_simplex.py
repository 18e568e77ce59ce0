"""The wrapper of the network simplex: optimal, certified, and loud when it is not."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment, linprog

from algorithms.errors import IllPosed
from algorithms.simplex import NotOptimal, network_simplex

# Sums of at most a few hundred float64 terms of order one.
ROUNDING = 1e-12
# HiGHS stops at primal and dual feasibility 1e-7; random problems land far inside.
LINPROG = 1e-7


def problem(seed, n, m, *, zeros=0):
    rng = np.random.default_rng(seed)
    a, b = rng.random(n) + 0.1, rng.random(m) + 0.1
    a[:zeros] = 0
    b[m - zeros :] = 0
    return a / a.sum(), b / b.sum(), rng.normal(size=(n, m))


def check_optimal(vertex, a, b, C):
    n, m = C.shape
    P = np.zeros((n, m))
    P[vertex.rows, vertex.cols] = vertex.mass
    f, g = vertex.f.numpy(), vertex.g.numpy()
    assert np.abs(P.sum(1) - a).max() < ROUNDING
    assert np.abs(P.sum(0) - b).max() < ROUNDING
    assert (vertex.mass > 0).all()
    assert len(vertex.mass) <= n + m - 1
    assert (C - f[:, None] - g).min() > -ROUNDING
    assert abs((P * C).sum() - (a @ f + b @ g)) < ROUNDING
    assert abs((P * C).sum() - vertex.transport_cost.item()) < ROUNDING


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(1, 12))
def test_primal_and_dual_prove_each_other(seed, n, m):
    a, b, C = problem(seed, n, m)
    check_optimal(network_simplex(a, b, C), a, b, C)


def test_agrees_with_linear_programming():
    a, b, C = problem(0, 5, 6)
    sums = np.vstack([np.kron(np.eye(5), np.ones(6)), np.kron(np.ones(5), np.eye(6))])
    lp = linprog(C.ravel(), A_eq=sums, b_eq=np.concatenate([a, b]))
    assert abs(network_simplex(a, b, C).transport_cost.item() - lp.fun) < LINPROG


def test_uniform_square_problem_is_an_assignment():
    _, _, C = problem(1, 40, 40)
    a = np.full(40, 1 / 40)
    rows, cols = linear_sum_assignment(C)
    vertex = network_simplex(a, a, C)
    assert abs(vertex.transport_cost.item() - C[rows, cols].mean()) < ROUNDING


def test_absent_points_get_feasible_potentials():
    a, b, C = problem(2, 9, 8, zeros=2)
    vertex = network_simplex(a, b, C)
    check_optimal(vertex, a, b, C)
    assert not set(vertex.rows.tolist()) & {0, 1}
    check_optimal(network_simplex(a, b, C, warm=(vertex.f, vertex.g)), a, b, C)


def test_warm_start_gives_the_same_answer():
    a, b, C = problem(3, 60, 50)
    near = C + 0.01 * np.random.default_rng(4).normal(size=C.shape)
    cold = network_simplex(a, b, near)
    first = network_simplex(a, b, C)
    warm = network_simplex(a, b, near, warm=(first.f, first.g))
    check_optimal(warm, a, b, near)
    assert torch.equal(warm.rows, cold.rows)
    assert torch.equal(warm.cols, cold.cols)


def test_masses_keep_their_total():
    a, b, C = problem(5, 6, 7)
    vertex = network_simplex(3e-9 * a, 3e-9 * b, C)
    one = network_simplex(a, b, C)
    assert abs(vertex.mass.sum().item() / 3e-9 - 1) < ROUNDING
    assert abs(vertex.transport_cost.item() / 3e-9 - one.transport_cost.item()) < ROUNDING


def test_tensors_and_arrays_alike():
    a, b, C = problem(6, 6, 7)
    arrays = network_simplex(a, b, C)
    tensors = network_simplex(torch.tensor(a), torch.tensor(b), torch.tensor(C, requires_grad=True))
    assert torch.equal(arrays.mass, tensors.mass)
    assert not tensors.f.requires_grad


def test_too_few_pivots_are_never_silent():
    a, b, C = problem(7, 30, 30)
    with pytest.raises(NotOptimal, match="3 pivots") as caught:
        network_simplex(a, b, C, max_iter=3)
    assert caught.value.max_iter == 3


def test_threads_do_not_disturb_each_other():
    problems = [problem(seed, 40, 40) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda p: network_simplex(*p), problems))
    for p, vertex in zip(problems, together, strict=True):
        assert torch.equal(network_simplex(*p).mass, vertex.mass)


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("a", lambda a, b, C: (-a, b, C)),
        ("a", lambda a, b, C: (0 * a, b, C)),
        ("b", lambda a, b, C: (a, np.nan * b, C)),
        ("b", lambda a, b, C: (a, 2 * b, C)),
        ("C", lambda a, b, C: (a, b, C.T)),
        ("C", lambda a, b, C: (a, b, C / 0.0)),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
def test_questions_without_an_answer(field, change):
    with pytest.raises(IllPosed) as caught:
        network_simplex(*change(*problem(8, 4, 5)))
    assert caught.value.field == field


@pytest.mark.parametrize(("n", "m"), [(254, 250), (293, 268), (441, 467)])
def test_equal_weights_never_look_infeasible(n, m):
    # uniform masses 1/n against 1/m leave rounding that the compiled solver took for infeasibility
    rng = np.random.default_rng(n)
    a, b = np.full(n, 1 / n), np.full(m, 1 / m)
    for _ in range(5):
        C = ((rng.random((n, 1, 2)) - rng.random((1, m, 2))) ** 2).sum(2) + rng.random((n, m))
        vertex = network_simplex(a, b, C)
        off = np.abs(np.bincount(vertex.rows, vertex.mass, n) - a).sum()
        assert off < ROUNDING


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(-40, 40), st.floats(-1e3, 1e3))
def test_shifting_and_scaling_costs_keeps_the_plan(seed, power, shift):
    # very negative costs once ended as infeasible, tiny ones lost all digits
    a, b, C = problem(seed, 8, 9)
    plain = network_simplex(a, b, C)
    unit = 2.0**power
    scaled = network_simplex(a, b, unit * C)
    assert torch.equal(plain.mass, scaled.mass)
    assert torch.equal(plain.f * unit, scaled.f)
    shifted = network_simplex(a, b, C + shift)
    expected = plain.transport_cost.item() + shift
    assert abs(shifted.transport_cost.item() - expected) < ROUNDING * max(1, abs(shift))


def test_nearly_constant_costs_keep_their_digits():
    # the certificate once compared the rounding of a large constant with the spread around it
    a, b, C = problem(9, 20, 20)
    vertex = network_simplex(a, b, -6.0 + 1e-15 * C)
    assert abs(vertex.transport_cost.item() + 6) < ROUNDING
    assert abs(network_simplex(a, b, 0 * C).transport_cost.item()) == 0


def test_permuted_equal_masses_give_a_permutation():
    rng = np.random.default_rng(10)
    x, order = rng.random((80, 2)), rng.permutation(80)
    a = np.full(80, 1 / 80)
    vertex = network_simplex(a, a, ((x[:, None] - x[order]) ** 2).sum(2))
    assert len(vertex.mass) == 80
    assert vertex.transport_cost.item() == 0


def test_misleading_warm_starts_cost_time_only():
    a, b, C = problem(11, 30, 25)
    far = 1e12 * np.random.default_rng(12).normal(size=55)
    vertex = network_simplex(a, b, C, warm=(far[:30], far[30:]))
    check_optimal(vertex, a, b, C)
