import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from algorithms.errors import IllPosed
from algorithms.geometry import PointClouds
from algorithms.iterate import unwatched
from algorithms.linear.block_bound import moment_bound
from algorithms.linear.halving import bijection, partition, split_masses
from algorithms.transport.exact import exact
from algorithms.transport.refine import refine
from schemas.arrays import Shelf
from schemas.transport.refine import RefineRequest
from tests.problems.transport import cloud, generator, random_weights, shifted, uniform

ROUNDING = 1e-12  # sums of a few thousand float64 numbers of size one
SINGLE = 1e-5  # float32 values of size one
DIFFERENCES = {"atol": 1e-6, "rtol": 1e-5}  # central differences of step 1e-6 in float64
COSTS = ["sqeuclidean", "euclidean"]
seeds = st.integers(0, 10_000)
few = settings(max_examples=4, deadline=None)


def refined(x, y, a=None, b=None, seed=0, **options):
    return refine(x, y, a, b, generator=generator(seed), **options)


def square(n, seed):
    draw = lambda s: torch.rand(n, 2, generator=generator(s), dtype=torch.float64)
    return draw(seed), draw(seed + 1)


def clouds(n, d, seed=0):
    """Draw the clouds of the published tables: N(0, I), and 0.8 N(0, I) + e_1."""
    x, y = cloud(n, d, seed), 0.8 * cloud(n, d, seed + 1)
    y[:, 0] += 1
    return x, y


def optimum(x, y, cost="sqeuclidean"):
    C = PointClouds(x, y, cost).matrix()
    reduced = C - C.amin(1, keepdim=True)
    reduced = reduced - reduced.amin(0)
    return float(C.numpy()[linear_sum_assignment(reduced.numpy())].mean())


def check(answer, x, y, a, b, cost="sqeuclidean"):
    """Recompute everything that is claimed."""
    rows, cols, mass = answer.plan.rows, answer.plan.cols, answer.plan.mass
    seen = answer.certificate
    off_a = torch.zeros_like(a).index_add(0, rows, mass) - a
    off_b = torch.zeros_like(b).index_add(0, cols, mass) - b
    assert max(off_a.abs().sum(), off_b.abs().sum()) < ROUNDING * float(a.sum())
    assert max(seen.marginal_error_a, seen.marginal_error_b) < ROUNDING * float(a.sum())
    assert (mass > 0).all()
    price = float(PointClouds(x, y, cost).entries(rows, cols) @ mass)
    assert answer.value.item() == pytest.approx(price, rel=ROUNDING, abs=1e-300)
    assert seen.lower_bound <= price * (1 + ROUNDING)
    assert seen.relative_gap == pytest.approx(1 - seen.lower_bound / price, abs=ROUNDING)


def is_permutation(sigma):
    return bool((sigma.sort().values == torch.arange(len(sigma))).all())


# oracles ------------------------------------------------------------------------------------------


@few
@given(seeds, st.integers(1, 60), st.sampled_from(COSTS))
def test_what_fits_one_block_is_exact_and_proved(seed, n, cost):
    x, y = cloud(n, 3, seed), cloud(n, 3, seed + 1)
    answer = refined(x, y, cost=cost)
    assert answer.stop.status == "converged"
    assert answer.value.item() == pytest.approx(optimum(x, y, cost), rel=1e-10)
    # potentials that are c-transforms of exact ones leave no gap but rounding
    assert abs(answer.certificate.relative_gap) < 1e-9
    check(answer, x, y, uniform(n), uniform(n), cost)


@pytest.mark.parametrize("cost", COSTS)
def test_a_translation_is_found_and_proved_by_moments(cost):
    known = shifted(700, 3, 0)
    x, y = known.geometry.x, known.geometry.y
    answer = refined(x, y, cost=cost, leaf=64, bound="moments")
    value = known.value if cost == "sqeuclidean" else math.sqrt(known.value)
    assert answer.value.item() == pytest.approx(value, rel=1e-9)
    assert answer.certificate.relative_gap < 1e-9
    if cost == "sqeuclidean":
        pairs = known.plan.argmax(1)
        assert torch.equal(answer.map, pairs)


