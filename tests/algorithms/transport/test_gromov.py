import itertools
import math

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from algorithms.entropic.rounding import round_plan
from algorithms.errors import IllPosed
from algorithms.geometry import CostMatrix, squared_distances
from algorithms.quadratic.bounds import first_lower_bound, moment_bound, second_lower_bound
from algorithms.quadratic.dense import solve_dense
from algorithms.quadratic.objective import Pair, marginals
from algorithms.quadratic.points import solve_points
from algorithms.simplex import network_simplex
from algorithms.spaces import Cloud, Relations
from algorithms.transport.exact import exact
from algorithms.transport.gromov import gromov
from schemas.arrays import Shelf
from schemas.transport.gromov import GromovRequest
from tests.problems.gromov import clouds
from tests.problems.transport import cloud, generator, random_cost, random_weights, uniform

ROUNDING = 1e-11  # sums of n^2 m^2 products of numbers of size ten
FEASIBLE = 1e-9  # what is asked of the marginals
SINGLE = 1e-5  # float32 inputs of size one, squared twice
SLACK = 1e-12  # rounding of a bound that equals the value
DIFFERENCES = {"atol": 1e-6, "rtol": 1e-5}  # central differences of step 1e-5 in float64
seeds = st.integers(0, 10_000)
few = settings(max_examples=10, deadline=None)


def ask(*args, seed=0, **kwargs):
    return gromov(*args, **kwargs, generator=generator(seed))


def plan_of(answer, n, m):
    return answer.plan.dense(n, m) if answer.plan is not None else answer.dense_plan


def some_space(kind, n, seed):
    if kind == "cloud":
        return Cloud(cloud(n, 3, seed) + 2)
    C = random_cost(n, n, seed)
    return Relations(C + C.T if kind == "symmetric" else C)


def mismatched(n=8, m=7, seed=0, d=3, e=2):
    """Two weighted clouds that nothing relates."""
    return (
        cloud(n, d, seed),
        cloud(m, e, seed + 1),
        random_weights(n, seed),
        random_weights(m, seed),
    )


def best_permutation(Cx, Cy, C=None, alpha=1.0):
    """Try all n! permutations with equal weights."""
    n = len(Cx)
    index = torch.tensor(list(itertools.permutations(range(n))))
    values = alpha * (Cx - Cy[index[:, :, None], index[:, None, :]]).square().sum((1, 2)) / n**2
    if C is not None:
        values += (1 - alpha) * C[torch.arange(n), index].sum(1) / n
    return float(values.min())


# peers --------------------------------------------------------------------------------------------


def test_objective_agrees_with_pot():
    x, y, a, b = mismatched(12, 9, seed=5)
    answer = ask(x, y, a=a, b=b)
    Cx, Cy = squared_distances(x, x), squared_distances(y, y)
    P = plan_of(answer, 12, 9)
    loss = ot.gromov.gwloss(*ot.gromov.init_matrix(Cx, Cy, a, b, "square_loss"), P)
    assert float(answer.value) == pytest.approx(float(loss), rel=ROUNDING)
    descended = ot.gromov_wasserstein(Cx, Cy, a, b, G0=P, symmetric=True)
    again = float(Pair(Cloud(x), Cloud(y), a, b).objective(descended))
    assert again >= float(answer.value) * (1 - 1e-4), "tol lets a start rest at a fall of 1e-4"


# oracles ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_clouds_of_six_points_reach_the_best_permutation(seed):
    # concave along feasible directions: with equal weights some permutation is optimal
    x, y = cloud(6, 2, seed), cloud(6, 3, seed + 10)
    answer = ask(x, y)
    best = best_permutation(squared_distances(x, x), squared_distances(y, y))
    assert float(answer.value) == pytest.approx(best, rel=1e-9)
    assert answer.stop.status == "converged"


