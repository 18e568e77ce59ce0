"""Losses of single rows of scores, with their gradients in closed form."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from algorithms.topk.operator import Rows, differentiable_mask, solve_mask
from algorithms.topk.proof import Masks, row_sums

Kind = Literal["partial_fy", "fy", "hit", "nll"]
# A label that gets less of the mask counts as lost: its logarithm is cut off here.
FLOOR = 1e-12


@dataclass(frozen=True)
class RowLosses:
    """What each row loses, how that changes with its scores, and the masks behind it.

    Attributes:
        curvature: what each loss is at least, as R is strongly convex; None where there is no such
            bound.
    """

    losses: Float[Tensor, "B"]
    gradient: Float[Tensor, "B n"]
    masks: Masks
    rows: Rows
    curvature: Float[Tensor, "B"] | None


def fenchel_young(
    x: Float[Tensor, "B n"], targets: Float[Tensor, "B n"], lam: float, p: float
) -> RowLosses:
    r"""Evaluate `f_R(x) + R(y*) - <x, y*>` for targets y* that sum to k, row by row.

    As rows of y and y* have one sum, it equals
    `sum_i (x_i - tau)(y_i - y*_i) - (lam/p)(y_i^p - y*_i^p)`: no term is negative, since each y_i
    is the best of [0, 1] for its own term, and offsets of the scores have no say.
    """
    k = targets.sum(1)  # (B, n) -> (B,)
    rows = solve_mask(x, k, lam, p=p)
    masks = Masks(x, rows.y, rows.tau, k, lam, p)
    gradient = rows.y - targets
    moved = gradient != 0
    at, counts = moved.nonzero(as_tuple=True), moved.sum(1)  # elsewhere nothing is lost
    terms = (x[at] - rows.tau[at[0]]) * gradient[at]
    terms = terms - lam / p * (rows.y[at].pow(p) - targets[at].pow(p))
    losses = row_sums(terms.clamp_min(0), counts)
    # R bends by lam (p - 1) at least where p <= 2, and f_R by the inverse at most
    curvature = lam * (p - 1) / 2 * row_sums(gradient[at].square(), counts) if p <= 2 else None
    return RowLosses(losses, gradient, masks, rows, curvature)


def completed(
    x: Float[Tensor, "B n"], labels: Int[Tensor, "B"], k: int, lam: float, p: float
) -> Float[Tensor, "B n"]:
    """Find the mask with a one at the label that the scores like best.

    It has the relaxed k - 1 largest of the other scores beside the label.
    """
    size, n = x.shape
    target = torch.zeros_like(x).scatter(1, labels[:, None], 1.0)
    if k == 1:
        return target
    others = torch.arange(n - 1, device=x.device).expand(size, n - 1)
    others = others + (others >= labels[:, None]).long()  # (B, n - 1): all columns but the label
    return target.scatter(1, others, solve_mask(x.gather(1, others), float(k - 1), lam, p=p).y)


def likelihood(
    kind: Kind, x: Float[Tensor, "B n"], labels: Int[Tensor, "B"], k: int, lam: float, p: float
) -> RowLosses:
    """Evaluate `1 - y_c` or `-log y_c` of the label c, through the derivative of the mask."""
    leaf = x.detach().requires_grad_()
    with torch.enable_grad():
        y, rows = differentiable_mask(leaf, float(k), lam, p=p)
        own = y.gather(1, labels[:, None])  # (B, 1)
        (slope,) = torch.autograd.grad(own.sum(), leaf)
    own = own.detach()
    kept = torch.full_like(x[:, 0], float(k))
    masks = Masks(x, rows.y, rows.tau, kept, lam, p)
    if kind == "hit":
        return RowLosses(1 - own[:, 0], -slope, masks, rows, None)
    share = torch.where(own > FLOOR, 1 / own.clamp_min(FLOOR), 0.0)
    return RowLosses(-own[:, 0].clamp_min(FLOOR).log(), -share * slope, masks, rows, None)
