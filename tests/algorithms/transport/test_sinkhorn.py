import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithms.entropic.implicit import solve_coupled
from algorithms.errors import IllPosed
from algorithms.geometry import CostMatrix, PointClouds
from algorithms.transport.sinkhorn import sinkhorn
from tests.problems.transport import (
    brute_force,
    cloud,
    dirac,
    gaussians,
    generator,
    random_cost,
    random_weights,
    shifted,
    two_by_two,
    uniform,
)

SOLVED = 1e-12  # marginal error asked for where an answer is compared with a formula
CLOSE = {"atol": 1e-10, "rtol": 1e-9}  # SOLVED, amplified by the conditioning of small problems
SINGLE = {"atol": 2e-5, "rtol": 2e-5}  # float32 potentials at max|C|/epsilon near 30
GRID = 1e-4  # the grid of the Gaussians against the line
SHARP = 1e-6  # entropic against exact value at epsilon 1e-3 of the gap between permutations
DIFFERENCES = {"atol": 1e-6, "rtol": 1e-5}  # central differences of step 1e-6 in float64
ROUNDING = 1e-13  # sums of a few dozen float64 numbers of size one
seeds = st.integers(0, 10_000)
few = settings(max_examples=10, deadline=None)


def problem(n: int, m: int, seed: int, mass: float = 1.0) -> tuple[CostMatrix, torch.Tensor, ...]:
    a, b = random_weights(n, seed, mass), random_weights(m, seed + 1, mass)
    return CostMatrix(random_cost(n, m, seed)), a, b


# oracles ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [1e-2, 1.0, 100.0])
def test_one_source_sends_everything(epsilon):
    known = dirac(5, 0)
    answer = sinkhorn(known.geometry, known.a, known.b, epsilon=epsilon)
    torch.testing.assert_close(answer.plan, known.plan, **CLOSE)
    assert answer.value.item() == pytest.approx(known.value, rel=1e-9)


@pytest.mark.parametrize("epsilon", [0.05, 0.3, 3.0])
def test_two_by_two_has_a_closed_form(epsilon):
    known = two_by_two(1.0, epsilon)
    answer = sinkhorn(known.geometry, epsilon=epsilon, tol=SOLVED)
    torch.testing.assert_close(answer.plan, known.plan, **CLOSE)
    assert answer.value.item() == pytest.approx(known.value, rel=1e-9)


@pytest.mark.parametrize("epsilon", [0.1, 1.0])
@pytest.mark.slow
def test_gaussians_have_a_closed_form(epsilon):
    known = gaussians(200, epsilon)
    answer = sinkhorn(known.geometry, known.a, known.b, epsilon=epsilon, tol=1e-10)
    assert answer.value.item() == pytest.approx(known.value, abs=GRID)


def test_small_epsilon_finds_the_permutation():
    known = brute_force(6, 3)
    answer = sinkhorn(known.geometry, epsilon=1e-3, tol=1e-9)
    assert answer.stop.status == "converged"
    assert answer.transport_cost.item() == pytest.approx(known.value, abs=SHARP)


def test_large_epsilon_finds_independence():
    geometry, a, b = problem(5, 7, 0)
    answer = sinkhorn(geometry, a, b, epsilon=1e8)
    torch.testing.assert_close(answer.plan, a[:, None] * b, **CLOSE)


def test_translation_adds_its_square():
    known = shifted(30, 3, 1)
    moved = sinkhorn(known.geometry, epsilon=0.2, tol=SOLVED)
    still = PointClouds(
        known.geometry.x, known.geometry.y - (known.geometry.y - known.geometry.x).mean(0)
    )
    unmoved = sinkhorn(still, epsilon=0.2, tol=SOLVED)
    assert moved.value.item() == pytest.approx(unmoved.value.item() + known.value, rel=1e-9)


# what the fields mean -----------------------------------------------------------------------------


def test_value_and_plan_are_what_they_are_said_to_be():
    epsilon = 0.07
    geometry, a, b = problem(6, 9, 2, mass=2.5)
    answer = sinkhorn(geometry, a, b, epsilon=epsilon)
    P = answer.plan
    again = a[:, None] * b * torch.exp((answer.f[:, None] + answer.g - geometry.C) / epsilon)
    divergence = (P * (P / (a[:, None] * b)).log()).sum() - P.sum() + a.sum() * b.sum()
    torch.testing.assert_close(P, again, **CLOSE)
    torch.testing.assert_close(answer.transport_cost, (P * geometry.C).sum(), **CLOSE)
    torch.testing.assert_close(answer.value, (P * geometry.C).sum() + epsilon * divergence, **CLOSE)
    assert abs(float(answer.f @ a)) < ROUNDING
    certificate = answer.certificate
    assert certificate.marginal_error_a == pytest.approx(
        float((P.sum(1) - a).abs().sum()), abs=ROUNDING
    )
    assert certificate.marginal_error_b < ROUNDING * 10
    assert answer.stop.residual <= 1e-6


