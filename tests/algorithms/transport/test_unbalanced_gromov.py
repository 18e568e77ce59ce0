import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from algorithms.errors import IllPosed
from algorithms.quadratic.penalties import quadratic_kl
from algorithms.transport.unbalanced_gromov import unbalanced_gromov
from schemas.arrays import Shelf
from schemas.transport.unbalanced_gromov import EXAMPLE, UnbalancedGromovRequest
from tests.problems.transport import cloud, generator, random_cost, random_weights, uniform

ROUNDING = 1e-11  # sums of a few thousand float64 numbers of size one, through logarithms
SOLVED = 1e-6  # plans and values of answers with tol 1e-9, through a conditioning of 1e2
SINGLE = 1e-4  # a float32 problem: its inputs, of size ten, are rounded to 1e-7, squared twice
EXACT = {"tol": 1e-10, "max_iter": 2000}
DIFFERENCES = {"atol": 1e-5, "rtol": 1e-4}  # central differences of step 1e-6, values of tol 1e-10
STRENGTHS = {"rho_a": 0.7, "rho_b": 2.0, "epsilon": 0.4}
few = settings(max_examples=5, deadline=None)
seeds = st.integers(0, 10_000)


def spaces(n, m, seed, mass_a=1.0, mass_b=1.3):
    x, y = cloud(n, 3, seed) / 3, cloud(m, 2, seed + 1) / 3
    return x, y, random_weights(n, seed, mass_a), random_weights(m, seed + 1, mass_b)


def squared(x):
    return (x[:, None] - x).square().sum(-1)


def fourfold(P, Cx, Cy, a, b, C, alpha, rho_a, rho_b, epsilon):
    """Compute the objective from its definition, every product measure written out."""
    L = (Cx[:, None, :, None] - Cy[None, :, None, :]).square()

    def kl2(p, q):
        p, q = torch.outer(p, p), torch.outer(q, q)
        return (torch.xlogy(p, p / q) - p + q).sum()

    value = alpha * torch.einsum("ijkl,ij,kl", L, P, P) + epsilon * kl2(
        P.reshape(-1), torch.outer(a, b).reshape(-1)
    )
    if C is not None:
        value = value + (1 - alpha) * (C * P).sum()
    if rho_a is not None:
        value = value + rho_a * kl2(P.sum(1), a)
    if rho_b is not None:
        value = value + rho_b * kl2(P.sum(0), b)
    return value


# oracles ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [1.0, 0.4, 0.0])
@pytest.mark.parametrize(("rho_a", "rho_b"), [(0.7, 2.0), (5.0, 0.5)])
def test_value_is_the_fourfold_sum_and_the_plan_is_stationary(alpha, rho_a, rho_b):
    x, y, a, b = spaces(6, 5, 0)
    C = random_cost(6, 5, 0)
    strengths = {"alpha": alpha, "rho_a": rho_a, "rho_b": rho_b, "epsilon": 0.3}
    answer = unbalanced_gromov(x, y, a=a, b=b, C=C, **strengths, **EXACT)
    assert answer.stop.status == "converged"
    log = answer.plan.log().requires_grad_()
    value = fourfold(log.exp(), squared(x), squared(y), a, b, C, *strengths.values())
    (slope,) = torch.autograd.grad(value, log)
    assert value.item() == pytest.approx(answer.value.item(), rel=ROUNDING)
    assert slope.abs().sum() < SOLVED
    # the certificate says the same, of the plan's entries: P times slope
    assert answer.certificate.stationarity < SOLVED
    assert answer.certificate.fixed_point_residual < SOLVED
    assert answer.certificate.tightness < SOLVED


@few
@given(seeds, st.floats(0.1, 5.0), st.floats(0.1, 5.0), st.floats(0.05, 2.0))
def test_two_single_points_have_a_closed_form(seed, rho_a, rho_b, epsilon):
    cx, cy, A, B = (0.5 + torch.rand(4, generator=generator(seed), dtype=torch.float64)).tolist()
    asked = [torch.full((1, 1), c, dtype=torch.float64) for c in (cx, cy)]
    weights = [torch.tensor([w], dtype=torch.float64) for w in (A, B)]
    strengths = {"rho_a": rho_a, "rho_b": rho_b, "epsilon": epsilon}
    answer = unbalanced_gromov(None, None, *asked, *weights, **strengths)
    total = rho_a + rho_b + epsilon
    logs = rho_a * math.log(A) + rho_b * math.log(B) + epsilon * math.log(A * B)
    mass = math.exp((logs - (cx - cy) ** 2 / 2) / total)
    assert answer.mass.item() == pytest.approx(mass, rel=ROUNDING)
    value = rho_a * A**2 + rho_b * B**2 + epsilon * (A * B) ** 2 - total * mass**2
    assert answer.value.item() == pytest.approx(value, rel=1e-9)


