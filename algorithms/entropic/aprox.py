r"""Divergences between a marginal and its weights, seen through their entropy functions phi.

`D(mu | a) = sum_i a_i phi(mu_i / a_i)`; phi* is the conjugate of phi. An entropic plan
`P_ij = a_i b_j exp((f_i + g_j - C_ij)/eps)` is optimal when `mu_i / a_i` lies in the
subdifferential of phi* at `-f_i`, on each side. With `s = softmin(g)` one has
`mu_i / a_i = exp((f_i - s_i)/eps)`, and the f that satisfies this is `relaxed(marginal, s, eps)`.
Everything here works entry by entry.

References: Chizat, Peyre, Schmitzer, Vialard 2018, arXiv:1607.05816, section 4 and table 1;
Sejourne, Peyre, Vialard 2022, arXiv:2211.08775, section 3.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from algorithms.marginals import KL, TV, Balanced, Berg, Free, Marginal, Range

# Newton's steps for `w + log w = l`; six reach rounding from any of the starts.
LAMBERT_STEPS = 12
# exp of this is the smallest normal float64, nearly: below, w = exp(l) is as good as zero.
LAMBERT_LOWEST = -700.0
# A potential rounded to float32 may leave the domain of a conjugate by this share of rho.
OUTSIDE = 1e-6


def relaxed(marginal: Marginal, s: Float[Tensor, "*k"], epsilon: float) -> Float[Tensor, "*k"]:
    """Return `f = argmin_h phi*(-h) + eps exp((h - s)/eps)`, the best f for a softmin s."""
    match marginal:
        case Balanced():
            return s
        case KL(rho):
            return s / (1 + epsilon / rho)
        case TV(rho):
            return s.clamp(-rho, rho)
        case Range(low, high):
            least = s + epsilon * math.log(low) if low > 0 else torch.full_like(s, -math.inf)
            return least.clamp_min(0) + (s + epsilon * math.log(high)).clamp_max(0)
        case Free():
            return torch.zeros_like(s)
        case Berg(rho):
            logs = math.log(rho / epsilon) + (s + rho) / epsilon
            return epsilon * _product_log(logs) - rho


def _product_log(logs: Float[Tensor, "*k"]) -> Float[Tensor, "*k"]:
    """Solve `w + log w = l`, which is `w e^w = e^l`, by Newton's method."""
    logs = logs.clamp_min(LAMBERT_LOWEST)
    w = torch.where(logs > 1, logs - logs.clamp_min(1).log(), logs.clamp_max(1).exp())
    for _ in range(LAMBERT_STEPS):
        w = w * (1 + logs - w.log()) / (1 + w)
    return w


def conjugate(marginal: Marginal, q: Float[Tensor, "*k"]) -> Float[Tensor, "*k"]:
    """Return `phi*(q)`, infinite outside its domain; the dual value has `-sum a phi*(-f)`."""
    match marginal:
        case Balanced():
            return q
        case KL(rho):
            return rho * torch.expm1(q / rho)
        case TV(rho):
            return torch.where(q > rho * (1 + OUTSIDE), math.inf, q.clamp(-rho, rho))
        case Range(low, high):
            return torch.maximum(low * q, high * q)
        case Free():
            return torch.where(q == 0, q, math.inf)
        case Berg(rho):
            return torch.where(q < rho, -rho * torch.log1p(-q.clamp_max(rho) / rho), math.inf)


def penalty(marginal: Marginal, ratio: Float[Tensor, "*k"]) -> Float[Tensor, "*k"]:
    """Return `phi(ratio)`, infinite where the ratio `mu_i / a_i` is not allowed."""
    match marginal:
        case Balanced():
            return torch.zeros_like(ratio).masked_fill(ratio != 1, math.inf)
        case KL(rho):
            return rho * (torch.xlogy(ratio, ratio) - ratio + 1)
        case TV(rho):
            return rho * (ratio - 1).abs()
        case Range(low, high):
            return torch.zeros_like(ratio).masked_fill((ratio < low) | (ratio > high), math.inf)
        case Free():
            return torch.zeros_like(ratio)
        case Berg(rho):
            return rho * (ratio - 1 - ratio.log())


def ratios(
    marginal: Marginal, f: Float[Tensor, "*k"]
) -> tuple[Float[Tensor, "*k"], Float[Tensor, "*k"]]:
    """Bound the ratios `mu_i / a_i` that are optimal for f: the subdifferential of phi* at -f."""
    one, zero = torch.ones_like(f), torch.zeros_like(f)
    match marginal:
        case Balanced():
            return one, one
        case KL(rho):
            ratio = torch.exp(-f / rho)
            return ratio, ratio
        case TV(rho):
            low, high = f >= rho, f <= -rho
            beyond = f > rho * (1 + OUTSIDE)
            high_ratio = torch.where(high, math.inf, torch.where(beyond, zero, one))
            return torch.where(low, zero, one), high_ratio
        case Range(low, high):
            return torch.where(f >= 0, low, high * one), torch.where(f <= 0, high, low * one)
        case Free():
            return zero, torch.full_like(f, math.inf)
        case Berg(rho):
            ratio = 1 / (1 + f / rho)
            return ratio, ratio


def stiffness(marginal: Marginal, f: Float[Tensor, "*k"]) -> Float[Tensor, "*k"]:
    """Return minus the derivative in f of the optimal ratio; zero where it does not move."""
    match marginal:
        case KL(rho):
            return torch.exp(-f / rho) / rho
        case Berg(rho):
            return 1 / (1 + f / rho).square() / rho
        case _:
            return torch.zeros_like(f)


def pinned(marginal: Marginal, f: Float[Tensor, "*k"]) -> Bool[Tensor, "*k"]:
    """Tell the potentials that stay when the problem changes a little: those at a kink of phi*."""
    match marginal:
        case TV(rho):
            return f.abs() >= rho * (1 - OUTSIDE)
        case Range():
            return f == 0
        case Free():
            return torch.ones_like(f, dtype=torch.bool)
        case _:
            return torch.zeros_like(f, dtype=torch.bool)


def masses(marginal: Marginal, mass: float) -> tuple[float, float]:
    """Bound the mass of a plan whose marginal on one side answers to weights of this mass."""
    match marginal:
        case Balanced():
            return mass, mass
        case Range(low, high):
            return low * mass, high * mass
        case _:
            return 0.0, math.inf


def hard(marginal: Marginal) -> bool:
    """Tell whether some marginals are forbidden, not merely dear."""
    return isinstance(marginal, Balanced | Range)


def needs_mass(marginal: Marginal) -> bool:
    """Tell whether a point without any mass has no finite penalty."""
    return isinstance(marginal, Balanced | Berg) or (
        isinstance(marginal, Range) and marginal.low > 0
    )
