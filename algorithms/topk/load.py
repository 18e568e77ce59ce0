"""How evenly a routing spreads its tokens over experts."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Load:
    """What experts carry, and what training adds to keep that even.

    Attributes:
        load: tokens with a positive weight, of each expert.
        importance: sum of the weights of each expert.
        degrees: entry j counts the tokens with j experts.
        importance_cv2: squared coefficient of variation of the importance; differentiable.
        balance_loss: `E sum_e f_e P_e`, f the share of the hard top-k, P the mean softmax.
        z_loss: mean squared log of the softmax's denominator.
    """

    load: Int[Tensor, "E"]
    importance: Float[Tensor, "E"]
    degrees: Int[Tensor, "degree"]
    load_cv2: float
    importance_cv2: Float[Tensor, ""]
    peak_load: float
    entropy: float
    importance_entropy: float
    balance_loss: Float[Tensor, ""]
    z_loss: Float[Tensor, ""]


def measured(scores: Float[Tensor, "T E"], weights: Float[Tensor, "T E"], k: int) -> Load:
    """Measure weights that scores led to."""
    size, experts = scores.shape
    active = weights.detach() > 0
    load = active.sum(0)
    importance = weights.sum(0)
    logsumexp = scores.logsumexp(1)
    log_softmax = scores - logsumexp[:, None]
    softmax = log_softmax.exp()
    shares = hard_load(scores.detach(), k) / (size * k)
    mean_load = float(load.double().mean())
    entropy = -(softmax.detach() * log_softmax.detach()).sum() / size
    return Load(
        load,
        importance,
        torch.bincount(active.sum(1), minlength=experts + 1),
        float(squared_variation(load.double())),
        squared_variation(importance),
        float(load.max()) / mean_load if mean_load else 0.0,
        float(entropy.clamp(0, math.log(experts))),
        _entropy(importance.detach()),
        experts * (shares * softmax.mean(0)).sum(),
        logsumexp.square().mean(),
    )


def hard_load(scores: Float[Tensor, "T E"], k: int) -> Float[Tensor, "E"]:
    """Count how often each expert is among the k highest; equal scores at the k-th share it."""
    last = scores.topk(k, dim=1).values[:, -1:]
    above, equal = scores > last, scores == last
    share = (k - above.sum(1)) / equal.sum(1)  # (T,): one place each, unless some tie
    return above.sum(0) + share.to(scores) @ equal.to(scores)


def squared_variation(amounts: Float[Tensor, "E"]) -> Float[Tensor, ""]:
    """Compute variance over squared mean; 0 where nothing is carried."""
    mean = amounts.mean()
    spread = (amounts - mean).square().mean()
    return spread / torch.where(mean > 0, mean, 1.0).square()


def heaviest(weights: Float[Tensor, "T E"], capacity: int) -> Bool[Tensor, "T E"]:
    """Keep for each expert the tokens of largest weight; of equal ones the first."""
    order = weights.detach().argsort(dim=0, descending=True, stable=True)
    rank = torch.empty_like(order)
    places = torch.arange(len(order), device=order.device)[:, None].expand_as(order)
    return rank.scatter(0, order, places) < capacity


def _entropy(amounts: Float[Tensor, "E"]) -> float:
    total = amounts.sum()
    if not float(total) > 0:
        return 0.0
    share = amounts / total
    return float(-torch.xlogy(share, share).sum().clamp(max=0.0))
