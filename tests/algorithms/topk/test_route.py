import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from algorithms.errors import IllPosed
from algorithms.topk.load import hard_load, squared_variation
from algorithms.topk.route import route
from schemas.topk.route import EXAMPLE, RouteRequest

ROUNDING = 1e-12  # sums of a few dozen float64 numbers of size one
SINGLE = 2e-6  # float32 weights at most one, sums of a few dozen of them
DIFFERENCES = {"atol": 1e-6, "rtol": 1e-5}  # central differences of step 1e-6 in float64
CHOICES, COMBINES = ["token", "expert"], ["softmax_mask", "mask", "raw"]
seeds = st.integers(0, 10_000)
few = settings(max_examples=5, deadline=None)


def scores(seed: int, T: int = 12, E: int = 6) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(T, E, generator=draw, dtype=torch.float64)


def dense(answer, E: int) -> torch.Tensor:
    """Write the weights out."""
    counts = answer.offsets.diff()
    tokens = torch.arange(len(counts)).repeat_interleave(counts)
    return torch.zeros(len(counts), E, dtype=answer.weights.dtype).index_put(
        (tokens, answer.experts), answer.weights.detach()
    )


def hard(s: torch.Tensor, k: int) -> torch.Tensor:
    return torch.zeros_like(s).scatter(1, s.topk(k, 1).indices, 1.0)


def smallest_gap(s: torch.Tensor, k: int) -> float:
    high = s.sort(1, descending=True).values
    return float((high[:, k - 1] - high[:, k]).min())


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("combine", COMBINES)
def test_below_the_smallest_gap_it_is_hard_routing(k, combine):
    s = scores(0)
    mask = hard(s, k)
    chosen = torch.where(mask > 0, s, -math.inf)
    known = {"raw": mask, "mask": mask / k, "softmax_mask": chosen.softmax(1)}[combine]
    gap = smallest_gap(s, k)
    answer = route(s, k, combine=combine, lam=0.999 * gap)
    torch.testing.assert_close(dense(answer, 6), known, atol=ROUNDING, rtol=0)
    assert torch.equal(dense(answer, 6) > 0, mask > 0)
    assert answer.hard_fraction == 1
    assert answer.degrees.tolist() == [12 if j == k else 0 for j in range(7)]
    cautions = {caution.code: caution for caution in answer.cautions}
    assert f"{gap:.4g}" in cautions["no_gradient"].hint
    assert "no_gradient" not in {c.code for c in route(s, k, lam=1.001 * gap).cautions}


def test_experts_choose_the_tokens_with_the_highest_scores():
    s = scores(1)
    answer = route(s, 2, choice="expert", combine="raw", lam=0.5 * smallest_gap(s.T, 4))
    assert answer.capacity == 4  # 12 tokens, 2 experts each, 6 experts
    assert torch.equal(dense(answer, 6), hard(s.T.contiguous(), 4).T)
    assert answer.load.tolist() == [4] * 6
    assert answer.load_cv2 == 0
    assert answer.peak_load == 1
    assert answer.overflow == 0
    lost = int((dense(answer, 6).sum(1) == 0).sum())
    assert answer.tokens_dropped == lost == int(answer.degrees[0]) > 0
    assert any(caution.code == "tokens_dropped" for caution in answer.cautions)


