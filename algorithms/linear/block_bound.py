"""Lower bounds for transport costs that need no cost matrix."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from jaxtyping import Float, Int
from torch import Tensor

from algorithms.iterate import Watch
from algorithms.linear.block_matching import BlockCost, block_costs
from algorithms.linear.halving import Plan, partition, size_classes
from algorithms.simplex import network_simplex

# Targets of one block, whose own transport problem gives their potentials.
BLOCK = 512
# Partitions whose potentials are averaged: errors at the edges of blocks average out. The second
# and third number: where there are more pairs than the third, take the second.
PARTITIONS, FEW_PARTITIONS, MANY_PAIRS = 4, 2, 100_000_000
# Pairs held at once: 8 MB.
BAND = 1 << 20
# Rounding of moments of points in the unit box, with room.
MOMENT_ROUNDING = 1e-13


def moment_bound(
    x: Float[Tensor, "n d"],
    a: Float[Tensor, "n"],
    y: Float[Tensor, "m d"],
    b: Float[Tensor, "m"],
    cost: BlockCost,
) -> float:
    r"""Bound the cost below by what the first two moments of the measures, of mass 1, force.

    `|mean x - mean y|^2 + tr S + tr T - 2 tr (S^{1/2} T S^{1/2})^{1/2}` with the covariances S
    and T (Gelbrich 1990, doi:10.1002/mana.19901470121), an equality where y is an affine image of
    x along a symmetric positive matrix; `|mean x - mean y|` for distances.
    """
    (mean_x, root_x), (mean_y, root_y) = _moments(x, a), _moments(y, b)
    apart = float(torch.linalg.vector_norm(mean_x - mean_y))
    if cost == "euclidean":
        return max(0.0, apart - MOMENT_ROUNDING)
    # R^T R = S and Q^T Q = T: the last trace is the nuclear norm of R Q^T, which loses no digits
    spread = float(root_x.square().sum() + root_y.square().sum())
    common = float(torch.linalg.svdvals(root_x @ root_y.T).sum())
    return max(0.0, apart**2 + spread - 2 * common - x.shape[1] * MOMENT_ROUNDING)


def independent_cost(
    x: Float[Tensor, "n d"],
    a: Float[Tensor, "n"],
    y: Float[Tensor, "m d"],
    b: Float[Tensor, "m"],
) -> float:
    """Compute the mean squared distance of the plan `a b^T`, measures of mass 1."""
    (mean_x, root_x), (mean_y, root_y) = _moments(x, a), _moments(y, b)
    parts = (mean_x - mean_y).square().sum(), root_x.square().sum(), root_y.square().sum()
    return float(torch.stack(parts).sum())


def dual_bound(
    x: Float[Tensor, "n d"],
    a: Float[Tensor, "n"],
    y: Float[Tensor, "m d"],
    b: Float[Tensor, "m"],
    plan: Plan,
    *,
    cost: BlockCost,
    generator: torch.Generator,
    watch: Watch,
) -> tuple[float, int]:
    r"""Bound the cost below by potentials that are glued together from those of blocks.

    The targets are cut into blocks. What `plan` brings to a block is a small transport problem,
    whose potentials g on the block are optimal up to a constant t_B. With
    `h_iB = min_{j in B} c_ij - g_j`, the best constants solve a transport problem of sources to
    blocks with costs h. Potentials of several partitions are averaged, then replaced by
    c-transforms, `f = min_j c_ij - g_j` and again `g`: feasible by construction, whatever was
    guessed before.

    Returns the bound, less what rounding may have added, and the number of pairs that were
    evaluated; minus infinity and 0 when `watch` allows nothing. Points in the unit box, positive
    weights of total 1.
    """
    n, m = len(x), len(y)
    several = PARTITIONS if n * m <= MANY_PAIRS else FEW_PARTITIONS
    g, done = torch.zeros_like(b), 0
    while done < several and watch(-1, float("inf")):
        part = _glued(x, a, y, b, plan, cost, generator)
        g, done = g + (part - part.mean()), done + 1
    if not done:
        return -float("inf"), 0
    f = _transform(x, y, g / done, cost)
    g = _transform(y, x, f, cost)
    scale = 2 * (x.square().sum(1).amax() + y.square().sum(1).amax())
    scale = float(scale + f.abs().amax() + g.abs().amax())
    rounding = (x.shape[1] + 6) * torch.finfo(x.dtype).eps * scale
    # c-transforms are exact minima of products that were rounded; so is their sum
    return float(a @ f + b @ g) - 2 * rounding, (done + 2) * n * m


def _moments(
    z: Float[Tensor, "n d"], w: Float[Tensor, "n"]
) -> tuple[Float[Tensor, "d"], Float[Tensor, "k d"]]:
    """Return the mean, and R with `R^T R` the covariance."""
    mean = w @ z
    return mean, torch.linalg.qr(w.sqrt()[:, None] * (z - mean), mode="r")[1]


def _glued(
    x: Float[Tensor, "n d"],
    a: Float[Tensor, "n"],
    y: Float[Tensor, "m d"],
    b: Float[Tensor, "m"],
    plan: Plan,
    cost: BlockCost,
    generator: torch.Generator,
) -> Float[Tensor, "m"]:
    """Find potentials on the targets from the blocks of one random partition."""
    order, sizes = partition(y, BLOCK, generator)
    if len(sizes) == 1:
        C = block_costs(x[None], y[None], cost)[0]
        return network_simplex(a, b, C + _constants(x, y, cost)).g
    g = _block_potentials(x, y, plan, order, sizes, cost)
    classes = [order[at] for at in size_classes(sizes)]  # (b, s)
    nearest = torch.empty(len(x), len(sizes), dtype=x.dtype)
    images = torch.cat([members.flatten() for members in classes])
    widths = [members.numel() for members in classes]
    guess = g[images]
    for first, band in _bands(x, y[images], cost):
        parts = band.sub_(guess).split(widths, dim=1)
        least = [p.unflatten(1, (len(c), -1)).amin(2) for p, c in zip(parts, classes, strict=True)]
        nearest[first : first + len(band)] = torch.cat(least, 1)
    mass = torch.cat([b[members].sum(1) for members in classes])
    shift = network_simplex(a, mass * (a.sum() / mass.sum()), nearest).g
    for members, t in zip(classes, shift.split([len(c) for c in classes]), strict=True):
        g[members] += t[:, None]
    return g


def _block_potentials(
    x: Float[Tensor, "n d"],
    y: Float[Tensor, "m d"],
    plan: Plan,
    order: Int[Tensor, "m"],
    sizes: Int[Tensor, "B"],
    cost: BlockCost,
) -> Float[Tensor, "m"]:
    """Solve what the plan brings to each block by network simplex; keep the targets' potentials."""
    rows, cols, mass = plan
    label = torch.empty_like(order)
    label[order] = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    by_block = label[cols].argsort(stable=True)
    counts = torch.bincount(label[cols], minlength=len(sizes)).tolist()
    g = torch.zeros(len(y), dtype=y.dtype)

    def solve(entries: Tensor) -> None:
        i, row = rows[entries].unique(return_inverse=True)
        j, col = cols[entries].unique(return_inverse=True)
        moved = mass[entries]
        p = moved.new_zeros(len(i)).index_add(0, row, moved)
        q = moved.new_zeros(len(j)).index_add(0, col, moved)
        C = block_costs(x[i][None], y[j][None], cost)[0]
        g[j] = network_simplex(p, q, C + _constants(x[i], y[j], cost)).g

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(solve, by_block.split(counts)))
    return g


