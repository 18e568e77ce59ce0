"""Transport on few cells whose marginals may give way, by a primal-dual interior point method."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sparse
from numpy.typing import NDArray
from scipy.sparse.linalg import splu

from algorithms.iterate import Watch, iterate, unwatched

Floats = NDArray[np.float64]
Places = NDArray[np.int64]
MOST_STEPS, PATIENCE = 80, 15
# Share of the way to the boundary of the positive orthant that a step takes.
INSIDE = 0.995
# Complementarity is not driven below this share of the marginal errors: they must vanish together.
TOGETHER = 0.1
# A step may multiply the mass by no more: beyond, the exponential is far from its tangent.
GROWTH = 4.0
# exp of more than this would overflow a sum.
LARGEST = 600.0


@dataclass(frozen=True)
class Restricted:
    """Cells (row, column) and costs, weights of all n + m points, and 1/rho of each (0: exact)."""

    rows: Places
    cols: Places
    C: Floats
    weights: Floats
    inverse: Floats
    n: int


@dataclass(frozen=True)
class Point:
    """Potentials z of all points, slacks s = C - z_i - z_j > 0, the plan's masses P > 0."""

    z: Floats
    s: Floats
    P: Floats


def solve_cells(
    p: Restricted, z: Floats, *, accuracy: float, watch: Watch = unwatched
) -> tuple[Floats, Floats]:
    r"""Minimise `sum_w rho w e^{-z/rho}` (`-<w, z>` where exact) over `z_i + z_j <= C_ij` on cells.

    The multipliers of the constraints are the plan: its marginals u equal `w e^{-z/rho}`. Mehrotra
    steps on `u = w e^{-z/rho}`, `P s = mu`; where u is too large the equation is taken in
    logarithms, since Newton's method overshoots exponentials from their flat side.

    Args:
        z: strictly feasible potentials.
        accuracy: of marginals (share of the mass) and of complementarity (share of the cost).

    Returns:
        The potentials and the masses on the cells, at the best point seen.

    References: Mehrotra 1992, doi:10.1137/0802028; Nocedal, Wright 2006, section 14.2.
    """
    E = _incidence(p)
    s = p.C - E @ z
    mass = float((p.weights * np.exp(-z * p.inverse)).sum())
    P = (mass / 2 / (1 / s).sum()) / s
    point, _ = iterate(
        lambda point: _step(p, E, point),
        lambda point: _merit(p, E, point),
        Point(z, s, P),
        tol=accuracy,
        max_iter=MOST_STEPS,
        patience=PATIENCE,
        watch=watch,
    )
    return point.z, point.P


def _incidence(p: Restricted) -> sparse.csr_matrix:
    k, N = len(p.rows), len(p.weights)
    ends = np.stack([p.rows, p.n + p.cols], 1).ravel()
    return sparse.csr_matrix((np.ones(2 * k), ends, np.arange(0, 2 * k + 1, 2)), shape=(k, N))


def _kept(p: Restricted, z: Floats) -> Floats:
    """Compute what the potentials keep of each weight: `w e^{-z/rho}`."""
    return p.weights * np.exp(np.minimum(-z * p.inverse, LARGEST))


def _merit(p: Restricted, E: sparse.csr_matrix, point: Point) -> float:
    """Add up relative errors of marginals and complementarity."""
    kept, u = _kept(p, point.z), E.T @ point.P
    total = float(max(kept.sum(), u.sum()))
    costs = float(point.P @ np.abs(p.C)) + total * _scale(p)
    return float(np.abs(u - kept).sum() / total + point.P @ point.s / costs)


def _scale(p: Restricted) -> float:
    """Return the smaller rho of those that are finite."""
    return float(1 / p.inverse.max())


def _step(p: Restricted, E: sparse.csr_matrix, point: Point) -> Point:
    z, s, P = point.z, point.s, point.P
    k, kept, u = len(s), _kept(p, z), E.T @ P
    above = (u > kept) & (p.inverse > 0)
    logarithm = np.log(u / p.weights) + z * p.inverse
    off = np.where(above, u * logarithm, u - kept)
    short = E @ z + s - p.C  # zero but for rounding
    D = P / s
    H = (E.T @ sparse.diags(D) @ E + sparse.diags(np.where(above, u, kept) * p.inverse)).tocsc()
    try:
        solve = splu(H, "MMD_AT_PLUS_A", 0.0, options={"SymmetricMode": True}).solve
    except RuntimeError:  # singular to rounding: nothing better is in reach
        return replace(point, z=np.full_like(z, np.nan))
    mu = float(P @ s) / k
    dz, ds, dP = _direction(p, E, point, solve, off, short, np.zeros(k))
    ahead = float((P + _reach(P, dP) * dP) @ (s + _reach(s, ds) * ds)) / k
    lengths = np.where(p.inverse > 0, 1 / np.maximum(p.inverse, 1e-300), _scale(p))
    floor = TOGETHER * float(np.abs(off) @ lengths) / k
    centre = min(mu, max(mu * (ahead / mu) ** 3, floor))
    dz, ds, dP = _direction(p, E, point, solve, off, short, centre - dP * ds)
    t = min(_reach(s, ds), _reach(P, dP))
    room = GROWTH * float(max(kept.sum(), u.sum(), p.weights.sum()))
    while float(_kept(p, z + t * dz).sum()) > room and t > 1e-12:
        t /= 2
    return Point(z + t * dz, s + t * ds, P + t * dP)


def _direction(
    p: Restricted,
    E: sparse.csr_matrix,
    point: Point,
    solve: Callable[[Floats], Floats],
    off: Floats,
    short: Floats,
    target: Floats,
) -> tuple[Floats, Floats, Floats]:
    """Solve the linearised equations, with `P s = target`."""
    s, P = point.s, point.P
    dz = solve(-off - E.T @ (target / s - P + P / s * short))
    ds = -short - E @ dz
    return dz, ds, (target - P * s - P * ds) / s


def _reach(v: Floats, dv: Floats) -> float:
    """Return how far, up to one, v + t dv stays positive."""
    down = dv < 0
    return min(1.0, INSIDE * float((-v[down] / dv[down]).min())) if down.any() else 1.0
