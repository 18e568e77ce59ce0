"""Nearest places by a tree, and averages over them: never a matrix of all pairs."""

import torch
from jaxtyping import Float, Int
from scipy.spatial import KDTree
from torch import Tensor

from algorithms.spatial.frames import frame

# A bend this slight decides between neighbours that a grid leaves tied, the same way however the
# grid lies: far above rounding, far below any distance that matters.
BEND = 1e-6
# Places at a time whose neighbours' values are gathered.
BLOCK = 4096


def nearest(
    x: Float[Tensor, "k 2"], z: Float[Tensor, "n 2"], count: int
) -> tuple[Float[Tensor, "n c"], Int[Tensor, "n c"]]:
    """Find the nearest places of x: distances and rows, in rising order."""
    count = min(count, len(x))
    apart, near = KDTree(x.numpy()).query(z.numpy(), k=count, workers=torch.get_num_threads())
    shape = len(z), count  # for one neighbour the tree leaves the axis out
    return torch.as_tensor(apart).reshape(shape), torch.as_tensor(near).reshape(shape)


def averaged(
    x: Float[Tensor, "k 2"], z: Float[Tensor, "n 2"], values: Float[Tensor, "k c"], count: int
) -> Float[Tensor, "n c"]:
    """Average the values of the nearest places of x about each z."""
    _, near = nearest(x, z, count)
    return torch.cat([values[rows].mean(1) for rows in near.split(BLOCK)])


def untied(x: Float[Tensor, "n 2"]) -> Float[Tensor, "n 2"]:
    """Bend places slightly along their long axis, so that no two neighbours are equally near."""
    own = frame(x, torch.full((len(x),), 1 / len(x), dtype=x.dtype))
    along = (x - own.centre) @ own.V[:, 0]
    size = along.abs().amax().clamp_min(torch.finfo(x.dtype).tiny)
    return x + BEND * (along + along.square() / size)[:, None] * own.V[:, 0]
