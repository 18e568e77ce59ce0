"""A consensus slice as annotated data: its spots, its expression, its programmes."""

from collections.abc import Mapping
from typing import Any

import anndata
import numpy as np
import pandas as pd

from workers.h5ad.spatial.sections import entries


def annotate(question: Mapping[str, Any], answer: Mapping[str, Any]) -> anndata.AnnData:
    """Write the centre's spots: `X` gene proportions W H, `obsm['programmes']` W, `varm` H.

    `uns['alignment']` has, for each slice, the matrix that takes its coordinates to the centre's
    and the plan from spots of this table to rows of the slice's file. Spots keep the names and the
    order that they have in the template's file.
    """
    W, H = np.asarray(answer["W"]), np.asarray(answer["H"])
    data = anndata.AnnData(
        X=(W @ H).astype(np.float32),
        obs=pd.DataFrame(index=pd.Index(answer["ids"])),
        var=pd.DataFrame(index=pd.Index(answer["genes"])),
    )
    template = question["slices"][answer["template"]]
    if template.labels is not None:
        data.obs["label"] = pd.Categorical([template.labels[k] for k in answer["kept"]])
    data.obsm["spatial"] = np.asarray(answer["coordinates"])
    data.obsm["spatial_aligned"] = np.asarray(answer["coordinates"])
    data.obsm["programmes"], data.varm["programmes"] = W, H.T
    parts = {
        f"slice_{k}": {
            "plan": entries(part["plan"]),
            "transform": part["transform"],
            "weight": part["weight"],
            "objective": part["value"],
        }
        for k, part in enumerate(answer["parts"])
    }
    data.uns["alignment"] = {
        "transforms": {name: part["transform"] for name, part in parts.items()},
        "template": f"slice_{answer['template']}",
        "parameters": {name: question[name] for name in ("rank", "alpha", "scale")},
        "slices": parts,
        "objective": answer["value"],
        "status": answer["status"],
        "warnings": [warning["code"] for warning in answer["warnings"]],
    }
    return data
