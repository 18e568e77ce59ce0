"""What a cost is: given as a matrix, or computed between two point clouds."""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

PointCost = Literal["sqeuclidean", "euclidean", "cosine", "lp", "wfr"]


@dataclass(frozen=True)
class CostMatrix:
    """A cost given entry by entry: `C[i, j]` is the price of moving a unit of mass from i to j."""

    C: Float[Tensor, "n m"]

    @property
    def shape(self) -> tuple[int, int]:
        """Count the source and the target points."""
        return self.C.shape[0], self.C.shape[1]

    @property
    def like(self) -> Tensor:
        """Return an input whose type and device stand for all."""
        return self.C

    def matrix(self) -> Float[Tensor, "n m"]:
        """Return the cost matrix itself."""
        return self.C

    def entries(self, rows: Int[Tensor, "k"], cols: Int[Tensor, "k"]) -> Float[Tensor, "k"]:
        """Pick the costs of some pairs."""
        return self.C[rows, cols]

    def band(self, first: int, last: int) -> "CostMatrix":
        """Keep the source points first, ..., last - 1."""
        return CostMatrix(self.C[first:last])

    def wide(self) -> "CostMatrix":
        """Leave the graph, in float64 on the CPU, where exact solvers work."""
        return CostMatrix(self.C.detach().double().cpu())

    def bound(self) -> float:
        """Bound the absolute costs that are finite."""
        C = self.C.detach().abs()
        return float(torch.where(C.isfinite(), C, 0.0).amax())


@dataclass(frozen=True)
class PointClouds:
    r"""Two clouds and a cost between points.

    Attributes:
        cost: `sqeuclidean` is `|x - y|^2`, not halved; `euclidean` is `|x - y|`; `cosine` is
            `1 - <x, y> / (|x| |y|)`; `lp` is `(sum_k |x_k - y_k|^p)^(1/p)`; `wfr`, of
            Wasserstein-Fisher-Rao, is `-log cos^2(min(|x - y| / (2 delta), pi/2))`, infinite from
            the distance `pi delta` on: such pairs are forbidden.
        p: exponent of `lp`, at least 1.
        delta: length of `wfr`, in units of the points.
    """

    x: Float[Tensor, "n d"]
    y: Float[Tensor, "m d"]
    cost: PointCost = "sqeuclidean"
    p: float | None = None
    delta: float | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Count the source and the target points."""
        return self.x.shape[0], self.y.shape[0]

    @property
    def like(self) -> Tensor:
        """Return an input whose type and device stand for all."""
        return self.x

    def matrix(self) -> Float[Tensor, "n m"]:
        """Compute all pairwise costs, differentiably.

        Distances come from coordinate differences: the product form would give points that
        coincide a distance of 1e-8. There the subgradient is 0; second derivatives do not exist
        in torch.
        """
        match self.cost:
            case "sqeuclidean":
                return squared_distances(self.x, self.y)
            case "cosine":
                return 1 - unit(self.x) @ unit(self.y).T
            case "lp":
                assert self.p is not None
                return torch.cdist(self.x, self.y, p=self.p)
            case "euclidean" | "wfr":
                apart = torch.cdist(self.x, self.y, compute_mode="donot_use_mm_for_euclid_dist")
                return apart if self.cost == "euclidean" else self._angular(apart)

    def entries(self, rows: Int[Tensor, "k"], cols: Int[Tensor, "k"]) -> Float[Tensor, "k"]:
        """Compute the costs of some pairs from coordinate differences, differentiably."""
        x, y = self.x[rows], self.y[cols]
        match self.cost:
            case "sqeuclidean":
                return (x - y).square().sum(1)  # (k, d) -> (k,)
            case "cosine":
                return 1 - (unit(x) * unit(y)).sum(1)
            case "lp":
                assert self.p is not None
                return torch.linalg.vector_norm(x - y, ord=self.p, dim=1)
            case "euclidean" | "wfr":
                apart = torch.linalg.vector_norm(x - y, dim=1)
                return apart if self.cost == "euclidean" else self._angular(apart)

    def band(self, first: int, last: int) -> "PointClouds":
        """Keep the source points first, ..., last - 1."""
        return replace(self, x=self.x[first:last])

    def wide(self) -> "PointClouds":
        """Leave the graph, in float64 on the CPU, where exact solvers work."""
        x, y = (z.detach().double().cpu() for z in (self.x, self.y))
        return replace(self, x=x, y=y)

    def bound(self) -> float:
        """Bound the absolute costs that are finite, without computing them all."""
        if self.cost == "cosine":
            return 2.0
        z = torch.cat([self.x, self.y]).detach().double()
        box = z.amax(0) - z.amin(0)
        if self.cost == "sqeuclidean":
            return float(box.square().sum())
        if self.cost == "wfr":
            blocks = range(0, len(self.x), max(1, (1 << 20) // len(self.y)))
            return max(CostMatrix(self.band(i, i + blocks.step).matrix()).bound() for i in blocks)
        return float(torch.linalg.vector_norm(box, ord=self.p or 2.0))

    def _angular(self, apart: Float[Tensor, "*pairs"]) -> Float[Tensor, "*pairs"]:
        """Compute `-2 log cos(apart / (2 delta))`; infinity, and no slope, where forbidden."""
        assert self.delta is not None
        angle = apart / (2 * self.delta)
        near = angle < math.pi / 2
        # sin of the complement keeps the digits that cos loses near pi/2
        cosine = torch.sin(math.pi / 2 - torch.where(near, angle, 0.0))
        return torch.where(near, -2 * cosine.log(), math.inf)


Geometry = CostMatrix | PointClouds


def unit(x: Float[Tensor, "k d"]) -> Float[Tensor, "k d"]:
    """Divide each row by its length; rows must not be zero."""
    return x / torch.linalg.vector_norm(x, dim=1, keepdim=True)


def factors(
    x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]
) -> tuple[Float[Tensor, "n r"], Float[Tensor, "m r"]]:
    """Factor squared distances, `|x_i - y_j|^2 = (A B^T)_ij` of rank d + 2, about one centre."""
    centre = torch.cat([x, y]).mean(0).detach()
    x, y = x - centre, y - centre
    one = torch.ones_like
    norms = x.square().sum(1, keepdim=True), y.square().sum(1, keepdim=True)
    A = torch.cat([norms[0], one(norms[0]), -2 * x], 1)  # (n, d) -> (n, d + 2)
    return A, torch.cat([one(norms[1]), norms[1], y], 1)


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
