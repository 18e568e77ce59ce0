"""Entropic optimal transport."""

from typing import Annotated

from pydantic import Field, model_validator

from schemas.arrays import ArrayRef, Differentiable, Dims, Request, Result, Strict
from schemas.geometry import Geometry, sizes
from schemas.measures import check_equal_masses, check_weights


class SinkhornRequest(Request):
    """Entropic optimal transport between two measures of equal mass.

    Minimises `<P, C> + epsilon KL(P | a b^T)` over couplings P of a and b.
    """

    geometry: Geometry = Field(description="The cost, as a matrix or between two point clouds.")
    a: Annotated[ArrayRef, Dims("n"), Differentiable()] | None = Field(
        None, description="Source weights, >= 0; null is uniform with mass 1."
    )
    b: Annotated[ArrayRef, Dims("m"), Differentiable()] | None = Field(
        None, description="Target weights, >= 0, of the same total; null is uniform with mass 1."
    )
    epsilon: float = Field(
        gt=0, description="Entropic strength in units of the cost: small is sharp and slow."
    )
    tol: float = Field(
        1e-6, gt=0, lt=1, description="Stop when both marginal errors (L1, relative) are below."
    )
    max_iter: int = Field(10_000, ge=1, le=10_000_000, description="Sweeps before giving up.")
    rounded: bool = Field(
        False, description="Round the plan to exact marginals; moves <P, C> by 2 max(C) residual."
    )

    @model_validator(mode="after")
    def _masses(self) -> "SinkhornRequest":
        check_weights("a", self.a)
        check_weights("b", self.b)
        check_equal_masses(self.a, self.b)
        return self

    def footprint(self) -> int:
        """Count the cost, the kernel and the plan."""
        n, m = sizes(self.geometry)
        return 8 * 4 * n * m


class Certificate(Strict):
    """What shows how far the answer is from the optimum."""

    marginal_error_a: float = Field(description="`|P 1 - a|_1`, recomputed in float64 from f and g")
    marginal_error_b: float = Field(description="`|P^T 1 - b|_1`, likewise")
    dual_value: float = Field(
        description="value of the dual at (f, g): a lower bound of the optimum"
    )
    duality_gap: float = Field(
        description="objective at the feasible rounding of the plan minus dual_value: the optimum "
        "lies within this distance"
    )


class SinkhornResult(Result):
    """The coupling, its potentials and its costs."""

    renders = ("png", "svg")

    plan: Annotated[ArrayRef, Dims("n m"), Differentiable()] = Field(
        description="Coupling; P_ij = a_i b_j exp((f_i + g_j - C_ij) / epsilon)."
    )
    f: Annotated[ArrayRef, Dims("n"), Differentiable()] = Field(
        description="Source potential, in the gauge `<f, a> = 0`."
    )
    g: Annotated[ArrayRef, Dims("m"), Differentiable()] = Field(description="Target potential.")
    value: Annotated[float, Differentiable()] = Field(
        description="Whole objective `<P, C> + epsilon KL(P | a b^T)`."
    )
    transport_cost: Annotated[float, Differentiable()] = Field(description="`<P, C>` alone.")
    certificate: Certificate


EXAMPLE = {
    "geometry": {"kind": "points", "x": [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]],
                 "y": [[1.0, 1.0], [0.5, 0.0]]},
    "a": [0.5, 0.25, 0.25],
    "b": [0.5, 0.5],
    "epsilon": 0.1,
}  # fmt: skip
