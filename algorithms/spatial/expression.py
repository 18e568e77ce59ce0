"""From counts to a linear cost: what is kept of two slices, and how unlike two spots are."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.sparse import csc_matrix, csr_matrix, vstack
from scipy.sparse.linalg import eigsh
from torch import Tensor

from algorithms.errors import IllPosed
from algorithms.spatial.slice import Slice

# Genes at a time: a dense block of 600 x 2048 float64 is 10 MB, near the size of a cache.
BLOCK = 2048
# Total counts that each spot is scaled to before the logarithm, the field's convention.
LIBRARY = 1e4
# Up to this many spots all eigenvectors cost less than the iterations for a few.
DIRECT_EIGEN = 1500


@dataclass(frozen=True)
class Expression:
    """How expression is compared.

    Attributes:
        dissimilarity: `kl` of source from target proportions, `jeffreys` (kl both ways, added), or
            `pca`: squared distance of joint principal component scores of log1p(1e4 proportions).
        floor: added to every count before proportions are taken (kl, jeffreys).
        components: principal components kept (pca).
        min_spot_counts: spots with fewer counts in all are dropped.
        min_gene_counts: genes with fewer counts in a slice are dropped.
    """

    dissimilarity: Literal["kl", "jeffreys", "pca"] = "kl"
    floor: float = 0.01
    components: int = 30
    min_spot_counts: float = 100.0
    min_gene_counts: float = 15.0


@dataclass(frozen=True)
class Counts:
    """What is left of two slices: common genes in the source's order, and the spots kept."""

    source: csr_matrix
    target: csr_matrix
    kept_source: Int[Tensor, "n"]
    kept_target: Int[Tensor, "m"]
    genes: tuple[str, ...]


def common_counts(source: Slice, target: Slice, options: Expression) -> Counts:
    """Drop poor spots, then poor genes, slice by slice; then keep the genes that both have."""
    rows1, genes1 = _kept(source, options, "source")
    rows2, genes2 = _kept(target, options, "target")
    there = {target.genes[k]: k for k in genes2}
    pairs = [(k, there[source.genes[k]]) for k in genes1 if source.genes[k] in there]
    if not pairs:
        raise IllPosed("target.counts", _no_common_genes(source, target, genes1, genes2))
    cols1, cols2 = np.array(pairs).T
    X1 = csr_matrix(source.counts[rows1][:, cols1], dtype=np.float64)
    X2 = csr_matrix(target.counts[rows2][:, cols2], dtype=np.float64)
    names = tuple(source.genes[k] for k in cols1)
    return Counts(X1, X2, torch.from_numpy(rows1), torch.from_numpy(rows2), names)


def dissimilarity(counts: Counts, options: Expression) -> Float[Tensor, "n m"]:
    r"""Compute the linear cost between the spots kept.

    With p_i the proportions of (X_i + floor) over the common genes:
    kl_ij = sum_g p_ig (log p_ig - log q_jg); jeffreys_ij = kl_ij + kl of q_j from p_i.
    Counts must not be negative. Time O(n m genes) by matrix products over blocks of genes; nothing
    of n x genes is made dense.
    """
    if options.dissimilarity == "pca":
        return _score_distances(counts, options.components)
    X1, X2 = csc_matrix(counts.source), csc_matrix(counts.target)
    there = _divergence(X1, X2, options.floor)
    if options.dissimilarity == "kl":
        return there
    return there + _divergence(X2, X1, options.floor).T


def _divergence(X1: csc_matrix, X2: csc_matrix, floor: float) -> Float[Tensor, "n m"]:
    genes = X1.get_shape()[1]
    total1 = _row_sums(X1) + floor * genes
    total2 = _row_sums(X2) + floor * genes
    entropy = np.zeros(X1.get_shape()[0])
    cross = np.zeros((X1.get_shape()[0], X2.get_shape()[0]))
    for block in _blocks(genes):
        p = (X1[:, block].toarray() + floor) / total1[:, None]
        log_q = np.log((X2[:, block].toarray() + floor) / total2[:, None])
        entropy += np.einsum("ig,ig->i", p, np.log(p))
        cross += p @ log_q.T
    # Gibbs: not negative; differences of sums of order 10 leave -1e-15
    return torch.from_numpy(np.maximum(entropy[:, None] - cross, 0.0))


