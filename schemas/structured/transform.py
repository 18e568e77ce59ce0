"""New points through a learnt map."""

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from schemas.arrays import ArrayRef, Differentiable, Dims, Request, Result, Strict
from schemas.measures import check_weights


class TransformRequest(Request):
    """Apply the map of structured.match to new points, and bring annotations of the targets back.

    A point x goes to `sum_j w_j y_j`, `w_j` proportional to `b_j exp((g_j - c(x, y_j)) / epsilon)`,
    c the cost of the match. Give what the match was asked and what it answered; for the way back
    exchange the sides: the map transposed, f for g.
    """

    points: Annotated[ArrayRef, Dims("k d"), Differentiable()] = Field(
        description="New source points, in the units of the x of the match."
    )
    y: Annotated[ArrayRef, Dims("m e")] = Field(description="Target points of the match.")
    map: Annotated[ArrayRef, Dims("e d")] = Field(description="`map` of the match.")
    g: Annotated[ArrayRef, Dims("m")] = Field(description="`g` of the match.")
    epsilon: float = Field(
        ge=0,
        description="`epsilon` of the answer of the match. 0: a point goes to one target.",
    )  # fmt: skip
    b: Annotated[ArrayRef, Dims("m")] | None = Field(
        None, description="Target weights of the match; null is uniform."
    )
    center_x: Annotated[ArrayRef, Dims("d")] | None = Field(
        None, description="`center_x` of the match; null is 0."
    )
    center_y: Annotated[ArrayRef, Dims("e")] | None = Field(
        None, description="`center_y` of the match; null is 0."
    )
    scale_x: Annotated[ArrayRef, Dims("d")] | None = Field(
        None, description="`scale_x` of the match, > 0; null is 1."
    )
    scale_y: Annotated[ArrayRef, Dims("e")] | None = Field(
        None, description="`scale_y` of the match, > 0; null is 1."
    )
    standardize: Literal["none", "zscore", "l2rows"] = Field(
        "none", description="As in the match; the scales carry what zscore did."
    )
    scaling: Literal["unit", "gw_ip", "gw_se"] = Field(
        "unit", description="As in the match; gw_se has a cost of norms as well."
    )
    points_shared: Annotated[ArrayRef, Dims("k q")] | None = Field(
        None, description="Shared features of the new points, where the match had some."
    )
    y_shared: Annotated[ArrayRef, Dims("m q")] | None = Field(
        None, description="Shared features of the targets."
    )
    shared_cost: Literal["sqeuclidean", "inner"] = Field(
        "sqeuclidean", description="As in the match."
    )
    alpha: float = Field(1.0, ge=0, le=1, description="As in the match; 1 without shared features.")
    annotations: Annotated[ArrayRef, Dims("m c")] | None = Field(
        None, description="Anything known of the targets, to be averaged for each point."
    )
    labels: Annotated[ArrayRef, Dims("m")] | None = Field(
        None, description="Integer labels of the targets, below 0 for none, to be transferred."
    )

    @model_validator(mode="after")
    def _suits(self) -> "TransformRequest":
        check_weights("b", self.b)
        for field, scale in (("scale_x", self.scale_x), ("scale_y", self.scale_y)):
            if scale is not None and (scale.facts.low or 0.0) <= 0:
                raise _refused(field, "scales are positive")
        if (self.points_shared is None) != (self.y_shared is None):
            missing = "points_shared" if self.points_shared is None else "y_shared"
            raise _refused(missing, "give shared features of both sides, or of neither")
        if (self.y_shared is None) != (self.alpha == 1):
            raise _refused("alpha", "alpha < 1 and shared features go together")
        if self.labels is not None and self.labels.dtype not in ("int64", "int32", "uint8"):
            raise _refused("labels", "labels are integers")
        return self

    def footprint(self) -> int:
        """Count the inputs, and blocks of weights."""
        return 2 * super().footprint() + 8 * 4 * (1 << 22) + 8 * self.g.shape[0]


def _refused(field: str, text: str) -> PydanticCustomError:
    return PydanticCustomError("validation", "{text}", {"field": field, "text": text})


class Certificate(Strict):
    """What shows how sharply points were placed."""

    normalisation_error: float = Field(
        description="how far the weights of a point are from adding up to 1, at most"
    )
    effective_targets: float = Field(
        description="mean number of targets that a point goes to, effectively: 1 is sharp, m vague"
    )
    largest_share: float = Field(description="mean of the largest weight of a point")


class TransformResult(Result):
    """Where points went, and what was carried over to them."""

    renders = ("png", "svg")

    images: Annotated[ArrayRef, Dims("k e"), Differentiable()] = Field(
        description="Where the points go, in the units of y. For epsilon 0 derivatives are 0."
    )
    annotations: Annotated[ArrayRef, Dims("k c")] | None = Field(
        description="The annotations, averaged with the same weights; null without any."
    )
    labels: Annotated[ArrayRef, Dims("k")] | None = Field(
        description="Label of most weight, of equal ones the smallest; -1 where none has any."
    )
    confidence: Annotated[ArrayRef, Dims("k")] | None = Field(
        description="Its share of the labelled weight, in [0, 1]."
    )
    spread: Annotated[ArrayRef, Dims("k")] = Field(
        description="Number of targets that a point goes to, effectively: exp of the entropy."
    )
    certificate: Certificate


EXAMPLE = {
    "points": [[0.0, 0.5], [1.5, 0.0]],
    "y": [[0.0, 0.0, 1.0], [2.0, 0.0, 1.0], [0.0, 2.0, 1.0]],
    "map": [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]],
    "g": [0.0, -1.0, -1.0],
    "epsilon": 0.5,
    "labels": [0, 1, 1],
}
