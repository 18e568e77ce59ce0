"""Wasserstein barycenters: on a fixed support, on a grid, or with points that move."""

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from schemas.arrays import ArrayRef, Differentiable, Dims, Request, Result, Strict
from schemas.measures import MASS_TOLERANCE, check_weights

STRONGEST = 1e9  # in units of epsilon: beyond, rounding drowns the penalty of soft marginals


class FixedSupport(Strict):
    """Measures on common points, averaged on given points: by a cost, or by squared distances."""

    kind: Literal["fixed"] = "fixed"
    weights: Annotated[ArrayRef, Dims("K m"), Differentiable()] = Field(
        description="One measure a row, >= 0; of equal totals unless `rho` is given."
    )
    x: Annotated[ArrayRef, Dims("n d"), Differentiable()] | None = Field(
        None, description="Points that may carry the barycenter; or give C."
    )
    y: Annotated[ArrayRef, Dims("m d"), Differentiable()] | None = Field(
        None, description="Points of the measures; null: the measures are on x too."
    )
    C: Annotated[ArrayRef, Dims("n m"), Differentiable()] | None = Field(
        None, description="Cost from support point i to input point j; or give x."
    )


class Images(Strict):
    """Histograms on a plane grid; a line is a grid of h x 1. Squared distances."""

    kind: Literal["grid"] = "grid"
    histograms: Annotated[ArrayRef, Dims("K h w"), Differentiable()] = Field(
        description="One histogram each, >= 0; of equal totals unless `rho` is given."
    )
    spacing: float = Field(1.0, gt=0, description="Distance of neighbouring grid points.")


class Volumes(Strict):
    """Histograms on a grid in space. Squared distances."""

    kind: Literal["volume"] = "volume"
    histograms: Annotated[ArrayRef, Dims("K h w l"), Differentiable()] = Field(
        description="One histogram each, >= 0; of equal totals unless `rho` is given."
    )
    spacing: float = Field(1.0, gt=0, description="Distance of neighbouring grid points.")


class WeightedCloud(Strict):
    """Points and their weights."""

    x: Annotated[ArrayRef, Dims("m d")] = Field(
        description="Points; all clouds have the same number of coordinates."
    )
    w: Annotated[ArrayRef, Dims("m")] | None = Field(
        None, description="Weights, >= 0; null is uniform with mass 1. All clouds weigh the same."
    )


class FreeSupport(Strict):
    """Clouds whose barycenter has points of equal weight, wherever they are best."""

    kind: Literal["free"] = "free"
    clouds: list[WeightedCloud] = Field(min_length=1, max_length=10_000)
    size: int = Field(ge=1, le=1_000_000, description="How many points the barycenter has.")
    start: Annotated[ArrayRef, Dims("n d")] | None = Field(
        None, description="Where they start; null draws them among the clouds' points by `seed`."
    )


class BarycenterRequest(Request):
    """Wasserstein barycenter: the measure with the least mean transport cost to several others.

    Minimises `sum_k lam_k OT(beta, b_k)`: entropic on a fixed support or a grid, plain, debiased or
    with soft marginals; exact or entropic with points that move.
    """

    problem: Annotated[
        FixedSupport | Images | Volumes | FreeSupport, Field(discriminator="kind")
    ] = Field(description="The measures, and where their barycenter may be.")
    lam: Annotated[ArrayRef, Dims("K")] | None = Field(
        None, description="Mixture weights, >= 0, one a measure, scaled to sum 1; null is uniform."
    )
    epsilon: float | None = Field(
        None,
        gt=0,
        description="Entropic strength in units of the cost; it blurs by sqrt(epsilon). Needed on "
        "supports and grids; null with free points is exact transport.",
    )
    rho: float | None = Field(
        None,
        gt=0,
        description="Strength of soft marginals, in units of the cost, for measures of unequal "
        "totals: `rho KL(P1|beta) + rho KL(P^T 1|b)`, at most 1e9 times epsilon; null makes both "
        "exact.",
    )
    debiased: bool = Field(
        False, description="Average by Sinkhorn divergences, which takes the entropic blur away."
    )
    tol: float = Field(
        1e-6,
        gt=0,
        lt=1,
        description="Stop when the row sums of all plans agree up to this share of the mass (L1); "
        "with free points, when none moves by this share of the clouds' size.",
    )
    max_iter: int = Field(
        10_000, ge=1, le=10_000_000, description="Sweeps, or rounds of free points."
    )

    @model_validator(mode="after")
    def _consistent(self) -> "BarycenterRequest":
        check_weights("lam", self.lam)
        problem = self.problem
        if isinstance(problem, FreeSupport):
            _check_free(problem, self.lam)
            for field, given in (("rho", self.rho is not None), ("debiased", self.debiased)):
                if given:
                    raise _wrong(field, "has no part where points are free: leave it out")
            return self
        if self.epsilon is None:
            raise _wrong("epsilon", "is needed: a barycenter on given points is an entropic one")
        if self.debiased and self.rho is not None:
            raise _wrong("rho", "is for plain barycenters; debiased ones have exact marginals")
        if self.rho is not None and self.rho > STRONGEST * self.epsilon:
            raise _wrong("rho", f"is beyond {STRONGEST:.0e} times epsilon; null is exact")
        if isinstance(problem, FixedSupport):
            check_weights("problem.weights", problem.weights)
            _check_support(problem, self.debiased)
        else:
            check_weights("problem.histograms", problem.histograms)
        return self

    def footprint(self) -> int:
        """Count the cost and its kernel, or the plans of a round; and the scalings."""
        problem = self.problem
        if isinstance(problem, FreeSupport):
            return 8 * 6 * problem.size * max(cloud.x.shape[0] for cloud in problem.clouds)
        if not isinstance(problem, FixedSupport):
            cells = 1
            for side in problem.histograms.shape:
                cells *= side
            return 8 * cells * (12 + max(problem.histograms.shape[1:]))
        support = problem.C if problem.C is not None else problem.x
        assert support is not None
        measures, inputs = problem.weights.shape
        return 8 * (4 * support.shape[0] * inputs + 10 * measures * (support.shape[0] + inputs))


