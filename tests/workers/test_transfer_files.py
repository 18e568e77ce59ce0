"""What a transfer looks like as a picture and as annotated data, with and without labels."""

import dataclasses

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from algorithms.sparse import SparsePlan
from algorithms.spatial.transfer import transfer
from tests.algorithms.spatial.tissue import changed, tissue
from workers.figures.spatial.transfer import draw
from workers.h5ad.spatial.transfer import annotate

SOURCE, TARGET = tissue(0), tissue(0, reading=1)
PLAN = SparsePlan(torch.arange(70), torch.arange(70), torch.full((70,), 1 / 80).double())


def carried(labels, genes):
    source = SOURCE if labels else changed(SOURCE, labels=None)
    target = TARGET if labels else changed(TARGET, labels=None)
    answer = dataclasses.asdict(transfer(source, target, PLAN, genes=genes))
    return {"source": source, "target": target, "mode": "sum"}, answer


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("genes", [None, ["Gene5", "Gene2"]])
def test_annotated_data_keeps_rows_and_columns(labels, genes):
    question, answer = carried(labels, genes)
    data = annotate(question, answer)
    assert list(data.obs_names) == list(TARGET.ids)
    assert list(data.var_names) == list(TARGET.genes)
    assert_array_equal(data.X.toarray(), TARGET.counts.toarray().astype(np.float32))
    assert_array_equal(data.obsm["spatial"], TARGET.coordinates.numpy())
    assert ("transferred_label" in data.obs) == labels == ("label_scores" in data.obsm)
    assert ("imputed" in data.obsm) == (genes is not None)
    if labels:
        assert list(data.obs["transferred_label"]) == list(answer["labels"])
        assert "unmatched" in set(data.obs["transferred_label"])
    if genes:
        assert data.uns["transfer"]["genes"] == genes


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("genes", [None, ["Gene5"]])
def test_pictures_show_what_there_is(labels, genes):
    figure = draw(*carried(labels, genes))
    titles = {axes.get_title() for axes in figure.axes}
    assert ("transferred label" in titles) == ("where labels went" in titles) == labels
    assert ("Gene5, carried" in titles) == (genes is not None)
    assert ("mass received" in titles) != labels
