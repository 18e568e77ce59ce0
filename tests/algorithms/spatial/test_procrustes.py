"""The weighted rigid fit: exact on exact motions, proper unless allowed, calm when degenerate."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithms.spatial.procrustes import procrustes, rotation

# A 2 x 2 SVD of sums over at most 40 points of size 10.
ROUNDING = 1e-11


def cloud(seed, n=20):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 2, dtype=torch.float64, generator=generator) * torch.tensor([3.0, 1.0])


def permutation_plan(seed, n=20):
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    plan = torch.zeros(n, n, dtype=torch.float64)
    plan[torch.arange(n), order] = 1 / n
    return plan, order


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(-179, 179), st.floats(-9, 9), st.booleans())
def test_recovers_a_motion_from_its_permutation_plan(seed, degrees, shift, flip):
    z = cloud(seed)
    plan, order = permutation_plan(seed)
    R = rotation(degrees, z) @ torch.diag(torch.tensor([1.0, -1.0 if flip else 1.0]).double())
    y = torch.empty_like(z)
    y[order] = z @ R.T + shift
    motion = procrustes(plan, z, y, allow_reflection=True)
    assert (motion.R - R).abs().max() < ROUNDING
    assert (motion(z) - y[order]).abs().max() < ROUNDING
    assert motion.mirrored is flip
    assert abs(motion.strength - 1) < ROUNDING
    assert abs(motion.degrees - degrees) < math.degrees(ROUNDING)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_is_proper_unless_allowed_and_then_no_worse(seed, allow):
    plan = torch.rand(9, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    z, y = cloud(seed, 9), cloud(seed + 1, 7)
    motion = procrustes(plan, z, y, allow_reflection=allow)
    if not allow:
        assert torch.linalg.det(motion.R) > 0
    cost = lambda R: (plan * torch.cdist(z @ R.T + centre(R), y).square()).sum()
    centre = lambda R: motion.target_mean - R @ motion.source_mean
    best = cost(motion.R)
    for degrees in (-3.0, 1.0, 90.0):
        assert best <= cost(rotation(degrees, z) @ motion.R) + ROUNDING
    assert 0 <= motion.strength <= 1


def test_weights_decide():
    z = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [9.0, 9.0]], dtype=torch.float64)
    y = z @ rotation(30.0, z).T
    y[3] = torch.tensor([-50.0, 3.0])
    plan = torch.diag(torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64))
    assert abs(procrustes(plan, z, y).degrees - 30) < 1e-9


def test_points_on_one_line_are_turned_not_mirrored():
    z = torch.stack([torch.linspace(-2, 3, 8), torch.zeros(8)], 1).double()
    y = z @ rotation(40.0, z).T + 5
    plan = torch.eye(8, dtype=torch.float64) / 8
    for allow in (False, True):
        motion = procrustes(plan, z, y, allow_reflection=allow)
        assert torch.linalg.det(motion.R) > 0
        assert not motion.mirrored
        assert motion.singular_ratio < ROUNDING
        assert (motion(z) - y).abs().max() < ROUNDING


def test_points_at_one_place_have_no_angle():
    z = torch.ones(4, 2, dtype=torch.float64)
    motion = procrustes(torch.eye(4, dtype=torch.float64) / 4, z, 3 * z)
    assert motion.strength == 0
    assert torch.linalg.det(motion.R) == pytest.approx(1)
    assert (motion(z) - 3 * z).abs().max() < ROUNDING
