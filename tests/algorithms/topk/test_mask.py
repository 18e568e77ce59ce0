"""What `topk.mask` adds to the core: proofs, forms, padded rows, tangents, warnings."""

import pytest
import torch

from algorithms.errors import IllPosed
from algorithms.topk.mask import mask
from algorithms.topk.operator import solve_mask
from tests.problems.topk_rows import MASKS, PAIR

ROUNDING = 1e-12  # sums of some ten float64 numbers of size one
STEP, DIFFERENCES = 1e-6, 1e-7  # central differences in float64, away from kinks
REGULARIZERS = ["power", "two_sided", "sigmoid", "laplace"]


def scores(B=4, n=12, seed=0):
    return torch.randn(B, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("kind", "p"), MASKS)
def test_known_answers_come_with_thresholds_and_proofs(kind, p):
    y, tau = MASKS[kind, p]
    found = mask(torch.tensor([PAIR], dtype=torch.float64), 2.0, lam=0.5, p=p, regularizer=kind)
    assert found.y is not None
    assert found.y[0].tolist() == pytest.approx(y, abs=1e-9)
    assert float(found.tau[0]) == pytest.approx(tau, abs=1e-9)
    assert found.stop.status == "converged"
    assert found.certificate.sum_error < ROUNDING
    assert found.certificate.optimality_gap < ROUNDING
    assert found.certificate.outside == 0


def test_no_point_of_the_polytope_is_worth_more():
    x, lam, k = scores(), 0.7, 4.0
    best = mask(x, k, lam=lam)
    worth = lambda y: (x * y).sum(1) - lam / 2 * (y**2).sum(1)
    assert best.y is not None
    assert torch.allclose(best.value, worth(best.y), atol=ROUNDING, rtol=0)
    even = torch.full_like(x, k / x.shape[1])
    for other in (even, solve_mask(x, k, 1e-6).y, solve_mask(-x, k, 1.0).y):
        for share in (0.01, 0.5, 1.0):
            assert bool((worth(best.y + share * (other - best.y)) <= best.value + ROUNDING).all())


def test_counts_are_those_of_the_mask():
    found = mask(scores(6, 30), 7.0, lam=1.0)
    assert found.y is not None
    assert torch.equal(found.support, (found.y > 0).sum(1))
    assert torch.equal(found.saturated, (found.y == 1).sum(1))
    assert torch.equal(found.interior, ((found.y > 0) & (found.y < 1)).sum(1))


def test_rows_by_their_entries_are_the_same_rows():
    x = scores(3, 40)
    dense, sparse = (mask(x, 3.0, lam=0.3, answer=form) for form in ("dense", "sparse"))
    assert sparse.y is None
    assert sparse.entries is not None
    assert dense.y is not None
    assert torch.equal(sparse.entries.dense(40), dense.y)
    assert sparse.entries.offsets[-1] == int(dense.support.sum())


def test_padded_rows_are_answered_as_if_they_were_shorter():
    x, valid = scores(2, 10), torch.ones(2, 10, dtype=torch.float64)
    valid[1, 6:] = 0
    found = mask(x, 3.0, lam=0.8, valid=valid)
    alone = mask(x[1:, :6], 3.0, lam=0.8)
    assert found.y is not None
    assert alone.y is not None
    assert torch.allclose(found.y[1, :6], alone.y[0], atol=ROUNDING, rtol=0)
    assert not found.y[1, 6:].any()


@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_tangents_match_differences(regularizer):
    x, tangent = scores(3, 9, 1), scores(3, 9, 2)
    ask = lambda at: solve_mask(at, 3, 1.3, regularizer=regularizer).y
    moved = mask(x, 3.0, lam=1.3, regularizer=regularizer, tangent=tangent).jvp
    assert moved is not None
    slope = (ask(x + STEP * tangent) - ask(x - STEP * tangent)) / (2 * STEP)
    assert torch.allclose(moved, slope, atol=DIFFERENCES * 10, rtol=0)


def test_amounts_and_strengths_of_rows_have_gradients():
    x = scores(3, 9, 3)
    k = torch.tensor([2.0, 3.5, 4.0], dtype=torch.float64, requires_grad=True)
    lam = torch.tensor([1.0, 1.2, 0.9], dtype=torch.float64, requires_grad=True)
    mask(x, k_rows=k, lam_rows=lam).value.sum().backward()
    for given in (k, lam):
        assert given.grad is not None
        for row in range(3):
            ends = list[float]()
            for sign in (1, -1):
                moved = given.detach().clone()
                moved[row] += sign * STEP
                ks, ls = (moved, lam.detach()) if given is k else (k.detach(), moved)
                ends.append(float(mask(x, k_rows=ks, lam_rows=ls).value.detach().sum()))
            slope = (ends[0] - ends[1]) / (2 * STEP)
            assert float(given.grad[row]) == pytest.approx(slope, abs=DIFFERENCES)


def test_a_strength_that_is_chosen_is_returned_and_used():
    x = scores(5, 20)
    found = mask(x, 4.0)
    again = mask(x, 4.0, lam_rows=found.lam)
    assert found.y is not None
    assert again.y is not None
    assert torch.equal(found.y, again.y)


def test_hard_rows_are_told_with_their_gap():
    found = mask(torch.tensor([[9.0, 4.0, 1.0, 0.0]]), 2.0, lam=0.1)
    assert bool(found.hard[0])
    assert [caution.code for caution in found.cautions] == ["no_gradient"]
    assert "gap 3 " in found.cautions[0].message


def test_sweeps_that_do_not_end_are_told():
    wide = mask(scores(1, 400), 40.0, lam=50.0, method="dykstra")
    assert wide.stop.status == "max_iter"
    assert wide.certificate.sum_error > 0
    assert wide.cautions


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"k": 13.0}, "k"),
        ({"k": -1.0}, "k"),
        ({"k": 2.0, "lam": 0.0}, "lam"),
        ({"k": 2.0, "lam": "small"}, "lam"),
        ({"k": 2.0, "lam": 1.0, "p": 1.0}, "p"),
        ({"k": 2.0, "lam": 1.0, "method": "pav", "regularizer": "sigmoid"}, "method"),
    ],
)
def test_bad_questions_name_the_field(asked, field):
    with pytest.raises(IllPosed) as caught:
        mask(scores(), **asked)
    assert caught.value.field.startswith(field)
