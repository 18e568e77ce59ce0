"""A smooth displacement beside an affine motion, and whether it brings like to like."""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from algorithms.spatial.nearest import averaged, nearest

# Neighbours that a displacement is averaged over.
NEIGHBOURS = 64
# Weight, in spots of usual weight, that stays without displacement: far from all spots it wins.
STILL = 0.01
# Neighbours over which held-out expression is averaged before it is compared.
COMPARED = 8


@dataclass(frozen=True)
class Field:
    """Displacements `u` at places `x`, of weights `w`, averaged by a Gaussian of deviation `h`."""

    x: Float[Tensor, "k 2"]
    u: Float[Tensor, "k 2"]
    w: Float[Tensor, "k"]
    h: float

    def __call__(self, z: Float[Tensor, "n 2"]) -> Float[Tensor, "n 2"]:
        """Average the nearest displacements; none where there is no place nearby."""
        apart, near = nearest(self.x, z, NEIGHBOURS)
        weight = (-apart.square() / (2 * self.h**2)).exp() * self.w[near]
        still = STILL * self.w.median()
        return (weight[:, :, None] * self.u[near]).sum(1) / (weight.sum(1) + still)[:, None]


def judged(
    source: tuple[Float[Tensor, "n 2"], Float[Tensor, "n h"]],
    target: tuple[Float[Tensor, "m 2"], Float[Tensor, "m h"]],
    ways: tuple[Float[Tensor, "n 2"], ...],
    counted: Bool[Tensor, "n"],
) -> list[float]:
    """Compare expression with that of the places that spots are moved to, by local means.

    `source` and `target` are places and scores; the answer is one mean square, over the spots that
    count, for each way to move the source's spots.
    """
    here = averaged(source[0], source[0], source[1], COMPARED)
    there = [averaged(target[0], places, target[1], COMPARED) for places in ways]
    return [float((here - other).square().sum(1)[counted].mean()) for other in there]
