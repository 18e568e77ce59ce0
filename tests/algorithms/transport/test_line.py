import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance

from algorithms.errors import IllPosed
from algorithms.geometry import CostMatrix, PointClouds
from algorithms.transport.exact import exact
from algorithms.transport.line import line
from tests.problems.transport import cloud, random_weights, sorted_line, uniform, weighted_line

ROUNDING = 1e-12  # sums of a few hundred float64 numbers of size one to ten
SINGLE = 2e-6  # float32 values of size one to ten
DIFFERENCES = {"atol": 1e-6, "rtol": 1e-5}  # central differences of step 1e-6 in float64
seeds = st.integers(0, 10_000)
powers = st.sampled_from([1.0, 1.5, 2.0, 3.0])
spaces = st.sampled_from(["line", "circle"])
few = settings(max_examples=25, deadline=None)


def points(n: int, seed: int) -> torch.Tensor:
    return cloud(n, 1, seed)[:, 0]


def cost(x, y, p, space="line", period=1.0):
    gap = x[:, None] - y
    if space == "circle":
        gap = gap - period * (gap / period).round()
    return gap.abs().pow(p)


def check_proof(answer, C, a, b):
    """Recompute the certificate from scratch and hold it against the one that came."""
    P, seen = answer.plan.dense(*C.shape), answer.certificate
    assert answer.stop.status == "converged"
    assert (answer.plan.mass > 0).all()
    assert len(answer.plan.mass) <= sum(C.shape)
    assert float((P.sum(1) - a).abs().sum()) < ROUNDING
    assert float((P.sum(0) - b).abs().sum()) < ROUNDING
    assert max(float((answer.f[:, None] + answer.g - C).amax()), 0) < ROUNDING * (1 + C.max())
    gap = float((P * C).sum() - a @ answer.f - b @ answer.g)
    assert gap == pytest.approx(seen.duality_gap, abs=ROUNDING)
    assert abs(gap) < ROUNDING * (1 + C.max())
    assert float((P * C).sum()) == pytest.approx(answer.value.item(), abs=ROUNDING)
    assert seen.pairs_checked == C.numel()
    assert abs(float(answer.f @ a)) < ROUNDING


def test_equal_sizes_are_sorted():
    known = sorted_line(50, 0)
    answer = line(known.geometry.x[:, 0], known.geometry.y[:, 0])
    assert answer.value.item() == pytest.approx(known.value, abs=ROUNDING)
    assert answer.distance == pytest.approx(math.sqrt(known.value), abs=ROUNDING)


@pytest.mark.parametrize(("n", "m"), [(1, 7), (30, 20), (20, 31)])
def test_weights_follow_the_quantiles(n, m):
    known = weighted_line(n, m, 3)
    answer = line(known.geometry.x[:, 0], known.geometry.y[:, 0], known.a, known.b)
    check_proof(answer, known.geometry.matrix(), known.a, known.b)
    assert answer.value.item() == pytest.approx(known.value, abs=ROUNDING)


def test_agrees_with_scipy():
    x, y, a, b = points(40, 0), points(30, 1), random_weights(40, 0), random_weights(30, 1)
    theirs = wasserstein_distance(x.numpy(), y.numpy(), a.numpy(), b.numpy())
    assert line(x, y, a, b, p=1.0).distance == pytest.approx(theirs, abs=ROUNDING)


@few
@given(seeds, powers, spaces, st.integers(1, 9), st.integers(1, 9), st.booleans())
def test_law_agrees_with_the_simplex_and_is_proved(seed, p, space, n, m, ties):
    x, y = points(n, seed), points(m, seed + 1)
    a, b = random_weights(n, seed), random_weights(m, seed + 1)
    if ties:
        x, y, a, b = x.round(decimals=1), y.round(decimals=1), uniform(n), uniform(m)
    C = cost(x, y, p, space, 1.3)
    answer = line(x, y, a, b, p, space, 1.3)
    check_proof(answer, C, a, b)
    best = exact(CostMatrix(C), a, b).value.item()
    assert answer.value.item() == pytest.approx(best, abs=ROUNDING)


@few
@given(seeds, powers, st.integers(1, 8))
def test_law_the_circle_is_the_best_of_all_rotations(seed, p, n):
    x, y = points(n, seed), points(n, seed + 1)
    C = cost(x.remainder(1), y.remainder(1), p, "circle")
    by_x, by_y = x.remainder(1).argsort(), y.remainder(1).argsort()
    best = min(float(C[by_x, by_y.roll(k)].mean()) for k in range(n))
    assert line(x, y, p=p, space="circle").value.item() == pytest.approx(best, abs=ROUNDING)


@pytest.mark.parametrize(("x", "y"), [(0.1, 0.9), (0.9, 0.1), (0.3, 0.3), (0.0, 0.5)])
def test_two_points_go_the_shorter_way(x, y):
    x, y = (torch.tensor([z], dtype=torch.float64) for z in (x, y))
    answer = line(x, y, space="circle")
    check_proof(answer, cost(x, y, 2.0, "circle"), uniform(1), uniform(1))


