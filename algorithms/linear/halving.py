"""Recursive halving of two clouds at once: bijections and plans in linear memory."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from algorithms.iterate import Watch, unwatched
from algorithms.linear.block_matching import BlockCost, block_costs, improve, scaled
from algorithms.linear.staircase import staircase
from algorithms.simplex import network_simplex

# Rounds of alternating medians in one node, and the growth of their objective that ends them.
ROUNDS, GROWTH = 20, 1e-4
POWER_STEPS = 3
# The same where masses are cut: a coarse plan is all that is asked.
FEW_ROUNDS = 3
# Arcs of a leaf: its cost matrix, solved exactly.
LEAF_ARCS = 64 * 64
# A cut moves to the end of an atom rather than leave a part of less than this share of the block.
NO_PART = 1e-15
# Beyond as many halvings a block's mass is below the grain of network simplex: weights that
# differ by factors of 1e15 get there, and no others.
DEEPEST = 45

# Rows, columns and masses. The axis has no name: functions take one plan and return another.
Plan = tuple[Int[Tensor, "_"], Int[Tensor, "_"], Float[Tensor, "_"]]


def bijection(
    x: Float[Tensor, "n d"],
    y: Float[Tensor, "n d"],
    *,
    leaf: int,
    passes: int,
    generator: torch.Generator,
    watch: Watch,
    cost: BlockCost = "sqeuclidean",
) -> Int[Tensor, "n"]:
    r"""Find sigma with small `sum_i cost(x_i, y_sigma(i))`: halving, exact leaves, block passes.

    Shapes: x, y (n, d), float64 on the CPU; any n. Time O(n (leaf^2 + d log n)) a pass, memory
    O(n d). Deterministic for a seed. When `watch` says no, the bijection so far is completed in
    order and returned.
    """
    sigma = halved(x, y, leaf=leaf, generator=generator, watch=watch, cost=cost)
    for turn in range(passes):
        if not watch(-1, float("inf")):
            break
        sigma = block_pass(
            x, y, sigma, turn, leaf=leaf, generator=generator, watch=watch, cost=cost
        )
    return sigma


def halved(
    x: Float[Tensor, "n d"],
    y: Float[Tensor, "n d"],
    *,
    leaf: int,
    generator: torch.Generator,
    watch: Watch,
    cost: BlockCost = "sqeuclidean",
) -> Int[Tensor, "n"]:
    """Halve both clouds together until blocks have at most `leaf` points; match those exactly.

    The rank-two case of hierarchical refinement (Halmos et al. 2025, arXiv:2503.03025): a node
    sends the lower half of x along a direction to the lower half of y along another, and the
    directions are found by turns. Sizes of one level differ by at most one, whatever n is.
    """
    n = len(x)
    (x, y), go_on = scaled(x, y), True
    ix = iy = torch.arange(n)
    sizes = torch.tensor([n])
    while int(sizes.amax()) > leaf and go_on:
        go_on = watch(-1, float("inf"))
        split_x, split_y = ix.clone(), iy.clone()
        for at in size_classes(sizes):
            order_x, order_y = _alternated(x[ix[at]], y[iy[at]], generator)
            split_x[at], split_y[at] = ix[at].gather(1, order_x), iy[at].gather(1, order_y)
        ix, iy, sizes = split_x, split_y, _halves(sizes)
    sigma = torch.empty_like(iy)
    sigma[ix] = iy
    if not go_on:
        return sigma
    for at in size_classes(sizes):
        improve(x, y, sigma, ix[at], cost, watch)
    return sigma


def block_pass(
    x: Float[Tensor, "n d"],
    y: Float[Tensor, "n d"],
    sigma: Int[Tensor, "n"],
    turn: int,
    *,
    leaf: int,
    generator: torch.Generator,
    watch: Watch,
    cost: BlockCost = "sqeuclidean",
) -> Int[Tensor, "n"]:
    """Divide the pairs into blocks anew and match each block exactly: the cost never grows.

    Blocks are near in, by turns, the pairs (x_i, y_sigma(i)), x, the pairs again, and y.
    """
    x, y = scaled(x, y)
    image = y[sigma]
    z = (torch.cat([x, image], 1), x, torch.cat([x, image], 1), image)[turn % 4]
    order, sizes = partition(z, leaf, generator)
    sigma = sigma.clone()
    for at in size_classes(sizes):
        improve(x, y, sigma, order[at], cost, watch)
    return sigma


def partition(
    z: Float[Tensor, "n k"], leaf: int, generator: torch.Generator
) -> tuple[Int[Tensor, "n"], Int[Tensor, "B"]]:
    """Cut a cloud along random directions into as few equal blocks of at most `leaf` as there are.

    Cuts are at random quantiles between a quarter and three: were they at medians, the middle of
    the cloud would lie at an edge of blocks in every partition.

    Returns the points in the order of their blocks, and the sizes of these, which differ by one
    at most.
    """
    blocks = -(-len(z) // leaf)
    edges = torch.arange(blocks + 1) * len(z) // blocks
    order, nodes = torch.arange(len(z)), [(0, blocks)]
    while nodes:
        first, last = nodes.pop()
        if last - first == 1:
            continue
        margin = -(-(last - first) // 4)
        draw = torch.rand((), device=generator.device, generator=generator).item()
        middle = first + margin + int(draw * (last - first - 2 * margin + 1))
        here = slice(int(edges[first]), int(edges[last]))
        centred = z[order[here]][None]  # (1, s, k)
        centred = centred - centred.mean(1, keepdim=True)
        theta = _powered(_drawn(centred, generator), 1, centred)
        cut = int(edges[middle] - edges[first])
        order[here] = order[here][_lower_first(_along(centred, theta), cut)[0]]
        nodes += [(first, middle), (middle, last)]
    return order, edges.diff()


def size_classes(sizes: Int[Tensor, "B"]) -> Iterator[Int[Tensor, "b s"]]:
    """Collect the positions of all blocks of one size, for each size."""
    first = sizes.cumsum(0) - sizes
    for size in sizes.unique().tolist():
        yield first[sizes == size, None] + torch.arange(size)  # (b,) -> (b, s)


def _halves(sizes: Int[Tensor, "B"]) -> Int[Tensor, "two_B"]:
    return torch.stack([sizes // 2, sizes - sizes // 2], 1).flatten()


def _alternated(
    x: Float[Tensor, "B s d"], y: Float[Tensor, "B s d"], generator: torch.Generator
) -> tuple[Int[Tensor, "B s"], Int[Tensor, "B s"]]:
    """Order both sides of each node, lower half first, so that the halves belong together.

    With D and E the sums of the centred upper halves, matching halves saves 2 D.E over matching
    at random, up to a factor; the best upper half of y given D is that of the largest y.D, and so
    in turn for x.
    """
    x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    theta = _powered(_drawn(x, generator), POWER_STEPS, x, y)
    reached, half = -1.0, x.shape[1] // 2
    order_x = order_y = torch.zeros(x.shape[:2], dtype=torch.int64)
    for _ in range(ROUNDS):
        order_x = _lower_first(_along(x, theta), half)
        upper_x = _upper_sum(x, order_x)
        order_y = _lower_first(_along(y, upper_x), half)
        theta = _upper_sum(y, order_y)
        grown = float((upper_x * theta).sum())
        if grown <= reached * (1 + GROWTH):
            break
        reached = grown
    return order_x, order_y


def _drawn(z: Float[Tensor, "B s k"], generator: torch.Generator) -> Float[Tensor, "B k"]:
    drawn = torch.randn(
        len(z), z.shape[2], dtype=z.dtype, device=generator.device, generator=generator
    )
    return drawn.to(z.device)


def _powered(
    theta: Float[Tensor, "B k"], steps: int, *clouds: Float[Tensor, "B s k"]
) -> Float[Tensor, "B k"]:
    """Turn directions towards the widest ones of the centred clouds, by steps of power iteration.

    A direction along which nothing is wide stays as it is.
    """
    for _ in range(steps):
        moved = torch.stack([_pulled(z, _along(z, theta)) for z in clouds]).sum(0)
        length = torch.linalg.vector_norm(moved, dim=1, keepdim=True)
        theta = torch.where(length > 0, moved / length, theta)
    return theta


def _along(z: Float[Tensor, "B s k"], theta: Float[Tensor, "B k"]) -> Float[Tensor, "B s"]:
    return torch.bmm(z, theta[:, :, None])[:, :, 0]


def _pulled(z: Float[Tensor, "B s k"], w: Float[Tensor, "B s"]) -> Float[Tensor, "B k"]:
    return torch.bmm(w[:, None], z)[:, 0]


def _lower_first(height: Float[Tensor, "B s"], count: int) -> Int[Tensor, "B s"]:
    """Order each row so that its `count` lowest come first: a selection, cheaper than a sort."""
    return torch.from_numpy(np.argpartition(height.numpy(), count, axis=1))


def _upper_sum(z: Float[Tensor, "B s k"], order: Int[Tensor, "B s"]) -> Float[Tensor, "B k"]:
    upper = z.new_zeros(order.shape).scatter_(1, order[:, order.shape[1] // 2 :], 1.0)
    return _pulled(z, upper)


@dataclass(frozen=True)
class Side:
    """Atoms of one cloud, in the order of their blocks: point, mass, block (from 0)."""

    point: Int[Tensor, "k"]
    mass: Float[Tensor, "k"]
    block: Int[Tensor, "k"]


def split_masses(
    x: Float[Tensor, "n d"],
    a: Float[Tensor, "n"],
    y: Float[Tensor, "m d"],
    b: Float[Tensor, "m"],
    *,
    generator: torch.Generator,
    watch: Watch = unwatched,
    cost: BlockCost = "sqeuclidean",
) -> Plan:
    r"""Find a plan of exact marginals a, b (equal totals), in O(n log n) time and linear memory.

    Both clouds are cut together at half of their mass, again and again; the atom on the cut is
    divided. Small blocks are solved by network simplex; when `watch` says no, what is left is
    sent in order. The plan is feasible up to rounding and
    its entries are few (about n + m), its cost some percent to some factor above the optimum.

    Shapes: x (n, d), a (n,), y (m, d), b (m,), float64 on the CPU. Returns rows, columns and
    masses, sorted, without repeated pairs.
    """
    x, y = scaled(x, y)
    one, other = _alive(a), _alive(b)
    found: list[Plan] = []
    for depth in range(DEEPEST + 1):
        further = depth < DEEPEST and watch(-1, float("inf"))
        ready = _leaves(one, other) if further else _all_blocks(one)
        if bool(ready.any()):
            leaves = _only(one, ready), _only(other, ready)
            found += _solved(x, y, leaves, cost, exactly=further)
            one, other = _only(one, ~ready), _only(other, ~ready)
        if not len(one.point):
            break
        one, other = _cut_both(x, y, one, other, generator)
    rows, cols, mass = (torch.cat(parts) for parts in zip(*found, strict=True))
    return merged(rows, cols, mass, len(y))


def merged(
    rows: Int[Tensor, "k"], cols: Int[Tensor, "k"], mass: Float[Tensor, "k"], m: int
) -> Plan:
    """Add up entries of the same pair; sort by row, then column."""
    pairs, place = torch.unique(rows * m + cols, return_inverse=True)
    total = mass.new_zeros(len(pairs)).index_add(0, place, mass)
    return pairs // m, pairs % m, total


def _alive(w: Float[Tensor, "k"]) -> Side:
    alive = w.nonzero()[:, 0]
    return Side(alive, w[alive], torch.zeros_like(alive))


def _counts(side: Side) -> Int[Tensor, "B"]:
    return torch.bincount(side.block)


def _leaves(one: Side, other: Side) -> Bool[Tensor, "B"]:
    """Tell which blocks are small enough, or have nothing to choose."""
    n, m = _counts(one), _counts(other)
    return (n * m <= LEAF_ARCS) | (n == 1) | (m == 1)


def _all_blocks(side: Side) -> Bool[Tensor, "B"]:
    return torch.ones(int(side.block[-1]) + 1, dtype=torch.bool)


def _only(side: Side, kept: Tensor) -> Side:
    """Keep some blocks, numbered anew."""
    here = kept[side.block]
    number = kept.cumsum(0) - 1
    return Side(side.point[here], side.mass[here], number[side.block[here]])


def _cut_both(
    x: Float[Tensor, "n d"],
    y: Float[Tensor, "m d"],
    one: Side,
    other: Side,
    generator: torch.Generator,
) -> tuple[Side, Side]:
    """Cut every block in two halves of equal mass, lower with lower and upper with upper.

    As for bijections, the two directions come by turns: each is the difference of the means of
    the other side's halves.
    """
    p, q = _centred(x, one), _centred(y, other)
    blocks = int(one.block[-1]) + 1
    theta = torch.randn(
        blocks, x.shape[1], dtype=x.dtype, device=generator.device, generator=generator
    ).to(x.device)
    for _ in range(POWER_STEPS):
        moved = _gathered(p, one, _heights(p, one, theta)) + _gathered(
            q, other, _heights(q, other, theta)
        )
        length = torch.linalg.vector_norm(moved, dim=1, keepdim=True)
        theta = torch.where(length > 0, moved / length, theta)
    for _ in range(FEW_ROUNDS):
        theta = _gathered(p, one, _upper(one, _heights(p, one, theta)))
        theta = _gathered(q, other, _upper(other, _heights(q, other, theta)))
    upper = _gathered(p, one, _upper(one, _heights(p, one, theta)))
    return _cut(one, _heights(p, one, theta)), _cut(other, _heights(q, other, upper))


def _centred(z: Float[Tensor, "n d"], side: Side) -> Float[Tensor, "k d"]:
    """Gather the atoms' points, about the mean of each block."""
    total = side.mass.new_zeros(int(side.block[-1]) + 1).index_add(0, side.block, side.mass)
    z = z[side.point]
    mean = z.new_zeros(len(total), z.shape[1]).index_add(0, side.block, side.mass[:, None] * z)
    return z - (mean / total[:, None])[side.block]


