"""Labels and expression carried from one slice to another."""

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from schemas.arrays import ArrayRef, Dims, Request, Result, Strict
from schemas.samples import sample
from schemas.sparse import SparsePlan
from schemas.spatial.slice import Slice

LARGEST_MASS = 1e150


class TransferRequest(Request):
    """Carry labels and expression from one slice to another through a plan.

    Target spot j gets `score_jl = sum_i P_ij [label_i = l] / q_j` with `q = P^T 1`, the label of
    the highest score, and the expression `(P^T X)_j / q_j`.
    """

    source: Slice = Field(description="Its labels (label_key) and counts are carried.")
    target: Slice = Field(description="Gets them; its own labels and counts serve comparison only.")
    plan: SparsePlan = Field(
        description="Plan between the rows of both files, as spatial.align returns it."
    )
    mode: Literal["sum", "max"] = Field(
        "sum", description="sum: all source spots vote by their mass; max: the heaviest alone."
    )
    genes: list[str] | None = Field(
        None,
        max_length=2000,
        description="Source genes to carry, null for none; their correlation with the target is "
        "fair only for genes that the plan was not made from.",
    )
    partners: int = Field(
        3, ge=1, le=1000, description="Heaviest source spots listed for each target spot."
    )

    @model_validator(mode="after")
    def _plan(self) -> "TransferRequest":
        facts = self.plan.mass.facts
        if (facts.low or 0.0) < 0 or not facts.total or facts.total > LARGEST_MASS:
            raise PydanticCustomError(
                "infeasible-problem", "masses are not negative and have a sum, here from {low}, "
                "sum {total}",
                {"field": "plan.mass", "low": facts.low, "total": facts.total},
            )  # fmt: skip
        if self.genes is not None and len(set(self.genes)) < len(self.genes):
            raise PydanticCustomError("validation", "a gene is named twice", {"field": "genes"})
        return self


class Transition(Strict):
    """Mass from source labels (rows) to target labels (columns); rows sum to 1, or to 0."""

    source_labels: list[str]
    target_labels: list[str]
    share: Annotated[ArrayRef, Dims("k l")] = Field(description="Share of a source label's mass.")


class Imputation(Strict):
    """Genes of the source at the target spots."""

    genes: list[str]
    expression: Annotated[ArrayRef, Dims("m g")] = Field(
        description="In the unit of the source's counts; 0 where a spot receives nothing."
    )
    pearson: list[float | None] = Field(
        description="Correlation with the target's own counts over spots that receive mass; null "
        "where the target lacks the gene or a side is constant."
    )


class Agreement(Strict):
    """How far transferred labels agree with the target's own, and with themselves sent back."""

    accuracy: float | None = Field(description="share of spots with both labels that agree")
    adjusted_rand: float | None = Field(description="0 for independent labels, 1 for equal ones")
    mutual_information: float | None = Field(description="over the mean of both entropies")
    round_trip: float | None = Field(
        description="share of labelled source spots that get their own label back"
    )


class Certificate(Strict):
    """What shows that the plan belongs to these slices and that scores are shares."""

    mass: float = Field(description="total of the plan")
    largest_received: float = Field(
        description="largest `q_j / b_j` with `b_j = 1/m`; far above 1 the plan is another's"
    )
    score_error: float = Field(description="largest distance of a spot's shares from the sum 1")


class TransferResult(Result):
    """What every target spot gets, in rows of the target's file."""

    renders = ("png", "svg", "h5ad")

    ids: list[str] = Field(description="Names of the target spots, in rows of the file.")
    received: Annotated[ArrayRef, Dims("m")] = Field(
        description="Mass that a spot receives over its weight 1/m; below 1/2 it is unmatched."
    )
    names: list[str] = Field(description="Labels of the source, the columns of `label_scores`.")
    label_scores: Annotated[ArrayRef, Dims("m l")] | None = Field(
        description="Share of a spot's mass that comes from each label; null without labels."
    )
    labels: list[str] | None = Field(
        description="Label of the highest score; `unmatched` where `received` is below 1/2 or "
        "all of the mass is unlabelled."
    )
    confidence: Annotated[ArrayRef, Dims("m")] | None = Field(description="The highest score.")
    entropy: Annotated[ArrayRef, Dims("m")] | None = Field(
        description="Entropy of the scores in nats: 0 is certain."
    )
    transition: Transition | None = Field(description="Null unless both slices are labelled.")
    imputation: Imputation | None = Field(description="Null unless `genes` are named.")
    partners: Annotated[ArrayRef, Dims("m k")] = Field(
        description="Source rows by falling mass; -1 where there are fewer."
    )
    partner_share: Annotated[ArrayRef, Dims("m k")] = Field(
        description="Share of the spot's mass that comes from each partner."
    )
    mutual_source: Annotated[ArrayRef, Dims("p")] = Field(
        description="Source rows of the pairs that are each other's heaviest partner."
    )
    mutual_target: Annotated[ArrayRef, Dims("p")] = Field(description="Their target rows.")
    agreement: Agreement
    certificate: Certificate


# where spatial.align sends each of the 79 spots first
FIRST = [
    37, 21, 34, 66, 44, 22, 61, 53, 64, 70, 69, 49, 56, 5, 36, 68, 59, 0, 51, 15, 30, 58,
    14, 67, 29, 11, 26, 75, 63, 2, 19, 38, 18, 31, 7, 76, 40, 17, 57, 1, 65, 43, 25, 42, 35,
    24, 71, 46, 39, 32, 23, 77, 47, 13, 9, 4, 6, 28, 10, 78, 72, 74, 79, 20, 8, 80, 54, 60,
    73, 62, 48, 33, 27, 45, 41, 12, 50, 52, 55,
]  # fmt: skip
EXAMPLE = {
    "source": {"dataset": sample("section_1.h5ad"), "label_key": "domain"},
    "target": {"dataset": sample("section_2.h5ad"), "label_key": "domain"},
    "plan": {"rows": list(range(79)), "cols": FIRST, "mass": [1 / 79] * 79},
}
