"""How expression is filtered and compared between two slices."""

from typing import Literal

from pydantic import Field

from schemas.arrays import Strict


class Expression(Strict):
    """Filters, and the dissimilarity between the expression of two spots."""

    dissimilarity: Literal["kl", "jeffreys", "pca"] = Field(
        default="kl",
        description="kl: KL divergence of gene proportions; jeffreys: its symmetric sum; pca: "
        "squared distance of joint principal components of log-normalised counts.",
    )
    floor: float = Field(
        default=0.01, gt=0, description="Added to every count before proportions (kl)."
    )
    components: int = Field(default=30, ge=1, le=500, description="Principal components (pca).")
    min_spot_counts: float = Field(
        default=100.0, ge=0, description="Spots with fewer counts are left out."
    )
    min_gene_counts: float = Field(
        default=15.0, ge=0, description="Genes with fewer counts are left out."
    )
