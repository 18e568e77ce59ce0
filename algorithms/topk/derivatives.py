r"""Derivatives of the relaxed top-k, from the thresholds alone: no second solve, no sort.

Masks: `J = diag(d) - d d^T / sum d` with `d = rho'((x - tau) / lam) / lam`. Values: section by
section in `magnitude.Slopes`. At kinks the strict interior decides, an element of the generalised
Jacobian.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from algorithms.topk import magnitude, rows
from algorithms.topk.magnitude import Shrunk, ratio
from algorithms.topk.response import Response, exponent
from algorithms.topk.windows import FAR, Solved, distances


class Mask(torch.autograd.Function):
    """Attach derivatives with respect to x, k and lam to masks that were found."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, k: Tensor, lam: Tensor, y: Tensor, solved: Solved, rho: Response
    ) -> Tensor:
        """Pass the masks on."""
        ctx.save_for_backward(x, k, lam)
        ctx.solved, ctx.rho = solved, rho
        return y.view_as(y)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] -- ctx loses its name
        ctx: Any, *cotangents: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Pull a cotangent back."""
        (g,) = cotangents
        x, k, lam = ctx.saved_tensors
        dx, dk, dlam = pull_mask(x, lam, ctx.solved, ctx.rho, g)
        return dx.to(x.dtype), shaped(dk, k), shaped(dlam, lam), None, None, None


class Values(torch.autograd.Function):
    """Attach derivatives with respect to x and lam to values that were found."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, lam: Tensor, k: Tensor, y: Tensor, solved: Shrunk, p: float,
        debias: bool,
    ) -> Tensor:  # fmt: skip
        """Pass the values on."""
        ctx.save_for_backward(x, lam, k)
        ctx.solved, ctx.p, ctx.debias = solved, p, debias
        return y.view_as(y)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] -- ctx loses its name
        ctx: Any, *cotangents: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Pull a cotangent back."""
        (g,) = cotangents
        x, lam, k = ctx.saved_tensors
        dx, dlam = pull_values(x, k, ctx.solved, g, p=ctx.p, debias=ctx.debias)
        return dx.to(x.dtype), shaped(dlam, lam), None, None, None, None, None


def shaped(gradient: Tensor, like: Tensor) -> Tensor:
    """Give the gradients of rows the shape of what they belong to."""
    return (gradient if like.ndim else gradient.sum()).to(like.dtype)


def pull_mask(
    x: Float[Tensor, "B n"], lam: Tensor, solved: Solved, rho: Response, g: Float[Tensor, "B n"]
) -> tuple[Float[Tensor, "B n"], Float[Tensor, "B"], Float[Tensor, "B"]]:
    """Pull a cotangent of masks back to x, and to k and lam of each row."""
    strength = lam.double().expand(x.shape[0])
    if solved.regime == "compiled":
        found = torch.stack([solved.a, solved.t])
        dx, more = rows.pull_mask_rows(x, g.to(x.dtype), strength, exponent(rho.p), found)
        return dx, more[0], more[1]
    window = solved.window
    seen = x if window is None else x.gather(1, window)
    z, d = _mask_slopes(seen, strength, solved, rho)
    g = g.double() if window is None else g.gather(1, window).double()
    mean = ratio((d * g).sum(1), d.sum(1))
    dx = d * (g - mean[:, None])
    dlam = -(dx * z).sum(1)
    if window is not None:
        dx = torch.zeros_like(x).scatter(1, window, dx.to(x.dtype))
    return dx, mean, dlam


def push_mask(
    x: Float[Tensor, "B n"],
    lam: Tensor,
    solved: Solved,
    rho: Response,
    h: Float[Tensor, "B n"],
    *,
    dk: Float[Tensor, "B"] | None = None,
    dlam: Float[Tensor, "B"] | None = None,
) -> Float[Tensor, "B n"]:
    """Push tangents of x, and of k and lam where given, forward to the masks."""
    z, d = _mask_slopes(x, lam.double().expand(x.shape[0]), solved, rho)
    moved = h.double() if dlam is None else h.double() - z * dlam[:, None]
    fed = (d * moved).sum(1) if dk is None else (d * moved).sum(1) - dk
    return (d * (moved - ratio(fed, d.sum(1))[:, None])).to(x.dtype)


def _mask_slopes(seen: Tensor, lam: Tensor, solved: Solved, rho: Response) -> tuple[Tensor, Tensor]:
    """Compute the distances from the threshold, 0 where it is nowhere, and the slopes."""
    z = distances(seen, solved.a, lam) - solved.t[:, None]
    return torch.where(z.abs() < FAR, z, 0.0), rho.slope(z) / lam[:, None]


def pull_values(
    x: Float[Tensor, "B n"],
    k: Float[Tensor, "B"],
    solved: Shrunk,
    g: Float[Tensor, "B n"],
    *,
    p: float,
    debias: bool,
) -> tuple[Float[Tensor, "B n"], Float[Tensor, "B"]]:
    """Pull a cotangent of values back to x, and to lam of each row."""
    if solved.regime == "compiled" and debias:
        found = torch.stack(
            [solved.scale, solved.a, solved.t, solved.lam, solved.hard.to(torch.float64)]
        )
        return rows.pull_value_rows(x, k, g.to(x.dtype), exponent(p), found)
    sign = x.double().sign()
    found = magnitude.parts(x, solved, p, k)
    ways = magnitude.slopes(solved, found, k, p, debias=debias)
    of_magnitudes = g.double() * sign
    along = magnitude.along_lam(solved, found, ways, p, debias=debias)
    return ways.pull(of_magnitudes) * sign, (along * of_magnitudes).sum(1)


def push_values(
    x: Float[Tensor, "B n"],
    k: Float[Tensor, "B"],
    solved: Shrunk,
    h: Float[Tensor, "B n"],
    *,
    p: float,
    debias: bool,
    dlam: Float[Tensor, "B"] | None = None,
) -> Float[Tensor, "B n"]:
    """Push a tangent of x, and of lam where given, forward to the values."""
    found = magnitude.parts(x, solved, p, k)
    ways = magnitude.slopes(solved, found, k, p, debias=debias)
    sign = x.double().sign()
    moved = ways.push(h.double() * sign)
    if dlam is not None:
        moved = moved + magnitude.along_lam(solved, found, ways, p, debias=debias) * dlam[:, None]
    return (moved * sign).to(x.dtype)
