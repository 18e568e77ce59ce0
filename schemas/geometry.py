"""What a cost is: given as a matrix, or computed between two point clouds."""

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from schemas.arrays import ArrayRef, Differentiable, Dims, Strict

NEEDS = {"lp": "p", "wfr": "delta"}


class CostMatrix(Strict):
    """A cost given entry by entry."""

    kind: Literal["cost"] = "cost"
    C: Annotated[ArrayRef, Dims("n m"), Differentiable()] = Field(
        description="Price of moving one unit of mass from source point i to target point j."
    )


class PointClouds(Strict):
    """Two clouds of points and a cost between them."""

    kind: Literal["points"] = "points"
    x: Annotated[ArrayRef, Dims("n d"), Differentiable()] = Field(description="Source points.")
    y: Annotated[ArrayRef, Dims("m d"), Differentiable()] = Field(description="Target points.")
    cost: Literal["sqeuclidean", "euclidean", "cosine", "lp", "wfr"] = Field(
        "sqeuclidean",
        description="`|x - y|^2` (not halved); `|x - y|`; `1 - <x, y>/(|x| |y|)`; "
        "`(sum_k |x_k - y_k|^p)^(1/p)`; or `-log cos^2(min(|x - y|/(2 delta), pi/2))`, of "
        "Wasserstein-Fisher-Rao, which forbids pairs from the distance `pi delta` on.",
    )
    p: float | None = Field(
        None, ge=1, le=1000, description="Exponent of `lp`, at least 1; null for other costs."
    )
    delta: float | None = Field(
        None, gt=0, description="Length of `wfr` in units of the points; null for other costs."
    )

    @model_validator(mode="after")
    def _parameters(self) -> "PointClouds":
        for cost, name in NEEDS.items():
            given = getattr(self, name) is not None
            if given != (self.cost == cost):
                text = "cost {cost} takes no {name}" if given else "cost {cost} needs {name}"
                raise PydanticCustomError(
                    "validation", text, {"field": name, "cost": self.cost, "name": name}
                )
        return self


Geometry = Annotated[CostMatrix | PointClouds, Field(discriminator="kind")]


def sizes(geometry: CostMatrix | PointClouds) -> tuple[int, int]:
    """Count the source and the target points."""
    if isinstance(geometry, CostMatrix):
        return geometry.C.shape[0], geometry.C.shape[1]
    return geometry.x.shape[0], geometry.y.shape[0]
