"""What a warp looks like as annotated data: rows, both frames, the plan by rows of the files."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from algorithms.sparse import SparsePlan
from algorithms.spatial.slice import Slice
from algorithms.spatial.warp import warp
from tests.algorithms.spatial.tissue import changed, moved, reordered, tissue
from workers.bind import Encoder
from workers.h5ad.spatial.warp import annotate
from workers.load import read_h5ad, write_h5ad
from workers.render import _with_arrays  # pyright: ignore[reportPrivateUsage]

# Products of one matrix and coordinates of size 30.
SAME = 1e-9
SOURCE = tissue(4, spots=60, genes=40)
ORDER = np.random.default_rng(2).permutation(60)
TARGET = reordered(moved(SOURCE, 60.0, (9.0, 2.0)), ORDER)


def written(source: Slice = SOURCE, target: Slice = TARGET) -> tuple[Any, Any]:
    """Warp by the true plan, send the answer over the wire, write the file and read it again."""
    there = torch.from_numpy(np.argsort(ORDER))
    plan = SparsePlan(torch.arange(60), there, torch.full((60,), 1 / 60, dtype=torch.float64))
    options = {"method": "gaussian", "lam": 1.0, "bandwidth": 3.0, "alpha": 0.1, "scale": "none",
               "allow_reflection": False}  # fmt: skip
    encoder = Encoder(inline_limit=0)
    body = encoder.answer(warp(source, target, plan=plan, **options))
    answer = _with_arrays(body, encoder.arrays)
    data = annotate({"source": source, "target": target, **options}, answer)
    return read_h5ad(write_h5ad(data), ""), answer


def test_rows_of_both_files_keep_their_order() -> None:
    data, answer = written()
    names = [f"source_{i}" for i in SOURCE.ids] + [f"target_{i}" for i in TARGET.ids]
    assert list(data.obs_names) == names  # both files use the same names
    assert list(data.var_names) == list(SOURCE.genes)
    assert list(data.obs["slice"]) == ["source"] * 60 + ["target"] * 60
    assert list(data.obs["label"]) == [*(SOURCE.labels or ()), *(TARGET.labels or ())]
    assert_array_equal(data.X.toarray()[:60], SOURCE.counts.toarray())
    assert_array_equal(data.X.toarray()[60:], TARGET.counts.toarray())
    assert_array_equal(data.obsm["spatial"][:60], SOURCE.coordinates.numpy())
    assert_array_equal(data.obsm["spatial_aligned"][:60], answer["warped"])
    assert_array_equal(data.obsm["spatial_aligned"][60:], TARGET.coordinates.numpy())


def test_transforms_and_plan_reproduce_the_coordinates() -> None:
    data, answer = written()
    told = data.uns["alignment"]
    source = np.column_stack([data.obsm["spatial"][:60], np.ones(60)])
    rigid = source @ told["transforms"]["source"].T
    assert_allclose(rigid[:, :2], answer["aligned"], atol=SAME)
    assert_array_equal(told["transforms"]["target"], np.eye(3))
    rows, cols = told["plan"]["rows"], told["plan"]["cols"]
    moved_on = data.obsm["spatial_aligned"]
    assert_allclose(moved_on[:60][rows], moved_on[60:][cols], atol=SAME)  # a motion: nothing bends
    assert told["plan"]["mass"].sum() == pytest.approx(1)
    assert told["parameters"]["method"] == "gaussian"
    assert told["folds"] == 0
    assert told["status"] == answer["status"]


def test_slices_without_labels_or_common_names() -> None:
    one = changed(SOURCE, labels=None)
    other = changed(TARGET, labels=None, ids=tuple(f"other{k}" for k in range(60)))
    data, _ = written(one, other)
    assert "label" not in data.obs
    assert list(data.obs_names) == [*one.ids, *other.ids]
    pd.testing.assert_index_equal(data.var_names, pd.Index(SOURCE.genes), check_names=False,
                                  exact=False)  # fmt: skip
