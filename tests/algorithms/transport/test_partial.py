import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from algorithms.errors import IllPosed
from algorithms.geometry import CostMatrix, PointClouds
from algorithms.transport.exact import exact
from algorithms.transport.partial import partial
from algorithms.transport.sinkhorn import sinkhorn
from schemas.arrays import Shelf
from schemas.transport.partial import PartialRequest
from tests.problems.transport import cloud, generator, random_cost, random_weights, uniform

ROUNDING = 1e-12  # sums of a few hundred float64 numbers of size one
SINGLE = 2e-6  # float32 values of size one
PROGRAMMED = 1e-7  # HiGHS stops at feasibility 1e-7
DIFFERENCES = {"atol": 1e-6, "rtol": 1e-5}  # central differences of step 1e-6 in float64
seeds = st.integers(0, 10_000)
shares = st.sampled_from([0.01, 0.3, 0.77, 1.0])
few = settings(max_examples=10, deadline=None)


def problem(n, m, seed, mass_b=1.3):
    a, b = random_weights(n, seed), random_weights(m, seed + 1, mass_b)
    return CostMatrix(random_cost(n, m, seed)), a, b


def programmed(C, a, b, mass=None, price=0.0):
    """Solve the capped linear program; without `mass`, with a reward for each unit moved."""
    n, m = C.shape
    caps = np.vstack([np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))])
    total = {} if mass is None else {"A_eq": np.ones((1, n * m)), "b_eq": [mass]}
    limits = np.concatenate([a.numpy(), b.numpy()])
    return linprog(C.numpy().ravel() - price, A_ub=caps, b_ub=limits, **total).fun


def check_proof(answer, geometry, a, b, mass):
    C = geometry.matrix()
    P, f, g, lam = answer.plan.dense(*C.shape), answer.f, answer.g, answer.lam
    assert answer.stop.status == "converged"
    assert (answer.plan.mass > 0).all()
    assert abs(float(P.sum()) - mass) < ROUNDING
    torch.testing.assert_close(a - P.sum(1), answer.unmatched_a, atol=ROUNDING, rtol=0)
    torch.testing.assert_close(b - P.sum(0), answer.unmatched_b, atol=ROUNDING, rtol=0)
    assert min(answer.unmatched_a.min(), answer.unmatched_b.min()) >= 0
    assert max(f.max(), g.max()) <= 0
    assert float((f[:, None] + g + lam - C).amax()) < ROUNDING
    gap = float((P * C).sum() - a @ f - b @ g - lam * mass)
    assert gap == pytest.approx(answer.certificate.duality_gap, abs=ROUNDING)
    assert abs(gap) < ROUNDING
    assert float((P * C).sum()) == pytest.approx(answer.value.item(), abs=ROUNDING)


# oracles ------------------------------------------------------------------------------------------


@few
@given(seeds, st.integers(1, 7), st.integers(1, 7), shares)
def test_agrees_with_a_linear_program_and_is_proved(seed, n, m, share):
    geometry, a, b = problem(n, m, seed)
    mass = share * 1.0
    answer = partial(geometry, a, b, mass=mass)
    check_proof(answer, geometry, a, b, mass)
    assert answer.value.item() == pytest.approx(programmed(geometry.C, a, b, mass), abs=PROGRAMMED)


@few
@given(seeds)
def test_all_of_two_equal_masses_is_the_balanced_problem(seed):
    geometry, a, b = problem(7, 6, seed, 1.0)
    whole = exact(geometry, a, b)
    answer = partial(geometry, a, b, mass=1.0)
    torch.testing.assert_close(answer.plan.dense(7, 6), whole.plan.dense(7, 6))
    assert answer.value.item() == pytest.approx(whole.value.item(), abs=ROUNDING)
    assert answer.unmatched_a.sum() + answer.unmatched_b.sum() < ROUNDING


def test_all_of_the_smaller_mass_leaves_one_side_free():
    geometry, a, b = problem(5, 8, 0, 100.0)
    a = a * (0.9 * float(b.min()))  # no target is full: every source goes to its cheapest one
    answer = partial(geometry, a, b, mass=float(a.sum()))
    assert answer.value.item() == pytest.approx(float(a @ geometry.C.amin(1)), rel=1e-10)
    assert answer.unmatched_a.sum() < ROUNDING


def test_little_mass_takes_the_cheapest_pair():
    geometry, a, b = problem(5, 8, 3)
    answer = partial(geometry, a, b, mass=0.01)
    assert answer.value.item() == pytest.approx(0.01 * float(geometry.C.min()), abs=ROUNDING)
    assert answer.lam.item() == pytest.approx(float(geometry.C.min()), abs=ROUNDING)


