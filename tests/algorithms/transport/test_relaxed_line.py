"""transport.line with marginals that give way, against closed forms and other solvers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from algorithms.errors import IllPosed
from algorithms.linear.monotone import c_transform
from algorithms.transport.line import line
from schemas.arrays import Shelf
from schemas.transport.line import LineRequest
from tests.problems.transport import cloud, random_weights

TOL = 1e-8  # the default relative gap of the routine
ROUNDING = 1e-12  # sums of a few hundred float64 numbers of size one
CLOSED = 1e-9  # one pair of points is solved beyond the gap: by quadratic convergence
MINIMISED = 1e-6  # L-BFGS-B on a smooth dual of ten variables
SINGLE = 1e-5  # float32 values of size one
DIFFERENCES = {"atol": 1e-6, "rtol": 1e-4}  # central differences of a value known to 1e-10
seeds = st.integers(0, 10_000)
penalties = st.sampled_from([1e-3, 0.05, 1.0, 30.0, None])
few = settings(max_examples=8, deadline=None)


def problem(n, m, seed, mass_b=1.3):
    x, y = cloud(n, 1, seed)[:, 0], cloud(m, 1, seed + 1)[:, 0]
    return x, y, random_weights(n, seed), random_weights(m, seed + 1, mass_b)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def check_proof(answer, x, y, a, b, p, rho_a, rho_b, tol=TOL):
    """Recompute primal and dual value from plan and potentials."""
    C = (x[:, None] - y).abs().pow(p)
    P, f, g = answer.plan.dense(len(x), len(y)), answer.f, answer.g
    assert answer.stop.status == "converged"
    assert float((f[:, None] + g - C).amax()) < ROUNDING * (1 + C.max())
    primal, dual = float((P * C).sum()), 0.0
    for mu, w, z, rho in ((P.sum(1), a, f, rho_a), (P.sum(0), b, g, rho_b)):
        if rho is None:
            assert float((mu - w).abs().sum()) < ROUNDING
            dual += float(w @ z)
            continue
        logs = torch.special.xlogy(mu, mu / w.clamp_min(1e-300))
        primal += rho * float((logs - mu + w).sum())
        dual += rho * float(w @ (1 - (-z / rho).exp()))
    assert answer.value.item() == pytest.approx(primal, rel=1e-9, abs=ROUNDING)
    assert answer.certificate.duality_gap == pytest.approx(primal - dual, abs=1e-9 * (1 + primal))
    roof = sum(r * float(w.sum()) for r, w in ((rho_a, a), (rho_b, b)) if r is not None)
    assert primal - dual <= tol * max(primal, 1e-6 * roof) + ROUNDING * roof
    return dual


# oracles ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rho", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("c", [0.0, 0.5, 3.0])
def test_two_diracs(rho, c):
    A, B = 2.0, 0.5
    answer = line(tensor(0.0), tensor(math.sqrt(c)), tensor(A), tensor(B), rho_a=rho, rho_b=rho)
    moved = math.sqrt(A * B) * math.exp(-c / (2 * rho))
    assert answer.value.item() == pytest.approx(rho * (A + B) - 2 * rho * moved, rel=CLOSED)
    assert answer.mass == pytest.approx(moved, rel=1e-4, abs=1e-12)  # the value is flat there


@pytest.mark.parametrize(("rho_a", "rho_b"), [(0.2, 3.0), (3.0, 0.2)])
def test_two_diracs_of_different_penalties(rho_a, rho_b):
    A, B, c = 2.0, 0.5, 0.7
    answer = line(
        tensor(0.0), tensor(c), tensor(A), tensor(B), 1.0, rho_a=rho_a, rho_b=rho_b, tol=1e-13
    )
    # c + rho_a log(P/A) + rho_b log(P/B) = 0
    logs = (rho_a * math.log(A) + rho_b * math.log(B) - c) / (rho_a + rho_b)
    value = rho_a * A + rho_b * B - (rho_a + rho_b) * math.exp(logs)
    assert answer.value.item() == pytest.approx(value, rel=CLOSED)


def test_semi_relaxed_mass_goes_to_the_cheapest_when_targets_are_free():
    x, y, a, b = problem(9, 7, 0)
    answer = line(x, y, a, b, rho_b=1e-6)
    nearest = float(a @ (x[:, None] - y).square().amin(1))
    assert answer.transport_cost == pytest.approx(nearest, abs=1e-4)  # 1e-6 log of a weight


@few
@given(seeds, st.sampled_from([0.05, 1.0]), st.sampled_from([1.0, 2.0]))
def test_agrees_with_a_convex_solver(seed, rho, p):
    x, y, a, b = problem(4, 3, seed)
    C = (x[:, None] - y).abs().pow(p).numpy()
    answer = line(x, y, a, b, p, rho_a=rho, rho_b=2 * rho)

    def primal(s):  # square roots keep masses positive
        P = s.reshape(4, 3) ** 2
        mu, nu = P.sum(1) + 1e-300, P.sum(0) + 1e-300
        u, v = a.numpy(), b.numpy()
        logs = rho * np.log(mu / u)[:, None] + 2 * rho * np.log(nu / v)
        value = (P * C).sum() + rho * (mu @ np.log(mu / u) - mu.sum() + u.sum())
        value += 2 * rho * (nu @ np.log(nu / v) - nu.sum() + v.sum())
        return value, (2 * s.reshape(4, 3) * (C + logs)).ravel()

    start = np.sqrt(np.outer(a, b)).ravel()
    options = {"maxiter": 2000, "ftol": 1e-14, "gtol": 1e-9}
    theirs = minimize(primal, start, jac=True, method="L-BFGS-B", options=options).fun
    check_proof(answer, x, y, a, b, p, rho, 2 * rho)
    assert answer.value.item() == pytest.approx(theirs, rel=TOL, abs=MINIMISED)


@few
@given(seeds, penalties, penalties, st.sampled_from([1.0, 1.5, 2.0, 3.0]), st.integers(1, 12))
def test_law_every_answer_is_proved(seed, rho_a, rho_b, p, n):
    x, y, a, b = problem(n, 9, seed, 1.0 if rho_a is rho_b is None else 1.3)
    answer = line(x, y, a, b, p, rho_a=rho_a, rho_b=rho_b)
    check_proof(answer, x, y, a, b, p, rho_a, rho_b)
    if rho_a and rho_b:
        lost = rho_a * float(a.sum()) + rho_b * float(b.sum())
        kept = lost - (rho_a + rho_b) * answer.mass
        assert answer.value.item() == pytest.approx(kept, abs=2e-4 * lost)


@pytest.mark.slow
@pytest.mark.parametrize("rho", [1e-3, 0.1, 1.0, 100.0])
def test_many_points_are_proved(rho):
    x, y, a, b = problem(300, 240, 5)
    check_proof(line(x, y, a, b, rho_a=rho, rho_b=rho), x, y, a, b, 2.0, rho, rho)


def test_lower_than_small_entropy():
    ot = pytest.importorskip("ot")
    x, y, a, b = problem(30, 20, 1)
    C, epsilon, rho = (x[:, None] - y).square().numpy(), 0.01, 1.0
    plan = ot.unbalanced.sinkhorn_unbalanced_translation_invariant(
        a.numpy(), b.numpy(), C, epsilon, rho, numItermax=5_000
    )
    mu, nu = plan.sum(1), plan.sum(0)
    theirs = (plan * C).sum() + sum(
        rho * (q @ np.log(q / w) - q.sum() + w.sum()) for q, w in ((mu, a.numpy()), (nu, b.numpy()))
    )
    ours = line(x, y, a, b, rho_a=rho, rho_b=rho).value.item()
    assert ours <= theirs + ROUNDING
    assert ours == pytest.approx(theirs, abs=20 * epsilon)


# laws ---------------------------------------------------------------------------------------------


@few
@given(seeds, st.sampled_from([0.01, 1.0]), st.sampled_from([1e-4, 2.0, 1e4]))
def test_law_homogeneous_and_scaled(seed, rho, t):
    x, y, a, b = problem(7, 6, seed)
    one = line(x, y, a, b, rho_a=rho, rho_b=2 * rho).value.item()
    heavy = line(x, y, t * a, t * b, rho_a=rho, rho_b=2 * rho).value.item()
    assert heavy == pytest.approx(t * one, rel=1e-7)
    far = line(t * x, t * y, a, b, rho_a=t**2 * rho, rho_b=2 * t**2 * rho).value.item()
    assert far == pytest.approx(t**2 * one, rel=1e-7)


@few
@given(seeds, penalties, penalties)
def test_law_swap(seed, rho_a, rho_b):
    x, y, a, b = problem(7, 6, seed, 1.0)
    one = line(x, y, a, b, rho_a=rho_a, rho_b=rho_b)
    other = line(y, x, b, a, rho_a=rho_b, rho_b=rho_a)
    assert one.value.item() == pytest.approx(other.value.item(), rel=1e-7)


def test_law_value_grows_with_the_penalty_to_the_balanced_one():
    x, y, a, b = problem(20, 15, 0, 1.0)
    values = [line(x, y, a, b, rho_a=r, rho_b=r).value.item() for r in (1e-3, 0.1, 1.0, 10.0, 1e4)]
    balanced = line(x, y, a, b).value.item()
    assert values == sorted(values)
    assert values[-1] == pytest.approx(balanced, rel=1e-3)
    assert values[-1] <= balanced
    assert values[0] < 1e-3 * 2


def test_an_outlier_costs_no_more_than_its_mass():
    x, y, a, b = problem(20, 15, 0, 1.0)
    rho, near = 0.5, None
    for place in (10.0, 1e3, 1e6):
        x = x.clone()
        x[3] = place
        answer = line(x, y, a, b, rho_a=rho, rho_b=rho)
        assert answer.stop.status == "converged"
        assert answer.marginal_a[3] < 1e-3
        near = near or answer.value.item()
        assert answer.value.item() == pytest.approx(near, rel=1e-6)


def test_nothing_travels_between_worlds_apart():
    x, y, a, b = problem(5, 4, 0)
    answer = line(x, y + 1e3, a, b, rho_a=1.0, rho_b=1.0)
    assert answer.stop.status == "converged"
    assert len(answer.plan.mass) == 0
    assert answer.value.item() == pytest.approx(2.3, rel=TOL)


def test_absent_points_and_equal_measures():
    x, y, a, b = problem(6, 5, 0)
    a[2], b[0] = 0, 0
    answer = line(x, y, a, b, rho_a=0.5, rho_b=0.5)
    check_proof(answer, x, y, a, b, 2.0, 0.5, 0.5)
    assert answer.marginal_a[2] == 0
    same = line(x, x, a, a, rho_a=0.5, rho_b=0.5)
    assert same.stop.status == "converged"
    assert same.value.item() == pytest.approx(0, abs=ROUNDING)


def test_single_is_close_to_double():
    x, y, a, b = (z.float() for z in problem(20, 15, 3))
    single = line(x, y, a, b, rho_a=0.3, rho_b=0.3)
    double = line(*(z.double() for z in (x, y, a, b)), rho_a=0.3, rho_b=0.3)
    assert single.f.dtype == single.value.dtype == single.marginal_a.dtype == torch.float32
    assert single.stop.status == "converged"
    assert single.value.item() == pytest.approx(double.value.item(), rel=SINGLE)


@pytest.mark.parametrize("rho", [(0.3, 0.3), (0.3, None), (None, 2.0)])
def test_gradients_match_differences(rho):
    leaves = [z.requires_grad_() for z in problem(4, 3, 4)]
    value = lambda x, y, a, b: line(x, y, a, b, rho_a=rho[0], rho_b=rho[1], tol=1e-11).value
    assert torch.autograd.gradcheck(value, leaves, eps=1e-5, **DIFFERENCES)


def test_halted_and_spent_searches_bound_the_value():
    x, y, a, b = problem(30, 25, 0)
    best = line(x, y, a, b, rho_a=1.0, rho_b=1.0).value.item()
    spent = line(x, y, a, b, rho_a=1.0, rho_b=1.0, max_iter=1)
    halted = line(x, y, a, b, rho_a=1.0, rho_b=1.0, watch=lambda k, r: False)
    assert (spent.stop.status, halted.stop.status) == ("max_iter", "interrupted")
    for answer in (spent, halted):
        low = answer.value.item() - answer.certificate.duality_gap
        assert low <= best + ROUNDING
        assert best <= answer.value.item() + ROUNDING


@few
@given(seeds, st.integers(1, 9), st.integers(1, 20), st.sampled_from([1.0, 2.0, 2.5]))
def test_the_c_transform_is_the_minimum_over_all(seed, n, m, p):
    draw = np.random.default_rng(seed)
    x, y, f = np.sort(draw.normal(size=n)), np.sort(draw.normal(size=m)), draw.normal(size=n)
    every = np.abs(x[:, None] - y) ** p - f[:, None]
    value, place = c_transform(x, y, f, p)
    np.testing.assert_allclose(value, every.min(0), atol=ROUNDING)
    np.testing.assert_allclose(every[place, np.arange(m)], every.min(0), atol=ROUNDING)


# bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("rho_a", {"rho_a": 0.0}),
        ("rho_b", {"rho_b": math.inf}),
        ("rho_a", {"rho_a": 1.0, "space": "circle"}),
        ("tol", {"rho_a": 1.0, "tol": 0.0}),
        ("b", {"b": tensor(1.0, 1.0)}),
    ],
)
def test_bad_input_is_named(field, change):
    with pytest.raises(IllPosed) as refusal:
        line(**{"x": tensor(0.0, 1.0), "y": tensor(0.5, 2.0)} | change)
    assert refusal.value.field == field


def test_the_schema_refuses_by_name():
    body = {"x": [0.0, 1.0], "y": [0.5, 2.0], "b": [1.0, 2.0], "rho_b": 1.0}
    LineRequest.model_validate(body, context={"shelf": Shelf()})
    for change, field in (({"space": "circle"}, "rho_b"), ({"rho_b": None}, "b")):
        with pytest.raises(ValueError, match=r"on the line only|equal masses") as refusal:
            LineRequest.model_validate(body | change, context={"shelf": Shelf()})
        (error,) = refusal.value.errors()
        assert error["ctx"]["field"] == field
