"""Labels and expression through a plan: sums spelt out, a real round trip, every refusal."""

from dataclasses import replace

import anndata
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithms.errors import IllPosed
from algorithms.sparse import SparsePlan
from algorithms.spatial.align import align
from algorithms.spatial.transfer import UNMATCHED, correlation, transfer
from bench.spatial import ABSENT, SECTIONS, section
from tests.algorithms.spatial.tissue import changed, reordered, tissue

# Sums of at most a few hundred float64 products.
ROUNDING = 1e-12
TISSUE = tissue(0)


def sparse(P):
    rows, cols = P.nonzero(as_tuple=True)
    return SparsePlan(rows, cols, P[rows, cols])


def drawn(seed, n=12, m=9):
    rng = np.random.default_rng(seed)
    P = torch.from_numpy(rng.random((n, m)) * (rng.random((n, m)) < 0.4))
    P[:, 0] = 0  # a target spot that receives nothing
    P[0, 1:] += 1e-3
    one, other = (reordered(TISSUE, rng.choice(80, k, replace=False)) for k in (n, m))
    labels = tuple(None if k == 3 else label for k, label in enumerate(one.labels))
    return changed(one, labels=labels), other, P / P.sum()


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 1000))
def test_sums_are_those_of_the_definition(seed):
    source, target, P = drawn(seed)
    answer = transfer(source, target, sparse(P), genes=("Gene3", "Gene7"))
    X = torch.from_numpy(source.counts.toarray())
    for j in range(9):
        q = P[:, j].sum()
        assert abs(answer.received[j] - 9 * q) < ROUNDING
        for at, name in enumerate(answer.names):
            score = sum(P[i, j] for i in range(12) if source.labels[i] == name)
            assert abs(answer.label_scores[j, at] - (score / q if q > 0 else 0)) < ROUNDING
        if q > 0:
            carried = P[:, j] @ X[:, [3, 7]] / q
            assert (answer.imputation.expression[j] - carried).abs().max() < 1e-9
            assert answer.partners[j, 0] == P[:, j].argmax()
            assert abs(answer.partner_share[j, 0] - P[:, j].max() / q) < ROUNDING
        if 9 * q < 0.5:
            assert answer.labels[j] == UNMATCHED
    assert answer.partners[0].tolist() == [-1, -1, -1]
    assert answer.certificate.score_error < ROUNDING
    pairs = {(i, j) for i in range(12) for j in range(9)
             if P[i, j] > 0 and P[:, j].argmax() == i and P[i].argmax() == j}  # fmt: skip
    found = zip(answer.mutual_source.tolist(), answer.mutual_target.tolist(), strict=True)
    assert set(found) == pairs


def test_the_identity_carries_everything():
    n = 80
    plan = SparsePlan(torch.arange(n), torch.arange(n), torch.full((n,), 1 / n).double())
    answer = transfer(TISSUE, TISSUE, plan, genes=("Gene0",), partners=2)
    assert answer.labels == TISSUE.labels
    assert answer.ids == TISSUE.ids
    agreement = answer.agreement
    assert agreement.accuracy == agreement.round_trip == 1
    assert agreement.adjusted_rand == pytest.approx(1)
    assert agreement.mutual_information == pytest.approx(1)
    assert answer.imputation.pearson[0] == pytest.approx(1)
    assert (answer.transition.share - torch.eye(len(answer.names))).abs().max() < ROUNDING
    assert float(answer.entropy.max()) == 0
    assert answer.cautions == ()


def test_the_heaviest_alone_votes():
    source = changed(reordered(TISSUE, range(3)), labels=("a", "b", "b"))
    target = changed(reordered(TISSUE, [0]), labels=("b",))
    P = sparse(torch.tensor([[0.4], [0.3], [0.3]], dtype=torch.float64))
    assert transfer(source, target, P).labels == ("b",)
    assert transfer(source, target, P).confidence[0] == pytest.approx(0.6)
    alone = transfer(source, target, P, mode="max")
    assert alone.labels == ("a",)
    assert alone.confidence[0] == 1
    assert alone.agreement.accuracy == 0
    assert transfer(source, target, P).transition.share.tolist() == [[1], [1]]


def test_missing_labels_and_genes_leave_null():
    one, other, P = drawn(0)
    answer = transfer(changed(one, labels=None), other, sparse(P))
    assert answer.labels is None
    assert answer.imputation is None
    assert answer.agreement.round_trip is None
    own = changed(other, genes=tuple(f"x{k}" for k in range(120)), labels=None)
    answer = transfer(one, own, sparse(P), genes=["Gene0"])
    assert answer.imputation.pearson == (None,)
    assert answer.transition is None
    assert answer.agreement.accuracy is None


def test_a_small_plan_is_told():
    one, other, P = drawn(1)
    answer = transfer(one, other, sparse(0.1 * P))
    assert set(answer.labels) == {UNMATCHED}
    assert [c.code for c in answer.cautions] == ["mostly_unmatched"]
    assert answer.agreement.round_trip is None


def test_scores_do_not_depend_on_the_unit_of_mass():
    one, other, P = drawn(2)
    whole, half = (transfer(one, other, sparse(w * P)) for w in (1.0, 0.5))
    assert torch.equal(whole.label_scores, half.label_scores)
    assert torch.equal(whole.received, 2 * half.received)


def test_correlation_of_constants_is_none():
    z = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    assert correlation(z, torch.ones(3, dtype=torch.float64)) is None
    assert correlation(z, -2 * z) == pytest.approx(-1)
    assert correlation(1e200 * z, 1e-200 * z) == pytest.approx(1)


@pytest.mark.parametrize(
    ("field", "plan", "more"),
    [
        ("plan.rows", ([12], [0], [1.0]), {}),
        ("plan.rows", ([-1], [0], [1.0]), {}),
        ("plan.cols", ([0], [9], [1.0]), {}),
        ("plan.mass", ([0], [0], [-1.0]), {}),
        ("plan.mass", ([0], [0], [float("nan")]), {}),
        ("plan.mass", ([0], [0], [0.0]), {}),
        ("partners", ([0], [0], [1.0]), {"partners": 0}),
        ("genes", ([0], [0], [1.0]), {"genes": ("nowhere",)}),
        ("genes", ([0], [0], [1.0]), {"genes": ("Gene1", "Gene1")}),
    ],
)
def test_plans_of_other_slices_are_refused(field, plan, more):
    one, other, _ = drawn(0)
    rows, cols, mass = plan
    asked = SparsePlan(torch.tensor(rows), torch.tensor(cols), torch.tensor(mass).double())
    with pytest.raises(IllPosed) as caught:
        transfer(one, other, asked, **more)
    assert caught.value.field == field


@pytest.mark.slow
def test_pathology_of_a_real_section_comes_back():
    if not SECTIONS.is_dir():
        pytest.skip(ABSENT)
    source, target = section("stahl_breast_slice1"), section("stahl_breast_slice2")
    regions = anndata.read_h5ad(SECTIONS / "stahl_breast_slice1.h5ad").obs["pathology"]
    source = replace(source, labels=tuple(map(str, regions)))
    answer = transfer(source, target, align(source, target, effort="fast").plan)
    assert answer.agreement.round_trip >= 0.97
    print(f"round trip {answer.agreement.round_trip:.4f}")
