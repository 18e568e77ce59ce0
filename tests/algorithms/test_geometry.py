import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithms.geometry import CostMatrix, PointClouds, factors, squared_distances
from tests.problems.transport import cloud, random_cost

ROUNDING = 1e-13  # one product of clouds of size one in float64
SINGLE_ULPS = 3  # roundings of a float32 cost whose products were taken in float64
costs = pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean"])


def slowly(x, y, cost):
    """Compute the costs one pair at a time."""
    C = torch.stack([torch.stack([(p - q).square().sum() for q in y]) for p in x])
    return C if cost == "sqeuclidean" else C.sqrt()


@costs
@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 6), st.integers(1, 6), st.integers(1, 5))
def test_the_matrix_holds_the_cost_of_every_pair(cost, seed, n, m, d):
    x, y = cloud(n, d, seed), cloud(m, d, seed + 1)
    torch.testing.assert_close(
        PointClouds(x, y, cost).matrix(), slowly(x, y, cost), atol=ROUNDING, rtol=ROUNDING
    )


@costs
def test_entries_are_those_of_the_matrix(cost):
    geometry = PointClouds(cloud(5, 3, 0), cloud(4, 3, 1), cost)
    rows, cols = torch.tensor([0, 4, 2, 2]), torch.tensor([3, 0, 1, 1])
    expected = geometry.matrix()[rows, cols]
    torch.testing.assert_close(geometry.entries(rows, cols), expected, atol=ROUNDING, rtol=0)
    given = CostMatrix(geometry.matrix())
    assert torch.equal(given.entries(rows, cols), expected)
    assert given.matrix() is given.C


def test_points_that_coincide_are_at_distance_zero():
    x = cloud(6, 4, 0) + 1e3
    geometry = PointClouds(x, x, "euclidean")
    assert (geometry.matrix().diagonal() == 0).all()
    index = torch.arange(6)
    assert (geometry.entries(index, index) == 0).all()


def test_squared_distances_are_never_negative():
    x = cloud(50, 3, 0).float() * 1e3
    assert (squared_distances(x, x) >= 0).all()


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_single_precision_costs_are_right_to_the_last_digits(offset):
    """Costs of far clouds in float32 lost all digits to the norms when taken in float32."""
    x, y = (cloud(20, 3, s).float() + offset for s in (0, 1))
    exact = slowly(x.double(), y.double(), "sqeuclidean")
    error = (squared_distances(x, y).double() - exact).abs() / exact
    assert float(error.max()) < SINGLE_ULPS * torch.finfo(torch.float32).eps


@costs
@pytest.mark.parametrize("entries", [False, True])
def test_gradients_match_differences(cost, entries):
    leaves = [cloud(4, 3, 0).requires_grad_(), cloud(4, 3, 1).requires_grad_()]
    index = torch.arange(4)

    def evaluate(x, y):
        geometry = PointClouds(x, y, cost)
        return geometry.entries(index, index.flip(0)) if entries else geometry.matrix()

    assert torch.autograd.gradcheck(evaluate, leaves)


@pytest.mark.parametrize("entries", [False, True])
def test_the_gradient_of_a_vanishing_distance_is_zero(entries):
    x = cloud(3, 2, 0)
    leaf = x.clone().requires_grad_()
    geometry = PointClouds(leaf, x, "euclidean")
    index = torch.arange(3)
    cost = geometry.entries(index, index) if entries else geometry.matrix().diagonal()
    cost.sum().backward()
    assert (leaf.grad == 0).all()


def test_costs_keep_the_type_of_their_inputs():
    for dtype in (torch.float32, torch.float64):
        x = cloud(3, 2, 0).to(dtype)
        assert PointClouds(x, x).matrix().dtype == dtype
        assert PointClouds(x, x, "euclidean").matrix().dtype == dtype
    assert CostMatrix(random_cost(2, 3, 0).float()).matrix().dtype == torch.float32


KINDS = [("sqeuclidean", {}), ("euclidean", {}), ("cosine", {}), ("lp", {"p": 1.0}),
         ("lp", {"p": 3.5}), ("wfr", {"delta": 0.7})]  # fmt: skip
kinds = pytest.mark.parametrize(("cost", "options"), KINDS)


@kinds
def test_bands_and_entries_agree_with_the_matrix(cost, options):
    geometry = PointClouds(cloud(7, 3, 0), cloud(5, 3, 1), cost, **options)
    C = geometry.matrix()
    assert geometry.shape == C.shape == (7, 5)
    rows, cols = torch.arange(35) // 5, torch.arange(35) % 5
    torch.testing.assert_close(geometry.entries(rows, cols), C.ravel(), atol=ROUNDING, rtol=1e-12)
    torch.testing.assert_close(geometry.band(2, 6).matrix(), C[2:6], atol=ROUNDING, rtol=1e-12)
    assert float(C[C.isfinite()].abs().max()) <= geometry.bound() * (1 + ROUNDING)


@kinds
def test_costs_have_gradients(cost, options):
    x, y = cloud(3, 2, 0).requires_grad_(), cloud(4, 2, 1).requires_grad_()

    def total(x, y):
        C = PointClouds(x, y, cost, **options).matrix()
        return torch.where(C.isfinite(), C, 0.0).sum()

    torch.autograd.gradcheck(total, (x, y))


def test_the_angular_cost_is_its_formula_and_forbids_far_pairs():
    x, y = torch.zeros(1, 1).double(), torch.tensor([[0.0], [1.0], [3.0], [3.2], [9.0]]).double()
    C = PointClouds(x, y, "wfr", delta=1.0).matrix()[0]
    expected = -2 * torch.cos(y[:3, 0] / 2).log()
    torch.testing.assert_close(C[:3], expected, atol=ROUNDING, rtol=1e-12)
    assert C[3:].isinf().all()


def test_factors_multiply_to_squared_distances():
    x, y = cloud(6, 3, 0) + 4, cloud(5, 3, 1)
    A, B = factors(x, y)
    assert A.shape == (6, 5)
    torch.testing.assert_close(A @ B.T, slowly(x, y, "sqeuclidean"), atol=1e-12, rtol=1e-12)
