"""Gromov-Wasserstein: optimal transport between spaces that share no coordinates."""

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from schemas.arrays import ArrayRef, Differentiable, Dims, Request, Result, Strict
from schemas.measures import MASS_TOLERANCE, check_equal_masses, check_weights
from schemas.spaces import check_one
from schemas.sparse import SparsePlan

FUSED = "C and alpha < 1 go together: alpha is {alpha}"


class GromovRequest(Request):
    """Gromov-Wasserstein: match two spaces by their inner distances, fused, partial, semi-relaxed.

    Minimises `alpha sum_ijkl (Cx_ik - Cy_jl)^2 P_ij P_kl + (1 - alpha) <C, P>` over plans P. Not
    convex: the best of many starts is returned, with lower bounds beside it.
    """

    x: Annotated[ArrayRef, Dims("n d"), Differentiable()] | None = Field(
        None, description="Source points: `Cx_ik = |x_i - x_k|^2`, never formed. Or give Cx."
    )
    y: Annotated[ArrayRef, Dims("m e"), Differentiable()] | None = Field(
        None, description="Target points, of any dimension: `Cy_jl = |y_j - y_l|^2`. Or give Cy."
    )
    Cx: Annotated[ArrayRef, Dims("n n"), Differentiable()] | None = Field(
        None, description="Costs within the source, instead of points; may be asymmetric."
    )
    Cy: Annotated[ArrayRef, Dims("m m"), Differentiable()] | None = Field(
        None, description="Costs within the target, instead of points."
    )
    a: Annotated[ArrayRef, Dims("n")] | None = Field(
        None, description="Source weights, >= 0; null is uniform with mass 1."
    )
    b: Annotated[ArrayRef, Dims("m")] | None = Field(
        None,
        description="Target weights, of the mass of a unless `constraint` is `partial`; null is "
        "uniform with mass 1. Not for `semi_relaxed`.",
    )
    C: Annotated[ArrayRef, Dims("n m"), Differentiable()] | None = Field(
        None, description="Linear cost between the spaces (fused); needs alpha < 1."
    )
    alpha: float = Field(
        1.0, ge=0, le=1, description="1 is pure Gromov-Wasserstein; 0 is transport of cost C alone."
    )
    constraint: Literal["balanced", "partial", "semi_relaxed"] = Field(
        "balanced",
        description="`P 1 = a, P^T 1 = b`; `P 1 <= a, P^T 1 <= b` and total `mass`; or only "
        "`P 1 = a`.",
    )
    mass: float | None = Field(
        None, gt=0, description="What `partial` moves, at most the smaller total; else null."
    )
    method: Literal["auto", "conditional_gradient", "entropic", "proximal"] = Field(
        "auto",
        description="`conditional_gradient` ends at sparse plans and is what auto chooses; "
        "`entropic` adds `epsilon KL(P | a b^T)`; `proximal` uses epsilon in its steps only. "
        "`partial` and `semi_relaxed` have the first alone.",
    )
    epsilon: float | None = Field(
        None,
        gt=0,
        description="Strength of `entropic` and `proximal`, in units of the objective; null is "
        "0.05 times `alpha s^2 + (1 - alpha) mean |C|`, s the larger of the means of Cx and Cy.",
    )
    starts: int | None = Field(
        None, ge=0, le=10_000, description="Random starts; null is what the method needs by itself."
    )
    plan0: Annotated[ArrayRef, Dims("n m")] | None = Field(
        None, description="One more start, >= 0; its marginals need not be exact."
    )
    tol: float | None = Field(
        None, ge=0, lt=1,
        description="A start is at rest when a step lowers its value by less than this share "
        "(`entropic`, `proximal`: moves less than this share of the mass); null is 1e-4 between "
        "clouds, 1e-7 with matrices, 1e-6 for `entropic` and `proximal`.",
    )  # fmt: skip
    max_iter: int | None = Field(
        None, ge=1, le=10**6,
        description="Steps of each start between all points; null is the method's own number.",
    )  # fmt: skip

    @model_validator(mode="after")
    def _spaces(self) -> "GromovRequest":
        check_one("x", self.x, "Cx", self.Cx)
        check_one("y", self.y, "Cy", self.Cy)
        if (self.C is None) != (self.alpha == 1):
            raise PydanticCustomError("validation", FUSED, {"field": "C", "alpha": self.alpha})
        if self.plan0 is not None and (self.plan0.facts.low or 0.0) < 0:
            raise PydanticCustomError(
                "validation", "a plan is not negative; the smallest entry is {low}",
                {"field": "plan0", "low": self.plan0.facts.low},
            )  # fmt: skip
        if self.plan0 is not None and not self.plan0.facts.total:
            raise PydanticCustomError("validation", "a plan needs mass", {"field": "plan0"})
        return self

    @model_validator(mode="after")
    def _masses(self) -> "GromovRequest":
        check_weights("a", self.a)
        check_weights("b", self.b)
        if (self.mass is None) == (self.constraint == "partial"):
            text = "constraint {constraint} " + (
                "needs a mass" if self.mass is None else "has none"
            )
            raise PydanticCustomError(
                "validation", text, {"field": "mass", "constraint": self.constraint}
            )
        if self.constraint == "balanced":
            check_equal_masses(self.a, self.b)
        if self.constraint == "semi_relaxed" and self.b is not None:
            raise PydanticCustomError(
                "validation", "semi_relaxed leaves the target's weights free", {"field": "b"}
            )
        totals = [1.0 if w is None else w.facts.total or 0.0 for w in (self.a, self.b)]
        if self.mass is not None and self.mass > min(totals) * (1 + MASS_TOLERANCE):
            raise PydanticCustomError(
                "infeasible-problem",
                "at most the smaller total can travel; a has {mass_a}, b has {mass_b}",
                {"field": "mass", "mass_a": totals[0], "mass_b": totals[1]},
            )
        return self

    @model_validator(mode="after")
    def _methods(self) -> "GromovRequest":
        smooth = self.method in ("entropic", "proximal")
        if smooth and self.constraint != "balanced":
            raise PydanticCustomError(
                "validation", "constraint {constraint} has only conditional_gradient",
                {"field": "method", "constraint": self.constraint},
            )  # fmt: skip
        if self.epsilon is not None and not smooth:
            raise PydanticCustomError(
                "validation", "epsilon belongs to entropic and proximal", {"field": "epsilon"}
            )
        return self

    def footprint(self) -> int:
        """Count the linear problem of a step, and the products with costs where they are given."""
        (n, X), (m, Y) = (
            (points.shape[0], 0) if points is not None else (costs.shape[0] if costs else 0, 1)
            for points, costs in ((self.x, self.Cx), (self.y, self.Cy))
        )
        return 8 * (8 * n * m + 3 * (X * n * n + Y * m * m))


