import math

import pytest
import torch

from algorithms.iterate import iterate, quietly

halve = lambda x: x / 2
same = lambda x: x


def run(state=1.0, step=halve, residual=same, **options):
    return iterate(step, residual, state, **{"tol": 0.1, "max_iter": 100} | options)


def test_it_converges_and_counts():
    state, stop = run()
    assert (state, stop.status, stop.iterations, stop.residual) == (1 / 16, "converged", 4, 1 / 16)


def test_a_restart_from_an_answer_stops_at_once():
    state, _ = run()
    again, stop = run(state)
    assert again == state
    assert stop.iterations == 0


@pytest.mark.parametrize("every", [1, 3, 7])
def test_max_iter_is_exact_whatever_the_checks(every):
    _, stop = run(tol=0.0, max_iter=8, check_every=every)
    assert (stop.status, stop.iterations) == ("max_iter", 8)


def test_no_iterations_are_allowed():
    state, stop = run(max_iter=0)
    assert (state, stop.status, stop.iterations) == (1.0, "max_iter", 0)


def test_convergence_is_seen_only_at_checks():
    _, stop = run(check_every=10)
    assert (stop.status, stop.iterations) == ("converged", 10)


def test_divergence_returns_the_last_finite_state():
    state, stop = run(step=lambda x: x * 1e100, tol=0.1, residual=lambda x: x * 1.0)
    assert (state, stop.status, stop.residual) == (1e300, "diverged", 1e300)
    assert stop.iterations == 4


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_start_without_a_residual_diverges_at_once(bad):
    _, stop = run(state=bad)
    assert (stop.status, stop.iterations) == ("diverged", 0)


def test_stagnation_returns_the_best_state():
    trail = iter([0.5, 0.7, 0.6, 0.9, 0.4])
    state, stop = run(step=lambda x: next(trail), patience=3)
    assert (state, stop.status, stop.residual) == (0.5, "stagnated", 0.5)
    assert stop.iterations == 4


def test_watch_sees_every_check_and_can_stop():
    seen = []

    def watch(iteration, residual):
        seen.append((iteration, residual))
        return iteration < 4

    state, stop = run(tol=0.0, check_every=2, watch=watch)
    assert seen == [(0, 1.0), (2, 1 / 4), (4, 1 / 16)]
    assert (state, stop.status, stop.iterations) == (1 / 16, "interrupted", 4)


def test_an_answer_outranks_an_interruption():
    _, stop = run(state=0.01, watch=lambda iteration, residual: False)
    assert stop.status == "converged"


def test_a_quiet_watch_answers_and_reports_nothing():
    seen = []
    watch = quietly(lambda iteration, residual: bool(seen.append((iteration, residual))))
    assert not watch(7, 0.5)
    assert seen == [(-1, math.inf)]


def test_residuals_may_be_tensors_in_a_graph():
    x = torch.tensor(1.0, requires_grad=True)
    state, stop = run(state=x, residual=lambda z: z.abs())
    assert stop.status == "converged"
    assert isinstance(stop.residual, float)
    assert state.requires_grad
