"""Read what questions select from uploaded files."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import torch
from scipy.sparse import csr_matrix

import schemas.spatial.cells
import schemas.spatial.slice
import schemas.state_dict
from algorithms.errors import IllPosed
from algorithms.spatial.cells import Cells
from algorithms.spatial.slice import Slice
from schemas.datasets import Selection
from schemas.spatial.counts import Counts
from workers.state_dicts import load_state_dict

PLANE = (0, 1)


def load_slice(asked: schemas.spatial.slice.Slice, raw: bytes, field: str) -> Slice:
    """Read a tissue slice from the bytes of an .h5ad file.

    Raises:
        IllPosed: when names are not unique, a batch is unknown or counts are not finite.
    """
    data, rows = _rows(asked, raw, field)
    return Slice(
        counts=_counts(data, asked.layer, field),
        coordinates=_plane(data, asked.spatial_key, f"{field}.spatial_key", asked.spatial_axes),
        genes=tuple(map(str, data.var_names)),
        ids=tuple(map(str, data.obs_names)),
        labels=_labels(data, asked.label_key, asked.unlabelled),
        landmarks=_plane(data, asked.landmark_key, f"{field}.landmark_key")
        if asked.landmark_key
        else None,
        file=asked.dataset,
        rows=torch.from_numpy(rows),
    )


def load_cells(asked: schemas.spatial.cells.Cells, raw: bytes, field: str) -> Cells:
    """Read dissociated cells from the bytes of an .h5ad file.

    Raises:
        IllPosed: as `load_slice`, and when the embedding is not a matrix of numbers.
    """
    data, rows = _rows(asked, raw, field)
    return Cells(
        counts=_counts(data, asked.layer, field),
        genes=tuple(map(str, data.var_names)),
        ids=tuple(map(str, data.obs_names)),
        embedding=_embedding(data, asked.embedding_key, f"{field}.embedding_key"),
        labels=_labels(data, asked.label_key, asked.unlabelled),
        file=asked.dataset,
        rows=torch.from_numpy(rows),
    )


LOADERS: dict[type[Selection], Callable[[Any, bytes, str], Any]] = {
    schemas.spatial.cells.Cells: load_cells,
    schemas.spatial.slice.Slice: load_slice,
    schemas.state_dict.StateDict: load_state_dict,
}


def _rows(
    asked: Counts, raw: bytes, field: str
) -> tuple[anndata.AnnData, np.ndarray[Any, np.dtype[np.int64]]]:
    """Read a file and keep the rows of the batch; their names and those of genes are unique."""
    data = read_h5ad(raw, f"{field}.dataset")
    rows = np.arange(data.n_obs)
    if asked.batch_key is not None:
        batches = data.obs[asked.batch_key].astype(str)
        if asked.batch not in set(batches):
            known = ", ".join(sorted(set(batches))[:20])
            raise IllPosed(f"{field}.batch", f"no batch {asked.batch}; there are {known}")
        rows = np.flatnonzero(batches == asked.batch)
        data = data[rows]
    for names, what, call in (
        (data.var_names, "gene", "var_names_make_unique"),
        (data.obs_names, "row", "obs_names_make_unique"),
    ):
        if not names.is_unique:
            twice = names[names.duplicated()][0]
            raise IllPosed(f"{field}.dataset", f"{what} name {twice} occurs twice; call {call}()")
    return data, rows


def read_h5ad(raw: bytes, field: str) -> anndata.AnnData:
    """Read a whole .h5ad file from memory."""
    with tempfile.NamedTemporaryFile(suffix=".h5ad") as file:
        file.write(raw)
        file.flush()
        try:
            return anndata.read_h5ad(file.name)
        except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise IllPosed(field, f"the file cannot be read as AnnData: {error}") from error


def write_h5ad(data: anndata.AnnData) -> bytes:
    """Write an .h5ad file into memory."""
    with tempfile.NamedTemporaryFile(suffix=".h5ad") as file:
        data.write_h5ad(file.name, compression="gzip")
        return Path(file.name).read_bytes()


def _counts(data: anndata.AnnData, layer: str | None, field: str) -> csr_matrix:
    matrix = data.X if layer is None else data.layers[layer]
    name = f"{field}.layer" if layer else f"{field}.dataset"
    if matrix is None:
        raise IllPosed(name, f"the file has no X; its layers are {', '.join(data.layers)}")
    counts = csr_matrix(matrix, dtype=np.float64)
    if not np.isfinite(counts.data).all():
        raise IllPosed(name, "the counts hold NaN or infinity", code="non-finite-number")
    return counts


def _plane(
    data: anndata.AnnData, key: str, field: str, axes: Sequence[int] = PLANE
) -> torch.Tensor:
    places = np.asarray(data.obsm[key])
    if places.ndim != 2 or places.shape[1] <= max(axes) or places.dtype.kind not in "fiu":
        raise IllPosed(
            field, f"expected numbers in columns {list(axes)}, found shape {places.shape}"
        )
    return torch.tensor(places[:, list(axes)].astype(np.float64))


def _embedding(data: anndata.AnnData, key: str | None, field: str) -> torch.Tensor | None:
    if key is None:
        return None
    scores = np.asarray(data.obsm[key])
    if scores.ndim != 2 or scores.shape[1] == 0 or scores.dtype.kind not in "fiu":
        raise IllPosed(field, f"expected a matrix of numbers, found shape {scores.shape}")
    return torch.tensor(scores.astype(np.float64))


def _labels(
    data: anndata.AnnData, key: str | None, unlabelled: list[str]
) -> tuple[str | None, ...] | None:
    if key is None:
        return None
    return tuple(
        None if pd.isna(label) or str(label) in unlabelled else str(label)
        for label in data.obs[key]
    )