@pytest.mark.parametrize("tol", [0.3, 1e-2, 1e-4, 1e-8])
def test_the_gap_bounds_the_distance_to_the_optimum(tol):
    geometry, a, b = problem(12, 9, 4)
    best = sinkhorn(geometry, a, b, epsilon=0.02, tol=SOLVED).value.item()
    loose = sinkhorn(geometry, a, b, epsilon=0.02, tol=tol)
    rounded = sinkhorn(geometry, a, b, epsilon=0.02, tol=tol, rounded=True)
    seen = loose.certificate
    assert seen.dual_value <= best + ROUNDING
    assert rounded.value.item() >= best - ROUNDING
    # the certificate bounds the objective of the rounding by convexity, from above
    assert rounded.value.item() <= seen.dual_value + seen.duality_gap + ROUNDING
    assert seen.duality_gap <= 10 * tol


def test_rounding_is_feasible_and_near():
    geometry, a, b = problem(12, 9, 5)
    loose = sinkhorn(geometry, a, b, epsilon=0.02, tol=1e-2)
    rounded = sinkhorn(geometry, a, b, epsilon=0.02, tol=1e-2, rounded=True)
    assert rounded.certificate.marginal_error_a < ROUNDING
    assert rounded.certificate.marginal_error_b < ROUNDING
    assert (rounded.plan >= 0).all()
    error = loose.certificate.marginal_error_a + loose.certificate.marginal_error_b
    assert float((rounded.plan - loose.plan).abs().sum()) <= 2 * error + ROUNDING


def test_absent_points_change_nothing_and_get_the_transform():
    geometry, a, b = problem(6, 5, 6)
    a[2], b[[0, 4]] = 0, 0
    b = b * (a.sum() / b.sum())
    answer = sinkhorn(geometry, a, b, epsilon=0.1, tol=SOLVED)
    rows, columns = a > 0, b > 0
    inner = sinkhorn(
        CostMatrix(geometry.C[rows][:, columns]), a[rows], b[columns], epsilon=0.1, tol=SOLVED
    )
    torch.testing.assert_close(answer.plan[rows][:, columns], inner.plan, **CLOSE)
    assert answer.plan[2].sum() == 0
    assert answer.plan[:, [0, 4]].sum() == 0
    z = b[columns].log() + (answer.g[columns] - geometry.C[2, columns]) / 0.1
    assert answer.f[2].item() == pytest.approx(-0.1 * z.logsumexp(0).item(), abs=1e-12)


# laws ---------------------------------------------------------------------------------------------


@few
@given(seeds, st.integers(1, 9), st.integers(1, 9), st.sampled_from([0.03, 0.3, 3.0]))
def test_law_swap_and_transpose(seed, n, m, epsilon):
    geometry, a, b = problem(n, m, seed)
    one = sinkhorn(geometry, a, b, epsilon=epsilon, tol=SOLVED)
    other = sinkhorn(CostMatrix(geometry.C.T), b, a, epsilon=epsilon, tol=SOLVED)
    torch.testing.assert_close(one.plan, other.plan.T, **CLOSE)
    torch.testing.assert_close(one.f[:, None] + one.g, other.g[:, None] + other.f, **CLOSE)


@few
@given(seeds, st.sampled_from([1e-6, 0.1, 7.0, 1e6]))
def test_law_scaling_cost_with_epsilon(seed, scale):
    geometry, a, b = problem(7, 5, seed)
    one = sinkhorn(geometry, a, b, epsilon=0.05, tol=SOLVED)
    other = sinkhorn(CostMatrix(scale * geometry.C), a, b, epsilon=scale * 0.05, tol=SOLVED)
    torch.testing.assert_close(one.plan, other.plan, **CLOSE)
    torch.testing.assert_close(scale * one.value, other.value, atol=0, rtol=1e-9)


