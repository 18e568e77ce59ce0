"""Near-optimal transport of large clouds in linear memory."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from schemas.arrays import ArrayRef, Differentiable, Dims, Request, Result, Strict
from schemas.measures import check_equal_masses, check_weights
from schemas.sparse import SparsePlan

BLOCK_BYTES = 8 * 16 * 2**20  # costs of some blocks or bands of pairs, and their copies
ENTRY_BYTES = 8 * 16  # indices, masses and sorting of plan entries, at most a few per point


class RefineRequest(Request):
    """Near-optimal transport of large clouds in linear memory, with a bound of the optimum.

    Lowers `sum P_ij c(x_i, y_j)` over couplings P of a and b: both clouds are halved together,
    small blocks are solved exactly, and passes over ever new blocks follow. Equal weights give a
    bijection. 100,000 points take about a minute.
    """

    x: Annotated[ArrayRef, Dims("n d"), Differentiable()] = Field(description="Source points.")
    y: Annotated[ArrayRef, Dims("m d"), Differentiable()] = Field(description="Target points.")
    a: Annotated[ArrayRef, Dims("n")] | None = Field(
        None, description="Source weights, >= 0; null is uniform with mass 1."
    )
    b: Annotated[ArrayRef, Dims("m")] | None = Field(
        None, description="Target weights, >= 0, of the same total; null is uniform with mass 1."
    )
    cost: Literal["sqeuclidean", "euclidean"] = Field(
        "sqeuclidean", description="`|x - y|^2` (not halved) or `|x - y|`."
    )
    leaf: int | None = Field(
        None,
        ge=2,
        le=4096,
        description="Largest block that is solved exactly. Null starts at 128 and goes to 512 "
        "when passes gain less than 1 % (to 1,024 for bijections of up to 10,000 points, to 256 "
        "beyond 50,000).",
    )
    passes: int = Field(40, ge=0, le=10_000, description="Most passes over blocks.")
    tol: float = Field(
        1e-3,
        gt=0,
        le=1,
        description="Two successive passes that each lower the cost by less than this share end "
        "the refinement.",
    )
    bound: Literal["auto", "dual", "moments"] = Field(
        "auto",
        description="How the optimum is bounded below. `dual` evaluates all pairs several times, "
        "in little memory; `moments`, from means and covariances, is immediate and weak unless "
        "one cloud is nearly an affine image of the other; `auto` is `dual` up to 5e8 pairs.",
    )

    @model_validator(mode="after")
    def _masses(self) -> "RefineRequest":
        check_weights("a", self.a)
        check_weights("b", self.b)
        check_equal_masses(self.a, self.b)
        return self

    def footprint(self) -> int:
        """Count a few copies of the points, the plan, and the costs of some blocks."""
        (n, d), m = self.x.shape, self.y.shape[0]
        leaf = self.leaf or 1024
        return (n + m) * (8 * 6 * d + ENTRY_BYTES) + BLOCK_BYTES + 8 * 4 * leaf**2


class Certificate(Strict):
    """What is known of the plan, and of the optimum that it approaches."""

    marginal_error_a: float = Field(description="`|P 1 - a|_1`")
    marginal_error_b: float = Field(description="`|P^T 1 - b|_1`")
    bijective: bool | None = Field(
        description="every target is the image of exactly one source; null where weights differ"
    )
    lower_bound: float = Field(description="no plan costs less")
    relative_gap: float = Field(
        description="`1 - lower_bound / value`: by at most this share of itself the cost is above "
        "the optimum"
    )
    bound: str = Field(
        description="where the bound comes from: `dual`, potentials that are feasible for all "
        "pairs, or `moments`, means and covariances"
    )
    pairs_checked: int = Field(ge=0, description="pairs of points evaluated for the bound")
    independent_cost: float | None = Field(
        description="cost of the plan `a b^T`, which ignores the points; null for distances"
    )


class RefineResult(Result):
    """A sparse plan near the optimum, as a map where it is a bijection."""

    renders = ("png", "svg")

    plan: SparsePlan
    map: Annotated[ArrayRef, Dims("n")] | None = Field(
        description="Index of the target of each source, where the plan is a bijection."
    )
    value: Annotated[float, Differentiable()] = Field(
        description="`sum P_ij c(x_i, y_j)`; an upper bound of the optimum."
    )
    transport_cost: Annotated[float, Differentiable()] = Field(description="The same.")
    method: str = Field(
        description="`bijection` for equal weights and as many targets as sources, else `masses`."
    )
    block: int = Field(ge=2, description="Largest block of the last passes.")
    certificate: Certificate


EXAMPLE = {
    "x": [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]],
    "y": [[1.1, 0.9], [0.1, 0.1], [0.9, 0.2], [0.2, 1.1]],
}
