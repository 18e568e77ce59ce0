"""Groups of points and of pairs: k-means with weights, and starts for plans of low rank."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

# Rounds of Lloyd's algorithm, of the exchange below, and restarts of both: the best is kept.
ROUNDS, EXCHANGES, RESTARTS = 30, 40, 3


def centres(
    z: Float[Tensor, "n d"], w: Float[Tensor, "n"], k: int, generator: torch.Generator
) -> Float[Tensor, "k d"]:
    """Place at most k centres by k-means++ and Lloyd's rounds; `generator` lives on the CPU.

    References: Arthur, Vassilvitskii 2007, section 2.2.
    """
    chance, chosen = w, list[int]()
    nearest = torch.full_like(w, torch.inf)
    for _ in range(k):
        ends = chance.cumsum(0)
        if not float(ends[-1]) > 0:
            break  # fewer places than centres
        level = float(torch.rand((), generator=generator, dtype=torch.float64)) * ends[-1]
        chosen.append(min(int(torch.searchsorted(ends, level, right=True)), len(z) - 1))
        nearest = torch.minimum(nearest, (z - z[chosen[-1]]).square().sum(1))
        chance = w * nearest
    c = z[chosen]
    for _ in range(ROUNDS):
        masses, sums = grouped(nearest_of(z, c), len(c), w, w[:, None] * z)
        moved = torch.where(masses[:, None] > 0, sums / masses[:, None], c)
        if torch.equal(moved, c):
            break
        c = moved
    return c


def nearest_of(z: Float[Tensor, "n d"], c: Float[Tensor, "k d"]) -> Int[Tensor, "n"]:
    """Find the centre next to each point."""
    return torch.addmm(c.square().sum(1), z, c.T, alpha=-2).argmin(1)  # (n, d), (d, k) -> (n,)


def grouped(labels: Int[Tensor, "n"], k: int, *values: Tensor) -> tuple[Tensor, ...]:
    """Add up the rows of each group."""
    return tuple(v.new_zeros(k, *v.shape[1:]).index_add(0, labels, v) for v in values)


def pair_groups(
    x: Float[Tensor, "n d"],
    y: Float[Tensor, "n d"],
    w: Float[Tensor, "n"],
    k: int,
    generator: torch.Generator,
) -> Int[Tensor, "n"]:
    r"""Group pairs (x_i, y_i) so that mixing within groups costs little.

    Mixing the pairs of group k costs `sum_k w_k (|mean x - mean y|^2 + var x + var y)`, which is
    `sum_i w_i |x_i - y_i|^2 + sum_k w_k (var(x + y) - var(x - y)) / 2`: groups are those of the
    midpoints, found by k-means, and are then improved by rounds that send each pair where the
    linearised cost, `-<x, mean y> - <y, mean x> + <mean x, mean y>`, is least.
    """
    best, lowest = torch.zeros(len(x), dtype=torch.int64, device=x.device), torch.inf
    for _ in range(RESTARTS):
        c = centres(x + y, w, k, generator)
        labels, stale = nearest_of(x + y, c), 0
        for _ in range(EXCHANGES):
            masses, mean_x, mean_y = grouped(labels, len(c), w, w[:, None] * x, w[:, None] * y)
            some = masses > 0
            mean_x, mean_y = (
                torch.where(some[:, None], s / masses[:, None], 0.0) for s in (mean_x, mean_y)
            )
            inner = (mean_x * mean_y).sum(1)
            cost, stale = -float(masses @ inner), stale + 1
            if cost < lowest:
                best, lowest, stale = labels, cost, 0
            if stale > 5:
                break
            gain = x @ mean_y.T + y @ mean_x.T - inner  # (n, k)
            labels = gain.masked_fill(~some, -torch.inf).argmax(1)
    return best
