"""Partial optimal transport, exact or entropic."""

from typing import Annotated

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from schemas.arrays import ArrayRef, Differentiable, Dims, Request, Result, Strict
from schemas.geometry import Geometry, sizes
from schemas.measures import MASS_TOLERANCE, check_weights
from schemas.sparse import SparsePlan


class PartialRequest(Request):
    """Partial optimal transport: the cheapest way to move a given mass.

    Minimises `<P, C>`, plus `epsilon KL(P | a b^T)` where epsilon is given, over P >= 0 with
    `P 1 <= a`, `P^T 1 <= b` and total `mass`.
    """

    geometry: Geometry = Field(description="The cost, as a matrix or between two point clouds.")
    a: Annotated[ArrayRef, Dims("n"), Differentiable()] | None = Field(
        None, description="Source weights, >= 0; null is uniform with mass 1."
    )
    b: Annotated[ArrayRef, Dims("m"), Differentiable()] | None = Field(
        None, description="Target weights, >= 0, of any total; null is uniform with mass 1."
    )
    mass: float = Field(
        gt=0, description="What travels: more than none, at most the smaller of both totals."
    )
    epsilon: float | None = Field(
        None, gt=0, description="Entropic strength, in units of the cost; null is the exact form."
    )
    tol: float = Field(
        1e-6,
        gt=0,
        description="Of the entropic form: error of the row sums, as a share of the mass, at which "
        "to stop.",
    )
    max_iter: int | None = Field(
        None,
        ge=1,
        le=10**12,
        description="Pivots of the network simplex, or sweeps of the entropic form, before giving "
        "up; null is 10,000,000, or 10,000.",
    )

    @model_validator(mode="after")
    def _masses(self) -> "PartialRequest":
        check_weights("a", self.a)
        check_weights("b", self.b)
        mass_a, mass_b = (1.0 if w is None else w.facts.total or 0.0 for w in (self.a, self.b))
        if self.mass > min(mass_a, mass_b) * (1 + MASS_TOLERANCE):
            raise PydanticCustomError(
                "infeasible-problem",
                "at most the smaller total can travel; a has {mass_a}, b has {mass_b}",
                {"field": "mass", "mass_a": mass_a, "mass_b": mass_b},
            )
        return self

    def footprint(self) -> int:
        """Count the cost, with its dummies, the reduced cost and the simplex's own arcs.

        The entropic form holds thirteen matrices when most are there: costs, kernel, Newton step.
        """
        n, m = sizes(self.geometry)
        return 8 * (6 if self.epsilon is None else 14) * (n + 1) * (m + 1)


class Certificate(Strict):
    """What proves the plan optimal: primal feasible, dual feasible, no gap."""

    excess_a: float = Field(description="`sum max(P 1 - a, 0)`: mass beyond the source weights")
    excess_b: float = Field(description="`sum max(P^T 1 - b, 0)`, likewise")
    mass_error: float = Field(description="`|sum P - mass|`")
    dual_infeasibility: float = Field(
        description="`max(f_i + g_j + lam - C_ij, f_i, g_j, 0)`: how far the potentials are from a "
        "valid bound"
    )
    duality_gap: float = Field(description="`<P, C> - <a, f> - <b, g> - lam mass`")


class PartialResult(Result):
    """An optimal plan of the given mass, what it leaves behind, and its potentials."""

    renders = ("png", "svg")

    plan: SparsePlan | None = Field(description="The plan of the exact form, else null.")
    dense: Annotated[ArrayRef, Dims("n m")] | None = Field(
        description="The plan of the entropic form, else null."
    )
    unmatched_a: Annotated[ArrayRef, Dims("n")] = Field(
        description="Mass that stays at each source point: `a - P 1`."
    )
    unmatched_b: Annotated[ArrayRef, Dims("m")] = Field(
        description="Mass that nothing reaches at each target point: `b - P^T 1`."
    )
    f: Annotated[ArrayRef, Dims("n")] = Field(
        description="Source potential, <= 0; zero where some mass stays."
    )
    g: Annotated[ArrayRef, Dims("m")] = Field(description="Target potential, likewise.")
    lam: float = Field(
        description="Price of mass: the slope of `value` in `mass`, in units of the cost."
    )
    value: Annotated[float, Differentiable()] = Field(
        description="The objective: `<P, C>`, with the entropic term where there is one."
    )
    transport_cost: Annotated[float, Differentiable()] = Field(
        description="`<P, C>`; its gradient exists in the exact form."
    )
    certificate: Certificate


EXAMPLE = {
    "geometry": {"kind": "points", "x": [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]],
                 "y": [[1.0, 1.0], [0.5, 0.0]]},
    "a": [0.5, 0.25, 0.25],
    "b": [0.5, 0.5],
    "mass": 0.75,
}  # fmt: skip
