"""Order statistics of rows of magnitudes, and the strengths that follow from them."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from algorithms.topk.sheets import Sheet

EPS = torch.finfo(torch.float64).eps
# Magnitudes this share of k before and after the k-th tell how dense they are there.
NEIGHBOURS = 10
# Below so many spacings of the float64 near the k-th magnitude lam is lost in rounding.
SPACINGS = 4


def order(s: Float[Tensor, "B n"], k: int) -> Float[Tensor, "B"]:
    """Find the k-th largest magnitude of each row; infinite for k = 0, 0 beyond the row."""
    B, n = s.shape
    if k < 1 or k > n:
        return s.new_full((B,), torch.inf if k < 1 else 0.0)
    return s.kthvalue(n + 1 - k, dim=1).values


def chosen(s: Float[Tensor, "B n"], k: int) -> Bool[Tensor, "B n"]:
    """Mark the k largest of each row; of equal ones the first."""
    kth = order(s, k)[:, None]
    above, equal = s > kth, s == kth
    return above | (equal & (equal.cumsum(1) <= k - above.sum(1, keepdim=True)))


def auto_lam(laid: list[Sheet]) -> float:
    """Choose a relative strength at which about a tenth of k entries on either side are pooled."""
    found: list[Tensor] = []
    for sheet in laid:
        s, k, n = sheet.x.abs(), sheet.k, sheet.x.shape[1]
        if k == 0:
            continue
        j = max(1, k // NEIGHBOURS)
        kth = order(s, k)
        spread = (order(s, max(1, k - j)) - order(s, min(n, k + j))) / kth
        found.append(spread[kth > 0])
    spreads = torch.cat(found) if found else torch.zeros(0)
    typical = float(spreads.median()) if spreads.numel() else 1.0
    return max(typical, SPACINGS * EPS)


def strengths(
    lam: float, kth: Float[Tensor, "B"], p: float, *, relative: bool
) -> Float[Tensor, "B"]:
    """Give each row its strength: lam, or lam in units of its k-th magnitude."""
    if not relative or p == 2:
        return torch.full_like(kth, lam)
    units = torch.where((kth > 0) & (kth < torch.inf), kth, 1.0)
    return (lam * units.pow(2 - p)).clamp(torch.finfo(kth.dtype).tiny, torch.finfo(kth.dtype).max)


def hard_below(
    first: Float[Tensor, "B"], second: Float[Tensor, "B"], p: float, *, relative: bool
) -> Float[Tensor, "B"]:
    """Find the largest strength, in the units of the question, at which each row is hard.

    `s_(k) >= s_(k+1) + lam s_(k+1)^(p-1)`; infinite where no strength pools anything.
    """
    lam = torch.where(second > 0, (first - second) / second.pow(p - 1), torch.inf)
    if not relative:
        return lam
    known = (first > 0) & (first < torch.inf)
    return torch.where(known, lam / first.pow(2 - p), torch.inf)