@few
@given(seeds, st.sampled_from([0.2, 0.5, 0.9]))
def test_the_price_makes_it_a_total_variation_problem(seed, mass):
    geometry, a, b = problem(6, 5, seed)
    answer = partial(geometry, a, b, mass=mass)
    lam = answer.lam.item()
    free = programmed(geometry.C, a, b, price=lam)  # rho_a + rho_b = lam, constants dropped
    assert answer.value.item() - lam * mass == pytest.approx(free, abs=PROGRAMMED)
    used = geometry.C[answer.plan.rows, answer.plan.cols]
    assert used.max() <= lam + ROUNDING


# laws ---------------------------------------------------------------------------------------------


@few
@given(seeds)
def test_law_convex_in_mass_with_the_price_as_slope(seed):
    geometry, a, b = problem(6, 7, seed)
    masses = [0.1, 0.3, 0.5, 0.7, 0.9]
    answers = [partial(geometry, a, b, mass=mass) for mass in masses]
    prices = [answer.lam.item() for answer in answers]
    values = [answer.value.item() for answer in answers]
    assert values == sorted(values)
    for low, high, one, two in zip(values, values[1:], prices, prices[1:], strict=False):
        assert 0.2 * one - ROUNDING <= high - low <= 0.2 * two + ROUNDING


@few
@given(seeds, shares)
def test_law_swap_and_transpose(seed, share):
    geometry, a, b = problem(6, 7, seed)
    one = partial(geometry, a, b, mass=share)
    other = partial(CostMatrix(geometry.C.T), b, a, mass=share)
    torch.testing.assert_close(one.plan.dense(6, 7), other.plan.dense(7, 6).T)
    torch.testing.assert_close(one.unmatched_a, other.unmatched_b)


@few
@given(seeds, st.sampled_from([1e-8, 3.0, 1e8]), st.sampled_from([1e-5, 2.0, 1e5]))
def test_law_scaling_and_shift(seed, scale, size):
    geometry, a, b = problem(6, 5, seed)
    one = partial(geometry, a, b, mass=0.6)
    moved = CostMatrix(scale * (geometry.C - 2))
    other = partial(moved, size * a, size * b, mass=size * 0.6)
    assert other.stop.status == "converged"
    expected = scale * size * (one.value.item() - 2 * 0.6)
    assert other.value.item() == pytest.approx(expected, rel=1e-9)


@few
@given(seeds)
def test_law_permuting_points_permutes_the_answer(seed):
    geometry, a, b = problem(8, 6, seed)
    rows, cols = (torch.randperm(k, generator=generator(seed)) for k in (8, 6))
    one = partial(geometry, a, b, mass=0.5)
    other = partial(CostMatrix(geometry.C[rows][:, cols]), a[rows], b[cols], mass=0.5)
    torch.testing.assert_close(one.unmatched_a[rows], other.unmatched_a)


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean"])
def test_law_single_is_close_to_double(cost):
    x, y = cloud(20, 2, 0).float(), cloud(15, 2, 1).float()
    single = partial(PointClouds(x, y, cost), mass=0.5)
    double = partial(PointClouds(x.double(), y.double(), cost), mass=0.5)
    assert single.value.dtype == single.lam.dtype == single.unmatched_a.dtype == torch.float32
    assert single.stop.status == "converged"
    assert single.value.item() == pytest.approx(double.value.item(), rel=SINGLE)


def test_outliers_stay():
    x, y = cloud(10, 2, 0), cloud(10, 2, 1)
    x[3] = 100.0
    answer = partial(PointClouds(x, y), mass=0.9)
    assert answer.unmatched_a[3].item() == pytest.approx(0.1, abs=ROUNDING)


def test_constant_costs_absent_points_and_single_points():
    zero = CostMatrix(torch.zeros(3, 4, dtype=torch.float64))
    assert partial(zero, mass=0.5).value.item() == 0
    geometry, a, b = problem(5, 4, 0)
    a[2] = 0
    answer = partial(geometry, a, b, mass=0.5)
    check_proof(answer, geometry, a, b, 0.5)


# endings ------------------------------------------------------------------------------------------


