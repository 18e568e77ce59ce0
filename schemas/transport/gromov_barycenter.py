"""Gromov-Wasserstein barycenters."""

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from schemas.arrays import ArrayRef, Dims, Request, Result, Strict
from schemas.measures import check_equal_masses, check_weights
from schemas.spaces import check_one
from schemas.sparse import SparsePlan


class WeightedSpace(Strict):
    """One space, by points or by a matrix of costs, and the weights of its points."""

    x: Annotated[ArrayRef, Dims("n d")] | None = Field(
        None, description="Points: costs are squared distances, used by factors. Or give C."
    )
    C: Annotated[ArrayRef, Dims("n n")] | None = Field(
        None, description="Costs between the points, symmetric or not, instead of points."
    )
    a: Annotated[ArrayRef, Dims("n")] | None = Field(
        None, description="Weights, >= 0; all spaces have one mass; null is uniform with mass 1."
    )


class GromovBarycenterRequest(Request):
    """Gromov-Wasserstein barycenter: the mean of spaces that share no coordinates.

    Minimises `sum_k w_k GW(C, C_k)` over the matrix C of costs between so many points. Not
    convex: the answer is a local minimum.
    """

    spaces: list[WeightedSpace] = Field(
        min_length=1, max_length=100, description="The spaces, each of its own size."
    )
    weights: Annotated[ArrayRef, Dims("k")] | None = Field(
        None, description="Weights w of the spaces, >= 0, divided by their sum; null is equal."
    )
    size: int | None = Field(
        None, ge=1, le=100_000,
        description="Points of the barycenter; null is the length of a, or else the number of "
        "points of the space of largest weight.",
    )  # fmt: skip
    a: Annotated[ArrayRef, Dims("n")] | None = Field(
        None,
        description="Weights of the barycenter's points, of the mass of the spaces; null is "
        "uniform.",
    )
    method: Literal["conditional_gradient", "entropic"] = Field(
        "conditional_gradient",
        description="How plans are sought: sparse plans that no linear step improves, or plans of "
        "`GW + epsilon KL(P | a a_k^T)`, which blur the barycenter.",
    )
    epsilon: float | None = Field(
        None, gt=0,
        description="Strength of `entropic`, in units of squared costs; null is 0.02 times the "
        "largest squared mean cost.",
    )  # fmt: skip
    starts: int = Field(
        8, ge=1, le=1000,
        description="Starts from which each plan is sought in the first two rounds.",
    )  # fmt: skip
    tol: float = Field(
        1e-6, ge=0, lt=1, description="Relative gain of a round at which rounds end."
    )
    max_iter: int = Field(100, ge=1, le=10_000, description="Rounds before giving up.")

    @model_validator(mode="after")
    def _masses(self) -> "GromovBarycenterRequest":
        check_weights("weights", self.weights)
        check_weights("a", self.a)
        if self.weights is not None and self.weights.shape[0] != len(self.spaces):
            raise PydanticCustomError(
                "shape-mismatch", "{got} weights for {want} spaces",
                {"field": "weights", "got": self.weights.shape[0], "want": len(self.spaces)},
            )  # fmt: skip
        first = self.a if self.a is not None else self.spaces[0].a
        for k, one in enumerate(self.spaces):
            try:
                check_one("x", one.x, "C", one.C)
                check_weights("a", one.a)
                check_equal_masses(first, one.a)
            except PydanticCustomError as error:
                context = dict(error.context or {})
                name = context.get("field", "a")
                name = "a" if name == "b" else name
                raise PydanticCustomError(
                    error.type, error.message_template,  # pyright: ignore[reportArgumentType]
                    context | {"field": f"spaces.{k}.{name}"},
                ) from None  # fmt: skip
        return self

    @model_validator(mode="after")
    def _options(self) -> "GromovBarycenterRequest":
        if self.size is not None and self.a is not None and self.size != self.a.shape[0]:
            raise PydanticCustomError(
                "shape-mismatch", "size is {size}, but a has {want} weights",
                {"field": "size", "size": self.size, "want": self.a.shape[0]},
            )  # fmt: skip
        if self.epsilon is not None and self.method != "entropic":
            raise PydanticCustomError(
                "validation", "epsilon belongs to the method entropic", {"field": "epsilon"}
            )
        return self

    def footprint(self) -> int:
        """Count plans to all spaces, one linear problem, and the costs where they are given."""
        sizes = [ref.shape[0] for one in self.spaces for ref in (one.x, one.C) if ref is not None]
        n = self.size or (self.a.shape[0] if self.a is not None else max(sizes))
        given = sum(one.C.shape[0] ** 2 for one in self.spaces if one.C is not None)
        return 8 * (n * (2 * sum(sizes) + 8 * max(sizes) + 4 * n) + 2 * given)


class Certificate(Strict):
    """What can be checked of the answer, recomputed in float64 from what is returned."""

    objective: float = Field(description="`sum_k w_k GW(C, C_k)` along the plans")
    barycenter_error: float = Field(
        description="largest distance of C from the best C for these plans, as a share of the "
        "largest entry"
    )
    marginal_error: float = Field(
        description="largest L1 error of a marginal of a plan, as a share of the mass"
    )
    plan_gap: float | None = Field(
        description="what linear steps could still gain, `sum_k w_k <gradient_k, P_k - V_k>`, in "
        "units of the objective; null for `entropic`"
    )


class GromovBarycenterResult(Result):
    """The mean space, its match with every input, and a picture of it in the plane."""

    renders = ("png", "svg")

    C: Annotated[ArrayRef, Dims("n n")] = Field(
        description="Costs within the barycenter, in the units of the inputs' costs."
    )
    a: Annotated[ArrayRef, Dims("n")] = Field(description="Weights of its points.")
    plans: list[SparsePlan] = Field(
        description="One for each space: rows are points of the barycenter."
    )
    gw: Annotated[ArrayRef, Dims("k")] = Field(description="`GW(C, C_k)` along each plan.")
    value: float = Field(description="`sum_k w_k gw_k`, without entropy.")
    epsilon: float | None = Field(description="The strength that was used; null without entropy.")
    coordinates: Annotated[ArrayRef, Dims("n 2")] = Field(
        description="The barycenter in the plane by classical scaling: of C as squared distances "
        "if some space is given by points, else of C as distances."
    )
    shown: float = Field(description="Share of the squared spectrum that these two axes hold.")
    certificate: Certificate


EXAMPLE = {
    "spaces": [
        {"x": [[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]},
        {"C": [[0.0, 1.0, 1.0, 5.0], [1.0, 0.0, 4.0, 2.0], [1.0, 4.0, 0.0, 2.0],
               [5.0, 2.0, 2.0, 0.0]], "a": [0.25, 0.25, 0.25, 0.25]},
    ],
    "weights": [0.5, 0.5],
    "size": 4,
    "tol": 1e-6,
}  # fmt: skip
