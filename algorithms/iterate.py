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

    Negative iterations mean "nothing to report"; the worker's watch reads its flags and writes nothing.
    """
    return lambda iteration, residual: watch(-1, math.inf)


@dataclass(frozen=True)
class Stop:
    """Why a loop ended: the status, the iterations spent and the last residual that was measured."""

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

    The residual is read every `check_every` steps (and after the last); this is the only place that reads a scalar
    back from the device. It is also read before the first step, so a restart from an answer stops at once.

    Args:
        patience: checks without a new smallest residual after which the loop ends as `stagnated`; None never does.
        watch: asked at each check whether the loop may go on.

    Returns:
        The state and its `Stop`. With status `diverged` the state is the last whose residual was finite; with
        `stagnated` it is the best seen.

    Notes:
        Non-finite residuals end the loop as `diverged`: no answer with a NaN residual is ever called converged.
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
