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
from algorithms.transport.sinkhorn import sinkhorn
from tests.problems.transport import (
    brute_force,
    cloud,
    dirac,
    generator,
    random_cost,
    random_weights,
    shifted,
    sorted_line,
    uniform,
    weighted_line,
)

ROUNDING = 1e-12  # sums of a few hundred float64 numbers of size one
SINGLE = 2e-6  # float32 values of size one to ten
PROGRAMMED = 1e-7  # HiGHS stops at feasibility 1e-7
DIFFERENCES = {"atol": 1e-6, "rtol": 1e-5}  # central differences of step 1e-6 in float64
seeds = st.integers(0, 10_000)
few = settings(max_examples=10, deadline=None)


def problem(n: int, m: int, seed: int, mass: float = 1.0) -> tuple[CostMatrix, torch.Tensor, ...]:
    a, b = random_weights(n, seed, mass), random_weights(m, seed + 1, mass)
    return CostMatrix(random_cost(n, m, seed)), a, b


def check_proof(answer, geometry, a, b):
    """Recompute the certificate from scratch and hold it against the one that came."""
    C = geometry.matrix()
    P = answer.plan.dense(*C.shape)
    seen = answer.certificate
    assert answer.stop.status == "converged"
    assert len(answer.plan.mass) <= sum(C.shape) - 1
    assert (answer.plan.mass > 0).all()
    assert float((P.sum(1) - a).abs().sum()) == pytest.approx(seen.marginal_error_a, abs=ROUNDING)
    assert float((P.sum(0) - b).abs().sum()) == pytest.approx(seen.marginal_error_b, abs=ROUNDING)
    excess = float((answer.f[:, None] + answer.g - C).amax())
    assert max(excess, 0) == pytest.approx(seen.dual_infeasibility, abs=ROUNDING)
    gap = float((P * C).sum() - a @ answer.f - b @ answer.g)
    assert gap == pytest.approx(seen.duality_gap, abs=ROUNDING)
    assert max(seen.marginal_error_a, seen.marginal_error_b, excess, abs(gap)) < ROUNDING
    assert float((P * C).sum()) == pytest.approx(answer.value.item(), abs=ROUNDING)
    assert answer.value.item() == answer.transport_cost.item()
    assert abs(float(answer.f @ a)) < ROUNDING


# oracles ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mass", [1.0, 3.0])
def test_one_source_sends_everything(mass):
    known = dirac(5, 0, mass)
    answer = exact(known.geometry, known.a, known.b)
    check_proof(answer, known.geometry, known.a, known.b)
    assert answer.value.item() == pytest.approx(known.value, abs=ROUNDING)
    torch.testing.assert_close(answer.plan.dense(1, 5), known.plan)


@pytest.mark.parametrize("n", [1, 2, 4, 6])
def test_brute_force_over_permutations(n):
    known = brute_force(n, n)
    answer = exact(known.geometry)
    check_proof(answer, known.geometry, known.a, known.b)
    assert answer.value.item() == pytest.approx(known.value, abs=ROUNDING)
    torch.testing.assert_close(answer.plan.dense(n, n), known.plan)


@pytest.mark.parametrize(("d", "method"), [(1, "line"), (2, "simplex"), (12, "assignment")])
def test_a_translation_is_found(d, method):
    known = shifted(40, d, 0)
    answer = exact(known.geometry)
    check_proof(answer, known.geometry, known.a, known.b)
    assert answer.method == method
    assert answer.value.item() == pytest.approx(known.value, abs=ROUNDING)
    torch.testing.assert_close(answer.plan.dense(40, 40), known.plan)


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean"])
def test_points_on_a_line_are_sorted(cost):
    known = sorted_line(50, 0, cost)
    answer = exact(known.geometry)
    check_proof(answer, known.geometry, known.a, known.b)
    assert answer.method == "line"
    assert answer.value.item() == pytest.approx(known.value, abs=ROUNDING)


@pytest.mark.parametrize(("n", "m"), [(1, 7), (30, 20), (20, 31)])
def test_weights_on_a_line_follow_the_quantiles(n, m):
    known = weighted_line(n, m, 3)
    answer = exact(known.geometry, known.a, known.b)
    check_proof(answer, known.geometry, known.a, known.b)
    assert answer.value.item() == pytest.approx(known.value, abs=ROUNDING)


