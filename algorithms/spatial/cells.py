"""Dissociated cells as the mathematics sees them."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from scipy.sparse import csr_matrix
from torch import Tensor


@dataclass(frozen=True)
class Cells:
    """Cells with counts and no place, in the row order of the file they came from.

    Attributes:
        counts: raw or normalised expression, (cells, genes), CSR, finite.
        genes: unique gene names, one a column of `counts`.
        ids: unique cell names, one a row of `counts`.
        embedding: features that tell which cells are alike, or None where genes tell it.
        labels: a label per cell (None where a cell has none), or None when none was asked for.
        file: name of the file, where there is one.
        rows: rows of the file, one a cell, where the cells are a part of it.
    """

    counts: csr_matrix
    genes: tuple[str, ...]
    ids: tuple[str, ...]
    embedding: Float[Tensor, "n d"] | None = None
    labels: tuple[str | None, ...] | None = None
    file: str | None = None
    rows: Int[Tensor, "n"] | None = None
