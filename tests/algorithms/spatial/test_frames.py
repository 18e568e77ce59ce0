"""Pitch, canonical axes and coarse cells: properties that travel with the tissue."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithms.spatial.coarse import coarsened
from algorithms.spatial.frames import cells, distances, frame, pitch
from algorithms.spatial.fused import Fused
from algorithms.spatial.procrustes import rotation
from algorithms.spatial.starts import pair
from tests.algorithms.spatial.tissue import tissue

# Coordinates of size 10, an eigenproblem of a 2 x 2 matrix with well separated eigenvalues.
ROUNDING = 1e-10
POINTS = tissue(spots=60).coordinates


def uniform(n):
    return torch.full((n,), 1 / n, dtype=torch.float64)


@settings(max_examples=25, deadline=None)
@given(st.floats(-180, 180), st.floats(-50, 50), st.booleans())
def test_axes_turn_and_mirror_with_the_tissue(degrees, shift, flip):
    R = rotation(degrees, POINTS) @ torch.diag(torch.tensor([1.0, -1.0 if flip else 1.0]).double())
    own = frame(POINTS, uniform(60))
    moved = frame(POINTS @ R.T + shift, uniform(60))
    assert own.canonical
    assert (moved.V - R @ own.V).abs().max() < ROUNDING
    assert (moved.centre - (R @ own.centre + shift)).abs().max() < ROUNDING


def test_round_tissue_has_no_axes():
    angles = torch.arange(12).double() * torch.pi / 6
    circle = torch.stack([angles.cos(), angles.sin()], 1)
    assert not frame(circle, uniform(12)).canonical
    assert torch.equal(frame(circle, uniform(12)).V, torch.eye(2, dtype=torch.float64))


def test_pitch_of_a_grid_with_duplicates_is_its_spacing():
    grid = 2.5 * torch.cartesian_prod(torch.arange(5.0), torch.arange(4.0)).double()
    assert pitch(grid) == 2.5
    assert pitch(torch.cat([grid, grid])) == 2.5


def test_distances_are_symmetric_and_vanish_on_the_diagonal():
    D = distances(POINTS + 1e4)
    assert torch.equal(D, D.T)
    assert (D.diagonal() == 0).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 80))
def test_cells_keep_to_their_count(count):
    cell = cells(POINTS, count)
    used = cell.unique()
    assert len(used) <= count
    assert used.tolist() == list(range(len(used)))
    if count >= 60:
        assert len(used) == 60


def test_superspots_keep_mass_centre_and_mean_cost():
    n, m = 60, 50
    M = torch.rand(n, m, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    z, y = POINTS, POINTS[:m]
    fine = pair(Fused(M, distances(z), distances(y), uniform(n), uniform(m), 0.1), z, y)
    small = coarsened(fine, 20)
    assert small.problem.M.shape[0] <= 20
    assert abs(small.problem.a.sum() - 1) < ROUNDING
    assert (small.problem.a @ small.z).abs().max() < ROUNDING
    mean = small.problem.a @ small.problem.M @ small.problem.b
    assert abs(mean - M.mean()) < ROUNDING
