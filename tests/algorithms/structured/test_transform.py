"""New points through a learnt map: the plan at known ones, labels, derivatives, blocks."""

import pytest
import torch

from algorithms.errors import IllPosed
from algorithms.structured import transform as module
from algorithms.structured.transform import transform
from tests.algorithms.structured.clouds import asked, cloud, matched

# Rows of a plan that was made to 1e-10 of the mass.
SAME = 1e-7
ROUNDING = 1e-12
# Central differences with steps of 1e-5, in float64.
DIFFERENCES = 1e-6


def given(found, **more):
    """Pass on what a match answered."""
    names = ("map", "g", "epsilon", "center_x", "center_y", "scale_x", "scale_y")
    return {name: getattr(found, name) for name in names} | more


@pytest.mark.parametrize(
    ("options", "more"),
    [
        ({}, {}),
        ({"standardize": "zscore"}, {}),
        ({"standardize": "l2rows"}, {"standardize": "l2rows"}),
        ({"scaling": "gw_se"}, {"scaling": "gw_se"}),
        ({"regularizer": asked("stiefel")}, {}),
    ],
)
def test_known_points_go_where_the_plan_sends_them(options, more):
    x, y = 3 + cloud(0, 15, 2, skew=0.4), 1 - 2 * cloud(1, 17, 3, skew=0.4)
    found = matched(x, y, epsilon_relative=0.2, tol=1e-8, **options)
    again = transform(x, y, **given(found, **more))
    shares = found.dense_plan / found.dense_plan.sum(1, keepdim=True)
    assert torch.allclose(again.images, shares @ y, atol=1e-5)
    assert torch.allclose(again.images, found.images, atol=SAME)
    assert again.certificate.normalisation_error < ROUNDING


@pytest.mark.parametrize("cost", ["sqeuclidean", "inner"])
def test_shared_features_take_part(cost):
    x, y, s, t = cloud(0, 15, 2), cloud(1, 17, 3), cloud(2, 15, 2), cloud(3, 17, 2)
    found = matched(x, y, x_shared=s, y_shared=t, alpha=0.6, shared_cost=cost, epsilon=0.3)
    options = {"points_shared": s, "y_shared": t, "alpha": 0.6, "shared_cost": cost}
    again = transform(x, y, **given(found, **options))
    assert torch.allclose(again.images, found.images, atol=SAME)


def test_the_way_back_exchanges_the_sides():
    x, y = cloud(0, 15, 2, skew=0.4), cloud(1, 17, 3, skew=0.4)
    found = matched(x, y, epsilon_relative=0.2, tol=1e-9)
    back = transform(y, x, found.map.T, found.f, epsilon=found.epsilon,
                     center_x=found.center_y, center_y=found.center_x)  # fmt: skip
    P = found.dense_plan
    assert torch.allclose(back.images, (P / P.sum(0)).T @ x, atol=1e-5)


def test_without_entropy_points_go_to_one_target():
    x, y = cloud(0, 12, 2), cloud(1, 12, 3)
    found = matched(x, y, epsilon=0.0)
    new = cloud(2, 5, 2)
    again = transform(new, y, labels=torch.arange(12).double(), **given(found))
    C = -(new - x.mean(0)) @ found.map.T @ (y - y.mean(0)).T
    assert torch.equal(again.labels, (found.g - C).argmax(1))
    assert torch.allclose(again.images, y[again.labels])
    assert torch.allclose(again.spread, torch.ones(5).double())
    assert float(again.confidence.min()) == 1


def test_annotations_and_labels_are_weighed_alike():
    x, y = cloud(0, 9, 2), cloud(1, 11, 3)
    g, M = cloud(2, 11, 1)[:, 0], cloud(3, 3, 2)
    labels = torch.tensor([0, 1, 2, -1, 0, 1, 2, -1, 0, 1, 2]).double()
    found = transform(x, y, M, g, epsilon=0.7, annotations=y, labels=labels)
    w = ((x @ M.T @ y.T + g) / 0.7).softmax(1)
    assert torch.allclose(found.images, w @ y, atol=ROUNDING)
    assert torch.allclose(found.annotations, found.images, atol=ROUNDING)
    votes = torch.stack([w[:, labels == k].sum(1) for k in range(3)], 1)
    assert torch.equal(found.labels, votes.argmax(1))
    assert torch.allclose(found.confidence, votes.amax(1) / votes.sum(1), atol=ROUNDING)
    none = transform(x, y, M, g, epsilon=0.7, labels=torch.full((11,), -1.0).double())
    assert bool((none.labels == -1).all())
    assert float(none.confidence.abs().max()) == 0


