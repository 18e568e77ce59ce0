"""The plan of a map: exact, entropic, or entropic without a matrix; many maps at once."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from algorithms.entropic.batched import Small, solve_small
from algorithms.entropic.penalised import BALANCED, Ask, entropic
from algorithms.entropic.streamed import apply_streamed, solve_streamed, top_streamed
from algorithms.geometry import PointClouds
from algorithms.iterate import Watch, quietly
from algorithms.linear.seeds import alike
from algorithms.marginals import KL, Marginal
from algorithms.simplex import network_simplex
from algorithms.sparse import SparsePlan
from algorithms.structured.problem import Problem, blocks, divergence

# Problems of at most so many entries are solved many at a time.
SMALL = 1 << 16
# Entries of all plans that are held at once.
ROOM = 1 << 22


@dataclass(frozen=True)
class How:
    """How plans are found: eps = 0 exactly, without a matrix where `streamed`."""

    epsilon: float
    tol: float
    max_iter: int
    watch: Watch
    streamed: bool = False


@dataclass(frozen=True)
class Coupled:
    """What plans are worth, one for each of a batch of maps.

    Attributes:
        G: cross moments. rest: `<L, P> + eps KL(P | a b^T)` and the prices of the marginals.
        f: source potentials, from which the next solve may start. g: those of the target.
        plans: the plans themselves, where they were asked for.
        error: largest L1 error of the marginals of any plan.
    """

    G: Float[Tensor, "S e d"]
    rest: Float[Tensor, "S"]
    f: Float[Tensor, "S n"]
    g: Float[Tensor, "S m"]
    error: float
    plans: Float[Tensor, "S n m"] | None = None


def coupled(
    p: Problem,
    M: Float[Tensor, "S e d"],
    how: How,
    f0: Float[Tensor, "S n"] | None = None,
    *,
    keep: bool = False,
) -> Coupled:
    """Solve for the plan of every map."""
    if how.streamed:
        return _joined([_streamed(p, one, how, None if f0 is None else f0[k])
                        for k, one in enumerate(M)])  # fmt: skip
    parts = list[Coupled]()
    for some in blocks(len(M), len(p.a) * len(p.b), ROOM):
        C = p.cost(M[some])
        begun = None if f0 is None else f0[some]
        P, f, g = _entropic(C, p, how, begun) if how.epsilon else _exact(C, p)
        rest = p.fixed_cost(P) + _prices(p, P, how.epsilon)
        parts.append(Coupled(p.moment(P), rest, f, g, _error(p, P), P if keep else None))
    return _joined(parts)


def _joined(parts: list[Coupled]) -> Coupled:
    names = ("G", "rest", "f", "g")
    plans = None if parts[0].plans is None else torch.cat([q.plans for q in parts])  # type: ignore[misc]
    joined = {name: torch.cat([vars(q)[name] for q in parts]) for name in names}
    return Coupled(**joined, error=max(q.error for q in parts), plans=plans)


def _error(p: Problem, P: Tensor) -> float:
    """Measure the balanced sides."""
    off = P.new_zeros(len(P))
    for rho, mu, w in ((p.rho_a, P.sum(2), p.a), (p.rho_b, P.sum(1), p.b)):
        off = off if rho is not None else off + (mu - w).abs().sum(1)
    return float(off.amax())


def _prices(p: Problem, P: Tensor, epsilon: float) -> Tensor:
    """Add the entropy and what the marginals owe."""
    mu, nu = P.sum(2), P.sum(1)
    due = P.new_zeros(len(P))
    if epsilon:
        product = p.a[:, None] * p.b
        due = due + epsilon * (torch.xlogy(P, P / product).sum((1, 2)) - mu.sum(1) + 1)
    for rho, sums, w in ((p.rho_a, mu, p.a), (p.rho_b, nu, p.b)):
        due = due if rho is None else due + rho * divergence(sums, w)
    return due


def _exact(C: Tensor, p: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Find a vertex for each cost: a permutation where all weights are equal."""
    n, m = C.shape[1:]
    P, f, g = torch.zeros_like(C), C.new_zeros(len(C), n), C.new_zeros(len(C), m)
    if alike(p.a, p.b):
        costs = C.cpu().numpy()
        for k, cost in enumerate(costs):
            P[k, torch.arange(n), torch.from_numpy(linear_sum_assignment(cost)[1])] = 1 / n
        return P, f, g
    for k, cost in enumerate(C):
        vertex = network_simplex(p.a, p.b, cost)
        P[k, vertex.rows, vertex.cols] = vertex.mass.to(C)
        f[k], g[k] = vertex.f.to(C), vertex.g.to(C)
    return P, f, g


def duals(C: Float[Tensor, "n m"], p: Problem) -> tuple[Float[Tensor, "n"], Float[Tensor, "m"]]:
    """Find potentials that prove a vertex: `f_i + g_j <= C_ij`, equal where mass travels."""
    vertex = network_simplex(p.a, p.b, C)
    return vertex.f.to(C), vertex.g.to(C)


