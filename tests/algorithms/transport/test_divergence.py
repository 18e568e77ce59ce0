import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithms.errors import IllPosed
from algorithms.geometry import PointClouds
from algorithms.transport.divergence import divergence
from algorithms.transport.exact import exact
from algorithms.transport.sinkhorn import sinkhorn
from schemas.arrays import Shelf
from schemas.transport.divergence import DivergenceRequest
from tests.problems.transport import cloud, gaussians, generator, random_weights, uniform

pytestmark = pytest.mark.slow  # a minute together: most compare gradients with differences

SOLVED = 1e-11  # marginal error asked for where an answer is compared with a formula
CLOSE = {"atol": 1e-9, "rtol": 1e-8}  # SOLVED, amplified by the conditioning of small problems
GRID = 1e-4  # the grid of the Gaussians against the line
ROUNDING = 1e-13  # sums of a few dozen float64 numbers of size ten
SINGLE = 1e-5  # float32 points of size one
DIFFERENCES = {"atol": 1e-6, "rtol": 1e-5}  # central differences of step 1e-6 in float64
seeds = st.integers(0, 10_000)
costs = st.sampled_from(["sqeuclidean", "euclidean"])
strengths = st.sampled_from([0.03, 0.3, 3.0])
few = settings(max_examples=10, deadline=None)


def problem(n, m, seed, mass=1.0, cost="sqeuclidean"):
    a, b = random_weights(n, seed, mass), random_weights(m, seed + 1, mass)
    return PointClouds(cloud(n, 2, seed), cloud(m, 2, seed + 1) + 0.5, cost), a, b


# oracles ------------------------------------------------------------------------------------------


def entropic_gaussian(v, w, gap, epsilon):
    """Value between N(0, v) and N(gap, w) on the line (Janati et al. 2020, arXiv:2006.02572)."""
    s = epsilon / 2
    D = math.sqrt(4 * v * w + s * s)
    return gap**2 + v + w - D + s * (1 - math.log(2 * s)) + s * math.log(D + s)


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 10.0])
def test_gaussians_have_a_closed_form(epsilon):
    known = gaussians(200, epsilon)
    answer = divergence(known.geometry, known.a, known.b, epsilon=epsilon, tol=1e-9)
    terms = (
        entropic_gaussian(1.0, 0.49, 0.5, epsilon),
        entropic_gaussian(1.0, 1.0, 0.0, epsilon),
        entropic_gaussian(0.49, 0.49, 0.0, epsilon),
    )
    ours = answer.value_ab, answer.value_aa, answer.value_bb
    assert [v.item() for v in ours] == pytest.approx(terms, abs=GRID)
    expected = terms[0] - terms[1] / 2 - terms[2] / 2
    assert answer.divergence.item() == pytest.approx(expected, abs=GRID)


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean"])
def test_large_epsilon_finds_the_kernel_distance(cost):
    geometry, a, b = problem(6, 8, 0, cost=cost)
    x, y = geometry.x, geometry.y
    C, Cx, Cy = (PointClouds(*pair, cost).matrix() for pair in ((x, y), (x, x), (y, y)))
    distance = a @ C @ b - a @ Cx @ a / 2 - b @ Cy @ b / 2
    answer = divergence(geometry, a, b, epsilon=1e6)
    assert answer.divergence.item() == pytest.approx(distance.item(), rel=1e-4)  # O(1/epsilon)


def test_small_epsilon_finds_the_transport_cost():
    geometry, a, b = problem(6, 8, 0)
    expected = exact(geometry, a, b).value.item()
    answer = divergence(geometry, a, b, epsilon=1e-3)
    assert answer.divergence.item() == pytest.approx(expected, abs=1e-2)  # epsilon log n


def test_two_points_are_apart_by_their_cost():
    geometry = PointClouds(torch.zeros(1, 2).double(), torch.tensor([[3.0, 4.0]]).double())
    for epsilon in (1e-2, 1.0, 1e4):
        assert divergence(geometry, epsilon=epsilon).divergence.item() == pytest.approx(25.0)


