"""Sliced transport: the mean of one-dimensional problems over directions."""

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from schemas.arrays import ArrayRef, Differentiable, Dims, Request, Result, Strict
from schemas.measures import check_equal_masses, check_weights

CHUNK_BYTES = 8 * 16 * 2**21  # arrays of one chunk of directions


class SlicedRequest(Request):
    """Sliced optimal transport: the mean over directions of transport between projections.

    Balanced, or with marginals that give way in every direction on their own (`suot`) or in all
    directions alike (`usot`). Time grows like points times their logarithm, times directions.
    """

    x: Annotated[ArrayRef, Dims("n d"), Differentiable()] = Field(description="Source points.")
    y: Annotated[ArrayRef, Dims("m d"), Differentiable()] = Field(description="Target points.")
    a: Annotated[ArrayRef, Dims("n"), Differentiable()] | None = Field(
        None, description="Source weights, >= 0; null is uniform with mass 1."
    )
    b: Annotated[ArrayRef, Dims("m"), Differentiable()] | None = Field(
        None,
        description="Target weights, >= 0; null is uniform with mass 1. Of the same total as a if "
        "balanced.",
    )
    p: float = Field(
        2.0,
        description="Exponent of the distance, at least 1.",
        json_schema_extra={"minimum": 1},
    )
    directions: int = Field(
        100,
        ge=1,
        le=10**6,
        description="Directions drawn from `seed`, uniformly; in dimension one there is one.",
    )
    notion: Literal["balanced", "suot", "usot"] = Field(
        "balanced",
        description="`balanced` keeps both marginals. `suot` (sliced unbalanced) is the mean of "
        "unbalanced problems, each with marginals of its own. `usot` (unbalanced sliced) has one "
        "pair of marginals for all directions, so that it tells which points are left out.",
    )
    rho_a: float | None = Field(
        None,
        gt=0,
        description="Price of a source marginal other than a, `rho_a KL(mu | a)`, in units of the "
        "cost; null keeps it exact. For `suot` and `usot`, which need one of the two.",
    )
    rho_b: float | None = Field(None, gt=0, description="Likewise for the target.")
    maximum: bool = Field(
        False,
        description="Also climb from the dearest direction to a local maximum (max-sliced, "
        "balanced only); otherwise `max_value` is the dearest direction drawn.",
    )
    tol: float = Field(
        1e-3,
        gt=0,
        description="Relative duality gap at which unbalanced problems end; balanced ones are "
        "solved directly.",
    )
    max_iter: int = Field(
        500, ge=1, le=10**6, description="Steps of the unbalanced problems before giving up."
    )

    @model_validator(mode="after")
    def _sensible(self) -> "SlicedRequest":
        check_weights("a", self.a)
        check_weights("b", self.b)
        given = [name for name in ("rho_a", "rho_b") if getattr(self, name) is not None]
        if self.p < 1:
            refuse("p", f"p is {self.p}: below 1 the cost is concave and no plan in order is best")
        if self.notion == "balanced":
            if given:
                refuse(given[0], "balanced keeps both marginals; ask suot or usot, or leave it out")
            check_equal_masses(self.a, self.b)
        elif not given:
            refuse("rho_a", f"{self.notion} needs rho_a or rho_b: both marginals would be exact")
        elif self.maximum:
            refuse(
                "maximum", f"there is no ascent for {self.notion}; leave it out, or ask balanced"
            )
        return self

    def footprint(self) -> int:
        """Count one chunk of directions, the directions, and the points."""
        points, d = self.x.shape[0] + self.y.shape[0], self.x.shape[1]
        return CHUNK_BYTES + 8 * (self.directions * (d + 1) + points * (4 * d + 400))


def refuse(field: str, reason: str) -> None:
    """Say which field makes the question impossible."""
    raise PydanticCustomError("infeasible-problem", "{reason}", {"field": field, "reason": reason})


class Certificate(Strict):
    """What tells how far to trust the mean."""

    low: float = Field(description="lower end of the normal 95 % interval of the mean")
    high: float = Field(description="its upper end; directions are drawn independently")
    smallest: float = Field(description="the cheapest direction")
    largest: float = Field(description="the dearest of those drawn")
    count: int = Field(description="directions that were solved")
    exact: bool = Field(description="dimension one: one direction is all, nothing is sampled")
    duality_gap: float = Field(
        description="mean gap of the one-dimensional problems: at these directions the optimum "
        "is within it"
    )


class SlicedResult(Result):
    """The mean over directions, each of them, and how far to trust it."""

    renders = ("png", "svg")

    value: Annotated[float, Differentiable()] = Field(
        description="Mean over directions of the cost `sum P_ij |u_i - v_j|^p` (`W_p^p`), with "
        "the price of marginals that gave way."
    )
    distance: float = Field(description="`value^(1/p)`: the sliced distance if balanced, mass 1.")
    std_error: float = Field(
        description="Standard error of the mean over directions; 0 for a single direction. For "
        "`usot` as if marginals were given."
    )
    slices: Annotated[ArrayRef, Dims("L")] = Field(
        description="Cost by direction; for `usot` without the price of the marginals."
    )
    theta: Annotated[ArrayRef, Dims("L d")] = Field(description="The directions, of length 1.")
    marginal_a: Annotated[ArrayRef, Dims("n")] = Field(
        description="What leaves each point; for `suot` the mean over directions."
    )
    marginal_b: Annotated[ArrayRef, Dims("m")] = Field(description="What arrives, likewise.")
    max_value: float = Field(
        description="Cost of the dearest direction found: a lower bound of max-sliced transport."
    )
    max_direction: Annotated[ArrayRef, Dims("d")] = Field(description="That direction.")
    certificate: Certificate


EXAMPLE = {
    "x": [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]],
    "y": [[1.0, 1.0], [0.5, 0.0]],
    "directions": 20,
}