def _score_distances(counts: Counts, components: int) -> Float[Tensor, "n m"]:
    """Compare scores of one PCA of both slices: eigenvectors of the Gram matrix of all spots."""
    X = csc_matrix(vstack([counts.source, counts.target]))
    total = np.maximum(_row_sums(X), 1e-300)  # a spot without common counts stays at 0
    gram = np.zeros((X.get_shape()[0], X.get_shape()[0]))
    for block in _blocks(X.get_shape()[1]):
        logs = np.log1p(X[:, block].toarray() * (LIBRARY / total)[:, None])
        logs -= logs.mean(0)
        gram += logs @ logs.T
    N = len(gram)
    k = min(components, N - 1)
    if N <= DIRECT_EIGEN:
        values, vectors = eigh(gram, subset_by_index=[N - k, N - 1])
    else:
        values, vectors = eigsh(gram, k=k, v0=gram.sum(1) + 1.0)
    scores = torch.from_numpy(vectors * np.sqrt(np.maximum(values, 0.0)))  # (n + m, k)
    n = counts.source.get_shape()[0]
    return torch.cdist(scores[:n], scores[n:]).square()


def _blocks(genes: int) -> list[slice]:
    return [slice(k, k + BLOCK) for k in range(0, genes, BLOCK)]


def _row_sums(X: csr_matrix | csc_matrix) -> NDArray[np.float64]:
    return np.asarray(X.sum(1), dtype=np.float64).ravel()


def _kept(
    slice_: Slice, options: Expression, field: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    counts = csr_matrix(slice_.counts, dtype=np.float64)
    spots = _row_sums(counts)
    rows = np.flatnonzero(spots >= options.min_spot_counts)
    if len(rows) < 3:
        raise IllPosed(
            f"{field}.counts",
            f"{len(rows)} of {len(spots)} spots have {options.min_spot_counts:g} counts or more; "
            f"at least 3 are needed. Totals lie in {_range(spots)}; lower "
            "expression.min_spot_counts, or pass raw counts",
        )
    genes = np.asarray(counts[rows].sum(0)).ravel()
    cols = np.flatnonzero(genes >= options.min_gene_counts)
    if len(cols) == 0:
        raise IllPosed(
            f"{field}.counts",
            f"none of {len(genes)} genes has {options.min_gene_counts:g} counts or more in the "
            f"slice. Totals lie in {_range(genes)}; lower expression.min_gene_counts",
        )
    return rows, cols


def _range(totals: NDArray[np.float64]) -> str:
    return f"[{totals.min():g}, {totals.max():g}]" if len(totals) else "an empty list"


def _no_common_genes(
    source: Slice, target: Slice, genes1: NDArray[np.int64], genes2: NDArray[np.int64]
) -> str:
    """Say why no name agrees, as far as names can tell."""
    names1 = [source.genes[k] for k in genes1]
    names2 = [target.genes[k] for k in genes2]
    told = (
        f"no gene in common: source has {len(names1)} (such as {names1[0]}), "
        f"target {len(names2)} (such as {names2[0]})"
    )
    if {g.upper() for g in names1} & {g.upper() for g in names2}:
        return (
            told + ". The names agree but for upper and lower case: is one slice of another "
            "species, or were names changed? Use one spelling"
        )
    if _ensembl(names1) != _ensembl(names2):
        which = ("source", "target") if _ensembl(names1) else ("target", "source")
        return told + f". {which[0]} has Ensembl ids, {which[1]} has symbols: use one of them"
    if {g.split(".")[0] for g in names1} & {g.split(".")[0] for g in names2}:
        return told + ". The names agree but for a version suffix such as .2: remove it"
    return told


def _ensembl(names: list[str]) -> bool:
    """Tell whether most names look like ENSG00000111640 or ENSMUSG00000057666."""
    alike = sum(n.upper().startswith("ENS") and n[-3:].replace(".", "").isdigit() for n in names)
    return 2 * alike > len(names)
