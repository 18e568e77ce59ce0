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

    Minimises `sum P_ij |x_i - y_j|^p` over couplings P of a and b, by sorting; with `rho_a` or
    `rho_b` a marginal may give way, at the price `rho KL(P 1 | a)`.
    """

    x: Annotated[ArrayRef, Dims("n"), Differentiable()] = Field(description="Source points.")
    y: Annotated[ArrayRef, Dims("m"), Differentiable()] = Field(description="Target points.")
    a: Annotated[ArrayRef, Dims("n"), Differentiable()] | None = Field(
        None, description="Source weights, >= 0; null is uniform with mass 1."
    )
    b: Annotated[ArrayRef, Dims("m"), Differentiable()] | None = Field(
        None,
        description="Target weights, >= 0; null is uniform with mass 1. Of the same total as a, "
        "unless a marginal may give way.",
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

    rho_a: float | None = Field(
        None,
        gt=0,
        description="Price of a source marginal other than a, `rho_a KL(P 1 | a)`, in units of the "
        "cost; null keeps it exact. On the line only.",
    )
    rho_b: float | None = Field(
        None, gt=0, description="Likewise for the target, independently of `rho_a`."
    )
    tol: float = Field(
        1e-8,
        gt=0,
        description="Where marginals give way, stop when the duality gap is below this share of "
        "the value. Balanced problems are solved directly.",
    )
    max_iter: int = Field(
        100, ge=1, le=10**6, description="Steps before giving up, where marginals give way."
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
        relaxed = [name for name in ("rho_a", "rho_b") if getattr(self, name) is not None]
        if not relaxed:
            check_equal_masses(self.a, self.b)
        elif self.space == "circle":
            raise PydanticCustomError(
                "infeasible-problem",
                "marginals give way on the line only; leave {field} out on the circle, or ask "
                "transport.sinkhorn with a cost matrix",
                {"field": relaxed[0]},
            )
        return self

    def footprint(self) -> int:
        """Count a few staircases and one block of pairs; a sparse factor if marginals give way."""
        points = self.x.shape[0] + self.y.shape[0]
        exact = self.rho_a is None and self.rho_b is None
        return 8 * (24 if exact else 400) * points + BLOCK_BYTES


class Certificate(Strict):
    """What proves the plan optimal: primal feasible, dual feasible, no gap."""

    marginal_error_a: float = Field(
        description="`|P 1 - a|_1`; where a may give way, `|P 1 - a e^{-f/rho_a}|_1`, which "
        "vanishes at the optimum"
    )
    marginal_error_b: float = Field(description="`|P^T 1 - b|_1`, likewise")
    dual_infeasibility: float = Field(
        description="largest `max(f_i + g_j - |x_i - y_j|^p, 0)`: how far from a valid bound"
    )
    pairs_checked: int = Field(
        description="pairs it was taken over: all n m up to 2e8, whole rows of them beyond"
    )
    duality_gap: float = Field(
        description="`value` less the dual value: `<a, f>`, or `rho_a <a, 1 - e^{-f/rho_a}>` where "
        "a may give way, plus the same of b; the optimum is within it"
    )


class LineResult(Result):
    """An optimal coupling with at most n + m entries, and its potentials."""

    renders = ("png", "svg")

    plan: SparsePlan
    marginal_a: Annotated[ArrayRef, Dims("n")] = Field(description="What leaves: `P 1`.")
    marginal_b: Annotated[ArrayRef, Dims("m")] = Field(description="What arrives: `P^T 1`.")
    f: Annotated[ArrayRef, Dims("n")] = Field(
        description="Source potential; `<f, a> = 0` where both marginals are exact."
    )
    g: Annotated[ArrayRef, Dims("m")] = Field(description="Target potential.")
    value: Annotated[float, Differentiable()] = Field(
        description="The optimal `sum P_ij |x_i - y_j|^p`, with the price of marginals that gave "
        "way."
    )
    transport_cost: float = Field(description="`sum P_ij |x_i - y_j|^p` alone.")
    mass: float = Field(description="What travels: `sum P_ij`.")
    distance: float = Field(
        description="`value^(1/p)`. Balanced: the Wasserstein distance when the mass is 1; "
        "mass^(1/p) times that of the normalised measures otherwise. No metric else."
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
