"""Sinkhorn divergence."""

from typing import Annotated

from pydantic import Field, model_validator

from schemas.arrays import ArrayRef, Differentiable, Dims, Request, Result, Strict
from schemas.geometry import PointClouds, sizes
from schemas.marginals import Balanced, Marginal, check_masses_meet
from schemas.measures import check_weights

BALANCED = Balanced()


class DivergenceRequest(Request):
    """Sinkhorn divergence between two weighted point clouds, of equal mass or not.

    `S(a, b) = V(a, b) - V(a, a)/2 - V(b, b)/2 + epsilon (m(a) - m(b))^2 / 2` with V the optimum of
    `transport.sinkhorn` and m the mass: zero exactly when the measures are equal, else positive.
    """

    geometry: PointClouds = Field(description="Two point clouds and the cost between points.")
    a: Annotated[ArrayRef, Dims("n"), Differentiable()] | None = Field(
        None, description="Source weights, >= 0; null is uniform with mass 1."
    )
    b: Annotated[ArrayRef, Dims("m"), Differentiable()] | None = Field(
        None,
        description="Target weights, >= 0; null is uniform with mass 1. Balanced: of equal total.",
    )
    epsilon: float = Field(
        gt=0,
        description="Entropic strength in units of the cost: small is close to optimal transport, "
        "large to a kernel distance.",
    )
    marginal: Marginal = Field(
        BALANCED,
        description="What both marginals of each term owe to their weights: all of it (balanced), "
        "or a price.",
    )
    tol: float = Field(
        1e-6,
        gt=0,
        lt=1,
        description="Each term stops when its marginal errors (L1, relative) are below.",
    )
    max_iter: int = Field(
        10_000, ge=1, le=10_000_000, description="Sweeps for each term before giving up."
    )

    @model_validator(mode="after")
    def _masses(self) -> "DivergenceRequest":
        check_weights("a", self.a)
        check_weights("b", self.b)
        check_masses_meet(self.a, self.b, self.marginal, self.marginal)
        return self

    def footprint(self) -> int:
        """Count costs and plans of the three terms, and one kernel at a time."""
        n, m = sizes(self.geometry)
        return 8 * (2 * (n * n + m * m + n * m) + 2 * max(n, m) ** 2)


class Certificate(Strict):
    """What shows how far the answer is from the divergence."""

    gap_ab: float = Field(
        description="duality gap of `value_ab`: the optimum lies within this distance above it"
    )
    gap_aa: float = Field(description="likewise for `value_aa`")
    gap_bb: float = Field(description="likewise for `value_bb`")
    marginal_error_a: float = Field(description="`|P 1 - a|_1` of the plan between a and b")
    marginal_error_b: float = Field(description="`|P^T 1 - b|_1`, likewise")
    marginal_error_aa: float = Field(description="`|P 1 - a|_1` of the plan between a and itself")
    marginal_error_bb: float = Field(description="`|P 1 - b|_1` of the plan between b and itself")
    lower: float = Field(description="the divergence is not below: follows from the gaps")
    upper: float = Field(description="the divergence is not above, likewise")


class DivergenceResult(Result):
    """The divergence, its three terms and their potentials."""

    renders = ("png", "svg")

    divergence: Annotated[float, Differentiable()] = Field(
        description="`value_ab - value_aa/2 - value_bb/2`, and half of epsilon times the square of "
        "the difference of masses; negative only within the bounds of the "
        "certificate, and then with a warning."
    )
    value_ab: Annotated[float, Differentiable()] = Field(
        description="Dual value of the entropic problem between a and b."
    )
    value_aa: Annotated[float, Differentiable()] = Field(description="The same of a and itself.")
    value_bb: Annotated[float, Differentiable()] = Field(description="The same of b and itself.")
    f: Annotated[ArrayRef, Dims("n"), Differentiable()] = Field(
        description="Source potential between a and b, in the gauge `<f, a> = 0`."
    )
    g: Annotated[ArrayRef, Dims("m"), Differentiable()] = Field(
        description="Target potential between a and b."
    )
    f_aa: Annotated[ArrayRef, Dims("n"), Differentiable()] = Field(
        description="Potential between a and itself; `f - f_aa` is the derivative in a."
    )
    g_bb: Annotated[ArrayRef, Dims("m"), Differentiable()] = Field(
        description="Potential between b and itself; `g - g_bb` is the derivative in b."
    )
    certificate: Certificate


EXAMPLE = {
    "geometry": {"kind": "points", "x": [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]],
                 "y": [[1.0, 1.0], [0.5, 0.0]]},
    "a": [0.5, 0.25, 0.25],
    "b": [0.5, 0.5],
    "epsilon": 0.1,
}  # fmt: skip