def test_ties_go_to_the_smallest_label():
    y = torch.tensor([[1.0], [-1.0]]).double()
    x, M, labels = torch.zeros(1, 1).double(), torch.ones(1, 1).double(), torch.tensor([7.0, 3.0])
    found = transform(x, y, M, torch.zeros(2).double(), epsilon=1.0, labels=labels)
    assert found.labels.tolist() == [3]
    assert float(found.confidence) == 0.5


def test_slopes_are_those_of_differences():
    y, M, g = cloud(1, 6, 3), cloud(2, 3, 2), cloud(3, 6, 1)[:, 0]
    x = cloud(0, 4, 2).requires_grad_()
    pull = cloud(4, 4, 3)
    images = transform(x, y, M, g, epsilon=0.8, center_x=cloud(5, 1, 2)[0]).images
    (slope,) = torch.autograd.grad((images * pull).sum(), x)
    h = 1e-5
    for i, k in ((0, 0), (3, 1)):
        ends = []
        for step in (h, -h):
            moved = x.detach().clone()
            moved[i, k] += step
            other = transform(moved, y, M, g, epsilon=0.8, center_x=cloud(5, 1, 2)[0])
            ends.append(float((other.images * pull).sum()))
        assert (ends[0] - ends[1]) / (2 * h) == pytest.approx(float(slope[i, k]), rel=DIFFERENCES)
    sharp = transform(x, y, M, g, epsilon=0.0).images
    assert float(torch.autograd.grad(sharp.sum(), x)[0].abs().max()) == 0


def test_blocks_change_nothing(monkeypatch):
    x, y, M, g = cloud(0, 9, 2), cloud(1, 7, 3), cloud(2, 3, 2), cloud(3, 7, 1)[:, 0]
    whole = transform(x, y, M, g, epsilon=0.5)
    monkeypatch.setattr(module, "ROOM", 14)
    parts = transform(x, y, M, g, epsilon=0.5)
    assert torch.allclose(whole.images, parts.images, atol=ROUNDING)
    assert transform(x, y, M, g, epsilon=0.5, watch=lambda *_: False).stop.status == "interrupted"


def test_absent_targets_receive_nothing():
    x, y, M = cloud(0, 5, 2), cloud(1, 4, 3), cloud(2, 3, 2)
    b, g = torch.tensor([1.0, 0.0, 1.0, 1.0]).double(), torch.zeros(4).double()
    kept = b > 0
    for epsilon in (0.5, 0.0):
        one = transform(x, y, M, g, epsilon=epsilon, b=b)
        other = transform(x, y[kept], M, g[kept], epsilon=epsilon)
        assert torch.allclose(one.images, other.images, atol=ROUNDING)


def test_vague_maps_are_told_so():
    y = cloud(1, 40, 3)
    found = transform(cloud(0, 3, 2), y, torch.zeros(3, 2).double(), torch.zeros(40).double(),
                      epsilon=1.0)  # fmt: skip
    assert [caution.code for caution in found.cautions] == ["vague"]
    assert torch.allclose(found.images, y.mean(0).expand(3, 3), atol=ROUNDING)


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"alpha": 0.5}, "alpha"),
        ({"scale_x": torch.zeros(2).double()}, "scale_x"),
        ({"b": -torch.ones(4).double()}, "b"),
    ],
)
def test_bad_questions_name_their_field(more, field):
    with pytest.raises(IllPosed) as caught:
        transform(cloud(0, 5, 2), cloud(1, 4, 3), cloud(2, 3, 2), torch.zeros(4).double(),
                  epsilon=1.0, **more)  # fmt: skip
    assert caught.value.field == field
