"""Gibbs kernels `exp(-C/epsilon)` applied to measures that are given by their logarithms.

K measures at once; N points of the support, M of the inputs.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

# Up to this max(C)/epsilon the products of kernel and scalings are numbers: potentials reach twice
# it, sums three times, and exp(-690) is normal. Beyond, sums are taken by logarithms.
REPRESENTABLE = 200.0
# Entries in one block of a sum taken by logarithms.
BLOCK = 1 << 20
TINY = 1e-300


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
    def kernel(self) -> Float[Tensor, "N M"] | None:
        """Take the exponential, where it has digits."""
        reach = float(self.exponents.amax() - self.exponents.amin())
        return (self.exponents - self.exponents.amax()).exp() if reach <= REPRESENTABLE else None

    def forward(self, v: Float[Tensor, "K M"]) -> Float[Tensor, "K N"]:
        """Compute `log(K exp(v))`."""
        if self.kernel is None:
            return _log_sums(self.exponents, v)
        return _scaled_product(v, self.kernel.T) + self.exponents.amax()

    def backward(self, u: Float[Tensor, "K N"]) -> Float[Tensor, "K M"]:
        """Compute `log(K^T exp(u))`."""
        if self.kernel is None:
            return _log_sums(self.exponents.T, u)
        return _scaled_product(u, self.kernel) + self.exponents.amax()

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
    def kernels(self) -> tuple[Float[Tensor, "s s"], ...] | None:
        """Take the exponentials, where their product has digits."""
        reach = sum(float(c.amax()) for c in self.costs) / self.epsilon
        return tuple((-c / self.epsilon).exp() for c in self.costs) if (
            reach <= REPRESENTABLE
        ) else None  # fmt: skip

    def forward(self, v: Float[Tensor, "K M"]) -> Float[Tensor, "K N"]:
        """Compute `log(K exp(v))`."""
        if self.kernels is None:
            return self._by_logarithms(v)
        top = v.amax(1, keepdim=True)
        return self._product((v - top).exp(), self.kernels).clamp_min(TINY).log() + top

    def backward(self, u: Float[Tensor, "K N"]) -> Float[Tensor, "K M"]:
        """Compute `log(K^T exp(u))`: the kernel is symmetric."""
        return self.forward(u)

    def spent(self, u: Float[Tensor, "K N"], v: Float[Tensor, "K M"]) -> Float[Tensor, "K"]:
        r"""Compute `<C, P>`: one axis at a time, `log(C_1 K_1 x K_2 exp(v))`."""
        total = u.new_zeros(len(u))
        for axis in range(len(self.sides)):
            total = total + (u + self._by_logarithms(v, axis)).exp().sum(1)
        return total

    def _product(self, z: Float[Tensor, "K N"], kernels: tuple[Tensor, ...]) -> Tensor:
        z = z.reshape(len(z), *self.sides)
        for axis, kernel in enumerate(kernels):
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


def _scaled_product(v: Float[Tensor, "K M"], kernel: Float[Tensor, "M N"]) -> Float[Tensor, "K N"]:
    top = v.amax(1, keepdim=True)
    return ((v - top).exp() @ kernel).clamp_min(TINY).log() + top


def _log_sums(exponents: Float[Tensor, "N M"], v: Float[Tensor, "L M"]) -> Float[Tensor, "L N"]:
    """Compute `log sum_j exp(exponents_ij + v_lj)` in blocks of rows l."""
    out = v.new_empty(len(v), exponents.shape[0])
    rows = max(1, BLOCK // exponents.numel())
    for i in range(0, len(v), rows):
        out[i : i + rows] = (v[i : i + rows, None] + exponents).logsumexp(2)
    return out
