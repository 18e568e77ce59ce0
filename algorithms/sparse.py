"""Plans with few non-zero entries."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class SparsePlan:
    """A coupling by its non-zero entries: `mass[t]` travels from `rows[t]` to `cols[t]`."""

    rows: Int[Tensor, "nnz"]
    cols: Int[Tensor, "nnz"]
    mass: Float[Tensor, "nnz"]

    def dense(self, n: int, m: int) -> Float[Tensor, "n m"]:
        """Write the plan out as an (n, m) matrix."""
        plan = torch.zeros(n, m, dtype=self.mass.dtype, device=self.mass.device)
        return plan.index_put((self.rows, self.cols), self.mass, accumulate=True)
