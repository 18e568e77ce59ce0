"""What a mask says of itself: whether it lies in its polytope, and how far it is from the best."""

from dataclasses import dataclass

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

    def sum_errors(self) -> Float[Tensor, "B"]:
        """Measure `|sum_i y_i - k|`."""
        return (self.y.sum(1) - self.k).abs()

    def gaps(self) -> Float[Tensor, "B"]:
        r"""Bound how far `<x, y> - (lam/p) sum_i y_i^p` is from its maximum over the masks.

        By duality that maximum is at most `k tau + sum_i max_{0<=t<=1} (x_i - tau) t - lam t^p/p`
        for any tau. On a row that sums to k the difference is a sum over entries of terms that are
        not negative, in which nothing large cancels.
        """
        z = ((self.x - self.tau[:, None]) / self.lam).clamp(-FAR, FAR)
        best = raised(z.clamp(0, 1), exponent(self.p))
        terms = z * (best - self.y) - (best.pow(self.p) - self.y.pow(self.p)) / self.p
        return self.lam * terms.clamp_min(0).sum(1)  # (B, n) -> (B,)

    def proved(self) -> bool:
        """Tell whether all rows are feasible and best, up to rounding."""
        kept = self.k.clamp_min(1)
        stake = kept * (self.lam + self.x.abs().amax(1))
        sums = bool((self.sum_errors() <= PROVED * kept).all())
        return sums and bool((self.gaps() <= PROVED * stake).all())
