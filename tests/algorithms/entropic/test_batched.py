"""Small questions answered together are answered as each alone."""

import math

import pytest
import torch

from algorithms.entropic import batched
from algorithms.entropic.batched import Small, solve_small
from algorithms.errors import IllPosed
from algorithms.geometry import CostMatrix, PointClouds
from algorithms.marginals import KL
from algorithms.transport.sinkhorn import EntropicPlan, many, sinkhorn
from tests.problems.transport import cloud, random_cost, random_weights

# Two answers within tol of the optimum; values and bounds are then nearer than tol max(C).
TOL, AGREES = 1e-9, 1e-7


def points(seed: int, n: int = 6, m: int = 5) -> PointClouds:
    return PointClouds(cloud(n, 2, seed), cloud(m, 2, seed + 100) + 0.5)


def small(*seeds: int, **more: list[float]) -> Small:
    """Stack problems, one for each seed."""
    k = len(seeds)
    asked = {"mass": [1.0] * k, "epsilon": [0.1] * k, "tol": [TOL] * k} | more
    columns = {name: torch.tensor(values).double() for name, values in asked.items()}
    columns["max_iter"] = columns.get("max_iter", torch.full((k,), 10_000.0)).long()
    return Small(
        torch.stack([random_cost(4, 5, seed) for seed in seeds]),
        torch.stack([random_weights(4, seed) for seed in seeds]),
        torch.stack([random_weights(5, seed + 50) for seed in seeds]),
        **columns,
    )


@pytest.fixture(params=["compiled", "tensors"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Solve by compiled loops, and as where they do not run."""
    if request.param == "tensors":
        monkeypatch.setattr(batched.compiled, "runs_on", lambda like: False)
    return request.param


def test_many_answers_as_one_by_one() -> None:
    shapes = [(6, 5), (4, 9), (6, 5), (6, 5), (2, 2), (4, 9)]
    questions = [
        {
            "geometry": points(seed, n, m),
            "a": random_weights(n, seed, mass=1.0 + seed),
            "b": random_weights(m, seed + 9, mass=1.0 + seed),
            "epsilon_relative": 0.05 * (seed + 1),
            "tol": TOL,
        }
        for seed, (n, m) in enumerate(shapes)
    ]
    for question, found in zip(questions, many(questions), strict=True):
        alone = sinkhorn(**question)  # type: ignore[arg-type]
        assert isinstance(found, EntropicPlan)
        assert found.stop.status == alone.stop.status == "converged"
        for name in ("plan", "f", "g", "value", "transport_cost", "mass", "rows", "columns"):
            one, other = getattr(found, name), getattr(alone, name)
            torch.testing.assert_close(one, other, atol=AGREES, rtol=AGREES)
        assert found.epsilon == pytest.approx(alone.epsilon)
        seen, certificate = found.certificate, alone.certificate
        assert seen.marginal_error_a + seen.marginal_error_b <= TOL * float(alone.mass)
        assert seen.dual_value == pytest.approx(certificate.dual_value, rel=AGREES)
        assert seen.duality_gap is not None
        assert 0 <= seen.duality_gap < AGREES
        assert seen.dual_value <= float(found.value) + AGREES


def test_what_is_not_plain_is_answered_by_the_function_itself() -> None:
    infinite = CostMatrix(torch.full((3, 3), math.inf, dtype=torch.float64))
    questions = [
        {"geometry": points(1), "marginal_a": KL(1.0), "marginal_b": KL(1.0)},
        {"geometry": points(2), "rounded": True},
        {"geometry": points(3), "plan_form": "top", "top": 2},
        {"geometry": points(4), "a": torch.tensor([0.0, 0.2, 0.2, 0.2, 0.2, 0.2]).double()},
        {"geometry": points(5), "epsilon": 1e6},
        {"geometry": points(6), "plan_form": "none"},
        {"geometry": points(6), "barycentric": True},
        {"geometry": points(7), "max_iter": 1},
        {"geometry": PointClouds(points(8).x.float(), points(8).y.float()), "tol": 1e-4},
        {"geometry": infinite},
        {"geometry": points(9), "epsilon": 1.0, "epsilon_relative": 1.0},
        {"geometry": points(10), "b": torch.full((5,), 0.9).double()},
    ]
    found = many(questions)
    assert [f.field for f in found[9:] if isinstance(f, IllPosed)] == [
        "geometry.C",
        "epsilon_relative",
        "b",
    ]
    for question, answer in zip(questions[:9], found, strict=False):
        alone = sinkhorn(**question)  # type: ignore[arg-type]
        assert isinstance(answer, EntropicPlan)
        assert answer.stop.status == alone.stop.status
        assert [c.code for c in answer.cautions] == [c.code for c in alone.cautions]
        assert (answer.plan is None) == (alone.plan is None)
        assert (answer.map is None) == (alone.map is None)
        torch.testing.assert_close(answer.f, alone.f, atol=1e-4, rtol=1e-4)
    assert isinstance(found[7], EntropicPlan)
    assert found[7].stop.iterations <= 1


@pytest.mark.usefixtures("way")
def test_nobody_gets_more_than_its_own_budget_nor_waits_for_others() -> None:
    together = solve_small(small(2, 1, 1, epsilon=[0.004, 0.1, 0.1], max_iter=[10_000, 10_000, 10]))
    alone = solve_small(small(1))
    found = dict(zip(together.index.tolist(), together.sweeps.tolist(), strict=True))
    assert 2 not in found
    assert found[1] == alone.sweeps.tolist()[0]
    assert max(found.values()) <= 10_000
    at = together.index.tolist().index(1)
    torch.testing.assert_close(together.plan[at], alone.plan[0], atol=1e-12, rtol=0)


def test_both_ways_find_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    problems = small(*range(20), epsilon=[0.02 + 0.02 * k for k in range(20)])
    one = solve_small(problems)
    monkeypatch.setattr(batched.compiled, "runs_on", lambda like: False)
    other = solve_small(problems)
    assert set(other.index.tolist()) <= set(one.index.tolist())
    assert len(other.index) > 15
    same = torch.isin(one.index, other.index)
    torch.testing.assert_close(one.plan[same], other.plan, atol=AGREES, rtol=0)


@pytest.mark.usefixtures("way")
def test_what_crawls_is_hurried_or_left() -> None:
    hard = small(3, 4, 5, epsilon=[0.01, 0.005, 0.003])
    found = solve_small(hard)
    errors = (found.plan.sum(2) - hard.a[found.index]).abs().sum(1)
    assert bool((errors <= TOL).all())


@pytest.mark.usefixtures("way")
def test_too_sharp_and_nonsense_are_left_to_others() -> None:
    sharp = small(1, epsilon=[1e-6])
    lost = Small(
        torch.full((1, 2, 2), math.nan).double(),
        *[torch.ones(1, 2).double() / 2] * 2,
        *[torch.ones(1).double()] * 3,
        torch.tensor([9]),
    )
    assert len(solve_small(sharp).index) == len(solve_small(lost).index) == 0
    assert len(solve_small(small(1, 2).pick(slice(0, 0))).index) == 0


@pytest.mark.usefixtures("way")
def test_an_interrupted_batch_ends_soon() -> None:
    looks: list[int] = []
    found = solve_small(
        small(1, 2, tol=[1e-15, TOL]), watch=lambda i, _: looks.append(i) is not None
    )
    assert len(found.index) == 0
    assert len(looks) == 1
