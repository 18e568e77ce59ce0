"""Dissociated cells inside an uploaded .h5ad file: counts without places."""

from pydantic import Field, ValidationInfo, model_validator

from schemas.arrays import shelf_of
from schemas.spatial.counts import Counts, keyed


class Cells(Counts):
    """Cells that have no place: the digest of an .h5ad file and the keys to read in it."""

    embedding_key: str | None = Field(
        default=None,
        description="Key in `obsm` of an embedding, such as `X_pca`, that tells which cells are "
        "alike; null compares genes.",
    )

    @model_validator(mode="after")
    def _embedding_exists(self, info: ValidationInfo) -> "Cells":
        facts = shelf_of(info).datasets.get(self.dataset)
        if facts is not None:
            self.require(info, "embedding_key", "obsm key", list(keyed(facts["arrays"], "obsm")))
        return self
