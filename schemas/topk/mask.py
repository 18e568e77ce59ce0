"""Relaxed masks of the k largest entries of rows."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from schemas.arrays import ArrayRef, Differentiable, Dims, Request, Result, Strict
from schemas.topk.amounts import check_amounts, check_method, check_strengths
from schemas.topk.sparse_rows import SparseRows

COPIES = 8  # arrays as large as the scores that are held at once, in float64


class MaskRequest(Request):
    """Sparse differentiable top-k mask of each row of scores.

    Maximises `<x, y> - R(y)` over masks y in [0, 1] with `sum y = k`, row by row: `y = rho((x -
    tau) / lam)` with one threshold tau. As lam falls to 0 y becomes the indicator of the k largest
    scores; it is exactly that as soon as the gap behind the k-th is at least lam.
    """

    smaller: ClassVar[str] = "ask for fewer rows at a time: they do not depend on each other"

    x: Annotated[ArrayRef, Dims("B n"), Differentiable()] = Field(
        description="Scores; each row is a problem of its own."
    )
    k: float | None = Field(
        None,
        ge=0,
        description="How many entries a row keeps, 0 <= k <= n; need not be whole. 0 gives zeros, "
        "n ones, both without gradient. Give either this or k_rows.",
    )
    k_rows: Annotated[ArrayRef, Dims("B"), Differentiable()] | None = Field(
        None, description="k of each row instead; gradients with respect to k go here."
    )
    lam: Annotated[float, Field(gt=0, lt=1e300)] | Literal["auto"] = Field(
        "auto",
        description="Strength of the regularizer, in units of the scores: entries within lam of "
        "the threshold are fractional. Small is sharp, with fewer entries that have a gradient; "
        "large spreads the mask over all entries. `auto` is the median over rows of `x_(k-j) - "
        "x_(k+j)`, j a tenth of k (at least 1), held fixed in gradients; the answer tells it.",
    )
    lam_rows: Annotated[ArrayRef, Dims("B"), Differentiable()] | None = Field(
        None,
        description="lam of each row instead, all > 0; gradients with respect to lam go here.",
    )
    p: float = Field(
        2.0,
        gt=1,
        le=8,
        description="Exponent of the regularizers power and two_sided. 2 makes the mask piecewise "
        "linear; 4/3 bends it smoothly away from 0; towards 1 it becomes a step. Above 2 its slope "
        "at 0 is unbounded.",
    )
    regularizer: Literal["power", "two_sided", "sigmoid", "laplace"] = Field(
        "power",
        description="`power`: `(lam/p) sum y^p`; `y = clip((x - tau)/lam, 0, 1)^(1/(p-1))`. "
        "`two_sided`: `(lam/p) sum (y^p + (1-y)^p)`: for p < 2 its Jacobian is continuous, also "
        "where entries reach 1, which that of `power` is not. `sigmoid`, `laplace`: `y` is that "
        "function of `(x - tau)/lam`: dense, and never exactly 0 or 1.",
    )
    method: Literal["newton", "sort", "pav", "dykstra"] = Field(
        "newton",
        description="`newton` finds the threshold by safeguarded steps. `sort`, `pav` and (p = 2) "
        "`dykstra` are slower ways to the same mask of the power regularizer, for comparison; "
        "`dykstra` stops after 500 sweeps, converged or not.",
    )
    valid: Annotated[ArrayRef, Dims("B n")] | None = Field(
        None,
        description="1 where there is an entry, 0 where a row is only padded: such entries get 0 "
        "and no gradient. Each row needs k entries that are there.",
    )
    answer: Literal["auto", "dense", "sparse"] = Field(
        "auto",
        description="`dense`: `y`. `sparse`: `entries`, those that are not 0, and no `y`. `auto` "
        "is sparse for more than 100,000 scores of which less than a quarter is kept. Gradients "
        "come from `y`: ask for `dense` with them.",
    )
    tangent: Annotated[ArrayRef, Dims("B n")] | None = Field(
        None,
        description="A direction of x: `jvp` is the derivative of the mask along it.",
    )

    @model_validator(mode="after")
    def _belongs_together(self) -> "MaskRequest":
        check_amounts(self.k, self.k_rows, self.x.shape[1])
        check_strengths(self.lam_rows)
        if self.method != "newton" and self.regularizer != "power":
            raise PydanticCustomError(
                "validation", "{method} is for the power regularizer; expected newton here",
                {"field": "method", "method": self.method},
            )  # fmt: skip
        check_method(self.method, self.p)
        if self.valid is not None and self.valid.facts.low not in (0, 1):
            raise PydanticCustomError(
                "validation", "entries are 0 or 1, received {low}",
                {"field": "valid", "low": self.valid.facts.low},
            )  # fmt: skip
        return self

    def footprint(self) -> int:
        """Count scores, distances, masks and what the certificate needs; sorted ones as well."""
        copies = COPIES if self.method == "newton" else 2 * COPIES
        return 8 * copies * self.x.shape[0] * self.x.shape[1]


class Certificate(Strict):
    """What proves the masks, recomputed in float64 from `y` and `tau`."""

    sum_error: float = Field(description="largest `|sum y - k|` over rows")
    optimality_gap: float = Field(
        description="largest over rows of what `<x, y> - R(y)` can be below its maximum: by "
        "duality that is at most `k tau + sum_i max_t ((x_i - tau) t - R(t))`; in units of x"
    )
    outside: float = Field(description="by how much entries leave [0, 1], at most: 0")


class MaskResult(Result):
    """The masks, their thresholds, and how many entries carry a gradient."""

    renders = ("png", "svg")

    y: Annotated[ArrayRef, Dims("B n"), Differentiable()] | None = Field(
        description="Masks; each row sums to its k. Null where they are given by their entries."
    )
    entries: SparseRows | None = Field(description="The same by their non-zero entries, or null.")
    value: Annotated[ArrayRef, Dims("B"), Differentiable()] = Field(
        description="Maximum `<x, y> - R(y)` of each row, in units of x; its gradients are y (for "
        "x), tau (for k) and `-R(y)/lam` (for lam)."
    )
    tau: Annotated[ArrayRef, Dims("B")] = Field(
        description="Thresholds, in units of x; where a row keeps nothing its largest entry, where "
        "it keeps all its smallest less lam."
    )
    lam: Annotated[ArrayRef, Dims("B")] = Field(description="Strength that each row was given.")
    support: Annotated[ArrayRef, Dims("B")] = Field(
        description="Entries of each row that are not 0: at least k, more where it is smooth."
    )
    saturated: Annotated[ArrayRef, Dims("B")] = Field(description="Those that are 1.")
    interior: Annotated[ArrayRef, Dims("B")] = Field(
        description="Those between, from which all of the gradient comes."
    )
    hard: Annotated[ArrayRef, Dims("B")] = Field(
        description="Rows without any between: the exact top-k, of gradient 0."
    )
    regime: str = Field(
        description="what ran: `compiled` row loops; tensor code on a `narrow` window, on `wide` "
        "rows or on the `selected` part of one long row; or the method asked for"
    )
    jvp: Annotated[ArrayRef, Dims("B n")] | None = Field(
        description="Derivative of the masks along `tangent`, or null."
    )
    certificate: Certificate


EXAMPLE = {
    "x": [[1.0, 0.8, 0.5, 0.1, -0.4], [0.0, 0.3, 0.2, 0.9, 0.1]],
    "k": 2.0,
    "lam": 0.5,
}