class Attempt(Strict):
    """One start and how far it went."""

    start: str = Field(description="Its name, as in `product`, `axes +-`, `random 3`.")
    points: int = Field(
        description="Points, or centres that stand for them, of the larger side where it was last "
        "seen."
    )
    value: float = Field(
        description="Its objective there: of a plan between all points only if `points` is their "
        "number."
    )


class Certificate(Strict):
    """What is known of the plan, recomputed in float64, and how far it may be from the best."""

    marginal_error_a: float = Field(
        description="`|P 1 - a|_1` of the plan that is returned; for `partial` the excess over a"
    )
    marginal_error_b: float = Field(description="`|P^T 1 - b|_1`, likewise; 0 for `semi_relaxed`")
    mass_error: float = Field(description="`|sum P - mass|`, the mass that was asked for")
    first_lower_bound: float | None = Field(
        description="bound of the quadratic part from eccentricities; null unless balanced"
    )
    second_lower_bound: float | None = Field(
        description="bound of it from the distributions of all costs; null for more than 1,000 "
        "points, or unless balanced"
    )
    moment_bound: float | None = Field(
        description="bound of it from moments of two clouds; null for matrices, or unless balanced"
    )
    linear_bound: float | None = Field(
        description="the least `<C, P>`, by exact transport; null without C, or unless balanced"
    )
    lower_bound: float = Field(
        description="what no plan goes below: the best of these, weighted by alpha; for `entropic` "
        "too, as KL >= 0"
    )
    gap: float = Field(
        description="`value - lower_bound`: the plan is at most so far from the best. Bounds are "
        "rarely attained; a large gap proves nothing either way"
    )
    starts_tried: int = Field(
        description="starts that `attempts` lists: all of them between two clouds, balanced; else "
        "the best of those that ended apart"
    )
    starts_reached: int = Field(
        description="starts whose value is that of the answer, to 1e-6 relative; one alone is weak "
        "evidence"
    )
    distinct_values: int = Field(
        description="different values at which starts ended between all points"
    )


class GromovResult(Result):
    """The best plan found, its value, its parts, and what speaks for it."""

    renders = ("png", "svg")

    plan: SparsePlan | None = Field(description="The plan by its entries; null for a dense one.")
    dense_plan: Annotated[ArrayRef, Dims("n m")] | None = Field(
        description="The plan as a matrix where most entries carry mass; else null."
    )
    value: Annotated[float, Differentiable()] = Field(
        description="The objective at the plan; for `entropic` with `epsilon KL(P | a b^T)`. "
        "Derivatives hold the plan fixed."
    )
    gw: float = Field(description="`sum_ijkl (Cx_ik - Cy_jl)^2 P_ij P_kl`, in the costs' units.")
    transport_cost: float = Field(description="`<C, P>`; 0 without C.")
    method: str = Field(description="How the plan was found.")
    epsilon: float | None = Field(description="The strength that was used; null where none was.")
    attempts: list[Attempt] = Field(description="What became of the starts, best first.")
    certificate: Certificate


EXAMPLE = {
    "x": [[0.0, 0.0], [2.0, 0.0], [0.0, 1.0], [2.0, 2.0]],
    "y": [[1.0, 0.0, 1.0], [1.0, 2.0, 1.0], [0.0, 0.0, 1.0], [-1.0, 2.1, 1.0]],
}