def test_two_experts_in_closed_form():
    s = torch.tensor([[0.3, 0.0], [0.0, 0.9], [5.0, 0.0]], dtype=torch.float64)
    answer = route(s, 1, combine="mask", lam=1.0)  # y_1 = clip(1/2 + (s_1 - s_2) / 2, 0, 1)
    known = torch.tensor([[0.65, 0.35], [0.05, 0.95], [1.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(dense(answer, 2), known, atol=ROUNDING, rtol=0)
    soft = known * s.softmax(1)
    mixed = dense(route(s, 1, lam=1.0), 2)
    torch.testing.assert_close(mixed, soft / soft.sum(1, keepdim=True), atol=ROUNDING, rtol=0)


@few
@given(seeds, st.sampled_from([2.0, 4 / 3]), st.integers(1, 5), st.sampled_from([0.1, 1.0, 8.0]))
def test_law_masks_keep_their_sum(seed, p, k, lam):
    s = scores(seed)
    raw = dense(route(s, k, combine="raw", lam=lam, p=p), 6)
    assert float((raw.sum(1) - k).abs().max()) < ROUNDING
    assert raw.max() <= 1
    even = route(s, 1, choice="expert", combine="raw", lam=lam, p=p, capacity_factor=2.0)
    assert even.capacity == 4
    assert float((dense(even, 6).sum(0) - 4).abs().max()) < ROUNDING
    weights = dense(route(s, k, lam=lam, p=p), 6)
    assert float((weights.sum(1) - 1).abs().max()) < ROUNDING
    torch.testing.assert_close((weights > 0).sum(1), (raw > 0).sum(1))


@few
@given(seeds, st.sampled_from(CHOICES), st.sampled_from(COMBINES), st.booleans())
def test_law_experts_and_tokens_can_be_exchanged(seed, choice, combine, drop):
    s = scores(seed)
    draw = torch.Generator().manual_seed(seed)
    tokens, experts = torch.randperm(12, generator=draw), torch.randperm(6, generator=draw)
    options = {"choice": choice, "combine": combine, "drop": drop}
    one, other = route(s, 2, **options), route(s[tokens][:, experts], 2, **options)
    moved = dense(one, 6)[tokens][:, experts]
    torch.testing.assert_close(dense(other, 6), moved, atol=ROUNDING, rtol=0)
    assert torch.equal(other.load, one.load[experts])
    assert torch.equal(other.degrees, one.degrees)
    for field in ("balance_loss", "z_loss", "importance_cv2"):
        found, known = (float(getattr(answer, field)) for answer in (other, one))
        assert found == pytest.approx(known, abs=ROUNDING)


@few
@given(seeds, st.sampled_from(CHOICES), st.sampled_from([0.25, 4.0]))
def test_law_the_temperature_divides_the_scores(seed, choice, temperature):
    s = scores(seed)
    one = route(s, 2, choice=choice, temperature=temperature)
    other = route(s / temperature, 2, choice=choice)
    assert torch.equal(one.weights, other.weights)
    # scores and lam on one scale leave the mask alone
    masks = (route(c * s, 2, choice=choice, combine="mask", lam=c).weights for c in (1.0, 4.0))
    assert torch.equal(*masks)


def test_statistics_agree_with_their_definitions():
    s = scores(2, T=40)
    answer = route(s, 2, lam=0.7, capacity_factor=0.9)
    w = dense(answer, 6)
    load, importance = (w > 0).sum(0), w.sum(0)
    variation = lambda z: float(z.double().var(correction=0) / z.double().mean() ** 2)
    P = s.softmax(1)
    f = hard(s, 2).mean(0) / 2
    log_sum = s.exp().sum(1).log()
    share = importance / importance.sum()
    assert torch.equal(answer.load, load)
    assert answer.capacity == 12  # 40 * 0.9 * 2 / 6
    assert answer.overflow == int((load - 12).clamp_min(0).sum())
    assert answer.degrees.tolist() == torch.bincount((w > 0).sum(1), minlength=7).tolist()
    assert answer.tokens_dropped == 0
    known = {
        "load_cv2": variation(load),
        "importance_cv2": variation(importance),
        "peak_load": float(load.max() / load.double().mean()),
        "entropy": float(-(P * P.log()).sum(1).mean()),
        "importance_entropy": float(-(share * share.log()).sum()),
        "balance_loss": 6 * float(f @ P.mean(0)),
        "z_loss": float((log_sum**2).mean()),
    }
    for field, value in known.items():
        assert float(getattr(answer, field)) == pytest.approx(value, abs=ROUNDING), field
    assert any(caution.code == "more_than_k" for caution in answer.cautions)


def test_balance_is_one_where_experts_are_alike():
    even = torch.zeros(8, 4, dtype=torch.float64)
    for k in (1, 2, 3):
        answer = route(even, k)
        assert float(answer.balance_loss) == pytest.approx(1, abs=ROUNDING)
        assert answer.load_cv2 == 0
        assert answer.entropy == pytest.approx(math.log(4), abs=ROUNDING)
    assert float(squared_variation(torch.tensor([4.0, 0, 0, 0]))) == 3
    ties = torch.tensor([[1.0, 0.0, 0.0, -1.0]])
    assert hard_load(ties, 2).tolist() == [1.0, 0.5, 0.5, 0.0]


@pytest.mark.parametrize("combine", COMBINES)
def test_a_full_expert_keeps_its_heaviest_tokens(combine):
    s = torch.zeros(6, 3, dtype=torch.float64)
    s[:, 0] = torch.tensor([9.0, 8.0, 7.0, 6.0, 5.0, 4.0])  # all want the first
    s[:, 1] = torch.tensor([3.0, 0.0, 0.0, 3.0, 0.0, 0.0])
    answer = route(s, 1, combine=combine, lam=0.1, drop=True)
    w = dense(answer, 3)
    assert answer.capacity == 2
    assert answer.overflow == 4
    assert answer.tokens_dropped == 4
    assert answer.load.tolist() == [2, 0, 0]
    assert w[:2, 0].tolist() == [1.0, 1.0]
    assert float(w.sum()) == 2
    codes = [caution.code for caution in answer.cautions]
    assert {"tokens_dropped", "idle_experts"} <= set(codes)
    assert "1, 2" in next(c.message for c in answer.cautions if c.code == "idle_experts")


def test_dropping_weighs_again_among_the_experts_that_are_left():
    s = scores(3, T=30)
    kept, whole = (dense(route(s, 2, lam=2.0, drop=drop), 6) for drop in (True, False))
    assert (kept > 0).sum(0).max() <= 10
    sums = kept.sum(1)
    assert ((sums - 1).abs().minimum(sums) < ROUNDING).all()
    left = torch.where(kept > 0, whole, 0.0)
    scaled = left / left.sum(1, keepdim=True).clamp_min(1e-300)
    torch.testing.assert_close(kept, scaled, atol=ROUNDING, rtol=0)


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize(("combine", "p"), [("softmax_mask", 2.0), ("mask", 4 / 3), ("raw", 2.0)])
def test_gradients_match_differences(choice, combine, p):
    s = scores(4, T=4, E=3).requires_grad_()  # no entry of a mask lies within a step of a kink
    options = {"choice": choice, "combine": combine, "p": p, "temperature": 1.3}

    def outputs(z):
        answer = route(z, 2, **options)
        return answer.weights, answer.importance_cv2, answer.balance_loss, answer.z_loss

    assert torch.autograd.gradcheck(outputs, s, **DIFFERENCES)
    (pulled,) = torch.autograd.grad((outputs(s)[0] ** 2).sum(), s)
    assert float(pulled.abs().max()) > 0


def test_weights_are_kept_where_the_softmax_underflows():
    s = torch.tensor(
        [[0.0, 0.0], [-3000.0, 900.0], [-2999.0, 0.0], [0.0, 0.0]], dtype=torch.float64
    )
    answer = route(s - 0.0, 1, choice="expert", capacity_factor=2.0)  # experts take every token
    assert answer.certificate.weight_error < ROUNDING
    assert answer.tokens_dropped == 0
    assert answer.weights.isfinite().all()


@pytest.mark.parametrize(("T", "E", "k"), [(1, 1, 1), (2, 1, 1), (1, 2, 2), (1, 2, 1), (2, 2, 1)])
@pytest.mark.parametrize("choice", CHOICES)
def test_small_sizes(T, E, k, choice):
    answer = route(scores(5, T, E), k, choice=choice)
    assert answer.stop.status == "converged"
    assert answer.certificate.weight_error < ROUNDING
    assert int(answer.degrees.sum()) == T
    assert len(answer.load) == E


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("lam", [1e-99, 1e-9, 1e9, 1e99])
def test_any_strength_has_a_finite_answer(choice, lam):
    answer = route(scores(6), 2, choice=choice, lam=lam)
    assert answer.stop.status == "converged"
    assert answer.certificate.sum_error < ROUNDING
    assert answer.tau.isfinite().all()
    if lam > 1:
        masks = route(scores(6), 2, choice=choice, lam=lam, combine="raw").weights
        assert float((masks - 1 / 3).abs().max()) < 1e-8  # all alike: k / E, or capacity / T


@pytest.mark.parametrize("choice", CHOICES)
def test_single_is_close_to_double(choice):
    s = scores(7, T=40).float()
    single, double = route(s, 2, choice=choice), route(s.double(), 2, choice=choice)
    assert single.weights.dtype == single.balance_loss.dtype == torch.float32
    assert single.stop.status == "converged"
    gap = dense(single, 6).double() - dense(double, 6)
    assert float(gap.abs().max()) < SINGLE
    assert float(single.importance_cv2) == pytest.approx(float(double.importance_cv2), abs=SINGLE)


@pytest.mark.parametrize("combine", COMBINES)
def test_the_certificate_can_be_computed_again(combine):
    s = scores(8)
    answer = route(s, 2, combine=combine, lam=0.8)
    y = ((s - answer.tau[:, None]) / 0.8).clamp(0, 1)
    seen = answer.certificate
    assert float((y.sum(1) - 2).abs().max()) < ROUNDING
    assert 0 <= seen.optimality_gap < ROUNDING
    assert seen.sum_error < ROUNDING
    assert seen.weight_error < ROUNDING
    assert seen.smallest_weight == float(answer.weights.min()) > 0
    assert answer.support.tolist() == (y > 0).sum(1).tolist()
    assert answer.offsets.tolist()[-1] == len(answer.weights)


def test_the_strength_can_be_chosen_by_the_scores():
    s = scores(9)
    answer = route(s, 2, lam="auto")
    assert answer.lam > 0
    assert torch.equal(route(s, 2, lam=answer.lam).weights, answer.weights)
    assert 0 < answer.hard_fraction < 1


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("logits", {"logits": torch.tensor([[math.nan, 0.0]])}),
        ("logits", {"logits": torch.tensor([[math.inf, 0.0]])}),
        ("logits", {"logits": torch.tensor([[1e30, 0.0]]), "temperature": 1e-80}),
        ("logits", {"logits": torch.zeros(0, 2)}),
        ("k", {"k": 0}),
        ("k", {"k": 3}),
        ("lam", {"lam": 0.0}),
        ("lam", {"lam": math.nan}),
        ("p", {"p": 1.0}),
        ("temperature", {"temperature": -1.0}),
        ("capacity_factor", {"capacity_factor": 0.0}),
        ("capacity_factor", {"capacity_factor": 2.5, "choice": "expert"}),
    ],
)
def test_bad_input_is_named(field, change):
    with pytest.raises(IllPosed) as refusal:
        route(**{"logits": torch.zeros(3, 2), "k": 1} | change)
    assert refusal.value.field == field


@pytest.mark.parametrize(
    ("field", "change"),
    [("k", {"k": 4}), ("capacity_factor", {"choice": "expert", "capacity_factor": 3.5})],
)
def test_the_gateway_refuses_by_name(field, change):
    with pytest.raises(ValidationError) as refusal:
        RouteRequest.model_validate(EXAMPLE | change)
    assert [error["ctx"]["field"] for error in refusal.value.errors()] == [field]


def test_exponents_above_two_are_warned_of():
    assert "unbounded_gradient" in [
        caution.code for caution in route(scores(10), 2, p=3.0).cautions
    ]
