import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from algorithms.errors import IllPosed
from algorithms.topk.loss import loss
from algorithms.topk.revival import reviving_lam
from schemas.topk.loss import EXAMPLE, LossRequest

ROUNDING = 1e-12  # sums of a few dozen float64 numbers of size ten
HALVED = 1e-10  # thresholds of the oracle, after 200 halvings, times slopes of at most 10 / lam
SINGLE = 2e-6  # float32 answers of size ten
DIFFERENCES = {"atol": 1e-6, "rtol": 1e-5}  # central differences of step 1e-6 in float64
EXPONENTS = [2.0, 1.5, 4 / 3, 3.0]
LABELLED = ["partial_fy", "hit", "nll"]
FLOOR = 1e-12  # what the logarithm of `nll` is cut off at
seeds = st.integers(0, 10_000)
few = settings(max_examples=5, deadline=None)


def rows(seed: int, B: int = 6, n: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    x = 1.5 * torch.randn(B, n, generator=draw, dtype=torch.float64)
    return x, torch.randint(0, n, (B,), generator=draw).double()


def k_hot(seed: int, B: int = 6, n: int = 7) -> torch.Tensor:
    """Draw rows with 1 to n - 1 ones."""
    draw = torch.Generator().manual_seed(seed)
    order = torch.rand(B, n, generator=draw).argsort(1)
    return (order < torch.randint(1, n, (B, 1), generator=draw)).double()


def halved(x: torch.Tensor, k: float, lam: float, p: float) -> torch.Tensor:
    """Find one mask by halving its threshold: nothing here is shared with what is tested."""
    if k == 0:
        return torch.zeros_like(x)
    mask = lambda tau: ((x - tau) / lam).clamp(0, 1) ** (1 / (p - 1))
    low, high = float(x.min()) - lam, float(x.max())
    for _ in range(200):
        mid = (low + high) / 2
        low, high = (mid, high) if float(mask(mid).sum()) > k else (low, mid)
    return mask(low)


def best(x: torch.Tensor, k: float, lam: float, p: float) -> float:
    """Evaluate the maximum by its dual, which forgives a threshold that is slightly off."""
    if k == 0:
        return 0.0
    y = halved(x, k, lam, p)
    tau = float((x - lam * y ** (p - 1))[(y > 0) & (y < 1)].mean()) if k < len(x) else 0.0
    if not math.isfinite(tau):  # exactly hard: any threshold between
        tau = float(x.topk(int(k)).values[-1]) - lam
    y = ((x - tau) / lam).clamp(0, 1) ** (1 / (p - 1)) if k < len(x) else torch.ones_like(x)
    return k * tau + float((x - tau) @ y - lam / p * y.pow(p).sum())


def without(x: torch.Tensor, c: int) -> torch.Tensor:
    return torch.cat([x[:c], x[c + 1 :]])


@pytest.mark.parametrize("p", EXPONENTS)
def test_partial_is_the_difference_of_two_maxima(p):
    x, c = rows(0)
    for k, lam in ((1, 0.5), (2, 1.0), (6, 2.0)):
        answer = loss(x, c, k=k, lam=lam, p=p)
        for i, label in enumerate(c.long().tolist()):
            rest = best(without(x[i], label), k - 1, lam, p)
            known = best(x[i], k, lam, p) - (float(x[i, label]) - lam / p + rest)
            assert float(answer.losses[i]) == pytest.approx(known, abs=HALVED)
        assert answer.stop.status == "converged"
        assert answer.value.item() == pytest.approx(float(answer.losses.mean()), abs=ROUNDING)


@pytest.mark.parametrize("p", EXPONENTS)
def test_full_targets_agree_with_the_definition(p):
    x, targets = rows(1)[0], k_hot(1)
    targets[2] *= 0.37  # any point of the polytope, with a sum that is not whole
    answer = loss(x, targets=targets, kind="fy", lam=0.8, p=p)
    for i, target in enumerate(targets):
        price = 0.8 / p * float(target.pow(p).sum())
        known = best(x[i], float(target.sum()), 0.8, p) + price - float(x[i] @ target)
        assert float(answer.losses[i]) == pytest.approx(known, abs=HALVED)


@pytest.mark.parametrize("p", [2.0, 4 / 3])
def test_hit_and_likelihood_read_the_mask(p):
    x, c = rows(2)
    columns = c.long()
    own = torch.stack([halved(row, 2, 1.0, p)[j] for row, j in zip(x, columns, strict=True)])
    hit, nll = (loss(x, c, kind=kind, k=2, p=p).losses for kind in ("hit", "nll"))
    torch.testing.assert_close(hit, 1 - own, atol=HALVED, rtol=0)
    torch.testing.assert_close(nll, -own.clamp_min(FLOOR).log(), atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("gap", [-5.0, -1.0, -0.3, 0.0, 0.7, 1.0, 2.0])
def test_two_classes_are_a_smoothed_hinge(gap):
    lam = 1.0
    known = 0.0 if gap >= lam else -gap if gap <= -lam else (lam - gap) ** 2 / (4 * lam)
    x = torch.tensor([[gap, 0.0]], dtype=torch.float64)
    answer = loss(x, torch.zeros(1, dtype=torch.float64), k=1, lam=lam, answer="dense")
    assert answer.value.item() == pytest.approx(known, abs=ROUNDING)
    slope = (gap - lam) / (2 * lam) if abs(gap) < lam else float(gap >= lam) - 1
    assert answer.gradient[0].tolist() == pytest.approx([slope, -slope], abs=ROUNDING)


def test_without_regulariser_it_is_the_distance_to_the_kth_score():
    x, c = rows(3)
    lam, k = 1e-6, 3
    kth = x.topk(k, 1).values[:, -1]
    hinge = (kth - x.gather(1, c.long()[:, None])[:, 0]).clamp_min(0)
    assert float((loss(x, c, k=k, lam=lam).losses - hinge).abs().max()) <= lam * k


def test_full_targets_cost_nothing_from_a_margin_of_lam_on():
    targets = torch.tensor([[1.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    for margin, free in ((0.5, True), (0.49, False)):
        x = torch.tensor([[3.0, margin, 0.0, -1.0]], dtype=torch.float64)
        answer = loss(x, targets=targets, kind="fy", lam=0.5)
        assert (answer.value.item() == 0) == free
        assert answer.certificate.smallest_loss >= 0


@few
@given(seeds, st.sampled_from(EXPONENTS), st.sampled_from(LABELLED), st.integers(1, 6))
def test_law_scaling_and_shifting(seed, p, kind, k):
    x, c = rows(seed)
    one = loss(x, c, kind=kind, k=k, p=p)
    unit = 4.0 if kind == "partial_fy" else 1.0
    scaled = loss(4 * x, c, kind=kind, k=k, lam=4.0, p=p).losses
    torch.testing.assert_close(scaled, unit * one.losses, atol=1e-9, rtol=1e-9)
    # the shift rounds scores of size ten to the digits of a thousand: 1e-13, and 1 / y for nll
    moved = loss(x + 1024, c, kind="partial_fy", k=k, p=p).losses
    torch.testing.assert_close(moved, loss(x, c, k=k, p=p).losses, atol=1e-10, rtol=0)


@few
@given(seeds, st.sampled_from(EXPONENTS), st.sampled_from(LABELLED))
def test_law_columns_and_rows_can_be_exchanged(seed, p, kind):
    x, c = rows(seed)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(seed))
    one = loss(x, c, kind=kind, k=2, p=p, answer="dense")
    other = loss(
        x[:, order], order.argsort()[c.long()].double(), kind=kind, k=2, p=p, answer="dense"
    )
    close = {"atol": 1e-9, "rtol": 1e-9}  # sums in another order, divided by small shares
    torch.testing.assert_close(other.losses, one.losses, **close)
    torch.testing.assert_close(other.gradient, one.gradient[:, order], **close)
    for i in range(len(x)):
        alone = loss(x[i : i + 1], c[i : i + 1], kind=kind, k=2, p=p)
        torch.testing.assert_close(alone.losses, one.losses[i : i + 1], **close)


@few
@given(seeds, st.sampled_from(EXPONENTS))
def test_law_full_losses_and_those_of_one_label_are_convex(seed, p):
    (x, c), (z, _), targets = rows(seed), rows(seed + 1), k_hot(seed)
    for question in ({"labels": c, "k": 1}, {"targets": targets, "kind": "fy"}):
        one, other, middle = (loss(w, **question, p=p) for w in (x, z, (x + z) / 2))
        assert (middle.losses <= (one.losses + other.losses) / 2 + ROUNDING).all()


@few
@given(seeds, st.sampled_from(EXPONENTS), st.integers(1, 6))
def test_law_partial_is_the_least_of_all_full_losses_that_keep_the_label(seed, p, k):
    x, c = rows(seed)
    answer = loss(x, c, k=k, p=p)
    draw = torch.Generator().manual_seed(seed)
    others = torch.rand(x.shape, generator=draw, dtype=torch.float64).scatter(
        1, c.long()[:, None], 2.0
    )
    target = (others.argsort(1, descending=True).argsort(1) < k).double()
    full = loss(x, targets=target, kind="fy", p=p)
    assert (answer.losses <= full.losses + ROUNDING).all()
    for found in (answer, full):
        slack = found.certificate.curvature_slack
        assert slack >= -ROUNDING if p <= 2 else slack is None


@pytest.mark.parametrize("p", [2.0, 4 / 3])
@pytest.mark.parametrize("kind", [*LABELLED, "fy"])
def test_gradients_match_differences(kind, p):
    # drawn once: no entry of a mask lies within a step of a kink
    x, c = rows(5, B=2)
    x = x / 8
    question = {"targets": k_hot(5, B=2)} if kind == "fy" else {"labels": c, "k": 2}
    both = lambda z: (lambda found: (found.value, found.losses))(
        loss(z, kind=kind, p=p, **question)
    )
    assert torch.autograd.gradcheck(both, x.requires_grad_(), **DIFFERENCES)
    told = loss(x, kind=kind, p=p, answer="dense", **question)
    (pulled,) = torch.autograd.grad(told.losses.sum(), x)
    torch.testing.assert_close(pulled, told.gradient, atol=0, rtol=0)
    assert (pulled != 0).any()


def test_a_sparse_gradient_is_the_dense_one():
    x, c = rows(6, B=5, n=40)
    dense, sparse = (loss(3 * x, c, k=2, answer=form) for form in ("dense", "sparse"))
    assert dense.entries is None
    assert sparse.gradient is None
    assert torch.equal(sparse.entries.dense(40), dense.gradient)
    assert len(sparse.entries.values) == int((dense.gradient != 0).sum())


@few
@given(seeds, st.sampled_from([2.0, 4 / 3]), st.integers(1, 4))
def test_law_dead_rows_are_those_whose_label_lies_below_the_threshold(seed, p, k):
    x, c = rows(seed, B=12)
    x = 2 * x
    own = x.gather(1, c.long()[:, None])[:, 0]
    for kind in ("hit", "nll"):
        answer = loss(x, c, kind=kind, k=k, p=p)
        assert torch.equal(answer.dead, own <= answer.tau)
        assert answer.dead_fraction == pytest.approx(float(answer.dead.double().mean()))
        warned = any(caution.code == "dead_losses" for caution in answer.cautions)
        assert warned == bool(answer.dead.any())
    alive = loss(x, c, k=k, p=p)
    assert not alive.dead.any()
    assert alive.dead_fraction == 0


@pytest.mark.parametrize("p", [2.0, 4 / 3])
def test_the_lam_of_the_hint_wakes_a_lost_label(p):
    x = torch.tensor([[4.0, 3.0, 2.5, -1.0, 0.3]], dtype=torch.float64)
    c = torch.tensor([3.0], dtype=torch.float64)
    answer = loss(x, c, kind="nll", k=2, p=p)
    needed = float(reviving_lam(x, torch.tensor([0]), c.long(), 2, p))
    assert f"{needed:.3g}" in answer.cautions[0].hint
    assert not loss(x, c, kind="nll", k=2, lam=needed * 1.001, p=p).dead.any()
    assert loss(x, c, kind="nll", k=2, lam=needed * 0.999, p=p).dead.all()


def test_accuracies_count_labels_and_share_ties():
    x = torch.tensor([[3.0, 2.0, 1.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    c = torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64)
    known = [(0 + 1 / 2 + 1 / 3) / 3, (1 + 1 + 2 / 3) / 3]
    assert loss(x, c, k=2).accuracy.tolist() == pytest.approx(known, abs=ROUNDING)
    one_hot = torch.nn.functional.one_hot(c.long(), 3).double()
    found = loss(x, targets=one_hot, kind="fy").accuracy.tolist()
    assert found == pytest.approx(known[:1], abs=ROUNDING)


def test_accuracies_of_many_targets_are_shares_of_what_fits():
    x = torch.tensor([[4.0, 3.0, 2.0, 1.0], [4.0, 3.0, 2.0, 1.0], [0.0, 1.0, 2.0, 3.0]]).double()
    targets = torch.tensor([[1.0, 0, 1, 1], [0, 0, 1, 0], [0, 0, 0, 0]], dtype=torch.float64)
    answer = loss(x, targets=targets, kind="fy")
    known = [(1 + 0) / 2, (1 / 2 + 0) / 2, (2 / 3 + 1) / 2]
    assert answer.accuracy.tolist() == pytest.approx(known, abs=ROUNDING)
    assert float(answer.losses[2]) == 0  # a row without a label has nothing to lose


@pytest.mark.parametrize("kind", LABELLED)
def test_one_column_and_all_columns_cost_nothing(kind):
    alone = loss(torch.tensor([[2.5]]).double(), torch.zeros(1).double(), kind=kind, k=1)
    x, c = rows(7)
    everything = loss(x, c, kind=kind, k=7)
    for answer in (alone, everything):
        assert float(answer.losses.abs().max()) == 0
        assert [caution.code for caution in answer.cautions] == ["nothing_to_choose"]
        assert answer.stop.status == "converged"


@pytest.mark.parametrize("kind", LABELLED)
@pytest.mark.parametrize("lam", [1e-99, 1e-9, 1e9, 1e99])
def test_any_strength_has_a_finite_answer(kind, lam):
    x, c = rows(8)
    answer = loss(x, c, kind=kind, k=3, lam=lam, answer="dense")
    assert answer.stop.status == "converged"
    for numbers in (answer.losses, answer.gradient, answer.tau):
        assert numbers.isfinite().all()
    assert (answer.losses >= 0).all()


@pytest.mark.parametrize("kind", LABELLED)
def test_single_is_close_to_double(kind):
    x, c = rows(9)
    single = loss(x.float(), c.float(), kind=kind, k=2, lam=4.0)
    double = loss(x.float().double(), c, kind=kind, k=2, lam=4.0)
    assert single.value.dtype == single.losses.dtype == single.gradient.dtype == torch.float32
    assert single.stop.status == "converged"
    torch.testing.assert_close(single.losses.double(), double.losses, atol=SINGLE, rtol=SINGLE)
    torch.testing.assert_close(single.gradient.double(), double.gradient, atol=SINGLE, rtol=SINGLE)


@pytest.mark.parametrize("kind", [*LABELLED, "fy"])
def test_the_certificate_can_be_computed_again(kind):
    x, c = rows(10)
    question = {"targets": k_hot(10)} if kind == "fy" else {"labels": c, "k": 2}
    answer = loss(x, kind=kind, lam=0.7, answer="dense", **question)
    seen = answer.certificate
    assert seen.sum_error < ROUNDING
    assert seen.gradient_sum == float(answer.gradient.sum(1).abs().max())
    assert seen.smallest_loss == float(answer.losses.min())
    assert 0 <= seen.optimality_gap < ROUNDING
    kept = question["targets"].sum(1) if kind == "fy" else torch.full((6,), 2.0).double()
    y = ((x - answer.tau[:, None]) / 0.7).clamp(0, 1)
    torch.testing.assert_close(y.sum(1), kept, atol=ROUNDING, rtol=0)
    assert answer.support.tolist() == (y > 0).sum(1).tolist()
    assert (answer.saturated + answer.interior).tolist() == answer.support.tolist()


NAN = torch.tensor([[math.nan, 0.0, 0.0]], dtype=torch.float64)
THREE, NONE = torch.zeros(1, 3, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("x", {"x": NAN}),
        ("x", {"x": torch.tensor([[1e308, -1e308, 0.0]]).double(), "labels": NONE + 1}),
        ("x", {"x": THREE[:0], "labels": NONE[:0]}),
        ("labels", {"labels": None}),
        ("labels", {"labels": NONE + 3}),
        ("labels", {"labels": NONE - 1}),
        ("labels", {"labels": NONE + 0.5}),
        ("k", {"k": None}),
        ("k", {"k": 0}),
        ("k", {"k": 4}),
        ("lam", {"lam": 0.0}),
        ("lam", {"lam": math.inf}),
        ("p", {"p": 1.0}),
        ("p", {"p": 9.0}),
        ("targets", {"targets": THREE + 0.5}),
        ("targets", {"kind": "fy", "labels": None, "k": None}),
        ("targets", {"kind": "fy", "labels": None, "k": None, "targets": THREE + 1.5}),
        ("targets", {"kind": "fy", "labels": None, "k": None, "targets": THREE}),
        ("labels", {"kind": "fy", "k": None, "targets": THREE + 0.5}),
        ("k", {"kind": "fy", "labels": None, "targets": THREE + 0.5}),
    ],
)
def test_bad_input_is_named(field, change):
    with pytest.raises(IllPosed) as refusal:
        loss(**{"x": THREE + 1, "labels": NONE, "k": 1} | change)
    assert refusal.value.field == field


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("k", {"k": 5}),
        ("k", {"k": None}),
        ("labels", {"labels": [0, 3, 4]}),
        ("labels", {"labels": [0, -1, 2]}),
        ("labels", {"labels": None}),
        ("targets", {"targets": [[0.0] * 4] * 3}),
        ("targets", {"kind": "fy", "labels": None, "k": None}),
        ("targets", {"kind": "fy", "labels": None, "k": None, "targets": [[2.0] * 4] * 3}),
        ("targets", {"kind": "fy", "labels": None, "k": None, "targets": [[0.0] * 4] * 3}),
        ("k", {"kind": "fy", "labels": None, "targets": [[1.0] * 4] * 3}),
    ],
)
def test_the_gateway_refuses_by_name(field, change):
    with pytest.raises(ValidationError) as refusal:
        LossRequest.model_validate(EXAMPLE | change)
    assert [error["ctx"]["field"] for error in refusal.value.errors()] == [field]


def test_exponents_above_two_are_warned_of():
    x, c = rows(11)
    answer = loss(x, c, k=2, p=3.0)
    assert [caution.code for caution in answer.cautions] == ["unbounded_gradient"]
