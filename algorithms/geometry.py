"""What a cost is: given as a matrix, or computed between two point clouds."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

PointCost = Literal["sqeuclidean", "euclidean"]


@dataclass(frozen=True)
class CostMatrix:
    """A cost given entry by entry: `C[i, j]` is the price of moving a unit of mass from i to j."""

    C: Float[Tensor, "n m"]

    def matrix(self) -> Float[Tensor, "n m"]:
        """Return the cost matrix itself."""
        return self.C


@dataclass(frozen=True)
class PointClouds:
    r"""Two clouds and a cost between points: `|x_i - y_j|^2` (not halved) or `|x_i - y_j|`."""

    x: Float[Tensor, "n d"]
    y: Float[Tensor, "m d"]
    cost: PointCost = "sqeuclidean"

    def matrix(self) -> Float[Tensor, "n m"]:
        """Compute all pairwise costs, differentiably."""
        squared = squared_distances(self.x, self.y)
        if self.cost == "sqeuclidean":
            return squared
        # sqrt has no derivative at 0: coincident points get the subgradient 0
        apart = squared > 0
        return torch.where(apart, squared, 1.0).sqrt() * apart


Geometry = CostMatrix | PointClouds


def squared_distances(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    r"""Compute `|x_i - y_j|^2` by one product of clouds centred at their common mean."""
    centre = torch.cat([x, y]).mean(0).detach()
    x, y = x - centre, y - centre
    return (x.square().sum(1)[:, None] + y.square().sum(1)[None] - 2 * x @ y.T).clamp_min(
        0
    )  # (n, m)