@few
@given(seeds, st.sampled_from(["sqeuclidean", "euclidean"]), st.booleans())
def test_the_line_agrees_with_the_simplex(seed, cost, ties):
    x, y = cloud(9, 1, seed), cloud(7, 1, seed + 1)
    if ties:
        x, y = x.round(decimals=0), y.round(decimals=0)
    a, b = random_weights(9, seed), random_weights(7, seed)
    a[seed % 9] = 0
    a = a / a.sum()
    line = exact(PointClouds(x, y, cost), a, b)
    simplex = exact(CostMatrix(PointClouds(x, y, cost).matrix()), a, b)
    check_proof(line, PointClouds(x, y, cost), a, b)
    assert (line.method, simplex.method) == ("line", "simplex")
    assert line.value.item() == pytest.approx(simplex.value.item(), abs=ROUNDING)


@few
@given(seeds)
def test_the_assignment_agrees_with_the_simplex(seed):
    geometry = PointClouds(cloud(25, 11, seed), cloud(25, 11, seed + 1))
    matched, simplex = exact(geometry), exact(CostMatrix(geometry.matrix()))
    check_proof(matched, geometry, uniform(25), uniform(25))
    assert (matched.method, simplex.method) == ("assignment", "simplex")
    assert matched.value.item() == pytest.approx(simplex.value.item(), abs=ROUNDING)


def test_entropic_values_come_down_to_the_exact_one():
    geometry, a, b = problem(8, 6, 0)
    value = exact(geometry, a, b).value.item()
    costs = [
        sinkhorn(geometry, a, b, epsilon=e, tol=1e-9, rounded=True).transport_cost.item()
        for e in (0.1, 0.01, 1e-3)
    ]
    assert costs[0] > costs[1] > costs[2] - ROUNDING >= value - 2 * ROUNDING
    assert costs[2] == pytest.approx(value, abs=1e-6)  # exp(-gap of vertices / 1e-3)


# laws ---------------------------------------------------------------------------------------------


@few
@given(seeds, st.integers(1, 9), st.integers(1, 9))
def test_law_every_answer_is_proved(seed, n, m):
    geometry, a, b = problem(n, m, seed)
    check_proof(exact(geometry, a, b), geometry, a, b)


@few
@given(seeds, st.integers(1, 9), st.integers(1, 9))
def test_law_swap_and_transpose(seed, n, m):
    geometry, a, b = problem(n, m, seed)
    one, other = exact(geometry, a, b), exact(CostMatrix(geometry.C.T), b, a)
    torch.testing.assert_close(one.plan.dense(n, m), other.plan.dense(m, n).T)
    assert one.value.item() == pytest.approx(other.value.item(), abs=ROUNDING)


@few
@given(seeds, st.sampled_from([1e-8, 3.0, 1e8]), st.sampled_from([1e-5, 2.0, 1e5]))
def test_law_scaling(seed, scale, mass):
    geometry, a, b = problem(6, 5, seed)
    one = exact(geometry, a, b)
    other = exact(CostMatrix(scale * geometry.C), mass * a, mass * b)
    assert other.value.item() == pytest.approx(scale * mass * one.value.item(), rel=1e-10)
    torch.testing.assert_close(other.f, scale * one.f, rtol=1e-9, atol=1e-12 * scale)


@few
@given(seeds)
def test_law_permuting_points_permutes_the_plan(seed):
    geometry, a, b = problem(8, 6, seed)
    rows, cols = (torch.randperm(k, generator=generator(seed)) for k in (8, 6))
    one = exact(geometry, a, b)
    other = exact(CostMatrix(geometry.C[rows][:, cols]), a[rows], b[cols])
    torch.testing.assert_close(one.plan.dense(8, 6)[rows][:, cols], other.plan.dense(8, 6))


@few
@given(seeds, st.floats(-100, 100))
def test_law_constants_of_rows_move_only_the_value(seed, shift):
    geometry, a, b = problem(6, 8, seed)
    lift = shift * torch.linspace(-1, 1, 6, dtype=torch.float64)
    one, other = exact(geometry, a, b), exact(CostMatrix(geometry.C + lift[:, None]), a, b)
    torch.testing.assert_close(one.plan.dense(6, 8), other.plan.dense(6, 8))
    assert other.value.item() == pytest.approx(one.value.item() + float(a @ lift), abs=1e-10)