def test_equal_costs_leave_the_product_and_meet_the_lower_bound():
    zeros = torch.zeros(4, 4, dtype=torch.float64), torch.zeros(3, 3, dtype=torch.float64)
    a, b = random_weights(4, 0, 2.0), random_weights(3, 1, 0.5)
    answer = unbalanced_gromov(None, None, *zeros, a, b, **STRENGTHS)
    product = a[:, None] * b
    torch.testing.assert_close(answer.plan / answer.mass, product / product.sum())
    assert answer.certificate.lower_bound == pytest.approx(answer.value.item(), rel=1e-9)


@few
@given(seeds)
def test_quadratic_kl_is_the_kl_of_products(seed):
    p, q = random_weights(5, seed, 2.0), random_weights(5, seed + 1, 0.7)
    pp, qq = torch.outer(p, p), torch.outer(q, q)
    whole = (pp * (pp / qq).log() - pp + qq).sum()
    assert quadratic_kl(p, q).item() == pytest.approx(whole.item(), rel=ROUNDING)


# where others fail --------------------------------------------------------------------------------


def test_masses_of_ninety_six():
    """Uniform weights of one a point, as reported against ott-jax (issue 519)."""
    x, y = cloud(96, 2, 0) / 3, cloud(96, 3, 1) / 3
    ones = torch.ones(96, dtype=torch.float64)
    answer = unbalanced_gromov(x, y, a=ones, b=ones, **STRENGTHS, tol=1e-9)
    unit = unbalanced_gromov(x, y, **STRENGTHS, tol=1e-9)
    assert answer.stop.status == unit.stop.status == "converged"
    assert answer.certificate.fixed_point_residual < SOLVED
    torch.testing.assert_close(answer.plan / answer.mass, unit.plan / unit.mass)
    share = (0.7 + 2.0 + 2 * 0.4) / (0.7 + 2.0 + 0.4)  # every reference grew by 96 or 96^2
    assert (answer.mass / unit.mass).item() == pytest.approx(96**share, rel=SOLVED)
    C = random_cost(96, 96, 0)
    fused = unbalanced_gromov(x, y, a=ones, b=ones, C=C, alpha=0.5, **STRENGTHS)
    assert fused.stop.status == "converged"
    assert fused.certificate.fixed_point_residual < 1e-5


def test_different_strengths_are_not_exchanged():
    x, y, a, b = spaces(8, 7, 3, 1.0, 2.0)
    asked = {"alpha": 1.0, "rho_a": 0.2, "rho_b": 4.0, "epsilon": 0.1}
    right = unbalanced_gromov(x, y, a=a, b=b, **asked, **EXACT)
    wrong = unbalanced_gromov(x, y, a=a, b=b, **asked | {"rho_a": 4.0, "rho_b": 0.2}, **EXACT)
    values = [
        float(fourfold(answer.plan, squared(x), squared(y), a, b, None, *asked.values()))
        for answer in (right, wrong)
    ]
    assert values[0] < 0.9 * values[1]


# laws ---------------------------------------------------------------------------------------------


@few
@given(seeds)
def test_law_swap(seed):
    x, y, a, b = spaces(6, 5, seed)
    C = random_cost(6, 5, seed)
    one = unbalanced_gromov(
        x, y, a=a, b=b, C=C, alpha=0.6, rho_a=0.7, rho_b=2.0, epsilon=0.4, **EXACT
    )
    other = unbalanced_gromov(
        y, x, a=b, b=a, C=C.T, alpha=0.6, rho_a=2.0, rho_b=0.7, epsilon=0.4, **EXACT
    )
    assert one.value.item() == pytest.approx(other.value.item(), rel=SOLVED)
    torch.testing.assert_close(one.plan, other.plan.T, atol=SOLVED, rtol=0)


@few
@given(seeds)
def test_law_permuting_points_permutes_the_answer(seed):
    x, y, a, b = spaces(7, 5, seed)
    order = torch.randperm(7, generator=generator(seed))
    one = unbalanced_gromov(x, y, a=a, b=b, **STRENGTHS, **EXACT)
    other = unbalanced_gromov(x[order], y, a=a[order], b=b, **STRENGTHS, **EXACT)
    torch.testing.assert_close(one.plan[order], other.plan, atol=SOLVED, rtol=0)