@few
@given(seeds, st.sampled_from([1e-3, 3.0, 1e5]))
def test_law_mass_scales_the_plan(seed, mass):
    geometry, a, b = problem(7, 5, seed)
    one = sinkhorn(geometry, a, b, epsilon=0.05, tol=SOLVED)
    other = sinkhorn(geometry, mass * a, mass * b, epsilon=0.05, tol=SOLVED)
    torch.testing.assert_close(mass * one.plan, other.plan, **CLOSE)
    torch.testing.assert_close(one.f, other.f, **CLOSE)


@few
@given(seeds)
def test_law_permuting_points_permutes_the_plan(seed):
    geometry, a, b = problem(8, 6, seed)
    rows, cols = (torch.randperm(k, generator=generator(seed)) for k in (8, 6))
    one = sinkhorn(geometry, a, b, epsilon=0.05, tol=SOLVED)
    other = sinkhorn(
        CostMatrix(geometry.C[rows][:, cols]), a[rows], b[cols], epsilon=0.05, tol=SOLVED
    )
    torch.testing.assert_close(one.plan[rows][:, cols], other.plan, **CLOSE)


@few
@given(seeds, st.floats(-50, 50))
def test_law_constants_of_rows_move_only_the_value(seed, shift):
    geometry, a, b = problem(6, 8, seed)
    lift = shift * torch.linspace(-1, 1, 6, dtype=torch.float64)
    one = sinkhorn(geometry, a, b, epsilon=0.1, tol=1e-11)
    other = sinkhorn(CostMatrix(geometry.C + lift[:, None]), a, b, epsilon=0.1, tol=1e-11)
    torch.testing.assert_close(one.plan, other.plan, atol=1e-9, rtol=1e-7)
    assert other.value.item() == pytest.approx(one.value.item() + float(a @ lift), abs=1e-8)


@few
@given(seeds)
def test_law_the_gap_closes(seed):
    geometry, a, b = problem(9, 9, seed)
    gaps = [
        sinkhorn(geometry, a, b, epsilon=0.05, tol=tol).certificate.duality_gap
        for tol in (1e-1, 1e-4, 1e-10)
    ]
    assert all(gap >= 0 for gap in gaps)
    assert gaps[-1] < 1e-9


@few
@given(seeds)
@pytest.mark.slow
def test_law_single_is_close_to_double(seed):
    geometry, a, b = problem(20, 15, seed)
    double = sinkhorn(geometry, a, b, epsilon=0.05, tol=1e-5)
    single = sinkhorn(CostMatrix(geometry.C.float()), a.float(), b.float(), epsilon=0.05, tol=1e-5)
    assert single.plan.dtype == single.f.dtype == single.value.dtype == torch.float32
    torch.testing.assert_close(single.value.double(), double.value, **SINGLE)
    torch.testing.assert_close(single.plan.double(), double.plan, **SINGLE)


def test_law_value_grows_with_epsilon_and_duplicates_share():
    x = cloud(6, 2, 0)
    twice = torch.cat([x, x])
    once = sinkhorn(PointClouds(x, x + 1), epsilon=0.5, tol=SOLVED)
    doubled = sinkhorn(PointClouds(twice, x + 1), epsilon=0.5, tol=SOLVED)
    torch.testing.assert_close(doubled.plan[:6] + doubled.plan[6:], once.plan, **CLOSE)
    values = [sinkhorn(PointClouds(x, x), epsilon=e, tol=SOLVED).value for e in (0.1, 1.0, 10.0)]
    assert values[0] < values[1] < values[2]


# endings ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [1e-3, 1e-5, 1e-8])
@pytest.mark.slow
def test_tiny_epsilon_is_finite_and_honest(epsilon):
    geometry, a, b = problem(30, 40, 7)
    answer = sinkhorn(geometry, a, b, epsilon=epsilon, max_iter=400)
    for field in (answer.plan, answer.f, answer.g, answer.value, answer.transport_cost):
        assert field.isfinite().all()
    error = float((answer.plan.sum(1) - a).abs().sum() + (answer.plan.sum(0) - b).abs().sum())
    assert answer.stop.residual == pytest.approx(error, abs=ROUNDING)
    assert (answer.stop.status == "converged") == (error <= 1e-6)
    assert answer.stop.iterations <= 400


def test_outliers_and_tiny_weights_are_solved():
    x, y = cloud(20, 2, 0), cloud(20, 2, 1)
    x[0] = 1e3
    a = uniform(20)
    a[1] = 1e-60
    a = a / a.sum()
    answer = sinkhorn(PointClouds(x, y), a, epsilon=1.0)
    assert answer.stop.status == "converged"
    assert answer.plan[1].sum().item() == pytest.approx(a[1].item(), rel=1e-6)