@pytest.mark.parametrize("d", [1, 2, 12])
@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean"])
def test_law_single_is_close_to_double(d, cost):
    x, y = cloud(20, d, 0).float(), cloud(20, d, 1).float()
    single, double = (
        exact(PointClouds(x, y, cost)),
        exact(PointClouds(x.double(), y.double(), cost)),
    )
    assert single.f.dtype == single.plan.mass.dtype == single.value.dtype == torch.float32
    assert single.stop.status == "converged"
    assert single.value.item() == pytest.approx(double.value.item(), rel=SINGLE)


@pytest.mark.parametrize("d", [1, 3, 12])
@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean"])
def test_a_cloud_is_at_no_distance_from_itself(d, cost):
    x = cloud(30, d, 0)
    answer = exact(PointClouds(x, x, cost))
    assert answer.value.item() == pytest.approx(0, abs=ROUNDING)


# uniqueness of the duals --------------------------------------------------------------------------


def test_duals_of_a_permutation_are_loose_and_of_generic_weights_rigid():
    assert not exact(brute_force(6, 3).geometry).dual_unique
    assert exact(*problem(7, 5, 0)).dual_unique


def test_tight_arcs_around_a_cycle_hold_disconnected_parts():
    C = torch.ones(2, 2, dtype=torch.float64)  # two entries, two more tight arcs: one cycle
    assert exact(CostMatrix(C)).dual_unique
    C[0, 1] += 1e-3  # the cycle is cut
    assert not exact(CostMatrix(C)).dual_unique


def test_absent_points_do_not_loosen_the_duals():
    geometry, a, b = problem(6, 5, 0)
    a[1] = 0
    a = a / a.sum()
    answer = exact(geometry, a, b)
    assert answer.dual_unique
    check_proof(answer, geometry, a, b)


# endings ------------------------------------------------------------------------------------------


def test_spent_pivots_are_told_with_a_feasible_plan_and_a_true_gap():
    geometry, a, b = problem(30, 40, 0)
    best = exact(geometry, a, b).value.item()
    answer = exact(geometry, a, b, max_iter=3)
    assert answer.stop.status == "max_iter"
    assert answer.stop.iterations == 3
    assert answer.certificate.marginal_error_a < ROUNDING
    assert answer.certificate.marginal_error_b < ROUNDING
    assert answer.certificate.dual_infeasibility < ROUNDING
    assert answer.value.item() - answer.certificate.duality_gap <= best <= answer.value.item()
    assert not answer.dual_unique


@pytest.mark.parametrize("d", [1, 2, 12])
def test_watch_interrupts_before_the_solve(d):
    answer = exact(PointClouds(cloud(9, d, 0), cloud(9, d, 1)), watch=lambda k, r: False)
    assert answer.stop.status == "interrupted"
    assert answer.certificate.marginal_error_a < ROUNDING
    assert answer.certificate.duality_gap >= 0


def test_forbidden_arcs_are_avoided_and_reported():
    geometry, a, b = problem(6, 8, 0)
    cheap = geometry.C.clone()
    geometry.C[0, :7] = 1e16
    answer = exact(geometry, a, b)
    assert [caution.code for caution in answer.cautions] == ["forbidden_arcs"]
    assert answer.plan.dense(6, 8)[0, :7].sum() == 0
    cheap[0, :7] = 20.0  # dear enough never to be used
    assert answer.value.item() == pytest.approx(
        exact(CostMatrix(cheap), a, b).value.item(), abs=1e-10
    )
    assert answer.stop.status == "converged"


def test_forbidden_arcs_that_no_plan_avoids_are_refused():
    geometry, a, b = problem(6, 8, 0)
    geometry.C[0] = 1e16
    with pytest.raises(IllPosed, match="forbidden") as refusal:
        exact(geometry, a, b)
    assert refusal.value.field == "geometry"