def _wrong(field: str, reason: str) -> PydanticCustomError:
    return PydanticCustomError("validation", "{field} {reason}", {"field": field, "reason": reason})


def _check_support(problem: FixedSupport, debiased: bool) -> None:
    """Refuse a support that is described twice, or not at all."""
    if (problem.x is None) == (problem.C is None):
        raise _wrong("problem.C", "or problem.x: give one of the two")
    if problem.y is not None and (problem.C is not None or debiased):
        beside = "beside C" if problem.C is not None else "debiased, where the measures are on x"
        raise _wrong("problem.y", f"has no part {beside}: leave it out")
    if problem.y is None and problem.x is not None:
        n, m = problem.x.shape[0], problem.weights.shape[1]
        if n != m:
            raise PydanticCustomError(
                "shape-mismatch", "{m} weights a measure for {n} points: give y, or as many",
                {"field": "problem.weights", "n": n, "m": m},
            )  # fmt: skip
    if debiased and problem.C is not None and len(set(problem.C.shape)) > 1:
        raise _wrong("problem.C", "is not square: debiased, measures are on the support itself")


def _check_free(problem: FreeSupport, lam: ArrayRef | None) -> None:
    """Refuse clouds of unequal dimension or mass, and a start of another size."""
    if lam is not None and lam.shape != [len(problem.clouds)]:
        raise _wrong("lam", f"has {lam.shape} weights for {len(problem.clouds)} clouds")
    first = problem.clouds[0]
    d = first.x.shape[-1]
    for k, cloud in enumerate(problem.clouds):
        check_weights(f"problem.clouds.{k}.w", cloud.w)
        if cloud.x.shape[-1] != d:
            raise PydanticCustomError(
                "shape-mismatch", "{got} coordinates a point; the first cloud has {want}",
                {"field": f"problem.clouds.{k}.x", "got": cloud.x.shape[-1], "want": d},
            )  # fmt: skip
        one, other = (1.0 if c.w is None else c.w.facts.total or 0.0 for c in (cloud, first))
        if abs(one - other) > MASS_TOLERANCE * max(one, other):
            raise PydanticCustomError(
                "infeasible-problem", "this cloud has mass {one}, the first has {other}",
                {"field": f"problem.clouds.{k}.w", "one": one, "other": other},
            )  # fmt: skip
    if problem.start is not None and problem.start.shape != [problem.size, d]:
        raise PydanticCustomError(
            "shape-mismatch", "expected shape {want}, received {got}",
            {"field": "problem.start", "want": str([problem.size, d]),
             "got": str(problem.start.shape)},
        )  # fmt: skip


class Certificate(Strict):
    """What shows how far to trust the average, in float64, from the plans that led to it."""

    marginal_error: float = Field(
        description="`max_k |P_k 1 - beta|_1`; with rho, the distance from what rho leaves of it"
    )
    marginal_error_inputs: float = Field(description="`max_k |P_k^T 1 - b_k|_1`, likewise")
    dual_value: float | None = Field(
        description="a lower bound of the optimum; null with rho, debiased, or free points"
    )
    duality_gap: float | None = Field(
        description="objective at the plans minus dual_value: the distance from the optimum, up to "
        "what the plans miss of their marginals; with free points the largest gap of one plan"
    )
    mean_gap: float | None = Field(
        description="distance of the barycenter's mean from the mean of the inputs' means: none "
        "where points are free, little on a support that is wide and dense; null without points"
    )
    last_move: float | None = Field(
        description="largest step of a free point in the last round, over the size of the clouds"
    )


class BarycenterResult(Result):
    """The barycenter: its weights on the support that was asked for, or its points."""

    renders = ("png", "svg")

    weights: ArrayRef = Field(
        description="Mass of each point: (n,), or in the shape of the grid, or equal shares."
    )
    points: Annotated[ArrayRef, Dims("n d")] | None = Field(
        description="Where the points are, if they were free."
    )
    transport_costs: Annotated[ArrayRef, Dims("K")] = Field(
        description="`<P_k, C>` from the barycenter to each measure."
    )
    value: Annotated[float, Differentiable()] = Field(
        description="`sum_k lam_k OT(beta, b_k)`, entropy against uniform x b_k, penalties in; "
        "debiased, the same of Sinkhorn divergences."
    )
    certificate: Certificate


EXAMPLE = {
    "problem": {
        "kind": "fixed",
        "x": [[0.0], [0.25], [0.5], [0.75], [1.0]],
        "weights": [[0.6, 0.4, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.3, 0.7]],
    },
    "lam": [0.5, 0.5],
    "epsilon": 0.02,
}
