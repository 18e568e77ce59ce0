"""Superspots: a smaller problem whose best motion is that of the large one."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from algorithms.spatial.frames import cells, distances
from algorithms.spatial.fused import Fused
from algorithms.spatial.starts import Pair, pair

# More spots than this on either side, and the search runs on superspots.
LARGE = 650
# Superspots per slice: the search on these costs two to four seconds.
SUPERSPOTS = 400


def coarsened(fine: Pair, count: int = SUPERSPOTS) -> Pair:
    """Pool spots on a square grid in each canonical frame; keep masses, means and mean costs.

    Position and expression cost of a superspot are weighted means. <M, P> is then exact for plans
    that treat all spots of a superspot alike.
    """
    problem = fine.problem
    cell1 = cells(fine.z @ fine.source.V, count)
    cell2 = cells(fine.y @ fine.target.V, count)
    a, z = _pooled(cell1, problem.a, fine.z)
    b, y = _pooled(cell2, problem.b, fine.y)
    _, half = _pooled(cell1, problem.a, problem.M)  # (n, m) -> (N, m)
    _, M = _pooled(cell2, problem.b, half.T)  # (m, N) -> (M, N)
    small = Fused(M.T.contiguous(), distances(z), distances(y), a, b, problem.alpha)
    return pair(small, z, y)


def _pooled(
    cell: Int[Tensor, "n"], mass: Float[Tensor, "n"], x: Float[Tensor, "n d"]
) -> tuple[Float[Tensor, "k"], Float[Tensor, "k d"]]:
    count = int(cell.max()) + 1
    total = torch.zeros(count, dtype=x.dtype).index_add_(0, cell, mass)
    summed = torch.zeros(count, x.shape[1], dtype=x.dtype).index_add_(0, cell, mass[:, None] * x)
    return total, summed / total[:, None]
