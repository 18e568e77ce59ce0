"""Pruning: known answers, thresholds by bisection, subsets by brute force, gradients, laws."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithms.errors import IllPosed
from algorithms.state_dict import StateDict
from algorithms.topk.prune import LamSchedule, prune

# thresholds are found to the last digits; a dozen operations later some of them are gone
EXACT = 1e-12
# the oracle forms (s - theta) / lam from a theta that has lost the digits below eps s
HALVED = 1e-11
# digits printed with the known answers
PRINTED = 1e-10
# central differences with step 1e-6 of a function with curvature near 1
DIFFERENCES, STEP = 2e-7, 1e-6
# values are rounded to float32 once
SINGLE = 1e-6
ROW = [3.0, -2.0, 1.8, -1.5, 0.2]
KNOWN = [
    (2.0, True, [3, -1.44, 0.84, 0, 0], 1.52),
    (2.0, False, [2, -0.96, 0.56, 0, 0], 1.52),
    (4 / 3, True, [3, -1.714502208496, 0.614456917569, -0.029355739883, 0], 1.470842567026277),
    (4 / 3, False, [2.336521857161, -1.185344775523, 0.285299484595, -0.000198306909, 0],
     1.470842567026277),
    (1.5, True, [3, -1.59320804421, 0.723813489972, -0.019721658615, 0], 1.4816284036014558),
]  # fmt: skip


def doubles(values):
    return torch.tensor(values, dtype=torch.float64)


def one(values, **asked):
    """Prune one tensor called w; return the answer and its soft values."""
    x = values if isinstance(values, torch.Tensor) else doubles(values)
    found = prune({"w": x}, **asked)
    return found, found.values["w"]


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def codes(found):
    return {caution.code for caution in found.cautions}


def by_bisection(row, k, lam, p):
    """Halve the interval of theta; the equation in plain numbers, entry by entry."""
    s, r = [abs(v) for v in row], 1 / (p - 1)
    kth, after = sorted(s, reverse=True)[k - 1 : k + 1]
    if kth >= after + lam * after ** (p - 1):  # hard: every theta in between will do
        return [x if abs(x) >= kth else 0.0 for x in row], after
    low, high = 0.0, max(s)
    for _ in range(200):
        theta = (low + high) / 2
        total = sum(min((max(v - theta, 0) / lam) ** r, theta) for v in s)
        low, high = (theta, high) if total > k * theta else (low, theta)
    block = [(max(v - low, 0) / lam) ** r for v in s]
    soft = [v if b >= low else b + max(v - low, 0) for v, b in zip(s, block, strict=True)]
    return [math.copysign(v, x) for v, x in zip(soft, row, strict=True)], low


@pytest.mark.parametrize(("p", "debias", "values", "theta"), KNOWN)
def test_known_answers(p, debias, values, theta):
    found, soft = one(ROW, k=2, lam=0.5, p=p, debias=debias)
    torch.testing.assert_close(soft, doubles(values), atol=PRINTED, rtol=0)
    assert found.theta["w"].item() == pytest.approx(theta, abs=PRINTED)
    assert found.hard["w"].tolist() == [3.0, -2.0, 0.0, 0.0, 0.0]
    assert found.stop.status == "converged"


@pytest.mark.parametrize(("lam", "hard"), [(0.5, True), (1.0, True), (1.05, False)])
def test_hardness_rule(lam, hard):
    found, soft = one([-3.0, 2.0, 1.0, 0.5], k=2, lam=lam)
    assert ("all_hard" in codes(found)) == hard
    assert bool((soft == found.hard["w"]).all()) == hard
    assert (found.extra == 0) == hard


@settings(max_examples=8, deadline=None)
@given(
    st.lists(st.integers(-9, 9), min_size=2, max_size=9),
    st.data(),
    st.sampled_from([2.0, 1.5, 4 / 3, 1.2]),
    st.sampled_from([0.1, 1.0, 7.0]),
)
def test_thresholds_are_those_of_bisection(row, data, p, lam):
    k = data.draw(st.integers(1, len(row) - 1))
    if sum(v != 0 for v in row) <= k:
        return
    found, soft = one([float(v) for v in row], k=k, lam=lam, p=p)
    want, _ = by_bisection(row, k, lam, p)
    torch.testing.assert_close(soft, doubles(want), atol=HALVED, rtol=0)
    assert found.certificate.sum_residual < EXACT
    assert found.certificate.stationarity < EXACT


@pytest.mark.parametrize("k", [1, 3, 6])
def test_hard_values_are_the_best_subset(k):
    x = drawn(7)
    found, _ = one(x, k=k)
    subsets = itertools.combinations(range(7), k)
    best = max(subsets, key=lambda subset: sum(float(x[i]) ** 2 for i in subset))
    assert found.hard_kept["w"].nonzero().flatten().tolist() == list(best)
    assert torch.equal(found.hard["w"], x * found.hard_kept["w"])


def test_of_equal_magnitudes_the_first_are_kept():
    found, soft = one([1.0, -1.0, 1.0, -1.0], k=2, lam=0.5)
    assert found.hard["w"].tolist() == [1.0, -1.0, 0.0, 0.0]
    assert soft.abs().unique().shape == (1,)
    assert soft.sign().tolist() == [1, -1, 1, -1]
    assert found.extra == 2
    assert "every lam" in next(c.hint for c in found.cautions if c.code == "more_than_k")


def support_norm(y, k):
    """Compute the squared k-support norm (Argyriou, Foygel, Srebro 2012, proposition 2.1)."""
    w = y.abs().sort(descending=True).values
    for r in range(k):
        tail = float(w[k - r - 1 :].sum()) / (r + 1)
        before = math.inf if k - r - 2 < 0 else float(w[k - r - 2])
        if before > tail >= float(w[k - r - 1]) - EXACT:
            return float(w[: k - r - 1].square().sum()) + (r + 1) * tail**2
    raise AssertionError("no such r")


@pytest.mark.parametrize("p", [2.0, 4 / 3, 3.0])
def test_raw_values_beat_their_neighbours(p):
    x, k, lam = drawn(8, seed=3), 3, 0.8

    def objective(y):
        powers = float(y.abs().pow(p).sum())
        return float(x @ y) - support_norm(y, k) / 2 - lam / p * powers

    _, y = one(x, k=k, lam=lam, p=p, debias=False)
    best = objective(y)
    for seed in range(40):
        off = drawn(8, seed=seed) * 10.0 ** -(1 + seed % 4)
        assert objective(y + off) < best + EXACT


# scopes


def test_a_tensor_at_a_time_or_all_together():
    tensors = {"a": drawn(4, 5), "b": 3 * drawn(2, 3, 3, seed=1), "c": drawn(7, seed=2)}
    apart = prune(tensors, keep=0.3, lam=1.0)
    for name, x in tensors.items():
        alone, soft = one(x, keep=0.3, lam=1.0)
        assert torch.equal(apart.values[name], soft)
        assert torch.equal(apart.hard[name], alone.hard["w"])
    together = prune(tensors, keep=0.3, lam=1.0, scope="global")
    flat = torch.cat([x.flatten() for x in tensors.values()])
    _, soft = one(flat, keep=0.3, lam=1.0)
    found = torch.cat([v.flatten() for v in together.values.values()])
    torch.testing.assert_close(found, soft, atol=EXACT, rtol=0)
    assert together.k == round(0.3 * 45)
    assert {n: v.shape for n, v in together.hard.items()} == {
        n: v.shape for n, v in tensors.items()
    }


@pytest.mark.parametrize("shape", [(6, 8), (6, 2, 4), (48,)])
def test_groups_and_rows(shape):
    x = drawn(*shape)
    found = prune({"w": x}, k=2, scope="n_m", group=4, lam=0.4)
    groups = x.reshape(-1, 4)
    assert (found.hard_kept["w"].reshape(-1, 4).sum(1) == 2).all()
    assert found.theta["w"].shape == (12,)
    want, _ = by_bisection(groups[3].tolist(), 2, 0.4, 2.0)
    assert found.values["w"].reshape(-1, 4)[3].tolist() == pytest.approx(want, abs=EXACT)
    rows = prune({"w": x}, keep=0.25, scope="row", lam=0.4)
    count = shape[0] if len(shape) > 1 else 1
    per_row = rows.hard_kept["w"].reshape(count, -1).sum(1)
    assert per_row.tolist() == [48 // count // 4] * count
    assert rows.pruned[0].rows == count


def test_normalised_tensors_are_compared_in_units_of_their_own():
    tensors = {"a": drawn(5, 5), "b": drawn(5, 5, seed=1)}
    small = {"a": tensors["a"], "b": tensors["b"] / 1024}
    plain = prune(tensors, sparsity=0.6, scope="global", lam=0.5, normalise=True)
    moved = prune(small, sparsity=0.6, scope="global", lam=0.5, normalise=True)
    torch.testing.assert_close(moved.values["b"] * 1024, plain.values["b"], atol=EXACT, rtol=0)
    assert torch.equal(moved.kept["a"], plain.kept["a"])
    assert moved.certificate.stationarity < EXACT
    whole = moved.values["b"] != 0
    whole &= small["b"].abs() > 2 * moved.theta["b"]
    assert torch.equal(moved.values["b"][whole], small["b"][whole])  # to the last digit
    emptied = prune(small, sparsity=0.6, scope="global", lam=0.5)
    assert {"scales_differ", "tensor_emptied"} <= codes(emptied)
    assert "scales_differ" not in codes(moved)


@pytest.mark.parametrize(
    ("amount", "k"), [({"sparsity": 0.9}, 1), ({"keep": 0.5}, 5), ({"k": 7}, 7)]
)
def test_amounts(amount, k):
    found, _ = one(drawn(10), **amount)
    assert found.k == k == int(found.hard_kept["w"].sum())
    assert found.nnz - found.k == found.extra >= 0
    assert found.pruned[0].nnz == int((found.values["w"] != 0).sum())


def test_nothing_and_everything():
    empty, soft = one([3.0, 1.0], sparsity=0.9, lam=0.5)
    assert (empty.k, soft.tolist(), empty.theta["w"].item()) == (0, [0.0, 0.0], 3.0)
    assert "tensor_emptied" in codes(empty)
    x = drawn(6)
    whole, soft = one(x, sparsity=0.0, lam=0.5)
    assert torch.equal(soft, x)
    assert whole.extra == 0
    for found in (empty, whole):
        assert found.certificate.sum_residual == found.certificate.hard_gap == 0
        assert found.certificate.miscounted_rows == 0


@pytest.mark.parametrize("x", [[0.0, 0.0, 0.0], [0.0, 2.0, 0.0], [5.0], [-1e-300, 1e300, 1.0]])
def test_rows_of_little(x):
    found, soft = one(x, k=1, lam=0.5)
    assert soft.tolist() == pytest.approx([v if abs(v) == max(map(abs, x)) else 0 for v in x])
    assert int(found.hard_kept["w"].sum()) == 1
    assert found.stop.status == "converged"
    assert ("fewer_than_k" in codes(found)) == (max(map(abs, x)) == 0)


# strengths


def test_a_schedule_falls_by_one_factor_and_ends_hard():
    x = drawn(30)
    asked = LamSchedule(steps=7, last=1e-4)
    found, _ = one(x, keep=0.2, lam=1.0, lam_schedule=asked)
    steps = found.lam_schedule
    assert steps[0].item() == 1.0
    assert steps[-1].item() == pytest.approx(1e-4)
    torch.testing.assert_close(steps[1:] / steps[:-1], torch.full((6,), 1e-4 ** (1 / 6)).double())
    sizes = [one(x, keep=0.2, lam=lam)[0].nnz for lam in steps.tolist()]
    assert sizes == sorted(sizes, reverse=True)
    last, soft = one(x, keep=0.2, lam=steps[-1].item())
    assert torch.equal(soft, last.hard["w"])
    with pytest.raises(IllPosed, match="not below") as caught:
        one(x, keep=0.2, lam=0.1, lam_schedule=LamSchedule(2, 0.2))
    assert caught.value.field == "lam_schedule.last"


def test_the_hint_names_the_strength_at_which_rows_are_hard():
    found, _ = one(ROW, k=2, lam=0.5)
    hint = next(c.hint for c in found.cautions if c.code == "more_than_k")
    assert "up to 0.111 nothing" in hint  # (2 - 1.8) / 1.8
    assert one(ROW, k=2, lam=0.2 / 1.8 - EXACT)[0].extra == 0
    assert one(ROW, k=2, lam=0.2 / 1.8 + 1e-9)[0].extra > 0


@pytest.mark.parametrize("p", [1.5, 3.0])
def test_relative_strengths_know_no_units(p):
    x = drawn(20)
    plain, soft = one(x, k=5, lam=0.3, p=p, lam_relative=True)
    moved, tiny = one(x / 2**20, k=5, lam=0.3, p=p, lam_relative=True)
    torch.testing.assert_close(tiny * 2**20, soft, atol=EXACT, rtol=0)
    kth = float(x.abs().sort(descending=True).values[4])
    _, absolute = one(x, k=5, lam=0.3 * kth ** (2 - p), p=p)
    torch.testing.assert_close(absolute, soft, atol=EXACT, rtol=0)
    assert plain.nnz == moved.nnz


def test_auto_pools_some_on_either_side():
    found, _ = one(drawn(4000), keep=0.1)
    assert found.lam_relative
    assert 0.02 * found.nnz < found.pruned[0].soft < 0.4 * found.nnz
    assert one(torch.ones(6, dtype=torch.float64), k=3)[0].nnz == 6  # nothing to tell them apart by


def test_strengths_lost_in_rounding_are_told():
    found, soft = one([1.0, 1.0 - 1e-3, 0.5], k=1, lam=1e-17)
    assert codes(found) == {"all_hard", "lam_below_resolution"}
    assert soft.tolist() == [1.0, 0.0, 0.0]


# gradients


@pytest.mark.parametrize("p", [2.0, 1.5, 4 / 3])
@pytest.mark.parametrize("debias", [True, False])
@pytest.mark.parametrize("scope", ["per_tensor", "global", "row"])
def test_gradients_agree_with_differences(p, debias, scope):
    tensors = {"a": drawn(3, 4), "b": drawn(5, seed=1)}
    cotangent = {"a": drawn(3, 4, seed=2)}
    asked = {"keep": 0.5, "lam": 0.7, "p": p, "debias": debias, "scope": scope}
    found = prune(tensors, **asked, cotangent=cotangent)
    for name, at in (("a", (0, 1)), ("a", (2, 3)), ("b", (2,))):
        ends = []
        for sign in (1, -1):
            moved = {n: x.clone() for n, x in tensors.items()}
            moved[name][at] += sign * STEP
            ends.append((prune(moved, **asked).values["a"] * cotangent["a"]).sum())
        slope = float(ends[0] - ends[1]) / (2 * STEP)
        assert float(found.gradients[name][at]) == pytest.approx(slope, abs=DIFFERENCES)


def test_gradients_reach_entries_that_the_hard_answer_drops():
    found, _ = one(ROW, k=2, lam=0.5, cotangent={"w": torch.tensor([0.0, 0, 1, 0, 0]).double()})
    assert found.gradients["w"][2] > 0
    assert not found.hard_kept["w"][2]
    assert one(ROW, k=2, lam=0.5)[0].gradients is None
    steep, _ = one(ROW, k=2, lam=0.5, p=4.0, cotangent={"w": torch.ones(5).double()})
    assert "unbounded_gradient" in codes(steep)


# laws


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 99), st.sampled_from([2.0**-30, 0.5, 2.0**40]), st.integers(1, 11))
def test_scaling_signs_and_order(seed, factor, k):
    x = drawn(12, seed=seed)
    _, soft = one(x, k=k, lam=0.6)
    _, scaled = one(factor * x, k=k, lam=0.6)
    torch.testing.assert_close(scaled / factor, soft, atol=EXACT, rtol=0)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
    found, mixed = one(-x[order], k=k, lam=0.6)
    torch.testing.assert_close(mixed, -soft[order], atol=EXACT, rtol=0)
    assert (found.kept["w"] | ~found.hard_kept["w"]).all()  # what is kept exactly is kept softly
    again, same = one(found.hard["w"], k=k, lam=0.6)
    assert torch.equal(same, found.hard["w"])
    assert again.extra == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_element_types_come_back(dtype):
    x = drawn(8, 8).to(dtype)
    found = prune({"w": x}, keep=0.25, lam=1.0, cotangent={"w": x})
    wide = prune({"w": x.double()}, keep=0.25, lam=1.0)
    room = SINGLE if dtype == torch.float32 else 1e-3
    assert {t.dtype for t in (found.values["w"], found.hard["w"], found.gradients["w"])} == {dtype}
    torch.testing.assert_close(found.values["w"].double(), wide.values["w"], atol=4 * room, rtol=0)
    assert 0 < found.certificate.stationarity < room
    assert found.stop.status == "converged"
    whole = found.hard_kept["w"] & (x.abs().double() > 3 * found.theta["w"])
    assert torch.equal(found.values["w"][whole], x[whole])


@pytest.mark.parametrize("lam", [1e-99, 1e-12, 1e5, 1e12, 1e99])
def test_strengths_at_the_ends(lam):
    found, soft = one(drawn(50), k=10, lam=lam)
    assert soft.isfinite().all()
    proved = found.certificate.sum_residual < 1e-9
    assert proved or lam > 1e6  # there theta is lost in the rounding of the magnitudes, and told so
    assert (found.stop.status == "converged") == proved
    assert ("unproved" in codes(found)) == (not proved)
    assert (found.extra == 0) == (lam < 1)


def test_other_tensors_of_a_state_come_back_unchanged():
    weight, bias, count = drawn(4, 4), drawn(4).float(), torch.tensor(3)
    state = StateDict({"w": weight}, {"b": bias, "n": count}, ("b",))
    found = prune(state=state, sparsity=0.75, lam=0.5)
    for answer in (found.values, found.hard):
        assert list(answer) == ["w", "b", "n"]
        assert answer["b"] is bias
    assert found.unchanged == ("b", "n")
    assert list(found.kept) == list(found.theta) == ["w"]
    assert "element_type_widened" in codes(found)


W = {"w": torch.ones(2, 6).double()}


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"keep": 0.5}, "tensors"),
        ({"tensors": {}, "keep": 0.5}, "tensors"),
        ({"tensors": {"w": torch.zeros(0).double()}, "keep": 0.5}, "tensors"),
        ({"tensors": {"w": torch.tensor([1.0, math.nan])}, "keep": 0.5}, "tensors"),
        ({"tensors": W}, "sparsity"),
        ({"tensors": W, "keep": 0.5, "k": 1}, "sparsity"),
        ({"tensors": W, "k": 13}, "k"),
        ({"tensors": W, "k": 2, "scope": "n_m"}, "group"),
        ({"tensors": W, "k": 2, "scope": "n_m", "group": 4}, "group"),
        ({"tensors": W, "k": 4, "scope": "n_m", "group": 3}, "k"),
        ({"tensors": W, "keep": 0.5, "normalise": True}, "normalise"),
        ({"tensors": W, "keep": 0.5, "cotangent": {"v": torch.ones(2)}}, "cotangent"),
        ({"tensors": W, "keep": 0.5, "cotangent": {"w": torch.ones(2)}}, "cotangent"),
        ({"tensors": W, "keep": 0.5, "p": 1.0}, "p"),
        ({"tensors": W, "keep": 0.5, "lam": -1.0}, "lam"),
    ],
)
def test_bad_questions_name_their_field(asked, field):
    with pytest.raises(IllPosed) as caught:
        prune(**asked)
    assert caught.value.field == field
