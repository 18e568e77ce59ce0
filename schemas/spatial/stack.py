"""Many tissue slices in one frame."""

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from schemas.arrays import ArrayRef, Dims, Request, Result, Strict
from schemas.samples import sample
from schemas.sparse import SparsePlan
from schemas.spatial.expression import Expression
from schemas.spatial.slice import Slice, aligning


class StackRequest(Request):
    """Put many tissue slices into one frame by rigid motions.

    Pairs are aligned by fused Gromov-Wasserstein transport, as in `spatial.align`; their motions
    are composed (`sequential`), taken to one slice (`star`), or all fitted at once (`procrustes`).
    """

    slices: list[Slice] = Field(
        min_length=2, max_length=200, description="The slices, in the order in which they lie."
    )
    policy: Literal["sequential", "star", "procrustes"] = Field(
        "sequential",
        description="sequential: each slice to its neighbour on the side of the reference, errors "
        "add up along the way; star: each slice to the reference; procrustes: all pairs, then the "
        "motions under which matched spots of all pairs lie closest together.",
    )
    reference: int = Field(
        0, ge=0, description="Position in `slices` (from 0) of the slice whose frame is kept."
    )
    center_origin: bool = Field(
        False, description="Move the whole stack so that the reference's mean lies at (0, 0)."
    )
    cycles: bool = Field(
        True,
        description="Align further pairs, at most one a slice, and compare the two ways round "
        "each triangle of slices; false saves their time.",
    )
    alpha: float = Field(
        0.1, ge=0, le=1, description="0 compares expression alone, 1 geometry alone."
    )
    expression: Expression = Field(default_factory=Expression)
    scale: Literal["auto", "pitch", "none"] = Field(
        "auto",
        description="Unit of distances, pair by pair: none takes coordinates as they are, pitch "
        "divides each slice by its median spacing, auto is none when both spacings lie in [1/2, "
        "2].",
    )
    effort: Literal["default", "fast"] = Field(
        "default", description="fast leaves out the polish of each alignment."
    )
    allow_reflection: bool = Field(
        False, description="Turn a slice over where that aligns it better."
    )
    tol: float = Field(
        1e-9, gt=0, lt=1, description="Relative fall of an objective at which its descent ends."
    )
    max_iter: int = Field(200, ge=1, le=100_000, description="Steps of one descent.")

    @model_validator(mode="after")
    def _reference_exists(self) -> "StackRequest":
        if self.reference >= len(self.slices):
            raise PydanticCustomError(
                "validation", "reference is {got}; there are {count} slices, counted from 0",
                {"field": "reference", "got": self.reference, "count": len(self.slices)},
            )  # fmt: skip
        return self

    def footprint(self) -> int:
        """Count the matrices of the largest pair; plans are kept sparse."""
        return aligning(*sorted(one.spots for one in self.slices)[-2:])


class Placed(Strict):
    """One slice in the common frame."""

    ids: list[str] = Field(description="Names of the spots, in rows of the file.")
    aligned: Annotated[ArrayRef, Dims("n 2")] = Field(
        description="Coordinates in the common frame, in rows of the file."
    )
    rotation_degrees: float = Field(description="Counter-clockwise angle of its motion.")
    cumulative_degrees: float = Field(
        description="Sum of the angles of the alignments between it and the reference, unwrapped"
    )
    links: int = Field(description="Alignments between it and the reference.")
    reflected: bool = Field(description="Its motion turns it over.")


class Link(Strict):
    """The alignment of one pair of slices."""

    source: int = Field(description="Position of the slice that moved.")
    target: int = Field(description="Position of the slice that stayed.")
    plan: SparsePlan = Field(description="Coupling of spots, in rows of the files.")
    transform: Annotated[ArrayRef, Dims("3 3")] = Field(
        description="Matrix from the source's coordinates to the target's."
    )
    value: float = Field(description="Objective at the plan.")
    transport_cost: float = Field(description="Expression term.")
    distortion: float = Field(description="Geometry term.")
    label_accuracy: float | None = Field(description="Mass between equal labels, if both have any.")
    landmark_error_median: float | None = Field(description="In pitches, if both have landmarks.")
    mismatch: float = Field(
        description="Root mean square distance of matched spots in the common frame, in pitches "
        "of the reference."
    )
    status: str = Field(description="How the descent ended.")


class Cycle(Strict):
    """Two ways from one slice to another, compared."""

    first: int
    middle: int
    last: int
    error_median: float = Field(
        description="Median distance, in pitches of `last`, between where a spot of `first` is "
        "sent by way of `middle` and where it is sent at once"
    )
    error_mean: float = Field(description="Mean of the same distances.")
    motion_error: float = Field(
        description="Mean distance in pitches between the two motions of a spot of `first`"
    )


class Certificate(Strict):
    """What shows that plans are couplings, and that the motions belong together."""

    marginal_error: float = Field(description="Largest L1 error of a marginal of any plan.")
    frank_wolfe_gap: float | None = Field(
        description="Largest gap of any plan: 0 when all are stationary; null when interrupted"
    )
    composition_error: float | None = Field(
        description="Largest distance, in pitches of the reference, between returned coordinates "
        "and those that the motions of the pairs give, one after another; null for procrustes"
    )
    mismatch_composed: float = Field(
        description="Root mean square distance of matched spots under composed motions, pitches"
    )
    mismatch: float = Field(
        description="The same under the returned motions: procrustes never raises it"
    )
    procrustes_fall: float | None = Field(
        description="Relative fall of the squared mismatch in the last round; null elsewhere"
    )


class StackResult(Result):
    """All slices in the reference's frame, the motions, and how well they agree."""

    renders = ("png", "svg", "h5ad")

    slices: list[Placed]
    transforms: Annotated[ArrayRef, Dims("k 3 3")] = Field(
        description="One homogeneous matrix a slice, from original coordinates to `aligned`."
    )
    reference: int = Field(description="Position of the slice whose frame was kept.")
    pitch: float = Field(description="Median spacing of the reference: the unit of mismatches.")
    pairs: list[Link] = Field(description="Every alignment that was made.")
    cycles: list[Cycle] = Field(description="Every triangle among the pairs; empty for two slices.")
    certificate: Certificate


EXAMPLE = {
    "slices": [
        {"dataset": sample("section_1.h5ad"), "label_key": "domain", "landmark_key": "tissue"},
        {"dataset": sample("section_2.h5ad"), "label_key": "domain", "landmark_key": "tissue"},
    ],
}
