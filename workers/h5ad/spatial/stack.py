"""A stack as annotated data: all slices in one file, in one frame."""

from collections.abc import Mapping
from typing import Any

import anndata

from workers.h5ad.spatial.sections import entries, together


def annotate(question: Mapping[str, Any], answer: Mapping[str, Any]) -> anndata.AnnData:
    """Write all slices over their common genes; `uns['alignment']` has a matrix for each.

    `uns['alignment']['transforms']` maps the name in `obs['slice']` to the matrix that takes
    `obsm['spatial']` to `obsm['spatial_aligned']`.
    """
    slices = question["slices"]
    names = [f"slice_{k}" for k in range(len(slices))]
    data = together(slices, names, [placed["aligned"] for placed in answer["slices"]])
    pairs = {
        f"slice_{pair['source']}_to_slice_{pair['target']}": {
            "plan": entries(pair["plan"]),
            "transform": pair["transform"],
            "objective": pair["value"],
            "transport_cost": pair["transport_cost"],
            "distortion": pair["distortion"],
            "mismatch": pair["mismatch"],
        }
        for pair in answer["pairs"]
    }
    parameters = ("policy", "center_origin", "alpha", "scale", "effort", "allow_reflection")
    data.uns["alignment"] = {
        "transforms": dict(zip(names, answer["transforms"], strict=True)),
        "reference": names[answer["reference"]],
        "parameters": {name: question[name] for name in parameters},
        "pairs": pairs,
        "mismatch": answer["certificate"]["mismatch"],
        "status": answer["status"],
        "warnings": [warning["code"] for warning in answer["warnings"]],
    }
    return data
