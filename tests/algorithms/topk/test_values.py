"""What `topk.values` adds to the core: proofs, modes, forms, strengths, tangents."""

import pytest
import torch

from algorithms.errors import IllPosed
from algorithms.topk.operator import solve_mask, solve_values
from algorithms.topk.values import values
from tests.problems.topk_rows import FOUR_THIRDS, SIGNS, THETAS, VALUES

ROUNDING = 1e-12  # sums of some ten float64 numbers of size one
STEP, DIFFERENCES = 1e-6, 1e-6  # central differences in float64, away from kinks


def scores(B=4, n=12, seed=0):
    return torch.randn(B, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("p", "debias"), VALUES)
def test_known_answers_come_with_thresholds_and_proofs(p, debias):
    x = torch.tensor([SIGNS], dtype=torch.float64)
    found = values(x, 2, lam=0.5, p=p, debias=debias)
    assert found.y is not None
    assert found.y[0].tolist() == pytest.approx(VALUES[p, debias], abs=1e-9)
    assert float(found.tau[0]) == pytest.approx(THETAS[p], abs=1e-9)
    assert found.debiased is debias
    assert found.stop.status == "converged"
    assert found.certificate.sum_error < ROUNDING
    assert found.certificate.stationarity_error < ROUNDING


@pytest.mark.parametrize("p", [2.0, FOUR_THIRDS])
def test_no_other_values_are_worth_more(p):
    """The value is the largest of <x, y> - |y|_k^2/2 - (lam/p) sum |y|^p: with k = 1, |y|_1."""
    x, lam = scores(3, 8), 0.6
    found = values(x, 1, lam=lam, p=p, debias=False)
    worth = lambda y: (x * y).sum(1) - y.abs().sum(1) ** 2 / 2 - lam / p * y.abs().pow(p).sum(1)
    assert found.y is not None
    assert torch.allclose(found.value, worth(found.y), atol=ROUNDING, rtol=0)
    for seed in range(20):
        other = found.y + 0.1 * scores(3, 8, seed)
        assert bool((worth(other) <= found.value + ROUNDING).all())


def test_signed_values_are_scores_times_their_mask():
    x = scores()
    found = values(x, 3, lam=0.5, mode="signed")
    assert found.y is not None
    assert not found.debiased
    assert torch.equal(found.y, x * solve_mask(x, 3, 0.5).y + 0.0)


def test_rows_by_their_entries_are_the_same_rows():
    x = scores(3, 40)
    dense, sparse = (values(x, 3, lam=0.3, answer=form) for form in ("dense", "sparse"))
    assert sparse.y is None
    assert sparse.entries is not None
    assert dense.y is not None
    assert torch.equal(sparse.entries.dense(40), dense.y)


@pytest.mark.parametrize("p", [2.0, 1.5, FOUR_THIRDS])
@pytest.mark.parametrize("unit", [2.0**-20, 2.0**10])
def test_a_relative_strength_does_not_know_the_unit(p, unit):
    x = scores()
    one, other = (values(z, 3, lam_relative=0.4, p=p) for z in (x, unit * x))
    assert one.y is not None
    assert other.y is not None
    assert torch.allclose(unit * one.y, other.y, atol=0, rtol=1e-9)


@pytest.mark.parametrize("mode", ["magnitude", "signed"])
@pytest.mark.parametrize("p", [2.0, FOUR_THIRDS])
def test_tangents_match_differences(mode, p):
    x, tangent = scores(3, 9, 1), scores(3, 9, 2)

    def ask(at):
        if mode == "signed":
            return at * solve_mask(at, 3, 1.3, p=p).y
        return solve_values(at, 3, 1.3, p=p).y

    moved = values(x, 3, lam=1.3, p=p, mode=mode, tangent=tangent).jvp
    assert moved is not None
    slope = (ask(x + STEP * tangent) - ask(x - STEP * tangent)) / (2 * STEP)
    assert torch.allclose(moved, slope, atol=DIFFERENCES, rtol=0)


@pytest.mark.parametrize("mode", ["magnitude", "signed"])
def test_gradients_of_the_value_match_differences(mode):
    x = scores(2, 8, 4).requires_grad_()
    lam = torch.tensor([0.8, 1.1], dtype=torch.float64, requires_grad=True)
    values(x, 3, lam_rows=lam, mode=mode).value.sum().backward()
    for given in (x, lam):
        assert given.grad is not None
        way = torch.randn_like(given)
        ends = list[float]()
        for sign in (1, -1):
            moved = given.detach() + sign * STEP * way
            at, strength = (moved, lam.detach()) if given is x else (x.detach(), moved)
            ends.append(float(values(at, 3, lam_rows=strength, mode=mode).value.sum()))
        slope = (ends[0] - ends[1]) / (2 * STEP)
        assert float((given.grad * way).sum()) == pytest.approx(slope, abs=DIFFERENCES)


def test_all_zero_rows_stay_zero():
    found = values(torch.zeros(2, 5, dtype=torch.float64), 2, lam=1.0)
    assert found.y is not None
    assert not found.y.any()
    assert not found.value.any()


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"k": 13, "lam": 1.0}, "k"),
        ({"k_rows": torch.tensor([1.0, 2.5, 1.0, 1.0]), "lam": 1.0}, "k"),
        ({"k": 2, "lam": -1.0}, "lam"),
        ({"k": 2, "lam": 1.0, "p": 0.5}, "p"),
    ],
)
def test_bad_questions_name_the_field(asked, field):
    with pytest.raises(IllPosed) as caught:
        values(scores(), **asked)
    assert caught.value.field.startswith(field)
