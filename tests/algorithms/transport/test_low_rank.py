import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithms.errors import IllPosed
from algorithms.geometry import CostMatrix, PointClouds, factors
from algorithms.linear.clusters import centres, nearest_of, pair_groups
from algorithms.linear.factored import Costs, Factors, begun, descended
from algorithms.transport.exact import exact
from algorithms.transport.low_rank import low_rank
from schemas.arrays import Shelf
from schemas.transport.low_rank import LowRankRequest
from tests.problems.transport import cloud, generator, random_weights, uniform

ROUNDING = 1e-12  # sums of a few hundred float64 numbers of size one
SINGLE = 1e-5  # float32 values of size one, whose plan is another one
DIFFERENCES = {"atol": 1e-6, "rtol": 1e-6}
seeds = st.integers(0, 10_000)
few = settings(max_examples=5, deadline=None)


def clouds(n, m, d, seed):
    y = 0.8 * cloud(m, d, seed + 1)
    y[:, 0] += 1
    return cloud(n, d, seed), y


def solve(x, y, a=None, b=None, seed=0, **options):
    return low_rank(x, y, a, b, generator=generator(seed), **{"rank": 3} | options)


def plan_of(answer):
    return answer.Q @ (answer.R / answer.g).T


def check(answer, x, y, a, b):
    """Marginals, positivity, the cost and the bounds, recomputed with the matrix."""
    P, C, seen = plan_of(answer), (x[:, None] - y).square().sum(2), answer.certificate
    assert min(float(z.min()) for z in (answer.Q, answer.R)) >= 0
    assert float(answer.g.min()) > 0
    assert float((P.sum(1) - a).abs().sum()) < ROUNDING
    assert float((P.sum(0) - b).abs().sum()) < ROUNDING
    errors = seen.marginal_error_a, seen.marginal_error_b, seen.marginal_error_q
    assert max(*errors, seen.marginal_error_r) < ROUNDING
    assert answer.value.item() == pytest.approx(float((P * C).sum()), rel=1e-10, abs=ROUNDING)
    independent = float(a @ C @ b / a.sum())
    assert seen.independent_value == pytest.approx(independent, rel=1e-10)
    best = exact(CostMatrix(C), a, b).value.item()
    assert seen.lower_bound <= best + ROUNDING
    assert best <= seen.upper_bound + ROUNDING
    assert best <= answer.value.item() + ROUNDING
    assert answer.value.item() <= independent + ROUNDING
    return best


# oracles ------------------------------------------------------------------------------------------


def test_separated_clusters_are_matched():
    places = torch.tensor([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0]], dtype=torch.float64)
    x = (places[:, None] + 0.1 * cloud(20, 2, 0)).reshape(-1, 2)
    y = (places[:, None] + 1 + 0.1 * cloud(20, 2, 1)).reshape(-1, 2)
    answer = solve(x, y)
    check(answer, x, y, uniform(60), uniform(60))
    sent = plan_of(answer).reshape(3, 20, 3, 20).sum((1, 3))
    torch.testing.assert_close(sent, torch.eye(3, dtype=torch.float64) / 3)
    # nothing but the variance within groups is added to the squared distance of the means
    variances = sum(float(z.reshape(3, 20, 2).var(1, correction=0).sum(1).mean()) for z in (x, y))
    means = [z.reshape(3, 20, 2).mean(1) for z in (x, y)]
    apart = float((means[0] - means[1]).square().sum(1).mean())
    assert answer.value.item() == pytest.approx(variances + apart, rel=1e-9)


def test_rank_one_is_the_independent_plan():
    x, y = clouds(9, 7, 3, 0)
    a, b = random_weights(9, 0), random_weights(7, 1)
    answer = solve(x, y, a, b, rank=1)
    check(answer, x, y, a, b)
    torch.testing.assert_close(plan_of(answer), a[:, None] * b)
    assert answer.certificate.ratio == pytest.approx(1, abs=ROUNDING)
    assert answer.stop.status == "converged"


@pytest.mark.parametrize(("n", "m"), [(12, 12), (7, 12), (12, 7), (1, 5), (5, 1), (1, 1)])
def test_full_rank_is_a_plan_without_blur(n, m):
    x, y = clouds(n, m, 2, 3)
    answer = solve(x, y, rank=20)
    best = check(answer, x, y, uniform(n), uniform(m))
    assert answer.value.item() == pytest.approx(answer.certificate.upper_bound, rel=1e-9)
    assert answer.value.item() == pytest.approx(best, rel=0.2)  # leaves are solved exactly


