"""Costs within one space, for problems that compare spaces: a matrix, or squared distances."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.errors import IllPosed
from algorithms.geometry import factors, squared_distances


@dataclass(frozen=True)
class Relations:
    """A symmetric or asymmetric matrix `C[i, k]` of costs between the points of one space."""

    C: Float[Tensor, "n n"]

    @property
    def size(self) -> int:
        """Count the points."""
        return self.C.shape[0]

    @property
    def like(self) -> Tensor:
        """Return an input whose type and device stand for all."""
        return self.C

    def matrix(self) -> Float[Tensor, "n n"]:
        """Return the costs."""
        return self.C

    def apply(self, V: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        """Compute `C V`."""
        return self.C @ V

    def squared(self, w: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        """Compute `sum_k C_ik^2 w_k`."""
        return self.C.square() @ w


@dataclass(frozen=True)
class Cloud:
    """Squared distances between the points of one cloud, used through their factors only."""

    x: Float[Tensor, "n d"]

    @property
    def size(self) -> int:
        """Count the points."""
        return self.x.shape[0]

    @property
    def like(self) -> Tensor:
        """Return an input whose type and device stand for all."""
        return self.x

    def matrix(self) -> Float[Tensor, "n n"]:
        """Compute all the squared distances."""
        return squared_distances(self.x, self.x)

    def apply(self, V: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        """Compute `C V` in O(n d k)."""
        A, B = factors(self.x, self.x)
        return A @ (B.T @ V)  # (n, d + 2), (d + 2, k) -> (n, k)

    def squared(self, w: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        r"""Compute `sum_k |x_i - x_k|^4 w_k` from moments of w, in O(n d^2).

        With `s = |x|^2`, the square is
        `s_i^2 + 2 s_i s_k + s_k^2 + 4 <x_i, x_k>^2 - 4 (s_i + s_k) <x_i, x_k>`.
        """
        x = self.x - self.x.mean(0).detach()
        s = x.square().sum(1)  # (n, d) -> (n,)
        weighted = w[:, None] * x
        first, second, third = weighted.sum(0), weighted.T @ x, weighted.T @ s
        across = 4 * ((x @ second) * x).sum(1) - 4 * s * (x @ first) - 4 * x @ third
        return s.square() * w.sum() + 2 * s * (w @ s) + w @ s.square() + across


Space = Relations | Cloud


def space(
    points_field: str,
    x: Float[Tensor, "n d"] | None,
    costs_field: str,
    C: Float[Tensor, "n n"] | None,
) -> Space:
    """Make the space that a question describes, by points (squared distances) or by costs."""
    if (x is None) == (C is None):
        raise IllPosed(costs_field, f"give {points_field} or {costs_field}, one of the two")
    given = x if x is not None else C
    assert given is not None
    if not bool(given.isfinite().all()):
        field = points_field if x is not None else costs_field
        raise IllPosed(field, "holds NaN or infinity; every entry must be finite")
    return Cloud(x) if x is not None else Relations(given)


def symmetric(C: Float[Tensor, "n n"]) -> bool:
    """Decide whether a matrix equals its transpose, up to rounding."""
    room = 1e3 * torch.finfo(C.dtype).eps * float(C.detach().abs().amax())
    return float((C - C.T).detach().abs().amax()) <= room
