"""The atlas's locations as annotated data, with the genes that were mapped to them."""

from collections.abc import Mapping
from typing import Any

import anndata
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

# Entries of the plan below this share of a cell's largest are left out of the file.
SMALL = 1e-3


def annotate(question: Mapping[str, Any], answer: Mapping[str, Any]) -> anndata.AnnData:
    """Write the atlas's rows in their order with the mapped genes as `X`.

    `layers['measured']` has the atlas's own values, 0 where it lacks the gene (`var['measured']`
    tells); `var` has `marker` and `pearson` of held-out genes; `obsm['spatial']` the coordinates,
    `obsm['cells']` the mass that each location gets from each cell, without entries below a
    thousandth of the cell's largest. `uns['mapping']` names the cells, their places and spreads.
    """
    atlas = question["atlas"]
    genes = list(answer["genes"])
    obs = pd.DataFrame(index=pd.Index(atlas.ids))
    if atlas.labels is not None:
        obs["label"] = pd.Categorical(list(atlas.labels))
    place = {gene: k for k, gene in enumerate(atlas.genes)}
    there = np.array([gene in place for gene in genes])
    var = pd.DataFrame(index=pd.Index(genes))
    var["measured"], var["marker"] = there, np.isin(genes, list(answer["marker_genes"]))
    var["pearson"] = np.array([np.nan if r is None else r for r in answer["pearson"]], float)
    measured = np.zeros((len(atlas.ids), len(genes)), np.float32)
    own = [place[gene] for gene in genes if gene in place]
    measured[:, there] = atlas.counts[:, own].toarray()
    data = anndata.AnnData(
        X=np.asarray(answer["expression"], np.float32),
        obs=obs,
        var=var,
        layers={"measured": csr_matrix(measured)},
        uns={"mapping": _told(question, answer)},
    )
    data.obsm["spatial"] = atlas.coordinates.numpy()
    plan = np.asarray(answer["plan"], float)
    plan = np.where(plan >= SMALL * plan.max(1, keepdims=True), plan, 0.0)
    data.obsm["cells"] = csr_matrix(plan.T)
    return data


def _told(question: Mapping[str, Any], answer: Mapping[str, Any]) -> dict[str, Any]:
    held = {name: value for name, value in answer["held_out"].items() if value is not None}
    return {
        "cells": list(answer["cell_ids"]),
        "places": np.asarray(answer["places"], float),
        "spread": np.asarray(answer["spread"], float),
        "likeliest": np.asarray(answer["likeliest"]),
        "markers": list(answer["marker_genes"]),
        "held_out": held,
        "parameters": {
            name: question[name]
            for name in ("alpha", "epsilon", "raw_counts")
            if question[name] is not None
        },
        "objective": answer["value"],
        "status": answer["status"],
        "warnings": [warning["code"] for warning in answer["warnings"]],
    }
