"""One consensus slice of several."""

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from schemas.arrays import ArrayRef, Dims, Request, Result, Strict
from schemas.samples import sample
from schemas.sparse import SparsePlan
from schemas.spatial.expression import Expression
from schemas.spatial.slice import Slice, aligning


class CenterRequest(Request):
    """Compute the consensus of several tissue slices: one slice of low-rank expression.

    Minimises `sum_k w_k [(1 - alpha) sum_ij P_ij KL(slice spot j || centre spot i) + alpha GW]`
    over couplings and over non-negative factors W H of the centre's gene proportions.
    """

    slices: list[Slice] = Field(min_length=1, max_length=200, description="The slices.")
    weights: list[Annotated[float, Field(ge=0, le=1e9)]] | None = Field(
        None, description="Weight of each slice, scaled to sum to 1; null weighs all alike."
    )
    rank: int = Field(15, ge=1, le=500, description="Number of expression programmes.")
    template: int | None = Field(
        None,
        ge=0,
        description="Position in `slices` (from 0) of the slice that gives the centre its spots; "
        "null tries each and keeps the lowest objective.",
    )
    alpha: float = Field(
        0.1, ge=0, le=1, description="0 compares expression alone, 1 geometry alone."
    )
    expression: Expression = Field(default_factory=Expression)
    scale: Literal["auto", "pitch", "none"] = Field(
        "auto",
        description="Unit of distances: none takes coordinates as they are, pitch divides each "
        "slice by its median spacing, auto is none when all spacings lie in [1/2, 2].",
    )
    tol: float = Field(
        3e-4, gt=0, lt=1, description="Stop when a round lowers the objective by a smaller share."
    )
    max_iter: int = Field(30, ge=1, le=10_000, description="Rounds of plans and factors.")

    @model_validator(mode="after")
    def _fits(self) -> "CenterRequest":
        count = len(self.slices)
        if self.template is not None and self.template >= count:
            raise PydanticCustomError(
                "validation", "template is {got}; there are {count} slices, counted from 0",
                {"field": "template", "got": self.template, "count": count},
            )  # fmt: skip
        if self.weights is not None and len(self.weights) != count:
            raise PydanticCustomError(
                "validation", "{got} weights for {count} slices",
                {"field": "weights", "got": len(self.weights), "count": count},
            )  # fmt: skip
        if self.weights is not None and sum(self.weights) <= 0:
            raise PydanticCustomError("validation", "all weights are 0", {"field": "weights"})
        if self.expression.dissimilarity != "kl":
            raise PydanticCustomError(
                "validation", "the centre is fitted by kl; {got} is for pairs of slices",
                {"field": "expression.dissimilarity", "got": self.expression.dissimilarity},
            )  # fmt: skip
        return self

    def footprint(self) -> int:
        """Count the matrices of the largest pair, and a plan for each slice."""
        largest = max(one.spots for one in self.slices)
        return aligning(largest, largest) + 8 * largest * sum(one.spots for one in self.slices)


class Part(Strict):
    """How one slice takes part in the centre."""

    plan: SparsePlan = Field(description="From spots of the centre to rows of the slice's file.")
    transform: Annotated[ArrayRef, Dims("3 3")] = Field(
        description="Rigid motion from the slice's coordinates to the centre's."
    )
    weight: float = Field(description="Its weight; all sum to 1.")
    value: float = Field(description="Its objective.")
    transport_cost: float = Field(description="Expression term.")
    distortion: float = Field(description="Geometry term.")


class Tried(Strict):
    """What became of one template."""

    template: int
    value: float = Field(description="Objective that was reached.")
    iterations: int
    status: str


class Certificate(Strict):
    """What shows that one function was lowered, and how far its parts are from their best."""

    marginal_error: float = Field(description="Largest L1 error of a marginal of any plan.")
    largest_rise: float = Field(
        description="Largest rise of the objective in any half-step: rounding when monotone"
    )
    value_difference: float = Field(
        description="Objective of the iteration minus objective recomputed from what is returned"
    )
    row_sum_error: float = Field(description="Largest distance of a row sum of W H from 1.")
    frank_wolfe_gap: float = Field(
        description="Weighted sum of the gaps of all plans: what a linear step could still gain"
    )
    factor_loss: float = Field(
        description="Mean KL(B || W H) of a spot, B the average expression that the plans carry: "
        "what the rank leaves out"
    )


class CenterResult(Result):
    """The consensus slice, the couplings with each slice, and what was tried."""

    renders = ("png", "svg", "h5ad")

    template: int = Field(description="The slice that gave the spots.")
    ids: list[str] = Field(description="Names of the centre's spots, those of the template.")
    kept: Annotated[ArrayRef, Dims("n")] = Field(description="Their rows in the template's file.")
    coordinates: Annotated[ArrayRef, Dims("n 2")] = Field(
        description="Their places, in the template's unit."
    )
    genes: list[str] = Field(description="Genes that all slices share, in the first one's order.")
    W: Annotated[ArrayRef, Dims("n r")] = Field(
        description="Share of each programme in each spot; rows sum to 1."
    )
    H: Annotated[ArrayRef, Dims("r g")] = Field(
        description="Gene proportions of each programme; rows sum to 1. W H is the expression."
    )
    value: float = Field(description="Objective, recomputed from the formula.")
    trace: Annotated[ArrayRef, Dims("t")] = Field(
        description="Objective at the start and after each half-step, plans then factors."
    )
    parts: list[Part] = Field(description="One a slice, in the order of the question.")
    tried: list[Tried] = Field(description="Every template, best first.")
    certificate: Certificate


EXAMPLE = {
    "slices": [
        {"dataset": sample("section_1.h5ad"), "label_key": "domain"},
        {"dataset": sample("section_2.h5ad"), "label_key": "domain"},
    ],
    "rank": 4,
    "template": 0,
    "tol": 1e-3,
}
