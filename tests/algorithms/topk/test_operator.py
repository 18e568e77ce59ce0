import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithms.errors import IllPosed
from algorithms.topk.derivatives import pull_mask, push_mask, push_values
from algorithms.topk.operator import (
    auto_lam,
    regularised_value,
    soft_mask,
    soft_values,
    solve_mask,
    solve_values,
    suggest_lam,
)
from algorithms.topk.response import response
from tests.problems.topk_rows import (
    COTANGENT,
    FOUR_THIRDS,
    MASKS,
    PAIR,
    PULLED,
    SIGNS,
    THETAS,
    VALUES,
)

KNOWN = 1e-10  # what the known answers are printed to
ROUNDING = 1e-12  # sums of a few dozen float64 numbers of size one to a hundred
AGREE = 1e-10  # thresholds that methods reach in other orders of operations
DIFFERENCES = 2e-6  # central differences of step 1e-6 in float64, slopes up to 100
ADJOINT = 1e-12  # two orders of summing the same products
STEP = 1e-6
few = settings(max_examples=5, deadline=None)
seeds = st.integers(0, 10_000)
powers = st.sampled_from([2.0, 1.5, FOUR_THIRDS, 1.7, 3.0])
every_regularizer = pytest.mark.parametrize(
    ("regularizer", "compiled"),
    [("power", True), ("power", False), ("two_sided", False), ("sigmoid", False),
     ("laplace", False)],
)  # fmt: skip


def row(values) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


