r"""What is known of the map: convex penalties R, their best maps and their conjugates.

`R(M) = (q/2) |M - M0|^2 + lam r(M)` for the penalties that pull a map towards M0, or `R = 0` on a
set of maps. Every function takes maps (..., e, d), a whole batch at once.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.errors import IllPosed

Name = Literal[
    "frobenius", "l1", "l12_source", "l12_target", "nuclear", "rank", "stiefel", "fro_ball",
    "nuclear_ball", "spectral_ball",
]  # fmt: skip
SPARSE = frozenset({"l1", "l12_source", "l12_target", "nuclear"})
BOUNDED = frozenset({"stiefel", "fro_ball", "nuclear_ball", "spectral_ball"})
# Entries may be forbidden or kept positive where the best map is then still known in closed form.
ENTRYWISE = frozenset({"frobenius", "l1", "l12_source", "l12_target", "fro_ball"})


@dataclass(frozen=True)
class Regularizer:
    """A penalty by name, as asked: see `schemas.structured.regularizer`."""

    name: Name = "frobenius"
    lam: float | None = None
    lam_relative: float | None = None
    rank: int | None = None
    radius: float | None = None
    nonnegative: bool = False
    mask: Float[Tensor, "e d"] | None = None
    prior: Float[Tensor, "e d"] | None = None

    @property
    def bounded(self) -> bool:
        """Tell whether the maps are bounded, and R is 0 there."""
        return self.name in BOUNDED


@dataclass(frozen=True)
class Penalty:
    """A regularizer in numbers.

    Attributes:
        q: weight of the squared norm; 1 is the unit scaling, 1/4 and 1/16 are those whose conjugate
            is that of Gromov-Wasserstein.
        lam: strength of what comes beside it.
        rank: largest rank.
        radius: of the ball.
        allowed: 1 where an entry may differ from zero.
        prior: M0.
    """

    name: Name
    q: float
    lam: float
    rank: int
    radius: float
    nonnegative: bool
    allowed: Float[Tensor, "e d"]
    prior: Float[Tensor, "e d"]

    @property
    def bounded(self) -> bool:
        """Tell whether the maps are bounded."""
        return self.name in BOUNDED

    def weaker(self, share: float) -> "Penalty":
        """Take a share of the strength: 0 leaves the squared norm alone."""
        return replace(self, lam=self.lam * share)

    def best_map(self, G: Float[Tensor, "*batch e d"]) -> Float[Tensor, "*batch e d"]:
        r"""Return `argmax_M <M, G> - R(M)`."""
        if self.bounded:
            return self._on_ball(self._admissible(G))
        return self._shrunk(self._admissible(G + self.q * self.prior)) / self.q

    def value(self, M: Float[Tensor, "*batch e d"]) -> Float[Tensor, "*batch"]:
        """Evaluate R at an admissible map."""
        if self.bounded:
            return M.new_zeros(M.shape[:-2])
        square = (M - self.prior).square().sum((-2, -1))
        return self.q / 2 * square + self.lam * self.gauge(M)

    def gauge(self, M: Float[Tensor, "*batch e d"]) -> Float[Tensor, "*batch"]:
        """Evaluate r, the norm that makes maps simple; 0 for penalties without one."""
        match self.name:
            case "l1":
                return M.abs().sum((-2, -1))
            case "l12_source":
                return torch.linalg.vector_norm(M, dim=-2).sum(-1)
            case "l12_target":
                return torch.linalg.vector_norm(M, dim=-1).sum(-1)
            case "nuclear":
                return torch.linalg.svdvals(M).sum(-1)
            case _:
                return M.new_zeros(M.shape[:-2])

    def conjugate(self, G: Float[Tensor, "*batch e d"]) -> Float[Tensor, "*batch"]:
        r"""Evaluate `R*(G) = max_M <M, G> - R(M)`."""
        M = self.best_map(G)
        return (M * G).sum((-2, -1)) - self.value(M)

    def annihilating(self, G: Float[Tensor, "e d"]) -> float:
        """Find the least lam for which the best map of G is 0."""
        seen = self._admissible(G + self.q * self.prior)
        match self.name:
            case "l1":
                return float(seen.abs().amax())
            case "l12_source":
                return float(torch.linalg.vector_norm(seen, dim=-2).amax())
            case "l12_target":
                return float(torch.linalg.vector_norm(seen, dim=-1).amax())
            case "nuclear":
                return float(torch.linalg.matrix_norm(seen, 2))
            case _:
                return math.inf

    def _admissible(self, G: Tensor) -> Tensor:
        """Drop what a mask forbids, and what is negative where only positive entries are allowed.

        Exact for penalties that depend on the sizes of entries alone and grow with each.
        """
        seen = G * self.allowed
        return seen.clamp_min(0) if self.nonnegative else seen

    def _shrunk(self, G: Tensor) -> Tensor:
        match self.name:
            case "l1":
                return G.sign() * (G.abs() - self.lam).clamp_min(0)
            case "l12_source":
                return G * _kept(torch.linalg.vector_norm(G, dim=-2, keepdim=True), self.lam)
            case "l12_target":
                return G * _kept(torch.linalg.vector_norm(G, dim=-1, keepdim=True), self.lam)
            case "nuclear":
                u, s, v = torch.linalg.svd(G, full_matrices=False)
                return (u * (s - self.lam).clamp_min(0)[..., None, :]) @ v
            case "rank":
                u, s, v = torch.linalg.svd(G, full_matrices=False)
                s = torch.where(torch.arange(s.shape[-1], device=s.device) < self.rank, s, 0.0)
                return (u * s[..., None, :]) @ v
            case _:
                return G

    def _on_ball(self, G: Tensor) -> Tensor:
        if self.name == "fro_ball":
            size = torch.linalg.matrix_norm(G, keepdim=True)
            return self.radius * G / torch.where(size > 0, size, 1.0)
        u, _, v = torch.linalg.svd(G, full_matrices=False)
        if self.name == "nuclear_ball":
            return self.radius * u[..., :, :1] @ v[..., :1, :]
        return self.radius * u @ v


def _kept(size: Tensor, lam: float) -> Tensor:
    """Compute the factor `(1 - lam/size)_+` of a group."""
    return (1 - lam / torch.where(size > 0, size, 1.0)).clamp_min(0) * (size > 0)


def penalty(asked: Regularizer, q: float, unit: float, like: Float[Tensor, "e d"]) -> Penalty:
    """Put a regularizer into numbers, for clouds whose cross moments were divided by `unit`."""
    _check(asked, q, like.shape[-2:])
    ones, zeros = torch.ones_like(like), torch.zeros_like(like)
    prior = zeros if asked.prior is None else asked.prior.to(like) / unit
    if not bool(prior.isfinite().all()):
        raise IllPosed("regularizer.prior", "is not finite, or too large beside the points")
    return Penalty(
        asked.name,
        q,
        0.0 if asked.lam is None else asked.lam / unit,
        asked.rank or min(like.shape[-2:]),
        1.0 if asked.radius is None else asked.radius,
        asked.nonnegative,
        ones if asked.mask is None else (asked.mask.to(like) != 0).to(like),
        prior,
    )


def _check(asked: Regularizer, q: float, shape: tuple[int, ...]) -> None:
    name = asked.name
    if (asked.lam is not None) + (asked.lam_relative is not None) != (name in SPARSE):
        raise IllPosed(
            "regularizer.lam", f"{name} takes "
            + ("exactly one of lam and lam_relative" if name in SPARSE else "no strength"),
        )  # fmt: skip
    if (asked.rank is not None) != (name == "rank"):
        raise IllPosed("regularizer.rank", "goes with the name rank, and rank with it")
    if asked.rank is not None and not 1 <= asked.rank <= min(shape):
        raise IllPosed("regularizer.rank", f"is {asked.rank}; a map has at most {min(shape)}")
    if asked.radius is not None and (name not in BOUNDED or name == "stiefel"):
        raise IllPosed("regularizer.radius", f"belongs to a ball, not to {name}")
    if (asked.mask is not None or asked.nonnegative) and name not in ENTRYWISE:
        field = "mask" if asked.mask is not None else "nonnegative"
        raise IllPosed(f"regularizer.{field}", f"has no closed form together with {name}")
    if asked.prior is not None and name in BOUNDED:
        raise IllPosed("regularizer.prior", f"needs a squared norm, and {name} has none")
    if q != 1 and name in BOUNDED:
        raise IllPosed("scaling", f"weights a squared norm, and {name} has none; ask for unit")
