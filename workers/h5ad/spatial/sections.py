"""Several slices as one table of annotated data."""

from collections.abc import Sequence

import anndata
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, vstack

from algorithms.spatial.slice import Slice

Places = NDArray[np.float64]


def together(
    slices: Sequence[Slice], names: Sequence[str], aligned: Sequence[Places]
) -> anndata.AnnData:
    """Put slices into one table over their common genes.

    `obs['slice']` names the slice of each row, `obsm['spatial']` has the coordinates of the files
    and `obsm['spatial_aligned']` those given. Slices that were told apart inside one file keep the
    order of its rows, interleaved as they were; others follow one another, each in the order of
    its file. Names that occur twice get the slice's name in front.
    """
    known = [set(piece.genes) for piece in slices]
    common = [gene for gene in slices[0].genes if all(gene in genes for genes in known)]
    ids = [i for piece in slices for i in piece.ids]
    if len(set(ids)) < len(ids):
        pairs = zip(slices, names, strict=True)
        ids = [f"{name}_{i}" for piece, name in pairs for i in piece.ids]
    which = [name for piece, name in zip(slices, names, strict=True) for _ in piece.ids]
    obs = pd.DataFrame(
        {"slice": pd.Categorical(which, categories=list(names))}, index=pd.Index(ids)
    )
    if any(piece.labels is not None for piece in slices):
        labels = [label for piece in slices for label in piece.labels or (None,) * len(piece.ids)]
        obs["label"] = pd.Categorical(labels)
    data = anndata.AnnData(
        X=vstack([_columns(piece, common) for piece in slices], format="csr"),
        obs=obs,
        var=pd.DataFrame(index=pd.Index(common)),
    )
    data.obsm["spatial"] = np.vstack([piece.coordinates.numpy() for piece in slices])
    data.obsm["spatial_aligned"] = np.vstack(list(aligned))
    return data[_order(slices)].copy()


def _order(slices: Sequence[Slice]) -> NDArray[np.int64]:
    """Sort by rows of the file where all slices are different parts of one file."""
    rows = [piece.rows.numpy() for piece in slices if piece.rows is not None]
    count = sum(len(piece.ids) for piece in slices)
    every = np.concatenate(rows) if rows else np.zeros(0, dtype=np.int64)
    one_file = len({piece.file for piece in slices}) == 1 and slices[0].file is not None
    if not one_file or len(np.unique(every)) < count:
        return np.arange(count)
    return np.argsort(every, kind="stable")


def _columns(piece: Slice, genes: list[str]) -> csr_matrix:
    place = {gene: index for index, gene in enumerate(piece.genes)}
    return csr_matrix(piece.counts[:, [place[gene] for gene in genes]], dtype=np.float32)


def entries(plan: dict[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
    """Keep the arrays of a sparse plan."""
    return {name: plan[name] for name in ("rows", "cols", "mass")}
