"""Mapped cells on their way in, from chosen keys of a file, and out, as picture and as file."""

import dataclasses
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_array_equal

import schemas.spatial.cells
import schemas.spatial.slice
from algorithms.errors import IllPosed
from algorithms.spatial.map_cells import map_cells
from algorithms.spatial.markers import Markers
from tests.algorithms.spatial.test_map_cells import changed, tissue
from workers.figures.spatial.map_cells import draw
from workers.h5ad.spatial.map_cells import annotate
from workers.load import load_cells, load_slice, read_h5ad, write_h5ad

NAME = "sha256:" + 64 * "0"


def stored(**more: Any) -> bytes:
    """Write an embryo of four rows in three dimensions, with an embedding."""
    data = anndata.AnnData(
        X=np.arange(12.0).reshape(4, 3),
        obs=pd.DataFrame({"batch": ["a", "b", "a", "b"]}, index=["w", "x", "y", "z"]),
        var=pd.DataFrame(index=["g0", "g1", "g2"]),
    )
    data.obsm["spatial"] = np.arange(12.0).reshape(4, 3)
    data.obsm["X_pca"] = np.ones((4, 2)) * [[1], [2], [3], [4]]
    for key, value in more.items():
        data.obsm[key] = value
    return write_h5ad(data)


@pytest.mark.parametrize("axes", [[0, 1], [0, 2], [2, 1]])
def test_the_chosen_axes_are_read(axes: list[int]) -> None:
    asked = schemas.spatial.slice.Slice(dataset=NAME, spatial_axes=axes)
    found = load_slice(asked, stored(), "atlas")
    assert_array_equal(found.coordinates.numpy(), np.arange(12.0).reshape(4, 3)[:, axes])


def test_axes_beyond_the_columns_are_refused_by_name() -> None:
    asked = schemas.spatial.slice.Slice(dataset=NAME, spatial_axes=[0, 3])
    with pytest.raises(IllPosed) as caught:
        load_slice(asked, stored(), "atlas")
    assert caught.value.field == "atlas.spatial_key"


def test_cells_are_read_without_places() -> None:
    asked = schemas.spatial.cells.Cells(
        dataset=NAME, embedding_key="X_pca", batch_key="batch", batch="b", label_key="batch"
    )
    found = load_cells(asked, stored(), "cells")
    assert found.ids == ("x", "z")
    assert found.genes == ("g0", "g1", "g2")
    assert found.embedding is not None
    assert_array_equal(found.embedding.numpy(), [[2, 2], [4, 4]])
    assert found.labels == ("b", "b")
    assert found.rows is not None
    assert found.rows.tolist() == [1, 3]
    assert load_cells(schemas.spatial.cells.Cells(dataset=NAME), stored(), "").embedding is None


def test_an_embedding_of_words_is_refused_by_name() -> None:
    asked = schemas.spatial.cells.Cells(dataset=NAME, embedding_key="words")
    words = pd.DataFrame({"a": list("wxyz")}, index=["w", "x", "y", "z"])
    with pytest.raises(IllPosed) as caught:
        load_cells(asked, stored(words=words), "cells")
    assert caught.value.field == "cells.embedding_key"


def mapped(genes: list[str] | None = None, *, known: bool = True) -> tuple[Any, Any]:
    """Answer one small question; `known` says whether the atlas has genes beside the marker."""
    cells, atlas = tissue(n=20, m=15)
    if not known:
        atlas = changed(atlas, counts=atlas.counts[:, :1], genes=("g0",))
    answer = dataclasses.asdict(map_cells(cells, atlas, Markers(("g0",)), genes=genes))
    question = {"cells": cells, "atlas": atlas, "genes": genes, "alpha": 0.5, "epsilon": 5e-3,
                "raw_counts": "none"}  # fmt: skip
    codes = [{"code": caution["code"]} for caution in answer["cautions"]]
    return question, answer | {"status": answer["stop"]["status"], "warnings": codes}


@pytest.mark.parametrize("known", [True, False])
def test_annotated_data_has_locations_and_genes(known: bool) -> None:
    question, answer = mapped(known=known)
    data = read_h5ad(write_h5ad(annotate(question, answer)), "")
    atlas, n = question["atlas"], len(question["cells"].ids)
    assert list(data.obs_names) == list(atlas.ids)
    assert list(data.var_names) == list(question["cells"].genes)
    assert_array_equal(data.X, np.asarray(answer["expression"], np.float32))
    assert_array_equal(data.obsm["spatial"], atlas.coordinates.numpy())
    assert list(data.var["measured"]) == [known or gene == "g0" for gene in data.var_names]
    assert list(data.var_names[data.var["marker"]]) == ["g0"]
    measured = data.layers["measured"].toarray()
    own = atlas.counts.toarray().astype(np.float32)
    assert_array_equal(measured[:, data.var["measured"]], own)
    assert not measured[:, ~data.var["measured"]].any()
    assert data.obsm["cells"].shape == (len(atlas.ids), n)
    plan = answer["plan"].numpy().T
    kept = plan >= 1e-3 * plan.max(0)
    assert_array_equal(data.obsm["cells"].toarray(), np.where(kept, plan, 0))
    assert list(data.uns["mapping"]["cells"]) == list(question["cells"].ids)
    told = [np.nan if r is None else r for r in answer["pearson"]]
    assert_array_equal(data.var["pearson"], told)


@pytest.mark.parametrize(("genes", "shown"), [(["g3", "g1"], ["g3", "g1"]), (["g2"], ["g2"])])
def test_pictures_show_the_genes_that_were_asked_for(genes: list[str], shown: list[str]) -> None:
    titles = [axes.get_title() for axes in draw(*mapped(genes)).axes]
    assert [t.split(",")[0] for t in titles if t.endswith(", measured")] == shown


def test_pictures_do_without_measured_genes() -> None:
    question, answer = mapped(known=False)
    titles = [axes.get_title() for axes in draw(question, answer).axes]
    assert "g0, mapped (a marker)" in titles
    assert "g0, measured" in titles
    assert not any(title.startswith("held-out genes") for title in titles)
    labelled = changed(question["atlas"], labels=("here",) * 15)
    data = annotate(question | {"atlas": labelled}, answer)
    assert set(data.obs["label"]) == {"here"}
    assert torch.equal(answer["likeliest"], answer["plan"].argmax(1))
