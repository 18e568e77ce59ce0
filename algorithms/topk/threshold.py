"""One threshold for each row: a safeguarded Newton search that settles rows one by one."""

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from algorithms.iterate import Stop, Watch, iterate, unwatched

# A row needs 3 to 8 sweeps, a few dozen where halvings take over; doubles have no more halvings.
SWEEPS = 1200
# Rows that are settled leave the batch when so many sweeps are made and half of them are.
DROP_AFTER = 5
EPS = 2.0**-52


@runtime_checkable
class Balance(Protocol):
    """Rows with a decreasing excess F(t), to be made zero."""

    def sweep(self, t: Float[Tensor, "B"]) -> tuple[Tensor, Tensor, Tensor]:
        """Compute F, the size of what was added up in it, and -F'."""
        ...

    def take(self, rows: Int[Tensor, "r"]) -> "Balance":
        """Keep some of the rows."""
        ...


@dataclass(frozen=True)
class Search:
    """Where the search stands: of all rows the result, of live rows the bracket."""

    found: Float[Tensor, "B"]
    sweeps: Int[Tensor, "B"]
    rows: Int[Tensor, "r"]
    balance: Balance
    t: Float[Tensor, "r"]
    low: Float[Tensor, "r"]
    high: Float[Tensor, "r"]
    before: Float[Tensor, "r"]  # length of the last step
    done: Bool[Tensor, "r"]
    count: int


def threshold(
    balance: Balance,
    low: Float[Tensor, "B"],
    high: Float[Tensor, "B"],
    *,
    unit: Float[Tensor, "B"],
    size: int,
    watch: Watch = unwatched,
) -> tuple[Float[Tensor, "B"], Int[Tensor, "B"], Stop]:
    """Solve F(t) = 0 in [low, high] for each row, to the last digits.

    Newton's step where it falls strictly inside the bracket and is at most half of the step
    before, else the middle: steps or brackets are halved. A settled row is never updated again:
    rounding in the sign of F would destroy its bracket.

    Args:
        unit: size of t below which its digits do not matter.
        size: entries in a sum, for its rounding.
    """
    start = (low + high) / 2
    state = Search(
        found=start,
        sweeps=torch.zeros_like(low, dtype=torch.int64),
        rows=torch.arange(low.shape[0], device=low.device),
        balance=balance,
        t=start,
        low=low,
        high=high,
        before=high - low,
        done=torch.zeros_like(low, dtype=torch.bool),
        count=0,
    )
    rounding = EPS * (2 + 0.5 * max(size, 2).bit_length())
    state, stop = iterate(
        lambda s: _dropped(_sweep(s, unit, rounding)),
        lambda s: float((~s.done).sum()),
        state,
        tol=0.0,
        max_iter=SWEEPS,
        watch=watch,
    )
    return state.found, state.sweeps, stop


def _sweep(state: Search, unit: Tensor, rounding: float) -> Search:
    t, low, high = state.t, state.low, state.high
    F, S, D = state.balance.sweep(t)
    low = torch.where(F >= 0, t, low)
    high = torch.where(F <= 0, t, high)
    newton, mid = t + F / D, (low + high) / 2
    inside, length = (low < newton) & (newton < high), (newton - t).abs()
    settled = (F.abs() <= rounding * S + EPS / 2 * D) | ~((low < mid) & (mid < high))
    settled |= inside & (length <= EPS * torch.maximum(t.abs(), unit[state.rows]))
    step = torch.where(inside & (length <= state.before / 2), newton, mid)
    step = torch.where(settled, torch.where(inside, newton, t), step)
    live = ~state.done
    t = torch.where(live, step, t)
    return replace(
        state,
        found=state.found.index_copy(0, state.rows, t),
        sweeps=state.sweeps.index_add(0, state.rows, live.long()),
        t=t,
        low=torch.where(live, low, state.low),
        high=torch.where(live, high, state.high),
        before=(step - state.t).abs(),
        done=state.done | settled,
        count=state.count + 1,
    )


def _dropped(state: Search) -> Search:
    """Let the settled rows go once they are the most."""
    if state.count < DROP_AFTER or 2 * int(state.done.sum()) < state.done.shape[0]:
        return state
    keep = (~state.done).nonzero().squeeze(1)
    return replace(
        state,
        rows=state.rows[keep],
        balance=state.balance.take(keep),
        t=state.t[keep],
        low=state.low[keep],
        high=state.high[keep],
        before=state.before[keep],
        done=state.done[keep],
    )
