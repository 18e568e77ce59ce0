"""Exact transport by column generation: a few arcs, priced against all pairs until none is missing.

No matrix is held. The simplex solves on the arcs at hand; its potentials are tried on all pairs,
and pairs of negative reduced cost come in. When there are none, plan and potentials are optimal.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from algorithms.geometry import Geometry, PointClouds
from algorithms.iterate import Stop, Watch, iterate, quietly
from algorithms.simplex import NoFlow, Vertex, sparse_network_simplex
from algorithms.transport.arcs import Plan, least_reduced, near_images, sampled_potentials
from algorithms.transport.halving import bijection, scaled, split_masses
from algorithms.transport.pricing import violated
from algorithms.transport.staircase import staircase

# Rounds of pricing; four to ten are usual, and every round adds at least one of finitely many arcs.
ROUNDS = 1000
# Arcs that one round may add to a row.
MOST_ADDED = 10


@dataclass(frozen=True)
class Duals:
    """Potentials to begin with, near those of the answer."""

    f: Float[Tensor, "n"]
    g: Float[Tensor, "m"]


@dataclass(frozen=True)
class State:
    """The arcs at hand, numbered `i m + j` in order; the optimum on them; what it violates."""

    arcs: Int[Tensor, "arcs"]
    vertex: Vertex
    missing: Int[Tensor, "new"]
    worst: float


def generated(
    geometry: Geometry,
    p: Float[Tensor, "n"],
    q: Float[Tensor, "m"],
    arcs: Int[Tensor, "arcs"],
    *,
    warm: tuple[Tensor, Tensor] | None = None,
    max_iter: int,
    watch: Watch,
) -> tuple[Vertex, Stop]:
    """Solve on `arcs`, add what the potentials violate, and so on until they violate nothing.

    Shapes: geometry (n, m), p (n,), q (m,), all weights positive. Each simplex solve starts from
    the potentials of the last.
    """
    start = _priced(geometry, p, q, arcs, warm, max_iter)
    state, stop = iterate(
        lambda s: _priced(
            geometry, p, q, _merged(s.arcs, s.missing), (s.vertex.f, s.vertex.g), max_iter
        ),
        lambda s: s.worst,
        start,
        tol=0.0,
        max_iter=ROUNDS,
        watch=watch,
    )
    return state.vertex, stop


def _priced(
    geometry: Geometry,
    p: Float[Tensor, "n"],
    q: Float[Tensor, "m"],
    arcs: Int[Tensor, "arcs"],
    warm: tuple[Tensor, Tensor] | None,
    max_iter: int,
) -> State:
    """Solve on the arcs; price all others."""
    m = len(q)
    try:
        vertex = _solved(geometry, p, q, arcs, warm, max_iter)
    except NoFlow:
        rows, cols, _ = staircase(p, q)
        arcs = _merged(arcs, rows * m + cols)
        vertex = _solved(geometry, p, q, arcs, warm, max_iter)
    rows, cols, reduced = violated(geometry, vertex.f, vertex.g, most=MOST_ADDED)
    numbers = rows * m + cols
    # arcs at hand have reduced costs of zero up to rounding: added again, they would come for ever
    at = torch.searchsorted(arcs, numbers).clamp_max(len(arcs) - 1)
    new = arcs[at] != numbers
    worst = float(-reduced[new].amin()) if bool(new.any()) else 0.0
    return State(arcs, vertex, numbers[new], worst)


def _solved(
    geometry: Geometry,
    p: Float[Tensor, "n"],
    q: Float[Tensor, "m"],
    arcs: Int[Tensor, "arcs"],
    warm: tuple[Tensor, Tensor] | None,
    max_iter: int,
) -> Vertex:
    ends = arcs // len(q), arcs % len(q)
    costs = geometry.entries(*ends)
    return sparse_network_simplex(p, q, ends, costs, warm=warm, max_iter=max_iter)


def _merged(arcs: Int[Tensor, "arcs"], more: Int[Tensor, "new"]) -> Int[Tensor, "both"]:
    return torch.cat([arcs, more]).unique()
