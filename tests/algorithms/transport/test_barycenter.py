import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from algorithms.errors import IllPosed
from algorithms.geometry import PointClouds
from algorithms.transport.barycenter import (
    FixedSupport,
    FreeSupport,
    Images,
    Volumes,
    WeightedCloud,
    barycenter,
)
from algorithms.transport.exact import exact
from schemas.arrays import Shelf
from schemas.transport.barycenter import EXAMPLE, BarycenterRequest
from tests.problems.transport import cloud, generator, random_cost, random_weights, uniform

ROUNDING = 1e-11  # sums of a few thousand float64 numbers of size one
SOLVED = 1e-7  # answers with tol 1e-10, through a conditioning of 1e3
SINGLE = 1e-4  # float32 inputs
DIFFERENCES = {"atol": 1e-6, "rtol": 1e-5}  # central differences of step 1e-6
EXACT = {"tol": 1e-10}
few = settings(max_examples=5, deadline=None)
seeds = st.integers(0, 10_000)


def line(n):
    return torch.linspace(0, 1, n, dtype=torch.float64)[:, None]


def bumps(n, *places, width=0.08):
    rows = [torch.exp(-((line(n)[:, 0] - p) ** 2) / (2 * width**2)) for p in places]
    return torch.stack([w / w.sum() for w in rows])


def pair(first=0.3):
    return torch.tensor([first, 1 - first], dtype=torch.float64)


# oracles ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [0.25, 0.5, 1.0])
def test_two_diracs_meet_at_the_weighted_mean(first):
    W = torch.zeros(2, 81, dtype=torch.float64)
    W[0, 20] = W[1, 60] = 1
    answer = barycenter(FixedSupport(W, line(81)), pair(first), epsilon=2e-4)
    place = 20 * first + 60 * (1 - first)
    assert int(answer.weights.argmax()) == round(place)
    # the reference is uniform: a Gaussian of variance epsilon/2 about the mean
    assert answer.weights @ line(81)[:, 0] == pytest.approx(place / 80, abs=1e-9)
    variance = answer.weights @ (line(81)[:, 0] - place / 80) ** 2
    # on a grid of 1.25 deviations: Poisson's sum formula leaves 2e-4 of it
    assert variance.item() == pytest.approx(1e-4, rel=3e-4)
    sharp = barycenter(FixedSupport(W, line(81)), pair(first), epsilon=2e-4, debiased=True)
    assert sharp.weights @ line(81)[:, 0] == pytest.approx(place / 80, abs=1e-4)
    assert sharp.weights.max() > answer.weights.max()


def test_debiased_of_one_measure_is_that_measure():
    W = bumps(40, 0.3, 0.7)
    answer = barycenter(FixedSupport(W, line(40)), pair(1.0), epsilon=2e-3, debiased=True, tol=1e-9)
    torch.testing.assert_close(answer.weights, W[0], atol=8e-8, rtol=0)
    assert abs(answer.value.item()) < ROUNDING
    blurred = barycenter(FixedSupport(W, line(40)), pair(1.0), epsilon=2e-3)
    assert (blurred.weights - W[0]).abs().sum() > 0.05


def test_soft_marginals_agree_with_direct_minimisation():
    """Minimise over plans and barycenter together, in logarithms, by a general solver."""
    n, K, epsilon, rho = 4, 2, 0.2, 0.5
    C, lam = random_cost(n, n, 0), pair(0.3)
    W = torch.stack([random_weights(n, 1, 1.0), random_weights(n, 2, 2.0)])
    kl = lambda p, q: (p * (p / q).log() - p + q).sum()

    def objective(z):
        P, beta = z[: K * n * n].exp().reshape(K, n, n), z[K * n * n :].exp()
        return sum(
            lam[k]
            * (
                (C * P[k]).sum()
                + epsilon * kl(P[k], uniform(n)[:, None] * W[k])
                + rho * kl(P[k].sum(1), beta)
                + rho * kl(P[k].sum(0), W[k])
            )
            for k in range(K)
        )

    def both(z):
        z = torch.tensor(z, requires_grad=True)
        value = objective(z)
        (slope,) = torch.autograd.grad(value, z)
        return value.item(), slope.numpy()

    start = np.full(K * n * n + n, -2.0)
    best = minimize(both, start, jac=True, method="BFGS", options={"gtol": 1e-10, "maxiter": 3000})
    answer = barycenter(FixedSupport(W, C=C), lam, epsilon=epsilon, rho=rho, tol=1e-12)
    assert answer.stop.status == "converged"
    assert answer.value.item() == pytest.approx(best.fun, abs=1e-10)
    np.testing.assert_allclose(answer.weights.numpy(), np.exp(best.x[-n:]), atol=1e-6)


