"""One map between all points: its plan, where points go, and what that is worth."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.iterate import quietly
from algorithms.sparse import SparsePlan
from algorithms.structured.alternation import objective
from algorithms.structured.couplings import (
    Coupled,
    How,
    as_sparse,
    coupled,
    duals,
    streamed_columns,
    streamed_rows,
)
from algorithms.structured.preparation import shares
from algorithms.structured.problem import Problem
from algorithms.structured.question import Question


@dataclass(frozen=True)
class Seen:
    """A map and its plan between all points, in the problem's units.

    Attributes:
        P: the plan; None where it was streamed, and `entries` are its largest.
        images: where sources go, in the units of y; `prepared` likewise among prepared points.
        fixed: `<L, P>`.
    """

    P: Float[Tensor, "n m"] | None
    entries: SparsePlan
    G: Float[Tensor, "e d"]
    f: Float[Tensor, "n"]
    g: Float[Tensor, "m"]
    mu: Float[Tensor, "n"]
    nu: Float[Tensor, "m"]
    images: Float[Tensor, "n e"]
    prepared: Float[Tensor, "n e"]
    value: float
    fixed: float


def read(q: Question, M: Float[Tensor, "e d"], how: How, top: int, y: Float[Tensor, "m e"]) -> Seen:
    """Solve for the plan of a map once more, and put back the points without weight."""
    p, part, (rows, columns) = q.every, q.problem, q.present
    quiet = replace(how, watch=quietly(how.watch))
    solved = coupled(part, M[None], quiet, keep=True)
    value = float(objective(part, M[None], solved))
    places = torch.cat([y, q.ready[1].points], 1)
    if solved.plans is None:
        return _streamed(q, M, solved, value, places, top)
    f, g = (solved.f[0], solved.g[0]) if q.epsilon else duals(part.cost(M), part)
    inner = solved.plans[0]
    P = p.a.new_zeros(len(p.a), len(p.b))
    P[rows[:, None], columns] = inner
    f, g = _everywhere(p, M, f, g, rows, columns, q.epsilon)
    going = shares(p.cost(M), g, p.b, q.epsilon)
    if q.epsilon == 0:
        going[rows] = P[rows] / P[rows].sum(1, keepdim=True)
    images, prepared = (going @ places).split(y.shape[1], 1)
    return Seen(P, as_sparse(P), solved.G[0], f, g, P.sum(1), P.sum(0), images, prepared, value,
                float(p.fixed_cost(P)))  # fmt: skip


def _streamed(
    q: Question, M: Tensor, solved: Coupled, value: float, places: Tensor, top: int
) -> Seen:
    """Read everything off the potentials, block by block."""
    p, part, (rows, columns) = q.every, q.problem, q.present
    f, g, e = solved.f[0], solved.g[0], p.Y.shape[1]
    times = torch.cat([places[columns], part.fixed[1]], 1)
    entries, read_off, mu = streamed_rows(part, M, f, g, q.epsilon, top, times)
    nu = streamed_columns(part, M, f, g, q.epsilon)
    entries = SparsePlan(rows[entries.rows], columns[entries.cols], entries.mass)
    fixed = float((read_off[:, 2 * e :] * part.fixed[0]).sum())
    f, g = _everywhere(p, M, f, g, rows, columns, q.epsilon)
    images = _put(read_off[:, : 2 * e] / mu[:, None], rows, len(p.a))
    gone = (p.a == 0).nonzero()[:, 0]
    for some in gone.split(1000):
        C = replace(p, X=p.X[some], fixed=(p.fixed[0][some], p.fixed[1])).cost(M)
        images[some] = shares(C, g, p.b, q.epsilon) @ places
    ends = images[:, :e], images[:, e:]
    return Seen(None, entries, solved.G[0], f, g, _put(mu, rows, len(p.a)),
                _put(nu, columns, len(p.b)), *ends, value, fixed)  # fmt: skip


def _put(z: Tensor, at: Tensor, size: int) -> Tensor:
    whole = z.new_zeros(size, *z.shape[1:])
    whole[at] = z
    return whole


def _everywhere(
    p: Problem, M: Tensor, f: Tensor, g: Tensor, rows: Tensor, columns: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """Give points without weight the potential that a vanishing one would have."""
    f, g = _put(f, rows, len(p.a)), _put(g, columns, len(p.b))
    for z, other, w, kept, seen, side in (
        (f, g, p.b, rows, columns, 0),
        (g, f, p.a, columns, rows, 1),
    ):
        gone = torch.ones_like(z, dtype=torch.bool).index_fill(0, kept, False)
        for some in gone.nonzero()[:, 0].split(1000):
            every = torch.arange(len(other), device=z.device)[seen]
            ends = (some, every) if side == 0 else (every, some)
            left, right = p.fixed
            part = replace(p, X=p.X[ends[0]], Y=p.Y[ends[1]],
                           fixed=(left[ends[0]], right[ends[1]]))  # fmt: skip
            C = part.cost(M)
            z[some] = _softmin(C if side == 0 else C.T, other[seen], w[seen], epsilon)
    return f, g


def _softmin(C: Tensor, g: Tensor, b: Tensor, epsilon: float) -> Tensor:
    if epsilon == 0:
        return (C - g).amin(1)
    return -epsilon * ((g - C) / epsilon + b.log()).logsumexp(1)


def gromov_value(q: Question, seen: Seen) -> float | None:
    """Evaluate Gromov-Wasserstein of the plan from moments, where the scaling is one of its.

    In the caller's units: each cloud's own part has its own unit.
    """
    if q.scaling == "unit":
        return None
    p, parts = q.problem, 0.0
    for Z, w, unit in ((p.X, p.a, q.units[0]), (p.Y, p.b, q.units[1])):
        own = float(((Z * w[:, None]).T @ Z).square().sum())
        if q.scaling == "gw_se":
            norms = Z.square().sum(1)
            own = 4 * own + 2 * float(w @ norms.square()) + 2 * float(w @ norms) ** 2
        parts += own * unit**4
    cross = float(seen.G.square().sum())
    if q.scaling == "gw_ip":
        return parts - 2 * cross * q.price
    norms = float(p.a @ p.X.square().sum(1)) * float(p.b @ p.Y.square().sum(1))
    return parts + (seen.fixed - 4 * norms - 8 * cross) * q.price
