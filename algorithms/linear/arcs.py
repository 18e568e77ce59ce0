"""Arcs that an optimal plan is likely to use, from a plan or potentials that are nearly optimal."""

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.spatial import KDTree
from torch import Tensor

from algorithms.geometry import squared_distances
from algorithms.simplex import network_simplex

# Points of each cloud from which potentials are guessed.
SAMPLE = 1000
# The softening is the typical reduced cost of this neighbour, and never below a share of max C.
NEARBY, SHARP = 4, 1e-6
SWEEPS = 3
# Trees answer faster than products up to this dimension.
TREE_DIMENSION = 8
# Entries of a block of costs: 2 MB in float32, so that it stays in the cache.
BLOCK = 1 << 19

Plan = tuple[Int[Tensor, "nnz"], Int[Tensor, "nnz"], Float[Tensor, "nnz"]]


def near_images(
    x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], plan: Plan, k: int
) -> Int[Tensor, "arcs"]:
    """Collect arcs to the k nearest of where each point goes, or comes from.

    The image of x_i is the mean of its targets. Neighbours of x_i itself would be wrong as soon as
    the clouds are apart. Arcs are numbers `i m + j`, each once.
    """
    n, m = len(x), len(y)
    rows, cols, mass = plan
    image = _means(rows, y[cols], mass, n)
    source = _means(cols, x[rows], mass, m)
    k = min(k, n, m)
    forth = torch.arange(n)[:, None] * m + nearest(y, image, k)  # (n, k)
    back = nearest(x, source, k) * m + torch.arange(m)[:, None]  # (m, k)
    arcs = [forth, back, rows * m + cols]
    if len(rows) == n == m:
        # where neighbours go: for a permutation, one target each
        target = torch.empty(n, dtype=torch.int64).scatter_(0, rows, cols)
        arcs.append(torch.arange(n)[:, None] * m + target[nearest(x, x, k)])
    return torch.cat([arc.flatten() for arc in arcs]).unique()


def _means(
    index: Int[Tensor, "nnz"], z: Float[Tensor, "nnz d"], mass: Float[Tensor, "nnz"], size: int
) -> Float[Tensor, "size d"]:
    total = mass.new_zeros(size).index_add(0, index, mass)
    share = mass / total[index]
    return z.new_zeros(size, z.shape[1]).index_add(0, index, share[:, None] * z)


def nearest(
    points: Float[Tensor, "m d"], queries: Float[Tensor, "n d"], k: int
) -> Int[Tensor, "n k"]:
    """Find the k nearest points of each query: by a tree in few dimensions, else by products."""
    if points.shape[1] <= TREE_DIMENSION:
        found = KDTree(points.numpy()).query(queries.numpy(), k)[1]
        return torch.from_numpy(np.asarray(found).reshape(len(queries), k))
    return _least(queries, points, torch.zeros_like(points[:, 0]), k)


def sampled_potentials(
    x: Float[Tensor, "n d"],
    y: Float[Tensor, "m d"],
    p: Float[Tensor, "n"],
    q: Float[Tensor, "m"],
    *,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "n"], Float[Tensor, "m"]]:
    """Guess potentials for squared distances: exact ones of a subsample, spread by softened minima.

    Good in many dimensions, where all reduced costs of a point are of one size; in few, the
    subsample is too coarse.
    """
    some_x, some_y = (_drawn(w, generator) for w in (p, q))
    u, v = p[some_x], q[some_y]
    C = squared_distances(x[some_x], y[some_y])
    vertex = network_simplex(u / u.sum(), v / v.sum(), C)
    reduced = C - vertex.f[:, None] - vertex.g
    nearby = min(NEARBY, len(some_y))
    epsilon = float(reduced.kthvalue(nearby, 1).values.median())
    epsilon = max(epsilon, SHARP * float(C.amax()))
    f = _softened(x, y[some_y], vertex.g, v / v.sum(), epsilon)
    g = _softened(y, x, f, p / p.sum(), epsilon)
    for _ in range(SWEEPS - 1):
        f = _softened(x, y, g, q / q.sum(), epsilon)
        g = _softened(y, x, f, p / p.sum(), epsilon)
    return _softened(x, y, g, q / q.sum(), epsilon), g


def _drawn(w: Float[Tensor, "k"], generator: torch.Generator) -> Int[Tensor, "s"]:
    order = torch.randperm(len(w), generator=generator, device=generator.device)
    return order[: min(len(w), SAMPLE)].cpu()


def _softened(
    x: Float[Tensor, "n d"],
    y: Float[Tensor, "m d"],
    g: Float[Tensor, "m"],
    q: Float[Tensor, "m"],
    epsilon: float,
) -> Float[Tensor, "n"]:
    """Compute `-epsilon log sum_j q_j exp((g_j - |x_i - y_j|^2) / epsilon)` in float32, by blocks.

    This is a guess, of which nothing is claimed.
    """
    lift = (g - y.square().sum(1)) / epsilon + q.log()
    left, right = (x * (2 / epsilon)).float(), y.float().T.contiguous()
    lift = lift.float()
    parts = [torch.addmm(lift, part, right).logsumexp(1) for part in left.split(_rows(len(y)))]
    return x.square().sum(1) - epsilon * torch.cat(parts).to(x)


def least_reduced(
    x: Float[Tensor, "n d"],
    y: Float[Tensor, "m d"],
    f: Float[Tensor, "n"],
    g: Float[Tensor, "m"],
    k: int,
) -> Int[Tensor, "arcs"]:
    """Collect, by row and by column, the arcs of the k least reduced costs: numbers `i m + j`."""
    n, m = len(x), len(y)
    forth = torch.arange(n)[:, None] * m + _least(x, y, g, min(k, m))  # (n, k)
    back = _least(y, x, f, min(k, n)) * m + torch.arange(m)[:, None]  # (m, k)
    return torch.cat([forth.flatten(), back.flatten()]).unique()


def _least(
    x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], g: Float[Tensor, "m"], k: int
) -> Int[Tensor, "n k"]:
    lift, left, right = (y.square().sum(1) - g).float(), x.float(), y.float().T.contiguous()
    return torch.cat(
        [
            torch.addmm(lift, part, right, alpha=-2).topk(k, 1, largest=False, sorted=False).indices
            for part in left.split(_rows(len(y)))
        ]
    )


def _rows(width: int) -> int:
    return max(1, BLOCK // width)
