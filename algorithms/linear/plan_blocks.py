"""Block passes over a sparse plan: the sub-plan of each block is solved anew, with its own mass."""

from concurrent.futures import ThreadPoolExecutor

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.iterate import Watch
from algorithms.linear.block_matching import BlockCost, block_costs
from algorithms.linear.halving import Plan, merged, partition
from algorithms.simplex import network_simplex

# Blocks solved between two questions whether to go on.
AT_ONCE = 16


def plan_pass(
    x: Float[Tensor, "n d"],
    y: Float[Tensor, "m d"],
    plan: Plan,
    turn: int,
    *,
    leaf: int,
    generator: torch.Generator,
    cost: BlockCost,
    watch: Watch,
) -> Plan:
    """Divide the entries into blocks anew and solve each block exactly: the cost never grows.

    A block of entries is a plan between what its rows send and its columns receive along these
    entries; the best such plan takes its place. As for bijections, blocks are near in pairs,
    sources and targets by turns.
    """
    rows, cols, mass = plan
    if len(rows) < 2:
        return plan
    from_x, to_y = x[rows], y[cols]
    both = torch.cat([from_x, to_y], 1)
    order, sizes = partition((both, from_x, both, to_y)[turn % 4], leaf, generator)

    def solve(entries: Tensor) -> Plan:
        return _solved(x, y, (rows[entries], cols[entries], mass[entries]), cost)

    blocks, found = order.split(sizes.tolist()), list[Plan]()
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for first in range(0, len(blocks), AT_ONCE):
            some = blocks[first : first + AT_ONCE]
            if not watch(-1, float("inf")):
                rest = torch.cat(blocks[first:])
                found.append((rows[rest], cols[rest], mass[rest]))
                break
            found += pool.map(solve, some)
    rows, cols, mass = (torch.cat(parts) for parts in zip(*found, strict=True))
    return merged(rows, cols, mass, len(y))


def _solved(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], plan: Plan, cost: BlockCost) -> Plan:
    """Return the best plan with the marginals of this one, or this one where none is better."""
    rows, cols, mass = plan
    i, row = rows.unique(return_inverse=True)
    j, col = cols.unique(return_inverse=True)
    if len(i) == 1 or len(j) == 1:
        return plan
    p = mass.new_zeros(len(i)).index_add(0, row, mass)
    q = mass.new_zeros(len(j)).index_add(0, col, mass)
    C = block_costs(x[i][None], y[j][None], cost)[0]
    best = network_simplex(p, q, C)
    if float(best.transport_cost) >= float(mass @ C[row, col]):
        return plan
    return i[best.rows], j[best.cols], best.mass
