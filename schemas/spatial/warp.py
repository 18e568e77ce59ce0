"""A tissue slice bent onto another."""

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from schemas.arrays import ArrayRef, Dims, Request, Result, Strict
from schemas.samples import sample
from schemas.sparse import SparsePlan
from schemas.spatial.expression import Expression
from schemas.spatial.slice import Slice, aligning

LARGEST_MASS = 1e150
SPLINE = 6000  # spots that the spline is laid through at most


class WarpRequest(Request):
    """Bend one tissue slice onto another, as a plan between them asks.

    A rigid motion T and a displacement u: spot i goes to `T z_i + u(T z_i)`, where u is a smooth
    fit to the barycentres of the spots' mass, or these barycentres themselves.
    """

    source: Slice = Field(description="The slice that moves.")
    target: Slice = Field(description="The slice that stays; its frame and unit are kept.")
    plan: SparsePlan | None = Field(
        None,
        description="Plan between the rows of both files, as spatial.align returns it; null "
        "aligns the slices first.",
    )
    method: Literal["thin_plate", "gaussian", "barycentric"] = Field(
        "thin_plate",
        description="thin_plate: smoothing spline; gaussian: weighted mean of the displacements "
        "nearby; barycentric: each spot goes where its mass goes, which shrinks the tissue when "
        "the plan is diffuse.",
    )
    lam: float = Field(
        1.0, gt=0, le=1e12,
        description="Strength of the smoothing: near 0 the spline passes through all "
        "barycentres, a large value leaves an affine map (thin_plate) or the motion (gaussian).",
    )  # fmt: skip
    bandwidth: float = Field(
        3.0, ge=0.1, le=1e6,
        description="Length that is smoothed over, in pitches: width of the Gaussian, or, with "
        "lam 1, wavelength over 2 pi that the spline halves.",
    )  # fmt: skip
    alpha: float = Field(
        0.1, ge=0, le=1,
        description="Of the alignment: 0 compares expression alone, 1 geometry alone.",
    )  # fmt: skip
    expression: Expression = Field(default_factory=Expression)
    scale: Literal["auto", "pitch", "none"] = Field(
        "auto",
        description="none keeps lengths, pitch scales the source's spacing to the target's, auto "
        "is none when both spacings lie in [1/2, 2].",
    )
    allow_reflection: bool = Field(False, description="Turn the source over where that fits.")

    @model_validator(mode="after")
    def _plan(self) -> "WarpRequest":
        if self.plan is None:
            return self
        facts = self.plan.mass.facts
        if (facts.low or 0.0) < 0 or not facts.total or facts.total > LARGEST_MASS:
            raise PydanticCustomError(
                "infeasible-problem", "masses are not negative and have a sum, here from {low}, "
                "sum {total}",
                {"field": "plan.mass", "low": facts.low, "total": facts.total},
            )  # fmt: skip
        return self

    def footprint(self) -> int:
        """Count the matrix of the spline, and those of an alignment where no plan is given."""
        spline = 8 * 4 * min(self.source.spots, SPLINE) ** 2
        aligned = aligning(self.source.spots, self.target.spots) if self.plan is None else 0
        return super().footprint() + spline + aligned


class Certificate(Strict):
    """What shows that the map bends without folding, and how far it goes."""

    folds: int = Field(description="Places looked at where the map turns the plane over.")
    places: int = Field(
        description="Places where the Jacobian was looked at: a grid over the tissue, or the "
        "triangles between spots for barycentric"
    )
    lowest_jacobian: float | None = Field(
        description="Smallest determinant there, against that of the motion: 1 where areas are "
        "kept, negative in a fold; null for spots on one line"
    )
    rigid_error: float = Field(
        description="Root mean square distance of barycentres from the motion alone, in pitches"
    )
    warp_error: float = Field(description="The same from the warped places.")
    equation_error: float | None = Field(
        description="Largest error of the spline's equations, in pitches; null for other methods"
    )


class WarpResult(Result):
    """Where every spot goes, by the motion alone and with the displacement."""

    renders = ("png", "svg", "h5ad")

    ids: list[str] = Field(description="Names of the source's spots, in rows of the file.")
    warped: Annotated[ArrayRef, Dims("n 2")] = Field(description="Places in the target's frame.")
    aligned: Annotated[ArrayRef, Dims("n 2")] = Field(description="Places by the motion alone.")
    displacement: Annotated[ArrayRef, Dims("n 2")] = Field(
        description="`warped - aligned`, in the target's unit."
    )
    transform: Annotated[ArrayRef, Dims("3 3")] = Field(
        description="Matrix that maps source coordinates to `aligned`."
    )
    mass: Annotated[ArrayRef, Dims("n")] = Field(
        description="Mass of each spot in the plan; where it is 0 the place is interpolated."
    )
    interpolated: int = Field(description="Spots without mass.")
    pitch: float = Field(description="Spacing of the moved spots, in the target's unit.")
    hull_ratio: float | None = Field(
        description="Area of the convex hull of warped spots over that of aligned spots, for "
        "spots with mass; null when these lie on one line"
    )
    barycentric_hull_ratio: float | None = Field(
        description="The same for the barycentres: below 1 a diffuse plan shrinks the tissue"
    )
    plan: SparsePlan = Field(description="The plan that was followed, in rows of the files.")
    certificate: Certificate


EXAMPLE = {
    "source": {"dataset": sample("section_1.h5ad")},
    "target": {"dataset": sample("section_2.h5ad")},
}
