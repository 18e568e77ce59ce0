"""How high the truth ranks among scores; equal scores share their ranks."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def labels_within(
    x: Float[Tensor, "B n"], labels: Int[Tensor, "B"], most: int
) -> Float[Tensor, "J"]:
    """Compute for j = 1..most how often the label is among the j highest scores.

    Of e equal scores after h higher ones each is among them with the share `(j - h) / e`.
    """
    own = x.gather(1, labels[:, None])
    higher, equal = ((s.sum(1, keepdim=True)).to(x.dtype) for s in (x > own, x == own))
    j = torch.arange(1, most + 1, dtype=x.dtype, device=x.device)
    return ((j - higher) / equal).clamp(0, 1).mean(0)  # (B, J) -> (J,)


def targets_within(x: Float[Tensor, "B n"], targets: Float[Tensor, "B n"]) -> Float[Tensor, "J"]:
    """Compute for j = 1..max k which share of a target that j scores can hold the j highest hold.

    k is the sum of a row's target, j scores hold `min(j, k)` of it; rows without target are left
    out.
    """
    k = targets.sum(1)
    some = k > 0
    x, targets, k = x[some], targets[some], k[some, None]
    high, order = x.sort(dim=1, descending=True)
    first = torch.ones_like(high, dtype=torch.bool)
    first[:, 1:] = high[:, 1:] != high[:, :-1]
    group = first.flatten().cumsum(0) - 1  # equal scores of one row are one group
    held = targets.gather(1, order).flatten()
    total = held.new_zeros(int(group[-1]) + 1).index_add(0, group, held)
    shared = (total / group.bincount())[group].reshape(high.shape).cumsum(1)
    most = min(int(k.max().ceil()), x.shape[1])
    j = torch.arange(1, most + 1, dtype=x.dtype, device=x.device)
    return (shared[:, :most] / torch.minimum(j, k)).clamp(max=1).mean(0)  # (B, J) -> (J,)
