"""Routing of tokens to experts."""

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from schemas.arrays import ArrayRef, Differentiable, Dims, Request, Result, Strict

COPIES = 24  # arrays as large as the logits that are held at once, in float64


class RouteRequest(Request):
    """Route tokens to experts by a sparse, differentiable top-k of their scores.

    For mixtures of experts: tokens choose experts, or experts choose tokens. Returns the weights
    above 0 token by token, how evenly experts carry them, and the losses that keep that even.
    """

    logits: Annotated[ArrayRef, Dims("T E"), Differentiable()] = Field(
        description="Scores of the router, one row a token, one column an expert."
    )
    k: int = Field(
        ge=1,
        description="Experts of a token, at most E; where tokens share a place between experts "
        "they may have more (`degrees`).",
    )
    choice: Literal["token", "expert"] = Field(
        "token",
        description="`token`: the mask of each token sums to k over experts. `expert`: the mask of "
        "each expert sums to `capacity` over tokens; loads are even, and a token may get none.",
    )
    combine: Literal["softmax_mask", "mask", "raw"] = Field(
        "softmax_mask",
        description="Weights from the mask y: `softmax_mask` is y times the softmax, divided by "
        "its sum over the token's experts; `mask` is y / k; `raw` is y.",
    )
    lam: Annotated[float, Field(gt=0, lt=1e100)] | Literal["auto"] = Field(
        1.0,
        description="Strength of the regulariser `(lam/p) sum y^p`, in units of logits over "
        "temperature. The choice is exactly hard where the k-th score beats the next by lam; large "
        "values spread a token over all experts. `auto` is the median over masks of the gap in "
        "scores around the k-th, held fixed in gradients: name a number to train with.",
    )
    p: float = Field(
        2.0,
        gt=1,
        le=8,
        description="Exponent of the regulariser. 2 makes the mask piecewise linear, 4/3 flattens "
        "it near 0; above 2 its slope there is unbounded.",
    )
    temperature: float = Field(
        1.0,
        gt=0,
        lt=1e100,
        description="Divides the logits, before mask and softmax alike; small values sharpen both.",
    )
    capacity_factor: float = Field(
        1.0,
        gt=0,
        lt=1e100,
        description="An expert's `capacity` is `ceil(T capacity_factor k / E)`; 1 is the even "
        "load. At most E / k where experts choose.",
    )
    drop: bool = Field(
        False,
        description="Let each expert keep the `capacity` tokens of largest weight, of equal ones "
        "the first, and weigh again among the experts that a token has left; otherwise what is "
        "beyond is only counted (`overflow`).",
    )

    @model_validator(mode="after")
    def _possible(self) -> "RouteRequest":
        experts = self.logits.shape[1]
        if self.k > experts:
            raise _refused("k", f"k is {self.k}; there are {experts} experts")
        if self.choice == "expert" and self.capacity_factor * self.k > experts:
            most = f"at most E / k = {experts / self.k:.6g}"
            raise _refused("capacity_factor", f"experts would choose more than all tokens; {most}")
        return self

    def footprint(self) -> int:
        """Count logits, masks, weights, and what their gradients keep."""
        return 8 * COPIES * self.logits.shape[0] * self.logits.shape[1]


def _refused(field: str, text: str) -> PydanticCustomError:
    return PydanticCustomError("infeasible-problem", "{text}", {"field": field, "text": text})


class Certificate(Strict):
    """What proves masks and weights, recomputed in float64."""

    sum_error: float = Field(
        description="largest `|sum y - k|` of a token's mask, `|sum y - capacity|` of an expert's"
    )
    optimality_gap: float = Field(
        description="how far a mask may be below the maximum of `<s, y> - (lam/p) sum y^p`, by "
        "duality, at most over masks"
    )
    weight_error: float = Field(
        description="largest difference between the sum of a token's weights and what its mask "
        "says: 1 for `softmax_mask` (0 for a token without experts), `sum y / k`, or `sum y`"
    )
    smallest_weight: float = Field(description="above 0; 0 only where there are no weights at all")


class RouteResult(Result):
    """Weights by token, how evenly experts carry them, and what masks did."""

    renders = ("png", "svg")

    offsets: Annotated[ArrayRef, Dims("bounds")] = Field(
        description="T + 1 ends: the entries of token t are those from `offsets[t]` to "
        "`offsets[t + 1]`, so that these three arrays are a compressed sparse row matrix."
    )
    experts: Annotated[ArrayRef, Dims("nnz")] = Field(
        description="Expert of each entry, ascending within a token."
    )
    weights: Annotated[ArrayRef, Dims("nnz"), Differentiable()] = Field(
        description="Weight of each entry, above 0. A weight that is 0 has gradient 0, so that "
        "cotangents for these are all that a gradient needs."
    )
    load: Annotated[ArrayRef, Dims("E")] = Field(description="Tokens of each expert.")
    importance: Annotated[ArrayRef, Dims("E")] = Field(
        description="Sum of the weights of each expert."
    )
    degrees: Annotated[ArrayRef, Dims("degree")] = Field(
        description="Entry j counts the tokens with j experts, j from 0 to E."
    )
    capacity: int = Field(description="Tokens that an expert should take at most.")
    overflow: int = Field(
        description="Pairs of token and expert beyond the capacity, before any is dropped."
    )
    tokens_dropped: int = Field(description="Tokens without any expert: their weights are all 0.")
    load_cv2: float = Field(
        description="Variance of the load over its squared mean; 0 is even, E - 1 all on one."
    )
    importance_cv2: Annotated[float, Differentiable()] = Field(
        description="The same of the importance; differentiable."
    )
    peak_load: float = Field(description="Largest load over the mean load; 1 is even.")
    entropy: float = Field(
        description="Mean over tokens of the entropy of the whole softmax, from 0 to ln E, in nats."
    )
    importance_entropy: float = Field(
        description="Entropy of the importance as shares; ln E is even, 0 all on one."
    )
    balance_loss: Annotated[float, Differentiable()] = Field(
        description="`E sum_e f_e P_e`: f_e the share of expert e among all T k places of the hard "
        "top-k, P_e its mean softmax over all tokens. 1 where either is even, for every k."
    )
    z_loss: Annotated[float, Differentiable()] = Field(
        description="Mean over tokens of `(log sum_e exp s_e)^2`, s the logits over temperature."
    )
    lam: float = Field(description="Strength that was used.")
    tau: Annotated[ArrayRef, Dims("rows")] = Field(
        description="Threshold of each token's mask, or of each expert's: "
        "`y = clip((s - tau) / lam, 0, 1)^(1 / (p - 1))`."
    )
    support: Annotated[ArrayRef, Dims("rows")] = Field(
        description="Entries above 0 of each of these masks."
    )
    hard_fraction: float = Field(description="Share of these masks that are exactly hard.")
    regime: str = Field(description="Which solver found the thresholds.")
    certificate: Certificate


EXAMPLE = {
    "logits": [[1.2, 0.1, -0.4], [0.3, 0.9, 0.8], [-0.2, 0.4, 1.5], [0.6, 0.5, 0.1]],
    "k": 1,
    "lam": 0.5,
}
