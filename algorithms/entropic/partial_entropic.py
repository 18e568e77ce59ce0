"""The entropic answer to a question of partial transport, with what proves it."""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.entropic.capped import capped
from algorithms.entropic.implicit import Envelope
from algorithms.errors import IllPosed
from algorithms.iterate import Stop, Watch

# What sums of a plan, rounded to its type, may miss of the mass.
ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-5}


@dataclass(frozen=True)
class EntropicPart:
    """Plan, potentials and value in the type of the inputs; what proves them, in float64.

    Attributes:
        off: mass beyond a, mass beyond b, and the error of the total.
        beyond: the largest positive entry of f and g.
        gap: value less its dual bound.
    """

    plan: Float[Tensor, "n m"]
    f: Float[Tensor, "n"]
    g: Float[Tensor, "m"]
    lam: Float[Tensor, ""]
    value: Float[Tensor, ""]
    transport_cost: Float[Tensor, ""]
    off: tuple[float, float, float]
    beyond: float
    gap: float
    stop: Stop


def entropic_part(
    C: Float[Tensor, "n m"],
    a: Float[Tensor, "n"],
    b: Float[Tensor, "m"],
    mass: float,
    epsilon: float,
    *,
    tol: float,
    max_iter: int,
    watch: Watch,
) -> EntropicPart:
    """Solve in float64, round to the type of C, certify what is returned, attach gradients.

    Gradients of the value: dV/dC = P, dV/da = f + epsilon (m(b) - P 1 / a), and so for b.
    """
    if not math.isfinite(float(torch.where(C.isfinite(), C, 0.0).detach().abs().amax()) / epsilon):
        raise IllPosed("epsilon", f"is {epsilon:.3g}: costs divided by it overflow; enlarge it")
    cost, p, q = (t.detach().double().cpu() for t in (C, a, b))
    allowed = cost.isfinite() & (p > 0)[:, None] & (q > 0)
    for w, axis in ((p, 1), (q, 0)):
        reach = float(w[allowed.any(axis)].sum())
        if reach < mass * (1 - ROUNDING[C.dtype]):
            raise IllPosed("geometry", f"pairs that are not forbidden carry {reach:.9g} at most")
    found, P, stop = capped(cost, p, q, mass, epsilon, tol=tol, max_iter=max_iter, watch=watch)
    along_a = found.f + epsilon * (q.sum() - _ratio(P.sum(1), p))
    along_b = found.g + epsilon * (p.sum() - _ratio(P.sum(0), q))
    # log P as the potentials have it: no logarithm of what underflows
    exponent = found.f[:, None] + found.g + found.lam - cost
    paid = (P * torch.where(P > 0, cost, 0.0)).sum()
    relative = (P * torch.where(P > 0, exponent, 0.0)).sum()
    value = paid + relative - epsilon * (P.sum() - p.sum() * q.sum())
    plan, f, g = (t.to(C) for t in (P, found.f, found.g))
    lam = torch.tensor(found.lam, dtype=C.dtype, device=C.device)
    given, u, v, price = plan.double().cpu(), f.double().cpu(), g.double().cpu(), float(lam)
    mu, nu, total = given.sum(1), given.sum(0), given.sum()
    # the objective less the dual, both at P = a b exp((f + g + lam - C) / epsilon)
    gap = u @ (mu - p) + v @ (nu - q) + price * (total - mass)
    off = [float(t) for t in ((mu - p).clamp_min(0).sum(), (nu - q).clamp_min(0).sum())]
    off.append(float((total - mass).abs()))
    if stop.status == "converged" and max(off) > (tol + ROUNDING[C.dtype]) * mass:
        if not bool(C.isfinite().all()):
            raise IllPosed("geometry", "no plan of this mass avoids the pairs that are forbidden")
        stop = replace(stop, status="stagnated")
    finite = torch.where(C.isfinite(), C, 0.0)
    slopes = (t.to(C) for t in (along_a, along_b))
    return EntropicPart(
        plan,
        f,
        g,
        lam,
        Envelope.apply(value.to(C), finite, a, b, plan, *slopes),
        Priceless.apply(paid.to(C), finite, a, b),
        (off[0], off[1], off[2]),
        max(0.0, float(u.amax()), float(v.amax())),
        float(gap),
        stop,
    )


class Priceless(torch.autograd.Function):
    """Refuse the gradient of the cost alone: without this it would silently be taken as zero."""

    @staticmethod
    def forward(ctx: Any, cost: Tensor, *made_of: Tensor) -> Tensor:
        """Return the cost, in a graph that leads to what it was made of."""
        return cost.clone()

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        """Say what there is instead."""
        raise IllPosed(
            "cotangents.transport_cost",
            "has no gradient in the entropic form of partial transport; that of value exists",
        )


def _ratio(mu: Float[Tensor, "k"], w: Float[Tensor, "k"]) -> Float[Tensor, "k"]:
    """Divide, giving a point without mass the ratio of none."""
    return torch.where(w > 0, mu / w, 0.0)