def _heights(
    z: Float[Tensor, "k d"], side: Side, theta: Float[Tensor, "B d"]
) -> Float[Tensor, "k"]:
    return (z * theta[side.block]).sum(1)


def _gathered(z: Float[Tensor, "k d"], side: Side, w: Float[Tensor, "k"]) -> Float[Tensor, "B d"]:
    """Sum `w z` over each block, by mass as a share of the block's: blocks may be very light."""
    total = side.mass.new_zeros(int(side.block[-1]) + 1).index_add(0, side.block, side.mass)
    share = w * side.mass / total[side.block]
    return z.new_zeros(len(total), z.shape[1]).index_add(0, side.block, share[:, None] * z)


def _upper(side: Side, height: Float[Tensor, "k"]) -> Float[Tensor, "k"]:
    """Tell which share of each atom lies above its block's cut."""
    order, below = _sorted(side, height)
    share = torch.empty_like(side.mass)
    share[order] = 1 - below / side.mass[order]
    return share


def _cut(side: Side, height: Float[Tensor, "k"]) -> Side:
    """Divide each block at half of its mass; block t becomes 2 t, below, and 2 t + 1."""
    order, below = _sorted(side, height)
    point, mass, block = side.point[order], side.mass[order], side.block[order]
    above = mass - below
    low, high = below > 0, above > 0
    halves = Side(
        torch.cat([point[low], point[high]]),
        torch.cat([below[low], above[high]]),
        torch.cat([2 * block[low], 2 * block[high] + 1]),
    )
    by_block = halves.block.argsort(stable=True)
    return Side(halves.point[by_block], halves.mass[by_block], halves.block[by_block])


