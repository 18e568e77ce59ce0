"""The fused Gromov-Wasserstein objective of a plan, from its actual marginals; its gradient."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.geometry import factors
from algorithms.iterate import Status
from algorithms.spaces import Cloud, Relations, Space, symmetric
from algorithms.sparse import SparsePlan

Plan = Float[Tensor, "n m"] | SparsePlan


@dataclass(frozen=True)
class Pair:
    r"""Two weighted spaces to be matched; all tensors are float64, detached, on one device.

    With `L(P)_ij = sum_kl (Cx_ik - Cy_jl)^2 P_kl` the objective of a plan P >= 0, whatever its
    marginals, is `alpha <L(P), P> + (1 - alpha) <M, P>`. Where a matrix is asymmetric, L is taken
    as the mean of L for (Cx, Cy) and for (Cx^T, Cy^T): the same objective, and `<L(P), Q>` is
    symmetric in P and Q.

    Attributes:
        X: costs within the source; a `Cloud` is only used through its factors.
        Y: costs within the target.
        a: masses of the source.
        b: masses of the target.
        M: linear cost; None counts as zero.
        alpha: weight of the quadratic part; 1 is pure Gromov-Wasserstein.
    """

    X: Space
    Y: Space
    a: Float[Tensor, "n"]
    b: Float[Tensor, "m"]
    M: Float[Tensor, "n m"] | None = None
    alpha: float = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        """Count the source and the target points."""
        return self.X.size, self.Y.size

    @cached_property
    def twin(self) -> tuple[Space, Space] | None:
        """Return the transposed spaces where that makes a difference."""
        if all(isinstance(Z, Cloud) or symmetric(Z.C) for Z in (self.X, self.Y)):
            return None
        return _transposed(self.X), _transposed(self.Y)

    @cached_property
    def scale(self) -> float:
        """Measure the costs by one number: the larger of both mean costs, weighted."""
        means = []
        for Z, w in ((self.X, self.a), (self.Y, self.b)):
            w = w / w.sum()
            means.append(float(w @ Z.apply(w[:, None])[:, 0]))
        return max(*means)

    def cross(self, P: Plan) -> Float[Tensor, "n m"]:
        """Compute `Cx P Cy^T`, for asymmetric costs the mean of it and `Cx^T P Cy`.

        O(n m d) where both sides are clouds, O(d m^2) more where one is not, else O(n m (n + m)).
        """
        product = _cross(self.X, self.Y, P)
        return product if self.twin is None else (product + _cross(*self.twin, P)) / 2

    def squares(
        self, mu: Float[Tensor, "n"], nu: Float[Tensor, "m"]
    ) -> tuple[Float[Tensor, "n"], Float[Tensor, "m"]]:
        """Compute `Cx^2 mu` and `Cy^2 nu`, squares taken entry by entry."""
        u, v = self.X.squared(mu), self.Y.squared(nu)
        if self.twin is None:
            return u, v
        return (u + self.twin[0].squared(mu)) / 2, (v + self.twin[1].squared(nu)) / 2

    def local_cost(self, P: Plan) -> Float[Tensor, "n m"]:
        """Compute L(P) from the marginals that P has; linear in P, which may have any sign."""
        u, v = self.squares(*marginals(P, *self.shape))
        return self.cross(P).mul_(-2).add_(u[:, None]).add_(v)

    def quadratic(self, P: Plan) -> Float[Tensor, ""]:
        """Compute `<L(P), P>`; of a sparse plan without an n x m matrix where a side is a cloud."""
        mu, nu = marginals(P, *self.shape)
        u, v = self.X.squared(mu), self.Y.squared(nu)
        return u @ mu + v @ nu - 2 * _crossed_with_itself(self.X, self.Y, P)

    def linear(self, P: Plan) -> Float[Tensor, ""]:
        """Compute `<M, P>`."""
        if self.M is None:
            return self.a.new_zeros(())
        if isinstance(P, SparsePlan):
            return P.mass @ self.M[P.rows, P.cols]
        return (self.M * P).sum()

    def objective(self, P: Plan) -> Float[Tensor, ""]:
        """Compute `alpha <L(P), P> + (1 - alpha) <M, P>`."""
        quadratic = self.quadratic(P) if self.alpha > 0 else 0.0
        return self.alpha * quadratic + (1 - self.alpha) * self.linear(P)

    def gradient(self, P: Plan) -> Float[Tensor, "n m"]:
        """Compute `2 alpha L(P) + (1 - alpha) M`."""
        slope = self.local_cost(P).mul_(2 * self.alpha)
        return slope if self.M is None else slope.add_(self.M, alpha=1 - self.alpha)


@dataclass(frozen=True)
class Found:
    """What one start led to.

    Attributes:
        plan: feasible, rounded where the solver was not.
        value: `Pair.objective` of the plan.
        start: the name of the start, `product`, `random 3` and so on.
        steps: steps that the solver took.
        status: why it stopped.
        f: source potentials that solve the linear problem with cost `Pair.gradient(plan)`; None
            where the solver has none.
        g: target potentials, likewise.
        residual: the quantity that the solver compared with its tolerance, as last read.
    """

    plan: Plan
    value: float
    start: str
    steps: int
    status: Status
    f: Float[Tensor, "n"] | None = None
    g: Float[Tensor, "m"] | None = None
    residual: float = 0.0


def marginals(P: Plan, n: int, m: int) -> tuple[Float[Tensor, "n"], Float[Tensor, "m"]]:
    """Sum the rows and the columns of a plan."""
    if isinstance(P, SparsePlan):
        mu, nu = P.mass.new_zeros(n), P.mass.new_zeros(m)
        return mu.index_add(0, P.rows, P.mass), nu.index_add(0, P.cols, P.mass)
    return P.sum(1), P.sum(0)


def forward(P: Plan, V: Float[Tensor, "m k"], n: int) -> Float[Tensor, "n k"]:
    """Compute `P V` of a plan with n rows, in O(nnz k) where it is sparse."""
    return _matrix(P, n, len(V)) @ V


def backward(P: Plan, U: Float[Tensor, "n k"], m: int) -> Float[Tensor, "m k"]:
    """Compute `P^T U` of a plan with m columns, likewise."""
    return _matrix(P, len(U), m).T @ U


def _matrix(P: Plan, n: int, m: int) -> Tensor:
    if isinstance(P, Tensor):
        return P
    where = torch.stack([P.rows, P.cols])
    return torch.sparse_coo_tensor(where, P.mass, (n, m), check_invariants=True)


def _transposed(Z: Space) -> Space:
    return Relations(Z.C.T) if isinstance(Z, Relations) else Z


def _cross(X: Space, Y: Space, P: Plan) -> Float[Tensor, "n m"]:
    """Compute `Cx P Cy^T`, through the thinner side first."""
    if isinstance(X, Cloud):
        left, right = factors(X.x, X.x)
        return left @ Y.apply(backward(P, right, Y.size)).T  # (n, r), (m, r) -> (n, m)
    if isinstance(Y, Cloud):
        left, right = factors(Y.x, Y.x)
        return X.apply(forward(P, right, X.size)) @ left.T
    return backward(P, X.C.T, Y.size).T @ Y.C.T


def _crossed_with_itself(X: Space, Y: Space, P: Plan) -> Float[Tensor, ""]:
    """Compute `<Cx P Cy^T, P>`."""
    if isinstance(Y, Cloud):
        left, right = factors(Y.x, Y.x)
        return (X.apply(forward(P, right, X.size)) * forward(P, left, X.size)).sum()
    if isinstance(X, Cloud):
        left, right = factors(X.x, X.x)
        return (Y.apply(backward(P, right, Y.size)) * backward(P, left, Y.size)).sum()
    return (backward(P, X.C.T, Y.size).T * forward(P, Y.C, X.size)).sum()
