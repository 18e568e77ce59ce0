"""Exact transport by column generation: a few arcs, priced against all pairs until none is missing.

No matrix is held. The simplex solves on the arcs at hand; its potentials are tried on all pairs,
and pairs of negative reduced cost come in. When there are none, plan and potentials are optimal.
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from algorithms.geometry import Geometry, PointClouds
from algorithms.iterate import Status, Stop, Watch, iterate
from algorithms.linear.basis import Basis, nearest_potentials
from algorithms.linear.pricing import least, violated
from algorithms.linear.seeds import alike, first_arcs, first_plan
from algorithms.linear.staircase import staircase
from algorithms.simplex import GRAIN, NoFlow, NotOptimal, Vertex, sparse_network_simplex

# Rounds of pricing; four to ten are usual, and every round adds at least one of finitely many arcs.
ROUNDS = 1000
# Arcs that one round may add to a row.
MOST_ADDED = 10


@dataclass(frozen=True)
class State:
    """The arcs at hand, numbered `i m + j` in order; the optimum on them; what it violates."""

    arcs: Int[Tensor, "arcs"]
    vertex: Vertex
    missing: Int[Tensor, "new"]
    worst: float


def by_columns(
    clouds: PointClouds,
    p: Float[Tensor, "n"],
    q: Float[Tensor, "m"],
    *,
    max_iter: int,
    generator: torch.Generator,
    watch: Watch,
) -> Basis:
    """Solve between clouds in memory linear in the points.

    Shapes: clouds (n, m), p (n,), q (m,), float64 on the CPU, of equal totals. Potentials are
    feasible up to rounding where the answer converged; else as far as the last round had them.
    """
    rows, cols = _present(p), _present(q)
    x, y, u, v = clouds.x[rows], clouds.y[cols], p[rows], q[cols]
    some, v = replace(clouds, x=x, y=y), v * (u.sum() / v.sum())
    plan = first_plan(some, u, v, generator=generator, watch=watch)
    status: Status = "interrupted"
    if watch(0, math.inf):
        arcs = first_arcs(some, u, v, plan, generator=generator)
        try:
            vertex, stop = generated(some, u, v, arcs, max_iter=max_iter, watch=watch)
        except NotOptimal:
            status = "max_iter"
        else:
            f, g = _spread(clouds, rows, cols, vertex)
            # a matching moves the weights as they are, not as the simplex rounded them
            matched = len(vertex.rows) == len(u) and alike(u, v)
            mass = u[vertex.rows] if matched else vertex.mass
            found = rows[vertex.rows], cols[vertex.cols], mass
            return Basis(*found, f, g, "sparse", stop.status, stop.iterations)
    spent = max_iter if status == "max_iter" else 0
    found = rows[plan[0]], cols[plan[1]], plan[2]
    return Basis(*found, *nearest_potentials(clouds), "sparse", status, spent)


def _present(w: Float[Tensor, "k"]) -> Int[Tensor, "j"]:
    """Find the points whose mass the simplex does not round to nothing."""
    return (w > GRAIN * w.sum()).nonzero()[:, 0]


def _spread(
    clouds: PointClouds, rows: Int[Tensor, "k"], cols: Int[Tensor, "l"], vertex: Vertex
) -> tuple[Float[Tensor, "n"], Float[Tensor, "m"]]:
    """Give absent points the largest potentials that are feasible, first rows, then columns."""
    n, m = clouds.shape
    f, g = vertex.f.new_empty(n), vertex.g.new_empty(m)
    f[rows], g[cols] = vertex.f, vertex.g
    absent_x, absent_y = (
        torch.ones(size, dtype=torch.bool).index_fill_(0, present, False)
        for size, present in ((n, rows), (m, cols))
    )
    if bool(absent_x.any()):
        f[absent_x] = least(replace(clouds, x=clouds.x[absent_x], y=clouds.y[cols]), vertex.g)
    if bool(absent_y.any()):
        g[absent_y] = least(replace(clouds, x=clouds.y[absent_y], y=clouds.x), f)
    return f, g


def generated(
    geometry: Geometry,
    p: Float[Tensor, "n"],
    q: Float[Tensor, "m"],
    arcs: Int[Tensor, "arcs"],
    *,
    max_iter: int,
    watch: Watch,
) -> tuple[Vertex, Stop]:
    """Solve on `arcs`, add what the potentials violate, and so on until they violate nothing.

    Shapes: geometry (n, m), p (n,), q (m,), all weights positive. Each simplex solve starts from
    the potentials of the last.
    """
    start = _priced(geometry, p, q, arcs, None, max_iter)
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