def test_law_matrices_and_points_agree():
    x, y, a, b = spaces(7, 5, 1)
    one = unbalanced_gromov(x, y, a=a, b=b, **STRENGTHS, **EXACT)
    other = unbalanced_gromov(x, None, None, squared(y), a, b, **STRENGTHS, **EXACT)
    third = unbalanced_gromov(None, None, squared(x), squared(y), a, b, **STRENGTHS, **EXACT)
    for answer in (other, third):
        torch.testing.assert_close(one.plan, answer.plan, atol=SOLVED, rtol=0)


def test_law_two_homogeneous_without_entropy():
    """The value over the squared scale changes by O(epsilon): half the entropy, half the change."""
    x, y, a, b = spaces(5, 5, 2)
    apart = []
    for epsilon in (0.1, 0.05):
        asked = {"rho_a": 0.7, "rho_b": 2.0, "epsilon": epsilon, "tol": 1e-7}
        one = unbalanced_gromov(x, y, a=a, b=b, **asked)
        other = unbalanced_gromov(x, y, a=2 * a, b=2 * b, plan0=one.plan, **asked)
        apart.append(abs(other.value.item() / 4 - one.value.item()))
    assert apart[1] == pytest.approx(apart[0] / 2, rel=0.3)
    assert apart[1] < one.value.item()


def test_law_strong_marginals_become_exact():
    x, y, a, _ = spaces(8, 8, 4)
    b = random_weights(8, 5)
    soft = unbalanced_gromov(x, y, a=a, b=b, rho_a=1e5, rho_b=1e5, epsilon=0.1, **EXACT)
    hard = unbalanced_gromov(x, y, a=a, b=b, rho_a=None, rho_b=None, epsilon=0.1, **EXACT)
    assert hard.stop.status == soft.stop.status == "converged"
    assert max(hard.certificate.marginal_gap_a, hard.certificate.marginal_gap_b) < SOLVED
    torch.testing.assert_close(soft.plan, hard.plan, atol=1e-4, rtol=0)
    half = unbalanced_gromov(x, y, a=a, b=b, rho_a=None, rho_b=1e5, epsilon=0.1, **EXACT)
    assert half.certificate.marginal_gap_a < ROUNDING
    torch.testing.assert_close(half.plan, hard.plan, atol=1e-4, rtol=0)


def test_law_single_is_close_to_double():
    x, y, a, b = spaces(12, 9, 0)
    double = unbalanced_gromov(x, y, a=a, b=b, **STRENGTHS)
    single = unbalanced_gromov(x.float(), y.float(), a=a.float(), b=b.float(), **STRENGTHS)
    assert single.plan.dtype == single.value.dtype == torch.float32
    assert single.stop.status == "converged"
    assert single.value.item() == pytest.approx(double.value.item(), rel=SINGLE)


def test_absent_points_are_as_if_dropped():
    x, y, a, b = spaces(6, 5, 0)
    a[2] = 0
    answer = unbalanced_gromov(x, y, a=a, b=b, **STRENGTHS, **EXACT)
    kept = [0, 1, 3, 4, 5]
    other = unbalanced_gromov(x[kept], y, a=a[kept], b=b, **STRENGTHS, **EXACT)
    torch.testing.assert_close(answer.plan[kept], other.plan)
    assert answer.rows[2] == 0


def test_asymmetric_costs_are_answered():
    Cx, Cy = random_cost(5, 5, 0), random_cost(4, 4, 1)
    a, b = uniform(5), uniform(4)
    answer = unbalanced_gromov(None, None, Cx, Cy, **STRENGTHS, **EXACT)
    value = fourfold(answer.plan, Cx, Cy, a, b, None, 1.0, *STRENGTHS.values())
    assert answer.value.item() == pytest.approx(value.item(), rel=ROUNDING)
    assert answer.certificate.stationarity < SOLVED


def test_restart_from_the_answer_stops_at_once():
    x, y, a, b = spaces(8, 7, 0)
    one = unbalanced_gromov(x, y, a=a, b=b, **STRENGTHS, tol=1e-9)
    again = unbalanced_gromov(x, y, a=a, b=b, **STRENGTHS, tol=1e-6, plan0=one.plan)
    assert again.stop.iterations < one.stop.iterations / 2
    assert again.value.item() == pytest.approx(one.value.item(), rel=SOLVED)


# experiments --------------------------------------------------------------------------------------


