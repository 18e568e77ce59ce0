"""Expression as a mixture of few programmes: non-negative factors in KL divergence."""

import torch
from jaxtyping import Float
from torch import Tensor

# Keeps logarithms of proportions finite where factors underflow.
TINY = 1e-300


def first_factors(
    B: Float[Tensor, "n g"], rank: int, generator: torch.Generator
) -> tuple[Float[Tensor, "n r"], Float[Tensor, "r g"]]:
    """Draw factors: equal shares with noise, and programmes that are mixtures of rows of B."""
    draw = lambda *shape: torch.rand(*shape, generator=generator, dtype=B.dtype) + 0.1
    W = draw(len(B), rank)
    mixing = draw(rank, len(B)).pow(8)  # uneven, so that programmes differ
    return normalised(W, mixing @ B / mixing.sum(1, keepdim=True))


def improved(
    B: Float[Tensor, "n g"],
    W: Float[Tensor, "n r"],
    H: Float[Tensor, "r g"],
    updates: int,
) -> tuple[Float[Tensor, "n r"], Float[Tensor, "r g"]]:
    r"""Lower  KL(B || W H)  by multiplicative updates, each of which never raises it.

    Rows of B sum to 1. Scaling the rows of W so that those of W H sum to 1 as well is the best
    row scaling in the generalised divergence, so it lowers it too. (Lee and Seung 2001.)
    """
    w, h = W, H
    for _ in range(updates):
        w = w * ((B / _floor(w @ h)) @ h.T) / _floor(h.sum(1))
        h = h * (w.T @ (B / _floor(w @ h))) / _floor(w.sum(0))[:, None]
    return normalised(w, h)


def normalised(
    W: Float[Tensor, "n r"], H: Float[Tensor, "r g"]
) -> tuple[Float[Tensor, "n r"], Float[Tensor, "r g"]]:
    """Let rows of H, and then rows of W, sum to 1; rows of W H then do."""
    sums = _floor(H.sum(1))
    shares = W * sums
    return shares / _floor(shares.sum(1))[:, None], H / sums[:, None]


def divergence(B: Float[Tensor, "n g"], W: Float[Tensor, "n r"], H: Float[Tensor, "r g"]) -> float:
    """Compute the mean of KL(B_i || (W H)_i) over the rows, all of which sum to 1."""
    logs = torch.log(_floor(B)) - torch.log(_floor(W @ H))
    return float((B * logs).sum() / len(B))


def log_proportions(W: Float[Tensor, "n r"], H: Float[Tensor, "r g"]) -> Float[Tensor, "n g"]:
    """Compute log W H."""
    return torch.log(_floor(W @ H))


def _floor(x: Tensor) -> Tensor:
    return x.clamp_min(TINY)
