"""Smooth displacements of the plane, fitted to scattered ones; and what a map does to areas."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.spatial import Delaunay, QhullError
from torch import Tensor

# A grid over the tissue has at most so many places, and none farther than REACH from a spot.
PLACES, REACH = 4000, 1.0
Field = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Jacobian:
    """Determinants of a map over its tissue: how many, how many negative, the lowest."""

    places: int
    folds: int
    lowest: float | None


def gaussian_field(
    x: Float[Tensor, "k 2"], u: Float[Tensor, "k 2"], w: Float[Tensor, "k"], lam: float, h: float
) -> Field:
    r"""Average displacements nearby:  sum_i w_i k_i u_i / (sum_i w_i k_i + lam).

    With k_i = exp(-|z - x_i|^2 / 2 h^2). Far from all points the field vanishes.
    """

    def field(z: Tensor) -> Tensor:
        k = torch.exp(-_squares(z, x) / (2 * h * h)) * w
        return (k @ u) / (k.sum(1, keepdim=True) + lam)

    return field


def spline_field(
    x: Float[Tensor, "k 2"], u: Float[Tensor, "k 2"], w: Float[Tensor, "k"], lam: float, h: float
) -> tuple[Field, float]:
    r"""Minimise  sum_i w_i |v(x_i) - u_i|^2 + lam h^4 (bending energy of v)  over all fields v.

    The bending energy is the integral of |second derivatives|^2; for one point a unit area, waves
    longer than 2 pi h lam^(1/4) pass. The minimiser is the thin-plate spline
    v(z) = c_0 + A z + sum_i s_i r_i^2 log r_i, where (Phi + 8 pi lam h^4 / w) s + Q c = u and
    Q^T s = 0. Returns the field and the largest error of these equations. Points on one line
    leave A open across it: the smallest is taken. (Wahba 1990, chapter 2.)
    """
    k, middle = len(x), x.mean(0)
    Q = torch.cat([torch.ones_like(x[:, :1]), x - middle], 1)  # (k, 3)
    top = torch.cat([_bend(_squares(x, x)) + torch.diag(8 * torch.pi * lam * h**4 / w), Q], 1)
    bottom = torch.cat([Q.T, torch.zeros(3, 3, dtype=x.dtype)], 1)
    system, right = torch.cat([top, bottom]), torch.cat([u, torch.zeros(3, 2, dtype=u.dtype)])
    if int(torch.linalg.matrix_rank(Q)) == 3:
        found = torch.linalg.solve(system, right)
    else:
        found = torch.linalg.lstsq(system, right, driver="gelsd").solution
    error = float((system @ found - right).abs().max())

    def field(z: Tensor) -> Tensor:
        flat = torch.cat([torch.ones_like(z[:, :1]), z - middle], 1)
        return _bend(_squares(z, x)) @ found[:k] + flat @ found[k:]

    return field, error


def jacobian_on_grid(field: Field, x: Float[Tensor, "k 2"]) -> Jacobian:
    """Look at det(I + du/dz) on a grid of half a unit over the places near x."""
    low, high = x.amin(0), x.amax(0)
    extent = float((high - low).prod().clamp_min(1.0))
    side = max(0.5, (extent / PLACES) ** 0.5)
    axes = [torch.arange(float(a), float(b) + side, side, dtype=x.dtype) for a, b in zip(
        low, high, strict=True)]  # fmt: skip
    grid = torch.cartesian_prod(*axes)
    near = torch.cat([_squares(part, x).amin(1) for part in grid.split(1024)]) <= REACH**2
    with torch.enable_grad():  # derivatives are wanted even where the caller wants none
        z = grid[near].requires_grad_()
        moved = z + field(z)
        rows = [torch.autograd.grad(moved[:, k].sum(), z, retain_graph=True)[0] for k in (0, 1)]
    det = rows[0][:, 0] * rows[1][:, 1] - rows[0][:, 1] * rows[1][:, 0]
    return Jacobian(len(det), int((det <= 0).sum()), float(det.min()) if len(det) else None)


def jacobian_of_triangles(x: Float[Tensor, "k 2"], y: Float[Tensor, "k 2"]) -> Jacobian:
    """Look at the areas that triangles between points keep when each x_i goes to y_i."""
    try:
        corners = torch.from_numpy(Delaunay(x.numpy()).simplices.astype(np.int64))
    except (QhullError, ValueError):
        return Jacobian(0, 0, None)
    before, after = _areas(x[corners]), _areas(y[corners])
    # slivers along the outline have no area to speak of, and turn over at a touch
    thick = before.abs() > 0.05
    if not bool(thick.any()):
        return Jacobian(0, 0, None)
    ratio = after[thick] / before[thick]
    return Jacobian(len(ratio), int((ratio <= 0).sum()), float(ratio.min()))


def hull_area(x: Float[Tensor, "k 2"]) -> float:
    """Compute the area of the convex hull; 0 for points on one line (Andrew, 1979)."""
    points = [(float(a), float(b)) for a, b in x.unique(dim=0)]
    if len(points) < 3:
        return 0.0
    ring = _chain(points)[:-1] + _chain(points[::-1])[:-1]
    pairs = zip(ring, ring[1:] + ring[:1], strict=True)
    return abs(sum(a[0] * b[1] - a[1] * b[0] for a, b in pairs)) / 2


def _chain(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    chain: list[tuple[float, float]] = []
    for p in points:
        while len(chain) > 1 and _turn(chain[-2], chain[-1], p) <= 0:
            chain.pop()
        chain.append(p)
    return chain


def _turn(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> float:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def _areas(t: Float[Tensor, "q 3 2"]) -> Float[Tensor, "q"]:
    a, b = t[:, 1] - t[:, 0], t[:, 2] - t[:, 0]
    return (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]) / 2


def _squares(z: Tensor, x: Tensor) -> Tensor:
    return (z[:, None] - x).square().sum(2)  # (q, 2), (k, 2) -> (q, k)


def _bend(squares: Tensor) -> Tensor:
    """Compute r^2 log r from r^2; 0 at 0."""
    safe = torch.where(squares > 0, squares, 1.0)
    return 0.5 * squares * safe.log()
