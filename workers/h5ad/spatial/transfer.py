"""The target slice as annotated data, with what was carried to it."""

from collections.abc import Mapping
from typing import Any

import anndata
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix


def annotate(question: Mapping[str, Any], answer: Mapping[str, Any]) -> anndata.AnnData:
    """Write the target's rows in their order, its counts, and per spot what the plan carried.

    `obs` has `received`, and with labels `transferred_label`, `confidence`, `entropy` and the
    target's own `label`; `obsm` has `spatial`, `label_scores` (columns in
    `uns['transfer']['names']`) and `imputed` (columns in `uns['transfer']['genes']`).
    """
    target = question["target"]
    obs = pd.DataFrame(index=pd.Index(target.ids))
    obs["received"] = np.asarray(answer["received"], float)
    told: dict[str, Any] = {"mass": answer["certificate"]["mass"], "mode": question["mode"]}
    if answer["labels"] is not None:
        obs["transferred_label"] = pd.Categorical(list(answer["labels"]))
        obs["confidence"] = np.asarray(answer["confidence"], float)
        obs["entropy"] = np.asarray(answer["entropy"], float)
        told["names"] = list(answer["names"])
    if target.labels is not None:
        obs["label"] = pd.Categorical(list(target.labels))
    seen = answer["agreement"]
    told["agreement"] = {name: value for name, value in seen.items() if value is not None}
    carried = answer["imputation"]
    if carried is not None:
        told["genes"] = list(carried["genes"])
    data = anndata.AnnData(
        X=csr_matrix(target.counts, dtype=np.float32),
        obs=obs,
        var=pd.DataFrame(index=pd.Index(target.genes)),
        uns={"transfer": told},
    )
    data.obsm["spatial"] = target.coordinates.numpy()
    if answer["labels"] is not None:
        data.obsm["label_scores"] = np.asarray(answer["label_scores"], float)
    if carried is not None:
        data.obsm["imputed"] = np.asarray(carried["expression"], float)
    return data
