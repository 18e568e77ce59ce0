"""Alignment of two tissue slices."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from schemas.arrays import ArrayRef, Dims, Request, Result, Strict
from schemas.samples import sample
from schemas.sparse import SparsePlan
from schemas.spatial.expression import Expression
from schemas.spatial.slice import Slice, aligning

# Spots of the larger slice beyond which `auto` takes the hierarchical solver.
DENSE_SPOTS = 5000
# Bytes a spot that the hierarchical solver takes: its counts a few times, and its candidates.
PER_SPOT = 1 << 16


class AlignRequest(Request):
    """Align two tissue slices by fused Gromov-Wasserstein transport.

    Minimises `(1 - alpha) <M, P> + alpha sum (D_ii' - D'_jj')^2 P_ij P_i'j'` over couplings P of
    the spots, M the expression dissimilarity and D, D' the distances within each slice.
    """

    smaller: ClassVar[str] = (
        "ask for solver hierarchical, whose memory grows with the spots and not with their pairs"
    )

    source: Slice = Field(description="The slice that moves.")
    target: Slice = Field(description="The slice that stays; its frame and unit are kept.")
    alpha: float = Field(
        0.1, ge=0, le=1, description="0 compares expression alone, 1 geometry alone."
    )
    expression: Expression = Field(default_factory=Expression)
    scale: Literal["auto", "pitch", "none"] = Field(
        "auto",
        description="Unit of distances: none takes coordinates as they are, pitch divides each "
        "slice by its median spacing, auto is none when both spacings lie in [1/2, 2].",
    )
    mass: Annotated[float, Field(gt=0, le=1)] | Literal["auto"] | None = Field(
        None,
        description="Share of the mass that is matched, for torn or cropped tissue; null matches "
        "all of it, auto the largest share at which distances still agree, with the curve.",
    )
    pairs: Annotated[ArrayRef, Dims("p 2")] | None = Field(
        None,
        description="Rows of the source and of the target file, counted from 0, that show the same "
        "place; two at least. Their rigid fit replaces the search.",
    )
    plan0: Annotated[ArrayRef, Dims("n m")] | None = Field(
        None,
        description="A plan between all rows of both files, >= 0, where the descent begins instead "
        "of a search; its marginals need not be exact. Not with pairs.",
    )
    solver: Literal["auto", "dense", "hierarchical"] = Field(
        "auto",
        description="dense compares all pairs of spots; hierarchical goes from superspots down to "
        "spots with few candidates each, finds the overlap itself (mass is null or auto, no plan0) "
        "and compares principal components; auto is hierarchical where a slice keeps more than "
        "5,000 spots and neither a number for mass nor plan0 is given.",
    )
    init: Literal["multi", "product"] = Field(
        "multi", description="multi: many starts, screened; product: the plan a b^T alone."
    )
    effort: Literal["default", "fast"] = Field(
        "default", description="fast leaves out the polish around the best start."
    )
    allow_reflection: bool = Field(
        False, description="Return a mirrored alignment when it is the better one."
    )
    tol: float = Field(
        1e-9, gt=0, lt=1, description="Stop when the objective falls by less, absolute or relative."
    )
    max_iter: int = Field(200, ge=1, le=100_000, description="Conditional-gradient steps a start.")

    @model_validator(mode="after")
    def _beginnings(self) -> "AlignRequest":
        if self.pairs is not None and self.plan0 is not None:
            raise PydanticCustomError(
                "validation", "plan0 comes instead of pairs, not with them", {"field": "plan0"}
            )
        if self.pairs is not None and (self.pairs.facts.low or 0.0) < 0:
            raise PydanticCustomError(
                "validation", "rows are counted from 0; the smallest is {low}",
                {"field": "pairs", "low": self.pairs.facts.low},
            )  # fmt: skip
        if self.pairs is not None and self.pairs.shape[0] < 2:
            raise PydanticCustomError(
                "infeasible-problem", "a motion needs two pairs at least", {"field": "pairs"}
            )
        if self.plan0 is not None and ((self.plan0.facts.low or 0.0) < 0):
            raise PydanticCustomError(
                "validation", "a plan is not negative; the smallest entry is {low}",
                {"field": "plan0", "low": self.plan0.facts.low},
            )  # fmt: skip
        return self

    @model_validator(mode="after")
    def _solvable(self) -> "AlignRequest":
        if self.solver != "hierarchical" or not self._needs_dense():
            return self
        field = "mass" if self.plan0 is None else "plan0"
        raise PydanticCustomError(
            "validation",
            "{field} is of the dense solver: the hierarchical one finds overlap and start itself",
            {"field": field},
        )

    def _needs_dense(self) -> bool:
        return self.plan0 is not None or self.mass not in (None, "auto", 1)

    def footprint(self) -> int:
        """Count the matrices of all pairs of spots, or the spots, as the solver needs."""
        n, m = self.source.spots, self.target.spots
        dense = aligning(n, m)
        if self.solver == "hierarchical" or (self.solver == "auto" and not self._needs_dense()):
            few = 0 if self.solver == "hierarchical" else DENSE_SPOTS
            dense = aligning(min(n, few), min(m, few))
        sparse = 0 if self.solver == "dense" else PER_SPOT * (n + m)
        return super().footprint() + max(dense, sparse)


class Start(Strict):
    """One start of the search and what became of it."""

    name: str
    stage: str = Field(description="stage at which it was dropped, or `winner`")
    value: float = Field(description="objective when it was last looked at")
    determinant: float = Field(description="+1 proper, -1 mirrored: sign of its Procrustes fit")


class Share(Strict):
    """What the best plan found of one mass is like."""

    mass: float = Field(description="share of the mass that travels")
    value: float = Field(description="objective at this mass")
    expression_cost: float = Field(description="mean dissimilarity of matched spots, `<M, P>/mass`")
    distortion_rms: float = Field(
        description="root mean square by which distances between matched spots disagree, in "
        "pitches of the target"
    )
    slope: float | None = Field(
        description="rise of the objective per mass towards the next larger share: what matching "
        "more costs; null at the largest"
    )
    edge_score: float = Field(
        description="share of neighbouring source spots of which one alone is matched"
    )


class Refinement(Strict):
    """One level of the hierarchical solver, from coarse to fine."""

    spots_source: int = Field(description="superspots, or spots at the last level")
    spots_target: int = Field(description="the same of the target")
    unit: float = Field(description="side of a cell, or spacing of spots, in pitches of the target")
    rounds: int = Field(description="matchings made")
    change: float = Field(
        description="root mean square, in units, by which the last round asked to move the spots"
    )
    settled: bool = Field(description="that was less than 0.01")
    rotation_degrees: float = Field(
        description="angle of the motion; of a mirrored slice after it was turned over"
    )
    expression_cost: float = Field(
        description="mean cost of what was matched; random pairs have 2, and 0 is no difference"
    )


class Hierarchy(Strict):
    """What the hierarchical solver knows beyond the plan."""

    rigid: Annotated[ArrayRef, Dims("3 3")] = Field(
        description="Rigid motion nearest to `transform`, which is affine."
    )
    residual: Annotated[ArrayRef, Dims("n 2")] = Field(
        description="Smooth displacement in the target's unit; `aligned + residual` is bent."
    )
    residual_ratio: float | None = Field(
        description="Mean square by which genes that were held out differ between a spot and its "
        "place, with the residual over without: below 1 the residual is real. Null where fewer "
        "than 50 genes left none to hold out."
    )
    genes_held_out: int = Field(description="Genes that took no part in the matching.")
    outside_source: float = Field(
        description="Share of the source spots kept that no target spot lies near."
    )
    outside_target: float = Field(description="The same of the target.")
    levels: list[Refinement]
    sinkhorn_residual: float = Field(
        description="Of the last matching: what one more sweep would move, or the duality gap if "
        "that is larger, as a share of the mass; 0 at its optimum."
    )
    distortion_error: float = Field(description="Standard error of `distortion`, a sampled mean.")


class Scores(Strict):
    """How well labels and landmarks agree; null where the slices carry none."""

    label_accuracy: float | None = Field(description="mass between spots of equal label")
    label_accuracy_best_possible: float | None = Field(
        description="largest that any coupling of the two compositions reaches"
    )
    label_accuracy_random: float | None = Field(description="of the product plan")
    landmark_error_median: float | None = Field(description="in pitches of the landmark frame")
    landmark_error_mean: float | None = Field(description="in pitches of the landmark frame")
    landmark_spots: int = Field(description="spots that the landmark errors are taken over")


class Certificate(Strict):
    """What shows that the plan is feasible and stationary, and the motion well defined."""

    marginal_error_a: float = Field(description="`|P 1 - a|_1`; of a partial plan what exceeds a")
    marginal_error_b: float = Field(description="`|P^T 1 - b|_1`, likewise")
    mass_error: float | None = Field(
        description="`|sum P - mass|`; null of the hierarchical solver, which finds the mass"
    )
    frank_wolfe_gap: float | None = Field(
        description="`<gradient, P - V>` for the best vertex V: 0 at a stationary point; null when "
        "the computation was interrupted, and of the hierarchical solver"
    )
    value_difference: float | None = Field(
        description="objective of the iteration minus objective recomputed from its formula; null "
        "of the hierarchical solver"
    )
    reflection_margin: float | None = Field(
        description="mirrored_value / proper value - 1; negative says that a slice is mirrored"
    )
    mirrored_value: float | None = Field(description="best objective of a mirrored alignment")
    singular_ratio: float = Field(
        description="second over first singular value of the Procrustes matrix; near 1 the outline "
        "is round and does not determine the angle"
    )
    rigid_strength: float = Field(
        description="share of both spreads that the rigid motion explains, in [0, 1]"
    )


class AlignResult(Result):
    """The matching of spots, the rigid motion that follows from it, and how good both are."""

    renders = ("png", "svg", "h5ad")

    plan: SparsePlan = Field(description="Coupling of spots, in rows of the files.")
    aligned: Annotated[ArrayRef, Dims("n 2")] = Field(
        description="Source coordinates moved into the target's frame, in rows of the file."
    )
    transform: Annotated[ArrayRef, Dims("3 3")] = Field(
        description="Homogeneous matrix that maps original source coordinates to `aligned`: rigid "
        "up to the unit, of the hierarchical solver affine."
    )
    value: float = Field(description="Objective, recomputed from the formula at the plan.")
    transport_cost: float = Field(description="Expression term `<M, P>`.")
    distortion: float = Field(description="Geometry term; of the hierarchical solver sampled.")
    mass_moved: float = Field(description="Mass of the plan; 1 is all of it.")
    curve: list[Share] = Field(
        description="What was seen at each share; for mass auto, else empty."
    )
    unmatched_source: Annotated[ArrayRef, Dims("n")] = Field(
        description="True where a source spot carries less than half of its mass (hierarchical: no "
        "target spot lies near where it is moved to), or was filtered."
    )
    unmatched_target: Annotated[ArrayRef, Dims("m")] = Field(
        description="The same for each target spot."
    )
    kept_source: Annotated[ArrayRef, Dims("k")] = Field(description="Source rows after filtering.")
    kept_target: Annotated[ArrayRef, Dims("l")] = Field(description="Target rows after filtering.")
    genes: int = Field(description="Number of common genes used.")
    scale_used: Literal["pitch", "none"]
    pitch_source: float = Field(description="Median spacing of the source, in its unit.")
    pitch_target: float = Field(description="Median spacing of the target, in its unit.")
    reflected: bool = Field(description="The transform contains a reflection.")
    rotation_degrees: float = Field(description="Counter-clockwise angle of the motion.")
    starts: list[Start]
    solver: Literal["dense", "hierarchical"] = Field(description="Which solver ran.")
    hierarchy: Hierarchy | None = Field(description="Null of the dense solver.")
    scores: Scores
    certificate: Certificate


EXAMPLE = {
    "source": {"dataset": sample("section_1.h5ad"), "label_key": "domain",
               "landmark_key": "tissue"},
    "target": {"dataset": sample("section_2.h5ad"), "label_key": "domain",
               "landmark_key": "tissue"},
}  # fmt: skip
