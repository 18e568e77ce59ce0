import pytest
import torch

from algorithms.entropic.kernels import Dense, Separable
from tests.problems.transport import generator

# Logarithms of sums of a hundred terms, of size up to 1e5, in float64.
ROUNDING = 1e-12


def directly(C, epsilon, v):
    return (v[:, None] - C / epsilon).logsumexp(2)


def close(found, expected):
    scale = expected.abs().amax().clamp_min(1)
    return float((found - expected).abs().amax() / scale) < ROUNDING


@pytest.mark.parametrize("epsilon", [10.0, 0.1, 5e-3, 1e-3, 1e-5])
@pytest.mark.parametrize("spread", [0.0, 1.0, 2.0])
def test_products_agree_with_sums_of_logarithms(epsilon, spread):
    draw = generator(0)
    C = torch.rand(30, 20, dtype=torch.float64, generator=draw)
    v = spread / epsilon * torch.rand(3, 20, dtype=torch.float64, generator=draw)
    u = spread / epsilon * torch.rand(3, 30, dtype=torch.float64, generator=draw)
    kernel = Dense(C, epsilon)
    assert close(kernel.forward(v), directly(C, epsilon, v))
    assert close(kernel.backward(u), directly(C.T, epsilon, u))


@pytest.mark.parametrize("epsilon", [10.0, 0.1, 5e-3, 1e-3, 1e-5])
@pytest.mark.parametrize("sides", [(7,), (6, 5), (4, 3, 5)])
def test_axis_by_axis_is_the_whole_kernel(epsilon, sides):
    like = torch.zeros((), dtype=torch.float64)
    kernel = Separable(sides, 0.2, epsilon, like)
    places = torch.cartesian_prod(*(0.2 * torch.arange(s, dtype=torch.float64) for s in sides))
    places = places.reshape(kernel.support, -1)
    C = (places[:, None] - places).square().sum(2)
    v = torch.rand(2, kernel.support, dtype=torch.float64, generator=generator(0)) / epsilon
    assert close(kernel.forward(v), directly(C, epsilon, v))
    plan = (v[:, :, None] + v[:, None] - C / epsilon).exp()
    if epsilon >= 0.1:  # smaller ones overflow: these are no scalings of a plan
        expected = (plan * C).sum((1, 2))
        torch.testing.assert_close(kernel.spent(v, v), expected, rtol=ROUNDING, atol=ROUNDING)


def test_an_absent_point_and_a_far_one():
    C = torch.tensor([[0.0, 900.0], [900.0, 0.0]], dtype=torch.float64)
    v = torch.tensor([[0.0, -torch.inf]], dtype=torch.float64)
    assert Dense(C, 1.0).forward(v).tolist() == [[0.0, -900.0]]