def test_less_crosses_between_classes_than_with_exact_marginals():
    """Two groups of unlike shape, 70 : 30 here and 30 : 70 there (arXiv:2009.04266, section 5)."""
    ring = lambda k, r, s: (
        torch.stack(
            [
                r * torch.cos(torch.arange(k) * 2 * math.pi / k),
                r * torch.sin(torch.arange(k) * 2 * math.pi / k),
            ],
            1,
        ).double()
        + torch.tensor([s, 0.0], dtype=torch.float64)
    )
    x = torch.cat([ring(28, 1.0, 0.0), ring(12, 0.2, 4.0)])
    y = torch.cat([ring(12, 1.0, 0.0), ring(28, 0.2, 4.0)]) @ torch.tensor(
        [[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64
    )
    here, there = torch.arange(40) < 28, torch.arange(40) < 12
    crossing = []
    for rho in (None, 5.0):
        answer = unbalanced_gromov(x, y, rho_a=rho, rho_b=rho, epsilon=5.0, tol=1e-4)
        assert answer.stop.status == "converged"
        share = answer.plan / answer.mass
        crossing.append(float(share[here][:, ~there].sum() + share[~here][:, there].sum()))
    assert crossing[1] < 0.5 * crossing[0]


# endings ------------------------------------------------------------------------------------------


def test_what_is_destroyed_is_said():
    x, y, a, b = spaces(6, 5, 0)
    C = 100 + random_cost(6, 5, 0)
    answer = unbalanced_gromov(
        x, y, a=a, b=b, C=C, alpha=0.5, rho_a=0.1, rho_b=0.1, epsilon=0.1, max_iter=100
    )
    assert answer.mass < 1e-6
    assert "everything_destroyed" in [c.code for c in answer.cautions]
    assert answer.value.item() == pytest.approx(0.1 * (1 + 2 * 1.3**2), rel=1e-6)


def test_spent_updates_and_interruptions_are_said():
    x, y, a, b = spaces(10, 9, 0)
    spent = unbalanced_gromov(x, y, a=a, b=b, **STRENGTHS, max_iter=2)
    halted = unbalanced_gromov(x, y, a=a, b=b, **STRENGTHS, watch=lambda k, r: False)
    assert (spent.stop.status, halted.stop.status) == ("max_iter", "interrupted")
    assert "not_converged" in [c.code for c in spent.cautions]
    assert spent.certificate.fixed_point_residual > 1e-6


@pytest.mark.parametrize(("rho_a", "rho_b"), [(None, 2.0), (0.7, None), (None, 1e-3)])
def test_a_marginal_without_rho_is_exact(rho_a, rho_b):
    """The plan once kept the geometric mean of both masses, whichever side was exact."""
    x, y, a, b = spaces(6, 5, 2)
    answer = unbalanced_gromov(x, y, a=a, b=b, rho_a=rho_a, rho_b=rho_b, epsilon=0.5, tol=1e-9)
    seen, due = (answer.rows, a) if rho_a is None else (answer.columns, b)
    assert answer.stop.status == "converged"
    torch.testing.assert_close(seen, due, atol=1e-8, rtol=0)
    assert answer.mass.item() == pytest.approx(due.sum().item())


# gradients ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rho_a", "rho_b"), [(0.7, 2.0), (None, 2.0), (0.7, None)])
def test_gradients_of_the_value_match_differences(rho_a, rho_b):
    x, _, a, b = spaces(4, 3, 1)
    Cy, C = random_cost(3, 3, 1), random_cost(4, 3, 2)
    leaves = [t.clone().requires_grad_() for t in (x, Cy, a, b, C)]
    value = lambda x, Cy, a, b, C: (
        unbalanced_gromov(
            x, None, None, Cy, a, b, C, alpha=0.6, rho_a=rho_a, rho_b=rho_b, epsilon=0.5, tol=1e-10
        ).value
    )
    assert torch.autograd.gradcheck(value, leaves, **DIFFERENCES)


def test_gradients_of_exact_marginals_are_right_along_equal_masses():
    x, y, a, _ = spaces(4, 4, 1)
    b = random_weights(4, 2)
    Cx = squared(x)
    leaves = [t.clone().requires_grad_() for t in (Cx, y, a, b)]

    def value(Cx, y, a, b):
        a, b = a - a.mean() + 0.25, b - b.mean() + 0.25  # masses stay one
        return unbalanced_gromov(
            None, y, Cx, None, a, b, rho_a=None, rho_b=None, epsilon=0.3, tol=1e-10
        ).value

    assert torch.autograd.gradcheck(value, leaves, **DIFFERENCES)


# peers --------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("alpha", [1.0, 0.5, 0.2])
def test_agrees_with_pot(alpha):
    ot = pytest.importorskip("ot")
    x, y, a, b = spaces(12, 10, 5)
    C = random_cost(12, 10, 5)
    ours = unbalanced_gromov(x, y, a=a, b=b, C=C, alpha=alpha, **STRENGTHS, tol=1e-9)
    plan, _, log = ot.gromov.fused_unbalanced_gromov_wasserstein(
        squared(x).numpy(), squared(y).numpy(), wx=a.numpy(), wy=b.numpy(),
        reg_marginals=(0.7 / alpha, 2.0 / alpha), epsilon=0.4 / alpha, divergence="kl",
        unbalanced_solver="sinkhorn_log", alpha=(1 - alpha) / alpha, M=C.numpy(),
        max_iter=300, tol=1e-10, max_iter_ot=300, tol_ot=1e-10, log=True,
    )  # fmt: skip
    np.testing.assert_allclose(ours.plan.numpy(), plan, atol=SOLVED)
    assert ours.value.item() == pytest.approx(alpha * float(log["fugw_cost"]), rel=SOLVED)


@pytest.mark.filterwarnings("ignore")
def test_exact_marginals_agree_with_pots_entropic_gromov():
    """With mass one, `epsilon KL2` has twice the slope of `epsilon KL`."""
    ot = pytest.importorskip("ot")
    x, y, a, _ = spaces(10, 8, 5)
    b = random_weights(8, 6)
    ours = unbalanced_gromov(x, y, a=a, b=b, rho_a=None, rho_b=None, epsilon=0.2, **EXACT)
    plan = ot.gromov.entropic_gromov_wasserstein(
        squared(x).numpy(), squared(y).numpy(), a.numpy(), b.numpy(), epsilon=0.4, tol=1e-10
    )
    np.testing.assert_allclose(ours.plan.numpy(), plan, atol=SOLVED)


# bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("Cx", {"x": None}),
        ("Cy", {"Cy": torch.zeros(3, 3, dtype=torch.float64)}),
        ("x", {"x": torch.full((4, 2), math.nan, dtype=torch.float64)}),
        ("x", {"x": 1e150 * cloud(4, 2, 0)}),
        ("epsilon", {"x": 1e5 * cloud(4, 2, 0), "epsilon": 1e-3}),
        ("a", {"a": torch.tensor([0.5, -0.5, 1.0, 0.0], dtype=torch.float64)}),
        ("a", {"a": torch.full((4,), 1e155, dtype=torch.float64)}),
        ("b", {"b": torch.zeros(3, dtype=torch.float64)}),
        ("b", {"rho_a": None, "rho_b": None, "b": torch.ones(3, dtype=torch.float64)}),
        ("C", {"alpha": 0.5}),
        ("C", {"alpha": 0.5, "C": torch.full((4, 3), math.inf, dtype=torch.float64)}),
        ("alpha", {"alpha": 1.5}),
        ("rho_a", {"rho_a": 0.0}),
        ("epsilon", {"epsilon": math.nan}),
        ("tol", {"tol": 0.0}),
        ("plan0", {"plan0": torch.zeros(4, 3, dtype=torch.float64)}),
        ("plan0", {"plan0": torch.full((4, 3), -1.0, dtype=torch.float64)}),
    ],
)
def test_bad_input_is_named(field, change):
    question = {"x": cloud(4, 2, 0), "y": cloud(3, 2, 1), **STRENGTHS} | change
    with pytest.raises(IllPosed) as refusal:
        unbalanced_gromov(**question)
    assert refusal.value.field == field


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("C", {"alpha": 0.5}),
        ("Cx", {"Cx": [[0.0] * 4] * 4}),
        ("rho_a", {"rho_a": None, "rho_b": None}),
        ("plan0", {"plan0": [[0.0] * 3] * 4}),
        ("plan0", {"plan0": [[-1.0, 1.0, 2.0]] * 4}),
        ("a", {"a": [1.0, 1.0, 1.0]}),
    ],
)
def test_the_schema_refuses_by_name(field, change):
    UnbalancedGromovRequest.model_validate(EXAMPLE, context={"shelf": Shelf()})
    with pytest.raises(ValidationError) as refusal:
        UnbalancedGromovRequest.model_validate(EXAMPLE | change, context={"shelf": Shelf()})
    (error,) = refusal.value.errors()
    assert field in (*error["loc"], error.get("ctx", {}).get("field"))


def test_the_footprint_counts_matrices_of_the_spaces():
    points = UnbalancedGromovRequest.model_validate(EXAMPLE, context={"shelf": Shelf()})
    body = EXAMPLE | {"x": None, "Cx": [[0.0] * 4] * 4}
    matrix = UnbalancedGromovRequest.model_validate(body, context={"shelf": Shelf()})
    assert matrix.footprint() > points.footprint() > 8 * 12
