"""The search over G with entropic plans: it passes over the local minima that sampling makes."""

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.iterate import Watch
from algorithms.quadratic.centred import Centred

# Entropic strengths, one after the other, as shares of the scale of the costs.
STRENGTHS = (0.05, 0.02)
# Steps on G for each strength, and scaling sweeps for each step.
STEPS, SWEEPS = 25, 10
# A start is at rest when a step changes G by less than this share of it.
AT_REST = 1e-3
# Column sums below this share of their weights: float32 scalings would leave their range.
LOST = 1e-20


def smoothed(
    level: Centred, start: Float[Tensor, "d e"], strength: float, watch: Watch
) -> Float[Tensor, "d e"]:
    """Repeat `G <- X^T Sinkhorn(cost(G), epsilon) Y` until it is at rest.

    Float32, and few sweeps a step, warm from the last: this is a start, and its plans are never
    returned. One start at a time, since its kernel then stays in the cache of a processor.
    """
    unit = strength * level.scale
    X, Y, a, b = (z.float() for z in (level.X, level.Y, level.a, level.b))
    here, g = start, torch.zeros_like(b)
    # without spread there is nothing to search
    for _ in range(STEPS if unit > 0 else 0):
        if not watch(-1, 0.0):
            break
        moved, g = _step(level.cost(here).div_(unit).float(), X, Y, a, b, g)
        before, here = here, moved.to(start)
        if float((here - before).norm()) <= AT_REST * float(here.norm()):
            break
    return here


def _step(
    C: Float[Tensor, "n m"],
    X: Float[Tensor, "n d"],
    Y: Float[Tensor, "m e"],
    a: Float[Tensor, "n"],
    b: Float[Tensor, "m"],
    g: Float[Tensor, "m"],
) -> tuple[Float[Tensor, "d e"], Float[Tensor, "m"]]:
    """Sweep from the potentials g (epsilon is one); return G of the plan and the new potentials.

    A half sweep in the log domain, a whole one where the columns need it, then the kernel's.
    """
    L = C.neg_().add_(a.log()[:, None]).add_(g + b.log())
    L.sub_(L.amax(1, keepdim=True))
    K = L.exp()
    share = a / K.sum(1)  # what a row is scaled by; the kernel need not be
    t = share @ K
    if float((t / b).amin()) < LOST:
        L.add_(share.log()[:, None])
        back = b.log() - L.logsumexp(0)
        g = g + back
        torch.exp(L.add_(back), out=K)
        t = K.sum(0)
    u, v = torch.ones_like(a), b / t
    for _ in range(SWEEPS):
        u = a / (K @ v)
        v = b / (K.T @ u)
    moved = (u[:, None] * X).T @ (K @ (v[:, None] * Y))  # (n, d), (n, e) -> (d, e)
    return moved, g + v.log()
