r"""The relaxed top-k of rows: the core that every routine of this family is built on.

`solve_mask` and `solve_values` answer without derivatives, `soft_mask` and `soft_values` with:
both pull cotangents back from the threshold alone, without a second solve.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from algorithms.errors import IllPosed
from algorithms.iterate import Stop, Watch, unwatched
from algorithms.topk import magnitude
from algorithms.topk.magnitude import Shrunk, ratio
from algorithms.topk.questions import Question, auto_lam, prepared
from algorithms.topk.response import Regularizer, Response, exponent, raised, response
from algorithms.topk.windows import FAR, NOWHERE, Solved, distances, solve_windows

__all__ = [
    "Rows",
    "auto_lam",
    "regularised_value",
    "soft_mask",
    "soft_values",
    "solve_mask",
    "solve_values",
    "suggest_lam",
]

# Halvings of the interval of lam: to 1e-9 of its logarithm.
HALVINGS = 40

Method = Literal["newton", "sort", "pav", "dykstra"]
Number = float | Tensor


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
        residual: `|sum y - k|`, in float64 from y as it is returned; of values
            `|sum y - k theta|` over theta, capped entries counted as theta.
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


def solve_mask(
    x: Float[Tensor, "B n"],
    k: Number,
    lam: Number,
    *,
    p: float = 2.0,
    regularizer: Regularizer = "power",
    method: Method = "newton",
    watch: Watch = unwatched,
) -> Rows:
    """Find the masks `rho((x - tau) / lam)` with sums k; no derivatives.

    k and lam are numbers or one of each row. Entries of -inf are absent and get 0; those of +inf
    get 1.

    Raises:
        IllPosed: where there is no mask, naming row and entry.
    """
    rho, asked = response(p, regularizer), prepared(x, k, lam)
    return _masked(asked, rho, solve_windows(asked.x, asked.inner_k, asked.lam, rho, watch=watch))


def _masked(asked: Question, rho: Response, solved: Solved) -> Rows:
    """Write the masks of thresholds, and count."""
    t = _placed(asked, solved.t)
    solved = Solved(solved.a, t, solved.sweeps, solved.stop, solved.regime, solved.window,
                    solved.above)  # fmt: skip
    x, window = asked.x, solved.window
    if window is not None and bool(asked.every.any()):
        window = None  # rows that keep all are not written by their first few entries
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


def solve_values(
    x: Float[Tensor, "B n"],
    k: Number,
    lam: Number,
    *,
    p: float = 2.0,
    debias: bool = True,
    method: Method = "newton",
    watch: Watch = unwatched,
) -> Rows:
    """Keep the k entries of largest magnitude, relaxed; no derivatives.

    Raises:
        IllPosed: where there is no answer, naming row and entry.
    """
    response(p, "power")  # refuses the exponent where it is no good
    asked = prepared(x, k, lam)
    if bool((asked.k != asked.k.round()).any()):
        row = int((asked.k != asked.k.round()).nonzero()[0])
        raise IllPosed("k", f"row {row}: {float(asked.k[row]):g}; expected a whole number")
    solved = magnitude.solve_magnitudes(asked.x, asked.inner_k, asked.lam, p, watch=watch)
    return _valued(asked, solved, p, debias)


def _valued(asked: Question, solved: Shrunk, p: float, debias: bool) -> Rows:
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


def soft_mask(
    x: Float[Tensor, "B n"],
    k: Number,
    lam: Number,
    *,
    p: float = 2.0,
    regularizer: Regularizer = "power",
) -> Float[Tensor, "B n"]:
    """Compute the masks of `solve_mask`, differentiable with respect to x, k and lam."""
    return differentiable_mask(x, k, lam, p=p, regularizer=regularizer)[0]


def differentiable_mask(
    x: Float[Tensor, "B n"],
    k: Number,
    lam: Number,
    *,
    p: float = 2.0,
    regularizer: Regularizer = "power",
    method: Method = "newton",
    watch: Watch = unwatched,
) -> tuple[Float[Tensor, "B n"], Rows]:
    """Compute the masks with derivatives, and what else is known of them."""
    plain = (v.detach() if isinstance(v, Tensor) else v for v in (k, lam))
    rows = solve_mask(x.detach(), *plain, p=p, regularizer=regularizer, method=method, watch=watch)
    return _Mask.apply(x, _as_tensor(k, x), _as_tensor(lam, x), rows, p, regularizer), rows


def _as_tensor(value: Number, x: Tensor) -> Tensor:
    if isinstance(value, Tensor):
        return value
    return torch.tensor(value, dtype=torch.float64, device=x.device)


class _Mask(torch.autograd.Function):
    """Attach derivatives to masks found: `J = diag(d) - d d^T / sum d`, `d = rho' / lam`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, k: Tensor, lam: Tensor, rows: Rows, p: float, regularizer: Regularizer
    ) -> Tensor:
        ctx.save_for_backward(x, k, lam)
        ctx.solved, ctx.rho = rows.solved, response(p, regularizer)
        return rows.y.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, k, lam = ctx.saved_tensors
        dx, dk, dlam = pull_mask(x, lam, ctx.solved, ctx.rho, g)
        return dx.to(x.dtype), _shaped(dk, k), _shaped(dlam, lam), None, None, None