@few
@given(seeds, st.integers(2, 25), st.integers(2, 25), st.sampled_from(COSTS))
def test_weighted_plans_are_feasible_and_between_their_bounds(seed, n, m, cost):
    x, y = cloud(n, 2, seed), cloud(m, 2, seed + 1)
    a, b = random_weights(n, seed, 3.0), random_weights(m, seed + 1, 3.0)
    answer = refined(x, y, a, b, cost=cost, leaf=8, passes=5)
    check(answer, x, y, a, b, cost)
    best = exact(PointClouds(x, y, cost), a, b).value.item()
    assert answer.certificate.lower_bound <= best * (1 + ROUNDING)
    assert answer.value.item() >= best * (1 - ROUNDING)
    assert answer.map is None
    assert answer.certificate.bijective is None


@pytest.mark.slow
@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("weighted", [False, True])
def test_the_bound_holds_and_is_close(cost, weighted):
    x, y = square(600, 0)
    a, b = (random_weights(600, 3), random_weights(600, 4)) if weighted else (None, None)
    answer = refined(x, y, a, b, cost=cost, leaf=256)
    best = exact(PointClouds(x, y, cost), a, b).value.item()
    assert 0.9 * best < answer.certificate.lower_bound <= best
    assert best * (1 - ROUNDING) <= answer.value.item() <= 1.02 * best
    assert answer.certificate.bound == "dual"


def test_moments_of_gaussians_are_a_lower_bound_and_tight_for_affine_images():
    x = cloud(300, 4, 0)
    root = torch.diag(torch.tensor([0.5, 1.0, 2.0, 0.1], dtype=torch.float64))
    y = x @ root + 1.0
    a = uniform(300)
    tight = float((x - y).square().sum(1).mean())  # a positive map is optimal (Brenier)
    assert moment_bound(x, a, y, a, "sqeuclidean") == pytest.approx(tight, rel=1e-9)
    z = cloud(300, 4, 1)
    assert moment_bound(x, a, z, a, "sqeuclidean") <= optimum(x, z)
    assert moment_bound(x, a, z + 1, a, "euclidean") <= optimum(x, z + 1, "euclidean")


# the published figures: cost / exact --------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("problem", "most"), [(lambda: square(1024, 0), 1.01), (lambda: clouds(1024, 20), 1.01)]
)
def test_within_one_percent_at_a_thousand_points_and_below_minibatches(problem, most):
    x, y = problem()
    best, answer = optimum(x, y), refined(x, y)
    assert best <= answer.value.item() <= most * best
    order = torch.randperm(1024, generator=generator(0))
    batches = [
        optimum(x[i], y[j]) for i, j in zip(order.split(512), order.flip(0).split(512), strict=True)
    ]
    assert answer.value.item() < np.mean(batches)


# laws ---------------------------------------------------------------------------------------------


@few
@given(seeds, st.integers(1, 400), st.integers(2, 40))
def test_bijections_use_every_index_once_for_any_size(seed, n, leaf):
    x, y = cloud(n, 2, seed), cloud(n, 2, seed + 1)
    options = {"leaf": leaf, "passes": 2, "watch": unwatched}
    sigma = bijection(x, y, generator=generator(seed), **options)
    assert is_permutation(sigma)
    assert torch.equal(sigma, bijection(x, y, generator=generator(seed), **options))


