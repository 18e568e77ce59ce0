r"""Reduced costs `C_ij - f_i - g_j` of all pairs, without a matrix: which are negative, which zero.

Squared distances are screened in float32: the product differs from the exact reduced cost by at
most a bound E, so a pair above E is proved positive, and only the few below it are computed again
from coordinate differences in float64. All other costs are computed in float64 by blocks.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from algorithms.geometry import CostMatrix, Geometry, PointClouds

# Reduced costs below this share of max|C| are zero: sums along a tree of potentials round so.
TIGHT = 1e-12
# Entries of a block of reduced costs: 2 MB in float32, so that it stays in the cache.
BLOCK = 1 << 19
# Coordinates gathered at once where pairs are computed again.
GATHERED = 1 << 22
# Costs below this do not bear division into the range of float32, and are computed in float64.
SMALL = 1e-280
# Zero arcs kept, per point: beyond it lies only what makes every answer degenerate.
KEPT = 64

Pairs = tuple[Int[Tensor, "k"], Int[Tensor, "k"]]
Suspects = tuple[Int[Tensor, "k"], Int[Tensor, "k"], Float[Tensor, "k"]]


@dataclass(frozen=True)
class Proof:
    """What one pass over all pairs shows of potentials.

    Attributes:
        deficit: the largest `f_i + g_j - C_ij` of each row, zero where none is positive.
        arcs: pairs whose reduced cost is zero up to rounding; not all of very many.
    """

    deficit: Float[Tensor, "n"]
    arcs: Pairs


def proved(geometry: Geometry, f: Float[Tensor, "n"], g: Float[Tensor, "m"]) -> Proof:
    """Pass over all pairs once: how far the potentials are from feasible, and where they hold."""
    zero = TIGHT * geometry.bound()
    deficit = torch.zeros_like(f)
    none = torch.zeros(0, dtype=torch.int64)
    rows, cols, room = [none], [none], KEPT * (len(f) + len(g))
    for row, col, reduced in _suspects(geometry, f, g, zero):
        deficit.scatter_reduce_(0, row, -reduced, "amax")
        if room > 0:
            near = reduced <= zero
            rows.append(row[near])
            cols.append(col[near])
            room -= len(rows[-1])
    return Proof(deficit, (torch.cat(rows), torch.cat(cols)))


def violated(
    geometry: Geometry, f: Float[Tensor, "n"], g: Float[Tensor, "m"], *, most: int
) -> Suspects:
    """Find in each row the most negative reduced costs, at most `most`."""
    zero = TIGHT * geometry.bound()
    none = torch.zeros(0, dtype=torch.int64)
    found: list[Suspects] = [(none, none, f[:0])]
    for row, col, reduced in _suspects(geometry, f, g, -zero, most):
        bad = reduced < -zero
        found.append((row[bad], col[bad], reduced[bad]))
    rows, cols, reduced = (torch.cat(parts) for parts in zip(*found, strict=True))
    return rows, cols, reduced


def _suspects(
    geometry: Geometry,
    f: Float[Tensor, "n"],
    g: Float[Tensor, "m"],
    limit: float,
    most: int | None = None,
) -> Iterator[Suspects]:
    """Walk all pairs whose reduced cost may be at most `limit`, or the least `most` of a row."""
    product = isinstance(geometry, PointClouds) and geometry.cost == "sqeuclidean"
    screens = product and geometry.bound() > SMALL
    blocks = (_screened if screens else _computed)(geometry, f, g, limit)
    step = max(1, GATHERED // _width(geometry))
    for first, R, bound in blocks:
        row, col = _below(R, bound, most)
        row = row + first
        for i in range(0, len(row), step):
            r, c = row[i : i + step], col[i : i + step]
            yield r, c, geometry.entries(r, c) - f[r] - g[c]


def _below(R: Float[Tensor, "rows m"], bound: Float[Tensor, "rows"], most: int | None) -> Pairs:
    """Find the entries at most their row's bound, or the least `most` of these in each row."""
    low = (R.amin(1) <= bound).nonzero()[:, 0]  # (rows, m) -> (k,)
    some, limit = R[low], bound[low, None]
    if most is None or most >= R.shape[1]:
        near, col = (some <= limit).nonzero(as_tuple=True)
    else:
        value, col = some.topk(most, 1, largest=False, sorted=False)
        here = value <= limit
        near, col = here.nonzero()[:, 0], col[here]
    return low[near], col