def drawn(seed: int, B: int = 6, n: int = 15) -> tuple[torch.Tensor, ...]:
    """Draw rows, a real k and a lam of each, and a cotangent."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(B, n, generator=generator, dtype=torch.float64)
    u = torch.rand(2, B, generator=generator, dtype=torch.float64)
    g = torch.randn(B, n, generator=generator, dtype=torch.float64)
    return x, 0.5 + (n - 1) * u[0], 10 ** (2 * u[1] - 1.5), g


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize(("kind", "p"), MASKS)
def test_masks_with_known_answers(kind, p, compiled):
    found = solve_mask(row(PAIR), 2, 0.5, p=p, regularizer=kind, compiled=compiled)
    y, tau = MASKS[kind, p]
    assert found.y[0].tolist() == pytest.approx(y, abs=KNOWN)
    assert float(found.tau[0]) == pytest.approx(tau, abs=KNOWN)


@pytest.mark.parametrize("p", PULLED)
def test_gradients_with_known_answers(p):
    x = row(PAIR).requires_grad_()
    soft_mask(x, 2, 0.5, p=p).backward(row(COTANGENT))
    v = PULLED[p]
    assert x.grad[0].tolist() == pytest.approx([0, -v, v, 0, 0], abs=KNOWN)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize(("p", "debias"), VALUES)
def test_values_with_known_answers(p, debias, compiled):
    found = solve_values(row(SIGNS), 2, 0.5, p=p, debias=debias, compiled=compiled)
    assert found.y[0].tolist() == pytest.approx(VALUES[p, debias], abs=KNOWN)
    assert float(found.tau[0]) == pytest.approx(THETAS[p], abs=KNOWN)


@given(powers)
@few
def test_clear_winners_are_kept_exactly(p):
    x = row([-5.0, -2.0, 3.0, 1.0])
    assert solve_mask(x, 2, 0.01, p=p).y.tolist() == [[0, 0, 1, 1]]
    assert solve_values(x, 2, 0.01, p=p).y.tolist() == [[-5, 0, 3, 0]]
    single = solve_values(x.float(), 2, 0.01, p=p).y
    assert single.tolist() == [[-5, 0, 3, 0]]


def test_ties_share_what_is_left():
    for lam in (0.01, 1e-9, 1e-300):
        assert solve_mask(row([0.0, 0, -5, 5]), 2, lam).y.tolist() == [[0.5, 0.5, 0, 1]]


@pytest.mark.parametrize(
    ("p", "points"),
    [
        (2.0, {0.5: 0.9166666667, 0.8: 0.6666666667, 1.0: 0.5, 1.2: 0.3333333333,
               1.5: 0.0833333333, 2.0: 0, 3.0: 0, 3.5: 0.0833333333, 4.0: 0.5,
               4.5: 0.9166666667}),
        (FOUR_THIRDS, {0.5: 0.9954945816, 0.8: 0.7924625038, 1.0: 0.5, 1.2: 0.2075374962,
                       1.5: 0.0045054184, 2.0: 0, 3.0: 0, 3.5: 0.0045054184, 4.0: 0.5}),
    ],
)  # fmt: skip
def test_the_curve_of_the_paper(p, points):
    for s, height in points.items():
        y = solve_mask(row([3.0, 1.0, s - 1, s]), 2, 0.6, p=p).y[0]
        assert float(y[1] + y[2]) == pytest.approx(height, abs=KNOWN), s


@given(st.floats(-1.5, 1.5))
@few
def test_two_entries_in_closed_form(delta):
    y = solve_mask(row([delta, 0.0]), 1, 1.0).y[0]
    assert float(y[0]) == pytest.approx(min(max(0.5 + delta / 2, 0), 1), abs=ROUNDING)
    d = min(max(delta, -1.0), 1.0)
    A = (2 + math.sqrt(4 + d**6)) ** (1 / 3)  # m^3 + 3 d^2 m = 4
    y = solve_mask(row([delta, 0.0]), 1, 1.0, p=FOUR_THIRDS).y[0]
    assert float(y[0]) == pytest.approx(((A - d * d / A + d) / 2) ** 3, abs=ROUNDING)


def test_hardness_is_a_matter_of_the_gap():
    x = row([2, 1.5, 0.7, 0.2, -1])
    assert solve_mask(x, 2, 0.8).y.tolist() == [[1, 1, 0, 0, 0]]
    assert bool(solve_mask(x, 2, 0.79).hard[0])
    y = solve_mask(x, 2, 0.81).y[0].tolist()
    assert y == pytest.approx([1, 0.99383, 0.00617, 0, 0], abs=1e-5)  # printed to 5 digits
    x = row([-3, 2, 1, 0.5])
    for p in (2.0, FOUR_THIRDS, 3.0):
        y = solve_values(x, 2, 1.0, p=p).y[0].tolist()
        assert y == pytest.approx([-3, 2, 0, 0], abs=ROUNDING)  # just where hardness ends
    y = solve_values(x, 2, 1.05).y[0].tolist()
    assert y == pytest.approx([-3, 1.9844, 0.0320, 0], abs=1e-4)  # printed to 4 digits


@pytest.mark.parametrize("compiled", [True, False])
def test_huge_entries_and_offsets(compiled):
    x = row([1e300, -1e300, 0])
    assert solve_mask(x, 1, 1.0, compiled=compiled).y.tolist() == [[1, 0, 0]]
    assert solve_values(x, 1, 1.0, compiled=compiled).y.abs().sum() > 0
    near = row([0, 0.01, 0.02, 0.03, 0.05])
    y = solve_mask(1e6 + near, 2, 0.05, compiled=compiled).y
    assert float((y - solve_mask(near, 2, 0.05).y).abs().max()) < 1e-7  # inputs carry 1e-10 / lam


@every_regularizer
@given(seeds, powers)
@few
def test_masks_are_in_their_polytope_and_in_order(regularizer, compiled, seed, p):
    x, k, lam, _ = drawn(seed)
    x[0] = (2 * x[0]).round()
    found = solve_mask(x, k, lam, p=p, regularizer=regularizer, compiled=compiled)
    assert float((found.y.sum(1) - k).abs().max()) < ROUNDING
    assert float(found.residual.max()) < ROUNDING
    assert float(found.y.min()) >= 0
    assert float(found.y.max()) <= 1
    ordered = found.y.gather(1, x.argsort(1))
    assert float((ordered[:, 1:] - ordered[:, :-1]).min()) >= 0
    assert (found.interior + found.saturated <= x.shape[1]).all()
    ties = x[0][:, None] == x[0]
    assert float(((found.y[0][:, None] - found.y[0]).abs() * ties).max()) == 0


@given(seeds, powers, st.integers(-8, 8))
@few
def test_shifts_scales_and_permutations(seed, p, power):
    x, k, lam, _ = drawn(seed)
    y = solve_mask(x, k, lam, p=p).y
    order = torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(seed))
    assert float((solve_mask(x[:, order], k, lam, p=p).y - y[:, order]).abs().max()) < ROUNDING
    c = 2.0**power
    assert torch.equal(solve_mask(c * x, k, c * lam, p=p).y, y)
    moved = solve_mask((x + 4) - 4, k, lam, p=p).y
    assert float((solve_mask(x + 4, k, lam, p=p).y - moved).abs().max()) < 1e-13 / lam.min()
    whole = k.round().clamp(min=1)
    v = solve_values(x, whole, lam, p=p, debias=False).y
    scaled = solve_values(c * x, whole, lam * c ** (2 - p), p=p, debias=False).y
    assert float((scaled - c * v).abs().max()) < ROUNDING * c
    flipped = solve_values(-x, whole, lam, p=p, debias=False).y
    assert torch.equal(flipped, -v)


@given(seeds, powers)
@few
def test_complement(seed, p):
    x, k, lam, _ = drawn(seed)
    n = x.shape[1]
    kinds = [("power", 2.0), ("two_sided", p), ("sigmoid", p), ("laplace", p)]
    for kind, q in kinds:
        y = solve_mask(x, k, lam, p=q, regularizer=kind).y
        other = solve_mask(-x, n - k, lam, p=q, regularizer=kind).y
        assert float((y + other - 1).abs().max()) < AGREE, kind


def test_two_sided_with_squares_is_the_power_mask_of_twice_the_strength():
    x, k, lam, _ = drawn(3)
    y = solve_mask(x, k, lam, regularizer="two_sided").y
    assert float((y - solve_mask(x, k, 2 * lam).y).abs().max()) < ROUNDING


def test_limits_of_lam():
    x, k, _, _ = drawn(4)
    y = solve_mask(x, k, 1e3).y
    level = (k / x.shape[1])[:, None] + (x - x.mean(1, keepdim=True)) / 1e3
    assert float((y - level).abs().max()) < ROUNDING
    far = solve_mask(x, k, 1e100, p=FOUR_THIRDS).y
    assert float((far - (k / x.shape[1])[:, None]).abs().max()) < ROUNDING
    whole = k.round().clamp(min=1)
    hard = torch.zeros_like(x)
    for i, kept in enumerate(whole.long().tolist()):
        hard[i, x[i].topk(kept).indices] = 1
    assert torch.equal(solve_mask(x, whole, 1e-12).y, hard)
    assert torch.equal(solve_values(x, whole, 1e-12).y != 0, x.abs() >= x.abs().topk(
        int(whole.max()), dim=1).values.gather(1, whole.long()[:, None] - 1))  # fmt: skip


@given(seeds, powers)
@few
def test_value_lies_between_its_bounds_and_has_the_mask_for_gradient(seed, p):
    x, _, lam, g = drawn(seed)
    k, n = torch.full_like(lam, 4.0), x.shape[1]
    leaves = [v.clone().requires_grad_() for v in (x, k, lam)]
    value = regularised_value(*leaves, p=p)
    best = x.topk(4, dim=1).values.sum(1)
    assert (value >= best - lam * k / p - ROUNDING).all()
    assert (value <= best - lam / p * n * (k / n) ** p + ROUNDING).all()
    dx, dk, dlam = torch.autograd.grad(value.sum(), leaves)
    found = solve_mask(x, k, lam, p=p)
    assert float((dx - found.y).abs().max()) < ROUNDING
    assert float((dk - found.tau).abs().max()) < ROUNDING
    along = (regularised_value(x + STEP * g, k, lam, p=p) - regularised_value(
        x - STEP * g, k, lam, p=p)) / (2 * STEP)  # fmt: skip
    assert float((along - (dx * g).sum(1)).abs().max()) < DIFFERENCES
    up, down = (regularised_value(x, k, lam + s, p=p) for s in (STEP / 10, -STEP / 10))
    assert float(((up - down) / (STEP / 5) - dlam).abs().max()) < DIFFERENCES


@given(seeds, st.sampled_from([2.0, 1.5, FOUR_THIRDS]))
@few
def test_masks_do_not_move_faster_than_they_may(seed, p):
    x, k, lam, g = drawn(seed)
    moved = (solve_mask(x + 0.3 * g, k, lam, p=p).y - solve_mask(x, k, lam, p=p).y).norm(dim=1)
    assert (moved <= (0.3 * g).norm(dim=1) / (lam * (p - 1)) + ROUNDING).all()


@every_regularizer
@given(seeds, powers)
@few
def test_mask_gradients_match_differences(regularizer, compiled, seed, p):
    x, k, lam, g = drawn(seed)
    kind = {"p": p, "regularizer": regularizer, "compiled": compiled}
    found = solve_mask(x, k, lam, **kind)
    rho = response(p, regularizer)
    dx, dk, dlam = pull_mask(x, lam, found.solved, rho, g)
    smooth = _away_from_kinks(x, k, lam, kind)
    h = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)
    ways = [((h, 0 * k, 0 * lam), (dx * h).sum(1)), ((0 * h, k / k, 0 * lam), dk),
            ((0 * h, 0 * k, lam), dlam * lam)]  # fmt: skip
    for (of_x, of_k, of_lam), slope in ways:
        up, down = (
            (solve_mask(x + s * of_x, k + s * of_k, lam + s * of_lam, **kind).y * g).sum(1)
            for s in (STEP, -STEP)
        )
        wrong = ((up - down) / (2 * STEP) - slope).abs() / (1 + slope.abs())
        assert float(torch.where(smooth, wrong, 0.0).max()) < DIFFERENCES
        pushed = push_mask(x, lam, found.solved, rho, of_x, dk=of_k, dlam=of_lam)
        assert float(((pushed * g).sum(1) - slope).abs().max()) < ADJOINT * (1 + slope.abs().max())


def _away_from_kinks(x, k, lam, kind):
    """Tell the rows whose entries all keep their kind, and their distance from it, when moved."""
    found = solve_mask(x, k, lam, **kind)
    z = (x - found.tau[:, None]) / lam[:, None]
    ends = torch.stack([(z - end).abs() for end in (-1.0, 0.0, 1.0)])
    return (ends.amin((0, 2)) > 1e-3) & (found.interior > 1)


@pytest.mark.parametrize("debias", [True, False])
@given(seeds, powers)
@few
def test_value_gradients_match_differences(debias, seed, p):
    x, k, lam, g = drawn(seed)
    k = k.round().clamp(1, x.shape[1] - 1)
    leaves = [x.clone().requires_grad_(), lam.clone().requires_grad_()]
    y = soft_values(leaves[0], k, leaves[1], p=p, debias=debias)
    dx, dlam = torch.autograd.grad((y * g).sum(), leaves)
    found = solve_values(x, k, lam, p=p, debias=debias)
    off = ((x.abs() - found.tau[:, None]).abs() / lam[:, None]).amin(1)
    near = (found.y.abs() - found.tau[:, None] * (1 + lam[:, None]) ** (p == 2 and debias)).abs()
    smooth = (off > 1e-3) & (near.amin(1) > 1e-3) & ~found.hard
    for of_x, of_lam, slope in ((g, 0 * lam, (dx * g).sum(1)), (0 * g, lam, dlam * lam)):
        up, down = (
            (solve_values(x + s * of_x, k, lam + s * of_lam, p=p, debias=debias).y * g).sum(1)
            for s in (STEP, -STEP)
        )
        wrong = ((up - down) / (2 * STEP) - slope).abs() / (1 + slope.abs())
        assert float(torch.where(smooth, wrong, 0.0).max()) < 5 * DIFFERENCES
    h = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)
    pushed = push_values(x, k, found.solved, h, p=p, debias=debias)
    ends = (pushed * g).sum(1), (h * dx).sum(1)
    assert float((ends[0] - ends[1]).abs().max()) < ADJOINT * (1 + float(ends[0].abs().max()))
    other = push_values(x, k, found.solved, h, p=p, debias=debias, dlam=lam)
    assert float(((other - pushed) * g).sum()) == pytest.approx(float((dlam * lam).sum()), rel=1e-9)


def test_the_jacobian_of_debiased_values_is_not_symmetric():
    x, k = row(SIGNS), torch.tensor([2.0], dtype=torch.float64)
    eye = torch.eye(5, dtype=torch.float64)
    jacobians = []
    for p in (2.0, FOUR_THIRDS):
        found = solve_values(x, 2, 0.5, p=p)
        columns = [push_values(x, k, found.solved, e[None], p=p, debias=True)[0] for e in eye]
        jacobians.append(torch.stack(columns, 1))
    assert float((jacobians[0] - jacobians[0].T).abs().max()) < ROUNDING
    assert float((jacobians[1] - jacobians[1].T).abs().max()) > 0.01


def test_only_the_two_sided_jacobian_is_continuous_where_an_entry_becomes_one():
    def slope(s: float, kind: str) -> float:
        x = row([s, 0.5, 0.4, 0.35]).requires_grad_()
        y = soft_mask(x, 2, 1.0, p=FOUR_THIRDS, regularizer=kind)
        return float(torch.autograd.grad(y[0, 0], x)[0][0, 0])

    at = 0.728979  # where y_1 becomes 1, to six digits
    assert slope(at - 1e-5, "power") == pytest.approx(1.7656, abs=1e-3)
    assert slope(at + 1e-5, "power") == 0
    low, high = 0.5, 5.0
    for _ in range(60):
        mid = (low + high) / 2
        full = float(solve_mask(row([mid, 0.5, 0.4, 0.35]), 2, 1.0, p=FOUR_THIRDS,
                                regularizer="two_sided").y[0, 0]) >= 1  # fmt: skip
        low, high = (low, mid) if full else (mid, high)
    assert slope(low - 1e-6, "two_sided") < 1e-2
    assert slope(high + 1e-4, "two_sided") == 0


@given(seeds, powers)
@few
def test_methods_agree(seed, p):
    x, k, lam, _ = drawn(seed, 40, 2 + seed % 20)
    if seed % 2:
        x = (2 * x).round()
    y = solve_mask(x, k, lam, p=p).y
    whole = k.round().clamp(0, x.shape[1])
    v = solve_values(x, whole, lam, p=p).y
    for method in ("sort", "pav"):
        other = solve_mask(x, k, lam, p=p, method=method)
        assert other.stop.status == "converged"
        assert other.regime == method
        assert float((other.y - y).abs().max()) < AGREE
        other = solve_values(x, whole, lam, p=p, method=method)
        assert float((other.y - v).abs().max()) < AGREE * (1 + float(x.abs().max()))


def test_dykstra_agrees_when_it_converges_and_says_when_not():
    x, k, lam, _ = drawn(5, 4, 12)
    found = solve_mask(x, k, 0.1 * lam, method="dykstra")
    assert found.stop.status == "converged"
    assert float((found.y - solve_mask(x, k, 0.1 * lam).y).abs().max()) < 1e-8  # stops at 1e-10
    found = solve_values(x, 3, 0.1, method="dykstra")
    assert float((found.y - solve_values(x, 3, 0.1).y).abs().max()) < 1e-8
    wide = torch.linspace(0, 1, 300, dtype=torch.float64)[None]
    found = solve_mask(wide, 30, 5.0, method="dykstra")
    assert found.stop.status == "max_iter"
    assert float(found.residual[0]) > 1


@every_regularizer
def test_nothing_and_everything(regularizer, compiled):
    x, _, lam, g = drawn(6)
    n = x.shape[1]
    k = torch.tensor([0.0, n, 0.0, n, 3.0, 0.25], dtype=torch.float64)
    kind = {"regularizer": regularizer, "compiled": compiled}
    found = solve_mask(x, k, lam, **kind)
    assert found.y[:4].tolist() == [[0] * n, [1] * n, [0] * n, [1] * n]
    assert bool(found.tau.isfinite().all())
    pulled = pull_mask(x, lam, found.solved, response(2.0, regularizer), g)
    assert float(pulled[0][:4].abs().max()) == 0
    assert float(torch.stack(pulled[1:])[:, :4].abs().max()) == 0
    kept = solve_values(x, k.round(), lam, compiled=compiled)
    assert torch.equal(kept.y[:4], x[:4] * (k[:4, None] > 0))
    one = solve_mask(x[:, :1], 1, 0.3, **kind).y
    assert one.tolist() == [[1.0]] * 6


def test_zero_rows_have_zero_values_and_gradients():
    x = torch.zeros(3, 5, dtype=torch.float64)
    x[1, 2] = -2.0
    leaf = x.clone().requires_grad_()
    y = soft_values(leaf, 2, 0.5)
    assert torch.equal(y.detach(), x)
    (dx,) = torch.autograd.grad(y.sum(), leaf)
    assert torch.equal(dx, (x != 0).double())


def test_no_rows():
    x = torch.zeros(0, 4, dtype=torch.float64)
    assert solve_mask(x, 2, 1.0).y.shape == (0, 4)
    assert solve_values(x, 2, 1.0).y.shape == (0, 4)


@pytest.mark.parametrize("compiled", [True, False])
def test_infinite_entries_are_kept_or_absent_whatever_the_others(compiled):
    inf = math.inf
    x = row([inf, 1, 2, -inf, 0.5])
    y = solve_mask(x, 2, 0.6, compiled=compiled).y
    assert y.tolist() == [[1, 0, 1, 0, 0]]
    assert solve_mask(x, 1, 0.6, compiled=compiled).y.tolist() == [[1, 0, 0, 0, 0]]
    assert solve_mask(x, 4, 0.6, compiled=compiled).y.tolist() == [[1, 1, 1, 0, 1]]
    leaf = x.clone().requires_grad_()
    (dx,) = torch.autograd.grad(soft_mask(leaf, 2.5, 3.0)[0, 1], leaf)
    assert dx[0, 0] == 0
    assert dx[0, 3] == 0
    without = row([1, 2, 0.5]).requires_grad_()
    (less,) = torch.autograd.grad(soft_mask(without, 1.5, 3.0)[0, 0], without)
    assert float((dx[0, [1, 2, 4]] - less[0]).abs().max()) < ROUNDING


@pytest.mark.parametrize(
    ("x", "k", "lam", "field", "reason"),
    [
        (row([1.0, math.nan]), 1, 1.0, "x", "row 0, entry 1 is NaN"),
        (row([math.inf, math.inf, 1]), 1, 1.0, "x", r"row 0: 2 entries are \+inf"),
        (row([-math.inf, -math.inf, 1]), 2, 1.0, "x", "row 0: 1 entries are above -inf"),
        (row([1.0, 2]), 3, 1.0, "k", "row 0: 3; expected 0 <= k <= 2"),
        (row([1.0, 2]), -1, 1.0, "k", "row 0: -1; expected"),
        (row([1.0, 2]), math.nan, 1.0, "k", "row 0: nan"),
        (row([1.0, 2]), 1, 0.0, "lam", "row 0: 0; expected lam > 0"),
        (row([1.0, 2]), 1, math.inf, "lam", "row 0: inf"),
        (torch.zeros(2, 0), 0, 1.0, "x", "rows are empty"),
        (torch.zeros(2, 3), torch.zeros(3), 1.0, "k", "one of each of 2 rows"),
    ],
)
def test_what_has_no_mask_is_refused_by_row(x, k, lam, field, reason):
    with pytest.raises(IllPosed, match=reason) as caught:
        solve_mask(x, k, lam)
    assert caught.value.field == field


def test_what_has_no_values_is_refused():
    with pytest.raises(IllPosed, match="whole number"):
        solve_values(row([1.0, 2]), 1.5, 1.0)
    with pytest.raises(IllPosed, match="entry 1 is infinite"):
        solve_values(row([1.0, -math.inf]), 1, 1.0)
    for p in (1.0, 9.0, 0.0):
        with pytest.raises(IllPosed, match="expected 1 < p <= 8"):
            solve_mask(row([1.0, 2]), 1, 1.0, p=p)
    with pytest.raises(IllPosed, match="power regularizer"):
        solve_mask(row([1.0, 2]), 1, 1.0, regularizer="sigmoid", method="pav")
    with pytest.raises(IllPosed, match="p = 2"):
        solve_values(row([1.0, 2]), 1, 1.0, p=1.5, method="dykstra")


def test_half_precision_comes_back_as_it_was_asked():
    x = torch.randn(3, 20, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float16, torch.bfloat16):
        y = solve_mask(x.to(dtype), 4, 0.5).y
        assert y.dtype == dtype
        assert float((y.float() - solve_mask(x.to(dtype).float(), 4, 0.5).y).abs().max()) < 4e-3


def test_strengths_that_are_suggested():
    x, _, _, _ = drawn(7, 5, 40)
    lam = suggest_lam(x, 8, 10)
    assert (solve_mask(x, 8, lam).interior >= 10).all()
    assert (solve_mask(x, 8, lam * (1 - 1e-6)).interior < 10).all()
    chosen = auto_lam(x, 8)
    order = x.sort(1, descending=True).values
    assert chosen == float((order[:, 6] - order[:, 8]).median())
    assert auto_lam(torch.ones(2, 5), 2) == 4 * torch.finfo(torch.float32).eps
    assert auto_lam(torch.zeros(2, 5), 2) == 1.0