@few
@given(seeds, st.integers(1, 300), st.integers(1, 40))
def test_blocks_divide_the_points_evenly(seed, n, leaf):
    order, sizes = partition(cloud(n, 3, seed), leaf, generator(seed))
    assert is_permutation(order)
    assert int(sizes.sum()) == n
    assert int(sizes.amax()) <= leaf
    assert int(sizes.amax() - sizes.amin()) <= 1
    assert len(sizes) == -(-n // leaf)


@pytest.mark.slow
@few
@given(seeds)
def test_passes_never_raise_the_cost(seed):
    x, y = square(300, seed)
    costs = [
        refined(x, y, leaf=20, passes=k, tol=1e-9, bound="moments").value.item() for k in range(5)
    ]
    assert all(after <= before * (1 + ROUNDING) for before, after in pairwise(costs))
    assert costs[-1] < costs[0]


@pytest.mark.slow
@few
@given(seeds)
def test_passes_over_plans_never_raise_the_cost(seed):
    (x, y), a, b = square(150, seed), random_weights(150, seed), random_weights(150, seed + 1)
    costs = [
        refined(x, y, a, b, leaf=32, passes=k, tol=1e-9, bound="moments").value.item()
        for k in range(4)
    ]
    assert all(after <= before * (1 + ROUNDING) for before, after in pairwise(costs))


@pytest.mark.slow
@few
@given(seeds, st.sampled_from([1e-100, 1e-3, 1e100]))
def test_scale_and_place_change_nothing_but_the_unit(seed, size):
    x, y = square(200, seed)
    plain = refined(x, y, leaf=32, passes=3)
    moved = refined(x * size, y * size, leaf=32, passes=3)
    assert moved.value.item() == pytest.approx(plain.value.item() * size**2, rel=1e-9)
    assert moved.certificate.relative_gap == pytest.approx(plain.certificate.relative_gap, abs=1e-6)


def test_splitting_masses_keeps_marginals_of_any_weights():
    n, m = 300, 200
    x, y = cloud(n, 3, 0), cloud(m, 3, 1)
    for span in (0, 5, 30):  # decades
        draw = torch.rand(n + m, generator=generator(span), dtype=torch.float64)
        w = 10 ** (-span * draw)
        a, b = w[:n] / w[:n].sum(), w[n:] / w[n:].sum()
        rows, cols, mass = split_masses(x, a, y, b, generator=generator(0))
        assert float((torch.zeros_like(a).index_add(0, rows, mass) - a).abs().sum()) < ROUNDING
        assert float((torch.zeros_like(b).index_add(0, cols, mass) - b).abs().sum()) < ROUNDING
        assert len(torch.unique(rows * m + cols)) == len(rows)
        assert (mass > 0).all()


def test_equal_weights_are_matched_whatever_their_total():
    x, y = square(300, 0)
    plain, heavy = refined(x, y), refined(x, y, 300 * uniform(300), 300 * uniform(300))
    assert torch.equal(plain.map, heavy.map)
    assert heavy.value.item() == pytest.approx(300 * plain.value.item(), rel=1e-12)
    assert heavy.certificate.bijective is True


def test_threads_change_nothing():
    x, y = square(600, 0)
    threads, answers = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            answers.append(refined(x, y, leaf=64, passes=4, bound="moments").map)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*answers)


# ends of the range --------------------------------------------------------------------------------


def test_one_point():
    one, other = torch.tensor([[1.0, 2.0]]), torch.tensor([[4.0, 6.0]])
    answer = refined(one.double(), other.double())
    assert answer.value.item() == pytest.approx(25.0)
    assert answer.certificate.relative_gap == pytest.approx(0.0, abs=1e-9)
    assert answer.map.tolist() == [0]


def test_one_source_feeds_all_targets():
    x, y, b = cloud(1, 2, 0), cloud(5000, 2, 1), random_weights(5000, 2)
    answer = refined(x, y, torch.ones(1, dtype=torch.float64), b)
    assert answer.value.item() == pytest.approx(float(b @ (x - y).square().sum(1)), rel=1e-12)
    check(answer, x, y, torch.ones(1, dtype=torch.float64), b)


def test_points_without_mass_are_left_alone():
    (x, y), a = square(200, 0), random_weights(200, 1)
    a[::2] = 0
    a /= a.sum()
    answer = refined(x, y, a, None, leaf=32)
    assert bool((a[answer.plan.rows] > 0).all())
    check(answer, x, y, a, uniform(200))


@pytest.mark.parametrize("n", [5, 600])
def test_clouds_that_coincide_cost_nothing(n):
    x = cloud(n, 2, 0)
    answer = refined(x, x.clone())
    assert answer.value.item() == pytest.approx(0.0, abs=1e-20)
    assert answer.certificate.relative_gap == 0.0
    all_one = torch.ones(n, 2, dtype=torch.float64)
    assert refined(all_one, all_one).value.item() == 0.0


