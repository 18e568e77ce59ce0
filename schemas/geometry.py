"""What a cost is: given as a matrix, or computed between two point clouds."""

from typing import Annotated, Literal

from pydantic import Field

from schemas.arrays import ArrayRef, Differentiable, Dims, Strict


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
    cost: Literal["sqeuclidean", "euclidean"] = Field(
        "sqeuclidean", description="`|x - y|^2` (not halved), or `|x - y|`."
    )


Geometry = Annotated[CostMatrix | PointClouds, Field(discriminator="kind")]


def sizes(geometry: CostMatrix | PointClouds) -> tuple[int, int]:
    """Count the source and the target points."""
    if isinstance(geometry, CostMatrix):
        return geometry.C.shape[0], geometry.C.shape[1]
    return geometry.x.shape[0], geometry.y.shape[0]
