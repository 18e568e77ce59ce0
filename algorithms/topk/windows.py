r"""Masks by tensor code: `sum_i rho((x_i - tau) / lam) = k` for each row, in three regimes.

All are anchored at a data value, `u = (x - a) / lam` with a the k-th largest entry, where the
differences that matter are exact or nearly so; the unknown is `t = (tau - a) / lam`. `narrow`
searches among the first few entries of each row, `wide` among all, `selected` among those of one
long row that lie near the threshold.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from algorithms.iterate import Stop, Watch, unwatched
from algorithms.topk.response import Response
from algorithms.topk.selection import around, around_one
from algorithms.topk.threshold import threshold

# Distances are cut here, beyond any threshold and short of infinity.
FAR = 1e200
# The threshold of a row that keeps nothing (all) lies beyond all distances.
NOWHERE = 1e250
SHORT_ROW = 128  # up to so many entries a row is searched as a whole
LONG_ROW, LARGE_SHARE = 100_000, 1 / 50  # one row of so many entries that keeps such a share


@dataclass(frozen=True)
class Solved:
    """Thresholds `a + lam t` of rows, the sweeps they took, and where the entries between lie.

    Attributes:
        window: places that hold all fractional entries of each row; None for all places.
        above: outside the window the mask is 1 from this entry on; without it, nowhere.
    """

    a: Float[Tensor, "B"]
    t: Float[Tensor, "B"]
    sweeps: Int[Tensor, "B"]
    stop: Stop
    regime: str
    window: Int[Tensor, "B K"] | None = None
    above: Float[Tensor, ""] | None = None


@dataclass(frozen=True)
class MaskBalance:
    """Distances of rows from their anchors, and how much must be kept of them."""

    u: Float[Tensor, "B K"]
    owed: Float[Tensor, "B"]  # k, less the entries outside the window that are 1
    rho: Response

    def sweep(self, t: Float[Tensor, "B"]) -> tuple[Tensor, Tensor, Tensor]:
        """Count what is saturated as a whole number: adding ones would cost the small digits."""
        z = self.u - t[:, None]
        full = self.rho.saturated(z)
        S = self.rho.value(z).masked_fill(full, 0.0).sum(1)
        return (full.sum(1) - self.owed) + S, S, self.rho.slope(z).sum(1)

    def take(self, rows: Int[Tensor, "r"]) -> "MaskBalance":
        """Keep some of the rows."""
        return replace(self, u=self.u[rows], owed=self.owed[rows])


def distances(
    x: Float[Tensor, "B K"], a: Float[Tensor, "B"], lam: Float[Tensor, "B"]
) -> Float[Tensor, "B K"]:
    """Measure from the anchor in units of lam, in float64, cut where it might overflow."""
    return ((x.double() - a[:, None]) / lam[:, None]).clamp(-FAR, FAR)


def solve_windows(
    x: Float[Tensor, "B n"],
    k: Float[Tensor, "B"],
    lam: Float[Tensor, "B"],
    rho: Response,
    *,
    watch: Watch = unwatched,
) -> Solved:
    """Find the threshold of each row, for 0 < k < n, in the regime that suits its shape."""
    B, n = x.shape
    if rho.high < torch.inf:
        if B == 1 and n >= LONG_ROW and float(k[0]) > LARGE_SHARE * n:
            return _selected(x, k, lam, rho, watch)
        found = _narrow(x, k, lam, rho, watch) if n > SHORT_ROW else None
        if found is not None:
            return found
    a, b = (order.double() for order in around(x, k))
    t, sweeps, stop = _search(distances(x, a, lam), k, (b - a) / lam, k, n, rho, watch)
    return Solved(a, t, sweeps, stop, "wide")


def _search(
    u: Tensor, owed: Tensor, gap: Tensor, k: Tensor, n: int, rho: Response, watch: Watch
) -> tuple[Tensor, Tensor, Stop]:
    """Bracket the threshold by the two entries around it; then search."""
    if rho.high < torch.inf:
        # tau lies in [x_(k) - high lam, x_(k+1) - low lam]; a hard row is settled at its lower end
        low = torch.full_like(gap, -rho.high)
        high = torch.maximum(gap - rho.low, low)
    else:
        # floor(k) + 1 entries are at least b, and all but ceil(k) - 1 are at most a
        more, rest = k.floor() + 1, n - k.ceil() + 1
        low = gap - rho.quantile(k / more)
        high = torch.maximum(-rho.quantile((k - k.ceil() + 1) / rest), low)
    balance = MaskBalance(u, owed, rho)
    unit = torch.full_like(gap, 0.25)
    return threshold(balance, low, high, unit=unit, size=u.shape[1], watch=watch)


def _narrow(x: Tensor, k: Tensor, lam: Tensor, rho: Response, watch: Watch) -> Solved | None:
    """Search among the first entries of each row; None where too many may be fractional."""
    n, most = x.shape[1], int(k.max().ceil())
    first = min(n, most + max(16, most // 2))
    reach = (rho.high - rho.low) * lam  # below a - reach all entries are 0
    values, window = x.topk(first, dim=1)
    a, b = _ranked(values, k)
    if n > first and bool((values[:, -1].double() > a - reach).any()):
        enough = int((x > (a - reach)[:, None]).sum(1).max()) + 1
        if n < 8 * enough:
            return None
        values, window = x.topk(enough, dim=1)
    u = distances(values, a, lam)
    t, sweeps, stop = _search(u, k, (b - a) / lam, k, n, rho, watch)
    return Solved(a, t, sweeps, stop, "narrow", window)


def _ranked(values: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    ranks = torch.stack([k.ceil(), k.floor() + 1], 1).long()
    a, b = values.gather(1, ranks - 1).double().unbind(1)
    return a, b


def _selected(x: Tensor, k: Tensor, lam: Tensor, rho: Response, watch: Watch) -> Solved:
    """Search among the entries of one long row that may be fractional; count those above."""
    row, reach = x[0], (rho.high - rho.low) * float(lam[0])
    a, b = around_one(row, float(k[0]))
    # rounded outwards, so that what is left out is 0 or 1 beyond doubt
    floor = torch.nextafter(row.new_tensor(a - reach), row.new_tensor(-torch.inf))
    above = torch.nextafter(row.new_tensor(a + reach), row.new_tensor(torch.inf))
    window = ((row > floor) & (row < above)).nonzero().T  # (1, K)
    base = (row >= above).sum()
    anchor = torch.full_like(k, a)
    u = distances(row[window], anchor, lam)
    gap = torch.full_like(k, b) - a
    t, sweeps, stop = _search(u, k - base, gap / lam, k, row.shape[0], rho, watch)
    return Solved(anchor, t, sweeps, stop, "selected", window, above)
