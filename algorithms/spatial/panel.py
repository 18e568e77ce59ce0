"""Several slices over the genes that all of them share."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import csr_matrix
from torch import Tensor

from algorithms.errors import IllPosed
from algorithms.spatial.expression import Expression, common_counts
from algorithms.spatial.frames import pitch
from algorithms.spatial.pairs import renamed
from algorithms.spatial.setting import ARRAY_PITCH
from algorithms.spatial.slice import Slice
from algorithms.spatial.validity import check_kept, check_slices


@dataclass(frozen=True)
class Member:
    """One slice of a panel: the spots kept, their proportions and places.

    Attributes:
        kept: rows of the file.
        p: proportions of counts + floor over the shared genes; rows sum to 1.
        z: places, as they came.
        unit: what distances are divided by.
        entropy: sum_g p log p of each spot.
    """

    kept: Int[Tensor, "n"]
    p: Float[Tensor, "n g"]
    z: Float[Tensor, "n 2"]
    unit: float
    entropy: Float[Tensor, "n"]


def panel(
    slices: tuple[Slice, ...], options: Expression, scale: str
) -> tuple[tuple[Member, ...], tuple[str, ...], str]:
    """Filter every slice, keep the genes of all, take proportions; tell the unit used.

    Spots and genes are dropped slice by slice, as for a pair.
    """
    rows, names = dict[int, Tensor](), list[set[str]]()
    order: tuple[str, ...] = ()
    for k in range(len(slices)):
        try:
            check_slices(slices[0], slices[k], options)
            counts = common_counts(slices[0], slices[k], options)
            check_kept(counts, slices[0], slices[k])
        except IllPosed as error:
            raise renamed(error, 0, k) from error
        rows[k] = counts.kept_target
        names.append(set(counts.genes))
        order = order or counts.genes
    genes = tuple(gene for gene in order if all(gene in known for known in names))
    if not genes:
        raise IllPosed("slices", f"no gene is common to all {len(slices)} slices after filtering")
    places = [s.coordinates[rows[k]].double() for k, s in enumerate(slices)]
    pitches = [pitch(z) for z in places]
    if scale == "auto":
        low, high = ARRAY_PITCH
        scale = "none" if all(low <= own <= high for own in pitches) else "pitch"
    units = pitches if scale == "pitch" else [1.0] * len(slices)
    members = [
        _member(s, rows[k], genes, places[k], units[k], options.floor) for k, s in enumerate(slices)
    ]
    return tuple(members), genes, scale


def _member(
    piece: Slice, kept: Tensor, genes: tuple[str, ...], z: Tensor, unit: float, floor: float
) -> Member:
    place = {gene: k for k, gene in enumerate(piece.genes)}
    counts = piece.counts[kept.numpy()][:, [place[gene] for gene in genes]]
    X = torch.from_numpy(csr_matrix(counts, dtype=np.float64).toarray()) + floor
    p = X / X.sum(1, keepdim=True)
    return Member(kept, p, z, unit, (p * p.log()).sum(1))