def _sorted(side: Side, height: Float[Tensor, "k"]) -> tuple[Tensor, Tensor]:
    """Order atoms by block and height, and give the mass of each below its block's cut."""
    order = torch.from_numpy(np.lexsort((height.numpy(), side.block.numpy())))
    mass, block = side.mass[order], side.block[order]
    counts = torch.bincount(block)
    first = counts.cumsum(0) - counts
    total = mass.new_zeros(len(counts)).index_add(0, block, mass)
    share = mass / total[block]
    # one sum runs over all blocks, each of share 1: in float64 the later ones would lose digits
    before = np.cumsum(share.numpy().astype(np.longdouble)) - share.numpy()
    before -= before[first.numpy()][block.numpy()]
    below = (0.5 - torch.from_numpy(before.astype(np.float64))).clamp_min(0).minimum(share)
    below = torch.where(below < NO_PART, 0.0, below)
    below = torch.where(share - below < NO_PART, share, below)
    return order, torch.where(below == share, mass, below * total[block])


def _solved(
    x: Float[Tensor, "n d"],
    y: Float[Tensor, "m d"],
    sides: tuple[Side, Side],
    cost: BlockCost,
    *,
    exactly: bool,
) -> list[Plan]:
    """Solve every block; with one atom on a side there is but one plan."""
    plans: list[Plan] = []
    ends = [side.mass.split(_counts(side).tolist()) for side in sides]
    points = [side.point.split(_counts(side).tolist()) for side in sides]
    for p, q, i, j in zip(*ends, *points, strict=True):
        if len(i) == 1:
            plans.append((i.expand(len(j)), j, q * (p.sum() / q.sum())))
        elif len(j) == 1:
            plans.append((i, j.expand(len(i)), p))
        elif exactly:
            C = block_costs(x[i][None], y[j][None], cost)[0]
            plan = network_simplex(p, q * (p.sum() / q.sum()), C)
            plans.append((i[plan.rows], j[plan.cols], plan.mass))
        else:
            rows, cols, mass = staircase(p, q * (p.sum() / q.sum()))
            some = mass > 0
            plans.append((i[rows[some]], j[cols[some]], mass[some]))
    return plans
