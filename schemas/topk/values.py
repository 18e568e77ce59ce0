"""Relaxed values of the k largest entries of rows."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from schemas.arrays import ArrayRef, Differentiable, Dims, Request, Result, Strict
from schemas.topk.amounts import check_amounts, check_method, check_strengths
from schemas.topk.sparse_rows import SparseRows

COPIES = 14  # arrays as large as the rows that are held at once, in float64


class ValuesRequest(Request):
    """Sparse differentiable top-k values of each row: the largest stay, the others become 0.

    By magnitude: the gradient of `max_y <x, y> - |y|_k^2 / 2 - (lam/p) sum |y|^p`, `|.|_k` the
    k-support norm; one threshold for each row says what stays, what is pooled and what is 0.
    Signed: x times its relaxed mask, see topk.mask.
    """

    smaller: ClassVar[str] = "ask for fewer rows at a time: they do not depend on each other"

    x: Annotated[ArrayRef, Dims("B n"), Differentiable()] = Field(
        description="Entries, as weights or activations; each row is a problem of its own."
    )
    k: int | None = Field(
        None,
        ge=0,
        description="How many entries a row keeps, 0 <= k <= n. 0 gives zeros; n gives x (debias). "
        "Give either this or k_rows.",
    )
    k_rows: Annotated[ArrayRef, Dims("B")] | None = Field(
        None, description="k of each row instead, whole numbers."
    )
    lam: Annotated[float, Field(gt=0, lt=1e300)] | None = Field(
        None,
        description="Strength of the regularizer. By magnitude its unit is that of x to the power "
        "2 - p (none for p = 2); signed, that of x. Small keeps exactly k entries, large pools "
        "many. Give at most one of lam, lam_relative, lam_rows; without any, `lam_relative` is the "
        "median over rows of the gap between entries around the k-th, in units of the k-th.",
    )
    lam_relative: Annotated[float, Field(gt=0, lt=1e100)] | None = Field(
        None,
        description="The same in units of each row's k-th largest magnitude (to the power 2 - p; "
        "signed, to the power 1), held fixed in gradients: rows of any scale are treated alike.",
    )
    lam_rows: Annotated[ArrayRef, Dims("B"), Differentiable()] | None = Field(
        None, description="lam of each row, all > 0; gradients with respect to lam go here."
    )
    p: float = Field(
        2.0,
        gt=1,
        le=8,
        description="Exponent of the regularizer. Above 2 the slope at 0 is unbounded.",
    )
    mode: Literal["magnitude", "signed"] = Field(
        "magnitude",
        description="`magnitude`: keep the entries of largest absolute value, with their signs. "
        "`signed`: keep the largest entries, `x * mask(x)`.",
    )
    debias: bool = Field(
        True,
        description="By magnitude: undo the shrinkage of what is kept: clear winners come back "
        "exactly as they are. Without, they are `v` with `v + lam v^(p-1) = |x|`, the gradient of "
        "`value`. Signed: not used.",
    )
    method: Literal["newton", "sort", "pav", "dykstra"] = Field(
        "newton",
        description="`newton` finds the threshold by safeguarded steps; the others are slower ways "
        "to the same values, for comparison (`dykstra`: p = 2, 500 sweeps, converged or not).",
    )
    answer: Literal["auto", "dense", "sparse"] = Field(
        "auto",
        description="`dense`: `y`. `sparse`: `entries`, those that are not 0, and no `y`. `auto` "
        "is sparse for more than 100,000 entries of which less than a quarter is kept. Gradients "
        "come from `y`: ask for `dense` with them.",
    )
    tangent: Annotated[ArrayRef, Dims("B n")] | None = Field(
        None, description="A direction of x: `jvp` is the derivative of y along it."
    )

    @model_validator(mode="after")
    def _belongs_together(self) -> "ValuesRequest":
        check_amounts(self.k, self.k_rows, self.x.shape[1])
        check_strengths(self.lam_rows)
        names = [n for n in ("lam", "lam_relative", "lam_rows") if getattr(self, n) is not None]
        if len(names) > 1:
            raise PydanticCustomError(
                "validation", "{names} received; expected at most one of them",
                {"field": names[-1], "names": " and ".join(names)},
            )  # fmt: skip
        check_method(self.method, self.p)
        return self

    def footprint(self) -> int:
        """Count rows, distances, kinds of entries, values and what the certificate needs."""
        copies = COPIES if self.method == "newton" else 2 * COPIES
        return 8 * copies * self.x.shape[0] * self.x.shape[1]


class Certificate(Strict):
    """What proves the values, recomputed in float64 from `y` and `tau`."""

    sum_error: float = Field(
        description="largest over rows of `|sum min(v, tau)/tau - k|`, v the values with their "
        "shrinkage: the equation of the threshold; signed: `|sum of the mask - k|`"
    )
    stationarity_error: float = Field(
        description="largest violation over entries of `|x| = lam v^(p-1) + max(v, tau)` where "
        "v > 0 and of `|x| <= tau` where v = 0, in units of the row's largest magnitude; signed: "
        "how far `<x, mask> - R` may be below its maximum, by duality, in the same units"
    )


class ValuesResult(Result):
    """The values, their thresholds, and how many entries are pooled."""

    renders = ("png", "svg")

    y: Annotated[ArrayRef, Dims("B n"), Differentiable()] | None = Field(
        description="Values, 0 where nothing is kept. Null where they are given by their entries."
    )
    entries: SparseRows | None = Field(description="The same by their non-zero entries, or null.")
    debiased: bool = Field(description="whether the shrinkage was undone")
    value: Annotated[ArrayRef, Dims("B"), Differentiable()] = Field(
        description="By magnitude: maximum over y of `<x, y> - |y|_k^2/2 - (lam/p) sum |y|^p`, "
        "whose gradient are the values with their shrinkage. Signed: that of the mask, see "
        "topk.mask."
    )
    tau: Annotated[ArrayRef, Dims("B")] = Field(
        description="Thresholds: of magnitudes, or of entries where signed. What lies below is 0."
    )
    lam: Annotated[ArrayRef, Dims("B")] = Field(description="Strength that each row was given.")
    support: Annotated[ArrayRef, Dims("B")] = Field(
        description="Entries of each row that are not 0; more than k where some are pooled."
    )
    saturated: Annotated[ArrayRef, Dims("B")] = Field(
        description="Clear winners, which only their own x moves; signed: entries of mask 1."
    )
    interior: Annotated[ArrayRef, Dims("B")] = Field(
        description="Pooled entries, which share the last places."
    )
    hard: Annotated[ArrayRef, Dims("B")] = Field(description="Rows without any: exactly k stay.")
    regime: str = Field(description="what ran, as in topk.mask")
    jvp: Annotated[ArrayRef, Dims("B n")] | None = Field(
        description="Derivative of y along `tangent`, or null."
    )
    certificate: Certificate


EXAMPLE = {
    "x": [[3.0, -2.0, 1.8, -1.5, 0.2], [0.5, -0.1, 0.4, -0.45, 0.05]],
    "k": 2,
    "lam": 0.5,
}