def test_plans_of_a_small_problem_prove_the_value():
    """Every barycenter's value is above the dual bound, and ours is near it."""
    W, C = bumps(12, 0.2, 0.8), (line(12) - line(12).T) ** 2
    answer = barycenter(FixedSupport(W, C=C), pair(), epsilon=0.05, **EXACT)
    seen = answer.certificate
    assert seen.dual_value <= answer.value.item() + ROUNDING
    assert abs(seen.duality_gap) < SOLVED
    assert max(seen.marginal_error, seen.marginal_error_inputs) < SOLVED
    loose = barycenter(FixedSupport(W, C=C), pair(), epsilon=0.05, max_iter=1)
    assert loose.certificate.dual_value < answer.value.item()


def test_one_free_point_is_the_mean_of_all():
    clouds = (WeightedCloud(cloud(5, 2, 0), random_weights(5, 0)), WeightedCloud(cloud(7, 2, 1)))
    answer = barycenter(FreeSupport(clouds, 1), pair())
    mean = 0.3 * random_weights(5, 0) @ cloud(5, 2, 0) + 0.7 * cloud(7, 2, 1).mean(0)
    torch.testing.assert_close(answer.points[0], mean)
    assert answer.certificate.mean_gap < ROUNDING


@few
@given(seeds)
def test_free_points_between_two_clouds_are_on_the_optimal_segments(seed):
    """Started at one cloud, the first round finds the optimum: `lam_1 lam_2 OT(x, y)`."""
    x, y = cloud(5, 2, seed), cloud(5, 2, seed + 1)
    asked = FreeSupport((WeightedCloud(x), WeightedCloud(y)), 5, start=x)
    answer = barycenter(asked, pair(0.3))
    apart = exact(PointClouds(x, y)).value.item()
    assert answer.value.item() == pytest.approx(0.3 * 0.7 * apart, rel=1e-9)
    assert answer.stop.status == "converged"


# laws ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [0.05, 1e-3])
@pytest.mark.parametrize("debiased", [False, True])
def test_law_grid_and_dense_agree(epsilon, debiased):
    """The smaller epsilon takes sums by logarithms."""
    H = torch.rand(2, 5, 4, generator=generator(0), dtype=torch.float64)
    H = H / H.sum((1, 2), keepdim=True)
    places = torch.cartesian_prod(torch.arange(5.0), torch.arange(4.0)).double() * 0.3
    asked = {"epsilon": epsilon, "debiased": debiased, "max_iter": 200}
    grid = barycenter(Images(H, 0.3), pair(), **asked)
    dense = barycenter(FixedSupport(H.reshape(2, -1), places), pair(), **asked)
    torch.testing.assert_close(grid.weights.reshape(-1), dense.weights, atol=1e-9, rtol=0)
    torch.testing.assert_close(grid.transport_costs, dense.transport_costs, atol=1e-9, rtol=0)
    assert grid.value.item() == pytest.approx(dense.value.item(), abs=1e-9)
    assert grid.weights.shape == (5, 4)