def _shaped(gradient: Tensor, like: Tensor) -> Tensor:
    """Give the gradients of rows the shape of what they belong to."""
    return (gradient if like.ndim else gradient.sum()).to(like.dtype)


def pull_mask(
    x: Tensor, lam: Tensor, solved: Solved, rho: Response, g: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Pull a cotangent of the masks back to x, k and lam of each row."""
    strength = lam.double().expand(x.shape[0])
    window = solved.window
    seen = x if window is None else x.gather(1, window)
    z, d = mask_slopes(seen, strength, solved, rho)
    of_window = g.double() if window is None else g.gather(1, window).double()
    total = d.sum(1)
    mean = ratio((d * of_window).sum(1), total)
    dx = d * (of_window - mean[:, None])
    dlam = -(dx * z.clamp(-FAR, FAR)).sum(1)
    if window is not None:
        dx = torch.zeros_like(x).scatter(1, window, dx.to(x.dtype))
    return dx, mean, dlam


def mask_slopes(seen: Tensor, lam: Tensor, solved: Solved, rho: Response) -> tuple[Tensor, Tensor]:
    """Compute the distances from the threshold and the slopes of the mask there."""
    z = distances(seen, solved.a, lam) - solved.t[:, None]
    return torch.where(z.abs() < FAR, z, 0.0), rho.slope(z) / lam[:, None]


def push_mask(
    x: Tensor,
    lam: Tensor,
    solved: Solved,
    rho: Response,
    h: Tensor,
    *,
    dk: Tensor | None = None,
    dlam: Tensor | None = None,
) -> Float[Tensor, "B n"]:
    """Push tangents of x, and of k and lam where given, forward to the masks."""
    strength = lam.double().expand(x.shape[0])
    z, d = mask_slopes(x, strength, solved, rho)
    moved = h.double() if dlam is None else h.double() - z * dlam[:, None]
    fed = (d * moved).sum(1) if dk is None else (d * moved).sum(1) - dk
    return (d * (moved - ratio(fed, d.sum(1))[:, None])).to(x.dtype)


def soft_values(
    x: Float[Tensor, "B n"],
    k: Number,
    lam: Number,
    *,
    p: float = 2.0,
    debias: bool = True,
) -> Float[Tensor, "B n"]:
    """Compute the values of `solve_values`, differentiable with respect to x and lam."""
    return differentiable_values(x, k, lam, p=p, debias=debias)[0]


def differentiable_values(
    x: Float[Tensor, "B n"],
    k: Number,
    lam: Number,
    *,
    p: float = 2.0,
    debias: bool = True,
    method: Method = "newton",
    watch: Watch = unwatched,
) -> tuple[Float[Tensor, "B n"], Rows]:
    """Compute the values with derivatives, and what else is known of them."""
    k, still = (v.detach() if isinstance(v, Tensor) else v for v in (k, lam))
    rows = solve_values(x.detach(), k, still, p=p, debias=debias, method=method, watch=watch)
    kept = _as_tensor(k, x).double().expand(x.shape[0])
    return _Values.apply(x, _as_tensor(lam, x), kept, rows, p, debias), rows


class _Values(torch.autograd.Function):
    """Attach derivatives to values that were found."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, lam: Tensor, k: Tensor, rows: Rows, p: float, debias: bool
    ) -> Tensor:
        ctx.save_for_backward(x, lam, k)
        ctx.solved, ctx.p, ctx.debias = rows.solved, p, debias
        return rows.y.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, lam, k = ctx.saved_tensors
        solved, p, sign = ctx.solved, ctx.p, x.double().sign()
        found = magnitude.parts(x, solved, p, k)
        ways = magnitude.slopes(solved, found, k, p, debias=ctx.debias)
        of_magnitudes = g.double() * sign
        dx = ways.pull(of_magnitudes) * sign
        along = magnitude.along_lam(solved, found, ways, p, debias=ctx.debias)
        dlam = (along * of_magnitudes).sum(1)
        return dx.to(x.dtype), _shaped(dlam, lam), None, None, None, None


