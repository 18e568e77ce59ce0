"""Two slices at one resolution: spots, or superspots that pool those of a square cell."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from scipy.spatial import KDTree
from torch import Tensor

from algorithms.spatial.components import Components
from algorithms.spatial.frames import cell_side, distances, frame, in_cells
from algorithms.spatial.fused import Fused
from algorithms.spatial.starts import Pair, pair

# A place of the tissue has a spot within so many cells.
WITHIN = 1.2
# Spots without a grid leave gaps: between spots count as near what nearly all neighbours are.
NEARLY_ALL = 0.99
# Mean of the expression cost, at which alpha has its usual meaning.
MEAN_COST = 2.0


@dataclass(frozen=True)
class Level:
    """Two slices at one resolution.

    Attributes:
        z, y: places of source and target, centred, in one unit.
        source, target: scores of their expression.
        a, b: weights; every spot of either slice weighs 1 / max(n, m).
        unit: side of a cell, or what separates spots.
        reach: a place farther than this from all spots of the other slice is outside of it.
        scale: factor that gives squared distances of scores the mean 2.
    """

    z: Float[Tensor, "n 2"]
    y: Float[Tensor, "m 2"]
    source: Float[Tensor, "n c"]
    target: Float[Tensor, "m c"]
    a: Float[Tensor, "n"]
    b: Float[Tensor, "m"]
    unit: float
    reach: float
    scale: float


def finest(
    z: Float[Tensor, "n 2"], y: Float[Tensor, "m 2"], parts: Components, spacing: float
) -> Level:
    """Take the spots as they are."""
    each = torch.tensor(1 / max(len(z), len(y)), dtype=z.dtype)
    scale = MEAN_COST / _mean_apart(parts.source, parts.target)
    gap = max(spacing, *(_widest(x) for x in (z, y)))
    return Level(
        z, y, parts.source, parts.target, each.expand(len(z)), each.expand(len(y)),
        spacing, WITHIN * gap, scale,
    )  # fmt: skip


def pooled(fine: Level, count: int) -> Level:
    """Pool the spots of both slices in square cells of one side, `count` in the larger slice.

    The cells of each slice lie along its own axes; places and scores are means.
    """
    places = [_canonical(x) for x in (fine.z, fine.y)]
    side = max(cell_side(x, count) for x in places)
    a, z, source = _pooled(in_cells(places[0], side), fine.a, fine.z, fine.source)
    b, y, target = _pooled(in_cells(places[1], side), fine.b, fine.y, fine.target)
    scale = MEAN_COST / _mean_apart(source, target)
    return Level(z, y, source, target, a, b, side, WITHIN * side, scale)


def coarse_pair(level: Level, alpha: float) -> Pair:
    """Pose the fused problem of two pooled slices, each of mass 1, in cells."""
    z, y = level.z / level.unit, level.y / level.unit
    M = level.scale * torch.cdist(level.source, level.target).square()
    a, b = level.a / level.a.sum(), level.b / level.b.sum()
    return pair(Fused(M, distances(z), distances(y), a, b, alpha), z, y)


def _canonical(x: Float[Tensor, "n 2"]) -> Float[Tensor, "n 2"]:
    own = frame(x, torch.full((len(x),), 1 / len(x), dtype=x.dtype))
    return (x - own.centre) @ own.V


def _pooled(
    cell: Tensor, mass: Tensor, places: Tensor, scores: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    total = torch.zeros(int(cell.max()) + 1, dtype=mass.dtype).index_add(0, cell, mass)

    def mean(x: Tensor) -> Tensor:
        summed = torch.zeros(len(total), x.shape[1], dtype=x.dtype)
        return summed.index_add(0, cell, mass[:, None] * x) / total[:, None]

    return total, mean(places), mean(scores)


def _mean_apart(source: Float[Tensor, "n c"], target: Float[Tensor, "m c"]) -> float:
    """Average |E_i - E_j|^2 over all pairs, without forming them."""
    own = source.square().sum(1).mean() + target.square().sum(1).mean()
    return float(own - 2 * source.mean(0) @ target.mean(0))


def _widest(x: Float[Tensor, "n 2"]) -> float:
    """Measure how far apart nearly all spots have their nearest neighbour at most."""
    apart, _ = KDTree(x.numpy()).query(x.numpy(), k=2)
    return float(torch.from_numpy(apart[:, 1]).quantile(NEARLY_ALL))
