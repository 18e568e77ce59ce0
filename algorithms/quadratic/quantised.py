"""Pairs of spaces made small: cells of near points, a point of each standing for its mass."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from algorithms.quadratic.centres import divided, gathered
from algorithms.quadratic.objective import Pair
from algorithms.spaces import Cloud, Relations, Space

AXES = 8  # eigenvectors that place the points of a matrix of costs, for clustering only
SPARE, POWERS = 8, 6  # vectors beyond these, and products with each, of subspace iteration


@dataclass(frozen=True)
class Quantised:
    """A small pair, and the cells of both spaces that its points stand for.

    Attributes:
        pair: the spaces between the chosen points, with the masses of the cells.
        x: the cell of each source point.
        y: the cell of each target point.
    """

    pair: Pair
    x: Int[Tensor, "n"]
    y: Int[Tensor, "m"]

    def spread(
        self, P: Float[Tensor, "k l"], a: Float[Tensor, "n"], b: Float[Tensor, "m"]
    ) -> Float[Tensor, "n m"]:
        """Share the mass between two cells among the pairs of their points, as a product."""
        dense = P / self.pair.a[:, None] / self.pair.b
        return dense[self.x][:, self.y] * a[:, None] * b


def quantised(pair: Pair, points: int, generator: torch.Generator) -> Quantised:
    """Replace each space by at most so many of its points, near the middle of cells."""
    (x, X, a), (y, Y, b) = (
        _side(Z, w, points, generator) for Z, w in ((pair.X, pair.a), (pair.Y, pair.b))
    )
    linear = pair.M
    if linear is not None:
        linear = gathered(gathered(linear, pair.a, x)[0].T, pair.b, y)[0].T
    return Quantised(replace(pair, X=X, Y=Y, a=a, b=b, M=linear), x, y)


def _side(
    Z: Space, w: Float[Tensor, "n"], points: int, generator: torch.Generator
) -> tuple[Int[Tensor, "n"], Space, Float[Tensor, "k"]]:
    """Divide one space; points without mass, which move nothing, are put in the first cell."""
    alive = w.nonzero()[:, 0]
    z = coordinates(part(Z, alive), w[alive], generator)
    near = divided(z, w[alive], points, generator)
    middle, mass = _middle(z, w[alive], near), gathered(z, w[alive], near)[1]
    label = torch.zeros(len(w), dtype=near.dtype, device=w.device)
    label[alive] = near
    return label, part(Z, alive[middle]), mass


def selected(
    Z: Space, w: Float[Tensor, "n"], count: int, generator: torch.Generator
) -> Int[Tensor, "k"]:
    """Select so many points that spread over a space; all of it, repeated, where that is more."""
    alive = w.nonzero()[:, 0]
    if count >= len(alive):
        return alive[torch.arange(count, device=w.device) % len(alive)]
    z = coordinates(part(Z, alive), w[alive], generator)
    middle = _middle(z, w[alive], divided(z, w[alive], count, generator))
    other = torch.ones(len(alive), dtype=torch.bool, device=w.device)
    other[middle] = False
    # cells that lost all their points are made up for
    return alive[torch.cat([middle, other.nonzero()[:, 0]])[:count]]


def part(Z: Space, index: Int[Tensor, "k"]) -> Space:
    """Keep some points of a space."""
    if isinstance(Z, Cloud):
        return Cloud(Z.x[index])
    return Relations(Z.C[index][:, index])


def coordinates(
    Z: Space, w: Float[Tensor, "n"], generator: torch.Generator
) -> Float[Tensor, "n d"]:
    r"""Place points so that squared distances resemble the costs (classical scaling, weighted).

    With `r = C p - p^T C p / 2` the matrix `B = -(C - r 1^T - 1 r^T) / 2` has `B p = 0`; its
    largest positive eigenpairs in the metric of p give the coordinates. Subspace iteration finds
    them well enough to cluster by.
    """
    if isinstance(Z, Cloud):
        return Z.x
    p = w / w.sum()
    C = (Z.C + Z.C.T) / 2
    r = C @ p
    r = r - p @ r / 2
    root = p.sqrt()
    B = (C - r[:, None] - r).mul_(root[:, None] / -2).mul_(root)
    k = min(AXES + SPARE, len(p))
    basis = torch.randn(len(p), k, dtype=B.dtype, device=generator.device, generator=generator)
    basis = basis.to(B)
    for _ in range(POWERS):
        basis = torch.linalg.qr(B @ basis)[0]
    size, U = torch.linalg.eigh(basis.T @ (B @ basis))
    return (basis @ U[:, -AXES:]) * size[-AXES:].clamp_min(0).sqrt() / root[:, None]  # -> (n, d)


def _middle(
    z: Float[Tensor, "n d"], w: Float[Tensor, "n"], label: Int[Tensor, "n"]
) -> Int[Tensor, "k"]:
    """Choose for each cell the point that is nearest its mean."""
    means, _ = gathered(z, w, label)
    by_distance = (z - means[label]).square().sum(1).argsort(stable=True)
    order = by_distance[label[by_distance].argsort(stable=True)]  # by cell, then by distance
    sizes = label.bincount()
    return order[sizes.cumsum(0) - sizes]
