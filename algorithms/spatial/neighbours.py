"""Distances along a graph of nearest neighbours: the geometry of a cloud seen from inside."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components, shortest_path
from scipy.spatial.distance import cdist
from torch import Tensor

from algorithms.errors import Caution, IllPosed

Normalise = Literal["l2", "zscore", "none"]
Metric = Literal["correlation", "euclidean"]
Mode = Literal["connectivity", "distance"]
# Distances this close, relatively, are tied: which neighbour is taken is then arbitrary.
TIED = 1e-9


@dataclass(frozen=True)
class Geodesics:
    """Path lengths along a neighbour graph, the largest 1.

    Attributes:
        D: path lengths; between components the largest finite one stands in.
        components: connected components of the graph.
        tied: share of the points whose last neighbour is as near as the next one.
    """

    D: Float[Tensor, "n n"]
    components: int
    tied: float


def normalised(field: str, x: Float[Tensor, "n d"], how: Normalise) -> Float[Tensor, "n d"]:
    """Scale rows to length 1 (`l2`) or columns to mean 0 and variance 1 (`zscore`).

    A zero row and a constant column become zero. Values are brought to size 1 first, so that no
    square leaves the range of numbers.
    """
    if not bool(x.isfinite().all()):
        raise IllPosed(field, "holds NaN or infinity; every entry must be finite")
    z = x.detach().double().cpu()
    largest = float(z.abs().amax())
    z = z / largest if largest > 0 else z
    match how:
        case "l2":
            z = z / z.abs().amax(1, keepdim=True).clamp_min(torch.finfo(z.dtype).tiny)
            return z / z.norm(dim=1, keepdim=True).clamp_min(torch.finfo(z.dtype).tiny)
        case "zscore":
            z = z - z.mean(0)
            spread = z.square().mean(0).sqrt()
            return torch.where(spread > 0, z / spread, torch.zeros_like(z))
        case "none":
            return z


def proximity(z: Float[Tensor, "n d"], metric: Metric) -> NDArray[np.float64]:
    """Compute distances between points; a row without variance correlates with none."""
    with np.errstate(invalid="ignore", divide="ignore"):
        apart = np.asarray(cdist(z.numpy(), z.numpy(), metric), dtype=np.float64)
    apart[np.isnan(apart)] = 1.0
    np.fill_diagonal(apart, -1.0)  # each point is its own first neighbour, duplicates or not
    return apart


def geodesics(field: str, C: NDArray[np.float64], k: int, mode: Mode) -> Geodesics:
    """Join each point with its k nearest, itself counted, either way; measure shortest paths.

    An edge has length 1 (`connectivity`) or its distance. Of equally near points those of the
    smaller index are taken. Time O(n^2 log n), memory O(n^2).
    """
    n = len(C)
    order = np.argsort(C, axis=1, kind="stable")[:, : k + 1]
    nearest = order[:, 1:k]
    rows = np.repeat(np.arange(n), nearest.shape[1])
    lengths = np.maximum(C[rows, nearest.ravel()], 0.0)
    unweighted = mode == "connectivity"
    # an edge of length 0 would count as absent
    data = np.ones_like(lengths) if unweighted else np.maximum(lengths, np.finfo(float).tiny)
    graph = csr_matrix((data, (rows, nearest.ravel())), (n, n))
    components = int(connected_components(graph, directed=False)[0])
    paths = shortest_path(graph, directed=False, unweighted=unweighted)
    finite = np.isfinite(paths)
    largest = float(paths[finite].max())
    if largest <= n * float(np.finfo(float).tiny):
        raise IllPosed(field, f"all {n} points lie at distance 0 along the graph of k = {k}")
    paths[~finite] = largest
    return Geodesics(torch.from_numpy(paths / largest), components, _tied(C, order, k))


def graph_cautions(field: str, graph: Geodesics, k: int) -> list[Caution]:
    """Tell of pieces, and of neighbours that were chosen among equals."""
    told: list[Caution] = []
    if graph.components > 1:
        told.append(
            Caution(
                "disconnected_graph",
                f"{field}: the graph of k = {k} has {graph.components} components; distances "
                "between them are set to the largest within one",
                f"raise k above {k}, or match the components apart",
            )
        )
    if graph.tied > 0:
        told.append(
            Caution(
                "tied_neighbours",
                f"{field}: {graph.tied:.1%} of the points have a neighbour as near as the last "
                f"of their {k}; those of smaller index were taken",
                "another order of the rows gives another graph; few distinct values (binary "
                "data) and regular grids tie often, so compare several k",
            )
        )
    return told


def _tied(C: NDArray[np.float64], order: NDArray[np.int64], k: int) -> float:
    """Take the share of points for which another neighbour would have been as good."""
    if order.shape[1] <= k:
        return 0.0
    at = np.arange(len(C))
    last, following = C[at, order[:, k - 1]], C[at, order[:, k]]
    return float(np.mean(following - last <= TIED * np.maximum(np.abs(following), TIED)))