def test_law_a_volume_of_one_layer_is_an_image():
    H = torch.rand(2, 5, 4, generator=generator(0), dtype=torch.float64)
    H = H / H.sum((1, 2), keepdim=True)
    image = barycenter(Images(H), pair(), epsilon=0.5)
    volume = barycenter(Volumes(H[..., None]), pair(), epsilon=0.5)
    torch.testing.assert_close(volume.weights[..., 0], image.weights)
    cube = torch.rand(2, 3, 4, 2, generator=generator(1), dtype=torch.float64)
    cube = cube / cube.sum((1, 2, 3), keepdim=True)
    places = torch.cartesian_prod(*(torch.arange(float(s)) for s in (3, 4, 2))).double()
    dense = barycenter(FixedSupport(cube.reshape(2, -1), places), pair(), epsilon=0.5)
    whole = barycenter(Volumes(cube), pair(), epsilon=0.5)
    torch.testing.assert_close(whole.weights.reshape(-1), dense.weights, atol=1e-9, rtol=0)


@pytest.mark.parametrize("debiased", [False, True])
def test_law_the_mean_is_the_mean_of_means(debiased):
    answer = barycenter(
        FixedSupport(bumps(60, 0.35, 0.6), line(60)), pair(), epsilon=1e-3, debiased=debiased
    )
    assert answer.certificate.mean_gap < 1e-5  # what the ends of the grid cut off


@few
@given(seeds, st.sampled_from([1e-3, 96.0]))
def test_law_masses_scale(seed, mass):
    W = torch.stack([random_weights(6, seed), random_weights(6, seed + 1)])
    C = random_cost(5, 6, seed)
    for more in ({}, {"rho": 0.5}):
        one = barycenter(FixedSupport(W, C=C), pair(), epsilon=0.2, **more, **EXACT)
        other = barycenter(FixedSupport(mass * W, C=C), pair(), epsilon=0.2, **more, **EXACT)
        torch.testing.assert_close(other.weights, mass * one.weights, rtol=SOLVED, atol=0)
        assert other.value.item() == pytest.approx(mass * one.value.item(), rel=SOLVED)


@few
@given(seeds)
def test_law_order_of_measures_does_not_matter(seed):
    W = torch.stack([random_weights(6, seed), random_weights(6, seed + 1)])
    one = barycenter(FixedSupport(W, C=random_cost(5, 6, seed)), pair(), epsilon=0.2)
    other = barycenter(
        FixedSupport(W.flip(0), C=random_cost(5, 6, seed)), pair().flip(0), epsilon=0.2
    )
    torch.testing.assert_close(one.weights, other.weights)


@pytest.mark.parametrize(("rho", "apart"), [(300.0, 1e-3), (1e8, 1e-8)])
def test_law_strong_soft_marginals_are_exact(rho, apart):
    W, C = bumps(10, 0.2, 0.8), (line(10) - line(10).T) ** 2
    hard = barycenter(FixedSupport(W, C=C), pair(), epsilon=0.1, **EXACT)
    soft = barycenter(FixedSupport(W, C=C), pair(), epsilon=0.1, rho=rho, tol=1e-8)
    torch.testing.assert_close(soft.weights, hard.weights, atol=apart, rtol=0)


def test_law_single_is_close_to_double():
    W = bumps(30, 0.3, 0.7)
    double = barycenter(FixedSupport(W, line(30)), pair(), epsilon=0.01)
    single = barycenter(FixedSupport(W.float(), line(30).float()), pair().float(), epsilon=0.01)
    assert single.weights.dtype == single.value.dtype == torch.float32
    torch.testing.assert_close(single.weights.double(), double.weights, atol=SINGLE, rtol=0)


def test_free_points_only_descend_and_repeat_by_seed():
    clouds = tuple(WeightedCloud(cloud(12, 2, s) + s) for s in range(3))
    values = [
        barycenter(FreeSupport(clouds, 6), max_iter=k, generator=generator(0)).value.item()
        for k in (1, 2, 3, 50)
    ]
    assert values == sorted(values, reverse=True)
    again = barycenter(FreeSupport(clouds, 6), max_iter=50, generator=generator(0))
    assert again.value.item() == values[-1]
    assert again.certificate.marginal_error < ROUNDING
    blurred = barycenter(FreeSupport(clouds, 6), epsilon=0.5, generator=generator(0))
    assert blurred.points.var(0).sum() < again.points.var(0).sum()


