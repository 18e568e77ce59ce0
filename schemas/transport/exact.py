"""Exact optimal transport."""

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from schemas.arrays import ArrayRef, Differentiable, Dims, Request, Result, Strict
from schemas.geometry import CostMatrix, Geometry, sizes
from schemas.measures import check_equal_masses, check_weights
from schemas.sparse import SparsePlan

# What algorithms/transport/exact.py chooses by: pairs from which no matrix is held, and costs.
SPARSE_FROM = 1_500_000
ON_LINE = ("sqeuclidean", "euclidean", "lp")
ON_ARCS = ("sqeuclidean", "euclidean")
# Bytes a point: arcs, their copies inside the simplex, blocks of the search for a first plan.
BYTES_A_POINT, BYTES_ANYHOW = 6_000, 100_000_000


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
    method: Literal["auto", "simplex", "assignment", "line", "sparse"] = Field(
        "auto",
        description="`auto` chooses by shape, cost and size. `simplex` holds the n x m matrix and "
        "serves always; `assignment` needs as many targets as sources, of equal weight; `line` "
        "needs points in one dimension; `sparse` needs points and a (squared) Euclidean cost, and "
        "takes memory linear in the points.",
    )
    max_iter: int = Field(
        10_000_000,
        ge=1,
        le=10**12,
        description="Pivots of one solve by network simplex before giving up.",
    )

    @model_validator(mode="after")
    def _masses(self) -> "ExactRequest":
        check_weights("a", self.a)
        check_weights("b", self.b)
        check_equal_masses(self.a, self.b)
        return self

    @model_validator(mode="after")
    def _serves(self) -> "ExactRequest":
        n, m = sizes(self.geometry)
        line, arcs = self._without_matrix()
        lacks = {
            "line": not line and "points in one dimension and a cost that grows with distance",
            "assignment": n != m and "as many targets as sources, all of equal weight",
            "sparse": not arcs and "points, and the cost sqeuclidean or euclidean",
        }.get(self.method)
        if lacks:
            raise PydanticCustomError(
                "validation", "{method} needs {lacks}; auto chooses what serves",
                {"field": "method", "method": self.method, "lacks": lacks},
            )  # fmt: skip
        return self

    def footprint(self) -> int:
        """Count what the method holds: a cost, a reduced one and the simplex's arcs, or points."""
        n, m = sizes(self.geometry)
        line, arcs = self._without_matrix()
        auto = line or (arcs and n * m >= SPARSE_FROM)
        if self.method in ("line", "sparse") or (self.method == "auto" and auto):
            assert not isinstance(self.geometry, CostMatrix)
            d = self.geometry.x.shape[1]
            return BYTES_ANYHOW + (n + m) * (BYTES_A_POINT + 8 * 16 * d)
        return 8 * 5 * n * m

    def _without_matrix(self) -> tuple[bool, bool]:
        """Tell which methods apply that hold no matrix: by order on a line, by arcs."""
        if isinstance(self.geometry, CostMatrix):
            return False, False
        cost, d = self.geometry.cost, self.geometry.x.shape[1]
        return d == 1 and cost in ON_LINE, cost in ON_ARCS


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
    method: str = Field(description="What was taken: `simplex`, `assignment`, `line`, `sparse`.")
    dual_unique: bool = Field(
        description="the potentials are shown to be unique up to a shift, so `value` is "
        "differentiable in a, b"
    )
    certificate: Certificate


EXAMPLE = {
    "geometry": {"kind": "points", "x": [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]],
                 "y": [[1.0, 1.0], [0.5, 0.0]]},
    "a": [0.5, 0.25, 0.25],
    "b": [0.5, 0.5],
}  # fmt: skip