@pytest.mark.slow
@pytest.mark.parametrize(
    ("d", "rank", "most"),
    [(2, 5, 1.83), (2, 20, 1.23), (2, 50, 1.09), (20, 5, 2.20), (20, 20, 1.93), (20, 50, 1.73)],
)
def test_blur_of_a_thousand_points_is_as_small_as_published(d, rank, most):
    x, y = clouds(1000, 1000, d, 0)
    best = exact(PointClouds(x, y)).value.item()
    answer = solve(x, y, rank=rank)
    assert answer.stop.status == "converged"
    assert answer.certificate.marginal_error_a < ROUNDING
    assert answer.certificate.marginal_error_b < ROUNDING
    # another draw of the same clouds: exact costs of a sample vary by some percent
    assert answer.value.item() / best < 1.03 * most


def test_mixing_a_group_costs_what_the_identity_says():
    x, y, w = cloud(40, 3, 0), cloud(40, 3, 1), random_weights(40, 2)
    labels = pair_groups(x, y, w, 4, generator(0))
    mixed = moved = 0.0
    for k in range(4):
        v, u, z = w[labels == k], x[labels == k], y[labels == k]
        mixed += float(v @ (u[:, None] - z).square().sum(2) @ v / v.sum())
        var = lambda s, v=v: float(v @ (s - v @ s / v.sum()).square().sum(1))
        moved += float(v @ (u - z).square().sum(1)) + (var(u + z) - var(u - z)) / 2
    assert mixed == pytest.approx(moved, rel=1e-10)


def test_centres_find_separated_groups():
    places = 100 * cloud(5, 2, 0)
    z = (places[:, None] + cloud(30, 2, 1)).reshape(-1, 2)
    found = centres(z, uniform(150), 5, generator(0))
    labels = nearest_of(z, found).reshape(5, 30)
    assert (labels == labels[:, :1]).all()
    assert len(labels[:, 0].unique()) == 5


def test_mirror_descent_falls_and_keeps_groups():
    x, y = clouds(60, 50, 2, 0)
    c = Costs(*factors(x, y), uniform(60), uniform(50))
    g = random_weights(4, 0)
    Q = torch.softmax(cloud(60, 4, 0), 1) / 60
    R = torch.softmax(cloud(50, 4, 1), 1) / 50
    search = begun(c, Factors(Q, R, g).rounded(c))
    costs = []
    for _ in range(30):
        search = descended(c, search)
        costs.append(search.best.cost(c))
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] < 0.9 * c.independent()
    assert float((search.now.g.sum() - 1).abs()) < 1e-2


# laws ---------------------------------------------------------------------------------------------


@few
@given(seeds, st.integers(1, 6), st.integers(2, 25), st.integers(2, 25))
def test_law_every_answer_is_feasible_and_bounded(seed, rank, n, m):
    x, y = clouds(n, m, 3, seed)
    a, b = random_weights(n, seed, 2.0), random_weights(m, seed + 1, 2.0)
    check(solve(x, y, a, b, rank=rank, seed=seed, max_iter=45), x, y, a, b)


@few
@given(seeds, st.sampled_from([2.0**-12, 4.0, 2.0**12]), st.sampled_from([2.0**-10, 2.0, 1024.0]))
def test_law_scaling(seed, scale, mass):
    # powers of two, which change no digit: another rounding may end in another local optimum
    x, y = clouds(15, 12, 2, seed)
    a, b = random_weights(15, seed), random_weights(12, seed + 1)
    one = solve(x, y, a, b)
    other = solve(scale * x, scale * y, mass * a, mass * b)
    expected = scale**2 * mass * one.value.item()
    assert other.value.item() == pytest.approx(expected, rel=ROUNDING)


def test_law_blur_shrinks_with_rank_and_is_never_independent():
    x, y = clouds(120, 120, 2, 0)
    values = [solve(x, y, rank=r).value.item() for r in (1, 2, 5, 20, 120)]
    assert values == sorted(values, reverse=True)
    assert solve(x, y, rank=2).certificate.ratio < 0.9