def _constants(
    x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], cost: BlockCost
) -> Float[Tensor, "n m"] | float:
    """Compute what block costs leave out: `|x|^2 + |y|^2`, each about its mean, and the means."""
    if cost == "euclidean":
        return 0.0
    mean_x, mean_y = x.mean(0), y.mean(0)
    one = x.square().sum(1) - 2 * x @ mean_y
    other = y.square().sum(1) - 2 * y @ mean_x + 2 * mean_x @ mean_y
    return one[:, None] + other


def _bands(
    x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], cost: BlockCost
) -> Iterator[tuple[int, Float[Tensor, "k m"]]]:
    """Compute all costs, some rows at a time, always in the same place: it may be written over."""
    height = max(1, BAND // len(y))
    of_x, of_y = x.square().sum(1), y.square().sum(1)
    place, mirrored = x.new_empty(min(height, len(x)), len(y)), -2 * y.T
    for i in range(0, len(x), height):
        some = x[i : i + height]
        band = place[: len(some)]
        if cost == "euclidean":
            band.copy_(torch.cdist(some, y, compute_mode="donot_use_mm_for_euclid_dist"))
        else:
            torch.mm(some, mirrored, out=band)
            band.add_(of_x[i : i + height, None]).add_(of_y)
        yield i, band


def _transform(
    x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], g: Float[Tensor, "m"], cost: BlockCost
) -> Float[Tensor, "n"]:
    """Return `min_j c_ij - g_j`."""
    least = x.new_empty(len(x))
    for first, band in _bands(x, y, cost):
        torch.amin(band.sub_(g), 1, out=least[first : first + len(band)])
    return least
