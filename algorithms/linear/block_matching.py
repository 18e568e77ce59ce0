"""Exact matching within blocks of two clouds, all blocks of one size at once."""

from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from algorithms.iterate import Watch
from algorithms.linear.assignment import best_assignment

BlockCost = Literal["sqeuclidean", "euclidean"]

# Entries of block costs held at once: 32 MB.
CHUNK = 1 << 22


def scaled(
    x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "m d"]]:
    """Centre both clouds at one point and bring them into the unit box: products stay numbers."""
    low = torch.minimum(x.amin(0), y.amin(0))
    high = torch.maximum(x.amax(0), y.amax(0))
    middle = low / 2 + high / 2
    size = float((high / 2 - low / 2).amax())
    size = size if size > 0 else 1.0
    return (x - middle) / size, (y - middle) / size


def improve(
    x: Float[Tensor, "n d"],
    y: Float[Tensor, "n d"],
    sigma: Int[Tensor, "n"],
    blocks: Int[Tensor, "B s"],
    cost: BlockCost,
    watch: Watch,
) -> None:
    """Match each block of sources exactly with its present images; `sigma` is changed.

    When `watch` says no, the other blocks stay as they are.
    """
    size = blocks.shape[1]
    at_once = max(1, CHUNK // size**2)
    for some in blocks.split(at_once):
        if not watch(-1, float("inf")):
            return
        images = sigma[some]
        C = block_costs(x[some], y[images], cost)  # (B, s, s)
        choice = assigned(C)
        # all matchings of a block have the same constants, so reduced costs compare as well
        found = C.gather(2, choice[:, :, None]).sum((1, 2))
        better = found < C.diagonal(dim1=1, dim2=2).sum(1)
        sigma[some] = torch.where(better[:, None], images.gather(1, choice), images)


def block_costs(
    x: Float[Tensor, "B s d"], y: Float[Tensor, "B t d"], cost: BlockCost
) -> Float[Tensor, "B s t"]:
    """Compute the costs within blocks; squared distances up to constants of rows and columns."""
    if cost == "euclidean":
        return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
    centre = y.mean(1, keepdim=True)
    return torch.bmm((x - x.mean(1, keepdim=True)) * -2, (y - centre).mT)


def assigned(C: Float[Tensor, "B s s"]) -> Int[Tensor, "B s"]:
    """Solve the assignment of each matrix, as many at a time as torch may use threads.

    Diagonals are where solvers start. The matrices are reduced in place, by the minima of their
    rows and then of their columns: constants slow scipy's routine down. The interpreter lock is
    released: two threads on two cores take 0.5 to 0.6 of the time of one.
    """
    C.sub_(C.amin(2, keepdim=True))
    C.sub_(C.amin(1, keepdim=True))
    threads = min(torch.get_num_threads(), len(C))
    with ThreadPoolExecutor(threads) as pool:
        choices = list(pool.map(best_assignment, C.numpy()))
    return torch.from_numpy(np.stack(choices))