def test_a_translation_adds_its_square():
    x, epsilon = cloud(12, 3, 0), 0.2
    t = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    answer = divergence(PointClouds(x, x + t), epsilon=epsilon, tol=SOLVED)
    assert answer.divergence.item() == pytest.approx(float(t @ t), rel=1e-9)


@few
@given(seeds, strengths)
def test_law_of_translations(seed, epsilon):
    geometry, a, b = problem(6, 8, seed)
    t = cloud(1, 2, seed + 2)[0]
    still = divergence(geometry, a, b, epsilon=epsilon, tol=SOLVED).divergence
    moved = divergence(PointClouds(geometry.x, geometry.y + t), a, b, epsilon=epsilon, tol=SOLVED)
    expected = still + t @ t + 2 * t @ (b @ geometry.y - a @ geometry.x)
    torch.testing.assert_close(moved.divergence, expected, **CLOSE)


# what the fields mean -----------------------------------------------------------------------------


@pytest.mark.parametrize("mass", [1.0, 2.5])
def test_terms_are_those_of_the_entropic_routine(mass):
    geometry, a, b = problem(6, 9, 2, mass)
    epsilon, x, y = 0.1, geometry.x, geometry.y
    answer = divergence(geometry, a, b, epsilon=epsilon, tol=SOLVED)
    ab, aa, bb = (
        sinkhorn(PointClouds(*points), *pair, epsilon=epsilon, tol=SOLVED, max_iter=100_000)
        for points, pair in (((x, y), (a, b)), ((x, x), (a, a)), ((y, y), (b, b)))
    )
    torch.testing.assert_close(answer.value_ab, ab.value, **CLOSE)
    torch.testing.assert_close(answer.value_aa, aa.value, **CLOSE)
    torch.testing.assert_close(answer.value_bb, bb.value, **CLOSE)
    torch.testing.assert_close(answer.f_aa[:, None] + answer.f_aa, aa.f[:, None] + aa.g, **CLOSE)
    torch.testing.assert_close(answer.f[:, None] + answer.g, ab.f[:, None] + ab.g, **CLOSE)
    terms = answer.value_ab - answer.value_aa / 2 - answer.value_bb / 2
    torch.testing.assert_close(answer.divergence, terms, **CLOSE)


@few
@given(seeds, st.sampled_from([0.3, 1e-2, 1e-4]), st.sampled_from([0.05, 0.5]))
def test_the_bounds_hold_the_divergence(seed, tol, epsilon):
    geometry, a, b = problem(7, 9, seed)
    best = divergence(geometry, a, b, epsilon=epsilon, tol=SOLVED).divergence.item()
    loose = divergence(geometry, a, b, epsilon=epsilon, tol=tol)
    seen = loose.certificate
    assert seen.lower <= best + ROUNDING
    assert best <= seen.upper + ROUNDING
    assert seen.lower <= loose.divergence.item() <= seen.upper
    assert min(seen.gap_ab, seen.gap_aa, seen.gap_bb) >= 0
    both = seen.marginal_error_a + seen.marginal_error_b
    worst = max(both, 2 * seen.marginal_error_aa, 2 * seen.marginal_error_bb)
    assert loose.stop.residual == pytest.approx(worst, rel=1e-6, abs=ROUNDING)


def test_absent_points_change_nothing_and_get_the_transform():
    geometry, a, b = problem(6, 5, 6)
    a[2], b[[0, 4]] = 0, 0
    b = b * (a.sum() / b.sum())
    rows, columns = a > 0, b > 0
    answer = divergence(geometry, a, b, epsilon=0.1, tol=SOLVED)
    inner = divergence(
        PointClouds(geometry.x[rows], geometry.y[columns]), a[rows], b[columns],
        epsilon=0.1, tol=SOLVED,
    )  # fmt: skip
    torch.testing.assert_close(answer.divergence, inner.divergence, **CLOSE)
    torch.testing.assert_close(answer.f_aa[rows], inner.f_aa, **CLOSE)
    C = PointClouds(geometry.x, geometry.x).matrix()
    z = a[rows].log() + (answer.f_aa[rows] - C[2, rows]) / 0.1
    assert answer.f_aa[2].item() == pytest.approx(-0.1 * z.logsumexp(0).item(), abs=1e-9)


