"""Exact optimal transport."""

from typing import Annotated

from pydantic import Field, model_validator

from schemas.arrays import ArrayRef, Differentiable, Dims, Request, Result, Strict
from schemas.geometry import Geometry, sizes
from schemas.measures import check_equal_masses, check_weights
from schemas.sparse import SparsePlan


class ExactRequest(Request):
    """Exact optimal transport between two measures of equal mass.

    Minimises `<P, C>` over couplings P of a and b.
    """

    geometry: Geometry = Field(description="The cost, as a matrix or between two point clouds.")
    a: Annotated[ArrayRef, Dims("n"), Differentiable()] | None = Field(
        None, description="Source weights, >= 0; null is uniform with mass 1."
    )
    b: Annotated[ArrayRef, Dims("m"), Differentiable()] | None = Field(
        None, description="Target weights, >= 0, of the same total; null is uniform with mass 1."
    )
    max_iter: int = Field(
        10_000_000, ge=1, le=10**12, description="Pivots of the network simplex before giving up."
    )

    @model_validator(mode="after")
    def _masses(self) -> "ExactRequest":
        check_weights("a", self.a)
        check_weights("b", self.b)
        check_equal_masses(self.a, self.b)
        return self

    def footprint(self) -> int:
        """Count the cost, the reduced cost and the simplex's own arcs."""
        n, m = sizes(self.geometry)
        return 8 * 5 * n * m


class Certificate(Strict):
    """What proves the plan optimal: primal feasible, dual feasible, no gap."""

    marginal_error_a: float = Field(description="`|P 1 - a|_1`")
    marginal_error_b: float = Field(description="`|P^T 1 - b|_1`")
    dual_infeasibility: float = Field(
        description="`max(f_i + g_j - C_ij, 0)`: how far the potentials are from a valid bound"
    )
    duality_gap: float = Field(description="`<P, C> - <a, f> - <b, g>`")


class ExactResult(Result):
    """An optimal coupling with at most n + m - 1 entries, and its potentials."""

    renders = ("png", "svg")

    plan: SparsePlan
    f: Annotated[ArrayRef, Dims("n")] = Field(description="Source potential, `<f, a> = 0`.")
    g: Annotated[ArrayRef, Dims("m")] = Field(description="Target potential.")
    value: Annotated[float, Differentiable()] = Field(description="The optimal `<P, C>`.")
    transport_cost: Annotated[float, Differentiable()] = Field(description="The same.")
    method: str = Field(description="`simplex`, `assignment` or `line`: chosen by shape.")
    dual_unique: bool = Field(
        description="the potentials are unique up to a shift, so `value` is differentiable in a, b"
    )
    certificate: Certificate


EXAMPLE = {
    "geometry": {"kind": "points", "x": [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]],
                 "y": [[1.0, 1.0], [0.5, 0.0]]},
    "a": [0.5, 0.25, 0.25],
    "b": [0.5, 0.5],
}  # fmt: skip
