"""Frames that a slice carries within itself: its pitch, its axes, its coarse grid."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from scipy.spatial import KDTree
from torch import Tensor

# Eigenvalues of the covariance closer than this are those of a round tissue: no axes.
ROUND = 1e-6
# Bisections of the cell side: 2^-30 of its bracket is far below any spacing of spots, and cells
# are still numbered by whole numbers of 64 bits.
HALVINGS = 30


@dataclass(frozen=True)
class Frame:
    """Centre and principal axes (columns of V), largest variance first.

    Each axis is signed so that its third central moment is not negative, so V may be a
    reflection: that is wanted, a mirrored slice then has mirrored axes. Angles counted from
    these axes mean the same however the slice was turned before it came.
    """

    centre: Float[Tensor, "2"]
    V: Float[Tensor, "2 2"]
    canonical: bool


def pitch(z: Float[Tensor, "n 2"]) -> float:
    """Measure the median distance from a spot to the nearest spot at another place."""
    places, place = torch.unique(z.detach(), dim=0, return_inverse=True)
    apart, _ = KDTree(places.numpy()).query(places.numpy(), k=2)
    return float(torch.from_numpy(apart[:, 1])[place].quantile(0.5))


def distances(z: Float[Tensor, "n 2"]) -> Float[Tensor, "n n"]:
    """Compute Euclidean distances by differences: exact to rounding, symmetric."""
    return torch.cdist(z, z, compute_mode="donot_use_mm_for_euclid_dist")


def frame(z: Float[Tensor, "n 2"], a: Float[Tensor, "n"]) -> Frame:
    """Find the canonical frame of weighted points; round tissue keeps the frame it came in."""
    centre = a @ z / a.sum()
    x = z - centre
    eigenvalues, ascending = torch.linalg.eigh((x * a[:, None]).T @ x)
    V = ascending.flip(1)
    if eigenvalues[1] - eigenvalues[0] <= ROUND * eigenvalues[1]:
        return Frame(centre, torch.eye(2, dtype=z.dtype, device=z.device), False)
    third = a @ (x @ V).pow(3)  # (n,) (n, 2) -> (2,)
    return Frame(centre, V * torch.where(third < 0, -1.0, 1.0), True)


def cells(x: Float[Tensor, "n 2"], count: int) -> Int[Tensor, "n"]:
    """Pool points into at most `count` occupied square cells, as many as a side can give.

    `x` in the canonical frame; the grid is centred on its origin. Returns the cell of each point.
    """
    return in_cells(x, cell_side(x, count))


def cell_side(x: Float[Tensor, "n 2"], count: int) -> float:
    """Find the least side whose square cells hold points in at most `count` of them."""
    low, high = 0.0, 2 * float(x.abs().max()) + 1.0
    for _ in range(HALVINGS):
        side = (low + high) / 2
        if int(in_cells(x, side).max()) < count:
            high = side
        else:
            low = side
    return high


def in_cells(x: Float[Tensor, "n 2"], side: float) -> Int[Tensor, "n"]:
    """Number the occupied cells of a square grid centred on the origin: the cell of each point."""
    corner = torch.floor(x / side + 0.5).long()
    corner = corner - corner.amin(0)  # one number a cell, in the order of its corners
    number = corner[:, 0] * (corner[:, 1].max() + 1) + corner[:, 1]
    return torch.unique(number, return_inverse=True)[1]
