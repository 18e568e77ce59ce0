"""A tissue slice inside an uploaded .h5ad file."""

from pydantic import Field, PrivateAttr, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from schemas.arrays import shelf_of
from schemas.datasets import Selection

# Spots of the larger slice up to which all starts run between spots; beyond, between superspots.
SEARCHED = 650


class Slice(Selection):
    """A tissue slice: the digest of an .h5ad file and the keys to read in it."""

    spatial_key: str = Field(default="spatial", description="Key of the coordinates in `obsm`.")
    layer: str | None = Field(default=None, description="Layer with the counts; null reads `X`.")
    label_key: str | None = Field(
        default=None, description="Column of `obs` with labels, for scores."
    )
    unlabelled: list[str] = Field(default=["unassigned"], description="Labels that mean: no label.")
    landmark_key: str | None = Field(
        default=None,
        description="Key in `obsm` of positions in a frame shared by the slices, for scores.",
    )
    batch_key: str | None = Field(
        default=None, description="Column of `obs` that tells several slices in one file apart."
    )
    batch: str | None = Field(default=None, description="Value of that column: the slice to read.")

    _spots: int = PrivateAttr(0)

    @property
    def spots(self) -> int:
        """Count the rows of the file, of which the slice may be a part; 0 where not yet known."""
        return self._spots

    @model_validator(mode="after")
    def _keys_exist(self, info: ValidationInfo) -> "Slice":
        if (self.batch_key is None) != (self.batch is None):
            raise PydanticCustomError(
                "validation", "batch_key and batch go together", {"field": "batch"}
            )
        facts = shelf_of(info).datasets.get(self.dataset)
        if facts is None:
            return self
        if facts["kind"] != "h5ad":
            raise PydanticCustomError(
                "validation", "a slice is read from .h5ad; this dataset is {kind}",
                {"field": "dataset", "kind": facts["kind"]},
            )  # fmt: skip
        self._spots = facts.get("obs") or 0
        obsm = [k.removeprefix("obsm/") for k in facts["arrays"] if k.startswith("obsm/")]
        layers = [k.removeprefix("layers/") for k in facts["arrays"] if k.startswith("layers/")]
        self.require(info, "spatial_key", "obsm key", obsm)
        self.require(info, "landmark_key", "obsm key", obsm)
        self.require(info, "layer", "layer", layers)
        self.require(info, "label_key", "obs column", facts["obs_columns"])
        self.require(info, "batch_key", "obs column", facts["obs_columns"])
        return self


def aligning(source: int, target: int) -> int:
    """Estimate the bytes that aligning so many spots takes: dense matrices, many for the starts."""
    few = min(source, SEARCHED) * min(target, SEARCHED)
    return 8 * (12 * source * target + 2 * (source**2 + target**2) + 30 * few)
