"""What thresholds say of rows: masks or values, and the counts that belong to them."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from algorithms.iterate import Stop
from algorithms.topk import magnitude
from algorithms.topk.magnitude import Shrunk, ratio
from algorithms.topk.questions import Question
from algorithms.topk.response import Response, exponent, raised
from algorithms.topk.row_masks import SWEEPS
from algorithms.topk.rows import mask_rows, value_rows
from algorithms.topk.windows import NOWHERE, Solved, distances

# Below this scale the compiled loops for values would divide by too little.
LEAST_SCALE = 1e-140


@dataclass(frozen=True)
class Rows:
    """The relaxed top-k of rows, and how it came about.

    Attributes:
        y: masks or values, of the type of x.
        tau: thresholds, float64; of values that of magnitudes, theta. Finite also where a row
            keeps nothing (its largest entry) or all (lam below its smallest; of values 0).
        support: entries that are not 0.
        saturated: entries that are 1; of values those above the block, which only shrink.
        interior: the others, from which the derivative comes.
        hard: rows that have no interior.
        residual: `|sum y - k|`, in float64 from y as it is returned; of values the same of what
            is pooled, in units of the threshold.
        iterations: sweeps that each row took.
        regime: what ran: compiled, narrow, wide, selected, or a method by name.
        stop: how the slowest row ended.
        solved: what derivatives are computed from.
    """

    y: Float[Tensor, "B n"]
    tau: Float[Tensor, "B"]
    support: Int[Tensor, "B"]
    saturated: Int[Tensor, "B"]
    interior: Int[Tensor, "B"]
    hard: Bool[Tensor, "B"]
    residual: Float[Tensor, "B"]
    iterations: Int[Tensor, "B"]
    regime: str
    stop: Stop
    solved: Solved | Shrunk


def masked(asked: Question, rho: Response, solved: Solved) -> Rows:
    """Write the masks of thresholds, and count."""
    t = _placed(asked, solved.t)
    x, window = asked.x, solved.window
    if window is not None and bool(asked.every.any()):
        window = None  # rows that keep all are not written by their first few entries
    solved = replace(solved, t=t, window=window)
    seen = x if window is None else x.gather(1, window)
    z = distances(seen, solved.a, asked.lam) - t[:, None]
    y = rho.value(z)
    interior = rho.interior(z).sum(1)
    full = rho.saturated(z).sum(1)
    kept = (y > 0).sum(1)
    y = y.to(x.dtype)
    if window is not None:
        outside = torch.zeros_like(x)
        if solved.above is not None:
            beyond = x >= solved.above
            outside = beyond.to(x.dtype)
            more = beyond.sum(1)
            full, kept = full + more, kept + more
        y = outside.scatter(1, window, y)
    return Rows(
        y=y.to(asked.dtype),
        tau=_finite_threshold(asked, solved),
        support=kept,
        saturated=full,
        interior=interior,
        hard=interior == 0,
        residual=(y.sum(1, dtype=torch.float64) - asked.k).abs(),
        iterations=solved.sweeps,
        regime=solved.regime,
        stop=solved.stop,
        solved=solved,
    )


def _placed(asked: Question, t: Tensor) -> Tensor:
    """Put the threshold of rows that keep nothing or all out of reach."""
    t = torch.where(asked.none, NOWHERE, t)
    return torch.where(asked.every, -NOWHERE, t)


def _finite_threshold(asked: Question, solved: Solved) -> Tensor:
    x = asked.x.double()
    tau = torch.where(asked.none, x.amax(1), solved.a + asked.lam * solved.t)
    return torch.where(asked.every, x.amin(1) - asked.lam, tau)


def compiled_mask(asked: Question, r: float) -> Rows:
    """Compute masks in compiled loops."""
    y, found, counts = mask_rows(asked.x, asked.k, asked.lam, r)
    a, t, residual = found.unbind()
    full, between, sweeps = counts.unbind()
    solved = Solved(a, t, sweeps, _stop(sweeps, residual), "compiled")
    return Rows(
        y=y.to(asked.dtype),
        tau=_finite_threshold(asked, solved),
        support=full + between,
        saturated=full,
        interior=between,
        hard=between == 0,
        residual=residual,
        iterations=sweeps,
        regime="compiled",
        stop=solved.stop,
        solved=solved,
    )


def _stop(sweeps: Tensor, residual: Tensor) -> Stop:
    """Tell how the slowest row ended."""
    spent, miss = (int(sweeps.max()), float(residual.max())) if sweeps.numel() else (0, 0.0)
    return Stop("converged" if spent < SWEEPS else "max_iter", spent, miss)


def valued(asked: Question, solved: Shrunk, p: float, *, debias: bool) -> Rows:
    """Write the values of thresholds, and count."""
    found = magnitude.parts(asked.x, solved, p, asked.k)
    y = magnitude.written(asked.x, solved, found, p, debias=debias)
    block, capped = found.block.sum(1), found.capped.sum(1)
    theta = solved.a + solved.lam * solved.t
    pooled = torch.where(found.block, raised(found.z.clamp(min=0), exponent(p)), 0.0).sum(1)
    uneven = ratio((pooled - (asked.k - capped) * theta).abs(), theta)
    plain = solved.hard | asked.none | asked.every
    theta = torch.where(asked.none, found.s.amax(1), theta)
    return Rows(
        y=y.to(asked.dtype),
        tau=torch.where(asked.every, 0.0, theta * solved.scale),
        support=(y != 0).sum(1),
        saturated=capped,
        interior=block,
        hard=block == 0,
        residual=torch.where(plain, 0.0, uneven),
        iterations=solved.sweeps,
        regime=solved.regime,
        stop=solved.stop,
        solved=solved,
    )


def compiled_values(asked: Question, p: float, *, debias: bool) -> Rows | None:
    """Compute values in compiled loops; None where magnitudes are too small for them."""
    y, found, counts = value_rows(asked.x, asked.k, asked.lam, exponent(p))
    scale, a, t, lam, plain, residual = found.unbind()
    if bool((scale < LEAST_SCALE).any()):
        return None
    capped, block, sweeps = counts.unbind()
    stop = _stop(sweeps, residual)
    solved = Shrunk(scale, a, t, lam, plain > 0, sweeps, stop, "compiled")
    if not debias:
        return valued(asked, solved, p, debias=False)
    theta = torch.where(asked.none, asked.x.abs().amax(1).double(), (a + lam * t) * scale)
    return Rows(
        y=y.to(asked.dtype),
        tau=torch.where(asked.every, 0.0, theta),
        support=(y != 0).sum(1),
        saturated=capped,
        interior=block,
        hard=block == 0,
        residual=residual,
        iterations=sweeps,
        regime="compiled",
        stop=stop,
        solved=solved,
    )
