"""The rigid motion that a plan asks for."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.sparse import SparsePlan

# Below this share of the larger singular value, the second is rounding: spots on one line.
FLAT = 1e-12


@dataclass(frozen=True)
class Motion:
    """z -> R (z - source_mean) + target_mean, and how well the plan determines R.

    Attributes:
        R: rotation, or reflection where that was allowed and better.
        source_mean: where the source is turned about.
        target_mean: where that point goes.
        singular_ratio: S2 / S1 of the cross-covariance. Near 1 the matched tissue is as long as
            wide, and its outline does not tell one axis from the other; near 0 it is a line.
        strength: <R, H> = S1 +- S2 over the root of both variances, in [0, 1]: the angle's
            certificate. 1 is an exact rigid match; at 0 every angle fits alike.
        mirrored: the unconstrained best fit is a reflection.
    """

    R: Float[Tensor, "2 2"]
    source_mean: Float[Tensor, "2"]
    target_mean: Float[Tensor, "2"]
    singular_ratio: float
    strength: float
    mirrored: bool

    @property
    def degrees(self) -> float:
        """Angle of the rotation, or of the rotation that follows (x, y) -> (x, -y)."""
        return math.degrees(math.atan2(float(self.R[1, 0]), float(self.R[0, 0])))

    def __call__(self, z: Float[Tensor, "k 2"]) -> Float[Tensor, "k 2"]:
        """Move points."""
        return (z - self.source_mean) @ self.R.T + self.target_mean


def procrustes(
    P: Float[Tensor, "n m"],
    z: Float[Tensor, "n 2"],
    y: Float[Tensor, "m 2"],
    *,
    allow_reflection: bool = False,
) -> Motion:
    r"""Minimise  sum_ij P_ij |R z_i + t - y_j|^2  over rotations R and shifts t.

    Orthogonal Procrustes: with centred points and H = y^T P^T z = U S V^T, R = U diag(1, d) V^T
    where d = det(U V^T), or 1 where reflections are allowed.

    Shapes: P (n, m) of any positive mass, z (n, 2), y (m, 2).

    Returns:
        A `Motion`.

    Notes:
        O(n m) time. Spots on one line leave the sense of d open: the rotation is taken, and
        `mirrored` is False. The map is differentiable where S1 > S2 > 0; no caller needs that.

    References:
        Schonemann 1966, doi:10.1007/BF02289451; Umeyama 1991, doi:10.1109/34.88573 (the sign d).
    """
    p, q = P.sum(1), P.sum(0)
    source_mean, target_mean = p @ z / p.sum(), q @ y / q.sum()
    H = (y - target_mean).T @ (P.T @ (z - source_mean))  # (2, m) (m, n) (n, 2) -> (2, 2)
    spread = (p @ (z - source_mean).square()).sum() * (q @ (y - target_mean).square()).sum()
    return _turned(H, float(spread), source_mean, target_mean, allow_reflection)


def procrustes_of_entries(
    plan: SparsePlan,
    z: Float[Tensor, "n 2"],
    y: Float[Tensor, "m 2"],
    *,
    allow_reflection: bool = False,
) -> Motion:
    """Fit the same motion to a plan given by its entries, in time linear in their number."""
    x, goal, mass = z[plan.rows], y[plan.cols], plan.mass / plan.mass.sum()
    source_mean, target_mean = mass @ x, mass @ goal
    x, goal = x - source_mean, goal - target_mean
    H = goal.T @ (mass[:, None] * x)  # (2, nnz) (nnz, 2) -> (2, 2)
    spread = (mass @ x.square()).sum() * (mass @ goal.square()).sum()
    return _turned(H, float(spread), source_mean, target_mean, allow_reflection)


def _turned(
    H: Float[Tensor, "2 2"],
    spread: float,
    source_mean: Float[Tensor, "2"],
    target_mean: Float[Tensor, "2"],
    allow_reflection: bool,
) -> Motion:
    """Read the motion off the cross-covariance; `spread` is the product of both variances."""
    U, S, Vh = torch.linalg.svd(H)
    flat = bool(S[1] <= FLAT * S[0])
    d = torch.sign(torch.linalg.det(U @ Vh))
    mirrored = bool(d < 0) and not flat
    flip = torch.ones_like(S)
    if not (allow_reflection and mirrored):
        flip[1] = d
    ratio = float(S[1] / S[0]) if S[0] > 0 else 0.0
    strength = float(S[0] + flip[1] * S[1]) / math.sqrt(spread) if spread > 0 else 0.0
    R = U @ (flip[:, None] * Vh)
    return Motion(R, source_mean, target_mean, ratio, strength, mirrored)


def motion_of_pairs(z: Float[Tensor, "k 2"], y: Float[Tensor, "k 2"]) -> Motion:
    """Fit the rotation that carries each point onto its partner."""
    return procrustes(torch.eye(len(z), dtype=z.dtype, device=z.device), z, y)


def rotation(degrees: float, like: Tensor) -> Float[Tensor, "2 2"]:
    """Write the rotation by an angle, counter-clockwise, as a matrix."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return torch.tensor([[c, -s], [s, c]], dtype=like.dtype, device=like.device)
