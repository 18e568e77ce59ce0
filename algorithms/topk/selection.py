"""The k-th largest of rows, without sorting them where that can be avoided."""

import torch
from jaxtyping import Float
from torch import Tensor

# Up to this share of the row one `topk` is cheaper than one selection for each rank.
FEW = 1 / 16
# Entries of a strided sample of one long row, and standard deviations that its ranks are off.
SAMPLE, DEVIATIONS = 16_384, 4.0


def around(x: Float[Tensor, "B n"], k: Float[Tensor, "B"]) -> tuple[Tensor, Tensor]:
    """Find the entries of ranks ceil(k) and floor(k) + 1 of each row, for 0 < k < n."""
    n = x.shape[1]
    ranks = torch.stack([k.ceil(), k.floor() + 1], 1).long()  # (B, 2)
    deepest = int(ranks.max())
    if deepest <= FEW * n or bool((ranks != ranks[0]).any()):
        best = x.topk(deepest, dim=1).values
        a, b = best.gather(1, ranks - 1).unbind(1)
        return a, b
    upper, lower = ranks[0].tolist()
    a = x.kthvalue(n + 1 - upper, dim=1).values
    return a, a if lower == upper else x.kthvalue(n + 1 - lower, dim=1).values


def around_one(row: Float[Tensor, "n"], k: float) -> tuple[float, float]:
    """Find the same of one long row, with the help of a sample; exact whatever the sample."""
    upper, lower = int(-(-k // 1)), int(k // 1) + 1
    a = kth_largest(row, upper)
    if lower == upper or int((row >= a).sum()) > upper:
        return a, a
    return a, float(row[row < a].max())


def kth_largest(row: Float[Tensor, "n"], k: int) -> float:
    """Find the k-th largest entry: two order statistics of a sample enclose it, most often."""
    n = row.shape[0]
    sample = row[:: max(n // SAMPLE, 1)].sort(descending=True).values
    m = sample.shape[0]
    share = k / n
    off = DEVIATIONS * (m * share * (1 - share)) ** 0.5 + 1
    first, last = int(share * m - off), int(share * m + off)
    inside = row > -torch.inf if last >= m else row >= sample[last]
    above = 0
    if first >= 0:
        above = int((row > sample[first]).sum())
        inside &= row <= sample[first]
    candidates = row[inside]
    rank = k - above
    if not 1 <= rank <= candidates.shape[0]:  # an unlucky sample: of a sorted row, for one
        return float(row.kthvalue(n + 1 - k).values)
    return float(candidates.kthvalue(candidates.shape[0] + 1 - rank).values)