def push_values(
    x: Tensor, k: Tensor, solved: Shrunk, h: Tensor, *, p: float, debias: bool
) -> Float[Tensor, "B n"]:
    """Push a tangent of x forward to the values."""
    found = magnitude.parts(x, solved, p, k)
    ways = magnitude.slopes(solved, found, k, p, debias=debias)
    sign = x.double().sign()
    return (ways.push(h.double() * sign) * sign).to(x.dtype)


def regularised_value(
    x: Float[Tensor, "B n"], k: Number, lam: Number, *, p: float = 2.0
) -> Float[Tensor, "B"]:
    """Compute `f_R(x) = max <x, y> - (lam/p) sum y^p` over the masks with sum k.

    Its gradients are the mask, tau (for k) and `-(1/p) sum y^p` (for lam): envelope theorem.
    """
    rows = solve_mask(x.detach(), _still(k), _still(lam), p=p)
    return value_of(x, k, lam, rows, response(p, "power"))


def _still(value: Number) -> Number:
    return value.detach() if isinstance(value, Tensor) else value


def value_of(
    x: Float[Tensor, "B n"], k: Number, lam: Number, rows: Rows, rho: Response
) -> Float[Tensor, "B"]:
    """Compute the value that masks maximise, with the gradients of the envelope theorem."""
    y = rows.y.double()
    met = torch.where(y > 0, x.double(), 0.0)  # absent entries weigh nothing
    gained = (met * y).sum(1) - lam * rho.price(y)
    if isinstance(k, Tensor) and k.requires_grad:
        gained = gained + rows.tau * (k - k.detach())
    return gained.to(x.dtype)


def suggest_lam(
    x: Float[Tensor, "B n"], k: Number, target_interior: int, *, p: float = 2.0
) -> Float[Tensor, "B"]:
    """Find for each row about the least lam with so many interior entries; more where tied.

    The count is a step function that grows with lam; it is halved on a scale of logarithms,
    between the gap at the k-th entry and a strength that makes every entry interior.
    """
    x = x.detach().double()
    n = x.shape[1]
    kept = torch.as_tensor(k, dtype=torch.float64, device=x.device).expand(x.shape[0])
    high = (x.amax(1) - x.amin(1)).clamp(min=torch.finfo(x.dtype).tiny) * 2 * n
    low, target = high * 2.0**-HALVINGS, min(target_interior, n)
    for _ in range(HALVINGS):
        mid = (low * high).sqrt()
        enough = solve_mask(x, kept, mid, p=p).interior >= target
        low, high = torch.where(enough, low, mid), torch.where(enough, mid, high)
    return high
