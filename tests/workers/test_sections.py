"""Several slices of one file: read apart, written together again in the order that they had."""

import anndata
import numpy as np
import pandas as pd
import pytest

from algorithms.spatial.stack import stack
from schemas.samples import sample, samples
from schemas.spatial.slice import Slice
from workers.bind import Encoder
from workers.h5ad.spatial.stack import annotate
from workers.load import load_slice, write_h5ad
from workers.render import _with_arrays  # pyright: ignore[reportPrivateUsage]

# Products of one matrix and coordinates of size 10.
SAME = 1e-9


def interleaved() -> anndata.AnnData:
    both = [anndata.read_h5ad(samples()[sample(f"section_{k}.h5ad")]) for k in (1, 2)]
    for name, part in zip("ab", both, strict=True):
        part.obs_names = [f"{name}_{i}" for i in part.obs_names]
    whole = anndata.concat(both, keys=["first", "second"], label="batch")
    return whole[np.random.default_rng(0).permutation(whole.n_obs)].copy()


@pytest.mark.slow
def test_interleaved_slices_keep_their_rows() -> None:
    whole = interleaved()
    raw = write_h5ad(whole)
    asked = [
        Slice(dataset="sha256:" + 64 * "0", batch_key="batch", batch=name)
        for name in ("first", "second")
    ]
    slices = tuple(load_slice(piece, raw, f"slices.{k}") for k, piece in enumerate(asked))
    found = stack(slices, effort="fast")
    encoder = Encoder(inline_limit=0)
    body = encoder.answer(found)
    question = dict.fromkeys(("alpha", "scale", "effort", "allow_reflection"), 0)
    question |= {"slices": slices, "policy": "sequential", "center_origin": False}
    data = annotate(question, _with_arrays(body, encoder.arrays))
    assert list(data.obs_names) == list(whole.obs_names)
    pd.testing.assert_index_equal(data.var_names, whole.var_names)
    np.testing.assert_array_equal(data.obsm["spatial"], whole.obsm["spatial"])
    np.testing.assert_array_equal(data.X.toarray(), whole.X.toarray())
    names = {"first": "slice_0", "second": "slice_1"}
    assert list(data.obs["slice"]) == [names[b] for b in whole.obs["batch"]]
    ones = np.ones(len(data))
    for name, T in data.uns["alignment"]["transforms"].items():
        own = (data.obs["slice"] == name).to_numpy()
        moved = np.column_stack([data.obsm["spatial"], ones])[own] @ np.asarray(T).T
        np.testing.assert_allclose(data.obsm["spatial_aligned"][own], moved[:, :2], atol=SAME)
