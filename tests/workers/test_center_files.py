"""What a consensus slice looks like as annotated data: its spots, its factors, every plan."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csr_matrix

from algorithms.spatial.center import center
from algorithms.spatial.slice import Slice
from tests.algorithms.spatial.tissue import changed, moved, reordered, tissue
from workers.bind import Encoder
from workers.h5ad.spatial.center import annotate
from workers.load import read_h5ad, write_h5ad
from workers.render import _with_arrays  # pyright: ignore[reportPrivateUsage]

# Products of a float64 matrix, written as float32.
SINGLE = 1e-6
BASE = tissue(5, spots=40, genes=30, depth=4000.0)
RANK = 3


def slices(*, labels: bool) -> tuple[Slice, ...]:
    """Take a section, and a moved copy of it in another order with one spot that is too poor."""
    other = reordered(moved(BASE, 40.0, (3.0, 1.0)), np.random.default_rng(0).permutation(40))
    counts = other.counts.toarray()
    counts[7] = 0
    both = BASE, changed(other, counts=csr_matrix(counts))
    return both if labels else tuple(changed(one, labels=None) for one in both)


@cache
def written(labels: bool = True, template: int = 0) -> tuple[Any, Any, tuple[Slice, ...]]:
    """Find the centre, send the answer over the wire, write the file and read it again."""
    given = slices(labels=labels)
    drawn = torch.Generator().manual_seed(0)
    found = center(given, rank=RANK, template=template, max_iter=2, generator=drawn)
    encoder = Encoder(inline_limit=0)
    answer = _with_arrays(encoder.answer(found), encoder.arrays)
    question = {"slices": given, "rank": RANK, "alpha": 0.1, "scale": "auto"}
    return read_h5ad(write_h5ad(annotate(question, answer)), ""), answer, given


def test_spots_are_those_of_the_template() -> None:
    data, answer, given = written()
    assert list(data.obs_names) == list(given[0].ids)
    assert list(data.obs["label"]) == list(given[0].labels or ())
    assert_array_equal(data.obsm["spatial"], given[0].coordinates.numpy())
    assert_array_equal(data.obsm["spatial_aligned"], answer["coordinates"])


def test_spots_that_were_dropped_are_left_out_with_their_labels() -> None:
    data, answer, given = written(template=1)
    kept = [k for k in range(40) if k != 7]
    assert list(answer["kept"]) == kept
    assert list(data.obs_names) == [given[1].ids[k] for k in kept]
    assert list(data.obs["label"]) == [(given[1].labels or ())[k] for k in kept]
    assert data.uns["alignment"]["template"] == "slice_1"


def test_expression_is_the_product_of_its_factors() -> None:
    data, answer, _ = written()
    W, H = data.obsm["programmes"], data.varm["programmes"].T
    assert W.shape[1] == H.shape[0] == RANK
    assert_allclose(data.X, W @ H, atol=SINGLE)
    assert_allclose(data.X.sum(1), 1, atol=1e2 * SINGLE)  # proportions
    assert list(data.var_names) == list(answer["genes"])


def test_every_slice_brings_its_plan_and_its_motion() -> None:
    data, answer, given = written()
    told = data.uns["alignment"]
    assert set(told["slices"]) == set(told["transforms"]) == {"slice_0", "slice_1"}
    for k, own in enumerate(given):
        part = told["slices"][f"slice_{k}"]
        assert part["plan"]["mass"].sum() == pytest.approx(1)
        assert part["plan"]["rows"].max() < data.n_obs
        assert part["plan"]["cols"].max() < len(own.ids)
        assert part["weight"] == pytest.approx(0.5)
        assert_array_equal(part["transform"], told["transforms"][f"slice_{k}"])
    assert told["objective"] == answer["value"]
    assert told["status"] == answer["status"]
    assert list(told["warnings"]) == [warning["code"] for warning in answer["warnings"]]


def test_slices_without_labels_have_none() -> None:
    data, _, _ = written(labels=False)
    assert "label" not in data.obs
