"""Clouds summarised by the weighted centres of cells."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

# Lloyd's steps: the centres are only a coarse picture, and later steps barely move them.
LLOYD_STEPS = 8


def divided(
    x: Float[Tensor, "n d"], w: Float[Tensor, "n"], count: int, generator: torch.Generator
) -> Int[Tensor, "n"]:
    """Divide weighted points into at most `count` cells, by k-means; cells are numbered from 0.

    The first centres are points drawn by weight; a cell that loses its points disappears.
    """
    if count >= len(x):
        return torch.arange(len(x), device=x.device)
    drawn = torch.multinomial(w.to(generator.device), count, generator=generator)
    centres = x[drawn.to(x.device)]
    for _ in range(LLOYD_STEPS):
        label = _nearest(x, centres)
        mass = w.new_zeros(len(centres)).index_add(0, label, w)
        moved = torch.zeros_like(centres).index_add(0, label, w[:, None] * x)
        centres = torch.where(mass[:, None] > 0, moved / mass[:, None], centres)
    return torch.unique(_nearest(x, centres), return_inverse=True)[1]


def gathered(
    z: Float[Tensor, "n k"], w: Float[Tensor, "n"], label: Int[Tensor, "n"]
) -> tuple[Float[Tensor, "c k"], Float[Tensor, "c"]]:
    """Average the rows of z over each cell with weights w; return the means and the masses."""
    count = int(label.max()) + 1
    mass = w.new_zeros(count).index_add(0, label, w)
    total = z.new_zeros(count, z.shape[1]).index_add(0, label, w[:, None] * z)
    return total / mass[:, None], mass


def _nearest(x: Float[Tensor, "n d"], centres: Float[Tensor, "c d"]) -> Int[Tensor, "n"]:
    return torch.addmm(centres.square().sum(1), x, centres.T, alpha=-2).argmin(1)  # (n, c) -> (n,)
