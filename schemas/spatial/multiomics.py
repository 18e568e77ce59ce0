"""Two modalities of cells without shared features."""

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from schemas.arrays import ArrayRef, Dims, Request, Result, Strict

FEWEST = 3


class MultiomicsRequest(Request):
    """Match cells of two modalities by their inner geometry.

    Minimises `sum_ijkl (Dx_ik - Dy_jl)^2 P_ij P_kl + epsilon KL(P | a b^T)` over plans P, Dx and
    Dy shortest paths along nearest-neighbour graphs, each divided by its largest; all cells weigh
    alike. Source cells are then sent to the barycentre of their targets.
    """

    x: Annotated[ArrayRef, Dims("n d")] = Field(
        description="Source cells by features, at least 3 cells."
    )
    y: Annotated[ArrayRef, Dims("m e")] = Field(
        description="Target cells by features of any other kind, at least 3 cells."
    )
    labels_x: Annotated[ArrayRef, Dims("n")] | None = Field(
        None, description="Whole numbers, below 0 where unknown; for scores alone, never for P."
    )
    labels_y: Annotated[ArrayRef, Dims("m")] | None = Field(
        None, description="Labels of the target cells in the same numbers."
    )
    paired: bool = Field(
        False, description="Row i of x and row i of y are one cell; for scores alone, never for P."
    )
    normalise: Literal["l2", "zscore", "none"] = Field(
        "l2", description="l2: rows of length 1; zscore: columns of mean 0 and variance 1."
    )
    metric: Literal["correlation", "euclidean"] = Field(
        "correlation", description="What makes two cells near; a constant row correlates with none."
    )
    graph: Literal["connectivity", "distance"] = Field(
        "connectivity", description="Length of an edge: 1, or the distance it spans."
    )
    k: int | None = Field(
        None,
        ge=2,
        description="Neighbours that a cell is joined with, itself counted; null tries five values "
        "up to 110 or a quarter of the smaller side, and keeps that of the lowest value.",
    )
    epsilon: float | None = Field(
        None,
        ge=1e-6,
        le=1e3,
        description="Entropic strength, for costs of at most 1: 1e-3 is sharp, 1e-2 soft; null "
        "tries four values from 1e-3 to 1e-2 after k was chosen. Null for partial plans.",
    )
    rho: float | None = Field(
        None,
        gt=0,
        description="Strength of both marginals: 0.01 to 0.1 where cell types differ in share; "
        "null keeps the marginals.",
    )
    mass: float | None = Field(
        None, gt=0, le=1, description="Share of either side that is matched; null matches all."
    )
    starts: int = Field(
        0, ge=0, le=1000, description="Random starts besides the product: more modes may be found."
    )
    tol: float = Field(
        1e-5, gt=0, lt=1, description="Stop when a step moves less than this share of the mass."
    )
    max_iter: int = Field(500, ge=1, le=100_000, description="Steps of one descent.")

    @model_validator(mode="after")
    def _cells(self) -> "MultiomicsRequest":
        for field, z in (("x", self.x), ("y", self.y)):
            if z.shape[0] < FEWEST:
                raise PydanticCustomError(
                    "infeasible-problem", "{cells} cells; a geometry needs at least {fewest}",
                    {"field": field, "cells": z.shape[0], "fewest": FEWEST},
                )  # fmt: skip
        n, m = self.x.shape[0], self.y.shape[0]
        if self.paired and n != m:
            raise PydanticCustomError(
                "validation", "paired rows need as many source as target cells: {n} and {m}",
                {"field": "paired", "n": n, "m": m},
            )  # fmt: skip
        if self.k is not None and self.k > min(n, m):
            raise PydanticCustomError(
                "validation", "k is {k}, more than the {cells} cells of the smaller side",
                {"field": "k", "k": self.k, "cells": min(n, m)},
            )  # fmt: skip
        return self

    @model_validator(mode="after")
    def _one_kind(self) -> "MultiomicsRequest":
        if self.mass is not None and self.rho is not None:
            raise PydanticCustomError(
                "validation", "rho and mass are two ways: give one", {"field": "rho"}
            )
        if self.mass is not None and self.epsilon is not None:
            raise PydanticCustomError(
                "validation", "partial plans (mass) have no entropy", {"field": "epsilon"}
            )
        return self

    def footprint(self) -> int:
        """Count both graphs for every k tried, and the matrices of a step."""
        n, m = self.x.shape[0], self.y.shape[0]
        graphs = 4 if self.k is not None else 8
        return 8 * (graphs * (n * n + m * m) + (8 + self.starts) * n * m)