def _width(geometry: Geometry) -> int:
    return 1 if isinstance(geometry, CostMatrix) else geometry.x.shape[1]


def _computed(
    geometry: Geometry, f: Float[Tensor, "n"], g: Float[Tensor, "m"], limit: float
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Compute blocks of reduced costs in float64, each with the value below which to look."""
    n, m = geometry.shape
    # cosine is a product, with the rounding of one; its sums are of unit vectors
    rounding = 8 * (_width(geometry) + 8) * torch.finfo(f.dtype).eps * geometry.bound()
    rows = max(1, BLOCK // m)
    for i in range(0, n, rows):
        R = geometry.band(i, i + rows).matrix() - f[i : i + rows, None] - g
        yield i, R, torch.full((len(R),), limit + rounding, dtype=f.dtype)


def _screened(
    clouds: Geometry, f: Float[Tensor, "n"], g: Float[Tensor, "m"], limit: float
) -> Iterator[tuple[int, Tensor, Tensor]]:
    r"""Compute blocks of `|x|^2 - f - 2 x.y + |y|^2 - g` in float32, and the bound E of each row.

    With K = d + 2 products of numbers rounded to float32, `E = (K + 4) eps32 sum |products|`, and
    `2 |x_k y_k| <= x_k^2 + y_k^2`. The clouds are first brought into the unit box about a common
    centre, which rounds by far less.
    """
    assert isinstance(clouds, PointClouds)
    x, y, unit = _boxed(clouds)
    shift = (f.mean() - g.mean()) / 2
    u = x.square().sum(1) - (f - shift) / unit**2  # (n, d) -> (n,)
    v = y.square().sum(1) - (g + shift) / unit**2
    sizes = y.square().sum(1).amax() + v.abs().amax() + x.square().sum(1) + u.abs()
    share = (x.shape[1] + 6) * torch.finfo(torch.float32).eps
    bound = (share * sizes + limit / unit**2).float() * (1 + share)
    left = torch.cat([-2 * x, torch.ones_like(u)[:, None], u[:, None]], 1).float()
    right = torch.cat([y, v[:, None], torch.ones_like(v)[:, None]], 1).float().T.contiguous()
    rows = max(1, BLOCK // len(y))
    R = torch.empty(min(rows, len(x)), len(y), dtype=torch.float32)
    for i in range(0, len(x), rows):
        part = left[i : i + rows]
        yield i, torch.mm(part, right, out=R[: len(part)]), bound[i : i + rows]


def _boxed(clouds: PointClouds) -> tuple[Tensor, Tensor, float]:
    """Centre both clouds at one point, and divide by a power of two above their extent."""
    low = torch.minimum(clouds.x.amin(0), clouds.y.amin(0))
    high = torch.maximum(clouds.x.amax(0), clouds.y.amax(0))
    middle = low / 2 + high / 2
    unit = 2.0 ** math.frexp(float((high / 2 - low / 2).amax()))[1]
    return (clouds.x - middle) / unit, (clouds.y - middle) / unit, unit


def least(geometry: Geometry, g: Float[Tensor, "m"]) -> Float[Tensor, "n"]:
    """Compute `min_j C_ij - g_j` by blocks."""
    rows = max(1, BLOCK // len(g))
    parts = [
        (geometry.band(i, i + rows).matrix() - g).amin(1) for i in range(0, geometry.shape[0], rows)
    ]
    return torch.cat(parts)


def swapped(geometry: Geometry) -> Geometry:
    """Exchange source and target."""
    if isinstance(geometry, CostMatrix):
        return CostMatrix(geometry.C.T)
    return replace(geometry, x=geometry.y, y=geometry.x)
