"""What a cost is: given as a matrix, or computed between two point clouds."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

PointCost = Literal["sqeuclidean", "euclidean"]


@dataclass(frozen=True)
class CostMatrix:
    """A cost given entry by entry: `C[i, j]` is the price of moving a unit of mass from i to j."""

    C: Float[Tensor, "n m"]

    def matrix(self) -> Float[Tensor, "n m"]:
        """Return the cost matrix itself."""
        return self.C

    def entries(self, rows: Int[Tensor, "k"], cols: Int[Tensor, "k"]) -> Float[Tensor, "k"]:
        """Pick the costs of some pairs."""
        return self.C[rows, cols]


@dataclass(frozen=True)
class PointClouds:
    r"""Two clouds and a cost between points: `|x_i - y_j|^2` (not halved) or `|x_i - y_j|`."""

    x: Float[Tensor, "n d"]
    y: Float[Tensor, "m d"]
    cost: PointCost = "sqeuclidean"

    def matrix(self) -> Float[Tensor, "n m"]:
        """Compute all pairwise costs, differentiably.

        Distances come from coordinate differences: the product form would give points that
        coincide a distance of 1e-8. There the subgradient is 0; second derivatives do not exist
        in torch.
        """
        if self.cost == "sqeuclidean":
            return squared_distances(self.x, self.y)
        return torch.cdist(self.x, self.y, compute_mode="donot_use_mm_for_euclid_dist")

    def entries(self, rows: Int[Tensor, "k"], cols: Int[Tensor, "k"]) -> Float[Tensor, "k"]:
        """Compute the costs of some pairs from coordinate differences, differentiably."""
        squared = (self.x[rows] - self.y[cols]).square().sum(1)  # (k, d) -> (k,)
        if self.cost == "sqeuclidean":
            return squared
        # sqrt has no derivative at 0: coincident points get the subgradient 0
        apart = squared > 0
        return torch.where(apart, squared, 1.0).sqrt() * apart


Geometry = CostMatrix | PointClouds


def squared_distances(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    r"""Compute `|x_i - y_j|^2` by one product, of clouds centred at their common mean.

    The product is taken in float64 (which no TF32 setting touches) and rounded at the end: norms
    and product cancel, and in float32 would leave errors of 1e-7 of the norms.
    """
    dtype, (x, y) = x.dtype, (x.double(), y.double())
    centre = torch.cat([x, y]).mean(0).detach()
    x, y = x - centre, y - centre
    norms = x.square().sum(1)[:, None] + y.square().sum(1)  # (n, d), (m, d) -> (n, m)
    return torch.addmm(norms, x, y.T, alpha=-2).clamp_min(0).to(dtype)
