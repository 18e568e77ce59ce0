"""Other ways to the same thresholds, for parity and for comparison: none is as fast as Newton's.

`sort` halves the sorted breakpoints of the excess, then solves its one smooth piece. `pav` pools
adjacent violators of an isotonic problem, of which the threshold is the value at rank k.
`dykstra` alternates pairwise means on the same problem (p = 2), and converges slowly: about the
square of the pooled entries in sweeps.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.errors import IllPosed
from algorithms.iterate import Stop, Watch, iterate, unwatched
from algorithms.topk.isotonic import pooled
from algorithms.topk.magnitude import Shrunk, ValuesBalance, scaled, shrink
from algorithms.topk.response import Response, exponent
from algorithms.topk.selection import around
from algorithms.topk.threshold import Balance, threshold
from algorithms.topk.windows import MaskBalance, Solved, distances

Method = Literal["newton", "sort", "pav", "dykstra"]
# Dykstra stops when no pair is out of order by more than this share of lam, or after so many
# sweeps, which is what public code does.
ORDERED, DYKSTRA_SWEEPS = 1e-10, 500


def mask_by(
    method: Method,
    x: Float[Tensor, "B n"],
    k: Float[Tensor, "B"],
    lam: Float[Tensor, "B"],
    rho: Response,
    *,
    watch: Watch = unwatched,
) -> Solved:
    """Find the thresholds of masks with the power regularizer, for 0 < k < n."""
    _fits(method, rho.p)
    a, b = (order.double() for order in around(x, k))
    u, r = distances(x, a, lam), exponent(rho.p)
    ones = torch.ones_like(k)
    high = torch.maximum((b - a) / lam, -ones)
    if method == "sort":
        points = torch.cat([-ones[:, None], high[:, None], u, u - 1], 1)
        balance = MaskBalance(u, k, rho)
        low, high = _between(balance, points, -ones, high)
        t, sweeps, stop = threshold(balance, low, high, unit=ones / 4, size=u.shape[1], watch=watch)
        return Solved(a, t, sweeps, stop, method)
    s = u.sort(1, descending=True).values
    hard = high <= -1
    problem = Isotonic(s, k, ones, r, magnitudes=False)
    v, sweeps, stop = problem.solve(method, watch)
    return Solved(a, torch.where(hard, -1.0, v), sweeps, stop, method)


def values_by(
    method: Method,
    x: Float[Tensor, "B n"],
    k: Float[Tensor, "B"],
    lam: Float[Tensor, "B"],
    p: float,
    *,
    watch: Watch = unwatched,
) -> Shrunk:
    """Find the thresholds of values, for whole 0 < k < n."""
    _fits(method, p)
    start, u, low, high = scaled(x, k, lam, p)
    if method == "sort":
        capped = (shrink(1 + start.lam[:, None] * u, start.lam, p) - 1) / start.lam[:, None]
        points = torch.cat([low[:, None], high[:, None], u, capped.nan_to_num(0.0)], 1)
        balance = ValuesBalance(u, k, start.lam, exponent(p))
        low, high = _between(balance, points, low, high)
        t, sweeps, stop = threshold(
            balance, low, high, unit=low.abs() / 4, size=u.shape[1], watch=watch
        )
    else:
        s = (x.abs().double() / start.scale[:, None]).sort(1, descending=True).values
        problem = Isotonic(s, k, start.lam, exponent(p), magnitudes=True)
        v, sweeps, stop = problem.solve(method, watch)
        t = (v - 1) / start.lam
    return replace(
        start, t=torch.where(start.hard, start.t, t), sweeps=sweeps, stop=stop, regime=method
    )


def _fits(method: Method, p: float) -> None:
    if method == "dykstra" and p != 2:
        raise IllPosed("method", f"dykstra is for p = 2, received p = {p:g}", code="validation")


def _between(balance: Balance, points: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Find the two neighbouring breakpoints that the root lies between."""
    points = torch.minimum(torch.maximum(points, low[:, None]), high[:, None]).sort(1).values
    first = torch.zeros_like(low, dtype=torch.int64)
    last = torch.full_like(first, points.shape[1] - 1)
    for _ in range(points.shape[1].bit_length()):
        mid = (first + last) // 2
        F = balance.sweep(points.gather(1, mid[:, None])[:, 0])[0]
        first, last = torch.where(F >= 0, mid, first), torch.where(F >= 0, last, mid)
    ends = points.gather(1, torch.stack([first, last], 1))
    return ends[:, 0], ends[:, 1]


@dataclass(frozen=True)
class Isotonic:
    """Minimise `sum |s - v|^q / (q lam^r) + sum w phi(v)` over falling v; w is k ones, then zeros.

    phi(v) is v for masks, v^2/2 for magnitudes. Rows of s fall.
    """

    s: Float[Tensor, "B n"]
    k: Float[Tensor, "B"]
    lam: Float[Tensor, "B"]
    r: float
    magnitudes: bool

    def solve(self, method: Method, watch: Watch) -> tuple[Tensor, Tensor, Stop]:
        """Compute the value at rank ceil(k) of each row, the sweeps, and how it ended."""
        sweeps = torch.ones_like(self.k, dtype=torch.int64)
        if method == "pav":
            v = pooled(self.s, self.k, self.lam, self.r, magnitudes=self.magnitudes)
            return v, sweeps, Stop("converged", 1, 0.0)
        v, stop = self._alternate(watch)
        at = self.k.ceil().long()[:, None] - 1
        return v.gather(1, at)[:, 0], sweeps * stop.iterations, stop

    def _alternate(self, watch: Watch) -> tuple[Tensor, Stop]:
        """Project on the odd pairs in order, then on the even pairs, with Dykstra's corrections."""
        places = torch.arange(self.s.shape[1], device=self.s.device)
        w = (self.k[:, None] - places).clamp(0, 1)
        lam = self.lam[:, None]
        weight = 1 + lam * w if self.magnitudes else torch.ones_like(w)
        target = self.s / weight if self.magnitudes else self.s - lam * w
        state = (target, torch.zeros_like(target), torch.zeros_like(target))

        def step(now: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
            v, odd, even = now
            z = v + odd
            v = _in_pairs(z, weight, 0)
            odd = z - v
            z = v + even
            v = _in_pairs(z, weight, 1)
            return v, odd, z - v

        def out_of_order(now: tuple[Tensor, Tensor, Tensor]) -> Tensor:
            return ((now[0][:, 1:] - now[0][:, :-1]) / lam).clamp(min=0).amax()

        state, stop = iterate(
            step, out_of_order, state, tol=ORDERED, max_iter=DYKSTRA_SWEEPS, watch=watch
        )
        return state[0], stop


def _in_pairs(z: Tensor, weight: Tensor, first: int) -> Tensor:
    """Replace pairs that rise by their weighted means."""
    pairs = (z.shape[1] - first) // 2
    part = slice(first, first + 2 * pairs)
    two = z[:, part].unflatten(1, (pairs, 2))
    w = weight[:, part].unflatten(1, (pairs, 2))
    mean = (w * two).sum(2, keepdim=True) / w.sum(2, keepdim=True)
    rises = two[..., 1:] > two[..., :1]
    out = z.clone()
    out[:, part] = torch.where(rises, mean, two).flatten(1)
    return out
