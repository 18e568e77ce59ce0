"""How smooth a mask must be before a lost entry gets a share of it."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from algorithms.topk.response import exponent, raised

HALVINGS = 60  # of the interval of 1 / lam, to the last digits that a hint shows
MOST = 1 << 20  # scores looked at: a hint must not cost more than the answer


def reviving_lam(
    x: Float[Tensor, "B n"], lost: Int[Tensor, "d"], labels: Int[Tensor, "B"], k: int, p: float
) -> Float[Tensor, "e"]:
    """Find for lost rows the lam above which their label has a positive share of the mask.

    The share is positive where the threshold lies below `x_c`, that is where
    `sum_i clip((x_i - x_c) / lam, 0, 1)^r < k`; the sum falls as lam grows. Where the rows are
    many, some of them are looked at.
    """
    limit = max(1, MOST // x.shape[1])
    lost = lost[:: -(-len(lost) // limit)]
    above = (x[lost] - x[lost].gather(1, labels[lost, None])).clamp_min(0)  # (e, n)
    widest = above.amax(1, keepdim=True)
    r = exponent(p)
    # with `lam = widest s` no entry saturates from s = 1 on, and n of them hold k at most
    low = torch.zeros_like(widest)
    high = torch.full_like(widest, max(x.shape[1] / k, 1.0) ** (1 / r))
    for _ in range(HALVINGS):
        mid = (low + high) / 2
        held = raised((above / widest / mid).clamp(max=1), r).sum(1, keepdim=True)
        low, high = torch.where(held < k, low, mid), torch.where(held < k, mid, high)
    return (high * widest)[:, 0]