@few
@given(seeds, powers, st.floats(-3, 3))
def test_law_turning_the_circle_changes_nothing(seed, p, turn):
    x, y, a, b = points(7, seed), points(9, seed + 1), random_weights(7, 0), random_weights(9, 1)
    one = line(x, y, a, b, p, "circle", 2.0)
    other = line(x + turn, y + turn + 2.0, a, b, p, "circle", 2.0)
    assert one.value.item() == pytest.approx(other.value.item(), abs=ROUNDING)
    swapped = line(y, x, b, a, p, "circle", 2.0)
    assert one.value.item() == pytest.approx(swapped.value.item(), abs=ROUNDING)


@few
@given(seeds, powers, spaces, st.sampled_from([1e-3, 3.0, 1e3]), st.sampled_from([0.1, 5.0]))
def test_law_scaling(seed, p, space, scale, mass):
    x, y, a, b = points(7, seed), points(9, seed + 1), random_weights(7, 0), random_weights(9, 1)
    one = line(x, y, a, b, p, space)
    other = line(scale * x, scale * y, mass * a, mass * b, p, space, scale)
    assert other.value.item() == pytest.approx(scale**p * mass * one.value.item(), rel=1e-9)
    assert other.distance == pytest.approx(scale * mass ** (1 / p) * one.distance, rel=1e-9)


@pytest.mark.parametrize("space", ["line", "circle"])
def test_many_points_are_proved(space):
    x, y = points(1500, 0), points(1200, 1)
    answer = line(x, y, p=1.5, space=space)
    check_proof(answer, cost(x, y, 1.5, space), uniform(1500), uniform(1200))
    same = line(x, x, space=space)
    assert same.value.item() == pytest.approx(0, abs=ROUNDING)


def test_a_wide_circle_is_the_line():
    x, y = points(20, 0), points(30, 1)
    one, other = line(x, y), line(x, y, space="circle", period=100.0)
    assert one.value.item() == pytest.approx(other.value.item(), abs=1e-10)  # (100 / 2)^2 rounds


@pytest.mark.parametrize("space", ["line", "circle"])
def test_single_is_close_to_double(space):
    x, y = points(20, 0).float(), points(30, 1).float()
    single, double = line(x, y, space=space), line(x.double(), y.double(), space=space)
    assert single.f.dtype == single.plan.mass.dtype == single.value.dtype == torch.float32
    assert single.stop.status == "converged"
    assert single.value.item() == pytest.approx(double.value.item(), rel=SINGLE)


@pytest.mark.parametrize("space", ["line", "circle"])
@pytest.mark.parametrize("p", [1.0, 1.5, 2.0])
@pytest.mark.slow
def test_gradients_match_differences(space, p):
    a, b = random_weights(4, 0), random_weights(5, 1)
    leaves = [z.clone().requires_grad_() for z in (points(4, 2), points(5, 3), a.log(), b.log())]
    value = lambda x, y, s, t: line(x, y, s.softmax(0), t.softmax(0), p, space, 1.7).value
    assert torch.autograd.gradcheck(value, leaves, **DIFFERENCES)


def test_the_watch_stops_the_search_with_a_true_gap():
    x, y, a, b = points(40, 0), points(30, 1), random_weights(40, 0), random_weights(30, 1)
    best = line(x, y, a, b, space="circle").value.item()
    answer = line(x, y, a, b, space="circle", watch=lambda k, r: False)
    assert answer.stop.status == "interrupted"
    assert answer.certificate.marginal_error_b < ROUNDING
    assert answer.certificate.dual_infeasibility < ROUNDING
    assert answer.value.item() - answer.certificate.duality_gap <= best <= answer.value.item()


def test_pairs_beyond_the_limit_are_sampled_and_said_so(monkeypatch):
    monkeypatch.setattr("algorithms.transport.line.PAIRS", 100)
    answer = line(points(40, 0), points(30, 1))
    assert [caution.code for caution in answer.cautions] == ["dual_sampled"]
    assert answer.certificate.pairs_checked == 120  # every 12th of 40 rows


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("p", {"p": 0.5}),
        ("p", {"p": math.nan}),
        ("x", {"x": torch.tensor([math.nan, 0.0, 0.0], dtype=torch.float64)}),
        ("x", {"x": torch.tensor([1e200, 0.0, 0.0], dtype=torch.float64)}),
        ("x", {"x": torch.tensor([1e200, 0.0, 0.0], dtype=torch.float64), "p": 5.0}),
        ("y", {"y": torch.zeros(0, dtype=torch.float64)}),
        ("a", {"a": -uniform(3)}),
        ("b", {"b": 2 * uniform(4)}),
        ("period", {"space": "circle", "period": 0.0}),
        ("period", {"space": "circle", "period": 1e200}),
    ],
)
def test_bad_input_is_named(field, change):
    with pytest.raises(IllPosed) as refusal:
        line(**{"x": points(3, 0), "y": points(4, 1)} | change)
    assert refusal.value.field == field


def test_the_line_of_exact_is_the_same():
    x, y, a, b = points(9, 0), points(7, 1), random_weights(9, 0), random_weights(7, 1)
    theirs = exact(PointClouds(x[:, None], y[:, None], "euclidean"), a, b)
    ours = line(x, y, a, b, p=1.0)
    torch.testing.assert_close(ours.f, theirs.f)
    torch.testing.assert_close(ours.plan.dense(9, 7), theirs.plan.dense(9, 7))
