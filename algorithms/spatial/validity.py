"""Pairs of slices that have no alignment as asked, told apart and told why."""

import numpy as np
from torch import Tensor

from algorithms.errors import IllPosed
from algorithms.spatial.expression import Counts, Expression
from algorithms.spatial.slice import Slice


def check_slices(source: Slice, target: Slice, options: Expression) -> None:
    """Refuse slices before anything is computed from them."""
    for field, tissue in (("source", source), ("target", target)):
        n, genes = tissue.counts.get_shape()
        if len(tissue.coordinates) != n:
            raise IllPosed(
                f"{field}.coordinates", f"{len(tissue.coordinates)} rows; counts have {n} spots"
            )
        if len(tissue.genes) != genes:
            raise IllPosed(f"{field}.genes", f"{len(tissue.genes)} names for {genes} columns")
        _check_coordinates(f"{field}.coordinates", tissue.coordinates)
        data = tissue.counts.data
        if not np.isfinite(data).all():
            bad = np.count_nonzero(~np.isfinite(data))
            raise IllPosed(f"{field}.counts", f"{bad} counts are not finite")
        low = float(data.min(initial=0.0))
        if low < 0:
            raise IllPosed(
                "expression.dissimilarity",
                f"{options.dissimilarity} needs counts; {field} holds {low:g} (scaled or centred "
                "expression?). Pass raw counts, or expression that is not negative",
            )


def check_kept(counts: Counts, source: Slice, target: Slice) -> None:
    """Refuse what filtering has left without a shape."""
    kept = (("source", counts.kept_source, source), ("target", counts.kept_target, target))
    for field, rows, tissue in kept:
        _check_coordinates(f"{field}.coordinates", tissue.coordinates[rows], "the spots kept")


def _check_coordinates(field: str, z: Tensor, whose: str = "the spots") -> None:
    bad = int((~z.isfinite()).any(1).sum())
    if bad:
        raise IllPosed(field, f"{bad} of {len(z)} spots have a NaN or infinite coordinate")
    if len(z) < 3:
        raise IllPosed(field, f"{len(z)} spots; at least 3 are needed to find a motion")
    if bool((z == z[0]).all()):
        raise IllPosed(field, f"{whose} all lie at one place, {z[0].tolist()}")