# laws ---------------------------------------------------------------------------------------------


@few
@given(seeds, costs, strengths)
def test_law_zero_on_the_diagonal_and_positive_elsewhere(seed, cost, epsilon):
    geometry, a, b = problem(7, 7, seed, cost=cost)
    same = divergence(PointClouds(geometry.x, geometry.x, cost), a, a, epsilon=epsilon, tol=1e-8)
    assert abs(same.divergence.item()) < 1e-8
    assert [c.code for c in same.cautions] == ["zero_within_error"]
    apart = divergence(geometry, a, b, epsilon=epsilon, tol=1e-8)
    assert apart.divergence.item() > 0
    assert apart.certificate.lower > 0
    assert not apart.cautions
    reweighted = divergence(PointClouds(geometry.x, geometry.x, cost), a, b, epsilon=epsilon)
    assert reweighted.divergence.item() > -1e-9


@few
@given(seeds, costs, strengths)
def test_law_symmetry(seed, cost, epsilon):
    geometry, a, b = problem(5, 8, seed, cost=cost)
    one = divergence(geometry, a, b, epsilon=epsilon, tol=SOLVED)
    other = divergence(PointClouds(geometry.y, geometry.x, cost), b, a, epsilon=epsilon, tol=SOLVED)
    torch.testing.assert_close(one.divergence, other.divergence, **CLOSE)
    torch.testing.assert_close(one.f_aa, other.g_bb, **CLOSE)


@few
@given(seeds, st.sampled_from([1e-3, 3.0, 1e5]))
def test_law_mass_scales_the_divergence(seed, mass):
    geometry, a, b = problem(7, 5, seed)
    one = divergence(geometry, a, b, epsilon=0.1, tol=SOLVED).divergence
    other = divergence(geometry, mass * a, mass * b, epsilon=0.1, tol=SOLVED).divergence
    torch.testing.assert_close(other, mass * one, atol=1e-9 * mass, rtol=1e-8)


@few
@given(seeds, st.sampled_from([1e-3, 7.0, 1e3]))
def test_law_scaling_points_with_epsilon(seed, scale):
    geometry, a, b = problem(7, 5, seed)
    bigger = PointClouds(scale * geometry.x, scale * geometry.y)
    one = divergence(geometry, a, b, epsilon=0.1, tol=SOLVED).divergence
    other = divergence(bigger, a, b, epsilon=0.1 * scale**2, tol=SOLVED).divergence
    torch.testing.assert_close(other, scale**2 * one, atol=0, rtol=1e-8)


@few
@given(seeds)
def test_law_permuting_points_permutes_potentials(seed):
    geometry, a, b = problem(8, 6, seed)
    order = torch.randperm(8, generator=generator(seed))
    one = divergence(geometry, a, b, epsilon=0.1, tol=SOLVED)
    other = divergence(
        PointClouds(geometry.x[order], geometry.y), a[order], b, epsilon=0.1, tol=SOLVED
    )
    torch.testing.assert_close(one.f_aa[order], other.f_aa, **CLOSE)
    torch.testing.assert_close(one.divergence, other.divergence, **CLOSE)


@few
@given(seeds, st.floats(0.1, 0.9))
def test_law_convex_in_one_measure(seed, t):
    geometry, a, b = problem(7, 6, seed)
    other = random_weights(7, seed + 5)
    value = lambda w: divergence(geometry, w, b, epsilon=0.2, tol=1e-9).divergence.item()
    assert value(t * a + (1 - t) * other) <= t * value(a) + (1 - t) * value(other) + 1e-9