def test_costs_that_are_mostly_zero_forbid_nothing():
    C = 1 - torch.eye(9, dtype=torch.float64)
    C[C > 0] = 1e-3
    C[:, 8] = 1.0
    assert not exact(CostMatrix(C)).cautions
    assert not exact(CostMatrix(torch.zeros(3, 4, dtype=torch.float64))).cautions


# gradients ----------------------------------------------------------------------------------------


def test_gradients_of_the_value_match_differences():
    geometry, a, b = problem(4, 5, 1)
    leaves = [t.clone().requires_grad_() for t in (geometry.C, a.log(), b.log())]
    value = lambda C, s, t: exact(CostMatrix(C), 1.7 * s.softmax(0), 1.7 * t.softmax(0)).value
    assert torch.autograd.gradcheck(value, leaves, **DIFFERENCES)


@pytest.mark.parametrize("d", [1, 2, 12])
@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean"])
@pytest.mark.slow
def test_gradients_reach_the_points(d, cost):
    leaves = [cloud(3, d, s).requires_grad_() for s in (0, 1)]
    value = lambda x, y: exact(PointClouds(x, y, cost)).value
    assert torch.autograd.gradcheck(value, leaves, **DIFFERENCES)


def test_gradients_are_plan_and_potentials():
    geometry, a, b = problem(4, 5, 1)
    C, a, b = (t.clone().requires_grad_() for t in (geometry.C, a, b))
    answer = exact(CostMatrix(C), a, b)
    (2 * answer.transport_cost).backward()
    torch.testing.assert_close(C.grad, 2 * answer.plan.dense(4, 5))
    torch.testing.assert_close(a.grad, 2 * answer.f)
    torch.testing.assert_close(b.grad, 2 * answer.g)


def test_gradient_along_the_mass():
    geometry, a, b = problem(4, 5, 1)
    t = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda t: exact(geometry, t * a, t * b).value, [t], **DIFFERENCES
    )


# peers --------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_agrees_with_pot():
    ot = pytest.importorskip("ot")
    geometry, a, b = problem(40, 30, 2)
    theirs = ot.emd2(a.numpy(), b.numpy(), geometry.C.numpy())
    assert exact(geometry, a, b).value.item() == pytest.approx(theirs, abs=ROUNDING)


def test_agrees_with_a_linear_program():
    geometry, a, b = problem(7, 6, 2)
    rows = np.kron(np.eye(7), np.ones(6))
    columns = np.kron(np.ones(7), np.eye(6))
    theirs = linprog(
        geometry.C.numpy().ravel(),
        A_eq=np.vstack([rows, columns]),
        b_eq=np.concatenate([a.numpy(), b.numpy()]),
    )
    assert exact(geometry, a, b).value.item() == pytest.approx(theirs.fun, abs=PROGRAMMED)


# bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("a", {"a": torch.tensor([0.5, -0.5, 1.0], dtype=torch.float64)}),
        ("a", {"a": torch.zeros(3, dtype=torch.float64)}),
        ("b", {"b": uniform(3)}),
        ("b", {"b": uniform(4) * (1 + 2e-5)}),
        ("geometry.C", {"geometry": CostMatrix(torch.full((3, 4), math.nan))}),
        ("geometry.C", {"geometry": CostMatrix(torch.full((3, 4), math.inf))}),
        ("geometry.x", {"geometry": PointClouds(torch.full((3, 1), math.nan), torch.zeros(4, 1))}),
        ("geometry.x", {"geometry": PointClouds(torch.zeros(3, 0), torch.zeros(4, 0))}),
        (
            "geometry",
            {
                "geometry": PointClouds(
                    torch.zeros(3, 1).double(), 1e200 * torch.ones(4, 1).double()
                )
            },
        ),
    ],
)
def test_bad_input_is_named(field, change):
    with pytest.raises(IllPosed) as refusal:
        exact(**{"geometry": CostMatrix(random_cost(3, 4, 0))} | change)
    assert refusal.value.field == field


def test_masses_equal_up_to_single_precision_are_rescaled_and_reported():
    geometry, a, b = problem(4, 5, 0)
    answer = exact(geometry, a, b * (1 + 5e-6))
    assert [caution.code for caution in answer.cautions] == ["mass_rescaled"]
    assert answer.value.item() == pytest.approx(exact(geometry, a, b).value.item(), abs=ROUNDING)
