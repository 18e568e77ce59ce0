r"""Two clouds about their means, along their principal axes: all that GW of points depends on.

With `s_i = |x_i|^2`, `t_j = |y_j|^2` and `G(P) = X^T P Y`, every plan P of U(a, b), masses one, has

    GW(P) = K - 4 <s t^T, P> - 8 |G(P)|_F^2,    K = k(X, a) + k(Y, b) - 4 <a, s> <b, t>,
    k(X, a) = 2 <a, s^2> + 2 <a, s>^2 + 4 |X^T diag(a) X|_F^2.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.quadratic.centres import divided, gathered
from algorithms.quadratic.objective import Pair
from algorithms.spaces import Cloud
from algorithms.sparse import SparsePlan

# Axes whose variance is below this share of the largest are rounding.
NO_VARIANCE = 1e-24


@dataclass(frozen=True)
class Centred:
    """Weighted clouds of mass one and mean zero; float64, detached.

    Attributes:
        X: source, columns are principal axes, of falling variance.
        Y: target, likewise.
        a: masses of the source.
        b: masses of the target.
        M: linear cost; None counts as zero.
        bent: weight of GW(P).
        straight: weight of <M, P>.
    """

    X: Float[Tensor, "n d"]
    Y: Float[Tensor, "m e"]
    a: Float[Tensor, "n"]
    b: Float[Tensor, "m"]
    M: Float[Tensor, "n m"] | None
    bent: float
    straight: float

    @cached_property
    def norms(self) -> tuple[Float[Tensor, "n"], Float[Tensor, "m"]]:
        """Return the squared lengths of the points."""
        return self.X.square().sum(1), self.Y.square().sum(1)

    @cached_property
    def spreads(self) -> tuple[Float[Tensor, "d"], Float[Tensor, "e"]]:
        """Return the variance along each axis; a mean squared distance is twice their sum."""
        return self.a @ self.X.square(), self.b @ self.Y.square()

    @cached_property
    def constant(self) -> float:
        """Return K."""
        s, t = self.norms
        kept = 0.0
        for Z, z, w in ((self.X, s, self.a), (self.Y, t, self.b)):
            second = Z.T @ (w[:, None] * Z)
            kept += 2 * float(w @ z.square() + (w @ z).square() + 2 * second.square().sum())
        return kept - 4 * float((self.a @ s) * (self.b @ t))

    @cached_property
    def scale(self) -> float:
        """Return the size of the objective's gradient: squared mean costs, mean linear costs."""
        s = 2 * max(float(v.sum()) for v in self.spreads)
        linear = 0.0 if self.M is None else float(self.a @ self.M.abs() @ self.b)
        return self.bent * s * s + self.straight * linear

    def cost(self, G: Float[Tensor, "d e"]) -> Float[Tensor, "n m"]:
        """Compute the gradient of the objective at a plan of matrix G, but for constants.

        `bent (-4 s t^T - 16 X G Y^T) + straight M`.
        """
        s, t = self.norms
        left = self.X @ G  # (n, d), (d, e) -> (n, e)
        left = torch.cat([4 * s[:, None], 16 * left], 1)
        right = torch.cat([t[:, None], self.Y], 1)
        C = left @ (-self.bent * right.T)
        return C if self.M is None else C.add_(self.M, alpha=self.straight)

    def image(self, P: SparsePlan) -> Float[Tensor, "d e"]:
        """Compute `G = X^T P Y`."""
        return (P.mass[:, None] * self.X[P.rows]).T @ self.Y[P.cols]

    def value(self, P: SparsePlan, G: Float[Tensor, "d e"]) -> float:
        """Compute the objective of a plan of this G with exact marginals."""
        s, t = self.norms
        across = P.mass @ (s[P.rows] * t[P.cols])
        value = self.bent * (self.constant - 4 * float(across) - 8 * float(G.square().sum()))
        if self.M is not None:
            value += self.straight * float(P.mass @ self.M[P.rows, P.cols])
        return value

    def offsets(self, P: SparsePlan) -> tuple[Float[Tensor, "n"], Float[Tensor, "m"]]:
        """Compute r, c of `gradient_ij = cost(image(P))_ij + r_i + c_j`, P of mass one."""
        s, t = self.norms
        m1, m2 = self.a @ s, self.b @ t
        with_t = (P.mass * t[P.cols]) @ self.X[P.rows]  # (nnz,), (nnz, d) -> (d,)
        with_s = (P.mass * s[P.rows]) @ self.Y[P.cols]
        r = 2 * Cloud(self.X).squared(self.a) - 4 * m2 * s + 8 * self.X @ with_t
        c = 2 * Cloud(self.Y).squared(self.b) - 4 * m1 * t + 8 * self.Y @ with_s
        return self.bent * r, self.bent * (c - 4 * P.mass @ (s[P.rows] * t[P.cols]))

    def coarse(self, points: int, generator: torch.Generator) -> "Centred":
        """Replace each cloud by the weighted centres of at most so many cells."""
        x, y = (divided(Z, w, points, generator) for Z, w in ((self.X, self.a), (self.Y, self.b)))
        X, a = gathered(self.X, self.a, x)
        Y, b = gathered(self.Y, self.b, y)
        level = Centred(X, Y, a, b, None, self.bent, self.straight)
        if self.M is None:
            return level
        return replace(level, M=gathered(gathered(self.M, self.a, x)[0].T, self.b, y)[0].T)


def centred(pair: Pair) -> Centred:
    """Centre two clouds, turn them to their principal axes, drop axes that carry nothing.

    The objective of a plan is its mass times that of the plan of mass one.
    """
    assert isinstance(pair.X, Cloud)
    assert isinstance(pair.Y, Cloud)
    mass = pair.a.sum()
    a, b = pair.a / mass, pair.b / pair.b.sum()
    X, Y = _principal(pair.X.x, a), _principal(pair.Y.x, b)
    return Centred(X, Y, a, b, pair.M, pair.alpha * float(mass), 1 - pair.alpha)


def _principal(x: Float[Tensor, "n d"], w: Float[Tensor, "n"]) -> Float[Tensor, "n r"]:
    x = x - w @ x
    _, size, axes = torch.linalg.svd(w.sqrt()[:, None] * x, full_matrices=False)
    kept = max(1, int((size.square() > NO_VARIANCE * size[0].square()).sum()))
    return x @ axes[:kept].T
