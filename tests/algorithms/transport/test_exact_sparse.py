"""Column generation: the same optimum as with the whole matrix, and a proof without one."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithms.errors import IllPosed
from algorithms.geometry import CostMatrix, PointClouds
from algorithms.linear.columns import generated
from algorithms.linear.pricing import least, proved, swapped, violated
from algorithms.linear.seeds import first_arcs, first_plan
from algorithms.transport.exact import SPARSE_FROM, exact
from schemas.arrays import Shelf
from schemas.transport import exact as schema
from tests.problems.transport import cloud, generator, random_weights, shifted, uniform

ROUNDING = 1e-12  # share of the largest cost: sums of a few thousand float64 numbers
GAP = 1e-11  # share of the largest cost, as asked of the certificate
SINGLE = 2e-6  # float32 values of size one to ten
DIFFERENCES = {"atol": 1e-6, "rtol": 1e-5}  # central differences of step 1e-6 in float64
seeds = st.integers(0, 10_000)
few = settings(max_examples=10, deadline=None)


def check_proof(answer, geometry, a, b):
    """Recompute the certificate over all pairs, from coordinate differences."""
    difference = geometry.x[:, None] - geometry.y
    C = difference.square().sum(2) if geometry.cost == "sqeuclidean" else difference.norm(dim=2)
    P, scale = answer.plan.dense(*C.shape), float(C.amax()) * float(a.sum())
    assert answer.method == "sparse"
    assert answer.stop.status == "converged"
    assert len(answer.plan.mass) <= sum(C.shape) - 1
    assert (answer.plan.mass > 0).all()
    assert float((P.sum(1) - a).abs().sum()) <= ROUNDING * float(a.sum())
    assert float((P.sum(0) - b).abs().sum()) <= ROUNDING * float(a.sum())
    assert answer.certificate.dual_infeasibility == 0
    # feasible in exact arithmetic: the margin covers even the rounding of this sum
    assert (answer.f[:, None] + answer.g <= C).all()
    gap = float((P * C).sum() - a @ answer.f - b @ answer.g)
    assert -ROUNDING * scale <= gap <= GAP * scale
    assert abs(gap - answer.certificate.duality_gap) <= ROUNDING * scale


@pytest.mark.parametrize("d", [1, 2, 3, 8, 12, 50])
@pytest.mark.parametrize("weighted", [False, True])
def test_agrees_with_the_whole_matrix(d, weighted):
    n, m = (70, 90) if weighted else (80, 80)
    geometry = PointClouds(cloud(n, d, 1), 0.8 * cloud(m, d, 2) + 1)
    a, b = (random_weights(n, 3), random_weights(m, 4)) if weighted else (uniform(n), uniform(m))
    answer, whole = exact(geometry, a, b, method="sparse"), exact(geometry, a, b, method="simplex")
    check_proof(answer, geometry, a, b)
    assert answer.value.item() == pytest.approx(whole.value.item(), rel=ROUNDING)
    torch.testing.assert_close(answer.plan.dense(n, m), whole.plan.dense(n, m))
    assert answer.dual_unique == whole.dual_unique


@few
@given(
    seeds,
    st.integers(1, 12),
    st.integers(1, 12),
    st.sampled_from([1, 2, 11]),
    st.sampled_from(["sqeuclidean", "euclidean"]),
)
def test_law_few_points(seed, n, m, d, cost):
    geometry = PointClouds(cloud(n, d, seed), cloud(m, d, seed + 1), cost)
    a, b = random_weights(n, seed), random_weights(m, seed + 1)
    answer = exact(geometry, a, b, method="sparse")
    check_proof(answer, geometry, a, b)
    whole = exact(geometry, a, b, method="simplex")
    assert answer.value.item() == pytest.approx(whole.value.item(), rel=ROUNDING, abs=ROUNDING)


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean"])
@pytest.mark.parametrize("far", [0.0, 10.0, 1e6])
def test_shifted_clouds(cost, far):
    x = cloud(60, 2, 0)
    geometry = PointClouds(x, x[torch.randperm(60, generator=generator(1))] + far, cost)
    answer = exact(geometry, method="sparse")
    check_proof(answer, geometry, uniform(60), uniform(60))
    each = 2 * far**2 if cost == "sqeuclidean" else math.sqrt(2) * far
    assert answer.value.item() == pytest.approx(each, rel=1e-9, abs=ROUNDING)


def test_a_translation_is_found():
    known = shifted(50, 3, 0)
    answer = exact(known.geometry, method="sparse")
    torch.testing.assert_close(answer.plan.dense(50, 50), known.plan)
    assert answer.value.item() == pytest.approx(known.value, abs=ROUNDING)


@pytest.mark.parametrize("weighted", [False, True])
def test_points_that_coincide(weighted):
    x = cloud(8, 2, 0).repeat(5, 1)
    y = torch.cat([x[:20], cloud(20, 2, 1)])
    a = random_weights(40, 0) if weighted else uniform(40)
    answer = exact(PointClouds(x, y), a, uniform(40), method="sparse")
    check_proof(answer, PointClouds(x, y), a, uniform(40))
    whole = exact(PointClouds(x, y), a, uniform(40), method="simplex")
    assert answer.value.item() == pytest.approx(whole.value.item(), abs=ROUNDING)
    one = exact(PointClouds(x * 0, y * 0), method="sparse")
    assert one.value.item() == 0
    assert one.stop.status == "converged"
    assert one.dual_unique


def test_points_without_mass():
    geometry = PointClouds(cloud(50, 2, 0), cloud(40, 2, 1))
    a, b = random_weights(50, 0), random_weights(40, 1)
    a[::3], b[:7] = 0, 0
    a, b = a / a.sum(), b / b.sum()
    answer = exact(geometry, a, b, method="sparse")
    check_proof(answer, geometry, a, b)
    assert not set(answer.plan.rows.tolist()) & set(range(0, 50, 3))
    assert answer.value.item() == pytest.approx(
        exact(geometry, a, b, method="simplex").value.item(), rel=ROUNDING
    )
    assert answer.dual_unique


def test_weights_of_very_different_size():
    geometry = PointClouds(cloud(30, 2, 0), cloud(30, 2, 1))
    a = torch.logspace(0, -14, 30, dtype=torch.float64)
    a, b = a / a.sum(), uniform(30)
    answer = exact(geometry, a, b, method="sparse")
    check_proof(answer, geometry, a, b)


@pytest.mark.parametrize("scale", [1e-150, 1e-20, 1e20, 1e150])
def test_law_scaling(scale):
    x, y = cloud(40, 2, 0), cloud(40, 2, 1)
    one = exact(PointClouds(x, y), method="sparse")
    other = exact(
        PointClouds(scale * x, scale * y), 3 * uniform(40), 3 * uniform(40), method="sparse"
    )
    assert other.stop.status == "converged"
    assert torch.equal(one.plan.cols, other.plan.cols)
    assert other.value.item() == pytest.approx(3 * scale**2 * one.value.item(), rel=1e-10)


@few
@given(seeds)
def test_law_swap_and_permutation(seed):
    x, y = cloud(30, 2, seed), cloud(25, 2, seed + 1)
    a, b = random_weights(30, seed), random_weights(25, seed + 1)
    one = exact(PointClouds(x, y), a, b, method="sparse")
    order = torch.randperm(30, generator=generator(seed))
    other = exact(PointClouds(y, x[order]), b, a[order], method="sparse")
    torch.testing.assert_close(other.plan.dense(25, 30), one.plan.dense(30, 25)[order].T)


def test_the_seed_decides_the_time_and_not_the_answer():
    geometry = PointClouds(cloud(60, 2, 0), cloud(60, 2, 1))
    one, other = (exact(geometry, method="sparse", generator=generator(s)) for s in (1, 2))
    again = exact(geometry, method="sparse", generator=generator(1))
    assert torch.equal(one.plan.cols, other.plan.cols)
    assert torch.equal(one.f, again.f)


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean"])
def test_law_single_is_close_to_double(cost):
    x, y = cloud(40, 2, 0).float(), cloud(40, 2, 1).float()
    single = exact(PointClouds(x, y, cost), method="sparse")
    double = exact(PointClouds(x.double(), y.double(), cost), method="sparse")
    assert single.f.dtype == single.plan.mass.dtype == single.value.dtype == torch.float32
    assert single.stop.status == "converged"
    assert 0 <= single.certificate.dual_infeasibility < SINGLE
    assert single.value.item() == pytest.approx(double.value.item(), rel=SINGLE)


# pricing ------------------------------------------------------------------------------------------


@few
@given(seeds, st.sampled_from([1, 2, 20]), st.sampled_from(["sqeuclidean", "euclidean", "lp"]))
def test_pricing_finds_every_negative_and_every_zero_reduced_cost(seed, d, cost):
    geometry = PointClouds(
        cloud(30, d, seed), cloud(40, d, seed + 1) + 2, cost, 3.0 if cost == "lp" else None
    )
    g = 0.1 * random_weights(40, seed) * 40
    f = least(geometry, g)  # one zero in each row
    rows, cols = torch.meshgrid(torch.arange(30), torch.arange(40), indexing="ij")
    reduced = geometry.entries(rows.flatten(), cols.flatten()).view(30, 40) - f[:, None] - g
    proof = proved(geometry, f, g)
    assert float((proof.deficit - (-reduced).amax(1).clamp_min(0)).abs().amax()) < ROUNDING
    assert set(proof.arcs[0].tolist()) == set(range(30))
    f = f + 0.2 * random_weights(30, seed) * 30
    expected = reduced - (f - least(geometry, g))[:, None]
    proof = proved(geometry, f, g)
    torch.testing.assert_close(
        proof.deficit, (-expected).amax(1).clamp_min(0), atol=ROUNDING, rtol=0
    )
    found = violated(geometry, f, g, most=40)
    assert len(found[0]) == int((expected < 0).sum())
    worst = violated(geometry, f, g, most=1)
    assert set(worst[0].tolist()) == set(range(30))
    torch.testing.assert_close(worst[2], expected.amin(1), atol=ROUNDING, rtol=0)


def test_a_matrix_is_priced_as_well():
    C = torch.rand(5, 7, dtype=torch.float64, generator=generator(0))
    f = least(CostMatrix(C), torch.zeros(7, dtype=torch.float64))
    g = least(swapped(CostMatrix(C)), f)
    assert float(proved(CostMatrix(C), f, g).deficit.amax()) < ROUNDING
    assert len(violated(CostMatrix(C), f + 1, g, most=9)[0]) == int((f[:, None] + 1 + g > C).sum())


def test_arcs_that_carry_no_flow_get_a_staircase():
    geometry, p = PointClouds(cloud(12, 2, 0), cloud(12, 2, 1)), uniform(12)
    alone = torch.arange(12) * 12  # every source to target 0: no plan
    vertex, stop = generated(geometry, p, p, alone, max_iter=10**9, watch=lambda k, r: True)
    assert stop.status == "converged"
    assert vertex.transport_cost.item() == pytest.approx(exact(geometry).value.item(), abs=ROUNDING)


@pytest.mark.parametrize("d", [2, 12])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_first_plan_is_feasible_and_among_the_first_arcs(d, weighted):
    geometry = PointClouds(cloud(300, d, 0), cloud(300, d, 1))
    p, q = (random_weights(300, s) if weighted else uniform(300) for s in (0, 1))
    drawn = generator(0)
    plan = first_plan(geometry, p, q, generator=drawn, watch=lambda k, r: True)
    arcs = first_arcs(geometry, p, q, plan, generator=drawn)
    torch.testing.assert_close(torch.zeros(300).double().index_add(0, plan[0], plan[2]), p)
    torch.testing.assert_close(torch.zeros(300).double().index_add(0, plan[1], plan[2]), q)
    assert torch.isin(plan[0] * 300 + plan[1], arcs).all()
    assert len(arcs) < 40 * 300
    assert (arcs.diff() > 0).all()


# gradients ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean"])
def test_gradients_match_differences(cost):
    x, y = (cloud(4, 2, s).requires_grad_() for s in (0, 1))
    s, t = (random_weights(4, i).log().requires_grad_() for i in (2, 3))
    value = lambda x, y, s, t: (
        exact(PointClouds(x, y, cost), s.softmax(0), t.softmax(0), method="sparse").value
    )
    assert torch.autograd.gradcheck(value, (x, y, s, t), **DIFFERENCES)


# endings ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("looks", [0, 1, 5, 16, 17])
def test_interrupted_solves_give_a_feasible_plan_and_a_true_gap(looks):
    geometry = PointClouds(cloud(300, 2, 0), cloud(300, 2, 1))
    best = exact(geometry).value.item()
    seen = 0

    def watch(k, r):
        nonlocal seen
        seen += 1
        return seen <= looks

    answer = exact(geometry, method="sparse", watch=watch)
    certificate = answer.certificate
    assert answer.stop.status == "interrupted"
    assert max(certificate.marginal_error_a, certificate.marginal_error_b) < ROUNDING
    assert certificate.dual_infeasibility == 0
    assert answer.value.item() >= best - ROUNDING
    assert answer.value.item() - certificate.duality_gap <= best + ROUNDING
    assert abs(float(answer.f.mean())) < ROUNDING
    assert not answer.dual_unique


def test_spent_pivots_are_told():
    geometry = PointClouds(cloud(100, 2, 0), cloud(100, 2, 1))
    answer = exact(geometry, method="sparse", max_iter=3)
    assert (answer.stop.status, answer.stop.iterations) == ("max_iter", 3)
    assert answer.certificate.marginal_error_a < ROUNDING
    assert answer.certificate.duality_gap > 0


# peers --------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("d", [2, 20])
def test_a_lazy_solver_started_from_our_potentials_finds_nothing_better(d):
    ot = pytest.importorskip("ot")
    x, y = cloud(1500, d, 0), 0.8 * cloud(1500, d, 1) + 1
    answer = exact(PointClouds(x, y))
    assert answer.method == "sparse"
    a = np.full(1500, 1 / 1500)
    warm = answer.f.numpy(), answer.g.numpy()
    theirs = ot.lp.emd2_lazy(x.numpy(), y.numpy(), a, a, potentials_init=warm)
    assert answer.value.item() == pytest.approx(
        float(theirs[0] if isinstance(theirs, tuple) else theirs), rel=1e-10
    )


# choice and bad input -----------------------------------------------------------------------------


def asked(n, m, d, **more):
    facts = {"x": (n, d), "y": (m, d)}
    body = {
        "geometry": {"kind": "points", **{k: np.zeros(s).tolist() for k, s in facts.items()}},
        **more,
    }
    return schema.ExactRequest.model_validate(body, context={"shelf": Shelf()})


def test_memory_is_linear_where_no_matrix_is_held():
    assert asked(2000, 2000, 2).footprint() < 8 * 5 * 2000**2 * 2
    assert asked(1, 1, 2).footprint() == 40
    assert asked(2000, 2000, 2, method="simplex").footprint() == 8 * 5 * 2000**2
    assert asked(100, 100, 1).footprint() == asked(100, 100, 1, method="line").footprint()
    assert schema.SPARSE_FROM == SPARSE_FROM
    grown = asked(4000, 4000, 2).footprint() - asked(2000, 2000, 2).footprint()
    assert grown == 4000 * (schema.BYTES_A_POINT + 8 * 16 * 2)


@pytest.mark.parametrize(
    ("method", "geometry"),
    [
        ("line", PointClouds(cloud(5, 2, 0), cloud(5, 2, 1))),
        ("line", PointClouds(cloud(5, 1, 0) + 9, cloud(5, 1, 1) + 9, "cosine")),
        ("line", CostMatrix(torch.ones(3, 3, dtype=torch.float64))),
        ("assignment", PointClouds(cloud(5, 2, 0), cloud(6, 2, 1))),
        ("sparse", PointClouds(cloud(5, 2, 0), cloud(5, 2, 1), "lp", 3.0)),
        ("sparse", CostMatrix(torch.ones(3, 3, dtype=torch.float64))),
    ],
)
def test_methods_that_do_not_serve_are_refused(method, geometry):
    with pytest.raises(IllPosed) as refusal:
        exact(geometry, method=method)
    assert refusal.value.field == "method"


def test_assignment_of_unequal_weights_is_refused():
    with pytest.raises(IllPosed, match="equal weight"):
        exact(
            PointClouds(cloud(5, 2, 0), cloud(5, 2, 1)), random_weights(5, 0), method="assignment"
        )


def test_cosines_on_a_line_are_not_sorted():
    # points of one coordinate have the directions +1 and -1 only: order says nothing
    x = torch.tensor([[-2.0], [1.0], [3.0]], dtype=torch.float64)
    y = torch.tensor([[5.0], [-1.0], [2.0]], dtype=torch.float64)
    answer = exact(PointClouds(x, y, "cosine"))
    assert answer.method == "simplex"
    assert answer.value.item() == pytest.approx(0, abs=ROUNDING)


def test_points_too_far_apart_for_float64_are_refused():
    x = torch.zeros(3, 2, dtype=torch.float64)
    with pytest.raises(IllPosed, match="overflow"):
        exact(PointClouds(x, x + 1e200), method="sparse")


# Wasserstein-Fisher-Rao: pairs from pi delta on are forbidden ------------------------------------


def test_forbidden_pairs_of_an_angular_cost_are_avoided():
    x = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    y = torch.tensor([[0.5], [2.4]], dtype=torch.float64)
    answer = exact(PointClouds(x, y, "wfr", delta=0.5))  # 0 to 2.4 is beyond pi / 2
    assert answer.stop.status == "converged"
    torch.testing.assert_close(answer.plan.dense(2, 2), torch.eye(2, dtype=torch.float64) / 2)
    expected = -(math.log(math.cos(0.5)) + math.log(math.cos(1.4)))  # halves of two -2 log cos
    assert answer.value.item() == pytest.approx(expected, abs=ROUNDING)
    assert [caution.code for caution in answer.cautions] == ["forbidden_arcs"]


def test_a_point_that_may_go_nowhere_is_refused():
    x = torch.tensor([[0.0], [9.0]], dtype=torch.float64)
    with pytest.raises(IllPosed) as refusal:
        exact(PointClouds(x, x * 0 + 0.5, "wfr", delta=0.5))
    assert refusal.value.field == "geometry"


def test_interrupted_angular_costs_stay_finite():
    x = torch.tensor([[0.0], [3.0]], dtype=torch.float64)
    answer = exact(PointClouds(x, x.flip(0), "wfr", delta=0.5), watch=lambda k, r: False)
    assert answer.stop.status == "interrupted"
    assert math.isfinite(answer.value.item())