@pytest.mark.parametrize("alpha", [0.2, 0.8])
def test_fused_clouds_of_six_points_reach_the_best_permutation(alpha):
    x, y, C = cloud(6, 2, 3), cloud(6, 2, 4), 3 * random_cost(6, 6, 5) - 1
    answer = ask(x, y, C=C, alpha=alpha)
    best = best_permutation(squared_distances(x, x), squared_distances(y, y), C, alpha)
    assert float(answer.value) == pytest.approx(best, rel=1e-9)
    parts = alpha * answer.gw + (1 - alpha) * answer.transport_cost
    assert parts == pytest.approx(float(answer.value), rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_matrices_are_no_worse_than_the_best_permutation(seed):
    Cx, Cy = (random_cost(6, 6, s) for s in (seed, seed + 10))
    Cx, Cy = Cx + Cx.T, Cy + Cy.T
    answer = ask(Cx=Cx, Cy=Cy, tol=1e-6)
    assert float(answer.value) <= best_permutation(Cx, Cy) * (1 + 1e-9)


@pytest.mark.parametrize("n", [5, 40])
def test_a_moved_turned_shuffled_copy_is_found(n):
    x = cloud(n, 3, 1)
    turn = torch.linalg.qr(cloud(3, 3, 2))[0]  # of either orientation
    order = torch.randperm(n, generator=generator(3))
    answer = ask(x, (x @ turn)[order] + 7)
    assert abs(float(answer.value)) < ROUNDING
    assert (answer.plan.rows == order[answer.plan.cols]).all()
    assert len(answer.plan.mass) == n
    assert answer.certificate.gap < ROUNDING


@pytest.mark.slow
def test_copies_given_as_matrices_are_found():
    x = cloud(12, 2, 1)
    D = torch.cdist(x, x)
    order = torch.randperm(12, generator=generator(3))
    answer = ask(Cx=D, Cy=D[order][:, order], tol=1e-6)
    assert abs(float(answer.value)) < ROUNDING
    assert (answer.plan.rows == order[answer.plan.cols]).all()


def test_a_point_alone_is_compared_with_everything():
    y, b = cloud(5, 2, 1), random_weights(5, 2)
    D = squared_distances(y, y)
    answer = ask(cloud(1, 3, 0), y, b=b)
    assert float(answer.value) == pytest.approx(float(b @ D.square() @ b), rel=1e-12)
    torch.testing.assert_close(plan_of(answer, 1, 5), b[None])
    assert ask(cloud(1, 3, 0), cloud(1, 2, 0)).value == 0


def test_coinciding_points_have_no_distances():
    answer = ask(torch.ones(4, 2, dtype=torch.float64), torch.zeros(3, 2, dtype=torch.float64))
    assert float(answer.value) == 0
    assert answer.certificate.marginal_error_a < FEASIBLE


# certificates -------------------------------------------------------------------------------------


def test_bounds_hold_in_two_hundred_weighted_problems():
    tight = 0
    for seed in range(200):
        x, y, a, b = mismatched(7, 6, seed, d=1 + seed % 3)
        pair = Pair(Cloud(x), Cloud(y), a, b)
        found = solve_dense(pair, starts=1, generator=generator(seed))[0]
        bounds = first_lower_bound(pair), second_lower_bound(pair), moment_bound(pair)
        assert max(bounds) <= found.value + SLACK
        matrices = Pair(Relations(pair.X.matrix()), Relations(pair.Y.matrix()), a, b)
        assert first_lower_bound(matrices) == pytest.approx(bounds[0], rel=1e-9)
        assert second_lower_bound(matrices) == pytest.approx(bounds[1], rel=1e-9)
        assert moment_bound(matrices) is None
        tight += max(bounds) > 0.5 * found.value
    assert tight > 20, "bounds of nothing would hold as well"


def test_bounds_of_asymmetric_costs_hold():
    for seed in range(20):
        X, Y = some_space("asymmetric", 6, seed), some_space("asymmetric", 5, seed + 1)
        pair = Pair(X, Y, random_weights(6, seed), random_weights(5, seed))
        value = solve_dense(pair, starts=1, generator=generator(seed))[0].value
        assert max(first_lower_bound(pair), second_lower_bound(pair)) <= value + SLACK


def test_first_and_moment_bounds_are_those_of_their_definitions():
    x, y, a, b = mismatched(5, 4, 3)
    pair = Pair(Cloud(x), Cloud(y), a, b)
    e = (squared_distances(x, x).square() @ a).sqrt()
    h = (squared_distances(y, y).square() @ b).sqrt()
    along = float(network_simplex(a, b, (e[:, None] - h).square()).transport_cost)
    assert first_lower_bound(pair) == pytest.approx(along, rel=1e-10)
    Cx, Cy = squared_distances(x, x).reshape(-1), squared_distances(y, y).reshape(-1)
    p, q = (a[:, None] * a).reshape(-1), (b[:, None] * b).reshape(-1)
    pairs = float(network_simplex(p, q, (Cx[:, None] - Cy).square()).transport_cost)
    assert second_lower_bound(pair) == pytest.approx(pairs, rel=1e-10)


def test_certificate_is_what_can_be_recomputed():
    x, y, a, b = mismatched(9, 7, 1)
    C = random_cost(9, 7, 2)
    answer = ask(x, y, a=3 * a, b=3 * b, C=C, alpha=0.7)
    seen, P = answer.certificate, plan_of(answer, 9, 7)
    pair = Pair(Cloud(x), Cloud(y), 3 * a, 3 * b, C, 0.7)
    assert seen.marginal_error_a == pytest.approx(float((P.sum(1) - 3 * a).abs().sum()), abs=1e-15)
    assert max(seen.marginal_error_a, seen.marginal_error_b, seen.mass_error) < FEASIBLE
    assert float(answer.value) == pytest.approx(float(pair.objective(P)), rel=1e-12)
    linear = exact(CostMatrix(C), 3 * a, 3 * b).value
    assert seen.linear_bound == pytest.approx(float(linear), rel=1e-12)
    best = max(seen.first_lower_bound, seen.second_lower_bound, seen.moment_bound)
    assert seen.lower_bound == pytest.approx(0.7 * best + 0.3 * float(linear), rel=1e-12)
    assert seen.gap == pytest.approx(float(answer.value) - seen.lower_bound, rel=1e-12)
    assert seen.gap > 0
    assert seen.starts_tried == len(answer.attempts)
    assert 1 <= seen.starts_reached <= seen.starts_tried
    ended = [one.value for one in answer.attempts if one.points == 9]
    assert min(ended) == pytest.approx(float(answer.value), rel=1e-12)


def test_a_start_that_is_alone_is_told():
    # a line and a triangle with no symmetry: the product and one random start rarely agree
    codes = set()
    for seed in range(6):
        x, y, a, b = mismatched(20, 20, seed, d=3, e=3)
        answer = ask(x, y, a=a, b=b, starts=0)
        alone = answer.certificate.starts_reached == 1
        codes |= {c.code for c in answer.cautions}
        assert ("one_start_reached" in {c.code for c in answer.cautions}) == alone
    assert "optimality_unknown" in codes


# laws ---------------------------------------------------------------------------------------------


@given(seeds, st.sampled_from([0.01, 3.0, 1e4]))
@settings(max_examples=3, deadline=None)
def test_value_grows_with_the_square_of_the_costs(seed, factor):
    x, y, a, b = mismatched(seed=seed)
    one, scaled = ask(x, y, a=a, b=b), ask(factor * x, factor * y, a=a, b=b)
    assert float(scaled.value) == pytest.approx(factor**4 * float(one.value), rel=1e-6)
    Cx, Cy = random_cost(6, 6, seed), random_cost(5, 5, seed)
    one, scaled = (ask(Cx=f * Cx, Cy=f * Cy, starts=0, tol=1e-6) for f in (1, factor))
    assert float(scaled.value) == pytest.approx(factor**2 * float(one.value), rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_swapping_the_spaces_changes_nothing(seed):
    x, y, a, b = mismatched(seed=seed)
    C = random_cost(8, 7, seed)
    one = ask(x, y, a=a, b=b, C=C, alpha=0.5, tol=0.0)
    other = ask(y, x, a=b, b=a, C=C.T.contiguous(), alpha=0.5, tol=0.0)
    assert float(one.value) == pytest.approx(float(other.value), rel=1e-6)
    assert one.certificate.lower_bound == pytest.approx(other.certificate.lower_bound, rel=1e-9)


def test_value_grows_with_the_square_of_the_mass_and_the_linear_part_with_the_mass():
    x, y, a, b = mismatched(seed=2)
    one, three = ask(x, y, a=a, b=b), ask(x, y, a=3 * a, b=3 * b)
    assert float(three.value) == pytest.approx(9 * float(one.value), rel=1e-9)
    C = random_cost(8, 7, 1)
    third = ask(x, y, a=3 * a, b=3 * b, C=C, alpha=0.25)
    # 0.25 * 9 gw + 0.75 * 3 cost = 3 (0.75 gw + 0.75 cost) = 4.5 (0.5 gw + 0.5 cost)
    half = ask(x, y, a=a, b=b, C=C, alpha=0.5)
    assert float(third.value) == pytest.approx(4.5 * float(half.value), rel=1e-9)


def test_alpha_zero_is_transport():
    a, b, C = random_weights(8, 1), random_weights(7, 2), random_cost(8, 7, 3) - 0.5
    answer = ask(cloud(8, 2, 1), Cy=random_cost(7, 7, 2), a=a, b=b, C=C, alpha=0.0)
    assert float(answer.value) == pytest.approx(float(exact(CostMatrix(C), a, b).value), rel=1e-12)
    assert answer.certificate.gap == pytest.approx(0, abs=1e-12)


def test_points_without_mass_take_no_part():
    x, y, a, b = mismatched(9, 8, 4)
    a[2], b[0], b[5] = 0.0, 0.0, 0.0
    a, b = a / a.sum(), b / b.sum()
    answer = ask(x, y, a=a, b=b)
    kept = ask(x[a > 0], y[b > 0], a=a[a > 0], b=b[b > 0])
    assert float(answer.value) == pytest.approx(float(kept.value), rel=1e-9)
    P = plan_of(answer, 9, 8)
    assert float(P[2].sum() + P[:, 0].sum() + P[:, 5].sum()) == 0
    assert answer.certificate.marginal_error_b < FEASIBLE


def test_single_precision_is_close_to_double():
    x, y, a, b = mismatched(seed=3)
    double, single = ask(x, y, a=a, b=b), ask(x.float(), y.float(), a=a.float(), b=b.float())
    assert single.value.dtype == single.plan.mass.dtype == torch.float32
    assert float(single.value) == pytest.approx(float(double.value), rel=SINGLE)


def test_same_seed_same_answer():
    x, y = clouds("mixtures", 230)
    one, other = ask(x, y, seed=4, starts=3), ask(x, y, seed=4, starts=3)
    assert float(one.value) == float(other.value)
    assert one.attempts == other.attempts


def test_a_given_plan_is_never_made_worse():
    x, y, a, b = mismatched(30, 25, 6)
    P = round_plan(random_cost(30, 25, 7), a, b)
    pair = Pair(Cloud(x), Cloud(y), a, b)
    answer = ask(x, y, a=a, b=b, plan0=5 * P, starts=0)
    assert float(answer.value) <= float(pair.objective(P))
    again = ask(x, y, a=a, b=b, plan0=plan_of(answer, 30, 25), starts=0)
    assert float(again.value) <= float(answer.value) * (1 + 1e-12)
    assert "given" in {one.start for one in again.attempts}


# other constraints and methods --------------------------------------------------------------------


def planted(n, seed):
    """A cloud, of which 70 % is a turned copy of another's; the rest is clutter on both sides."""
    kept = round(0.7 * n)
    x = cloud(n, 2, seed)
    turn = torch.linalg.qr(cloud(2, 2, seed + 1))[0]
    y = torch.cat([x[:kept] @ turn, cloud(n - kept, 2, seed + 2) * 2 + 3])
    order = torch.randperm(n, generator=generator(seed))
    return x, y[order], order, kept / n


@pytest.mark.slow
def test_a_planted_copy_is_found_by_partial_matching():
    x, y, order, share = planted(50, 1)
    answer = ask(x, y, constraint="partial", mass=share)
    assert abs(float(answer.value)) < 1e-9
    assert (answer.plan.rows == order[answer.plan.cols]).all()
    assert answer.certificate.mass_error < FEASIBLE
    assert max(answer.certificate.marginal_error_a, answer.certificate.marginal_error_b) < FEASIBLE
    product = ask(x, y, constraint="partial", mass=share, starts=0)
    assert float(product.value) > 1e-3, "the product start alone misses it"


@pytest.mark.slow
def test_fewer_constraints_lower_the_value():
    x, y, a, b = mismatched(10, 9, 2)
    balanced = ask(x, y, a=a, b=b)
    free = ask(x, y, a=a, constraint="semi_relaxed")
    part = ask(x, y, a=a, b=b, constraint="partial", mass=0.6)
    whole = ask(x, y, a=a, b=b, constraint="partial", mass=1.0, plan0=plan_of(balanced, 10, 9))
    assert float(free.value) <= float(balanced.value)
    assert float(part.value) <= float(balanced.value)
    assert float(whole.value) <= float(balanced.value) * (1 + 1e-9)
    P = plan_of(free, 10, 9)
    torch.testing.assert_close(P.sum(1), a, atol=FEASIBLE, rtol=0)
    assert free.certificate.first_lower_bound is None
    assert free.certificate.lower_bound == 0


def test_partial_fused_and_given_plans_meet_their_constraints():
    x, y, a, b = mismatched(10, 9, 2)
    b, C = 1.7 * b, random_cost(10, 9, 3) - 0.5
    for constraint, mass, weights_b in (("partial", 0.4, b), ("semi_relaxed", None, None)):
        answer = ask(
            x, y, a=a, b=weights_b, C=C, alpha=0.5, constraint=constraint, mass=mass,
            plan0=random_cost(10, 9, 4), starts=2,
        )  # fmt: skip
        seen = answer.certificate
        assert max(seen.marginal_error_a, seen.marginal_error_b, seen.mass_error) < FEASIBLE
        assert seen.lower_bound <= float(answer.value)
        assert seen.lower_bound < 0, "C has negative entries: zero would be no bound"


def test_entropic_is_stationary_and_worth_more_entropy_than_the_vertex():
    x, y, a, b = mismatched(12, 10, 3)
    epsilon = 4.0  # no entry is so small that rounding to exact marginals changes its logarithm
    answer = ask(x, y, a=a, b=b, method="entropic", epsilon=epsilon, tol=1e-7)
    assert answer.plan is None
    P = answer.dense_plan
    assert max(answer.certificate.marginal_error_a, answer.certificate.marginal_error_b) < FEASIBLE
    apart = (P * (P / (a[:, None] * b)).log()).sum()
    objective = float(answer.gw + epsilon * apart)
    assert float(answer.value) == pytest.approx(objective, rel=1e-9)
    # at rest eps log(P / a b^T) + 2 L(P) is a sum f_i + g_j
    pair = Pair(Cloud(x), Cloud(y), a, b)
    Z = epsilon * (P / (a[:, None] * b)).log() + pair.gradient(P)
    off = Z - Z[:1] - Z[:, :1] + Z[0, 0]
    assert float(off.abs().max()) < 1e-5 * float(Z.abs().max())


@pytest.mark.slow
def test_proximal_ends_close_to_a_plan_without_entropy():
    x, y, a, b = mismatched(12, 10, 3)
    answer = ask(x, y, a=a, b=b, method="proximal")
    best = ask(x, y, a=a, b=b)
    assert float(best.value) <= float(answer.value) * (1 + 1e-9)
    assert answer.epsilon > 0
    seen = answer.certificate
    assert max(seen.marginal_error_a, seen.marginal_error_b) < FEASIBLE
    assert seen.lower_bound <= float(answer.value)


def test_random_starts_serve_smooth_methods_too():
    x, y, a, b = mismatched(12, 10, 3)
    one = ask(x, y, a=a, b=b, method="entropic", epsilon=0.3)
    more = ask(x, y, a=a, b=b, method="entropic", epsilon=0.3, starts=5)
    assert len(more.attempts) == 6
    assert float(more.value) <= float(one.value) * (1 + 1e-9)


# traps --------------------------------------------------------------------------------------------


def test_a_small_value_beside_large_constants_is_kept():
    x, y = clouds("rotated", 60)
    answer = ask(x, y)
    Cx, Cy = squared_distances(x, x), squared_distances(y, y)
    P = answer.plan
    apart = Cx[P.rows][:, P.rows] - Cy[P.cols][:, P.cols]
    exactly = float(P.mass @ apart.square() @ P.mass)
    assert float(answer.value) == pytest.approx(exactly, rel=1e-9)
    assert exactly < 0.01


def test_the_product_start_alone_is_worse_than_the_search():
    x, y = clouds("mixtures", 100)
    uniform_weights = uniform(100)
    C = squared_distances(x, x), squared_distances(y, y)
    theirs = ot.gromov_wasserstein(*C, uniform_weights, uniform_weights, symmetric=True)
    pair = Pair(Cloud(x), Cloud(y), uniform_weights, uniform_weights)
    assert float(ask(x, y).value) <= float(pair.objective(theirs)) * (1 + 1e-3)


# endings ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patience", [0, 3, 40])
def test_interrupted_with_a_feasible_plan(patience):
    x, y = clouds("isotropic", 260)
    asked = itertools.count()
    answer = gromov(x, y, generator=generator(0), watch=lambda k, r: next(asked) < patience)
    assert answer.stop.status == "interrupted"
    seen = answer.certificate
    assert max(seen.marginal_error_a, seen.marginal_error_b, seen.mass_error) < FEASIBLE
    assert seen.lower_bound <= float(answer.value)
    product = uniform(260)[:, None] * uniform(260)
    pair = Pair(Cloud(x), Cloud(y), uniform(260), uniform(260))
    assert float(answer.value) < float(pair.objective(product))


def test_too_few_steps_are_told():
    x, y = clouds("isotropic", 260)
    answer = ask(x, y, max_iter=1, starts=0)
    assert answer.stop.status == "max_iter"
    assert answer.certificate.marginal_error_a < FEASIBLE


# gradients ----------------------------------------------------------------------------------------


def moved_values(make, leaf, solve):
    """Central differences of the value of a problem that is solved afresh at every step."""
    step, slope = 1e-5, torch.zeros_like(leaf)
    for k in range(leaf.numel()):
        ends = []
        for sign in (1, -1):
            other = leaf.detach().clone()
            other.view(-1)[k] += sign * step
            ends.append(float(solve(make(other)).value))
        slope.view(-1)[k] = (ends[0] - ends[1]) / (2 * step)
    return slope


@pytest.mark.parametrize("field", ["x", "y", "C"])
def test_gradients_between_clouds_match_differences(field):
    x, y, a, b = mismatched(4, 3, 2, d=2)
    given = {"x": x, "y": y, "C": random_cost(4, 3, 1)}
    solve = lambda q: ask(**q, a=a, b=b, alpha=0.6, starts=0, tol=0.0)
    leaf = given[field].clone().requires_grad_()
    (slope,) = torch.autograd.grad(solve(given | {field: leaf}).value, leaf)
    expected = moved_values(lambda z: given | {field: z}, leaf, solve)
    torch.testing.assert_close(slope, expected, **DIFFERENCES)


@pytest.mark.parametrize("field", ["Cx", "Cy"])
def test_gradients_of_matrices_match_differences(field):
    a, b = random_weights(4, 1), random_weights(3, 2)
    x, y = cloud(4, 2, 1), cloud(3, 2, 2)
    given = {"Cx": squared_distances(x, x), "Cy": squared_distances(y, y)}
    solve = lambda q: ask(**q, a=a, b=b, starts=0)
    leaf = given[field].clone().requires_grad_()
    (slope,) = torch.autograd.grad(solve(given | {field: leaf}).value, leaf)
    expected = moved_values(lambda z: given | {field: z}, leaf, solve)
    torch.testing.assert_close(slope, expected, **DIFFERENCES)


def test_potentials_of_a_plan_at_rest_prove_its_linear_problem():
    x, y, a, b = mismatched(8, 7, 3)
    pair = Pair(Cloud(x), Cloud(y), a, b, random_cost(8, 7, 3), 0.5)
    found = solve_points(
        pair, starts=0, plan0=None, tol=0.0, max_iter=50, generator=generator(0),
        watch=lambda k, r: True,
    )[0][0]  # fmt: skip
    slope = pair.gradient(found.plan)
    assert found.status == "converged"
    assert float((found.f[:, None] + found.g - slope).amax()) < ROUNDING
    mu, nu = marginals(found.plan, 8, 7)
    along = found.plan.mass @ slope[found.plan.rows, found.plan.cols]
    assert float(along) == pytest.approx(float(mu @ found.f + nu @ found.g), abs=ROUNDING)


# bad input ----------------------------------------------------------------------------------------

POINTS = {"x": [[0.0], [1.0]], "y": [[0.0], [2.0]]}
COST = [[0.0, 1.0], [1.0, 0.0]]
REFUSED = [
    ({"Cx": COST}, "Cx"),
    ({"x": None}, "Cx"),
    ({"y": None}, "Cy"),
    ({"C": COST}, "C"),
    ({"alpha": 0.5}, "C"),
    ({"alpha": 1.5}, "alpha"),
    ({"C": [[0.0, 1.0]], "alpha": 0.5}, "C"),
    ({"a": [1.0, -0.1]}, "a"),
    ({"a": [0.5, 0.25, 0.25]}, "a"),
    ({"b": [0.0, 0.0]}, "b"),
    ({"b": [0.5, 0.6]}, "b"),
    ({"mass": 0.5}, "mass"),
    ({"constraint": "partial"}, "mass"),
    ({"constraint": "partial", "mass": 1.5}, "mass"),
    ({"constraint": "partial", "mass": 0.5, "method": "entropic"}, "method"),
    ({"constraint": "semi_relaxed", "b": [0.5, 0.5]}, "b"),
    ({"constraint": "none"}, "constraint"),
    ({"method": "guess"}, "method"),
    ({"epsilon": 0.1}, "epsilon"),
    ({"method": "entropic", "epsilon": 0.0}, "epsilon"),
    ({"starts": -1}, "starts"),
    ({"tol": -1e-3}, "tol"),
    ({"max_iter": 0}, "max_iter"),
    ({"plan0": [[0.5, -0.1], [0.0, 0.5]]}, "plan0"),
    ({"plan0": [[0.0, 0.0], [0.0, 0.0]]}, "plan0"),
    ({"plan0": [[0.5, 0.5]]}, "plan0"),
    ({"x": [[0.0], [math.nan]]}, "x"),
]


@pytest.mark.parametrize(("change", "field"), REFUSED)
def test_schema_refuses_and_names_the_field(change, field):
    with pytest.raises(ValidationError) as caught:
        GromovRequest.model_validate(POINTS | change, context={"shelf": Shelf()})
    told = [(*error["loc"], error.get("ctx", {}).get("field")) for error in caught.value.errors()]
    assert any(field in places for places in told), told


def test_schema_accepts_what_goes_together():
    for more in (
        {},
        {"C": COST, "alpha": 0.5},
        {"constraint": "partial", "mass": 0.5, "b": [1.0, 2.0]},
        {"method": "entropic", "epsilon": 0.1},
    ):
        request = GromovRequest.model_validate(POINTS | more, context={"shelf": Shelf()})
        assert request.footprint() > 0


BAD = [
    ({"Cx": torch.eye(2)}, "Cx"),
    ({"x": torch.tensor([[0.0], [math.inf]])}, "x"),
    ({"x": torch.tensor([[0.0], [1e40]]).double() ** 2}, "x"),
    ({"a": torch.tensor([0.5, -0.5])}, "a"),
    ({"b": torch.tensor([0.5, 0.9])}, "b"),
    ({"C": torch.eye(2)}, "C"),
    ({"C": torch.full((2, 2), math.nan), "alpha": 0.5}, "C"),
    ({"alpha": 2.0}, "alpha"),
    ({"constraint": "partial", "mass": 2.0}, "mass"),
    ({"constraint": "partial"}, "mass"),
    ({"constraint": "partial", "mass": 0.5, "method": "proximal"}, "method"),
    ({"constraint": "semi_relaxed", "b": torch.tensor([0.5, 0.5])}, "b"),
    ({"epsilon": 0.1}, "epsilon"),
    ({"method": "entropic", "epsilon": -1.0}, "epsilon"),
    ({"plan0": torch.zeros(2, 2)}, "plan0"),
    ({"plan0": torch.tensor([[0.5, -0.5], [0.5, 0.5]])}, "plan0"),
]


@pytest.mark.parametrize(("change", "field"), BAD)
def test_algorithm_refuses_and_names_the_field(change, field):
    question = {"x": torch.tensor([[0.0], [1.0]]), "y": torch.tensor([[0.0], [2.0]])}
    with pytest.raises(IllPosed) as caught:
        ask(**(question | change))
    assert caught.value.field == field


# published and measured values --------------------------------------------------------------------

BEST = {"spirals": 0.06289, "mixtures": 0.4385, "isotropic": 0.0902, "20-D/30-D": 0.0970}


@pytest.mark.slow
@pytest.mark.parametrize("name", BEST)
def test_five_hundred_points_reach_the_best_known_values(name):
    answer = ask(*clouds(name, 500))
    assert float(answer.value) <= BEST[name]
    assert answer.certificate.marginal_error_a < FEASIBLE


@pytest.mark.slow
def test_bounds_at_five_hundred_points_are_those_of_the_reference():
    x, y = clouds("mixtures", 500)
    pair = Pair(Cloud(x), Cloud(y), uniform(500), uniform(500))
    seen = first_lower_bound(pair), second_lower_bound(pair), moment_bound(pair)
    np.testing.assert_allclose(seen, (0.303, 0.333, 0.366), atol=5e-4)
