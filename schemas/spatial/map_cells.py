"""Dissociated cells placed in a tissue of which an atlas measured few genes."""

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from schemas.arrays import ArrayRef, Dims, Request, Result, Strict
from schemas.samples import sample
from schemas.spatial.cells import Cells
from schemas.spatial.slice import Slice

FEWEST_CORRELATED = 3


class Markers(Strict):
    """How cells and locations are compared: the linear cost M, divided by its largest."""

    names: list[str] | None = Field(
        default=None,
        max_length=2000,
        description="Genes that both files have; null takes all of those, an empty list none, "
        "which needs alpha 1.",
    )
    dissimilarity: Literal["sqeuclidean", "correlation"] = Field(
        default="sqeuclidean",
        description="sqeuclidean: squared distance over the markers; correlation: one minus "
        "Pearson's correlation over at least 3 markers, 1 where a row is constant.",
    )
    normalise: Literal["zscore", "none"] = Field(
        default="zscore",
        description="zscore: each marker gets mean 0 and variance 1 in either file, so that units "
        "do not matter; none: values as they are, for files of one unit.",
    )


class Graphs(Strict):
    """Which cells and which locations are neighbours: distances D are paths along both graphs."""

    k: int = Field(
        default=5,
        ge=2,
        description="Neighbours that a point is joined with, itself counted; too few leave pieces.",
    )
    mode: Literal["connectivity", "distance"] = Field(
        default="connectivity", description="Length of an edge: 1, or the distance it spans."
    )
    metric: Literal["correlation", "euclidean"] = Field(
        default="correlation",
        description="What makes two cells near; locations are near by Euclidean distance.",
    )
    components: int | None = Field(
        default=None,
        ge=1,
        le=500,
        description="Principal components of all genes in which cells are compared; null compares "
        "the genes themselves. Not with an `embedding_key`.",
    )


class MapCellsRequest(Request):
    """Place dissociated cells in a tissue by a few measured genes and by neighbourhoods.

    Minimises `(1 - alpha) <M, P> + alpha sum (D_ik - D'_jl)^2 P_ij P_kl + epsilon KL(P | a b^T)`
    over plans P from n cells to m locations with `a = 1/n`, `b = 1/m`: M compares markers, D and D'
    are shortest paths among cells and among locations, each divided by its largest. Location j
    then gets every gene of the cells: `(P^T X)_j / b_j`.
    """

    cells: Cells = Field(description="Cells without places; their genes are carried.")
    atlas: Slice = Field(
        description="Locations and the genes measured there; genes that are no markers serve "
        "comparison only."
    )
    markers: Markers = Field(default_factory=Markers)
    graphs: Graphs = Field(default_factory=Graphs)
    genes: list[str] | None = Field(
        None,
        min_length=1,
        max_length=20_000,
        description="Genes of the cells to carry to the locations; null carries all of them.",
    )
    raw_counts: Literal["none", "cells", "both"] = Field(
        "none",
        description="Which files hold raw counts: for comparisons these become "
        "`log(1 + 10^4 count / total of the row)`. Carried genes stay in the unit of the file.",
    )
    alpha: float = Field(
        0.5,
        ge=0,
        le=1,
        description="0 compares markers alone, 1 neighbourhoods alone: cells are then placed up to "
        "the symmetries of the tissue, which seldom is of use.",
    )
    epsilon: float | None = Field(
        5e-3,
        ge=1e-6,
        le=1e3,
        description="Entropic strength, for costs of at most 1: 1e-3 is sharp; large values spread "
        "every cell over the whole tissue. Null leaves entropy out: few locations a cell, which "
        "pays where markers are many.",
    )
    tol: float = Field(
        1e-5,
        gt=0,
        lt=1,
        description="Stop when a step moves less than this share of the mass; without entropy, "
        "when it gains less than this share of the objective.",
    )
    max_iter: int = Field(500, ge=1, le=100_000, description="Steps of the descent.")

    @model_validator(mode="after")
    def _markers_suffice(self) -> "MapCellsRequest":
        names, need = self.markers.names, FEWEST_CORRELATED
        if names is None:
            return self
        if len(set(names)) < len(names):
            raise PydanticCustomError(
                "validation", "a marker is named twice", {"field": "markers.names"}
            )
        if not names and self.alpha < 1:
            raise PydanticCustomError(
                "infeasible-problem", "alpha {alpha} compares markers, of which none is named",
                {"field": "markers.names", "alpha": self.alpha},
            )  # fmt: skip
        if 0 < len(names) < need and self.markers.dissimilarity == "correlation":
            raise PydanticCustomError(
                "infeasible-problem", "{count} markers; a correlation needs at least {need}",
                {"field": "markers.dissimilarity", "count": len(names), "need": need},
            )  # fmt: skip
        return self

    @model_validator(mode="after")
    def _genes_and_features(self) -> "MapCellsRequest":
        if self.genes is not None and len(set(self.genes)) < len(self.genes):
            raise PydanticCustomError("validation", "a gene is named twice", {"field": "genes"})
        if self.cells.embedding_key is not None and self.graphs.components is not None:
            raise PydanticCustomError(
                "validation", "components are taken of genes; {key} is an embedding already",
                {"field": "graphs.components", "key": self.cells.embedding_key},
            )  # fmt: skip
        return self

    def footprint(self) -> int:
        """Count both graphs, the matrices of a step, and the genes at cells and locations."""
        n, m, g = self.cells.rows, self.atlas.rows, self.cells.columns
        carried = g if self.genes is None else len(self.genes)
        return 8 * (5 * (n * n + m * m) + 10 * n * m + 2 * n * g + m * carried)


