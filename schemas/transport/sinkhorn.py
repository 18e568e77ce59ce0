"""Entropic optimal transport, balanced or not."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from schemas.arrays import ArrayRef, Differentiable, Dims, Request, Result, Strict
from schemas.geometry import Geometry, PointClouds, sizes
from schemas.marginals import Balanced, Marginal, Range, check_masses_meet
from schemas.measures import check_weights
from schemas.sparse import SparsePlan

# Bytes of cost, kernel and plan from which `auto` streams a problem that allows it.
STREAMED_FROM = 2 << 30
BALANCED = Balanced()


class SinkhornRequest(Request):
    """Entropic optimal transport between two measures, of equal mass or not.

    Minimises `<P, C> + D_a(P 1 | a) + D_b(P^T 1 | b) + epsilon KL(P | a b^T)` over P >= 0, where
    D_a and D_b say what each marginal owes to its weights; balanced ones must be equal to them.
    """

    smaller: ClassVar[str] = (
        "ask for method streamed with plan_form top or none (cost sqeuclidean), or for "
        "transport.low_rank or transport.refine"
    )

    geometry: Geometry = Field(description="The cost, as a matrix or between two point clouds.")
    a: Annotated[ArrayRef, Dims("n"), Differentiable()] | None = Field(
        None, description="Source weights, >= 0; null is uniform with mass 1."
    )
    b: Annotated[ArrayRef, Dims("m"), Differentiable()] | None = Field(
        None,
        description="Target weights, >= 0; null is uniform with mass 1. Of the same total as a "
        "where both sides are balanced.",
    )
    epsilon: float | None = Field(
        None,
        gt=0,
        description="Entropic strength in units of the cost: small is sharp and slow.",
    )
    epsilon_relative: float | None = Field(
        None,
        gt=0,
        description="The same in means of the (finite) costs; give at most one of the two. Without "
        "either it is 0.05. The answer tells the absolute value.",
    )
    marginal_a: Marginal = Field(
        BALANCED, description="What `P 1` owes to a: all of it (balanced), or a price."
    )
    marginal_b: Marginal = Field(BALANCED, description="What `P^T 1` owes to b.")
    entropy_reference: Literal["product", "counting"] = Field(
        "product",
        description="`product`: `epsilon KL(P | a b^T)`. `counting`: `epsilon sum P (log P - 1)`, "
        "as in other libraries; the same plan when both sides are balanced, another when not.",
    )
    f0: Annotated[ArrayRef, Dims("n")] | None = Field(
        None, description="Source potential to start from, as `f` of an earlier answer."
    )
    g0: Annotated[ArrayRef, Dims("m")] | None = Field(
        None, description="Target potential to start from; read only when f0 is null."
    )
    tol: float = Field(
        1e-6,
        gt=0,
        lt=1,
        description="Stop when both marginals, together, miss those that are optimal for f and g "
        "by less than this share of the mass (L1). For balanced sides: the marginal errors.",
    )
    max_iter: int = Field(10_000, ge=1, le=10_000_000, description="Sweeps before giving up.")
    method: Literal["auto", "dense", "streamed"] = Field(
        "auto",
        description="`dense` keeps a kernel of n m entries; `streamed` never does, is slower, and "
        "is for point clouds with cost sqeuclidean. `auto` streams what would take more than 2 GiB "
        "where cost and plan_form allow it.",
    )
    plan_form: Literal["dense", "sparse", "top", "none"] = Field(
        "dense",
        description="`dense`: `plan`. `sparse`: `entries` above a thousandth of the mean of their "
        "row. `top`: `entries`, the largest of each row. `none`: neither.",
    )
    top: int = Field(10, ge=1, le=10_000, description="Entries of a row for plan_form `top`.")
    barycentric: bool = Field(
        False, description="Return `map`, the mean of where each source point goes (points only)."
    )
    rounded: bool = Field(
        False,
        description="Round the plan to marginals that balanced and range sides allow; moves "
        "<P, C> by 2 max(C) residual.",
    )

    @model_validator(mode="after")
    def _masses(self) -> "SinkhornRequest":
        check_weights("a", self.a)
        check_weights("b", self.b)
        check_masses_meet(self.a, self.b, self.marginal_a, self.marginal_b)
        return self

    @model_validator(mode="after")
    def _options(self) -> "SinkhornRequest":
        if self.epsilon is not None and self.epsilon_relative is not None:
            raise _refused("epsilon_relative", "give epsilon or epsilon_relative, not both")
        points = isinstance(self.geometry, PointClouds)
        if self.barycentric and not points:
            raise _refused("barycentric", "a cost matrix has no places to map to; give points")
        if self.rounded and self._forbids() and self._hard():
            raise _refused("rounded", "would send mass across pairs that cost wfr forbids")
        if self.method == "streamed":
            for field, ok, text in (
                ("geometry", self._streamable_cost(), "streams only points with cost sqeuclidean"),
                (
                    "plan_form",
                    self.plan_form in ("top", "none"),
                    "streamed forms no plan; top or none",
                ),
                ("rounded", not self.rounded, "streamed forms no plan to round"),
                ("entropy_reference", not self._counts(), "streamed takes the product reference"),
            ):
                if not ok:
                    raise _refused(field, text)
        return self

    def _forbids(self) -> bool:
        return isinstance(self.geometry, PointClouds) and self.geometry.cost == "wfr"

    def _hard(self) -> bool:
        return all(isinstance(m, Balanced | Range) for m in (self.marginal_a, self.marginal_b))

    def _streamable_cost(self) -> bool:
        return isinstance(self.geometry, PointClouds) and self.geometry.cost == "sqeuclidean"

    def _counts(self) -> bool:
        return self.entropy_reference == "counting"

    def footprint(self) -> int:
        """Count the cost, the kernel and the plan; or clouds and a few vectors."""
        n, m = sizes(self.geometry)
        dense = 8 * 4 * n * m
        if self.method == "streamed" or (self.method == "auto" and self._streams(dense)):
            assert isinstance(self.geometry, PointClouds)
            return 8 * (n + m) * (4 * self.geometry.x.shape[1] + 40 + 3 * self.top) + (1 << 28)
        return dense

    def _streams(self, dense: int) -> bool:
        small = self.plan_form in ("top", "none") and not (self.rounded or self._counts())
        return dense > STREAMED_FROM and small and self._streamable_cost()


def _refused(field: str, text: str) -> PydanticCustomError:
    return PydanticCustomError("validation", text, {"field": field})  # type: ignore[arg-type]


class Certificate(Strict):
    """What shows how far the answer is from the optimum, recomputed in float64."""

    marginal_error_a: float = Field(
        description="`|P 1 - a|_1` when a is balanced, the distance to what is allowed when it has "
        "a range, 0 when any marginal is allowed"
    )
    marginal_error_b: float = Field(description="likewise of `P^T 1` and b")
    optimality_error: float = Field(
        description="by how much the marginals miss those that are optimal for (f, g), in L1, both "
        "sides together: the gradient of the dual"
    )
    mass_identity: float | None = Field(
        description="kl on both sides: how far `<a, exp(-f/rho_a)>` and `<b, exp(-g/rho_b)>` are "
        "from the mass of the plan; equal at the optimum. Else null"
    )
    dual_value: float = Field(
        description="value of the dual at (f, g): a lower bound of the optimum"
    )
    duality_gap: float | None = Field(
        description="objective at a feasible plan minus dual_value: the optimum lies within this "
        "distance; null where forbidden pairs kept the plan from being made feasible"
    )


class SinkhornResult(Result):
    """The coupling, its potentials and its costs."""

    renders = ("png", "svg")

    plan: Annotated[ArrayRef, Dims("n m"), Differentiable()] | None = Field(
        description="Coupling; P_ij = a_i b_j exp((f_i + g_j - C_ij) / epsilon). Null unless "
        "plan_form is dense."
    )
    entries: SparsePlan | None = Field(
        description="Its largest entries, for plan_form sparse and top."
    )
    dropped: float = Field(description="Mass of the plan that `entries` leaves out.")
    map: Annotated[ArrayRef, Dims("n d"), Differentiable()] | None = Field(
        description="Barycentric projection `sum_j P_ij y_j / (P 1)_i`, when it was asked for; a "
        "point that may go nowhere stays."
    )
    f: Annotated[ArrayRef, Dims("n"), Differentiable()] = Field(
        description="Source potential; between balanced sides in the gauge `<f, a> = 0`."
    )
    g: Annotated[ArrayRef, Dims("m"), Differentiable()] = Field(description="Target potential.")
    epsilon: float = Field(description="Entropic strength that was used, in units of the cost.")
    value: Annotated[float, Differentiable()] = Field(
        description="Whole objective `<P, C> + D_a + D_b + epsilon KL(P | a b^T)`; sides that are "
        "balanced or have a range contribute nothing, their errors are in the certificate."
    )
    transport_cost: Annotated[float, Differentiable()] = Field(description="`<P, C>` alone.")
    mass: Annotated[float, Differentiable()] = Field(description="Total mass of the plan.")
    rows: Annotated[ArrayRef, Dims("n"), Differentiable()] = Field(description="`P 1`.")
    columns: Annotated[ArrayRef, Dims("m"), Differentiable()] = Field(description="`P^T 1`.")
    certificate: Certificate


EXAMPLE = {
    "geometry": {"kind": "points", "x": [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]],
                 "y": [[1.0, 1.0], [0.5, 0.0]]},
    "a": [0.5, 0.25, 0.25],
    "b": [0.5, 0.5],
    "epsilon": 0.1,
    "barycentric": True,
}  # fmt: skip
