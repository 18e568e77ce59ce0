"""The fused objective: its formula, its gradient, its descent."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithms.simplex import network_simplex
from algorithms.spatial.fused import (
    Fused,
    blurred,
    descend,
    frank_wolfe_gap,
    from_plan,
    from_vertex,
    gradient,
    product,
    terms,
)

# Sums of a few hundred float64 products of order one, relative.
ROUNDING = 1e-12
# Central differences of a quadratic have no truncation error; rounding is divided by the step.
STEP, DIFFERENCES = 1e-4, 1e-9


def problem(seed=0, n=9, m=7, alpha=0.3):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.rand(*shape, dtype=torch.float64, generator=generator)
    z, y, a, b = 4 * draw(n, 2), 4 * draw(m, 2), draw(n) + 0.1, draw(m) + 0.1
    D1, D2 = torch.cdist(z, z), torch.cdist(y, y)
    return Fused(draw(n, m), D1, D2, a / a.sum(), b / b.sum(), alpha)


def by_four_loops(p, P):
    squared = (p.D1[:, :, None, None] - p.D2[None, None]) ** 2  # (n, n, m, m)
    quadratic = torch.einsum("ikjl,ij,kl->", squared, P, P)
    return (1 - p.alpha) * (p.M * P).sum() + p.alpha * quadratic


def feasible(p, seed):
    cost = torch.rand(p.M.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return from_vertex(p, network_simplex(p.a, p.b, cost))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 1))
def test_every_way_to_the_value_is_the_formula(seed, alpha):
    p = problem(seed, alpha=alpha)
    vertex = feasible(p, seed)
    mixed = blurred(p, vertex)
    for state in (product(p), vertex, mixed, from_plan(p, mixed.P)):
        value, transport_cost, distortion = terms(p, state.P)
        expected = by_four_loops(p, state.P)
        assert abs(state.value - expected) < ROUNDING * (1 + expected)
        assert abs(value - expected) < ROUNDING * (1 + expected)
        assert abs((1 - alpha) * transport_cost + alpha * distortion - value) < ROUNDING
        assert (state.K - p.D1 @ state.P @ p.D2).abs().max() < ROUNDING * 100


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_gradient_matches_central_differences(alpha):
    p = problem(1, alpha=alpha)
    state = blurred(p, feasible(p, 3))
    towards = feasible(p, 4).P - state.P
    G = gradient(p, state.K)
    slope = (terms(p, state.P + STEP * towards)[0] - terms(p, state.P - STEP * towards)[0]) / (
        2 * STEP
    )
    assert abs((G * towards).sum() - slope) < DIFFERENCES


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 1))
def test_descent_falls_and_ends_where_no_direction_descends(seed, alpha):
    p = problem(seed, alpha=alpha)
    state, values = product(p), []
    for _ in range(40):
        values.append(float(state.value))
        state, stop = descend(p, state, tol=0.0, max_iter=1)
        if stop.status == "converged":
            break
    assert all(after <= before + ROUNDING for before, after in pairwise(values))
    end, stop = descend(p, product(p), tol=1e-12, max_iter=500)
    value = terms(p, end.P)[0]
    assert stop.status == "converged"
    assert abs(end.value - value) <= 1e-10 * abs(value)
    assert (end.P.sum(1) - p.a).abs().sum() < ROUNDING
    assert (end.P.sum(0) - p.b).abs().sum() < ROUNDING
    assert frank_wolfe_gap(p, end) > -ROUNDING


def test_gap_is_zero_at_the_end_and_positive_before():
    p = problem(5)
    end, _ = descend(p, product(p), tol=0.0, max_iter=500)
    assert abs(frank_wolfe_gap(p, end)) < ROUNDING
    assert frank_wolfe_gap(p, product(p)) > 1e-3


def test_alpha_zero_is_exact_transport():
    p = problem(6, alpha=0.0)
    end, stop = descend(p, product(p), tol=1e-9, max_iter=10)
    assert stop.iterations <= 2
    assert abs(end.value - network_simplex(p.a, p.b, p.M).transport_cost) < ROUNDING


def test_alpha_one_sees_distances_only():
    p = problem(7, n=8, m=8, alpha=1.0)
    other = Fused(p.M.flip(0), p.D1, p.D2, p.a, p.b, 1.0)
    first, _ = descend(p, product(p), tol=1e-9, max_iter=100)
    second, _ = descend(other, product(other), tol=1e-9, max_iter=100)
    assert torch.equal(first.P, second.P)
    # Gromov-Wasserstein from Peyre, Cuturi, Solomon 2016: L(D1, D2) (x) P = c - 2 D1 P D2
    offset = (p.D1.square() @ p.a) @ p.a + (p.D2.square() @ p.b) @ p.b
    assert abs(first.value - (offset - 2 * (p.D1 @ first.P @ p.D2 * first.P).sum())) < 1e-11


def test_a_restart_from_the_answer_gains_nothing():
    p = problem(8)
    end, _ = descend(p, product(p), tol=0.0, max_iter=500)
    again, stop = descend(p, from_plan(p, end.P), tol=1e-9, max_iter=10)
    assert stop.iterations == 1
    assert abs(again.value - end.value) < ROUNDING


def test_interruption_leaves_a_feasible_plan():
    p = problem(9)
    end, stop = descend(p, product(p), tol=0.0, max_iter=50, watch=lambda k, r: k < 2)
    assert stop.status == "interrupted"
    assert stop.iterations == 2
    assert (end.P.sum(1) - p.a).abs().sum() < ROUNDING


def test_agrees_with_a_peer():
    ot = pytest.importorskip("ot", reason="POT is a worker's dependency")
    p = problem(10, alpha=0.4)
    end, _ = descend(p, product(p), tol=1e-12, max_iter=500)
    plan, log = ot.gromov.fused_gromov_wasserstein(
        p.M.numpy(), p.D1.numpy(), p.D2.numpy(), p.a.numpy(), p.b.numpy(), alpha=0.4, log=True
    )
    assert abs(float(terms(p, torch.from_numpy(plan))[0]) - log["fgw_dist"]) < 1e-9
    assert float(end.value) <= log["fgw_dist"] + 1e-9
