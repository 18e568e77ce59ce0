"""A tissue slice inside an uploaded .h5ad file."""

from pydantic import Field, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from schemas.arrays import shelf_of
from schemas.spatial.counts import Counts, keyed

# Spots of the larger slice up to which all starts run between spots; beyond, between superspots.
SEARCHED = 650


class Slice(Counts):
    """A tissue slice: the digest of an .h5ad file and the keys to read in it."""

    spatial_key: str = Field(default="spatial", description="Key of the coordinates in `obsm`.")
    spatial_axes: list[int] = Field(
        default=[0, 1],
        min_length=2,
        max_length=2,
        description="The two columns of `spatial_key` that are read, counted from 0: of x, y, z, "
        "[0, 2] is the side view.",
    )
    landmark_key: str | None = Field(
        default=None,
        description="Key in `obsm` of positions in a frame shared by the slices, for scores.",
    )

    @property
    def spots(self) -> int:
        """Count the rows of the file, of which the slice may be a part; 0 where not yet known."""
        return self.rows

    @model_validator(mode="after")
    def _places_exist(self, info: ValidationInfo) -> "Slice":
        if min(self.spatial_axes) < 0 or len(set(self.spatial_axes)) < len(self.spatial_axes):
            raise PydanticCustomError(
                "validation", "two different columns, counted from 0; received {axes}",
                {"field": "spatial_axes", "axes": str(self.spatial_axes)},
            )  # fmt: skip
        facts = shelf_of(info).datasets.get(self.dataset)
        if facts is None:
            return self
        obsm = keyed(facts["arrays"], "obsm")
        self.require(info, "spatial_key", "obsm key", list(obsm))
        self.require(info, "landmark_key", "obsm key", list(obsm))
        shape = obsm.get(self.spatial_key, [])
        if len(shape) == 2 and max(self.spatial_axes) >= shape[1]:
            raise PydanticCustomError(
                "validation", "columns {axes}, counted from 0, of {key}, which has {columns}",
                {"field": "spatial_axes", "axes": str(self.spatial_axes), "key": self.spatial_key,
                 "columns": shape[1]},
            )  # fmt: skip
        return self


def aligning(source: int, target: int) -> int:
    """Estimate the bytes that aligning so many spots takes: dense matrices, many for the starts."""
    few = min(source, SEARCHED) * min(target, SEARCHED)
    return 8 * (12 * source * target + 2 * (source**2 + target**2) + 30 * few)
