r"""One matching problem: `min_{M, P} -alpha <M, G(P)> + <L, P> + R(M) + eps KL(P | a b^T)`.

`G(P) = Y^T P^T X`. All numbers are float64 and in units in which both clouds have size about one.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.structured.regularizer import Penalty


@dataclass(frozen=True)
class Problem:
    """Clouds with positive weights of mass one, what else a pair costs, and the penalty.

    Attributes:
        fixed: two factors of the cost L that does not depend on the map, `L = left @ right.T`.
        rho_a: price of marginals that differ from a; None is balanced. rho_b likewise.
    """

    X: Float[Tensor, "n d"]
    Y: Float[Tensor, "m e"]
    a: Float[Tensor, "n"]
    b: Float[Tensor, "m"]
    alpha: float
    fixed: tuple[Float[Tensor, "n k"], Float[Tensor, "m k"]]
    penalty: Penalty
    rho_a: float | None = None
    rho_b: float | None = None

    @property
    def balanced(self) -> bool:
        """Tell whether both marginals are given."""
        return self.rho_a is None and self.rho_b is None

    def cost(self, M: Float[Tensor, "*batch e d"]) -> Float[Tensor, "*batch n m"]:
        """Compute the cost of every pair under a map."""
        left, right = self.fixed
        return -self.alpha * (self.X @ M.mT) @ self.Y.T + left @ right.T

    def factors(self, M: Float[Tensor, "e d"]) -> tuple[Tensor, Tensor]:
        """Return two thin factors whose product is the cost: projected to the smaller side."""
        left, right = self.fixed
        if self.Y.shape[1] <= self.X.shape[1]:
            pair = -self.alpha * self.X @ M.T, self.Y
        else:
            pair = -self.alpha * self.X, self.Y @ M
        return torch.cat([pair[0], left], 1), torch.cat([pair[1], right], 1)

    def best_map(self, G: Float[Tensor, "*batch e d"]) -> Float[Tensor, "*batch e d"]:
        """Return the best map for a cross moment."""
        return self.penalty.best_map(self.alpha * G)

    def moment(self, P: Float[Tensor, "*batch n m"]) -> Float[Tensor, "*batch e d"]:
        """Compute `G(P)`."""
        return (self.X.T @ (P @ self.Y)).mT

    def fixed_cost(self, P: Float[Tensor, "*batch n m"]) -> Float[Tensor, "*batch"]:
        """Compute `<L, P>`."""
        left, right = self.fixed
        return ((left.T @ P) * right.T).sum((-2, -1))

    def spread(self) -> float:
        """Return the largest variances of both clouds, multiplied."""
        top = [float(torch.linalg.matrix_norm((Z * w[:, None]).T @ Z, 2))
               for Z, w in ((self.X, self.a), (self.Y, self.b))]  # fmt: skip
        return top[0] * top[1]

    def threshold(self) -> float:
        r"""Return eps*, above which the map 0 is stable: `alpha^2 lmax(Sx) lmax(Sy) / q`.

        Maps in a ball do not vanish; for them it is the size of the cost, radius times the root.
        """
        if self.penalty.bounded:
            return self.alpha * self.penalty.radius * math.sqrt(self.spread())
        return self.alpha**2 * self.spread() / self.penalty.q

    def kept(self, rows: Tensor, columns: Tensor) -> "Problem":
        """Keep some points of either side."""
        left, right = self.fixed
        a, b = self.a[rows], self.b[columns]
        return replace(
            self,
            X=self.X[rows],
            Y=self.Y[columns],
            a=a / a.sum(),
            b=b / b.sum(),
            fixed=(left[rows], right[columns]),
        )

    def weaker(self, share: float) -> "Problem":
        """Take a share of the strength lam."""
        return replace(self, penalty=self.penalty.weaker(share))


def divergence(p: Float[Tensor, "*batch n"], w: Float[Tensor, "n"]) -> Float[Tensor, "*batch"]:
    """Compute `KL(p | w) = sum p log(p/w) - p + w`."""
    return (torch.xlogy(p, p / w) - p + w).sum(-1)


def blocks(count: int, entries: int, room: int) -> Iterator[slice]:
    """Cut a batch into parts of some `room` entries."""
    size = max(1, room // max(entries, 1))
    return (slice(k, min(k + size, count)) for k in range(0, count, size))