def test_law_single_is_close_to_double():
    geometry, a, b = problem(20, 15, 3)
    double = divergence(geometry, a, b, epsilon=0.1)
    single = divergence(
        PointClouds(geometry.x.float(), geometry.y.float()), a.float(), b.float(), epsilon=0.1
    )
    assert single.divergence.dtype == single.f.dtype == single.f_aa.dtype == torch.float32
    assert single.divergence.item() == pytest.approx(double.divergence.item(), rel=SINGLE)


# endings ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [1e-1, 1e-4, 1e-8])
def test_terms_of_one_measure_need_few_sweeps_whatever_epsilon(epsilon):
    x = cloud(40, 2, 0)
    known = divergence(PointClouds(x, x[:1]), uniform(40), None, epsilon=epsilon)
    assert known.stop.status == "converged"
    assert known.stop.iterations <= 60  # one source needs none: nearly all are averaged sweeps


def test_equal_measures_are_never_clipped_and_always_cautioned():
    x = cloud(30, 2, 0)
    for tol in (1e-2, 1e-6, 1e-12):
        answer = divergence(PointClouds(x, x), epsilon=0.1, tol=tol)
        assert [c.code for c in answer.cautions] == ["zero_within_error"]
        assert answer.certificate.lower <= 0 <= answer.certificate.upper


def test_the_worst_status_and_all_sweeps_are_told():
    geometry, a, b = problem(20, 20, 8)
    answer = divergence(geometry, a, b, epsilon=1e-4, max_iter=3)
    assert answer.stop.status == "max_iter"
    assert answer.stop.iterations <= 9
    assert answer.divergence.isfinite()


def test_watch_is_asked_and_obeyed():
    geometry, a, b = problem(20, 20, 8)
    answer = divergence(geometry, a, b, epsilon=1e-3, watch=lambda k, r: False)
    assert answer.stop.status == "interrupted"
    assert answer.divergence.isfinite()


# gradients ----------------------------------------------------------------------------------------


def leaves(*tensors):
    return [t.clone().requires_grad_() for t in tensors]


@pytest.mark.parametrize("mass", [1.0, 1.7])
@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean"])
def test_gradients_of_values_match_differences(cost, mass):
    args = leaves(cloud(4, 2, 0), cloud(5, 2, 1), random_weights(4, 0), random_weights(5, 1))

    def values(x, y, s, t):
        a, b = mass * s.softmax(0), mass * t.softmax(0)
        answer = divergence(PointClouds(x, y, cost), a, b, epsilon=0.3, tol=1e-13)
        return answer.divergence, answer.value_ab, answer.value_aa, answer.value_bb

    assert torch.autograd.gradcheck(values, args, **DIFFERENCES)


def test_gradients_of_potentials_match_differences():
    args = leaves(cloud(4, 2, 0), random_weights(4, 0))
    y = cloud(3, 2, 1)

    def potentials(x, s):
        answer = divergence(PointClouds(x, y), 1.3 * s.softmax(0), 1.3 * uniform(3), epsilon=0.3,
                            tol=1e-13)  # fmt: skip
        return answer.f, answer.g, answer.f_aa

    assert torch.autograd.gradcheck(potentials, args, **DIFFERENCES)


def test_second_derivatives_match_differences():
    args = leaves(cloud(3, 2, 0), random_weights(3, 0))
    y = cloud(4, 2, 1)
    value = lambda x, s: (
        divergence(PointClouds(x, y), s.softmax(0), epsilon=0.5, tol=1e-13).divergence
    )
    assert torch.autograd.gradgradcheck(value, args, **DIFFERENCES)


def test_gradient_along_the_mass():
    geometry, a, b = problem(5, 4, 0, mass=1.3)
    t = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)

    def values(t):
        answer = divergence(geometry, t * a, t * b, epsilon=0.3, tol=1e-13)
        return answer.divergence, answer.value_aa, answer.value_bb

    assert torch.autograd.gradcheck(values, [t], **DIFFERENCES)


