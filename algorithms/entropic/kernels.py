"""Gibbs kernels `exp(-C/epsilon)` applied to measures that are given by their logarithms.

K measures at once; N points of the support, M of the inputs.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

# A product with the kernel whose entries are all above this (the largest scaling is one) has lost
# nothing to underflow but terms below 1e-300; with a smaller one, sums are taken by logarithms.
FAINT = 1e-200
TINY = 1e-300
# Entries in one block of a sum taken by logarithms.
BLOCK = 1 << 20


@dataclass(frozen=True)
class Dense:
    """A kernel from a cost matrix."""

    C: Float[Tensor, "N M"]
    epsilon: float

    @property
    def support(self) -> int:
        """Count the points of the support."""
        return self.C.shape[0]

    @cached_property
    def exponents(self) -> Float[Tensor, "N M"]:
        """Divide the cost by -epsilon, once."""
        return self.C / -self.epsilon

    @cached_property
    def kernel(self) -> Float[Tensor, "N M"]:
        """Take the exponential, its largest entry one."""
        return _exponential(self.exponents - self.exponents.amax())

    def forward(self, v: Float[Tensor, "K M"]) -> Float[Tensor, "K N"]:
        """Compute `log(K exp(v))`."""
        top = v.amax(1, keepdim=True)
        product = (v - top).exp() @ self.kernel.T
        if bool(product.amin() < FAINT):
            return _log_sums(self.exponents, v)
        return product.log_() + top + self.exponents.amax()

    def backward(self, u: Float[Tensor, "K N"]) -> Float[Tensor, "K M"]:
        """Compute `log(K^T exp(u))`."""
        top = u.amax(1, keepdim=True)
        product = (u - top).exp() @ self.kernel
        if bool(product.amin() < FAINT):
            return _log_sums(self.exponents.T, u)
        return product.log_() + top + self.exponents.amax()

    def plan(self, u: Float[Tensor, "N"], v: Float[Tensor, "M"]) -> Float[Tensor, "N M"]:
        """Write a plan out."""
        return (self.exponents + u[:, None]).add_(v).exp_()

    def spent(self, u: Float[Tensor, "K N"], v: Float[Tensor, "K M"]) -> Float[Tensor, "K"]:
        """Compute `<C, P>` of each plan."""
        pairs = zip(u, v, strict=True)
        return torch.stack([(self.plan(one, other) * self.C).sum() for one, other in pairs])


@dataclass(frozen=True)
class Separable:
    """Squared distances on a grid: the kernel is a product of one per axis, of size n each.

    A product with it costs N times the sum of the sides instead of N^2.
    """

    sides: tuple[int, ...]
    spacing: float
    epsilon: float
    like: Tensor

    @property
    def support(self) -> int:
        """Count the points of the grid."""
        return math.prod(self.sides)

    @cached_property
    def costs(self) -> tuple[Float[Tensor, "s s"], ...]:
        """Square the distances along each axis."""
        lines = [
            torch.arange(s, dtype=self.like.dtype, device=self.like.device) for s in self.sides
        ]
        return tuple(((z[:, None] - z) * self.spacing).square() for z in lines)

    @cached_property
    def kernels(self) -> tuple[Float[Tensor, "s s"], ...]:
        """Take the exponential along each axis."""
        return tuple(_exponential(cost / -self.epsilon) for cost in self.costs)

    def forward(self, v: Float[Tensor, "K M"]) -> Float[Tensor, "K N"]:
        """Compute `log(K exp(v))`."""
        top = v.amax(1, keepdim=True)
        product = self._product((v - top).exp())
        if bool(product.amin() < FAINT):
            return self._by_logarithms(v)
        return product.log_() + top

    def backward(self, u: Float[Tensor, "K N"]) -> Float[Tensor, "K M"]:
        """Compute `log(K^T exp(u))`: the kernel is symmetric."""
        return self.forward(u)

    def spent(self, u: Float[Tensor, "K N"], v: Float[Tensor, "K M"]) -> Float[Tensor, "K"]:
        r"""Compute `<C, P>`: one axis at a time, `log(C_1 K_1 x K_2 exp(v))`."""
        total = u.new_zeros(len(u))
        for axis in range(len(self.sides)):
            total = total + (u + self._by_logarithms(v, axis)).exp().sum(1)
        return total

    def _product(self, z: Float[Tensor, "K N"]) -> Float[Tensor, "K N"]:
        z = z.reshape(len(z), *self.sides)
        for axis, kernel in enumerate(self.kernels):
            z = z.movedim(1, -1) @ kernel  # that axis goes last: in turn, all of them do
            assert z.shape[-1] == self.sides[axis]
        return z.reshape(len(z), -1)

    def _by_logarithms(self, v: Float[Tensor, "K M"], costly: int | None = None) -> Tensor:
        """Sum by logarithms along one axis after the other; `costly` is weighted with its cost."""
        v = v.reshape(len(v), *self.sides)
        for axis, cost in enumerate(self.costs):
            exponents = cost / -self.epsilon
            if axis == costly:
                exponents = exponents + cost.log()
            lines = v.movedim(1, -1)  # (K, s, ...) -> (K, ..., s)
            flat = _log_sums(exponents, lines.reshape(-1, lines.shape[-1]))
            v = flat.reshape(lines.shape)
        return v.reshape(len(v), -1)


Kernel = Dense | Separable


def _exponential(exponents: Float[Tensor, "N M"]) -> Float[Tensor, "N M"]:
    """Take exponentials; what would be a slow subnormal number is zero."""
    kernel = exponents.exp()
    return kernel.masked_fill_(kernel < TINY, 0.0)


def _log_sums(exponents: Float[Tensor, "N M"], v: Float[Tensor, "L M"]) -> Float[Tensor, "L N"]:
    """Compute `log sum_j exp(exponents_ij + v_lj)` in blocks of rows l."""
    out = v.new_empty(len(v), exponents.shape[0])
    rows = max(1, BLOCK // exponents.numel())
    for i in range(0, len(v), rows):
        out[i : i + rows] = (v[i : i + rows, None] + exponents).logsumexp(2)
    return out
