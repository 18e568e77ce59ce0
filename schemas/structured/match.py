"""Matching of two clouds that share no coordinates, by a map with structure."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from schemas.arrays import ArrayRef, Dims, Request, Result, Strict
from schemas.measures import check_weights
from schemas.sparse import SparsePlan
from schemas.structured.regularizer import BOUNDED, Regularizer

# Pairs from which `auto` streams entropic plans; points a side that starts are compared between.
STREAMED_FROM, SAMPLED = 1 << 26, 500
FROBENIUS = Regularizer()
UNBOUNDED = (
    "with {name} the problem is unbounded below when mass may grow: the conjugate of a squared "
    "norm grows like the square of the mass, its price like mass log mass; take stiefel or a "
    "ball, or transport.unbalanced_gromov"
)


class MatchRequest(Request):
    """Match points of two spaces without common coordinates, learning a simple linear map.

    Minimises `-alpha <M, G(P)> + (1 - alpha) <C, P> + R(M) + epsilon KL(P | a b^T)` over maps M and
    plans P, `G(P) = sum_ij P_ij y_j x_i^T`, C the cost of shared features. Not convex: the best of
    many starts is returned, other ends beside it.
    """

    smaller: ClassVar[str] = "ask for method streamed with epsilon above 1e-4 eps*, or send fewer"

    x: Annotated[ArrayRef, Dims("n d")] = Field(description="Source points, rows; at least two.")
    y: Annotated[ArrayRef, Dims("m e")] = Field(description="Target points, of any dimension.")
    a: Annotated[ArrayRef, Dims("n")] | None = Field(
        None, description="Source weights, >= 0, divided by their total; null is uniform."
    )
    b: Annotated[ArrayRef, Dims("m")] | None = Field(
        None, description="Target weights, >= 0, divided by their total; null is uniform."
    )
    regularizer: Regularizer = Field(FROBENIUS, description="What is known of the map.")
    scaling: Literal["unit", "gw_ip", "gw_se"] = Field(
        "unit",
        description="Weight q of the squared norm: `unit` 1; `gw_ip` 1/4, with which frobenius is "
        "Gromov-Wasserstein of inner products up to a constant; `gw_se` 1/16 and the cost "
        "`-4 |x|^2 |y|^2`, which is that of squared distances. Not for maps on a bounded set.",
    )
    epsilon: float | None = Field(
        None, ge=0,
        description="Entropic strength in units of the objective; 0 is exact transport.",
    )  # fmt: skip
    epsilon_relative: float | None = Field(
        None, gt=0, le=1e6,
        description="The same in units of eps* of the certificate, plus 1 - alpha times the mean "
        "shared cost; give at most one of the two. Without either it is 0.05. Balanced transport "
        "below 1e-4 is exact, unless method is dense.",
    )  # fmt: skip
    rho_a: float | None = Field(
        None, gt=0,
        description="Price `rho KL(P 1 | a)` of other source marginals, in units of the objective; "
        "null is balanced. For stiefel and balls alone; at least the range of the costs.",
    )  # fmt: skip
    rho_b: float | None = Field(
        None, gt=0, description="The same for the target marginal."
    )  # fmt: skip
    center: bool = Field(True, description="Move both weighted means to the origin first.")
    standardize: Literal["none", "zscore", "l2rows"] = Field(
        "none",
        description="`zscore` divides features by their deviation (constant ones stay), `l2rows` "
        "divides points by their length, before they are centred.",
    )
    x_shared: Annotated[ArrayRef, Dims("n q")] | None = Field(
        None, description="Source features that the target has as well; needs alpha < 1."
    )
    y_shared: Annotated[ArrayRef, Dims("m q")] | None = Field(
        None, description="The same features of the target."
    )
    shared_cost: Literal["sqeuclidean", "inner"] = Field(
        "sqeuclidean", description="Cost of a pair: `|s - t|^2`, or `-<s, t>`."
    )
    alpha: float = Field(
        1.0, ge=0, le=1, description="1 matches by the map alone, 0 by shared features alone."
    )
    map0: Annotated[ArrayRef, Dims("e d")] | None = Field(
        None, description="One more start: a map on prepared points."
    )
    plan0: Annotated[ArrayRef, Dims("n m")] | None = Field(
        None, description="One more start: known pairs, as a plan >= 0 of any mass."
    )
    starts: int | None = Field(
        None, ge=0, le=10_000,
        description="Random starts beside the ten designed ones; null is 8 that are annealed, and "
        "for exact transport up to 256 more.",
    )  # fmt: skip
    anneal: bool = Field(
        True, description="Begin at larger entropic strengths, without lam at first."
    )
    n_modes: int = Field(
        1, ge=1, le=100,
        description="How many ends to list whose plans differ by a tenth of the mass or more.",
    )  # fmt: skip
    method: Literal["auto", "dense", "streamed"] = Field(
        "auto",
        description="`streamed` never forms a plan, and needs epsilon > 0; `auto` does so above "
        "2^26 pairs; `dense` does not, and never turns to exact transport by itself.",
    )
    top: int = Field(10, ge=1, le=10_000, description="Entries of a row of a streamed plan.")
    paired: bool = Field(
        False, description="Row i of x is row i of y: score with it (nothing is fitted to it)."
    )
    labels: Annotated[ArrayRef, Dims("n")] | None = Field(
        None, description="Integer labels of sources, below 0 for none: for scores alone."
    )
    target_labels: Annotated[ArrayRef, Dims("m")] | None = Field(
        None, description="Integer labels of targets; both or neither."
    )
    neighbours: int = Field(5, ge=1, le=1000, description="Targets that vote for a label.")
    tol: float = Field(
        1e-6, gt=0, lt=1, description="Stop when a turn moves the map by less than this share."
    )
    max_iter: int = Field(500, ge=1, le=1_000_000, description="Turns of each end that is listed.")

    @model_validator(mode="after")
    def _weights(self) -> "MatchRequest":
        check_weights("a", self.a)
        check_weights("b", self.b)
        for field, z in (("x", self.x), ("y", self.y)):
            if z.facts.low == z.facts.high:
                raise _refused(field, "all entries are equal: there is nothing to match")
        low = None if self.plan0 is None else self.plan0.facts.low
        if self.plan0 is not None and ((low or 0.0) < 0 or not self.plan0.facts.total):
            raise _refused("plan0", "a plan is not negative, and has mass")
        return self

    @model_validator(mode="after")
    def _problem(self) -> "MatchRequest":
        name, bounded = self.regularizer.name, self.regularizer.name in BOUNDED
        if self.epsilon is not None and self.epsilon_relative is not None:
            raise _refused("epsilon_relative", "give epsilon or epsilon_relative, not both")
        for field, rho in (("rho_a", self.rho_a), ("rho_b", self.rho_b)):
            if rho is not None and not bounded:
                raise PydanticCustomError(
                    "infeasible-problem", UNBOUNDED, {"field": field, "name": name}
                )
            if rho is not None and (self.epsilon == 0 or self.method == "streamed"):
                raise _refused(field, "needs epsilon > 0 and a method that is not streamed")
        if self.scaling != "unit" and bounded:
            raise _refused("scaling", f"weights a squared norm, and {name} has none")
        if self.scaling == "gw_se" and not (self.center and self.alpha == 1):
            raise _refused("scaling", "gw_se needs centred points and alpha = 1")
        if self.method == "streamed" and self.epsilon == 0:
            raise _refused("epsilon", "streamed transport needs epsilon > 0")
        rank, most = self.regularizer.rank, min(self.x.shape[-1], self.y.shape[-1])
        if rank is not None and rank > most:
            raise _refused("regularizer.rank", f"a map between these spaces has at most {most}")
        return self

    @model_validator(mode="after")
    def _sides(self) -> "MatchRequest":
        for one, other in (("x_shared", "y_shared"), ("labels", "target_labels")):
            missing = [name for name in (one, other) if getattr(self, name) is None]
            if len(missing) == 1:
                raise _refused(missing[0], f"give both {one} and {other}, or neither")
        if (self.x_shared is None) != (self.alpha == 1):
            raise _refused("alpha", "alpha < 1 and shared features go together")
        if self.paired and self.x.shape[0] != self.y.shape[0]:
            raise _refused("paired", "pairs need as many sources as targets")
        for field, z in (("labels", self.labels), ("target_labels", self.target_labels)):
            if z is not None and z.dtype not in ("int64", "int32", "uint8"):
                raise _refused(field, "labels are integers")
        return self

    def footprint(self) -> int:
        """Count the plans of the starts, and four matrices of all pairs unless streamed."""
        n, m = self.x.shape[0], self.y.shape[0]
        d, e = self.x.shape[1], self.y.shape[1]
        small = min(n, SAMPLED) * min(m, SAMPLED)
        streamed = self.method == "streamed" or (self.method == "auto" and n * m > STREAMED_FROM)
        pairs = 0 if streamed else 6 * n * m
        return 8 * (pairs + 6 * max(small, 1 << 22) + 8 * (n + m) * (d + e) + 300 * d * e)


def _refused(field: str, text: str) -> PydanticCustomError:
    return PydanticCustomError("validation", "{text}", {"field": field, "text": text})


class Attempt(Strict):
    """One start and how far it went."""

    start: str = Field(description="Its name, as in `ones`, `axes +-+`, `random 3`, `vertex 5`.")
    value: float = Field(
        description="Its objective; between sampled points where there are more than 500 a side."
    )


class Terms(Strict):
    """The parts of the objective, which add up to it."""

    linear: float = Field(description="`-alpha <M, G(P)>`")
    shared: float = Field(
        description="cost of pairs apart from the map: of shared features, and for gw_se of norms"
    )
    regularizer: float = Field(description="`R(M)`")
    entropy: float = Field(description="`epsilon KL(P | a b^T)`")
    marginals: float = Field(description="what `rho_a` and `rho_b` charge")


class Scores(Strict):
    """How right the match is, where the truth was given; else null."""

    foscttm: float | None = Field(
        description="mean share of points closer to an image than its true match; 0 is perfect"
    )
    label_transfer_accuracy: float | None = Field(
        description="share of images whose nearest targets, by majority, have the right label"
    )
    plan_label_accuracy: float | None = Field(description="share of mass between equal labels")


class Mode(Strict):
    """One end of the search whose plan is unlike those of lower value."""

    start: str = Field(description="the start that ended there")
    value: float = Field(description="its objective")
    signs: str = Field(
        description="signs with which it takes the first three principal axes to each other, each "
        "axis turned so that its third moment is positive"
    )
    map: Annotated[ArrayRef, Dims("e d")] = Field(description="its map, to start from as map0")
    scores: Scores


class Certificate(Strict):
    """What shows that map and plan belong together, recomputed in float64 from both."""

    fixed_point_residual: float = Field(
        description="`|M - argmax_M' alpha <M', G(P)> - R(M')|` over the norm of the latter, P the "
        "plan that is returned, M the map: 0 at a point where neither alone can be improved"
    )
    marginal_error_a: float = Field(description="`|P 1 - a|_1`; 0 where rho_a is given")
    marginal_error_b: float = Field(description="`|P^T 1 - b|_1`; 0 where rho_b is given")
    largest_increase: float = Field(
        description="by how much the objective rose from one turn to the next, at most: 0 but for "
        "rounding and inexact plans"
    )
    epsilon_star: float = Field(
        description="eps* `= alpha^2 lmax(Sx) lmax(Sy) / q`: above it the map 0 is stable; for "
        "maps on a bounded set, which do not vanish, the size of the cost"
    )
    collapsed: bool = Field(description="the map vanished, and the plan says nothing")
    smallest_singular_value: float = Field(
        description="of `G(P)`: near 0 an orthogonal map is not unique"
    )
    starts_tried: int
    starts_reached: int = Field(description="starts that ended at the lowest value, to 1e-6")


class MatchResult(Result):
    """The map, the plan, what they are worth, the other ends, what speaks for them."""

    renders = ("png", "svg")

    map: Annotated[ArrayRef, Dims("e d")] = Field(
        description="M: takes a prepared source `(x - center_x) / scale_x` to target space."
    )
    left: Annotated[ArrayRef, Dims("e r")] | None = Field(
        description="For `rank`: `map = left right^T`; else null."
    )
    right: Annotated[ArrayRef, Dims("d r")] | None = Field(description="The other factor.")
    plan: SparsePlan | None = Field(
        description="The plan by its entries, where transport was exact or streamed; else null."
    )
    dense_plan: Annotated[ArrayRef, Dims("n m")] | None = Field(
        description="The plan as a matrix, total 1 if balanced; else null."
    )
    dropped: float = Field(description="Mass of a streamed plan that `plan` leaves out.")
    images: Annotated[ArrayRef, Dims("n e")] = Field(
        description="Mean of the targets that each source goes to, in the units of y."
    )
    f: Annotated[ArrayRef, Dims("n")] = Field(description="Source potential.")
    g: Annotated[ArrayRef, Dims("m")] = Field(
        description="Target potential, with which structured.transform places new points."
    )
    epsilon: float = Field(
        description="Entropic strength that was used, in units of the objective."
    )
    lam: float | None = Field(description="Strength of the penalty that was used, or null.")
    value: float = Field(description="The objective at map and plan: the sum of `terms`.")
    terms: Terms
    gw: float | None = Field(
        description="Gromov-Wasserstein of the plan, for gw_ip of inner products, for gw_se of "
        "squared distances; else null."
    )
    mass: float = Field(description="Mass of the plan.")
    singular_values: Annotated[ArrayRef, Dims("s")] = Field(description="Of the map.")
    numerical_rank: int = Field(description="Singular values above 1e-10 of the largest.")
    zeros_percent: float = Field(description="Entries of the map that are exactly 0, in percent.")
    source_features: list[int] = Field(description="Columns of the map that are not 0, from 0.")
    target_features: list[int] = Field(description="Rows of the map that are not 0, from 0.")
    center_x: Annotated[ArrayRef, Dims("d")] = Field(description="What was subtracted from x.")
    center_y: Annotated[ArrayRef, Dims("e")] = Field(description="What was subtracted from y.")
    scale_x: Annotated[ArrayRef, Dims("d")] = Field(description="What x was then divided by.")
    scale_y: Annotated[ArrayRef, Dims("e")] = Field(description="What y was then divided by.")
    history: Annotated[ArrayRef, Dims("t")] = Field(
        description="The objective after each turn of the best end, from its start of the polish."
    )
    attempts: list[Attempt] = Field(description="Where all starts ended, best first.")
    modes: list[Mode] = Field(
        description="Ends with different plans, by value; the first is the answer. The lowest "
        "value need not be the right match: score modes with anchors or labels."
    )
    scores: Scores
    certificate: Certificate


EXAMPLE = {
    "x": [[0.0, 0.0], [2.0, 0.0], [0.0, 1.0], [2.0, 2.0], [3.0, 1.0]],
    "y": [[1.0, 0.0, 1.0], [1.0, 2.0, 1.0], [0.0, 0.0, 1.1], [-1.0, 2.1, 0.9], [0.0, 3.0, 1.0]],
    "regularizer": {"name": "l12_target", "lam_relative": 0.1},
}