def test_watch_is_asked_and_obeyed():
    geometry, a, b = problem(20, 20, 8)
    seen = []

    def watch(iteration, residual):
        seen.append((iteration, residual))
        return len(seen) < 3

    answer = sinkhorn(geometry, a, b, epsilon=1e-3, tol=1e-9, watch=watch)
    assert answer.stop.status == "interrupted"
    assert answer.plan.isfinite().all()
    assert len(seen) <= 4  # the second chance does not follow an interruption


def test_watch_counts_every_sweep_once_and_inner_loops_report_nothing():
    known = shifted(30, 3, 3)  # nearly determined: annealing, sweeps, Newton steps, sweeps
    seen = []
    answer = sinkhorn(
        known.geometry, epsilon=0.2, tol=SOLVED, watch=lambda *now: not seen.append(now)
    )
    assert answer.stop.status == "converged"
    reported = [(iteration, residual) for iteration, residual in seen if iteration >= 0]
    assert [k for k, _ in reported] == sorted(k for k, _ in reported)
    assert all(math.isfinite(residual) for _, residual in reported)
    assert reported[-1][0] <= answer.stop.iterations


def test_max_iter_is_kept_through_annealing():
    geometry, a, b = problem(20, 20, 8)
    answer = sinkhorn(geometry, a, b, epsilon=1e-5, max_iter=7)
    assert answer.stop.status == "max_iter"
    assert answer.stop.iterations == 7


def test_single_precision_at_its_floor_says_so():
    x, y = cloud(40, 2, 0).float(), cloud(40, 2, 1).float()
    answer = sinkhorn(PointClouds(x, y), epsilon=0.05, tol=9e-7)
    assert answer.stop.status == "stagnated"
    assert [caution.code for caution in answer.cautions] == ["rounding_floor"]


# gradients ----------------------------------------------------------------------------------------


def solved(C, log_a, log_b, mass=1.7):
    a, b = mass * log_a.softmax(0), mass * log_b.softmax(0)
    return sinkhorn(CostMatrix(C), a, b, epsilon=0.1, tol=1e-14, max_iter=1000)


def leaves(*tensors):
    return [t.clone().requires_grad_() for t in tensors]


@pytest.mark.slow
def test_gradients_of_every_output_match_differences():
    args = leaves(random_cost(4, 5, 0), random_weights(4, 0), random_weights(5, 1))

    def outputs(*args):
        answer = solved(*args)
        return answer.plan, answer.f, answer.g, answer.transport_cost, answer.value

    assert torch.autograd.gradcheck(outputs, args, **DIFFERENCES)


@pytest.mark.slow
def test_second_derivatives_of_the_value_match_differences():
    args = leaves(random_cost(3, 4, 0), random_weights(3, 0), random_weights(4, 1))
    assert torch.autograd.gradgradcheck(lambda *args: solved(*args).value, args, **DIFFERENCES)


