"""A tissue slice as the mathematics sees it."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from scipy.sparse import csr_matrix
from torch import Tensor


@dataclass(frozen=True)
class Slice:
    """Spots with counts and coordinates, in the row order of the file they came from.

    Attributes:
        counts: raw or normalised expression, (spots, genes), CSR, finite.
        coordinates: plane coordinates of the spots, in any unit.
        genes: unique gene names, one a column of `counts`.
        ids: unique spot names, one a row of `counts`.
        labels: a label per spot (None where a spot has none), or None when no label was asked for.
        landmarks: positions in a frame shared by the slices (NaN where unknown), for scoring only.
        file: name of the file, where there is one.
        rows: rows of the file, one a spot, where the slice is a part of it.
    """

    counts: csr_matrix
    coordinates: Float[Tensor, "n 2"]
    genes: tuple[str, ...]
    ids: tuple[str, ...]
    labels: tuple[str | None, ...] | None = None
    landmarks: Float[Tensor, "n 2"] | None = None
    file: str | None = None
    rows: Int[Tensor, "n"] | None = None
