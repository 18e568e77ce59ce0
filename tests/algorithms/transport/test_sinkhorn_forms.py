"""What transport.sinkhorn returns of a plan, where it starts, and what it streams."""

import pytest
import torch

from algorithms.errors import IllPosed
from algorithms.geometry import CostMatrix, PointClouds
from algorithms.marginals import KL, TV, Balanced, Range
from algorithms.transport.sinkhorn import sinkhorn
from tests.problems.transport import cloud, random_cost, random_weights

SOLVED = 1e-11  # error asked for where two ways to one answer are compared
ALIKE = {"atol": 1e-9, "rtol": 1e-9}  # SOLVED, amplified by epsilon 5% of the mean cost
PAIRS = [
    (Balanced(), Balanced()),
    (KL(0.7), KL(2.0)),
    (TV(0.9), TV(0.8)),
    (Range(0.5, 1.2), KL(1.0)),
]


def clouds():
    a, b = random_weights(12, 0), random_weights(9, 1)
    a[3], b[5] = 0, 0
    return cloud(12, 2, 0), cloud(9, 2, 1) + 0.5, a, b * (a.sum() / b.sum())


def test_epsilon_is_relative_to_the_mean_cost():
    C = random_cost(5, 6, 0)
    answer = sinkhorn(CostMatrix(C), epsilon_relative=0.2)
    assert answer.epsilon == pytest.approx(0.2 * float(C.mean()))
    assert sinkhorn(CostMatrix(C)).epsilon == pytest.approx(0.05 * float(C.mean()))
    with pytest.raises(IllPosed, match="one of the two"):
        sinkhorn(CostMatrix(C), epsilon=0.1, epsilon_relative=0.1)


@pytest.mark.parametrize("form", ["sparse", "top"])
def test_entries_are_those_of_the_plan(form):
    C = random_cost(20, 30, 0)
    whole = sinkhorn(CostMatrix(C), epsilon=0.02)
    part = sinkhorn(CostMatrix(C), epsilon=0.02, plan_form=form, top=3)
    assert part.plan is None
    entries = part.entries
    torch.testing.assert_close(whole.plan[entries.rows, entries.cols], entries.mass)
    left = whole.mass.item() - entries.mass.sum().item()
    assert part.dropped.item() == pytest.approx(left, abs=1e-12)
    if form == "sparse":
        assert 0 <= left < 1e-3
    else:
        assert (entries.rows.bincount() == 3).all()
        assert entries.mass.min() > 0


def test_none_returns_no_plan():
    answer = sinkhorn(CostMatrix(random_cost(4, 5, 0)), epsilon=0.1, plan_form="none")
    assert answer.plan is None
    assert answer.entries is None


def test_the_map_is_the_mean_of_where_mass_goes():
    x, y, a, b = clouds()
    answer = sinkhorn(PointClouds(x, y), a, b, epsilon=0.3, barycentric=True)
    rows = a > 0
    expected = (answer.plan @ y)[rows] / answer.plan.sum(1)[rows, None]
    torch.testing.assert_close(answer.map[rows], expected, **ALIKE)
    near = ((b.log() + (answer.g - answer_cost(x, y)) / 0.3).softmax(1) @ y)[3]
    torch.testing.assert_close(answer.map[3], near, **ALIKE)
    with pytest.raises(IllPosed, match="needs points"):
        sinkhorn(CostMatrix(random_cost(3, 3, 0)), epsilon=0.1, barycentric=True)


def answer_cost(x, y):
    return torch.cdist(x, y).square()


@pytest.mark.parametrize(("left", "right"), PAIRS, ids=str)
def test_a_restart_from_the_answer_stops_at_once(left, right):
    x, y, a, b = clouds()
    options = {"epsilon": 0.3, "marginal_a": left, "marginal_b": right, "tol": 1e-8}
    first = sinkhorn(PointClouds(x, y), a, b, **options)
    for start in ({"f0": first.f}, {"g0": first.g}):
        again = sinkhorn(PointClouds(x, y), a, b, **options, **start)
        assert again.stop.status == "converged"
        assert again.stop.iterations <= first.stop.iterations // 2
        torch.testing.assert_close(again.plan, first.plan, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize(("left", "right"), PAIRS, ids=str)
def test_streamed_is_dense(left, right):
    answers = []
    for method in ("dense", "streamed"):
        leaves = [t.clone().requires_grad_() for t in clouds()]
        answer = sinkhorn(
            PointClouds(*leaves[:2]), *leaves[2:], epsilon_relative=0.05, marginal_a=left,
            marginal_b=right, tol=SOLVED, method=method, plan_form="top", top=3, barycentric=True,
        )  # fmt: skip
        answers.append((answer, torch.autograd.grad(answer.value, leaves)))
    (dense, slopes), (streamed, others) = answers
    for name in ("f", "g", "value", "transport_cost", "mass", "rows", "columns", "map", "dropped"):
        torch.testing.assert_close(getattr(streamed, name), getattr(dense, name), **ALIKE)
    torch.testing.assert_close(others, slopes, **ALIKE)
    assert 0 <= streamed.certificate.duality_gap < 1e-8
    with pytest.raises(IllPosed, match="derivatives of the value only"):
        torch.autograd.grad(streamed.f.sum(), leaves)


@pytest.mark.parametrize(
    "options",
    [
        {"method": "streamed"},
        {"method": "streamed", "plan_form": "none", "rounded": True},
        {"method": "streamed", "plan_form": "none", "entropy_reference": "counting"},
    ],
)
def test_streaming_refuses_what_needs_the_plan(options):
    x, y, a, b = clouds()
    with pytest.raises(IllPosed, match="streamed forms no plan"):
        sinkhorn(PointClouds(x, y), a, b, epsilon=0.3, **options)
    with pytest.raises(IllPosed, match="cost sqeuclidean"):
        sinkhorn(CostMatrix(random_cost(3, 3, 0)), method="streamed", plan_form="none")
