"""The north-west corner's plan, which is also the optimal one between sorted points of a line."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

# Masses below this share of the total are rounding of cumulative sums.
NO_MASS = 1e-15


def staircase(
    p: Float[Tensor, "n"], q: Float[Tensor, "m"]
) -> tuple[Int[Tensor, "k"], Int[Tensor, "k"], Float[Tensor, "k"]]:
    """Walk from cell (0, 0) to (n-1, m-1), down when row mass runs out first, right otherwise.

    The n + m - 1 cells carry the only plan on them; where both masses run out, a cell has none.
    """
    ends = torch.cat([p.cumsum(0)[:-1], q.cumsum(0)[:-1]])
    order = ends.argsort(stable=True)
    down = order < len(p) - 1
    zero = torch.zeros(1, dtype=torch.int64)
    rows, cols = torch.cat([zero, down.cumsum(0)]), torch.cat([zero, (~down).cumsum(0)])
    total = p.sum()
    cuts = torch.cat([total.new_zeros(1), ends[order], total[None]])
    mass = cuts.diff()
    return rows, cols, torch.where(mass > NO_MASS * total, mass, 0.0)
