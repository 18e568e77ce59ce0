"""Counts of spots or cells inside an uploaded .h5ad file: what every view of one may choose."""

from typing import Any

from pydantic import Field, PrivateAttr, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from schemas.arrays import shelf_of
from schemas.datasets import Selection


class Counts(Selection):
    """The digest of an .h5ad file, the matrix to read in it, and the rows."""

    layer: str | None = Field(default=None, description="Layer with the counts; null reads `X`.")
    label_key: str | None = Field(
        default=None, description="Column of `obs` with labels, for scores."
    )
    unlabelled: list[str] = Field(default=["unassigned"], description="Labels that mean: no label.")
    batch_key: str | None = Field(
        default=None, description="Column of `obs` that tells several slices in one file apart."
    )
    batch: str | None = Field(default=None, description="Value of that column: the slice to read.")

    _rows: int = PrivateAttr(0)
    _genes: int = PrivateAttr(0)

    @property
    def rows(self) -> int:
        """Count the rows of the file, all of which may be read; 0 where not yet known."""
        return self._rows

    @property
    def columns(self) -> int:
        """Count the genes of the file; 0 where not yet known."""
        return self._genes

    @model_validator(mode="after")
    def _keys_exist(self, info: ValidationInfo) -> "Counts":
        if (self.batch_key is None) != (self.batch is None):
            raise PydanticCustomError(
                "validation", "batch_key and batch go together", {"field": "batch"}
            )
        facts = shelf_of(info).datasets.get(self.dataset)
        if facts is None:
            return self
        if facts["kind"] != "h5ad":
            raise PydanticCustomError(
                "validation", "counts are read from .h5ad; this dataset is {kind}",
                {"field": "dataset", "kind": facts["kind"]},
            )  # fmt: skip
        self._rows, self._genes = facts.get("obs") or 0, facts.get("var") or 0
        self.require(info, "layer", "layer", list(keyed(facts["arrays"], "layers")))
        self.require(info, "label_key", "obs column", facts["obs_columns"])
        self.require(info, "batch_key", "obs column", facts["obs_columns"])
        return self


def keyed(arrays: dict[str, Any], folder: str) -> dict[str, list[int]]:
    """Map the keys of one folder of an .h5ad file, such as `obsm`, to the shapes under them."""
    start = f"{folder}/"
    return {name.removeprefix(start): s for name, s in arrays.items() if name.startswith(start)}
