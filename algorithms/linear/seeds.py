"""Where column generation begins: a feasible plan, and arcs among which the optimum nearly lies."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from algorithms.geometry import PointClouds
from algorithms.iterate import Watch, quietly
from algorithms.linear.arcs import Plan, least_reduced, near_images, sampled_potentials
from algorithms.linear.block_matching import BlockCost, scaled
from algorithms.linear.halving import bijection, split_masses

# Weights that differ by less, relatively, are equal after rounding.
ALIKE = 1e-13
# In more dimensions a bijection by blocks is far from the optimum, and potentials of a subsample
# are near it; in fewer it is the other way round. Measured at n = 3000: level at 8 dimensions.
LOW_DIMENSION = 10
LEAF, PASSES, FEW_PASSES = 128, 12, 1
NEAR_IMAGES, LEAST_REDUCED = 8, 10


def alike(p: Float[Tensor, "n"], q: Float[Tensor, "m"]) -> bool:
    """Tell whether all weights of both sides are equal up to rounding."""
    return len(p) == len(q) and bool((torch.cat([p, q]) / p[0] - 1).abs().amax() < ALIKE)


def first_plan(
    clouds: PointClouds,
    p: Float[Tensor, "n"],
    q: Float[Tensor, "m"],
    *,
    generator: torch.Generator,
    watch: Watch,
) -> Plan:
    """Find a feasible plan: a bijection between equal weights, else by halving masses.

    Shapes: clouds (n, m), p (n,), q (m,), all weights positive.
    """
    cost: BlockCost = "euclidean" if clouds.cost == "euclidean" else "sqeuclidean"
    if not alike(p, q):
        return split_masses(clouds.x, p, clouds.y, q, generator=generator, cost=cost)
    sigma = bijection(
        clouds.x,
        clouds.y,
        leaf=LEAF,
        passes=FEW_PASSES if _by_potentials(clouds) else PASSES,
        generator=generator,
        watch=quietly(watch),
        cost=cost,
    )
    return torch.arange(len(p)), sigma, p


def first_arcs(
    clouds: PointClouds,
    p: Float[Tensor, "n"],
    q: Float[Tensor, "m"],
    plan: Plan,
    *,
    generator: torch.Generator,
) -> Int[Tensor, "arcs"]:
    """Collect likely arcs and those of the plan, as numbers `i m + j`, each once."""
    x, y = scaled(clouds.x, clouds.y)
    if not _by_potentials(clouds):
        return near_images(x, y, plan, NEAR_IMAGES)
    f, g = sampled_potentials(x, y, p, q, generator=generator)
    likely = least_reduced(x, y, f, g, LEAST_REDUCED)
    return torch.cat([likely, plan[0] * len(y) + plan[1]]).unique()


def _by_potentials(clouds: PointClouds) -> bool:
    return clouds.cost == "sqeuclidean" and clouds.x.shape[1] > LOW_DIMENSION
