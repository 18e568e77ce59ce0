"""Genes that cells and an atlas share: which are compared, and how unlike two rows are."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from scipy.spatial.distance import cdist
from torch import Tensor

from algorithms.errors import Caution, IllPosed
from algorithms.spatial.cells import Cells
from algorithms.spatial.expression import LIBRARY
from algorithms.spatial.neighbours import normalised
from algorithms.spatial.slice import Slice

# Pearson's correlation of two values is 1 or -1 whatever they are.
FEWEST_CORRELATED = 3
# Values of one unit do not differ by more than this factor in their means.
UNIT_RATIO = 3.0
# Whole numbers up to more than this are counts, not logarithms of counts.
COUNTED = 30.0
# Costs that differ by less than this share of the largest differ by rounding.
SILENT = 1e-12


@dataclass(frozen=True)
class Markers:
    """How cells and locations are compared.

    Attributes:
        names: genes that both have; None takes all of those, no name at all needs alpha 1.
        dissimilarity: squared distance over the markers, or one minus Pearson's correlation.
        normalise: `zscore` gives each marker mean 0 and variance 1 on either side.
    """

    names: tuple[str, ...] | None = None
    dissimilarity: Literal["sqeuclidean", "correlation"] = "sqeuclidean"
    normalise: Literal["zscore", "none"] = "zscore"


@dataclass(frozen=True)
class Panel:
    """Markers of cells and of locations, ready to be compared, and what was seen in them."""

    names: tuple[str, ...]
    cells: Float[Tensor, "n q"]
    atlas: Float[Tensor, "m q"]
    cautions: tuple[Caution, ...]


def marker_panel(cells: Cells, atlas: Slice, markers: Markers, raw_counts: str) -> Panel:
    """Read the markers on both sides, counts as logarithms, in one unit."""
    names = _names(cells, atlas, markers)
    x = compared("cells", cells, names, raw_counts != "none")
    y = compared("atlas", atlas, names, raw_counts == "both")
    told = [*_of_counts(cells, atlas, raw_counts), *_of_values(names, x, y, markers)]
    if names and markers.normalise == "zscore":
        return Panel(names, normalised("cells", x, "zscore"), normalised("atlas", y, "zscore"),
                     tuple(told))  # fmt: skip
    return Panel(names, x, y, tuple(told))


def marker_cost(seen: Panel, markers: Markers, *, needed: bool) -> Float[Tensor, "n m"] | None:
    """Compute how unlike each cell is to each location, the largest 1; None without markers."""
    if not seen.names:
        if needed:
            raise IllPosed("markers.names", "names none; only alpha = 1 compares no markers")
        return None
    size = max(float(z.abs().max()) for z in (seen.cells, seen.atlas))
    x, y = (z / size if size > 0 else z for z in (seen.cells, seen.atlas))
    if markers.dissimilarity == "correlation":
        if len(seen.names) < FEWEST_CORRELATED:
            raise IllPosed(
                "markers.dissimilarity",
                f"{len(seen.names)} markers; a correlation needs at least {FEWEST_CORRELATED}",
            )
        with np.errstate(invalid="ignore", divide="ignore"):
            M = np.nan_to_num(cdist(x.numpy(), y.numpy(), "correlation"), nan=1.0)
        cost = torch.from_numpy(M).clamp_min(0)
    else:
        cost = torch.from_numpy(cdist(x.numpy(), y.numpy(), "sqeuclidean"))
    largest = float(cost.max())
    # a cost of the cell plus a cost of the location is the same for every plan
    told = cost - cost.mean(1, keepdim=True) - cost.mean(0) + cost.mean()
    if needed and float(told.abs().max()) <= SILENT * largest:
        raise IllPosed(
            "markers.names",
            f"{len(seen.names)} markers tell no cell from another, or no location: do they vary, "
            "in both files?",
        )
    return cost / largest if largest > 0 else cost


def features(cells: Cells, components: int | None, counted: bool) -> Float[Tensor, "n d"]:
    """Return what tells which cells are alike: embedding, genes, or their principal components."""
    if cells.embedding is not None:
        return normalised("cells.embedding_key", cells.embedding, "none")
    x = normalised("cells", compared("cells", cells, cells.genes, counted), "none")
    if components is None:
        return x
    x = x - x.mean(0)
    values, vectors = torch.linalg.eigh(x @ x.T)  # (n, g) -> (n, n); values rise
    kept = min(components, len(x) - 1)
    return vectors[:, -kept:] * values[-kept:].clamp_min(0).sqrt()


def compared(
    field: str, tissue: Cells | Slice, genes: tuple[str, ...], counted: bool
) -> Float[Tensor, "n g"]:
    """Read genes for comparison: counts over the total of their row, as logarithms."""
    x = columns(tissue, genes)
    if not counted:
        return x
    low = float(tissue.counts.data.min(initial=0.0))
    if low < 0:
        raise IllPosed("raw_counts", f"{field} holds {low:g}, which is no count")
    largest = max(float(tissue.counts.data.max(initial=0.0)), torch.finfo(x.dtype).tiny)
    total = torch.from_numpy(np.asarray((tissue.counts / largest).sum(1)).reshape(-1, 1))
    share = (x / largest) / torch.where(total > 0, total, 1.0)
    return (LIBRARY * share).log1p()


def columns(tissue: Cells | Slice, genes: tuple[str, ...]) -> Float[Tensor, "n g"]:
    """Write some genes out."""
    place = {gene: k for k, gene in enumerate(tissue.genes)}
    return torch.from_numpy(tissue.counts[:, [place[g] for g in genes]].toarray()).double()


def _names(cells: Cells, atlas: Slice, markers: Markers) -> tuple[str, ...]:
    here, there = set(cells.genes), set(atlas.genes)
    if markers.names is None:
        shared = tuple(gene for gene in atlas.genes if gene in here)
        if not shared:
            raise IllPosed("markers.names", _nothing_shared(cells.genes, atlas.genes))
        return shared
    names = tuple(markers.names)
    for side, known in (("cells", here), ("atlas", there)):
        lost = [gene for gene in names if gene not in known]
        if lost:
            raise IllPosed(
                "markers.names", f"the {side} lack {', '.join(lost[:5])} ({len(lost)} in all)"
            )
    if len(set(names)) < len(names):
        raise IllPosed("markers.names", "names a gene twice")
    return names


def _nothing_shared(here: tuple[str, ...], there: tuple[str, ...]) -> str:
    told = "no gene is in both files: " + ", ".join(
        f"{side} have {len(genes)}" + (f", such as {genes[0]}" if genes else "")
        for side, genes in (("cells", here), ("locations", there))
    )
    if {gene.upper() for gene in here} & {gene.upper() for gene in there}:
        return told + ". The names agree but for upper and lower case: use one spelling"
    return told + ". Are they symbols in one file and identifiers in the other?"


def _of_counts(cells: Cells, atlas: Slice, raw_counts: str) -> list[Caution]:
    """Look for counts that nobody called counts."""
    told = {"none": (), "cells": ("cells",), "both": ("cells", "atlas")}[raw_counts]
    found: list[Caution] = []
    for field, tissue in (("cells", cells), ("atlas", atlas)):
        data = tissue.counts.data
        largest = float(data.max(initial=0.0))
        if field not in told and largest > COUNTED and not np.mod(data, 1).any():
            found.append(
                Caution(
                    "raw_counts_compared",
                    f"{field} holds whole numbers up to {largest:.4g}; compared as they are, rows "
                    "with many counts are alike",
                    "set raw_counts to `cells` or `both`, or select a normalised layer",
                )
            )
    return found


def _of_values(
    names: tuple[str, ...], x: Float[Tensor, "n q"], y: Float[Tensor, "m q"], markers: Markers
) -> list[Caution]:
    """Look for markers that say nothing, and for two units."""
    told: list[Caution] = []
    if not names:
        return [
            Caution(
                "no_markers",
                "0 markers: cells are placed by neighbourhoods alone, up to symmetries",
                "name a few genes that both files have, and alpha near 0.5",
            )
        ]
    still = [(z.amax(0) == z.amin(0)) for z in (x, y)]
    idle = [name for name, flat in zip(names, (still[0] | still[1]).tolist(), strict=True) if flat]
    if idle:
        told.append(
            Caution(
                "constant_markers",
                f"{len(idle)} of {len(names)} markers do not vary in one of the files: "
                f"{', '.join(idle[:5])}",
                "leave them out: they tell no location from another",
            )
        )
    means = [float(z.abs().mean()) for z in (x, y)]
    apart = max(means) > UNIT_RATIO * min(means)
    if markers.normalise == "none" and markers.dissimilarity == "sqeuclidean" and apart:
        told.append(
            Caution(
                "unit_mismatch",
                f"markers average {means[0]:.3g} in the cells and {means[1]:.3g} in the atlas",
                "set markers.normalise to `zscore`, or bring both files to one unit",
            )
        )
    return told
