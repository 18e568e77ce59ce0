"""Losses of top-k classification."""

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from schemas.arrays import ArrayRef, Differentiable, Dims, Request, Result, Strict
from schemas.topk.sparse_rows import SparseRows

COPIES = 14  # arrays as large as the scores that are held at once, in float64


class LossRequest(Request):
    """Top-k losses: zero where the truth is among the k largest scores by a margin.

    Fenchel-Young losses of the relaxed top-k mask, for full or partial targets, and the hit rate
    and likelihood of a label under it; with gradients, and accuracies within the j highest scores.
    """

    x: Annotated[ArrayRef, Dims("B n"), Differentiable()] = Field(
        description="Scores (logits), one row an example, one column a class."
    )
    labels: Annotated[ArrayRef, Dims("B")] | None = Field(
        None,
        description="True column of each row, a whole number from 0 to n - 1; for every kind but "
        "`fy`.",
    )
    targets: Annotated[ArrayRef, Dims("B n")] | None = Field(
        None,
        description="For `fy`: what each row's mask should be, entries from 0 to 1, as 1 at every "
        "true column. The sum of a row is its k; it may differ between rows and need not be whole. "
        "A row of zeros has loss 0.",
    )
    kind: Literal["partial_fy", "fy", "hit", "nll"] = Field(
        "partial_fy",
        description="`partial_fy` asks that one known label be kept, whatever else is: zero iff "
        "its mask is 1, and never without a gradient before. `fy` asks for a whole mask: convex. "
        "`hit` is `1 - y_c`, `nll` is `-log max(y_c, 1e-12)` for the mask y and the label c: their "
        "gradient is exactly zero where `y_c = 0` (see `dead_fraction`).",
    )
    k: int | None = Field(
        None,
        ge=1,
        description="How many columns the mask keeps, at most n; with n it keeps all, and every "
        "loss is 0. Needed for every kind but `fy`, which takes it from the targets.",
    )
    lam: Annotated[float, Field(gt=0, lt=1e100)] | Literal["auto"] = Field(
        1.0,
        description="Strength of the regulariser `(lam/p) sum y^p`, in units of the scores: the "
        "margin by which the truth must win. Towards 0 the mask is the hard top-k, whose gradient "
        "is 0; large values spread it over all columns. `auto` is the median over rows of the gap "
        "between scores around the k-th, held fixed in gradients: it changes with x, so name a "
        "number to train with.",
    )
    p: float = Field(
        2.0,
        gt=1,
        le=8,
        description="Exponent of the regulariser. 2 makes the mask piecewise linear, 4/3 flattens "
        "it near 0; above 2 its slope there is unbounded.",
    )
    answer: Literal["auto", "dense", "sparse"] = Field(
        "auto",
        description="`dense`: `gradient`. `sparse`: `entries`, those of the gradient that are not "
        "0, and no `gradient`. `auto` is sparse for more than 100,000 scores of which less than a "
        "quarter has one.",
    )

    @model_validator(mode="after")
    def _belongs_together(self) -> "LossRequest":
        if self.kind == "fy":
            self._takes_targets()
        else:
            self._takes_labels()
        return self

    def _takes_targets(self) -> None:
        for field in ("labels", "k"):
            if getattr(self, field) is not None:
                raise _refused(field, "fy takes the truth and its k from targets; leave this out")
        if self.targets is None:
            raise _refused("targets", "fy needs a row of targets for each row of x")
        low, high = self.targets.facts.low or 0.0, self.targets.facts.high or 0.0
        if low < 0 or high > 1:
            raise _refused("targets", f"entries lie from {low} to {high}; expected [0, 1]")
        if high == 0:
            raise _refused("targets", "all targets are 0: no row has anything to find")

    def _takes_labels(self) -> None:
        n = self.x.shape[1]
        if self.targets is not None:
            raise _refused("targets", f"{self.kind} takes labels; leave targets out, or ask fy")
        if self.labels is None:
            raise _refused("labels", f"{self.kind} needs the true column of each row")
        if self.k is None or self.k > n:
            raise _refused("k", f"k is {self.k}; expected a number from 1 to {n}, the columns of x")
        low, high = self.labels.facts.low or 0.0, self.labels.facts.high or 0.0
        if low < 0 or high > n - 1:
            raise _refused("labels", f"labels lie from {low} to {high}; expected 0 to {n - 1}")

    def footprint(self) -> int:
        """Count scores, masks, their products and their gradients."""
        return 8 * COPIES * self.x.shape[0] * self.x.shape[1]


def _refused(field: str, text: str) -> PydanticCustomError:
    return PydanticCustomError("validation", "{text}", {"field": field, "text": text})


class Certificate(Strict):
    """What proves losses and gradients, recomputed in float64."""

    sum_error: float = Field(description="largest `|sum y - k|` of a row's mask")
    optimality_gap: float = Field(
        description="how far `<x, y> - R(y)` may be below its maximum, by duality, at most over "
        "rows: losses of the fy kinds are exact up to it"
    )
    gradient_sum: float = Field(
        description="largest `|sum|` of a row of the gradient: 0, as masks keep their sum"
    )
    smallest_loss: float = Field(description="not below 0")
    curvature_slack: float | None = Field(
        description="least `loss - lam (p - 1) |y - y*|^2 / 2`, not below 0 as R is strongly "
        "convex; for fy kinds with p at most 2, else null"
    )


class LossResult(Result):
    """What each row loses, its gradient, how often the truth ranks high, and what masks did."""

    renders = ("png", "svg")

    value: Annotated[float, Differentiable()] = Field(description="Mean of `losses`.")
    losses: Annotated[ArrayRef, Dims("B"), Differentiable()] = Field(
        description="Loss of each row, not below 0."
    )
    gradient: Annotated[ArrayRef, Dims("B n")] | None = Field(
        description="Row i is the gradient of loss i; divide by B for that of `value`. Null where "
        "it is given by its non-zero entries."
    )
    entries: SparseRows | None = Field(description="The same by its non-zero entries, or null.")
    accuracy: Annotated[ArrayRef, Dims("J")] = Field(
        description="Entry j - 1: share of rows whose label is among the j highest scores, j = 1 "
        "to k; equal scores share their ranks. For `fy`: mean share of `min(j, k)` that targets "
        "of the j highest scores hold, over rows with k > 0, j up to the largest k."
    )
    dead_fraction: float = Field(
        description="Share of rows whose loss is above 0 while its gradient is exactly 0: they "
        "teach nothing."
    )
    dead: Annotated[ArrayRef, Dims("B")] = Field(description="Which rows these are.")
    lam: float = Field(description="Strength that was used.")
    tau: Annotated[ArrayRef, Dims("B")] = Field(
        description="Threshold of each row: `y = clip((x - tau) / lam, 0, 1)^(1 / (p - 1))`."
    )
    support: Annotated[ArrayRef, Dims("B")] = Field(description="Entries of the mask above 0.")
    saturated: Annotated[ArrayRef, Dims("B")] = Field(description="Entries of the mask at 1.")
    interior: Annotated[ArrayRef, Dims("B")] = Field(description="Entries between.")
    hard: Annotated[ArrayRef, Dims("B")] = Field(
        description="Whether the mask is exactly k ones: the k-th score beats the next by lam."
    )
    regime: str = Field(description="Which solver found the thresholds.")
    certificate: Certificate


EXAMPLE = {
    "x": [[2.0, 1.5, 0.7, 0.2], [0.1, 1.2, 0.9, 0.4], [-1.0, 0.3, 1.1, 2.5]],
    "labels": [0, 3, 2],
    "k": 2,
    "lam": 1.0,
}
