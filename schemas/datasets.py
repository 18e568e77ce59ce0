"""Uploaded data files: what is told about them, and how questions point into them."""

from typing import Any, Literal

from pydantic import Field, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from schemas.arrays import Strict, shelf_of
from schemas.facts import DIGEST


class DatasetFacts(Strict):
    """What was found in an uploaded file, read without trusting it."""

    digest: str = Field(pattern=DIGEST, description="SHA-256 of the file: its name from now on")
    kind: Literal["h5ad", "npz", "csv", "safetensors"]
    bytes: int
    arrays: dict[str, list[int]] = Field(
        description="shape of each array; in .h5ad X, layers/*, obsm/*, obsp/*"
    )
    dtypes: dict[str, str] = Field(
        default={}, description="element type of each tensor of a .safetensors, as in F32"
    )
    obs: int | None = Field(default=None, description="rows (spots, cells) of an .h5ad")
    var: int | None = Field(default=None, description="columns (genes) of an .h5ad")
    obs_columns: list[str] = []
    var_columns: list[str] = []


class Selection(Strict):
    """A question's view of a dataset: extended by models that say which keys they read.

    The worker replaces it by the dataclass of the same name that its loader builds.
    """

    dataset: str = Field(description="digest of a file sent to POST /v1/datasets")

    @model_validator(mode="before")
    @classmethod
    def _known(cls, value: Any, info: ValidationInfo) -> Any:
        digest = value.get("dataset") if isinstance(value, dict) else None
        if info.context is None or not isinstance(digest, str):
            return value
        if digest not in shelf_of(info).datasets:
            raise PydanticCustomError(
                "no-such-dataset", "no dataset {digest}; upload it to /v1/datasets first",
                {"digest": digest[:80], "field": "dataset"},
            )  # fmt: skip
        return value

    def require(self, info: ValidationInfo, field: str, kind: str, known: list[str]) -> None:
        """Refuse a key that the dataset lacks, listing those it has."""
        key = getattr(self, field)
        if info.context is not None and key is not None and key not in known:
            raise PydanticCustomError(
                "validation", "no {kind} {key} in this dataset; it has {known}",
                {"field": field, "kind": kind, "key": key, "known": ", ".join(known) or "none"},
            )  # fmt: skip