def test_spent_pivots_and_interruptions_leave_a_feasible_plan():
    geometry, a, b = problem(20, 30, 0)
    best = partial(geometry, a, b, mass=0.7).value.item()
    spent = partial(geometry, a, b, mass=0.7, max_iter=3)
    halted = partial(geometry, a, b, mass=0.7, watch=lambda k, r: False)
    assert (spent.stop.status, halted.stop.status) == ("max_iter", "interrupted")
    for answer in (spent, halted):
        seen = answer.certificate
        worst = max(seen.excess_a, seen.excess_b, seen.mass_error, seen.dual_infeasibility)
        assert worst < ROUNDING
        assert answer.value.item() - seen.duality_gap <= best <= answer.value.item()


def test_forbidden_arcs_are_avoided_or_refused():
    geometry, a, b = problem(6, 8, 0)
    geometry.C[0] = 1e16
    answer = partial(geometry, a, b, mass=0.5)
    assert answer.plan.dense(6, 8)[0].sum() == 0
    assert answer.stop.status == "converged"
    with pytest.raises(IllPosed, match="avoids") as refusal:
        partial(geometry, a, b, mass=1.0)
    assert refusal.value.field == "geometry"


# gradients ----------------------------------------------------------------------------------------


def test_gradients_of_the_value_match_differences():
    geometry, a, b = problem(4, 5, 1)
    leaves = [t.clone().requires_grad_() for t in (geometry.C, a, b)]
    value = lambda C, a, b: partial(CostMatrix(C), a, b, mass=0.6).value
    assert torch.autograd.gradcheck(value, leaves, **DIFFERENCES)


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean"])
def test_gradients_reach_the_points(cost):
    leaves = [cloud(4, 2, s).requires_grad_() for s in (0, 1)]
    value = lambda x, y: partial(PointClouds(x, y, cost), mass=0.6).value
    assert torch.autograd.gradcheck(value, leaves, **DIFFERENCES)


# peers --------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_agrees_with_pot():
    ot = pytest.importorskip("ot")
    geometry, a, b = problem(20, 15, 2)
    theirs = ot.partial.partial_wasserstein2(a.numpy(), b.numpy(), geometry.C.numpy(), m=0.6)
    assert partial(geometry, a, b, mass=0.6).value.item() == pytest.approx(theirs, abs=1e-9)


# bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("a", {"a": torch.tensor([0.5, -0.5, 1.0], dtype=torch.float64)}),
        ("b", {"b": torch.zeros(4, dtype=torch.float64)}),
        ("mass", {"mass": 0.0}),
        ("mass", {"mass": math.nan}),
        ("mass", {"mass": 1 + 2e-5}),
        ("mass", {"b": 0.4 * uniform(4)}),
        ("geometry.C", {"geometry": CostMatrix(torch.full((3, 4), math.nan))}),
    ],
)
def test_bad_input_is_named(field, change):
    question = {"geometry": CostMatrix(random_cost(3, 4, 0)), "mass": 0.5} | change
    with pytest.raises(IllPosed) as refusal:
        partial(**question)
    assert refusal.value.field == field


@pytest.mark.parametrize("change", [{"mass": 1.1}, {"mass": 0.7, "b": [0.25, 0.25]}, {"mass": 0.0}])
def test_the_schema_refuses_by_name(change):
    body = {"geometry": {"kind": "cost", "C": [[0.0, 1.0], [1.0, 0.0]]}, "mass": 0.5}
    PartialRequest.model_validate(body, context={"shelf": Shelf()})
    with pytest.raises(ValueError, match=r"total can travel|greater") as refusal:
        PartialRequest.model_validate(body | change, context={"shelf": Shelf()})
    (error,) = refusal.value.errors()
    assert "mass" in (*error["loc"], error.get("ctx", {}).get("field"))


def test_mass_above_the_total_by_rounding_is_all_of_it():
    geometry, a, b = problem(4, 5, 0)
    answer = partial(geometry, a, b, mass=1 + 5e-6)
    assert answer.stop.status == "converged"
    assert float(answer.plan.mass.sum()) == pytest.approx(1.0, abs=ROUNDING)


# entropic form ------------------------------------------------------------------------------------

TIGHTLY = 1e-11  # asked of row sums, as a share of the mass
ROUGHLY = 1e-3  # exponents of size 1e12 round by 1e-4
FEW_SWEEPS = 100  # plain sweeps are 1e-2 off after them
GAP = 1e-9  # what that leaves of gap and value, for costs of size one


