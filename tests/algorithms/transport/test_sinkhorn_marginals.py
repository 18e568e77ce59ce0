"""Every marginal of transport.sinkhorn: duality, closed forms, laws, gradients, refusals."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from algorithms.entropic import unbalanced
from algorithms.entropic.aprox import conjugate, penalty, ratios, relaxed
from algorithms.errors import IllPosed
from algorithms.geometry import CostMatrix, PointClouds
from algorithms.marginals import KL, TV, Balanced, Berg, Free, Range
from algorithms.transport.sinkhorn import sinkhorn
from schemas.arrays import Shelf
from schemas.transport.sinkhorn import EXAMPLE, SinkhornRequest
from tests.problems.transport import cloud, random_cost, random_weights

SOLVED = 1e-12  # optimality error asked for where an answer is compared with a formula
CLOSE = {"atol": 1e-10, "rtol": 1e-9}  # SOLVED, amplified by the conditioning of small problems
DIFFERENCES = {"atol": 1e-6, "rtol": 1e-5}  # central differences of step 1e-6 in float64
PROVED = 1e-11  # duality gap of a solved problem of size one
ROUNDING = 1e-12  # sums of a few dozen float64 numbers of size one
SINGLE = {"atol": 2e-5, "rtol": 2e-4}  # float32 potentials at max|C|/epsilon near 10
PAIRS = [
    (KL(0.7), KL(0.7)),
    (KL(0.7), KL(2.0)),
    (TV(0.3), TV(0.2)),
    (TV(0.6), KL(0.5)),
    (Range(0.5, 1.2), Range(0.8, 2.0)),
    (Range(0.5, 1.2), KL(0.4)),
    (Range(0.0, 1.0), Balanced()),
    (Balanced(), KL(0.5)),
    (TV(0.3), Balanced()),
    (Balanced(), Free()),
    (Free(), KL(0.3)),
    (Berg(0.5), Berg(0.9)),
    (Berg(0.5), TV(0.3)),
]
every_pair = pytest.mark.parametrize(("left", "right"), PAIRS, ids=str)
seeds = st.integers(0, 10_000)
few = settings(max_examples=8, deadline=None)


def problem(n, m, seed, mass_a=1.0, mass_b=0.9):
    geometry = CostMatrix(random_cost(n, m, seed))
    return geometry, random_weights(n, seed, mass_a), random_weights(m, seed + 1, mass_b)


def solved(geometry, a=None, b=None, left=Balanced(), right=Balanced(), **options):  # noqa: B008
    asked = {"epsilon": 0.1, "tol": SOLVED, "max_iter": 20_000} | options
    return sinkhorn(geometry, a, b, marginal_a=left, marginal_b=right, **asked)


def dirac_pair(A, B, cost):
    one = torch.ones(1, dtype=torch.float64)
    return CostMatrix(cost * one[:, None]), A * one, B * one


# entropy functions --------------------------------------------------------------------------------


@pytest.mark.parametrize("marginal", {m for pair in PAIRS for m in pair}, ids=str)
def test_the_relaxed_potential_is_stationary_and_fenchel_is_tight(marginal):
    s, epsilon = torch.linspace(-3, 3, 25, dtype=torch.float64), 0.3
    f = relaxed(marginal, s, epsilon)
    ratio = ((f - s) / epsilon).exp()
    low, high = ratios(marginal, f)
    assert (ratio >= low - ROUNDING * (1 + ratio)).all()
    assert (ratio <= high + ROUNDING * (1 + ratio)).all()
    if isinstance(marginal, Balanced | Range):
        ratio = ratio.clamp(low, high)
    young = penalty(marginal, ratio) + conjugate(marginal, -f) + ratio * f
    torch.testing.assert_close(young, torch.zeros_like(s), atol=1e-11, rtol=0)


def test_berg_relaxation_solves_its_equation_at_any_scale():
    s = torch.tensor([-50.0, -1.0, 0.0, 1.0, 1e4], dtype=torch.float64)
    for rho, epsilon in ((1.0, 0.01), (0.1, 3.0), (100.0, 0.5)):
        f = relaxed(Berg(rho), s, epsilon)
        z = (f + rho) / epsilon
        logs = math.log(rho / epsilon) + (s + rho) / epsilon
        seen = logs > -30  # below, f + rho has lost its digits to rho
        torch.testing.assert_close((z + z.log())[seen], logs[seen], atol=1e-6, rtol=1e-9)


# duality ------------------------------------------------------------------------------------------


@every_pair
def test_primal_is_dual(left, right):
    geometry, a, b = problem(6, 8, 0)
    answer = solved(geometry, a, b, left, right)
    P, seen = answer.plan, answer.certificate
    assert answer.stop.status == "converged"
    # the primal objective from its definition, hard sides within rounding of feasible
    value = (P * geometry.C).sum()
    value += 0.1 * ((P * (P / (a[:, None] * b)).log()).sum() - P.sum() + a.sum() * b.sum())
    for side, w, marginal in ((left, a, P.sum(1)), (right, b, P.sum(0))):
        if isinstance(side, Balanced):
            torch.testing.assert_close(marginal, w, atol=1e-10, rtol=0)
        elif isinstance(side, Range):
            assert (marginal >= side.low * w - 1e-10).all()
            assert (marginal <= side.high * w + 1e-10).all()
        else:
            value += (w * penalty(side, marginal / w)).sum()
    assert answer.value.item() == pytest.approx(value.item(), abs=ROUNDING)
    assert seen.dual_value == pytest.approx(value.item(), abs=PROVED)
    assert 0 <= seen.duality_gap < PROVED
    torch.testing.assert_close(answer.rows, P.sum(1), **CLOSE)
    torch.testing.assert_close(answer.columns, P.sum(0), **CLOSE)
    assert answer.mass.item() == pytest.approx(P.sum().item())
    again = a[:, None] * b * ((answer.f[:, None] + answer.g - geometry.C) / 0.1).exp()
    torch.testing.assert_close(P, again, **CLOSE)


@every_pair
def test_a_loose_answer_is_bracketed(left, right):
    geometry, a, b = problem(9, 7, 4)
    best = solved(geometry, a, b, left, right, epsilon=0.02).value.item()
    loose = solved(geometry, a, b, left, right, epsilon=0.02, tol=0.3, max_iter=3)
    seen = loose.certificate
    assert seen.dual_value <= best + ROUNDING
    assert best <= seen.dual_value + seen.duality_gap + ROUNDING


@every_pair
def test_swapping_sides_transposes(left, right):
    geometry, a, b = problem(5, 7, 2)
    one = solved(geometry, a, b, left, right)
    other = solved(CostMatrix(geometry.C.T), b, a, right, left)
    torch.testing.assert_close(one.plan, other.plan.T, **CLOSE)
    assert one.value.item() == pytest.approx(other.value.item(), rel=1e-9)


@every_pair
@pytest.mark.slow
def test_gradients_of_every_output_match_differences(left, right):
    geometry, a, b = problem(3, 4, 0)
    leaves = [t.clone().requires_grad_() for t in (geometry.C, a, b)]

    def outputs(C, a, b):
        answer = solved(CostMatrix(C), a, b, left, right, epsilon=0.25, tol=1e-13)
        free = (answer.f, answer.g) if not isinstance(left, Balanced | Range) else ()
        return answer.value, answer.transport_cost, answer.plan, *free

    assert torch.autograd.gradcheck(outputs, leaves, **DIFFERENCES)


@pytest.mark.parametrize(("left", "right"), [PAIRS[1], PAIRS[2], PAIRS[8]], ids=str)
@pytest.mark.slow
def test_gradients_with_the_counting_reference(left, right):
    geometry, a, b = problem(3, 4, 0)
    leaves = [t.clone().requires_grad_() for t in (geometry.C, a, b)]

    def outputs(C, a, b):
        options = {"entropy_reference": "counting", "epsilon": 0.25, "tol": 1e-13}
        answer = solved(CostMatrix(C), a, b, left, right, **options)
        return answer.value, answer.transport_cost

    assert torch.autograd.gradcheck(outputs, leaves, **DIFFERENCES)


def test_second_derivatives_of_an_unbalanced_value_match_differences():
    geometry, a, b = problem(3, 3, 0)
    leaves = [t.clone().requires_grad_() for t in (geometry.C, a, b)]
    value = lambda C, a, b: solved(CostMatrix(C), a, b, KL(0.7), KL(2.0), tol=1e-14).value
    assert torch.autograd.gradgradcheck(value, leaves, **DIFFERENCES)


def test_gradient_in_the_weights_of_kl_has_its_formula():
    geometry, a, b = problem(5, 4, 1)
    a.requires_grad_()
    answer = solved(geometry, a, b, KL(0.7), KL(2.0))
    (slope,) = torch.autograd.grad(answer.value, a)
    expected = 0.7 + 0.1 * b.sum() - 0.8 * (-answer.f.detach() / 0.7).exp()
    torch.testing.assert_close(slope, expected, **CLOSE)


# facts of section 1 -------------------------------------------------------------------------------


@few
@given(seeds, st.sampled_from([0.3, 2.0]), st.sampled_from([0.3, 5.0, 40.0]))
def test_fact_mass_and_value_of_kl(seed, rho_a, rho_b):
    geometry, a, b = problem(6, 5, seed, 1.3, 0.8)
    answer = solved(geometry, a, b, KL(rho_a), KL(rho_b))
    mass = float(answer.mass)
    assert float(a @ (-answer.f / rho_a).exp()) == pytest.approx(mass, rel=1e-9)
    assert float(b @ (-answer.g / rho_b).exp()) == pytest.approx(mass, rel=1e-9)
    assert answer.certificate.mass_identity < 1e-9
    value = rho_a * 1.3 + rho_b * 0.8 + 0.1 * 1.3 * 0.8 - (rho_a + rho_b + 0.1) * mass
    assert answer.value.item() == pytest.approx(value, abs=1e-9)


def test_fact_product_reference_is_not_homogeneous():
    geometry, a, b = problem(5, 5, 3)
    once = solved(geometry, a, b, KL(0.5), KL(0.5)).value.item()
    twice = solved(geometry, 2 * a, 2 * b, KL(0.5), KL(0.5)).value.item()
    assert abs(twice - 2 * once) > 1e-3


def test_fact_limits_of_rho():
    geometry, a, b = problem(5, 5, 3, 1.0, 1.0)
    balanced = solved(geometry, a, b)
    near = solved(geometry, a, b, KL(1e5), KL(1e5))
    torch.testing.assert_close(near.plan, balanced.plan, atol=1e-5, rtol=0)
    # with an entropic term, rho to 0 leaves the kernel: f and g vanish
    gone = solved(geometry, a, b, KL(1e-9), KL(1e-9))
    torch.testing.assert_close(gone.plan, a[:, None] * b * (-geometry.C / 0.1).exp(), **SINGLE)
    dear = solved(CostMatrix(geometry.C + 5), a, b, KL(1e-3), KL(1e-3))
    assert dear.mass.item() < 1e-6
    assert [c.code for c in dear.cautions] == ["mass_destroyed"]
    assert dear.value.item() == pytest.approx(2e-3 + 0.1, abs=1e-9)  # rho m(a) + rho m(b) + eps


@pytest.mark.parametrize("kind", [KL, TV, Berg])
def test_value_grows_with_rho(kind):
    geometry, a, b = problem(6, 5, 5)
    values = [
        solved(geometry, a, b, kind(rho), kind(2 * rho)).value for rho in (0.05, 0.2, 1.0, 9.0)
    ]
    assert values == sorted(values)


def test_fact_outliers_cost_a_bounded_amount():
    """Two blobs and 5% outliers: balanced transport carries them, unbalanced leaves them."""
    x, y = cloud(40, 2, 0), cloud(40, 2, 1) + 1
    x[:2] = x[:2] + 100
    answer = solved(PointClouds(x, y), None, None, KL(3.0), KL(3.0), epsilon=0.5, tol=1e-9)
    balanced = solved(PointClouds(x, y), epsilon=0.5, tol=1e-6)
    assert answer.stop.status == "converged"
    assert answer.rows[:2].sum() < 1e-3
    torch.testing.assert_close(balanced.rows[:2].sum().item(), 0.05, atol=1e-6, rtol=0)
    further = torch.cat([x[:2] + 1e3, x[2:]])
    again = solved(PointClouds(further, y), None, None, KL(3.0), KL(3.0), epsilon=0.5, tol=1e-8)
    assert again.value.item() == pytest.approx(answer.value.item(), abs=1e-7)
    assert again.f.isfinite().all()


def test_tv_moves_nothing_over_pairs_dearer_than_both_prices():
    geometry, a, b = problem(6, 6, 1)
    answer = solved(geometry, a, b, TV(0.2), TV(0.3), epsilon=0.004, tol=1e-9)
    assert answer.plan[geometry.C > 0.6].sum() < 1e-9
    assert (answer.rows <= a + 0.01).all()


# closed forms -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("A", "B"), [(1.0, 1.0), (0.3, 2.0), (96.0, 5.0)])
@pytest.mark.parametrize("cost", [0.0, 0.7, 30.0])
def test_two_diracs_with_kl(A, B, cost):
    rho, epsilon = 0.8, 0.1
    answer = solved(*dirac_pair(A, B, cost), KL(rho), KL(rho), epsilon=epsilon)
    power = (rho + epsilon) / (2 * rho + epsilon)
    expected = (A * B) ** power * math.exp(-cost / (2 * rho + epsilon))
    assert answer.mass.item() == pytest.approx(expected, rel=1e-9)


def test_two_diracs_with_kl_at_small_epsilon():
    A, B, rho, cost = 1.5, 0.4, 0.8, 0.7
    answer = solved(*dirac_pair(A, B, cost), KL(rho), KL(rho), epsilon=1e-6, tol=1e-8)
    exact = rho * (A + B) - 2 * rho * math.sqrt(A * B) * math.exp(-cost / (2 * rho))
    assert answer.value.item() == pytest.approx(exact, abs=1e-5)


@pytest.mark.parametrize(("cost", "moved"), [(0.5, 0.4), (3.0, 0.0)])
def test_two_diracs_with_tv(cost, moved):
    A, B, rho = 1.5, 0.4, 0.8
    answer = solved(*dirac_pair(A, B, cost), TV(rho), TV(rho), epsilon=1e-3)
    assert answer.mass.item() == pytest.approx(moved, abs=1e-9)
    exact = min(cost, 2 * rho) * min(A, B) + rho * abs(A - B)
    assert answer.value.item() == pytest.approx(exact, abs=5e-3)  # a few epsilon


def test_semi_relaxed_to_a_free_side_sends_each_point_where_it_likes():
    geometry, a, b = problem(5, 6, 0, 1.0, 3.0)
    answer = solved(geometry, a, b, Balanced(), Free())
    rows = a[:, None] * (b.log() - geometry.C / 0.1).softmax(1)
    torch.testing.assert_close(answer.plan, rows, **CLOSE)


def test_large_masses_are_solved():
    geometry, a, b = problem(20, 15, 3, 96.0, 80.0)
    answer = solved(geometry, a, b, KL(0.5), KL(0.7))
    assert answer.stop.status == "converged"
    assert answer.certificate.mass_identity < 1e-9 * 96


# the shift ----------------------------------------------------------------------------------------


def sweeps(left, right, a, b, C, epsilon):
    p = unbalanced.Problem(C, a, b, epsilon, left, right)
    return unbalanced.solve(p, tol=1e-9, max_iter=5000).stop


@pytest.mark.parametrize("rho", [1.0, 10.0, 100.0, 1e4])
def test_sweeps_do_not_grow_with_rho(rho):
    """Without the shift, rho 100 contracts by 1 - 2 epsilon/rho a sweep: thousands of sweeps."""
    C = random_cost(6, 6, 0)
    a, b = random_weights(6, 0), random_weights(6, 1, 1.5)
    for left, right in ((KL(rho), KL(rho)), (KL(rho), KL(3 * rho)), (Balanced(), KL(rho))):
        stop = sweeps(left, right, a, b, C, 0.3)
        assert stop.status == "converged"
        assert stop.iterations <= 60
    for left, right in ((TV(rho), TV(rho)), (Berg(rho), Berg(rho)), (KL(rho), TV(rho))):
        stop = sweeps(left, right, a, b, C, 0.3)
        assert stop.status == "converged"
        assert stop.iterations <= 150


# forbidden pairs ----------------------------------------------------------------------------------


def far_apart():
    x = torch.tensor([[0.0], [1.0], [50.0]], dtype=torch.float64)
    y = torch.tensor([[0.2], [1.5], [-70.0]], dtype=torch.float64)
    return PointClouds(x, y, "wfr", delta=1.0)


@pytest.mark.parametrize("left", [KL(0.7), TV(2.0), Range(0.0, 1.5)], ids=str)
def test_forbidden_pairs_carry_nothing(left):
    geometry = far_apart()
    answer = solved(geometry, None, None, left, KL(0.7))
    assert answer.stop.status == "converged"
    C = geometry.matrix()
    assert (answer.plan[C.isinf()] == 0).all()
    assert answer.plan[:2, :2].sum() > 0.1
    for field in (answer.f, answer.g, answer.value, answer.transport_cost):
        assert field.isfinite().all()
    reached = PointClouds(geometry.x[:2], geometry.y[:2], "wfr", delta=1.0)
    third = torch.full((2,), 1 / 3, dtype=torch.float64)
    inner = solved(reached, third, third, left, KL(0.7))
    torch.testing.assert_close(answer.plan[:2, :2], inner.plan, **CLOSE)
    left_out = penalty(left, torch.zeros((), dtype=torch.float64)) / 3 + 0.7 / 3 + 0.1 * (1 - 4 / 9)
    assert answer.value.item() == pytest.approx(inner.value.item() + float(left_out), abs=1e-9)
    assert answer.certificate.duality_gap < PROVED


def test_gradients_pass_by_forbidden_pairs():
    geometry = far_apart()
    weight = torch.full((3,), 1 / 3, dtype=torch.float64)
    leaves = [t.clone().requires_grad_() for t in (geometry.x, geometry.y, weight)]

    def outputs(x, y, a):
        answer = solved(PointClouds(x, y, "wfr", delta=1.0), a, None, KL(0.7), KL(0.5))
        return answer.value, answer.transport_cost, answer.plan

    assert torch.autograd.gradcheck(outputs, leaves, **DIFFERENCES)


def test_balanced_around_forbidden_pairs():
    x = torch.linspace(0, 4, 5, dtype=torch.float64)[:, None]
    geometry = PointClouds(x, x + 0.1, "wfr", delta=0.5)  # each reaches its neighbours only
    answer = solved(geometry, epsilon=0.3, tol=1e-10)
    assert answer.stop.status == "converged"
    assert (answer.plan[geometry.matrix().isinf()] == 0).all()
    torch.testing.assert_close(answer.plan.sum(1), answer.plan.sum(0), atol=1e-9, rtol=0)


def test_balanced_with_no_plan_never_converges():
    """Two sources reach one target only, which cannot take both."""
    x = torch.tensor([[0.0], [0.1], [3.0]], dtype=torch.float64)
    y = torch.tensor([[0.0], [3.0], [3.1]], dtype=torch.float64)
    answer = solved(PointClouds(x, y, "wfr", delta=0.5), tol=1e-6, max_iter=500)
    assert answer.stop.status != "converged"
    assert "forbidden_pairs" in [caution.code for caution in answer.cautions]
    for field in (answer.plan, answer.f, answer.g, answer.value):
        assert field.isfinite().all()


@pytest.mark.parametrize("left", [Balanced(), Berg(1.0), Range(0.1, 2.0)], ids=str)
def test_a_point_that_nothing_reaches_needs_a_marginal_without_it(left):
    with pytest.raises(IllPosed, match="every pair of 1 points of a is forbidden"):
        solved(far_apart(), None, None, left, KL(0.5))


# numbers ------------------------------------------------------------------------------------------


@every_pair
def test_absent_points_change_nothing(left, right):
    geometry, a, b = problem(6, 5, 6)
    a[2], b[[0, 4]] = 0, 0
    b = b * (0.9 * a.sum() / b.sum())
    answer = solved(geometry, a, b, left, right)
    rows, columns = a > 0, b > 0
    inner = solved(CostMatrix(geometry.C[rows][:, columns]), a[rows], b[columns], left, right)
    torch.testing.assert_close(answer.plan[rows][:, columns], inner.plan, **CLOSE)
    assert answer.value.item() == pytest.approx(inner.value.item(), abs=1e-9)
    assert answer.f.isfinite().all()
    assert answer.g.isfinite().all()


def test_gradient_at_an_absent_point_is_one_sided():
    geometry, a, b = problem(5, 4, 0)
    a[1] = 0
    a.requires_grad_()
    value = lambda a: solved(geometry, a, b, KL(0.7), TV(0.5)).value
    (slope,) = torch.autograd.grad(value(a), a)
    step = torch.zeros_like(a)
    step[1] = 1e-7
    seen = (value(a.detach() + step) - value(a.detach())) / 1e-7
    assert seen.item() == pytest.approx(float(slope[1]), abs=1e-5)


@every_pair
@pytest.mark.slow
def test_single_is_close_to_double(left, right):
    geometry, a, b = problem(12, 9, 3)
    double = solved(geometry, a, b, left, right, tol=1e-5)
    single = solved(CostMatrix(geometry.C.float()), a.float(), b.float(), left, right, tol=1e-5)
    assert single.stop.status == "converged"
    assert single.plan.dtype == single.value.dtype == torch.float32
    torch.testing.assert_close(single.value.double(), double.value, **SINGLE)
    torch.testing.assert_close(single.plan.double(), double.plan, **SINGLE)


@pytest.mark.parametrize("epsilon", [1e-4, 1e6])
@every_pair
def test_extreme_epsilon_is_finite_and_honest(left, right, epsilon):
    geometry, a, b = problem(8, 6, 7)
    answer = solved(geometry, a, b, left, right, epsilon=epsilon, tol=1e-6, max_iter=200)
    for field in (answer.plan, answer.f, answer.g, answer.value, answer.transport_cost):
        assert field.isfinite().all()
    assert (answer.stop.status == "converged") == (answer.stop.residual <= 1e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("rho_a", "rho_b"), [(0.5, 0.5), (0.3, 2.0)])
def test_agrees_with_pot(rho_a, rho_b):
    ot = pytest.importorskip("ot")
    geometry, a, b = problem(12, 9, 9)
    for theirs, ours in (("kl", "product"), ("entropy", "counting")):
        plan = ot.unbalanced.sinkhorn_unbalanced(
            a.numpy(), b.numpy(), geometry.C.numpy(), 0.1, (rho_a, rho_b),
            reg_type=theirs, stopThr=1e-14, numItermax=20_000,
        )  # fmt: skip
        answer = solved(geometry, a, b, KL(rho_a), KL(rho_b), entropy_reference=ours)
        torch.testing.assert_close(answer.plan, torch.from_numpy(plan), atol=1e-9, rtol=1e-6)


# refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left", "right", "mass", "told"),
    [
        (Balanced(), Balanced(), 2.0, "equal masses"),
        (Range(0.5, 1.2), Range(0.9, 1.1), 3.0, r"\[0.5, 1.2\].*\[2.7, 3.3"),
        (Balanced(), Range(0.9, 1.1), 2.0, r"\[1, 1\].*\[1.8, 2.2"),
        (Range(0.5, 1.5), Balanced(), 1.6, r"\[0.5, 1.5\].*\[1.6"),
    ],
)
def test_masses_that_do_not_meet_are_refused_with_their_intervals(left, right, mass, told):
    geometry, a, b = problem(3, 4, 0, 1.0, mass)
    with pytest.raises(IllPosed, match=told) as refusal:
        solved(geometry, a, b, left, right)
    assert refusal.value.field == "b"


@pytest.mark.parametrize("right", [KL(1.0), TV(1.0), Free(), Berg(1.0), Range(0.4, 1.0)], ids=str)
def test_balanced_beside_a_relaxed_side_takes_any_mass(right):
    geometry, a, b = problem(3, 4, 0, 1.0, 2.0)
    answer = solved(geometry, a, b, Balanced(), right)
    assert answer.stop.status == "converged"
    assert answer.certificate.marginal_error_a < 1e-11


def asked(**changes):
    return SinkhornRequest.model_validate(EXAMPLE | changes, context={"shelf": Shelf()})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"b": [1.0, 1.0]}, "a has 1.0, b has 2.0"),
        (
            {
                "b": [1.0, 1.0],
                "marginal_a": {"kind": "range", "low": 0.5, "high": 1.5},
                "marginal_b": {"kind": "range", "low": 0.8, "high": 1.0},
            },
            r"\[0.5, 1.5\], marginal_b for one in \[1.6, 2.0\]",
        ),
        ({"marginal_a": {"kind": "kl", "rho": 0.0}}, "greater than 0"),
        ({"marginal_a": {"kind": "range", "low": 1.1, "high": 2.0}}, "less than or equal to 1"),
        ({"marginal_a": {"kind": "hard"}}, "kl"),
        ({"a": [0.0, 0.0, 0.0]}, "a measure needs mass"),
        ({"epsilon_relative": 0.1}, "not both"),
    ],
)
def test_the_gateway_refuses_what_has_no_answer(changes, told):
    with pytest.raises(ValidationError, match=told):
        asked(**changes)


def test_the_gateway_accepts_different_masses_where_a_side_is_relaxed():
    for marginal in ({"kind": "kl", "rho": 1.0}, {"kind": "free"}, {"kind": "tv", "rho": 1.0}):
        assert asked(b=[1.0, 1.0], marginal_b=marginal).marginal_b.kind == marginal["kind"]
