"""Many one-dimensional problems at once: a row for each direction."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Sorted:
    """Projections in order, and the order: row l belongs to direction l."""

    X: Float[Tensor, "L n"]
    Y: Float[Tensor, "L m"]
    by_x: Int[Tensor, "L n"]
    by_y: Int[Tensor, "L m"]


@dataclass(frozen=True)
class Plans:
    """One plan in order for each direction, by places in the sorted clouds, and its prices."""

    rows: Int[Tensor, "L k"]
    cols: Int[Tensor, "L k"]
    mass: Float[Tensor, "L k"]
    price: Float[Tensor, "L k"]

    def costs(self) -> Float[Tensor, "L"]:
        """Compute what each plan costs."""
        return (self.mass * self.price).sum(1)


def directions(count: int, d: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw points of the unit sphere, uniformly; on the line there is one direction."""
    if d == 1:
        return like.new_ones(1, 1)
    drawn = torch.randn(count, d, generator=generator, dtype=torch.float64, device=generator.device)
    return (drawn / torch.linalg.vector_norm(drawn, dim=1, keepdim=True)).to(like)


def projected(
    x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], theta: Float[Tensor, "L d"]
) -> Sorted:
    """Project both clouds and sort."""
    (X, by_x), (Y, by_y) = ((theta @ z.T).sort(dim=1, stable=True) for z in (x, y))
    return Sorted(X, Y, by_x, by_y)


def in_order(s: Sorted, a: Float[Tensor, "n"], b: Float[Tensor, "m"], p: float) -> Plans:
    """Match the weights in order, in every direction: merge the cumulated weights.

    Equal weights are the same in every order, and are merged once for all directions.
    """
    n, m, total = len(a), len(b), float(a.sum())
    same = bool((a == a[0]).all()) and bool((b == b[0]).all())
    A, B = (a[None], b[None]) if same else (a[s.by_x], b[s.by_y])
    ends = torch.cat([A.cumsum(1)[:, :-1], B.cumsum(1)[:, :-1]], 1).clamp_max(total)
    cuts, order = ends.sort(dim=1, stable=True)  # (L, n + m - 2)
    down = (order < n - 1).long()
    rows = torch.nn.functional.pad(down.cumsum(1), (1, 0)).clamp_max(n - 1)
    cols = torch.nn.functional.pad((1 - down).cumsum(1), (1, 0)).clamp_max(m - 1)
    edges = torch.nn.functional.pad(cuts, (1, 0))
    edges = torch.cat([edges, edges.new_full((len(edges), 1), total)], 1)
    rows, cols, mass = (z.expand(len(s.X), -1) for z in (rows, cols, edges.diff(dim=1)))
    price = (s.X.gather(1, rows) - s.Y.gather(1, cols)).abs().pow(p)
    return Plans(rows, cols, mass, price)


def potentials(s: Sorted, plans: Plans) -> tuple[Float[Tensor, "L n"], Float[Tensor, "L m"]]:
    """Walk each staircase: f grows by the rise of the price on a step down, g on a step right.

    In the order of the points, not of their projections.
    """
    rise = torch.nn.functional.pad(plans.price.diff(dim=1), (1, 0))
    down = torch.nn.functional.pad(plans.rows.diff(dim=1), (1, 0)).bool()
    f = torch.zeros_like(s.X).scatter(1, plans.rows, torch.where(down, rise, 0.0).cumsum(1))
    along = torch.where(down, 0.0, rise).cumsum(1) + plans.price[:, :1]
    g = torch.zeros_like(s.Y).scatter(1, plans.cols, along)
    return (
        torch.zeros_like(f).scatter(1, s.by_x, f),
        torch.zeros_like(g).scatter(1, s.by_y, g),
    )


def pulls(s: Sorted, plans: Plans, p: float) -> tuple[Float[Tensor, "L n"], Float[Tensor, "L m"]]:
    """Differentiate each cost by the projections of all points, at its plan."""
    gap = s.X.gather(1, plans.rows) - s.Y.gather(1, plans.cols)
    slope = plans.mass * p * gap.abs().pow(p - 1) * gap.sign()  # 0 where points coincide
    to_x = torch.zeros_like(s.X).scatter_add(1, s.by_x.gather(1, plans.rows), slope)
    to_y = torch.zeros_like(s.Y).scatter_add(1, s.by_y.gather(1, plans.cols), -slope)
    return to_x, to_y


def nearest(s: Sorted, p: float) -> tuple[Float[Tensor, "L n"], Float[Tensor, "L m"]]:
    """Price the cheapest partner of every point in every direction."""

    def side(X: Tensor, Y: Tensor, by: Tensor) -> Tensor:
        above = torch.searchsorted(Y.contiguous(), X.contiguous()).clamp_max(Y.shape[1] - 1)
        gaps = [(X - Y.gather(1, at)).abs() for at in (above, (above - 1).clamp_min(0))]
        return torch.zeros_like(X).scatter(1, by, torch.minimum(*gaps).pow(p))

    return side(s.X, s.Y, s.by_x), side(s.Y, s.X, s.by_y)


def chunks(count: int, points: int, cells: int) -> list[tuple[int, int]]:
    """Cut the directions into parts whose arrays hold some `cells` numbers."""
    size = max(1, cells // points)
    return [(i, min(i + size, count)) for i in range(0, count, size)]


def interval(values: Float[Tensor, "L"]) -> tuple[float, float]:
    """Return the mean over directions and its standard error."""
    mean, most = float(values.mean()), float(values.abs().amax())
    if len(values) < 2 or most == 0:
        return mean, 0.0
    spread = float((values / most).std(correction=1))  # squares of large values would overflow
    return mean, most * spread / math.sqrt(len(values))
