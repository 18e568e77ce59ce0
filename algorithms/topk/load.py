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
    softmax, log_softmax = scores.softmax(1), scores.log_softmax(1)
    shares = hard_shares(scores.detach(), k).sum(0) / (size * k)
    mean_load = float(load.double().mean())
    entropy = -(softmax * log_softmax).detach().sum(1).mean()
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
        scores.logsumexp(1).square().mean(),
    )


def hard_shares(scores: Float[Tensor, "T E"], k: int) -> Float[Tensor, "T E"]:
    """Find the k highest of each row; equal scores at the boundary share what is left."""
    last = scores.topk(k, dim=1).values[:, -1:]
    above, equal = scores > last, scores == last
    left = k - above.sum(1, keepdim=True)
    return above.to(scores) + equal.to(scores) * left / equal.sum(1, keepdim=True)


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