# gradients ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [{}, {"debiased": True}, {"rho": 0.5}])
def test_gradients_of_the_value_match_differences(more):
    W = torch.stack([random_weights(4, 0), random_weights(4, 1)])

    def value(W, x):
        W = W if "rho" in more else W - W.mean(1, keepdim=True) + 0.25  # masses stay one
        tol = 1e-7 if "debiased" in more else 1e-11  # errors there fall as one over the sweeps
        return barycenter(FixedSupport(W, x), pair(), epsilon=0.4, tol=tol, **more).value

    leaves = [W.requires_grad_(), (cloud(4, 2, 3) / 3).requires_grad_()]
    assert torch.autograd.gradcheck(value, leaves, **DIFFERENCES)


def test_gradients_reach_costs_and_histograms():
    leaf = random_cost(3, 4, 0).requires_grad_()
    W = torch.stack([random_weights(4, 0), random_weights(4, 1)])
    value = lambda C: barycenter(FixedSupport(W, C=C), epsilon=0.3, tol=1e-11).value
    assert torch.autograd.gradcheck(value, leaf, **DIFFERENCES)
    H = torch.rand(2, 3, 2, generator=generator(0), dtype=torch.float64).requires_grad_()
    value = lambda H: barycenter(Images(H), epsilon=1.0, rho=2.0, tol=1e-11).value
    assert torch.autograd.gradcheck(value, H, **DIFFERENCES)


# peers --------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_agrees_with_pot():
    ot = pytest.importorskip("ot")
    W, C = bumps(30, 0.3, 0.7), (line(30) - line(30).T) ** 2
    for debiased, theirs in (
        (False, ot.bregman.barycenter),
        (True, ot.bregman.barycenter_debiased),
    ):
        ours = barycenter(
            FixedSupport(W, C=C), pair(), epsilon=2e-3, debiased=debiased, tol=1e-8
        ).weights
        expected = theirs(
            W.T.numpy(), C.numpy(), 2e-3, weights=pair().numpy(), method="sinkhorn_log",
            numItermax=5000, stopThr=1e-10,
        )  # fmt: skip
        np.testing.assert_allclose(ours.numpy(), expected, atol=2e-6)
    clouds = [cloud(8, 2, s) for s in range(2)]
    start = cloud(8, 2, 5)
    theirs = ot.lp.free_support_barycenter(
        [z.numpy() for z in clouds], [uniform(8).numpy()] * 2, start.numpy(), numItermax=200
    )
    asked = FreeSupport(tuple(WeightedCloud(z) for z in clouds), 8, start)
    np.testing.assert_allclose(barycenter(asked).points.numpy(), theirs, atol=1e-6)


# endings and bad input ----------------------------------------------------------------------------


def test_spent_sweeps_and_interruptions_are_said():
    asked = FixedSupport(bumps(30, 0.3, 0.7), line(30))
    spent = barycenter(asked, epsilon=1e-3, max_iter=3)
    halted = barycenter(asked, epsilon=1e-3, watch=lambda k, r: False)
    assert (spent.stop.status, halted.stop.status) == ("max_iter", "interrupted")
    assert [c.code for c in spent.cautions] == ["not_converged"]
    assert spent.certificate.marginal_error > 1e-6


def test_single_points_single_measures_and_zero_weights():
    one = barycenter(FixedSupport(torch.ones(1, 1).double(), line(1)), epsilon=0.1)
    assert one.weights.item() == pytest.approx(1.0)
    W = bumps(6, 0.2, 0.9)
    W[0, 3] = 0
    W = W / W.sum(1, keepdim=True)
    assert barycenter(FixedSupport(W, line(6)), epsilon=0.05).stop.status == "converged"


