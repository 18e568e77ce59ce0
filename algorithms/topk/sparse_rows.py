"""Rows with few non-zero entries."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

Form = Literal["auto", "dense", "sparse"]
# `auto` writes rows by their entries when there are so many places, and of them fewer than this
# share not 0.
MANY, FEW = 100_000, 0.25


@dataclass(frozen=True)
class SparseRows:
    """Rows by their non-zero entries: row i holds those from `offsets[i]` to `offsets[i + 1]`."""

    offsets: Int[Tensor, "bounds"]
    columns: Int[Tensor, "nnz"]
    values: Float[Tensor, "nnz"]

    def dense(self, n: int) -> Float[Tensor, "B n"]:
        """Write the rows out, n entries each."""
        counts = self.offsets.diff()
        rows = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
        written = self.values.new_zeros(len(counts), n)
        return written.index_put((rows, self.columns), self.values)


def in_form(
    y: Float[Tensor, "B n"], form: Form
) -> tuple[Float[Tensor, "B n"] | None, SparseRows | None]:
    """Return rows as they are, or by their entries and not as they are."""
    if form == "auto":
        few = y.numel() > MANY and int((y != 0).sum()) < FEW * y.numel()
        form = "sparse" if few else "dense"
    if form == "dense":
        return y, None
    known = y.detach()
    rows, columns = known.nonzero(as_tuple=True)
    ends = torch.bincount(rows, minlength=y.shape[0]).cumsum(0)
    offsets = torch.cat([ends.new_zeros(1), ends])
    return None, SparseRows(offsets, columns, known[rows, columns])