def test_gradients_in_the_weights_are_debiased_potentials():
    geometry, a, b = problem(5, 4, 0)
    a, b = leaves(a, b)
    answer = divergence(geometry, a, b, epsilon=0.3, tol=SOLVED)
    answer.divergence.backward()
    torch.testing.assert_close(a.grad, (answer.f - answer.f_aa).detach(), **CLOSE)
    torch.testing.assert_close(b.grad, (answer.g - answer.g_bb).detach(), **CLOSE)


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean"])
def test_the_gradient_vanishes_at_equal_measures(cost):
    x = cloud(6, 2, 0)
    (z,) = leaves(x)
    divergence(PointClouds(z, x, cost), epsilon=0.3, tol=SOLVED).divergence.backward()
    assert z.grad.abs().max() < 1e-8


# peers --------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_agrees_with_pot():
    ot = pytest.importorskip("ot")
    geometry, a, b = problem(12, 10, 9)
    x, y, epsilon = geometry.x.numpy(), geometry.y.numpy(), 0.5
    p, q = a.numpy(), b.numpy()

    def value(x, y, p, q):
        C = ot.dist(x, y)
        P = ot.sinkhorn(p, q, C, epsilon, method="sinkhorn_log", stopThr=1e-13, numItermax=20_000)
        return (P * C).sum() + epsilon * (P * np.log(P / np.outer(p, q))).sum()

    theirs = value(x, y, p, q) - value(x, x, p, p) / 2 - value(y, y, q, q) / 2
    ours = divergence(geometry, a, b, epsilon=epsilon, tol=SOLVED).divergence.item()
    assert ours == pytest.approx(theirs, abs=1e-9)


# bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("a", {"a": torch.tensor([0.5, -0.5, 1.0], dtype=torch.float64)}),
        ("a", {"a": torch.zeros(3, dtype=torch.float64)}),
        ("b", {"b": uniform(3)}),
        ("b", {"b": uniform(4) * 1.01}),
        ("epsilon", {"epsilon": 0.0}),
        ("epsilon", {"epsilon": math.inf}),
        ("tol", {"tol": 0.0}),
        ("tol", {"epsilon": 1e-14}),
        ("geometry.y", {"geometry": PointClouds(torch.zeros(3, 2), torch.full((4, 2), math.nan))}),
        ("geometry", {"geometry": PointClouds(torch.zeros(3, 2).double(),
                                              torch.full((4, 2), 1e200, dtype=torch.float64))}),
    ],
)  # fmt: skip
def test_bad_input_is_named(field, change):
    question = {"geometry": PointClouds(cloud(3, 2, 0), cloud(4, 2, 1)), "epsilon": 0.1} | change
    with pytest.raises(IllPosed) as refusal:
        divergence(**question)
    assert refusal.value.field == field


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"b": [0.5, 0.6]}, "equal masses"),
        ({"a": [1.5, -0.5]}, "negative"),
        ({"geometry": {"kind": "cost", "C": [[0.0, 1.0], [1.0, 0.0]]}}, "points"),
        ({"geometry": {"kind": "points", "x": [[0.0], [1.0]], "y": [[0.0, 1.0]]}}, "axis d"),
    ],
)
def test_the_schema_refuses_by_name(change, word):
    body = {
        "geometry": {"kind": "points", "x": [[0.0], [1.0]], "y": [[0.5], [2.0]]},
        "epsilon": 0.1,
    }
    with pytest.raises(ValueError, match=word):
        DivergenceRequest.model_validate(body | change, context={"shelf": Shelf()})


def test_masses_equal_up_to_rounding_are_rescaled_and_reported():
    geometry, a, b = problem(4, 5, 0)
    answer = divergence(geometry, a, b * (1 + 5e-6), epsilon=0.1)
    assert len(answer.cautions) == 1
    assert "rescaled" in answer.cautions[0].message