W2 = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("field", "problem", "more"),
    [
        ("epsilon", FixedSupport(W2, line(3)), {"epsilon": None}),
        ("epsilon", FixedSupport(W2, line(3)), {"epsilon": 1e-12}),
        ("tol", FixedSupport(W2, line(3)), {"tol": 0.0}),
        ("rho", FixedSupport(W2, line(3)), {"rho": 1.0, "debiased": True}),
        ("rho", FixedSupport(W2, line(3)), {"rho": 1e12}),
        ("lam", FixedSupport(W2, line(3)), {"lam": torch.tensor([-1.0, 2.0])}),
        ("problem.C", FixedSupport(W2), {}),
        ("problem.C", FixedSupport(W2, C=torch.full((2, 3), math.nan)), {}),
        ("problem.C", FixedSupport(W2, C=random_cost(3, 3, 0)), {"debiased": True}),
        ("problem.C", FixedSupport(W2, C=random_cost(2, 3, 0)), {"debiased": True}),
        ("problem.x", FixedSupport(W2, line(4)), {}),
        ("problem.y", FixedSupport(W2, None, line(3), random_cost(2, 3, 0)), {}),
        ("problem.weights", FixedSupport(-W2, line(3)), {}),
        ("problem.weights", FixedSupport(W2 * torch.tensor([[1.0], [2.0]]), line(3)), {}),
        ("problem.histograms", Images(torch.zeros(2, 3, 3).double()), {}),
        ("problem.spacing", Images(torch.ones(2, 3, 3).double(), math.nan), {}),
        ("debiased", FreeSupport((WeightedCloud(line(3)),), 2), {"debiased": True}),
        (
            "problem.clouds.1.x",
            FreeSupport((WeightedCloud(line(3)), WeightedCloud(cloud(3, 2, 0))), 2),
            {},
        ),
        (
            "problem.clouds.1.w",
            FreeSupport((WeightedCloud(line(3)), WeightedCloud(line(2), uniform(2) * 3)), 2),
            {},
        ),
        ("problem.start", FreeSupport((WeightedCloud(line(3)),), 2, line(3)), {}),
    ],
)
def test_bad_input_is_named(field, problem, more):
    with pytest.raises(IllPosed) as refusal:
        barycenter(problem, **({"epsilon": 0.1} | more))
    assert refusal.value.field == field


ONE = {"x": [[0.0]]}
NEGATIVE = [[-1.0, 2.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 1.0]]
FREE = {"kind": "free", "size": 2, "clouds": [{"x": [[0.0], [1.0]]}, {"x": [[2.0]], "w": [1.0]}]}


@pytest.mark.parametrize(
    ("field", "body"),
    [
        ("epsilon", EXAMPLE | {"epsilon": None}),
        ("rho", EXAMPLE | {"rho": 1.0, "debiased": True}),
        ("rho", EXAMPLE | {"rho": 1e308}),
        ("problem.weights", EXAMPLE | {"problem": EXAMPLE["problem"] | {"weights": NEGATIVE}}),
        ("problem.weights", EXAMPLE | {"problem": EXAMPLE["problem"] | {"x": [[0.0]]}}),
        ("problem.C", EXAMPLE | {"problem": EXAMPLE["problem"] | {"x": None}}),
        ("lam", EXAMPLE | {"lam": [1.0, 1.0, 1.0]}),
        ("lam", {"problem": FREE, "lam": [1.0]}),
        ("debiased", {"problem": FREE, "debiased": True}),
        ("problem.start", {"problem": FREE | {"start": [[0.0]]}}),
        ("problem.clouds.1.w", {"problem": FREE | {"clouds": [ONE, {"x": [[1.0]], "w": [3.0]}]}}),
        ("problem.clouds.1.x", {"problem": FREE | {"clouds": [ONE, {"x": [[1.0, 2.0]]}]}}),
    ],
)  # fmt: skip
def test_the_schema_refuses_by_name(field, body):
    for right in (EXAMPLE, {"problem": FREE}):
        asked = BarycenterRequest.model_validate(right, context={"shelf": Shelf()})
        assert asked.footprint() > 0
    with pytest.raises(ValueError, match=r".") as refusal:
        BarycenterRequest.model_validate(body, context={"shelf": Shelf()})
    assert field in [
        error.get("ctx", {}).get("field") or ".".join(map(str, error["loc"]))
        for error in refusal.value.errors()
    ]
