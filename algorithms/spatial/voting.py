"""Motions that expression alone votes for: a source of starts, never the answer."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.ndimage import gaussian_filter
from torch import Tensor

from algorithms.spatial.procrustes import rotation

# Turns that are tried, bins of the histogram and its blur in pitches.
TURNS, BIN, BLUR = 36, 1.0, 1.0
# Bins where few pairs fall are noisy: this share of the mean count is added to theirs.
FLOOR = 0.05


@dataclass(frozen=True)
class Vote:
    """A motion z -> R z + t and how far its bin stands out, in standard deviations."""

    R: Float[Tensor, "2 2"]
    t: Float[Tensor, "2"]
    score: float


def voted(
    M: Float[Tensor, "n m"],
    z: Float[Tensor, "n 2"],
    y: Float[Tensor, "m 2"],
    *,
    mirrored: bool = False,
    axes: Float[Tensor, "2 2"] | None = None,
) -> list[Vote]:
    r"""Vote for motions: each pair (i, j) gives its likeness to the shift y_j - R z_i.

    The likeness is -M doubly centred; votes are counted in bins of one pitch, for 36 turns counted
    from `axes`, and divided by the root of what noise of the same size would give.

    Shapes: M (n, m), z (n, 2), y (m, 2), coordinates in pitches.

    Returns:
        One `Vote` a turn, the highest first. O(36 n m) time.
    """
    S = -(M - M.mean(1, keepdim=True) - M.mean(0) + M.mean())
    flip = z.new_tensor([1.0, -1.0 if mirrored else 1.0])
    start = torch.diag(flip) if axes is None else axes
    weights = S.ravel().numpy()
    votes = [_peak(weights, z, y, rotation(k * 360 / TURNS, z) @ start) for k in range(TURNS)]
    return sorted(votes, key=lambda vote: -vote.score)


def _peak(weights: np.ndarray, z: Tensor, y: Tensor, R: Tensor) -> Vote:
    moved = z @ R.T
    low = y.amin(0) - moved.amax(0) - 4 * BIN
    high = y.amax(0) - moved.amin(0) + 4 * BIN
    shape = [int(k) for k in ((high - low) / BIN).ceil()]
    shift = ((y[None] - moved[:, None] - low) / BIN).long()  # (n, m, 2)
    where = (shift[..., 0] * shape[1] + shift[..., 1]).ravel().numpy()
    cells = shape[0] * shape[1]
    count = np.bincount(where, weights, minlength=cells).reshape(shape)
    noise = np.bincount(where, weights**2, minlength=cells).reshape(shape)
    signal, noise = (gaussian_filter(h, BLUR / BIN, mode="constant") for h in (count, noise))
    score = signal / np.sqrt(noise + FLOOR * noise.mean())
    best = np.unravel_index(int(score.argmax()), score.shape)
    t = low + BIN * (torch.tensor([float(k) for k in best], dtype=z.dtype) + 0.5)
    spread = float(score.std()) or 1.0
    return Vote(R, t, float(score[best]) / spread)
