"""Transport on the line and on the circle."""

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from schemas.arrays import ArrayRef, Differentiable, Dims, Request, Result, Strict
from schemas.measures import check_equal_masses, check_weights
from schemas.sparse import SparsePlan

BLOCK_BYTES = 8 * 4 * 2**20  # the dual constraint is checked in blocks of a million pairs


class LineRequest(Request):
    """Exact optimal transport between measures on the line or the circle.

    Minimises `sum P_ij |x_i - y_j|^p` over couplings P of a and b, by sorting.
    """

    x: Annotated[ArrayRef, Dims("n"), Differentiable()] = Field(description="Source points.")
    y: Annotated[ArrayRef, Dims("m"), Differentiable()] = Field(description="Target points.")
    a: Annotated[ArrayRef, Dims("n"), Differentiable()] | None = Field(
        None, description="Source weights, >= 0; null is uniform with mass 1."
    )
    b: Annotated[ArrayRef, Dims("m"), Differentiable()] | None = Field(
        None, description="Target weights, >= 0, of the same total; null is uniform with mass 1."
    )
    p: float = Field(
        2.0,
        description="Exponent of the distance, at least 1: below, plans in order are not optimal.",
        json_schema_extra={"minimum": 1},
    )
    space: Literal["line", "circle"] = Field(
        "line", description="Where points live; on the circle `|x - y|` is the shorter arc."
    )
    period: float = Field(
        1.0, gt=0, description="Length of the circle; points are taken modulo it. Line: not used."
    )

    @model_validator(mode="after")
    def _sensible(self) -> "LineRequest":
        if self.p < 1:
            raise PydanticCustomError(
                "infeasible-problem",
                "p is {p}: below 1 the cost is concave and no plan in order is best; "
                "ask transport.exact with a cost matrix",
                {"field": "p", "p": self.p},
            )
        check_weights("a", self.a)
        check_weights("b", self.b)
        check_equal_masses(self.a, self.b)
        return self

    def footprint(self) -> int:
        """Count a few staircases and one block of pairs."""
        return 8 * 24 * (self.x.shape[0] + self.y.shape[0]) + BLOCK_BYTES


class Certificate(Strict):
    """What proves the plan optimal: primal feasible, dual feasible, no gap."""

    marginal_error_a: float = Field(description="`|P 1 - a|_1`")
    marginal_error_b: float = Field(description="`|P^T 1 - b|_1`")
    dual_infeasibility: float = Field(
        description="largest `max(f_i + g_j - |x_i - y_j|^p, 0)`: how far from a valid bound"
    )
    pairs_checked: int = Field(
        description="pairs it was taken over: all n m up to 2e8, whole rows of them beyond"
    )
    duality_gap: float = Field(description="`value - <a, f> - <b, g>`")


class LineResult(Result):
    """An optimal coupling with at most n + m entries, and its potentials."""

    renders = ("png", "svg")

    plan: SparsePlan
    f: Annotated[ArrayRef, Dims("n")] = Field(description="Source potential, `<f, a> = 0`.")
    g: Annotated[ArrayRef, Dims("m")] = Field(description="Target potential.")
    value: Annotated[float, Differentiable()] = Field(
        description="The optimal `sum P_ij |x_i - y_j|^p`."
    )
    distance: float = Field(
        description="`value^(1/p)`: the Wasserstein distance when the mass is 1; mass^(1/p) times "
        "that of the normalised measures otherwise."
    )
    offset: float = Field(
        description="Mass of b that stays behind the cut at 0, signed; 0 on the line."
    )
    certificate: Certificate


EXAMPLE = {
    "x": [0.1, 0.4, 0.9],
    "y": [0.2, 0.95],
    "a": [0.5, 0.25, 0.25],
    "b": [0.5, 0.5],
    "space": "circle",
}