class Trial(Strict):
    """One setting of the self-tuning, and what it led to."""

    k: int
    epsilon: float | None
    value: float = Field(description="the objective without entropy, which is compared")
    components_x: int = Field(description="connected components of the source's graph")
    components_y: int = Field(description="connected components of the target's graph")


class Match(Strict):
    """One of the distinct plans found."""

    start: str = Field(description="`product` or `random 3`")
    value: float
    mass_elsewhere: float = Field(
        description="share of the mass that lies elsewhere than in the plan that is returned"
    )
    foscttm: float | None = Field(description="as in `scores`")
    label_transfer_accuracy: float | None = Field(description="as in `scores`")


class Scores(Strict):
    """Agreement with what is known; null where it was not given."""

    foscttm: float | None = Field(
        description="mean fraction of cells closer than the true match: 0 is perfect, 0.5 random"
    )
    label_transfer_accuracy: float | None = Field(
        description="share of source cells whose label 5 nearest target cells of the image predict"
    )
    plan_label_accuracy: float | None = Field(
        description="mass between equal labels, as a share of the mass between labelled cells"
    )


class Certificate(Strict):
    """What shows that the plan is feasible and stationary, recomputed from what is returned."""

    marginal_error_a: float = Field(
        description="`|P 1 - a|_1`; partial: the excess over a; unbalanced: what rho allowed"
    )
    marginal_error_b: float = Field(description="`|P^T 1 - b|_1`, likewise")
    fixed_point_residual: float = Field(
        description="how far a full step would move the plan, in L1 as a share of its mass; "
        "partial: the Frank-Wolfe gap as a share of the linear term"
    )
    value_difference: float = Field(
        description="`value` minus its expansion from the marginals that the plan has"
    )


class MultiomicsResult(Result):
    """The plan, the images of the source cells, and what speaks for and against them."""

    renders = ("png", "svg")

    plan: Annotated[ArrayRef, Dims("n m")] = Field(description="Coupling of cells.")
    images: Annotated[ArrayRef, Dims("n e")] = Field(
        description="Source cells in the normalised target space: barycentres of their targets."
    )
    target: Annotated[ArrayRef, Dims("m e")] = Field(description="Target cells, normalised.")
    matched: Annotated[ArrayRef, Dims("n")] = Field(
        description="Share of its weight that each source cell sends; 1 where balanced. A cell "
        "that sends none has the image of its nearest neighbour that does."
    )
    value: float = Field(
        description="Quadratic sum without entropy; for partial plans over the squared mass."
    )
    mass: float = Field(description="Mass of the plan; 1 where balanced.")
    k: int = Field(description="Neighbours used.")
    epsilon: float | None = Field(description="Strength used; null for partial plans.")
    trials: list[Trial] = Field(description="Settings that the self-tuning compared.")
    matches: list[Match] = Field(
        description="Plans found that differ by more than a tenth of the mass, lowest value first. "
        "The lowest need not be the likely match."
    )
    scores: Scores
    certificate: Certificate


EXAMPLE = {
    "x": [[0.0, 1.0], [0.2, 1.0], [0.5, 1.0], [0.9, 0.8], [1.0, 0.3], [1.0, 0.0]],
    "y": [[0.0, 0.1, 1.0], [0.1, 0.3, 1.0], [0.1, 0.6, 1.0], [0.1, 0.9, 0.9], [0.1, 1.0, 0.4],
          [0.0, 1.0, 0.1]],
    "metric": "euclidean",
    "graph": "distance",
    "k": 3,
    "epsilon": 0.02,
}  # fmt: skip
