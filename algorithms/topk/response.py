r"""How a mask answers to the distance from its threshold: `y = rho((x - tau) / lam)`.

Each regularizer R of the mask has one response, the inverse of its derivative. All that the
solvers need of it is here; what differs between regularizers is nowhere else.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from algorithms.errors import IllPosed

Regularizer = Literal["power", "two_sided", "sigmoid", "laplace"]
# Halvings and Newton steps that find a two-sided mask of any exponent to the last digit.
HALVINGS, POLISH = 60, 3


@dataclass(frozen=True)
class Response:
    """One regularizer: response, slope, inverse, and price of a mask per unit of lam.

    Attributes:
        value: rho, from 0 to 1, increasing.
        slope: its derivative; 0 where the mask is 0 or 1.
        quantile: the inverse of rho on (0, 1).
        price: `sum_i R(y_i) / lam` of each row.
        low, high: rho is 0 up to `low` and 1 from `high`; infinite where never.
        p: the exponent; of no meaning where there is none.
    """

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    quantile: Callable[[Tensor], Tensor]
    price: Callable[[Tensor], Tensor]
    low: float
    high: float
    p: float = 2.0

    def interior(self, z: Float[Tensor, "*B"]) -> Bool[Tensor, "*B"]:
        """Find the entries that are neither 0 nor 1."""
        if self.high < float("inf"):
            return (z > self.low) & (z < self.high)
        y = self.value(z)
        return (y > 0) & (y < 1)

    def saturated(self, z: Float[Tensor, "*B"]) -> Bool[Tensor, "*B"]:
        """Find the entries that are 1."""
        return z >= self.high if self.high < float("inf") else self.value(z) >= 1


def response(p: float, regularizer: Regularizer) -> Response:
    """Choose the response of a regularizer; `p` shapes `power` and `two_sided` alone."""
    if not 1 < p <= 8:
        raise IllPosed("p", f"{p:g}; expected 1 < p <= 8")
    if regularizer == "power":
        return _power(p)
    if regularizer == "two_sided":
        return _two_sided(p)
    if regularizer == "sigmoid":
        return Response(torch.sigmoid, _sigmoid_slope, torch.logit, _entropy, -INF, INF)
    return Response(_laplace, _laplace_slope, _laplace_quantile, _laplace_price, -INF, INF)


INF = float("inf")


def raised(z: Tensor, r: float) -> Tensor:
    """Raise to the power r, by products where r is 1, 2 or 3."""
    if r == 1:
        return z
    if r == 2:
        return z * z
    return z * z * z if r == 3 else z.pow(r)


def exponent(p: float) -> float:
    """Compute `r = 1 / (p - 1)`; exactly 2 and 3 at p = 3/2 and 4/3."""
    r = 1 / (p - 1)
    return float(round(r)) if abs(r - round(r)) < 1e-12 * r else r


def _power(p: float) -> Response:
    r = exponent(p)

    def slope(z: Tensor) -> Tensor:
        inside = (z > 0) & (z < 1)
        if r == 1:
            return inside.to(z.dtype)
        return torch.where(inside, r * raised(z.clamp(0, 1), r - 1), 0.0)

    return Response(
        lambda z: raised(z.clamp(0, 1), r),
        slope,
        lambda y: y.pow(p - 1),
        lambda y: y.pow(p).sum(-1) / p,
        0.0,
        1.0,
        p,
    )


def _two_sided(p: float) -> Response:
    def value(z: Tensor) -> Tensor:
        return _two_sided_mask(z.clamp(-1, 1), p)

    def slope(z: Tensor) -> Tensor:
        y = value(z)
        bend = (p - 1) * (y.pow(p - 2) + (1 - y).pow(p - 2))
        return torch.where((z > -1) & (z < 1), 1 / bend, 0.0)

    return Response(
        value,
        slope,
        lambda y: y.pow(p - 1) - (1 - y).pow(p - 1),
        lambda y: (y.pow(p) + (1 - y).pow(p)).sum(-1) / p,
        -1.0,
        1.0,
        p,
    )


def _two_sided_mask(h: Tensor, p: float) -> Tensor:
    """Solve `y^(p-1) - (1-y)^(p-1) = h` for h in [-1, 1]."""
    if p == 2:
        return (1 + h) / 2
    if exponent(p) == 3:
        A = (2 + (4 + h.pow(6)).sqrt()).pow(1 / 3)
        return ((A - h * h / A + h) / 2).clamp(0, 1).pow(3)
    q = _smaller_side(h.abs(), p - 1)
    return torch.where(h > 0, 1 - q, q)


def _smaller_side(h: Tensor, e: float) -> Tensor:
    """Solve `(1-q)^e - q^e = h` for q in [0, 1/2], given h in [0, 1]."""
    low, high = torch.zeros_like(h), torch.full_like(h, 0.5)
    for _ in range(HALVINGS):
        mid = (low + high) / 2
        below = (1 - mid).pow(e) - mid.pow(e) > h  # decreasing in q: the root lies above mid
        low, high = torch.where(below, mid, low), torch.where(below, high, mid)
    q = (low + high) / 2
    for _ in range(POLISH):
        miss = (1 - q).pow(e) - q.pow(e) - h
        bend = e * ((1 - q).pow(e - 1) + q.pow(e - 1))
        q = (q + torch.where(bend < INF, miss / bend, 0.0)).clamp(0, 0.5)
    return torch.where(h < 1, q, 0.0)


def _sigmoid_slope(z: Tensor) -> Tensor:
    return torch.sigmoid(z) * torch.sigmoid(-z)


def _entropy(y: Tensor) -> Tensor:
    return (torch.xlogy(y, y) + torch.xlogy(1 - y, 1 - y)).sum(-1)


def _laplace(z: Tensor) -> Tensor:
    half = torch.exp(-z.abs()) / 2
    return torch.where(z < 0, half, 1 - half)


def _laplace_slope(z: Tensor) -> Tensor:
    return torch.exp(-z.abs()) / 2


def _laplace_quantile(y: Tensor) -> Tensor:
    return torch.where(y < 0.5, (2 * y).log(), -(2 * (1 - y)).log())


def _laplace_price(y: Tensor) -> Tensor:
    q = torch.minimum(y, 1 - y)
    return (torch.xlogy(q, 2 * q) - q).sum(-1)
