"""The best common shift of two potentials: the direction in which plain sweeps crawl."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.entropic.aprox import ratios, stiffness
from algorithms.marginals import KL, TV, Balanced, Berg, Free, Marginal

# Looks at the balance of masses for one shift, and the share of it that is not worth another.
LOOKS, ENOUGH = 60, 1e-3
# Berg's conjugate is infinite at the end of its domain: a shift goes at most so far towards it.
WITHIN = 1 - 1e-6


def shift(
    marginal_a: Marginal,
    marginal_b: Marginal,
    a: Float[Tensor, "n"],
    b: Float[Tensor, "m"],
    f: Float[Tensor, "n"],
    g: Float[Tensor, "m"],
) -> Tensor | None:
    r"""Return the t that maximises the dual at (f + t, g - t); None where none is needed.

    The entropic term does not see t. For KL on both sides
    `t = rho_a rho_b / (rho_a + rho_b) (log <a, exp(-f/rho_a)> - log <b, exp(-g/rho_b)>)`
    (Sejourne, Vialard, Peyre 2022, arXiv:2201.00730); a balanced side is the limit of large rho.
    Else `<a, r_a(f + t)> - <b, r_b(g - t)>`, r the optimal ratios, falls in t and is brought to
    zero by Newton's method within a bracket. Two balanced sides do not see t either, and
    potentials of a free one do not move.
    """
    if isinstance(marginal_a, Free) or isinstance(marginal_b, Free):
        return None
    match marginal_a, marginal_b:
        case Balanced(), Balanced():
            return None
        case ((KL() | Balanced()), (KL() | Balanced())):
            flat_a, flat_b = (
                1 / m.rho if isinstance(m, KL) else 0.0 for m in (marginal_a, marginal_b)
            )
            excess = (a.log() - f * flat_a).logsumexp(0) - (b.log() - g * flat_b).logsumexp(0)
            return excess / (flat_a + flat_b)
        case _:
            return _bracketed(marginal_a, marginal_b, a, b, f, g)


def _bracketed(
    marginal_a: Marginal,
    marginal_b: Marginal,
    a: Float[Tensor, "n"],
    b: Float[Tensor, "m"],
    f: Float[Tensor, "n"],
    g: Float[Tensor, "m"],
) -> Tensor:
    """Shift until the masses that both sides ask for agree, nearly; sweeps do the rest."""

    def excess(t: float) -> tuple[float, float]:
        (low_a, high_a), (low_b, high_b) = ratios(marginal_a, f + t), ratios(marginal_b, g - t)
        above = (a * low_a).sum() - (b * high_b).sum()
        below = (a * high_a).sum() - (b * low_b).sum()
        slope = (a * stiffness(marginal_a, f + t)).sum() + (b * stiffness(marginal_b, g - t)).sum()
        found = torch.stack([above.clamp_min(0) + below.clamp_max(0), slope]).tolist()
        return found[0], found[1]

    t, low, high = 0.0, -math.inf, math.inf
    wide = max(float(f.abs().amax()), float(g.abs().amax()), torch.finfo(f.dtype).tiny) / LOOKS
    least, most = -_room(marginal_a, f), _room(marginal_b, g)
    for _ in range(LOOKS):
        more, slope = excess(t)
        if more == 0 or not math.isfinite(more):
            break
        low, high = (t, high) if more > 0 else (low, t)
        ahead = math.copysign(wide, more)
        step = more / slope if slope > 0 else ahead
        if not low < t + step < high:  # halve the bracket, or look further where there is none
            step = (low + high) / 2 - t if math.isfinite(high - low) else ahead
        step = min(max(t + step, least), most) - t
        wide *= 2
        t += step
        if abs(step) <= ENOUGH * abs(t):
            break
    return f.new_tensor(t)


def _room(marginal: Marginal, f: Float[Tensor, "n"]) -> float:
    """Tell how far potentials may sink before their conjugate is infinite."""
    if isinstance(marginal, TV):
        return max(0.0, float(f.amin()) + marginal.rho)
    if isinstance(marginal, Berg):
        return WITHIN * max(0.0, float(f.amin()) + marginal.rho)
    return math.inf
