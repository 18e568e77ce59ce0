"""The search over G with entropic plans: it passes over the local minima that sampling makes."""

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.iterate import Watch
from algorithms.transport.centred import Centred

# Entropic strengths, one after the other, as shares of the scale of the costs.
STRENGTHS = (0.05, 0.02)
# Steps on G for each strength, and scaling sweeps for each step.
STEPS, SWEEPS = 25, 10
# A start is at rest when a step changes G by less than this share of it.
AT_REST = 1e-3
# Entries of the batch of kernels that are held at once.
HELD = 1 << 21


def smoothed(
    level: Centred, starts: Float[Tensor, "S d e"], watch: Watch
) -> Float[Tensor, "S d e"]:
    """Move each start to rest under `G <- X^T Sinkhorn(cost(G), epsilon) Y`, all of them at once.

    Float32: these are starts, and their plans are never returned.
    """
    n, m = len(level.a), len(level.b)
    batch = max(1, HELD // (n * m))
    return torch.cat([_batch(level, some, watch) for some in starts.split(batch)])


def _batch(level: Centred, starts: Float[Tensor, "S d e"], watch: Watch) -> Float[Tensor, "S d e"]:
    single = torch.float32
    size = level.scale
    X, Y, a, b = (z.to(single) for z in (level.X, level.Y, level.a, level.b))
    G = starts.clone()
    g = torch.zeros(len(G), len(b), dtype=single, device=b.device)
    for strength in STRENGTHS:
        moving = torch.arange(len(G), device=G.device)
        for _ in range(STEPS):
            if not len(moving) or not watch(-1, 0.0):
                break
            C = level.cost(G[moving]).div_(strength * size).to(single)  # (S, n, m)
            new, g[moving] = _step(C, X, Y, a, b, g[moving] / strength)
            g[moving] *= strength
            new = new.to(G)
            change = (new - G[moving]).flatten(1).norm(dim=1)
            G[moving] = new
            moving = moving[change > AT_REST * new.flatten(1).norm(dim=1)]
    return G


def _step(
    C: Float[Tensor, "S n m"],
    X: Float[Tensor, "n d"],
    Y: Float[Tensor, "m e"],
    a: Float[Tensor, "n"],
    b: Float[Tensor, "m"],
    g: Float[Tensor, "S m"],
) -> tuple[Float[Tensor, "S d e"], Float[Tensor, "S m"]]:
    """Sweep from the potentials g (epsilon is one); return G of the plan and the new potentials.

    One sweep in the log domain bounds all scalings, the others scale the kernel.
    """
    f = -(b.log() + g)[:, None].sub(C).logsumexp(2)  # (S, n, m) -> (S, n)
    g = -(a.log() + f)[:, :, None].sub(C).logsumexp(1)
    K = C.neg_().add_(f[:, :, None] + a.log()[:, None]).add_((g + b.log())[:, None]).exp_()
    u = torch.ones_like(f)[:, :, None]
    for _ in range(SWEEPS):
        v = b[:, None] / (K.transpose(1, 2) @ u)  # (S, m, 1)
        u = a[:, None] / (K @ v)
    moved = (u * X).transpose(1, 2) @ K @ (v * Y)  # (S, d, m), (m, e) -> (S, d, e)
    return moved, g + v[:, :, 0].log()
