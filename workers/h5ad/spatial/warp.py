"""A warped slice as annotated data: both slices in one file, in the target's frame."""

from collections.abc import Mapping
from typing import Any

import anndata
import numpy as np

from workers.h5ad.spatial.sections import entries, together


def annotate(question: Mapping[str, Any], answer: Mapping[str, Any]) -> anndata.AnnData:
    """Write both slices; `obsm['spatial_aligned']` holds warped source and original target.

    `uns['alignment']` has the motion without the displacement, and the plan by rows of each file.
    """
    source, target = question["source"], question["target"]
    places = [np.asarray(answer["warped"]), target.coordinates.numpy()]
    data = together([source, target], ["source", "target"], places)
    parameters = ("method", "lam", "bandwidth", "alpha", "scale", "allow_reflection")
    data.uns["alignment"] = {
        "transforms": {"source": answer["transform"], "target": np.eye(3)},
        "parameters": {name: question[name] for name in parameters},
        "plan": entries(answer["plan"]),
        "folds": answer["certificate"]["folds"],
        "status": answer["status"],
        "warnings": [warning["code"] for warning in answer["warnings"]],
    }
    return data
