"""Plane motions as 3 x 3 matrices: fitted to matched points, applied, composed, read."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

# Below this share of the larger singular value, the second is rounding: points on one line.
FLAT = 1e-12


def moved(T: Float[Tensor, "3 3"], z: Float[Tensor, "n 2"]) -> Float[Tensor, "n 2"]:
    """Apply a homogeneous matrix to points."""
    return z @ T[:2, :2].T + T[:2, 2]


def degrees(T: Float[Tensor, "3 3"]) -> float:
    """Read the angle of a motion, counter-clockwise; of a reflection, after (x, y) -> (x, -y)."""
    return math.degrees(math.atan2(float(T[1, 0]), float(T[0, 0])))


def reflects(T: Float[Tensor, "3 3"]) -> bool:
    """Tell whether a motion turns the plane over."""
    return bool(torch.linalg.det(T[:2, :2]) < 0)


def stretch(T: Float[Tensor, "3 3"]) -> float:
    """Read the factor by which a motion changes lengths."""
    return math.sqrt(abs(float(torch.linalg.det(T[:2, :2]))))


def shift(t: Float[Tensor, "2"]) -> Float[Tensor, "3 3"]:
    """Write a translation as a matrix."""
    T = torch.eye(3, dtype=t.dtype, device=t.device)
    T[:2, 2] = t
    return T


def matched_motion(
    x: Float[Tensor, "k 2"],
    y: Float[Tensor, "k 2"],
    mass: Float[Tensor, "k"],
    *,
    scale: float = 1.0,
    allow_reflection: bool = False,
) -> Float[Tensor, "3 3"]:
    r"""Minimise  sum_t mass_t |scale R x_t + t - y_t|^2  over rotations R and shifts t.

    Orthogonal Procrustes for matched points: the entries of a sparse plan, one row each.
    (Umeyama 1991, doi:10.1109/34.88573.) Points on one line, or at one place, leave R open; the
    rotation is taken.
    """
    total = mass.sum()
    centre, goal = mass @ x / total, mass @ y / total
    H = (y - goal).T @ (mass[:, None] * (x - centre))  # (2, k) (k, 2) -> (2, 2)
    U, S, Vh = torch.linalg.svd(H)
    sign = torch.ones_like(S)
    if not allow_reflection or bool(S[1] <= FLAT * S[0]):
        sign[1] = torch.sign(torch.linalg.det(U @ Vh))
    A = scale * (U @ (sign[:, None] * Vh))
    T = torch.eye(3, dtype=x.dtype, device=x.device)
    T[:2, :2], T[:2, 2] = A, goal - A @ centre
    return T
