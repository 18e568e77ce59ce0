"""An alignment as annotated data: both slices in one file, in one frame."""

from collections.abc import Mapping
from typing import Any

import anndata
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix, vstack

from algorithms.spatial.slice import Slice


def annotate(question: Mapping[str, Any], answer: Mapping[str, Any]) -> anndata.AnnData:
    """Stack source and target rows, each in the order of its file, over their common genes.

    `obs['slice']` tells them apart, `obs['unmatched']` marks spots without a partner,
    `obsm['spatial']` has the coordinates of the files, `obsm['spatial_aligned']` those in the
    target's frame, `uns['alignment']` the transform, the plan by rows of each slice, the scores
    and the objective. Of the hierarchical solver, adding `obsm['spatial_residual']` to
    `obsm['spatial_aligned']` follows the bends of the tissue. Names that occur in both slices get
    the slice's name in front.
    """
    source, target = question["source"], question["target"]
    common = [gene for gene in source.genes if gene in set(target.genes)]
    names = [*source.ids, *target.ids]
    if len(set(names)) < len(names):
        names = [f"source_{i}" for i in source.ids] + [f"target_{i}" for i in target.ids]
    which = ["source"] * len(source.ids) + ["target"] * len(target.ids)
    obs = pd.DataFrame({"slice": pd.Categorical(which)}, index=pd.Index(names))
    if source.labels is not None or target.labels is not None:
        obs["label"] = pd.Categorical([*_labels(source), *_labels(target)])
    obs["unmatched"] = np.concatenate([answer["unmatched_source"], answer["unmatched_target"]])
    places = np.vstack([source.coordinates.numpy(), target.coordinates.numpy()])
    aligned = np.vstack([answer["aligned"], target.coordinates.numpy()])
    data = anndata.AnnData(
        X=vstack([_columns(source, common), _columns(target, common)], format="csr"),
        obs=obs,
        var=pd.DataFrame(index=pd.Index(common)),
        uns={"alignment": _summary(answer)},
    )
    data.obsm["spatial"], data.obsm["spatial_aligned"] = places, aligned
    if answer["hierarchy"] is not None:
        residual = np.zeros_like(places)
        residual[: len(source.ids)] = answer["hierarchy"]["residual"]
        data.obsm["spatial_residual"] = residual
    return data


def _columns(piece: Slice, genes: list[str]) -> csr_matrix:
    place = {gene: index for index, gene in enumerate(piece.genes)}
    return csr_matrix(piece.counts[:, [place[gene] for gene in genes]], dtype=np.float32)


def _labels(piece: Slice) -> tuple[str | None, ...]:
    return piece.labels or (None,) * len(piece.ids)


def _summary(answer: Mapping[str, Any]) -> dict[str, Any]:
    plan, scores, hierarchy = answer["plan"], answer["scores"], answer["hierarchy"]
    more = {} if hierarchy is None else {"rigid": hierarchy["rigid"]}
    return {
        **more,
        "solver": answer["solver"],
        "transform": answer["transform"],
        "plan": {"rows": plan["rows"], "cols": plan["cols"], "mass": plan["mass"]},
        "objective": answer["value"],
        "mass": answer["mass_moved"],
        "transport_cost": answer["transport_cost"],
        "distortion": answer["distortion"],
        "rotation_degrees": answer["rotation_degrees"],
        "status": answer["status"],
        "scores": {name: value for name, value in scores.items() if value is not None},
        "warnings": [warning["code"] for warning in answer["warnings"]],
    }