class HeldOut(Strict):
    """Pearson's correlation over genes that both files have and that are no markers."""

    genes: int = Field(description="number of such genes with a correlation")
    mean: float | None = Field(description="null where there is none")
    lower_quartile: float | None
    median: float | None
    upper_quartile: float | None


class Certificate(Strict):
    """What shows that the plan is feasible and stationary, recomputed from what is returned."""

    marginal_error_a: float = Field(description="`|P 1 - a|_1`")
    marginal_error_b: float = Field(description="`|P^T 1 - b|_1`")
    fixed_point_residual: float = Field(
        description="how far a full step would move the plan, in L1 as a share of its mass; "
        "without entropy the Frank-Wolfe gap as a share of the linear term"
    )
    value_difference: float = Field(
        description="`value` minus its expansion from the marginals that the plan has"
    )
    mean_error: float = Field(
        description="largest difference of a carried gene's mean over the locations from its mean "
        "over the cells, as a share of its largest value: mass is neither made nor lost"
    )


class MapCellsResult(Result):
    """Where cells go, every gene at every location, and how well held-out genes are told."""

    renders = ("png", "svg", "h5ad")

    cell_ids: list[str] = Field(description="Names of the cells, in rows of their file.")
    ids: list[str] = Field(description="Names of the locations, in rows of the atlas.")
    plan: Annotated[ArrayRef, Dims("n m")] = Field(description="Coupling of cells and locations.")
    places: Annotated[ArrayRef, Dims("n 2")] = Field(
        description="Mean place of each cell's mass, in the atlas's unit."
    )
    spread: Annotated[ArrayRef, Dims("n")] = Field(
        description="Root mean square distance of a cell's mass from that place, in the same unit: "
        "0 is certain."
    )
    likeliest: Annotated[ArrayRef, Dims("n")] = Field(
        description="Row of the atlas that gets most of each cell's mass."
    )
    marker_genes: list[str] = Field(description="Markers that were compared.")
    genes: list[str] = Field(description="Columns of `expression`.")
    expression: Annotated[ArrayRef, Dims("m g")] = Field(
        description="Genes at the locations, in the unit of the cells' file."
    )
    pearson: list[float | None] = Field(
        description="Correlation of a carried gene with the atlas's own over all locations; null "
        "for markers, which the plan was made from, for genes that the atlas lacks, and where "
        "a side is constant."
    )
    held_out: HeldOut
    value: float = Field(description="The objective without entropy.")
    transport_cost: float = Field(description="Marker term `<M, P>`; 0 without markers.")
    distortion: float = Field(description="Geometry term, the quadratic sum.")
    certificate: Certificate


EXAMPLE = {
    "cells": {"dataset": sample("section_1.h5ad")},
    "atlas": {"dataset": sample("section_2.h5ad")},
    "markers": {"names": ["gene_0001", "gene_0034", "gene_0038", "gene_0053"]},
    "graphs": {"metric": "euclidean", "components": 5},
    "genes": ["gene_0025", "gene_0009", "gene_0003", "gene_0045", "gene_0001"],
    "raw_counts": "both",
    "epsilon": 0.005,
}
