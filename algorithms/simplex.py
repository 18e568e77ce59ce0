"""Vertices of the transport polytope: the one door to POT's compiled network simplex."""

import warnings
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
    from ot.lp.emd_wrap import emd_c

Numbers = NDArray[np.floating] | Tensor

# Pivots spent on 5,000 x 5,000 are about 1e6: this cap only stops a solver that cycles.
PIVOTS = 1_000_000_000
# Masses of float32 histograms agree to about 1e-7 times their length; more is a mistake.
MASS_MISMATCH = 1e-6
# Rounding of sums over the n + m - 1 basic entries, with room: a wrong answer misses by far more.
SUM_ROUNDING = 1e-9

# Masses are rounded to whole multiples of this share of their total (see `_in_grains`).
GRAIN = 2.0**-52

_OPTIMAL, _PIVOTS_SPENT = 1, 3  # result codes of the compiled solver


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
    a, b, C = _float64(a), _float64(b), _float64(C)
    _check(a, b, C)
    total = a.sum()
    p, q = _in_grains(a / total), _in_grains(b / b.sum())
    f0, g0 = (None, None) if warm is None else (_float64(warm[0]), _float64(warm[1]))
    alive = np.flatnonzero(p), np.flatnonzero(q)
    some_absent = len(alive[0]) < len(p) or len(alive[1]) < len(q)
    if some_absent and f0 is not None and g0 is not None:
        f0, g0 = f0[alive[0]], g0[alive[1]]
    P, cost, f, g, code = emd_c(
        p[alive[0]] if some_absent else p,
        q[alive[1]] if some_absent else q,
        np.ascontiguousarray(C[np.ix_(*alive)]) if some_absent else C,
        max_iter,
        1,
        f0,
        g0,
    )
    if code == _PIVOTS_SPENT:
        raise NotOptimal(max_iter)
    if code != _OPTIMAL:
        raise ArithmeticError(f"the network simplex ended with code {code} on checked input")
    flat = np.flatnonzero(P)  # (n, m) -> (nnz,)
    rows, cols = np.divmod(flat, P.shape[1])
    mass = P.ravel()[flat]
    if some_absent:
        rows, cols = alive[0][rows], alive[1][cols]
        f, g = _c_transforms(C, f, g, alive)
    vertex = Vertex(
        torch.from_numpy(rows),
        torch.from_numpy(cols),
        torch.from_numpy(mass * total),
        torch.from_numpy(f),
        torch.from_numpy(g),
        torch.tensor(cost * total, dtype=torch.float64),
    )
    _certify(vertex, p, q, float(total), float(np.abs(C).max()))
    return vertex


def _float64(x: Numbers) -> NDArray[np.float64]:
    if isinstance(x, Tensor):
        x = x.detach().cpu().numpy()
    return np.ascontiguousarray(x, dtype=np.float64)


def _in_grains(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Round masses of total 1 to whole grains of 2^-52, by largest remainders: total exactly 1.

    Sums and differences of grains are exact, so flows carry no rounding at all. Without this the
    compiled solver now and then ends as infeasible: it tests left-over flows against 1e-15.
    """
    grains = np.floor(p / GRAIN)
    short = round(1 / GRAIN - grains.sum())
    if 0 <= short <= len(p):
        grains[np.argsort(grains - p / GRAIN, kind="stable")[:short]] += 1
    else:
        grains[grains.argmax()] += short
    return grains * GRAIN


def _check(a: NDArray[np.float64], b: NDArray[np.float64], C: NDArray[np.float64]) -> None:
    """Refuse what has no optimal plan; the compiled solver would answer with zeros."""
    if C.shape != (len(a), len(b)):
        raise IllPosed("C", f"shape {C.shape}; expected ({len(a)}, {len(b)}), the sizes of a and b")
    for field, mass in (("a", a), ("b", b)):
        if not (np.isfinite(mass).all() and (mass >= 0).all() and mass.sum() > 0):
            raise IllPosed(field, "masses must be finite, non-negative and not all zero")
    if not np.isfinite(C).all():
        raise IllPosed("C", f"{np.count_nonzero(~np.isfinite(C))} costs are not finite")
    if abs(a.sum() - b.sum()) > MASS_MISMATCH * a.sum():
        raise IllPosed("b", f"total mass {b.sum():.9g}; expected that of a, {a.sum():.9g}")


def _c_transforms(
    C: NDArray[np.float64],
    f: NDArray[np.float64],
    g: NDArray[np.float64],
    alive: tuple[NDArray[np.intp], NDArray[np.intp]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Extend potentials to absent rows, then to absent columns: f (+) g <= C everywhere."""
    rows, cols = alive
    f_all = (C[:, cols] - g).min(1)  # (n, m') -> (n,)
    f_all[rows] = f
    g_all = (C - f_all[:, None]).min(0)  # (n, m) -> (m,)
    g_all[cols] = g
    return f_all, g_all


def _certify(
    vertex: Vertex, p: NDArray[np.float64], q: NDArray[np.float64], total: float, largest: float
) -> None:
    """Hold the solver to its word: both marginals, and strong duality, up to summation."""
    rows, cols, mass = vertex.rows.numpy(), vertex.cols.numpy(), vertex.mass.numpy() / total
    off = np.abs(np.bincount(rows, mass, len(p)) - p).sum()
    off += np.abs(np.bincount(cols, mass, len(q)) - q).sum()
    gap = float(vertex.transport_cost) / total - p @ vertex.f.numpy() - q @ vertex.g.numpy()
    if off > SUM_ROUNDING or abs(gap) > SUM_ROUNDING * largest:
        raise ArithmeticError(f"network simplex: marginals off by {off:.1e}, duality by {gap:.1e}")
