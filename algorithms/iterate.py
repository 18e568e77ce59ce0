"""The one loop: stopping, divergence, progress and cancellation live here and nowhere else."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

from torch import Tensor

Watch = Callable[[int, float], bool]
State = TypeVar("State")
Status = Literal["converged", "max_iter", "diverged", "stagnated", "interrupted"]


def unwatched(iteration: int, residual: float) -> bool:
    """Let every loop go on: the `watch` of a caller who neither looks nor interrupts."""
    return True


def quietly(watch: Watch) -> Watch:
    """Give an inner loop a view of `watch` that answers the question and reports no numbers.

    A negative iteration means "nothing to report": the worker's watch then only reads its flags.
    """
    return lambda iteration, residual: watch(-1, math.inf)


@dataclass(frozen=True)
class Stop:
    """Why a loop ended: the status, the iterations spent, the last residual that was measured."""

    status: Status
    iterations: int
    residual: float


def iterate(
    step: Callable[[State], State],
    residual: Callable[[State], Tensor | float],
    state: State,
    *,
    tol: float,
    max_iter: int,
    check_every: int = 1,
    patience: int | None = None,
    watch: Watch = unwatched,
) -> tuple[State, Stop]:
    r"""Repeat `state = step(state)` until `residual(state) <= tol`.

    The residual is read before the first step (a restart from an answer stops at once), every
    `check_every` steps, and after the last. Nothing else reads a scalar back from the device.

    Args:
        patience: checks without a new smallest residual before the loop ends as `stagnated`.
        watch: asked at each check whether the loop may go on.

    Returns:
        The state and its `Stop`. A non-finite residual ends the loop as `diverged` with the last
        state whose residual was finite; `stagnated` comes with the best state seen.
    """
    done = 0
    value = _scalar(residual(state))
    if not math.isfinite(value):
        return state, Stop("diverged", 0, value)
    best, best_state, stale = value, state, 0
    last, last_state = value, state
    while value > tol:
        if done >= max_iter:
            return state, Stop("max_iter", done, value)
        if not watch(done, value):
            return state, Stop("interrupted", done, value)
        for _ in range(min(check_every, max_iter - done)):
            state = step(state)
            done += 1
        value = _scalar(residual(state))
        if not math.isfinite(value):
            return last_state, Stop("diverged", done, last)
        last, last_state = value, state
        if value < best:
            best, best_state, stale = value, state, 0
        else:
            stale += 1
        if patience is not None and stale >= patience:
            return best_state, Stop("stagnated", done, best)
    return state, Stop("converged", done, value)


def _scalar(residual: Tensor | float) -> float:
    return float(residual.detach()) if isinstance(residual, Tensor) else float(residual)
