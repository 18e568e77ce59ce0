"""Transport by plans of low rank."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from schemas.arrays import ArrayRef, Differentiable, Dims, Request, Result, Strict
from schemas.measures import check_equal_masses, check_weights


class LowRankRequest(Request):
    """Plans of low rank: transport between clusters, in time and memory linear in the points.

    Seeks the cheapest `P = Q diag(1/g) R^T` of so many columns, for squared Euclidean costs that
    are never written out as a matrix. The best of several starts is returned, with bounds.
    """

    x: Annotated[ArrayRef, Dims("n d"), Differentiable()] = Field(description="Source points.")
    y: Annotated[ArrayRef, Dims("m d"), Differentiable()] = Field(description="Target points.")
    a: Annotated[ArrayRef, Dims("n")] | None = Field(
        None, description="Source weights, >= 0; null is uniform with mass 1."
    )
    b: Annotated[ArrayRef, Dims("m")] | None = Field(
        None, description="Target weights, >= 0, of the same total; null is uniform with mass 1."
    )
    rank: int = Field(
        ge=1,
        le=100_000,
        description="Number of groups: 1 is the independent plan; from the smaller number of "
        "points on nothing is blurred.",
    )
    method: Literal["alternation", "mirror_descent"] = Field(
        "alternation",
        description="`mirror_descent` goes on from the best plan of the alternation: some percent "
        "cheaper at best, at ten times the time.",
    )
    tol: float = Field(
        1e-4,
        gt=0,
        description="A search ends when the cost of its rounded plan fell by less than this share "
        "in ten steps.",
    )
    max_iter: int = Field(200, ge=1, le=10**6, description="Steps of each search.")

    @model_validator(mode="after")
    def _masses(self) -> "LowRankRequest":
        check_weights("a", self.a)
        check_weights("b", self.b)
        check_equal_masses(self.a, self.b)
        return self

    def footprint(self) -> int:
        """Count eight copies of both blocks, and of the points."""
        points, d = self.x.shape[0] + self.y.shape[0], self.x.shape[1]
        return 8 * 8 * points * (min(self.rank, points) + d + 2)


class Certificate(Strict):
    """What tells how good the plan is: its marginals, and bounds from below and above."""

    marginal_error_a: float = Field(description="`|P 1 - a|_1` of `P = Q diag(1/g) R^T`")
    marginal_error_b: float = Field(description="`|P^T 1 - b|_1`, likewise")
    marginal_error_q: float = Field(description="`|Q 1 - a|_1 + |Q^T 1 - g|_1`")
    marginal_error_r: float = Field(description="`|R 1 - b|_1 + |R^T 1 - g|_1`")
    independent_value: float = Field(description="cost of `a b^T`, the plan of rank 1")
    ratio: float = Field(description="`value` over it; near 1 the plan says nothing")
    lower_bound: float = Field(
        description="no plan of any rank costs less: the distance of Gaussians with the means and "
        "covariances of the clouds"
    )
    upper_bound: float = Field(
        description="cost of a plan of full rank, from recursive halving; the optimum over all "
        "ranks is below, and `value` exceeds it by what the rank blurs"
    )


class LowRankResult(Result):
    """The factors of a plan with exact marginals, and its cost."""

    renders = ("png", "svg")

    Q: Annotated[ArrayRef, Dims("n r")] = Field(description="Mass of each source point by group.")
    R: Annotated[ArrayRef, Dims("m r")] = Field(description="Mass of each target point by group.")
    g: Annotated[ArrayRef, Dims("r")] = Field(
        description="Mass of each group; groups without any are left out, so r may be below `rank`."
    )
    value: Annotated[float, Differentiable()] = Field(
        description="`<P, C>`: above the squared Wasserstein distance by about the variance within "
        "groups. Gradients hold the plan fixed."
    )
    transport_cost: Annotated[float, Differentiable()] = Field(description="The same.")
    origin: Literal["hard_pairs", "pairs", "centres", "product"] = Field(
        description="Where the cheapest plan came from: `hard_pairs`, groups of matched pairs; "
        "`pairs`, the search that starts there; `centres`, the search from k-means centres; "
        "`product`, the independent plan."
    )
    certificate: Certificate


EXAMPLE = {
    "x": [[0.0, 0.0], [0.2, 0.1], [4.0, 0.0], [4.1, 0.2]],
    "y": [[0.1, 2.0], [0.0, 2.2], [4.0, 2.1], [3.9, 2.0]],
    "rank": 2,
}
