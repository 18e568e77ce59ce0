"""A plan by its entries together with potentials: what every exact method hands over."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from algorithms.geometry import Geometry
from algorithms.iterate import Status
from algorithms.linear.pricing import Pairs, least, swapped
from algorithms.linear.staircase import staircase


@dataclass(frozen=True)
class Basis:
    """A plan by entries, potentials, and how they were found; all float64."""

    rows: Int[Tensor, "nnz"]
    cols: Int[Tensor, "nnz"]
    mass: Float[Tensor, "nnz"]
    f: Float[Tensor, "n"]
    g: Float[Tensor, "m"]
    method: str
    status: Status = "converged"
    spent: int = 0


def corner(
    geometry: Geometry,
    p: Float[Tensor, "n"],
    q: Float[Tensor, "m"],
    method: str,
    status: Status,
    spent: int = 0,
) -> Basis:
    """Answer with a feasible plan, the north-west corner's, and with feasible potentials."""
    rows, cols, mass = staircase(p, q)
    some = mass > 0
    f, g = nearest_potentials(geometry)
    return Basis(rows[some], cols[some], mass[some], f, g, method, status, spent)


def nearest_potentials(geometry: Geometry) -> tuple[Float[Tensor, "n"], Float[Tensor, "m"]]:
    """Give feasible potentials: what each source pays at least, and then each target."""
    f = least(geometry, torch.zeros(geometry.shape[1], dtype=torch.float64))
    return f, least(swapped(geometry), f)


def rigid(basis: Basis, arcs: Pairs, in_a: Bool[Tensor, "n"], in_b: Bool[Tensor, "m"]) -> bool:
    """Decide whether the potentials of points with mass are unique up to one shift.

    Parts of the support that no entry joins may shift against each other by t, up for rows and
    down for columns, as long as no tight arc from a part to another forbids it: they are rigid
    exactly when the graph of tight arcs (row to column) and entries (both ways) is strongly
    connected.
    """
    rows, cols = (torch.cat(ends) for ends in zip(arcs, (basis.rows, basis.cols), strict=True))
    here = in_a[rows] & in_b[cols]
    n, size = len(in_a), len(in_a) + len(in_b)
    tail = torch.cat([rows[here], basis.cols + n])
    head = torch.cat([cols[here] + n, basis.rows])
    ones = torch.ones(len(tail)).numpy()
    graph = coo_array((ones, (tail.numpy(), head.numpy())), shape=(size, size)).tocsr()
    _, part = connected_components(graph, directed=True, connection="strong")
    return len(torch.from_numpy(part)[torch.cat([in_a, in_b])].unique()) == 1
