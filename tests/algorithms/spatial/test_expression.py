"""Filtering, common genes, dissimilarities."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from algorithms.errors import IllPosed
from algorithms.spatial.expression import Expression, common_counts, dissimilarity
from tests.algorithms.spatial.tissue import changed, reordered, tissue

# Sums over genes of terms up to 10, and one product of matrices.
ROUNDING = 1e-11
LOOSE = Expression(min_spot_counts=1.0, min_gene_counts=1.0)


def pair(seed=0, spots=20, genes=40):
    return tissue(seed, spots=spots, genes=genes), tissue(seed, spots=spots, genes=genes, reading=1)


def by_hand_kl(X1, X2, floor):
    p = (X1 + floor) / (X1 + floor).sum(1, keepdims=True)
    q = (X2 + floor) / (X2 + floor).sum(1, keepdims=True)
    return (p[:, None] * (np.log(p)[:, None] - np.log(q)[None])).sum(2)


def test_kl_is_its_formula_and_jeffreys_adds_the_way_back():
    source, target = pair()
    counts = common_counts(source, target, LOOSE)
    X1, X2 = counts.source.toarray(), counts.target.toarray()
    kl = dissimilarity(counts, LOOSE).numpy()
    assert np.abs(kl - by_hand_kl(X1, X2, 0.01)).max() < ROUNDING
    jeffreys = dissimilarity(
        counts, Expression("jeffreys", min_spot_counts=1.0, min_gene_counts=1.0)
    )
    both = by_hand_kl(X1, X2, 0.01) + by_hand_kl(X2, X1, 0.01).T
    assert np.abs(jeffreys.numpy() - both).max() < ROUNDING


def test_kl_of_equal_spots_is_zero_and_never_negative():
    source, _ = pair()
    M = dissimilarity(common_counts(source, source, LOOSE), LOOSE)
    assert M.diagonal().max() < ROUNDING
    assert M.min() >= 0


def test_blocks_of_genes_do_not_show():
    source, target = pair(genes=5000)
    counts = common_counts(source, target, LOOSE)
    M = dissimilarity(counts, LOOSE).numpy()
    expected = by_hand_kl(counts.source.toarray(), counts.target.toarray(), 0.01)
    assert np.abs(M - expected).max() < ROUNDING


def test_pca_with_all_components_is_the_distance_of_logs():
    source, target = pair(spots=12)
    options = Expression("pca", components=100, min_spot_counts=1.0, min_gene_counts=1.0)
    counts = common_counts(source, target, options)
    logs = lambda X: torch.from_numpy(np.log1p(1e4 * X / X.sum(1, keepdims=True)))
    expected = torch.cdist(logs(counts.source.toarray()), logs(counts.target.toarray())).square()
    assert (dissimilarity(counts, options) - expected).abs().max() < 1e-8


def test_pca_is_joint_and_few_components_lose_distance():
    source, target = pair()
    few = Expression("pca", components=3, min_spot_counts=1.0, min_gene_counts=1.0)
    many = Expression("pca", components=9, min_spot_counts=1.0, min_gene_counts=1.0)
    counts = common_counts(source, target, few)
    assert (dissimilarity(counts, few) <= dissimilarity(counts, many) + ROUNDING).all()


def test_filters_spots_then_genes_and_keeps_the_order_of_the_source():
    X1 = csr_matrix(np.array([[9.0, 1, 5], [8, 0, 7], [7, 2, 6], [0, 1, 0]]))
    base = tissue(spots=4, genes=3)
    source = changed(base, counts=X1, genes=("c", "a", "b"))
    target = changed(base, counts=X1[:, [2, 0, 1]], genes=("b", "c", "a"))
    counts = common_counts(source, target, Expression(min_spot_counts=5.0, min_gene_counts=4.0))
    assert counts.kept_source.tolist() == [0, 1, 2]
    assert counts.genes == ("c", "b")  # a has 3 counts once the poor spot is gone
    assert np.array_equal(counts.source.toarray(), counts.target.toarray())


@pytest.mark.parametrize(
    ("rename", "said"),
    [
        (lambda name: name.upper(), "upper and lower case"),
        (lambda name: f"ENSG{abs(hash(name)) % 10**11:011d}", "Ensembl"),
        (lambda name: name + ".2", "version suffix"),
        (lambda name: "other" + name, "no gene in common"),
    ],
)
def test_says_why_no_gene_is_common(rename, said):
    source, target = pair()
    target = changed(target, genes=tuple(rename(name) for name in target.genes))
    with pytest.raises(IllPosed, match=said) as caught:
        common_counts(source, target, LOOSE)
    assert caught.value.field == "target.counts"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (Expression(min_spot_counts=1e6), r"0 of 20 spots have 1e\+06 counts .* Totals lie in"),
        (Expression(min_gene_counts=1e6), r"none of 40 genes has 1e\+06 counts"),
    ],
)
def test_says_what_an_empty_filter_saw(options, said):
    with pytest.raises(IllPosed, match=said) as caught:
        common_counts(*pair(), options)
    assert caught.value.field == "source.counts"


def test_rows_may_come_in_any_order():
    source, target = pair()
    order = np.random.default_rng(0).permutation(20)
    plain = dissimilarity(common_counts(source, target, LOOSE), LOOSE)
    mixed = dissimilarity(common_counts(reordered(source, order), target, LOOSE), LOOSE)
    assert (plain[torch.from_numpy(order)] - mixed).abs().max() < ROUNDING
