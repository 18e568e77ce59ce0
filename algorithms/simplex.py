"""Vertices of the transport polytope: the one door to POT's compiled network simplex."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from algorithms.errors import IllPosed

with warnings.catch_warnings():
    # POT's docstrings hold invalid escapes, reported whenever its files are compiled afresh
    warnings.simplefilter("ignore")
    from ot.lp.emd_wrap import emd_c, emd_c_sparse

Array = NDArray[np.float64]
Numbers = NDArray[np.floating] | Tensor

# Pivots spent on 5,000 x 5,000 are about 1e6: this cap only stops a solver that cycles.
PIVOTS = 1_000_000_000
# Masses of float32 histograms agree to about 1e-7 times their length; more is a mistake.
MASS_MISMATCH = 1e-6
# Rounding of sums over the basic entries of a problem of mass 1 and costs in [0, 1], with room.
SUM_ROUNDING = 1e-9

# Masses are rounded to whole multiples of this share of their total (see `_in_grains`).
GRAIN = 2.0**-52

_INFEASIBLE, _OPTIMAL, _PIVOTS_SPENT = 0, 1, 3  # result codes of the compiled solver


@dataclass(frozen=True)
class Vertex:
    """An extreme point of U(a, b) that is optimal for its cost, with the duals that prove it.

    At most n + m - 1 entries carry mass. All tensors are float64 on the CPU.

    Attributes:
        rows: source index of each entry, ascending.
        cols: target index of each entry, ascending within a row.
        mass: what travels along each entry, positive.
        f: source potentials, f_i + g_j <= C_ij with equality where mass travels.
        g: target potentials; only f (+) g is unique, the gauge is the solver's own.
        transport_cost: <P, C> = a.f + b.g.
    """

    rows: Int[Tensor, "nnz"]
    cols: Int[Tensor, "nnz"]
    mass: Float[Tensor, "nnz"]
    f: Float[Tensor, "n"]
    g: Float[Tensor, "m"]
    transport_cost: Float[Tensor, ""]


class NotOptimal(RuntimeError):
    """The pivots ran out. No plan comes with it: mass on artificial arcs is not yet placed."""

    def __init__(self, max_iter: int) -> None:
        super().__init__(f"the network simplex spent its {max_iter} pivots before optimality")
        self.max_iter = max_iter


class NoFlow(RuntimeError):
    """The arcs given carry no flow from a to b."""


def network_simplex(
    a: Numbers,
    b: Numbers,
    C: Numbers,
    *,
    warm: tuple[Numbers, Numbers] | None = None,
    max_iter: int = PIVOTS,
) -> Vertex:
    r"""Solve `min_P <P, C>` over `P >= 0`, `P 1 = a`, `P^T 1 = b`, exactly.

    Primal network simplex on the complete bipartite graph with block pivot search.

    Shapes: a (n,), b (m,), C (n, m); any floating dtype, solved in float64 on the CPU.

    Args:
        a: masses of the sources, non-negative; below 2^-52 of the total means the row is absent.
        b: masses of the targets; scaled to the total of `a` when the two differ by rounding.
        C: costs, finite, of any sign.
        warm: potentials (f, g) of a nearby problem: the first basis is built along the entries
            that they make tight. The optimal value is the same, the time often several times less.
        max_iter: pivots allowed; `NotOptimal` is raised where they run out.

    Returns:
        A `Vertex`. Potentials of absent rows and columns are their c-transforms, so that
        f (+) g <= C holds everywhere.

    Notes:
        About O(n m (n + m)) time in practice and two n x m copies of memory. The interpreter
        lock is released during the solve. The answer is a deterministic function of the arguments.

    References:
        Bonneel, van de Panne, Paris, Heidrich 2011, doi:10.1145/2070781.2024192 (the solver);
        Peyre, Cuturi 2019, arXiv:1803.00567, section 3.5 (the algorithm).
    """
    a, b, cost = _float64(a), _float64(b), _float64(C)
    _check(a, b, cost)
    p, q = _in_grains(a / a.sum(), b / b.sum())
    low, unit = _range(cost)
    reduced = (cost - low) / unit
    duals = None
    if warm is not None:
        duals = (_float64(warm[0]) - low) / unit, _float64(warm[1]) / unit
    answer = _kept_to_its_word(lambda d: _solve(p, q, reduced, d, max_iter), p, q, duals)
    mass = answer.mass * a.sum()
    return Vertex(
        torch.from_numpy(answer.rows),
        torch.from_numpy(answer.cols),
        torch.from_numpy(mass),
        torch.from_numpy(answer.f * unit + low),
        torch.from_numpy(answer.g * unit),
        torch.tensor(mass @ cost[answer.rows, answer.cols], dtype=torch.float64),
    )


def sparse_network_simplex(
    a: Numbers,
    b: Numbers,
    arcs: tuple[Int[Tensor, "arcs"], Int[Tensor, "arcs"]],
    costs: Float[Tensor, "arcs"],
    *,
    warm: tuple[Numbers, Numbers] | None = None,
    max_iter: int = PIVOTS,
) -> Vertex:
    r"""Solve `min <P, C>` over `P >= 0`, `P 1 = a`, `P^T 1 = b` that live on a few arcs.

    Shapes: a (n,), b (m,), arcs two of (arcs,), costs (arcs,), solved in float64 on the CPU.

    Args:
        a: masses of the sources, all above 2^-52 of the total.
        b: masses of the targets, likewise; scaled to the total of `a`.
        arcs: rows and columns that may carry mass, each pair once.
        costs: of these arcs, finite, of any sign.
        warm: potentials (f, g) of a nearby problem; after a few arcs have come they make the next
            solve ten times faster.
        max_iter: pivots allowed; `NotOptimal` is raised where they run out.

    Returns:
        A `Vertex` that is optimal among plans on the arcs: f_i + g_j <= C_ij holds on those alone.
        `NoFlow` is raised where there is none.

    Notes:
        Memory linear in the arcs. The interpreter lock is released during the solve.

    References:
        Bonneel, van de Panne, Paris, Heidrich 2011, doi:10.1145/2070781.2024192.
    """
    a, b, cost = _float64(a), _float64(b), _float64(costs)
    _check_masses(a, b)
    rows, cols = (index.numpy() for index in arcs)
    if not np.isfinite(cost).all():
        raise IllPosed("costs", f"{np.count_nonzero(~np.isfinite(cost))} costs are not finite")
    p, q = _in_grains(a / a.sum(), b / b.sum())
    low, unit = _range(cost)
    reduced = (cost - low) / unit
    duals = None
    if warm is not None:
        duals = (_float64(warm[0]) - low) / unit, _float64(warm[1]) / unit
    answer = _kept_to_its_word(
        lambda d: _solve_on(p, q, rows, cols, reduced, d, max_iter), p, q, duals
    )
    mass = answer.mass * a.sum()
    order = np.lexsort((answer.cols, answer.rows))
    value = answer.cost * unit + low
    return Vertex(
        torch.from_numpy(answer.rows[order]),
        torch.from_numpy(answer.cols[order]),
        torch.from_numpy(mass[order]),
        torch.from_numpy(answer.f * unit + low),
        torch.from_numpy(answer.g * unit),
        torch.tensor(value * a.sum(), dtype=torch.float64),
    )


@dataclass(frozen=True)
class _Flow:
    """What the compiled solver answers: arcs that carry mass, potentials, its code."""

    rows: NDArray[np.int64]
    cols: NDArray[np.int64]
    mass: Array
    cost: float
    f: Array
    g: Array
    code: int


def _solve_on(
    p: Array,
    q: Array,
    rows: NDArray[np.int64],
    cols: NDArray[np.int64],
    cost: Array,
    duals: tuple[Array, Array] | None,
    max_iter: int,
) -> _Flow:
    ends = rows.astype(np.uint64), cols.astype(np.uint64)
    found = emd_c_sparse(p, q, *ends, cost, max_iter, *(duals or (None, None)))
    i, j, mass, total, f, g, code = found
    if code == _INFEASIBLE and duals is None:
        raise NoFlow(f"{len(cost)} arcs between {len(p)} and {len(q)} points carry no flow")
    if code == _PIVOTS_SPENT:
        raise NotOptimal(max_iter)
    some = mass > 0
    return _Flow(
        i[some].astype(np.int64), j[some].astype(np.int64), mass[some], float(total), f, g, code
    )


def _solve(p: Array, q: Array, C: Array, duals: tuple[Array, Array] | None, max_iter: int) -> _Flow:
    """Call the compiled solver on the rows and columns that carry mass; fill in the absent."""
    rows, cols = np.flatnonzero(p), np.flatnonzero(q)
    whole = len(rows) == len(p) and len(cols) == len(q)
    f, g = (None, None) if duals is None else (duals[0][rows], duals[1][cols])
    among = C if whole else C[np.ix_(rows, cols)]
    P, _, f, g, code = emd_c(p[rows], q[cols], among, max_iter, 1, f, g)
    if code == _PIVOTS_SPENT:
        raise NotOptimal(max_iter)
    flat = np.flatnonzero(P)  # (n', m') -> (nnz,)
    mass = P.ravel()[flat]
    i, j = np.divmod(flat, len(cols))
    cost = float(mass @ among.ravel()[flat])
    if whole:
        return _Flow(i, j, mass, cost, f, g, code)
    # c-transforms, first of the absent rows, then of the absent columns: f (+) g <= C everywhere
    f_all = (C[:, cols] - g).min(1)  # (n, m') -> (n,)
    f_all[rows] = f
    g_all = (C - f_all[:, None]).min(0)  # (n, m) -> (m,)
    g_all[cols] = g
    return _Flow(rows[i], cols[j], mass, cost, f_all, g_all, code)


def _kept_to_its_word(
    solve: Callable[[tuple[Array, Array] | None], _Flow],
    p: Array,
    q: Array,
    duals: tuple[Array, Array] | None,
) -> _Flow:
    """Solve, from duals first where they are given, and believe no answer without a check.

    Duals of too far a problem cost one more solve, never the answer.
    """
    if duals is not None and not _flaw(answer := solve(duals), p, q):
        return answer
    answer = solve(None)
    if flaw := _flaw(answer, p, q):
        raise ArithmeticError(f"the network simplex failed on checked input: {flaw}")
    return answer


def _flaw(answer: _Flow, p: Array, q: Array) -> str:
    """Hold the solver to its word: its code, both marginals, and strong duality."""
    off = np.abs(np.bincount(answer.rows, answer.mass, len(p)) - p).sum()
    off += np.abs(np.bincount(answer.cols, answer.mass, len(q)) - q).sum()
    gap = answer.cost - p @ answer.f - q @ answer.g
    if answer.code == _OPTIMAL and off <= SUM_ROUNDING and abs(gap) <= SUM_ROUNDING:
        return ""
    return f"code {answer.code}, marginals off by {off:.1e}, duality by {gap:.1e}"


def _float64(x: Numbers) -> Array:
    if isinstance(x, Tensor):
        x = x.detach().cpu().numpy()
    return np.ascontiguousarray(x, dtype=np.float64)


def _in_grains(p: Array, q: Array) -> tuple[Array, Array]:
    """Round masses of total 1 to whole grains of 2^-52, with exactly the same total.

    Sums and differences of grains are exact, so flows carry no rounding, and equal masses stay
    equal, so permutations stay permutations. Without this a few hundred masses may look
    infeasible: the solver tests their signed sum against 2e-15. The difference, at most
    (n + m) / 2 grains, goes to the largest target.
    """
    p, q = np.rint(p / GRAIN), np.rint(q / GRAIN)
    q[q.argmax()] += p.sum() - q.sum()
    return p * GRAIN, q * GRAIN


def _range(C: Array) -> tuple[float, float]:
    """Find the least cost and a power of two above the spread of costs.

    The solver prices its artificial arcs at (largest cost + 1) (n + m): too cheap when costs are
    very negative, which ends as infeasible, and too dear when all are tiny, which drowns them.
    """
    low = float(C.min())
    spread = float(C.max()) - low
    return low, float(2.0 ** np.frexp(spread)[1]) if spread > 0 else 1.0


def _check(a: Array, b: Array, C: Array) -> None:
    """Refuse what has no optimal plan; the compiled solver would answer with zeros."""
    if C.shape != (len(a), len(b)):
        raise IllPosed("C", f"shape {C.shape}; expected ({len(a)}, {len(b)}), the sizes of a and b")
    _check_masses(a, b)
    if not np.isfinite(C).all():
        raise IllPosed("C", f"{np.count_nonzero(~np.isfinite(C))} costs are not finite")


def _check_masses(a: Array, b: Array) -> None:
    for field, mass in (("a", a), ("b", b)):
        if not (np.isfinite(mass).all() and (mass >= 0).all() and mass.sum() > 0):
            raise IllPosed(field, "masses must be finite, non-negative and not all zero")
    if abs(a.sum() - b.sum()) > MASS_MISMATCH * a.sum():
        raise IllPosed("b", f"total mass {b.sum():.9g}; expected that of a, {a.sum():.9g}")