def test_same_seed_same_bits():
    x, y = clouds(40, 40, 2, 0)
    one, other = solve(x, y, seed=5), solve(x, y, seed=5)
    assert torch.equal(one.Q, other.Q)
    assert torch.equal(one.R, other.R)


def test_polish_is_not_dearer():
    x, y = clouds(60, 60, 5, 0)
    plain, polished = solve(x, y), solve(x, y, method="mirror_descent")
    check(polished, x, y, uniform(60), uniform(60))
    assert polished.value.item() <= plain.value.item() + ROUNDING


def test_absent_points_equal_clouds_and_one_place():
    x, y = clouds(12, 10, 2, 0)
    a, b = random_weights(12, 0), random_weights(10, 1)
    a[[0, 5]] = 0
    a = a / a.sum()
    answer = solve(x, y, a, b)
    check(answer, x, y, a, b)
    assert (answer.Q[[0, 5]] == 0).all()
    check(solve(x, x), x, x, uniform(12), uniform(12))
    point = torch.ones(6, 2, dtype=torch.float64)
    answer = solve(point, point)
    assert answer.value.item() == pytest.approx(0, abs=ROUNDING)
    assert answer.stop.status == "converged"


def test_single_is_close_to_double():
    x, y = (z.float() for z in clouds(40, 30, 3, 0))
    single, double = solve(x, y), solve(x.double(), y.double())
    assert single.Q.dtype == single.g.dtype == single.value.dtype == torch.float32
    assert single.stop.status == "converged"
    assert single.value.item() == pytest.approx(double.value.item(), rel=SINGLE)


def test_clouds_without_shared_structure_are_cautioned():
    angle = torch.arange(24, dtype=torch.float64) * (2 * math.pi / 24)
    x = torch.zeros(24, 2, dtype=torch.float64)
    y = torch.stack([angle.cos(), angle.sin()], 1)
    answer = solve(x, y)
    assert [caution.code for caution in answer.cautions] == ["near_independent"]


def test_endings():
    x, y = clouds(50, 40, 3, 0)
    spent = solve(x, y, max_iter=2)
    halted = solve(x, y, watch=lambda k, r: False)
    assert (spent.stop.status, halted.stop.status) == ("max_iter", "interrupted")
    for answer in (spent, halted):
        check(answer, x, y, uniform(50), uniform(40))


def test_gradients_are_those_of_the_fixed_plan():
    leaves = [z.requires_grad_() for z in clouds(6, 5, 2, 0)]
    answer = solve(*leaves)
    P = plan_of(answer).detach()
    cost = lambda x, y: (P * (x[:, None] - y).square().sum(2)).sum()
    assert torch.autograd.gradcheck(cost, leaves, **DIFFERENCES)
    ours = torch.autograd.grad(answer.value, leaves)
    for one, other in zip(ours, torch.autograd.grad(cost(*leaves), leaves), strict=True):
        torch.testing.assert_close(one, other)


# bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("rank", {"rank": 0}),
        ("tol", {"tol": 0.0}),
        ("tol", {"tol": math.nan}),
        ("geometry.x", {"x": torch.full((5, 2), math.nan, dtype=torch.float64)}),
        ("x", {"x": torch.full((5, 2), 1e200, dtype=torch.float64)}),
        ("a", {"a": -uniform(5)}),
        ("b", {"b": 2 * uniform(4)}),
    ],
)
def test_bad_input_is_named(field, change):
    x, y = clouds(5, 4, 2, 0)
    with pytest.raises(IllPosed) as refusal:
        solve(**{"x": x, "y": y} | change)
    assert refusal.value.field == field.removeprefix("geometry.")


@pytest.mark.parametrize("change", [{"rank": 0}, {"b": [1.0, 1.0]}, {"a": [-1.0, 2.0]}])
def test_the_schema_refuses_by_name(change):
    body = {"x": [[0.0], [1.0]], "y": [[0.5], [2.0]], "rank": 2}
    LowRankRequest.model_validate(body, context={"shelf": Shelf()})
    with pytest.raises(ValueError, match=r"negative|equal masses|greater") as refusal:
        LowRankRequest.model_validate(body | change, context={"shelf": Shelf()})
    (error,) = refusal.value.errors()
    assert set(change) & {*error["loc"], error.get("ctx", {}).get("field")}
