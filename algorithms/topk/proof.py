"""What a mask says of itself: whether it lies in its polytope, and how far it is from the best."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.topk.response import exponent, raised

# Distances from the threshold beyond which their size says nothing more: products stay finite.
FAR = 1e150
# Rows must sum to k up to this share of it, and be best up to this share of what is at stake:
# sums of a million rounded entries, and thresholds whose own digits are those of large scores.
PROVED = 1e-9


@dataclass(frozen=True)
class Masks:
    """Masks y of scores x, row by row, with their thresholds; all in float64.

    Attributes:
        y: in [0, 1], each row sums to its k.
        tau: threshold of each row: `y = clip((x - tau) / lam, 0, 1)^(1 / (p - 1))`.
    """

    x: Float[Tensor, "B n"]
    y: Float[Tensor, "B n"]
    tau: Float[Tensor, "B"]
    k: Float[Tensor, "B"]
    lam: float
    p: float

    @cached_property
    def sum_errors(self) -> Float[Tensor, "B"]:
        """Measure `|sum_i y_i - k|`."""
        return (self.y.sum(1) - self.k).abs()

    @cached_property
    def gaps(self) -> Float[Tensor, "B"]:
        r"""Bound how far `<x, y> - (lam/p) sum_i y_i^p` is from its maximum over the masks.

        By duality that maximum is at most `k tau + sum_i max_{0<=t<=1} (x_i - tau) t - lam t^p/p`
        for any tau. On a row that sums to k the difference is a sum over entries of terms that are
        not negative, in which nothing large cancels; most are 0, as y_i is that best t.
        """
        z = (self.x - self.tau[:, None]) / self.lam
        best = raised(z.clamp(0, 1), exponent(self.p))
        off = best != self.y
        at = off.nonzero(as_tuple=True)
        z, best, y = z[at].clamp(-FAR, FAR), best[at], self.y[at]
        terms = z * (best - y) - (best.pow(self.p) - y.pow(self.p)) / self.p
        return self.lam * row_sums(terms.clamp_min(0), off.sum(1))

    def proved(self) -> bool:
        """Tell whether all rows are feasible and best, up to rounding."""
        kept = self.k.clamp_min(1)
        low, high = self.x.aminmax(dim=1)
        stake = kept * (self.lam + torch.maximum(-low, high).abs())
        sums = bool((self.sum_errors <= PROVED * kept).all())
        return sums and bool((self.gaps <= PROVED * stake).all())


def row_sums(terms: Float[Tensor, "nnz"], counts: Tensor) -> Float[Tensor, "B"]:
    """Add up terms that are listed row by row, `counts[i]` of row i; in one order on any device."""
    return torch.segment_reduce(terms, "sum", lengths=counts, unsafe=True)