def test_single_precision_is_close_to_double():
    x, y = square(500, 0)
    wide, narrow = refined(x, y), refined(x.float(), y.float())
    assert narrow.value.dtype == torch.float32
    assert narrow.value.item() == pytest.approx(wide.value.item(), rel=SINGLE * 100)
    assert narrow.certificate.marginal_error_b < SINGLE


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("looks", [0, 1, 3, 8])
def test_whoever_is_interrupted_has_a_feasible_plan(weighted, looks):
    x, y = square(1000, 0)
    a, b = (random_weights(1000, 3), random_weights(1000, 4)) if weighted else (None, None)
    seen = 0

    def watch(iteration, residual):
        nonlocal seen
        seen += 1
        return seen <= looks

    answer = refined(x, y, a, b, leaf=32, watch=watch)
    assert answer.stop.status == "interrupted"
    assert answer.certificate.bound == "moments"
    full = [uniform(1000) if w is None else w for w in (a, b)]
    check(answer, x, y, *full)


def test_passes_that_run_out_are_told():
    answer = refined(*square(500, 0), leaf=32, passes=1)
    assert answer.stop.status == "max_iter"
    assert "passes_spent" in {c.code for c in answer.cautions}
    weak = refined(*square(500, 0), leaf=32, passes=1, bound="moments")
    assert "wide_gap" in {c.code for c in weak.cautions}


# gradients ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_reach_the_points(cost, weighted):
    x, y = cloud(6, 2, 0).requires_grad_(), cloud(6, 2, 1).requires_grad_()
    a, b = (random_weights(6, 2), random_weights(6, 3)) if weighted else (None, None)
    value = lambda x, y: refined(x, y, a, b, cost=cost, bound="moments").value
    assert torch.autograd.gradcheck(value, (x, y), **DIFFERENCES)


# peers --------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_near_what_pot_finds():
    ot = pytest.importorskip("ot")
    x, y = clouds(400, 5)
    theirs = ot.emd2(np.full(400, 1 / 400), np.full(400, 1 / 400), ot.dist(x.numpy(), y.numpy()))
    answer = refined(x, y, leaf=64)
    assert theirs * (1 - ROUNDING) <= answer.value.item() <= 1.05 * theirs
    assert answer.certificate.lower_bound <= theirs


# bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("a", {"a": torch.tensor([0.5, -0.5, 1.0], dtype=torch.float64)}),
        ("b", {"b": torch.zeros(3, dtype=torch.float64)}),
        ("b", {"b": 2 * uniform(3)}),
        ("x", {"x": torch.full((3, 2), math.nan, dtype=torch.float64)}),
        ("x", {"x": torch.zeros(0, 2, dtype=torch.float64)}),
        ("x", {"x": 1e200 * cloud(3, 2, 0)}),
    ],
)
def test_bad_input_is_named(field, change):
    question = {"x": cloud(3, 2, 0), "y": cloud(3, 2, 1)} | change
    with pytest.raises(IllPosed) as refusal:
        refined(**question)
    assert refusal.value.field == field


@pytest.mark.parametrize(
    ("field", "change"),
    [("b", {"b": [1.0, 1.0]}), ("y", {"y": [[1.0], [0.0]]}), ("leaf", {"leaf": 1}),
     ("cost", {"cost": "lp"}), ("tol", {"tol": 0.0})],
)  # fmt: skip
def test_the_schema_refuses_by_name(field, change):
    body = {"x": [[0.0, 1.0], [1.0, 0.0]], "y": [[0.0, 1.0], [1.0, 2.0]]}
    RefineRequest.model_validate(body, context={"shelf": Shelf()})
    with pytest.raises(ValueError, match=r".") as refusal:
        RefineRequest.model_validate(body | change, context={"shelf": Shelf()})
    (error,) = refusal.value.errors()
    assert field in (*error["loc"], error.get("ctx", {}).get("field"))