def test_second_derivatives_of_the_plan_are_refused():
    (C,) = leaves(random_cost(3, 4, 0))
    plan = sinkhorn(CostMatrix(C), epsilon=0.1).plan
    (first,) = torch.autograd.grad(plan[0, 0], C, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        torch.autograd.grad(first.sum(), C)


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean"])
@pytest.mark.slow
def test_gradients_reach_the_points(cost):
    def value(x, y):
        return sinkhorn(PointClouds(x, y, cost), epsilon=0.3, tol=1e-13).value

    assert torch.autograd.gradcheck(value, leaves(cloud(4, 2, 0), cloud(5, 2, 1)), **DIFFERENCES)


def test_gradient_of_the_value_follows_the_envelope():
    C, a, b = leaves(random_cost(5, 4, 0), random_weights(5, 0), random_weights(4, 1))
    answer = sinkhorn(CostMatrix(C), a, b, epsilon=0.1, tol=SOLVED)
    (3 * answer.value).backward()
    torch.testing.assert_close(C.grad, 3 * answer.plan.detach(), **CLOSE)
    torch.testing.assert_close(a.grad, 3 * answer.f.detach(), **CLOSE)
    torch.testing.assert_close(b.grad, 3 * answer.g.detach(), **CLOSE)


def test_gradient_along_the_mass():
    geometry, a, b = problem(5, 4, 0, mass=1.3)
    t = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    value = lambda t: sinkhorn(geometry, t * a, t * b, epsilon=0.1, tol=SOLVED).value
    assert torch.autograd.gradcheck(value, [t], **DIFFERENCES)


def test_gradient_of_a_rounded_plan():
    (C,) = leaves(random_cost(4, 5, 0))
    kept = random_cost(4, 5, 1)
    score = lambda C: (
        sinkhorn(CostMatrix(C), epsilon=0.1, tol=1e-14, rounded=True).plan * kept
    ).sum()
    assert torch.autograd.gradcheck(score, [C], **DIFFERENCES)


def test_gradient_at_an_absent_point_is_one_sided():
    geometry, a, b = problem(5, 4, 0)
    a[1] = 0
    a = (a / a.sum()).requires_grad_()
    value = lambda a: sinkhorn(geometry, a, b, epsilon=0.1, tol=SOLVED).value
    (slope,) = torch.autograd.grad(value(a), a)
    step, there = 1e-6, torch.zeros_like(b).new_zeros(5)
    there[1], there[0] = step, -step
    seen = (value(a.detach() + there) - value(a.detach())) / step
    assert seen.item() == pytest.approx(float(slope[1] - slope[0]), abs=1e-4)  # x log x at 1e-6


@few
@given(seeds, st.integers(1, 8), st.integers(1, 8))
def test_the_coupled_system_is_solved(seed, n, m):
    P = random_cost(n, m, seed) + 0.01
    y, z = cloud(n, 1, seed)[:, 0], cloud(m, 1, seed + 1)[:, 0]
    u, v = solve_coupled(P, P.sum(1) * y + P @ z, P.T @ y + P.sum(0) * z)
    torch.testing.assert_close(u[:, None] + v, y[:, None] + z, atol=1e-9, rtol=1e-7)


# peers --------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("epsilon", [0.02, 0.2])
def test_agrees_with_pot(epsilon):
    ot = pytest.importorskip("ot")
    geometry, a, b = problem(30, 20, 9)
    theirs = ot.sinkhorn(
        a.numpy(), b.numpy(), geometry.C.numpy(), epsilon,
        method="sinkhorn_log", stopThr=1e-12, numItermax=20_000,
    )  # fmt: skip
    ours = sinkhorn(geometry, a, b, epsilon=epsilon, tol=SOLVED)
    torch.testing.assert_close(ours.plan, torch.from_numpy(theirs), atol=1e-9, rtol=1e-6)


# bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("a", {"a": torch.tensor([0.5, -0.5, 1.0], dtype=torch.float64)}),
        ("a", {"a": torch.tensor([0.5, math.nan, 0.5], dtype=torch.float64)}),
        ("a", {"a": torch.zeros(3, dtype=torch.float64)}),
        ("a", {"a": uniform(4)}),
        ("b", {"b": uniform(4) * 1.01}),
        ("b", {"b": uniform(4) * (1 + 2e-5)}),
        ("epsilon", {"epsilon": 0.0}),
        ("epsilon", {"epsilon": math.inf}),
        ("tol", {"tol": 0.0}),
        ("tol", {"epsilon": 1e-14}),
        ("geometry.C", {"geometry": CostMatrix(torch.full((3, 4), math.nan))}),
        ("geometry.C", {"geometry": CostMatrix(torch.zeros(0, 4))}),
        ("geometry.y", {"geometry": PointClouds(torch.zeros(3, 2), torch.full((4, 2), math.inf))}),
        ("geometry", {"geometry": PointClouds(torch.zeros(3, 2), torch.full((4, 2), 1e30))}),
    ],
)
def test_bad_input_is_named(field, change):
    question = {"geometry": CostMatrix(random_cost(3, 4, 0)), "epsilon": 0.1} | change
    with pytest.raises(IllPosed) as refusal:
        sinkhorn(**question)
    assert refusal.value.field == field
    assert refusal.value.code == "infeasible-problem"


def test_single_precision_refuses_what_it_cannot_reach():
    geometry = CostMatrix(random_cost(3, 4, 0).float())
    with pytest.raises(IllPosed, match="cannot be met in float32") as refusal:
        sinkhorn(geometry, epsilon=1e-3, tol=1e-8)
    assert refusal.value.code == "infeasible-problem"


def test_masses_equal_up_to_rounding_are_rescaled_and_reported():
    geometry, a, b = problem(4, 5, 0)
    answer = sinkhorn(geometry, a, b * (1 + 5e-6), epsilon=0.1, tol=SOLVED)
    assert [caution.code for caution in answer.cautions] == ["mass_rescaled"]
    torch.testing.assert_close(
        answer.plan, sinkhorn(geometry, a, b, epsilon=0.1, tol=SOLVED).plan, **CLOSE
    )
    assert not sinkhorn(geometry, a, b, epsilon=0.1).cautions