def check_entropic(answer, geometry, a, b, mass, epsilon):
    """Hold plan and potentials against the optimality conditions, the value against its dual."""
    C, P, f, g = geometry.matrix(), answer.dense, answer.f, answer.g
    assert answer.stop.status == "converged"
    assert answer.plan is None
    expected = a[:, None] * b * ((f[:, None] + g + answer.lam - C) / epsilon).exp()
    torch.testing.assert_close(P, expected, rtol=1e-9, atol=0)
    assert float(P.sum()) == pytest.approx(mass, rel=ROUNDING)
    assert max(f.max(), g.max()) <= 0
    assert float((P.sum(1) - a).amax()) < GAP
    assert float((P.sum(0) - b).amax()) < GAP
    assert float((f * (P.sum(1) - a)).abs().sum() + (g * (P.sum(0) - b)).abs().sum()) < GAP
    relative = torch.where(P > 0, P * (P / (a[:, None] * b)).log(), 0.0).sum()
    value = (P * C).sum() + epsilon * (relative - P.sum() + a.sum() * b.sum())
    assert answer.value.item() == pytest.approx(value.item(), abs=GAP)
    dual = a @ f + b @ g + answer.lam * mass - epsilon * (P.sum() - a.sum() * b.sum())
    assert answer.certificate.duality_gap == pytest.approx(float(value - dual), abs=ROUNDING)
    assert abs(answer.certificate.duality_gap) < GAP


@few
@given(seeds, shares, st.sampled_from([1.0, 0.1, 0.02]))
def test_law_entropic_answers_are_proved(seed, mass, epsilon):
    geometry, a, b = problem(7, 9, seed)
    answer = partial(geometry, a, b, mass=mass, epsilon=epsilon, tol=TIGHTLY)
    check_entropic(answer, geometry, a, b, mass, epsilon)


def test_entropic_plans_come_to_the_exact_one():
    geometry, a, b = problem(8, 6, 0)
    best = partial(geometry, a, b, mass=0.6)
    P, product = best.plan.dense(8, 6), a[:, None] * b
    # both plans are feasible: what one pays more of cost, at most, the other pays more of entropy
    entropy = float((torch.special.xlogy(P, P / product) - P + product).sum())
    costs = [
        partial(geometry, a, b, mass=0.6, epsilon=e).transport_cost.item()
        for e in (0.1, 0.03, 0.01)
    ]
    assert costs[0] > costs[1] > costs[2] > best.value.item()
    for epsilon, cost in zip((0.1, 0.03, 0.01), costs, strict=True):
        assert cost - best.value.item() < epsilon * entropy


def test_the_whole_mass_is_entropic_transport():
    C, a, b = random_cost(8, 6, 0), random_weights(8, 0), random_weights(6, 1)
    answer = partial(CostMatrix(C), a, b, mass=1.0, epsilon=0.1, tol=TIGHTLY)
    whole = sinkhorn(CostMatrix(C), a, b, epsilon=0.1, tol=TIGHTLY)
    torch.testing.assert_close(answer.dense, whole.plan, atol=GAP, rtol=0)
    assert answer.value.item() == pytest.approx(whole.value.item(), abs=GAP)


@pytest.mark.filterwarnings("ignore")
def test_entropic_form_agrees_with_pot_and_is_right_where_that_is_not_a_number():
    ot = pytest.importorskip("ot")
    geometry, a, b = PointClouds(cloud(20, 2, 0), cloud(20, 2, 1)), uniform(20), uniform(20)
    C = geometry.matrix()
    theirs = ot.partial.entropic_partial_wasserstein(
        a.numpy(), b.numpy(), C.numpy(), 0.5, m=0.7, numItermax=100_000, stopThr=1e-14
    )
    answer = partial(geometry, a, b, mass=0.7, epsilon=0.5, tol=TIGHTLY)
    np.testing.assert_allclose(answer.dense.numpy(), theirs, atol=GAP)
    theirs = ot.partial.entropic_partial_wasserstein(a.numpy(), b.numpy(), C.numpy(), 0.01, m=0.7)
    assert not np.isfinite(theirs).all()  # its kernel underflows


@pytest.mark.parametrize("epsilon", [0.02, 1e-3, 1e-4])
def test_entropic_plans_of_degenerate_problems_are_proved(epsilon):
    geometry = PointClouds(cloud(20, 2, 0), cloud(20, 2, 1))  # 14 whole points of 20 travel
    answer = partial(geometry, mass=0.7, epsilon=epsilon, tol=TIGHTLY)
    check_entropic(answer, geometry, uniform(20), uniform(20), 0.7, epsilon)