def _entropic(C: Tensor, p: Problem, how: How, f0: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Sweep small balanced problems together, and each of the others from where it was."""
    S, n, m = C.shape
    P, f, g = torch.zeros_like(C), C.new_zeros(S, n), C.new_zeros(S, m)
    left = list(range(S))
    if p.balanced and n * m <= SMALL:
        one = C.new_ones(S)
        small = Small(C, p.a.expand(S, n), p.b.expand(S, m), one, how.epsilon * one,
                      how.tol * one, (how.max_iter * one).long())  # fmt: skip
        found = solve_small(small, watch=quietly(how.watch))
        at = found.index
        P[at], f[at], g[at] = found.plan, found.f, found.g
        left = sorted(set(left) - set(at.tolist()))
    sides = _marginal(p.rho_a), _marginal(p.rho_b)
    ask = Ask(how.epsilon, *sides, how.tol, how.max_iter, quietly(how.watch))
    for k in left:
        begun = None if f0 is None or not bool(f0[k].any()) else f0[k]
        solved = entropic(C[k], p.a, p.b, ask, f0=begun)
        P[k], f[k], g[k] = solved.plan, solved.f, solved.g
    return P, f, g


def _marginal(rho: float | None) -> Marginal:
    return BALANCED if rho is None else KL(rho)


@dataclass(frozen=True)
class Lifted:
    r"""The cost `<u, v>` as half of `|u + v|^2`, of which blocks are streamed.

    `2 C_ij = |(-u_i) - v_j|^2 - |u_i|^2 - |v_j|^2`: potentials move by the squared norms.
    """

    clouds: PointClouds
    us: Float[Tensor, "n"]
    vs: Float[Tensor, "m"]


def lifted(p: Problem, M: Float[Tensor, "e d"]) -> Lifted:
    """Write the cost of a map as squared distances."""
    u, v = p.factors(M)
    return Lifted(PointClouds(-u, v), u.square().sum(1), v.square().sum(1))


def _streamed(p: Problem, M: Tensor, how: How, f0: Tensor | None) -> Coupled:
    """Solve without a matrix."""
    at = lifted(p, M)
    begun = None
    if f0 is not None and bool(f0.any()):
        f = 2 * f0 + at.us
        columns = apply_conjugate(p, at, f, how.epsilon)
        begun = f, columns
    solved = solve_streamed(
        at.clouds, p.a, p.b, 2 * how.epsilon,
        f0=None if begun is None else begun[0], g0=None if begun is None else begun[1],
        tol=how.tol, max_iter=how.max_iter, watch=quietly(how.watch),
    )  # fmt: skip
    f, g = (solved.f - at.us) / 2, (solved.g - at.vs) / 2
    image = apply_streamed(at.clouds, p.a, p.b, solved.f, solved.g, 2 * how.epsilon, _values(p))
    e = p.Y.shape[1]
    G = image[:, :e].T @ p.X
    fixed = (image[:, e:] * p.fixed[0]).sum()
    mu, nu = solved.rows.to(f), solved.columns.to(f)
    paid = (solved.transport_cost - mu @ at.us - nu @ at.vs) / 2
    entropy = mu @ f + nu @ g - paid + how.epsilon * (1 - solved.mass)
    error = float((mu - p.a).abs().sum() + (nu - p.b).abs().sum())
    return Coupled(G[None], (fixed + entropy)[None], f[None], g[None], error)


def _values(p: Problem) -> Tensor:
    """Stack what plans are multiplied with."""
    return torch.cat([p.Y, p.fixed[1]], 1)


def apply_conjugate(p: Problem, at: Lifted, f: Tensor, epsilon: float) -> Tensor:
    """Compute the target potential that belongs to one of the source, block by block."""
    found = list[Tensor]()
    for some in blocks(len(p.b), len(p.a), ROOM):
        C = PointClouds(at.clouds.x, at.clouds.y[some]).matrix()
        found.append(-2 * epsilon * ((f[:, None] - C) / (2 * epsilon) + p.a.log()[:, None])
                     .logsumexp(0))  # fmt: skip
    return torch.cat(found)


def streamed_rows(
    p: Problem,
    M: Float[Tensor, "e d"],
    f: Float[Tensor, "n"],
    g: Float[Tensor, "m"],
    epsilon: float,
    top: int,
    V: Float[Tensor, "m k"],
) -> tuple[SparsePlan, Float[Tensor, "n k"], Float[Tensor, "n"]]:
    """Read from a plan that was never formed: largest entries, products with V, row sums."""
    at = lifted(p, M)
    ends = (at.clouds, p.a, p.b, 2 * f + at.us, 2 * g + at.vs, 2 * epsilon)
    read = apply_streamed(*ends, torch.cat([V, torch.ones_like(V[:, :1])], 1))
    return SparsePlan(*top_streamed(*ends, top)), read[:, :-1], read[:, -1]


def streamed_columns(
    p: Problem, M: Float[Tensor, "e d"], f: Tensor, g: Tensor, epsilon: float
) -> Float[Tensor, "m"]:
    """Sum the columns of a plan that was never formed."""
    at = lifted(p, M)
    turned = PointClouds(at.clouds.y, at.clouds.x)
    ends = (turned, p.b, p.a, 2 * g + at.vs, 2 * f + at.us, 2 * epsilon)
    return apply_streamed(*ends, torch.ones_like(f[:, None]))[:, 0]


def as_sparse(P: Float[Tensor, "n m"]) -> SparsePlan:
    """List the entries that carry mass."""
    rows, cols = P.nonzero(as_tuple=True)
    return SparsePlan(rows, cols, P[rows, cols])
