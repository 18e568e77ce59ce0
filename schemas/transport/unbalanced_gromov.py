"""Unbalanced Gromov-Wasserstein, plain and fused."""

from typing import Annotated

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from schemas.arrays import ArrayRef, Differentiable, Dims, Request, Result, Strict
from schemas.measures import MASS_TOLERANCE, check_weights
from schemas.spaces import check_one


class UnbalancedGromovRequest(Request):
    """Unbalanced Gromov-Wasserstein: match two spaces that may have parts without counterpart.

    Minimises `alpha sum (Cx_ik - Cy_jl)^2 P_ij P_kl + (1 - alpha) <C, P> + rho_a KL2(P1|a) +
    rho_b KL2(P^T 1|b) + epsilon KL2(P|a b^T)` over P >= 0, KL2(p|q) the Kullback-Leibler
    divergence of p (x) p from q (x) q. The answer is a stationary point.
    """

    x: Annotated[ArrayRef, Dims("n d"), Differentiable()] | None = Field(
        None,
        description="Source points, whose costs are squared distances; or give Cx. Cheaper than "
        "the matrix: distances are used through factors only.",
    )
    y: Annotated[ArrayRef, Dims("m e"), Differentiable()] | None = Field(
        None, description="Target points, in a space of any dimension; or give Cy."
    )
    Cx: Annotated[ArrayRef, Dims("n n"), Differentiable()] | None = Field(
        None, description="Costs within the source, symmetric or not; or give x."
    )
    Cy: Annotated[ArrayRef, Dims("m m"), Differentiable()] | None = Field(
        None, description="Costs within the target; or give y."
    )
    a: Annotated[ArrayRef, Dims("n"), Differentiable()] | None = Field(
        None, description="Source weights, >= 0, of any total; null is uniform with mass 1."
    )
    b: Annotated[ArrayRef, Dims("m"), Differentiable()] | None = Field(
        None, description="Target weights, likewise."
    )
    C: Annotated[ArrayRef, Dims("n m"), Differentiable()] | None = Field(
        None, description="Linear cost between the spaces, as of features; needed if alpha < 1."
    )
    alpha: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Weight of the quadratic part, 1 - alpha of the linear one (the convention of "
        "fused unbalanced Gromov-Wasserstein): 1 is pure Gromov-Wasserstein.",
    )
    rho_a: float | None = Field(
        gt=0,
        description="Strength of the source marginal, in units of the squared costs; null makes "
        "it exact: all of a is matched.",
    )
    rho_b: float | None = Field(
        gt=0,
        description="Strength of the target marginal, likewise. With null on both sides masses "
        "must agree: entropic Gromov-Wasserstein.",
    )
    epsilon: float = Field(
        gt=0,
        description="Entropic strength, in units of the squared costs: small is sharp and slow.",
    )
    tol: float = Field(
        1e-6,
        gt=0,
        lt=1,
        description="Stop when the plan and the best second plan differ by less: L1 distance of "
        "their shapes plus that of their log-masses.",
    )
    max_iter: int = Field(
        1000, ge=1, le=1_000_000, description="Updates of the plan before giving up."
    )
    plan0: Annotated[ArrayRef, Dims("n m")] | None = Field(
        None,
        description="Plan to start from, >= 0; null is the product of the weights. Other starts "
        "may lead to other, better or worse, answers.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> "UnbalancedGromovRequest":
        check_one("x", self.x, "Cx", self.Cx)
        check_one("y", self.y, "Cy", self.Cy)
        check_weights("a", self.a)
        check_weights("b", self.b)
        if self.alpha < 1 and self.C is None:
            raise PydanticCustomError(
                "validation", "alpha is {alpha}, below 1: give the linear cost C",
                {"field": "C", "alpha": self.alpha},
            )  # fmt: skip
        if self.plan0 is not None and (
            (self.plan0.facts.low or 0.0) < 0 or not self.plan0.facts.total
        ):
            raise PydanticCustomError(
                "infeasible-problem", "a plan has entries >= 0, and some mass", {"field": "plan0"}
            )
        mass_a, mass_b = (1.0 if w is None else w.facts.total or 0.0 for w in (self.a, self.b))
        exact = self.rho_a is None and self.rho_b is None
        if exact and abs(mass_a - mass_b) > MASS_TOLERANCE * max(mass_a, mass_b):
            raise PydanticCustomError(
                "infeasible-problem",
                "both marginals exact need equal masses; a has {mass_a}, b has {mass_b}: give a "
                "rho, or normalise the weights and ask transport.gromov",
                {"field": "rho_a", "mass_a": mass_a, "mass_b": mass_b},
            )
        return self

    def footprint(self) -> int:
        """Count the matrices of both spaces, and the plans and costs of the last updates."""
        x, y = (p if p is not None else c for p, c in ((self.x, self.Cx), (self.y, self.Cy)))
        assert x is not None
        assert y is not None
        n, m = x.shape[0], y.shape[0]
        within = 2 * n * n * (self.x is None) + 2 * m * m * (self.y is None)
        return 8 * (within + 20 * n * m)


class Certificate(Strict):
    """What shows how nearly stationary the plan is, in float64, from the plan that is returned."""

    tightness: float = Field(
        description="`|m(Q) - m(P)| / m(P)`, Q the best second plan for the plan P"
    )
    fixed_point_residual: float = Field(description="`|Q - P|_1 / m(P)`")
    stationarity: float = Field(
        description="`sum P |slope|` in units of `value`: changing each entry of the plan by at "
        "most a share s changes `value` by at most s times this, to first order"
    )
    marginal_gap_a: float = Field(
        description="`|P 1 - a|_1`: mass not matched; an error where rho_a is null"
    )
    marginal_gap_b: float = Field(description="`|P^T 1 - b|_1`, likewise")
    quadratic_kl_a: float = Field(description="`KL2(P1|a)`")
    quadratic_kl_b: float = Field(description="`KL2(P^T 1|b)`")
    quadratic_kl_plan: float = Field(description="`KL2(P|a b^T)`")
    lower_bound: float | None = Field(
        description="what every plan costs at least, from masses alone and hence often far below "
        "`value`; null where C has negative entries"
    )


class UnbalancedGromovResult(Result):
    """A stationary plan, what it leaves unmatched, and the parts of its objective."""

    renders = ("png", "svg")

    plan: Annotated[ArrayRef, Dims("n m")] = Field(description="Coupling; its mass is free.")
    rows: Annotated[ArrayRef, Dims("n")] = Field(
        description="Mass that leaves each source point, `P 1`; compare with a."
    )
    columns: Annotated[ArrayRef, Dims("m")] = Field(description="Mass that arrives, `P^T 1`.")
    mass: float = Field(description="Total of the plan.")
    value: Annotated[float, Differentiable()] = Field(description="Whole objective.")
    gw: float = Field(description="`sum (Cx_ik - Cy_jl)^2 P_ij P_kl`, without alpha.")
    transport_cost: float = Field(description="`<C, P>`, without 1 - alpha; 0 without C.")
    penalty_a: float = Field(description="`rho_a KL2(P1|a)`; 0 where the marginal is exact.")
    penalty_b: float = Field(description="`rho_b KL2(P^T 1|b)`, likewise.")
    entropy: float = Field(description="`epsilon KL2(P|a b^T)`.")
    certificate: Certificate


EXAMPLE = {
    "x": [[0.0, 0.0], [1.0, 0.0], [0.0, 2.0], [1.5, 1.5]],
    "y": [[0.0], [1.1], [2.1]],
    "a": [0.25, 0.25, 0.25, 0.5],
    "b": [0.3, 0.3, 0.4],
    "rho_a": 1.0,
    "rho_b": 2.0,
    "epsilon": 0.5,
}
