import pytest
import torch

from algorithms.errors import IllPosed
from algorithms.spaces import Cloud, Relations, space, symmetric
from tests.problems.transport import cloud

ROUNDING = 1e-12  # sums of fourth powers of clouds of size one in float64


def test_factors_and_moments_agree_with_the_matrix():
    points = Cloud(cloud(9, 3, 0) + 2)
    dense = Relations(points.matrix())
    V, w = cloud(9, 4, 1), cloud(9, 1, 2)[:, 0]
    torch.testing.assert_close(points.apply(V), dense.apply(V), atol=ROUNDING, rtol=ROUNDING)
    torch.testing.assert_close(points.squared(w), dense.squared(w), atol=ROUNDING, rtol=ROUNDING)
    assert points.size == dense.size == 9


def test_a_space_is_described_once():
    x = cloud(4, 2, 0)
    assert isinstance(space("x", x, "Cx", None), Cloud)
    assert isinstance(space("x", None, "Cx", x @ x.T), Relations)
    for both in ((x, x @ x.T), (None, None)):
        with pytest.raises(IllPosed) as refused:
            space("x", both[0], "Cx", both[1])
        assert refused.value.field == "Cx"
    with pytest.raises(IllPosed) as refused:
        space("y", x / 0, "Cy", None)
    assert refused.value.field == "y"


def test_symmetry_is_judged_up_to_rounding():
    x = cloud(5, 3, 0)
    assert symmetric(x @ x.T)
    assert not symmetric(cloud(5, 5, 1))
