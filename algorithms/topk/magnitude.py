r"""Values kept by magnitude: `sum_i min(((s_i - theta)_+ / lam)^r, theta) = k theta`, s = |x|.

Rows are divided by their k-th largest magnitude c first, which turns lam into `lam c^(p-2)` and
the answer y into `y / c`: the anchor is 1, and `theta = 1 + lam t`.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from algorithms.iterate import Stop, Watch, unwatched
from algorithms.topk.response import exponent, raised
from algorithms.topk.selection import around
from algorithms.topk.threshold import threshold
from algorithms.topk.windows import distances

# A relative lam beyond these bounds acts like the bound: it keeps squares and roots finite.
LEAST, MOST = 1e-140, 1e140
SMALLEST = 1e-300  # of what is divided by
# Newton's steps from above for the shrinkage of any exponent: quadratic, monotone, a few suffice.
STEPS = 64


@dataclass(frozen=True)
class Shrunk:
    """Thresholds of rows whose k-th magnitude is 1.

    Attributes:
        scale: the k-th magnitudes c that rows were divided by; 1 where they are 0.
        a: the anchor, 1; 0 where fewer than k entries differ from 0.
        t: the threshold is `a + lam t`.
        lam: strength in the units of the scaled rows.
        hard: rows that pool nothing: entries of magnitude >= a are kept, and shrunk alone.
    """

    scale: Float[Tensor, "B"]
    a: Float[Tensor, "B"]
    t: Float[Tensor, "B"]
    lam: Float[Tensor, "B"]
    hard: Bool[Tensor, "B"]
    sweeps: Int[Tensor, "B"]
    stop: Stop
    regime: str


@dataclass(frozen=True)
class Parts:
    """Entries of scaled rows: distances from the threshold, and which of three kinds they are."""

    s: Float[Tensor, "B n"]
    z: Float[Tensor, "B n"]
    capped: Bool[Tensor, "B n"]
    block: Bool[Tensor, "B n"]


@dataclass(frozen=True)
class ValuesBalance:
    """Distances of scaled magnitudes from their anchors, and how many must be kept."""

    u: Float[Tensor, "B n"]
    k: Float[Tensor, "B"]
    lam: Float[Tensor, "B"]
    r: float

    def sweep(self, t: Float[Tensor, "B"]) -> tuple[Tensor, Tensor, Tensor]:
        """Weigh the block against the threshold times what is not capped."""
        z = (self.u - t[:, None]).clamp(min=0)
        theta = 1 + self.lam * t
        y = raised(z, self.r)
        capped = y >= theta[:, None]
        rest = self.k - capped.sum(1)
        S = y.masked_fill(capped, 0.0).sum(1)
        slope = z.masked_fill(capped, 0.0)
        if self.r == 1:
            bend = (slope > 0).sum(1)
        else:
            bend = self.r * torch.where(slope > 0, raised(slope, self.r - 1), 0.0).sum(1)
        owed = rest * theta
        return S - owed, S + owed.abs(), bend + self.lam * rest

    def take(self, rows: Int[Tensor, "r"]) -> "ValuesBalance":
        """Keep some of the rows."""
        return replace(self, u=self.u[rows], k=self.k[rows], lam=self.lam[rows])


def shrink(s: Float[Tensor, "B n"], lam: Float[Tensor, "B"], p: float) -> Float[Tensor, "B n"]:
    """Solve `v + lam v^(p-1) = s` for v >= 0."""
    strength, r = lam[:, None], exponent(p)
    if r == 1:
        return s / (1 + strength)
    if r == 2:  # v = w^2, w^2 + lam w = s
        return (2 * s / (strength + (strength * strength + 4 * s).sqrt())).pow(2)
    if r == 3:  # v = w^3, w^3 + lam w = s: the one real root, in the form that keeps its digits
        c = (strength / 3).sqrt()
        return (2 * c * torch.sinh(torch.asinh(1.5 * s / (strength * c)) / 3)).pow(3)
    return _shrink_by_steps(s, strength, p, r)


def _shrink_by_steps(s: Tensor, lam: Tensor, p: float, r: float) -> Tensor:
    """Descend to the root of a convex increasing function from above."""
    if p < 2:  # in w = v^(p-1): w^r + lam w = s
        w = torch.minimum(s / lam, s.pow(p - 1))
        for _ in range(STEPS):
            miss, bend = w.pow(r) + lam * w - s, r * w.pow(r - 1) + lam
            w = torch.where(miss > 0, w - miss / bend, w)
        return w.clamp(min=0).pow(r)
    v = torch.minimum(s, (s / lam).pow(r))
    for _ in range(STEPS):
        miss, bend = v + lam * v.pow(p - 1) - s, 1 + lam * (p - 1) * v.pow(p - 2)
        v = torch.where(miss > 0, v - miss / bend, v)
    return v.clamp(min=0)


def _from_anchor(s: Tensor, scale: Tensor, a: Tensor, lam: Tensor) -> Float[Tensor, "B n"]:
    """Measure before scaling, where differences of near magnitudes are exact."""
    return distances(s, a * scale, (lam * scale).clamp(min=SMALLEST))


def scaled(
    x: Float[Tensor, "B n"], k: Float[Tensor, "B"], lam: Float[Tensor, "B"], p: float
) -> tuple[Shrunk, Float[Tensor, "B n"], Float[Tensor, "B"], Float[Tensor, "B"]]:
    """Scale rows and bracket their thresholds; rows that pool nothing are settled.

    Returns:
        The rows as far as they are known, distances from the anchors, both ends of the bracket.
    """
    s = x.abs()
    a, b = (order.double() for order in around(s, k))
    scale = torch.where(a > 0, a, 1.0)
    lam = (lam * scale.pow(p - 2)).clamp(LEAST, MOST)
    a, b = a / scale, b / scale
    lowest = shrink(a[:, None], lam, p)[:, 0]
    hard, gap = lowest >= b, (b - a) / lam
    low = torch.where(hard, gap, -lowest.pow(p - 1))
    high = torch.where(hard, gap, torch.maximum(gap, low))
    none = torch.zeros_like(k, dtype=torch.int64)
    rows = Shrunk(scale, a, low, lam, hard, none, Stop("converged", 0, 0.0), "wide")
    return rows, _from_anchor(s, scale, a, lam), low, high


def solve_magnitudes(
    x: Float[Tensor, "B n"],
    k: Float[Tensor, "B"],
    lam: Float[Tensor, "B"],
    p: float,
    *,
    watch: Watch = unwatched,
) -> Shrunk:
    """Find the threshold of each row, for whole 0 < k < n."""
    start, u, low, high = scaled(x, k, lam, p)
    pools = (~start.hard).nonzero().squeeze(1)
    found, spent, stop = threshold(
        ValuesBalance(u, k, start.lam, exponent(p)).take(pools),
        low[pools],
        high[pools],
        unit=low[pools].abs() / 4,
        size=x.shape[1],
        watch=watch,
    )
    return replace(
        start,
        t=start.t.index_copy(0, pools, found),
        sweeps=start.sweeps.index_copy(0, pools, spent),
        stop=stop,
    )


def parts(x: Float[Tensor, "B n"], rows: Shrunk, p: float, kept: Tensor) -> Parts:
    """Tell the entries of the scaled rows apart; `kept` is how many each row keeps (0: none)."""
    z = _from_anchor(x.abs(), rows.scale, rows.a, rows.lam) - rows.t[:, None]
    s = x.abs().double() / rows.scale[:, None]
    theta = (rows.a + rows.lam * rows.t)[:, None]
    capped = (z > 0) & (raised(z.clamp(min=0), exponent(p)) >= theta)
    capped = torch.where(rows.hard[:, None], s >= rows.a[:, None], capped)
    n = x.shape[1]
    some, every = (kept > 0)[:, None], (kept >= n)[:, None]
    capped = (capped | every) & some
    block = (z > 0) & ~capped & ~rows.hard[:, None] & some
    return Parts(s, z, capped, block)


def written(
    x: Float[Tensor, "B n"], rows: Shrunk, found: Parts, p: float, *, debias: bool
) -> Float[Tensor, "B n"]:
    """Write the values, in float64, with the signs of x."""
    lam = rows.lam
    z = found.z.clamp(min=0)
    y = raised(z, exponent(p))
    if debias:  # y + lam y^(p-1): the shrinkage of the clear winners is undone
        y = y + lam[:, None] * z
        y = torch.where(found.block, y * rows.scale[:, None], 0.0)
        y = torch.where(found.capped, x.abs().double(), y)
    else:
        y = torch.where(found.block, y, 0.0)
        y = torch.where(found.capped, shrink(found.s, lam, p), y) * rows.scale[:, None]
    return torch.where(y > 0, torch.copysign(y, x.double()), 0.0)


@dataclass(frozen=True)
class Slopes:
    """What derivatives of magnitudes need.

    Attributes:
        d: slope of the raw values on the block, 0 elsewhere.
        gain: that of the values returned: d, or 1 + d where the bias was undone.
        owed: what the block is weighed against: the sum of d, and the k that are not capped.
        caps: slope on the capped entries, 0 elsewhere.
    """

    d: Float[Tensor, "B n"]
    gain: Float[Tensor, "B n"]
    owed: Float[Tensor, "B"]
    caps: Float[Tensor, "B n"]

    def pull(self, g: Float[Tensor, "B n"]) -> Float[Tensor, "B n"]:
        """Multiply a cotangent by the transposed Jacobian."""
        mean = ratio((self.gain * g).sum(1), self.owed)
        return (self.caps + self.gain) * g - self.d * mean[:, None]

    def push(self, h: Float[Tensor, "B n"]) -> Float[Tensor, "B n"]:
        """Multiply a tangent by the Jacobian."""
        mean = ratio((self.d * h).sum(1), self.owed)
        return self.caps * h + self.gain * (h - mean[:, None])


def slopes(rows: Shrunk, found: Parts, k: Tensor, p: float, *, debias: bool) -> Slopes:
    """Compute the pieces of the Jacobian; they do not change when rows are scaled."""
    r, lam = exponent(p), rows.lam[:, None]
    z = torch.where(found.block, found.z, 1.0)
    d = torch.where(found.block, r * raised(z, r - 1) / lam, 0.0)
    owed = d.sum(1) + (k - found.capped.sum(1)).clamp(min=0)
    if debias:
        return Slopes(d, torch.where(found.block, 1 + d, 0.0), owed, found.capped.double())
    caps = 1 / (1 + lam * (p - 1) * shrink(found.s, rows.lam, p).pow(p - 2))
    return Slopes(d, d, owed, torch.where(found.capped, caps, 0.0))


def along_lam(rows: Shrunk, found: Parts, ways: Slopes, p: float, *, debias: bool) -> Tensor:
    """Differentiate the magnitudes, in their own units, with respect to lam."""
    dz = ways.d * found.z.clamp(min=0)
    sinks = ratio(dz.sum(1), ways.owed)[:, None]  # minus the derivative of theta
    block = ways.d * sinks - dz
    if debias:
        inner, caps = torch.where(found.block, block + sinks, 0.0), 0.0
    else:
        inner = block
        caps = -ways.caps * shrink(found.s, rows.lam, p).pow(p - 1)
    return (inner + caps) * rows.scale.pow(p - 1)[:, None]


def ratio(top: Tensor, bottom: Tensor) -> Tensor:
    """Divide, 0 where there is nothing to divide by."""
    return torch.where(bottom > 0, top / bottom, 0.0)
