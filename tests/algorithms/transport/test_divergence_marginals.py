"""transport.divergence between measures of different mass."""

import pytest
import torch

from algorithms.errors import IllPosed
from algorithms.geometry import PointClouds
from algorithms.marginals import KL, TV, Balanced, Berg, Free, Range
from algorithms.transport.divergence import divergence
from tests.problems.transport import cloud, random_weights

EPSILON, SOLVED = 1.0, 1e-10
EXACT = 3e-10
DIFFERENCES = {"atol": 1e-6, "rtol": 1e-5}  # central differences of step 1e-6 in float64
MARGINALS = [KL(0.7), KL(20.0), TV(0.5), Berg(0.6), Range(0.5, 1.5), Free()]
every_marginal = pytest.mark.parametrize("marginal", MARGINALS, ids=str)


def between(x, y, a, b, marginal, **options):
    asked = {"epsilon": EPSILON, "tol": SOLVED} | options
    return divergence(PointClouds(x, y), a, b, marginal=marginal, **asked)


def measures(n, m, mass_a=1.0, mass_b=1.3):
    x, y = cloud(n, 2, 0), cloud(m, 2, 1) + 0.5
    return x, y, random_weights(n, 0, mass_a), random_weights(m, 1, mass_b)


@every_marginal
def test_zero_between_equals_and_positive_otherwise(marginal):
    x, y, a, b = measures(6, 5)
    same = between(x, x, a, a, marginal)
    assert abs(same.divergence.item()) < EXACT
    apart = between(x, y, a, b, marginal)
    assert apart.stop.status == "converged"
    assert apart.certificate.lower > 0


@every_marginal
def test_a_change_of_mass_alone_is_seen(marginal):
    x, _, a, _ = measures(5, 5)
    assert between(x, x, a, 1.4 * a, marginal, tol=1e-7).divergence.item() > 1e-4


@every_marginal
def test_symmetric_in_its_arguments(marginal):
    x, y, a, b = measures(6, 5)
    one, other = between(x, y, a, b, marginal), between(y, x, b, a, marginal)
    assert one.divergence.item() == pytest.approx(other.divergence.item(), abs=EXACT)


def test_free_marginals_give_a_kernel_distance():
    x, y, a, b = measures(6, 5)
    z, w = torch.cat([x, y]), torch.cat([a, -b])
    kernel = (-torch.cdist(z, z).square() / EPSILON).exp()
    expected = EPSILON / 2 * float(w @ kernel @ w)
    assert between(x, y, a, b, Free()).divergence.item() == pytest.approx(expected, abs=EXACT)


def test_strong_penalties_are_nearly_balanced():
    x, y, a, b = measures(6, 5, 1.0, 1.0)
    balanced = between(x, y, a, b, Balanced()).divergence.item()
    strong = between(x, y, a, b, KL(1e5), tol=1e-9).divergence.item()
    assert strong == pytest.approx(balanced, abs=1e-4)


@pytest.mark.parametrize("marginal", [KL(0.7)], ids=str)
@pytest.mark.slow
def test_gradients_match_differences(marginal):
    leaves = [t.clone().requires_grad_() for t in measures(3, 4)]
    value = lambda *points: between(*points, marginal, tol=1e-12).divergence
    assert torch.autograd.gradcheck(value, leaves, **DIFFERENCES)


def test_masses_must_meet():
    x, y, a, b = measures(3, 4, 1.0, 5.0)
    with pytest.raises(IllPosed, match=r"\[0.5, 1.5\].*\[2.5, 7.5"):
        between(x, y, a, b, Range(0.5, 1.5))
    with pytest.raises(IllPosed, match="equal masses"):
        between(x, y, a, b, Balanced())
