"""Pairs of spaces whose costs have no exact factors: geodesics, Euclidean distances, graphs."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components, shortest_path
from scipy.spatial import cKDTree
from torch import Tensor

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Costs:
    """Two matrices of costs, divided by one number so that the larger mean is 1."""

    Cx: Tensor
    Cy: Tensor


def common(C: Array, D: Array) -> Costs:
    scale = max(C.mean(), D.mean())
    return Costs(torch.from_numpy(C / scale), torch.from_numpy(D / scale))


def distances(x: Array) -> Array:
    return np.sqrt(np.maximum(((x[:, None] - x[None]) ** 2).sum(-1), 0))


def geodesics(x: Array, k: int) -> Array:
    """Lengths of shortest paths in the graph of k nearest neighbours; parts joined where near."""
    tree = cKDTree(x)
    apart, near = tree.query(x, k + 1)
    n = len(x)
    G = np.full((n, n), np.inf)
    G[np.repeat(np.arange(n), k), near[:, 1:].ravel()] = apart[:, 1:].ravel()
    G = np.minimum(G, G.T)
    D = distances(x)
    while True:
        G[~np.isfinite(G)] = 0
        parts, label = connected_components(G, directed=False)
        if parts == 1:
            return shortest_path(G, directed=False)
        between = np.where(label[:, None] != label, D, np.inf)
        i, j = np.unravel_index(between.argmin(), between.shape)
        G[i, j] = G[j, i] = D[i, j]


def arms(n: int, seed: int = 3) -> Costs:
    """A star of three unequal arms: Euclidean distances against distances along a bent star."""
    draw = np.random.default_rng(seed)
    sides = []
    for bend in (0.0, 1.0):
        arm = draw.choice(3, n, p=[0.5, 0.3, 0.2])
        t = draw.random(n) * np.array([1.5, 1.0, 0.6])[arm]
        angle = 2 * np.pi * arm / 3 + bend * t
        x = np.stack([t * np.cos(angle), t * np.sin(angle)], 1) + 0.03 * draw.normal(size=(n, 2))
        sides.append(x)
    return common(distances(sides[0]), geodesics(sides[1], 8))


def graphs(n: int, seed: int = 3) -> Costs:
    """Shortest paths in the neighbour graphs of two mixtures, in 3 and in 5 dimensions."""
    draw = np.random.default_rng(seed)
    sides = []
    for centres, d in ((6, 3), (5, 5)):
        middle = 2 * draw.normal(size=(centres, d))
        x = middle[draw.integers(centres, size=n)] + 0.4 * draw.normal(size=(n, d))
        sides.append(geodesics(x, 8))
    return common(*sides)


def roll(n: int, seed: int = 3) -> Costs:
    """A rectangle and a swiss roll of it: squared distances against squared geodesics."""
    draw = np.random.default_rng(seed)
    flat = draw.random((n, 2)) * np.array([3.0, 1.0])
    t = 1.5 * np.pi * (1 + 2 * draw.random(n))
    rolled = np.stack([t * np.cos(t), 10 * draw.random(n), t * np.sin(t)], 1)
    return common(distances(flat) ** 2, geodesics(rolled, 8) ** 2)


SPACES = {"arms": arms, "graphs": graphs, "roll": roll}


def random_costs(n: int, seed: int, *, symmetric: bool = True) -> Tensor:
    C = torch.rand(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return (C + C.T) / 2 if symmetric else C