@pytest.mark.parametrize("epsilon", [1e-2, 1e-3, 1e-4, 1e-5])
def test_few_sweeps_do_where_costs_are_many_epsilons(epsilon):
    geometry = PointClouds(cloud(60, 2, 0), cloud(45, 2, 1))
    answer = partial(
        geometry, random_weights(60, 1), random_weights(45, 2, 1.3), mass=0.7, epsilon=epsilon,
        tol=GAP, max_iter=FEW_SWEEPS,
    )  # fmt: skip
    assert answer.stop.status == "converged"
    assert abs(answer.certificate.duality_gap) < GAP
    best = partial(geometry, random_weights(60, 1), random_weights(45, 2, 1.3), mass=0.7)
    dearer = answer.transport_cost.item() - best.value.item()
    assert -ROUNDING < dearer < 10 * epsilon


def test_gradients_of_the_entropic_value_match_differences():
    geometry, a, b = problem(4, 5, 1)
    leaves = [t.clone().requires_grad_() for t in (geometry.C, a, b)]
    value = lambda C, a, b: partial(CostMatrix(C), a, b, mass=0.6, epsilon=0.2, tol=1e-13).value
    assert torch.autograd.gradcheck(value, leaves, **DIFFERENCES)
    answer = partial(CostMatrix(leaves[0]), mass=0.6, epsilon=0.2)
    with pytest.raises(IllPosed) as refusal:
        answer.transport_cost.backward()
    assert refusal.value.field == "cotangents.transport_cost"


@pytest.mark.parametrize("epsilon", [1e-12, 1e100])
def test_entropic_strengths_at_the_ends_of_their_range(epsilon):
    geometry, a, b = problem(5, 6, 0)
    answer = partial(geometry, a, b, mass=0.4, epsilon=epsilon, tol=ROUGHLY)
    assert answer.stop.status == "converged"
    assert answer.dense.isfinite().all()
    assert float(answer.dense.sum()) == pytest.approx(0.4, rel=ROUGHLY)
    hard = partial(geometry, a, b, mass=0.4, epsilon=epsilon, tol=1e-15, max_iter=50)
    assert hard.stop.status != "converged" or hard.stop.residual <= 1e-15
    if epsilon == 1e-12:
        best = partial(geometry, a, b, mass=0.4)
        assert answer.value.item() == pytest.approx(best.value.item(), rel=ROUGHLY)


def test_absent_points_and_forbidden_pairs_get_no_entropic_mass():
    geometry, a, b = problem(5, 6, 0)
    a[0] = 0
    geometry.C[1, 2] = 1e16
    answer = partial(geometry, a, b, mass=0.5, epsilon=0.1)
    assert answer.stop.status == "converged"
    assert answer.dense[0].sum() == answer.dense[1, 2] == 0
    assert float(answer.dense.sum()) == pytest.approx(0.5)
    x = torch.tensor([[0.0], [9.0]], dtype=torch.float64)
    clouds = PointClouds(x, x[:1] + 0.5, "wfr", delta=0.5)  # the second point reaches nothing
    with pytest.raises(IllPosed) as refusal:
        partial(clouds, mass=0.9, epsilon=0.1)
    assert refusal.value.field == "geometry"
    clouds = PointClouds(x, x + 0.5, "wfr", delta=0.5)  # nor, where its only target has no mass
    with pytest.raises(IllPosed) as refusal:
        partial(clouds, b=torch.tensor([1.0, 0.0], dtype=x.dtype), mass=0.9, epsilon=0.1)
    assert refusal.value.field == "geometry"


def test_entropic_solves_are_interrupted_and_capped():
    geometry, a, b = problem(8, 9, 0)
    stopped = partial(geometry, a, b, mass=0.9, epsilon=0.01, watch=lambda k, r: k < 3)
    assert (stopped.stop.status, stopped.stop.iterations) == ("interrupted", 3)
    spent = partial(geometry, a, b, mass=0.9, epsilon=0.01, tol=1e-15, max_iter=4)
    assert (spent.stop.status, spent.stop.iterations) == ("max_iter", 4)
    assert float(spent.dense.sum()) == pytest.approx(0.9)


def test_entropic_single_is_close_to_double():
    geometry, a, b = problem(8, 9, 0)
    double = partial(geometry, a, b, mass=0.9, epsilon=0.1)
    single = partial(CostMatrix(geometry.C.float()), a.float(), b.float(), mass=0.9, epsilon=0.1)
    assert single.dense.dtype == torch.float32
    assert single.stop.status == "converged"
    torch.testing.assert_close(single.dense.double(), double.dense, atol=SINGLE, rtol=0)
