"""Routing of tokens to experts by the relaxed top-k mask of their scores."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from algorithms.errors import Caution, IllPosed
from algorithms.iterate import Stop, Watch, unwatched
from algorithms.topk.cautions import mask_cautions
from algorithms.topk.load import Load, heaviest, measured
from algorithms.topk.operator import Rows, auto_lam, differentiable_mask
from algorithms.topk.proof import Masks
from algorithms.topk.response import response

# Scores, strengths and temperatures beyond this, or its inverse, leave the range of numbers.
LARGEST = 1e100
# A capacity that is whole but for rounding is not rounded up.
ROUNDING = 1e-12

Choice = Literal["token", "expert"]
Combine = Literal["softmax_mask", "mask", "raw"]


@dataclass(frozen=True)
class Certificate:
    """What proves masks and weights, recomputed in float64."""

    sum_error: float
    optimality_gap: float
    weight_error: float
    smallest_weight: float


@dataclass(frozen=True)
class Routing:
    """Weights by token, how evenly experts carry them, and what masks did."""

    offsets: Int[Tensor, "bounds"]
    experts: Int[Tensor, "nnz"]
    weights: Float[Tensor, "nnz"]
    load: Int[Tensor, "E"]
    importance: Float[Tensor, "E"]
    degrees: Int[Tensor, "degree"]
    capacity: int
    overflow: int
    tokens_dropped: int
    load_cv2: float
    importance_cv2: Float[Tensor, ""]
    peak_load: float
    entropy: float
    importance_entropy: float
    balance_loss: Float[Tensor, ""]
    z_loss: Float[Tensor, ""]
    lam: float
    tau: Float[Tensor, "rows"]
    support: Int[Tensor, "rows"]
    hard_fraction: float
    regime: str
    certificate: Certificate
    stop: Stop
    cautions: tuple[Caution, ...] = ()


def route(
    logits: Float[Tensor, "T E"],
    k: int,
    *,
    choice: Choice = "token",
    combine: Combine = "softmax_mask",
    lam: float | Literal["auto"] = 1.0,
    p: float = 2.0,
    temperature: float = 1.0,
    capacity_factor: float = 1.0,
    drop: bool = False,
    watch: Watch = unwatched,
) -> Routing:
    r"""Weigh experts for each token by  y = argmax <s, y> - (lam/p) sum y^p,  s = logits / t.

    Token choice takes the maximum over rows of s, y in [0, 1]^E with sum y = k; expert choice over
    columns, y in [0, 1]^T with sum y = capacity = ceil(T capacity_factor k / E). The mask y is
    sparse, and exactly the hard top-k where the k-th score beats the next by lam.
    Weights w of a token: `softmax_mask` y_e exp(s_e) over the sum of these; `mask` y / k; `raw` y.
    One scalar threshold a row gives y exactly.

    Shapes: logits (T, E) -> offsets (T + 1,), experts and weights (nnz,), load (E,).

    Args:
        lam: `auto` is the median over masks of what lies between scores around the k-th.
        temperature: t above.
        drop: let each expert keep the `capacity` tokens of largest weight (of equal ones the first)
            and weigh again among the experts that a token has left.

    Returns:
        The weights above 0, token by token; `load` and `importance` of each expert with their
        squared coefficients of variation; `degrees[j]`, tokens with j experts; `overflow`, pairs
        beyond the capacity before any is dropped; the losses that training adds; thresholds and
        supports of the masks; a `Certificate`.

    Notes:
        float64 inside; time and memory O(T E) a sweep of the threshold, 3 to 8 sweeps. Gradients of
        weights, `importance_cv2`, `balance_loss` and `z_loss` for logits: the derivative of the
        threshold equation and of the softmax; which pairs are dropped is held fixed. A weight of 0
        has gradient 0, so that the weights above 0 are all there is to differentiate.

    References:
        Sander, Puigcerver, Djolonga, Peyre, Blondel 2023, arXiv:2302.01425, section 6;
        Zhou et al. 2022, arXiv:2202.09368, section 3 (expert choice); Fedus, Zoph, Shazeer 2021,
        arXiv:2101.03961, equations 4 to 6 (balance); Zoph et al. 2022, arXiv:2202.08906,
        equation 5 (z-loss).
    """
    strengths = {"lam": lam, "temperature": temperature, "capacity_factor": capacity_factor}
    capacity = _checked(logits, k, choice, p, strengths)
    scores = logits.double() / temperature
    masks, rows, y = _masks(scores, choice, float(k if choice == "token" else capacity), lam, p)
    weights = _combined(scores, y, combine, k)
    wide = (weights.detach() > 0).sum(0)
    overflow = int((wide - capacity).clamp_min(0).sum())
    if drop:
        y = torch.where(heaviest(weights, capacity), y, 0.0)
        weights = _combined(scores, y, combine, k)
    weights = weights.to(logits)
    load = measured(scores, weights.double(), k)
    kept = weights.detach() > 0
    tokens, experts = kept.nonzero(as_tuple=True)
    counts = kept.sum(1)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    dropped = int((counts == 0).sum())
    certificate = _certificate(masks, y.detach(), weights.detach(), combine, k)
    status = "converged" if masks.proved() else "stagnated"
    return Routing(
        offsets,
        experts,
        weights[tokens, experts],
        load.load,
        load.importance.detach().to(logits),
        load.degrees,
        capacity,
        overflow,
        dropped,
        load.load_cv2,
        load.importance_cv2.to(logits),
        load.peak_load,
        load.entropy,
        load.importance_entropy,
        load.balance_loss.to(logits),
        load.z_loss.to(logits),
        masks.lam,
        rows.tau,
        rows.support,
        float(rows.hard.double().mean()),
        rows.regime,
        certificate,
        Stop(status, int(rows.iterations.max()), certificate.sum_error),
        (*_on_masks(masks, rows), *_on_load(load, dropped, choice, k, capacity)),
    )


def _checked(
    logits: Tensor, k: int, choice: Choice, p: float, strengths: dict[str, float | str]
) -> int:
    """Refuse what cannot be routed; compute how many tokens an expert should take."""
    size, experts = logits.shape
    finite = logits.detach().isfinite()
    if not logits.numel():
        raise IllPosed("logits", f"has shape ({size}, {experts}); a token and an expert are needed")
    if not bool(finite.all()):
        at = (~finite).nonzero()[0].tolist()
        raise IllPosed("logits", f"token {at[0]}, expert {at[1]} is NaN or infinite")
    if not 1 <= k <= experts:
        raise IllPosed("k", f"{k}; expected 1 <= k <= {experts}, the experts")
    for field, value in strengths.items():
        if not isinstance(value, str) and not 0 < value < LARGEST:
            raise IllPosed(field, f"{value:g}; expected a positive number below {LARGEST:g}")
    if not 1 < p <= 8:
        raise IllPosed("p", f"{p:g}; expected 1 < p <= 8")
    temperature, factor = float(strengths["temperature"]), float(strengths["capacity_factor"])
    if not float(logits.detach().abs().max()) < LARGEST * min(temperature, 1.0):
        raise IllPosed("logits", f"logits over temperature exceed {LARGEST:g}; rescale them")
    if choice == "expert" and factor * k > experts:
        raise IllPosed(
            "capacity_factor",
            f"{factor:g}: each expert would choose more than all {size} tokens; at most "
            f"E / k = {experts / k:g}",
        )
    share = min(size * factor * k / experts, float(size))
    return math.ceil(share * (1 - ROUNDING))


def _masks(
    scores: Float[Tensor, "T E"], choice: Choice, kept: float, lam: float | str, p: float
) -> tuple[Masks, Rows, Float[Tensor, "T E"]]:
    """Solve for the masks of tokens or of experts; the mask of pairs carries gradients."""
    x = scores if choice == "token" else scores.T.contiguous()
    plain = x.detach()
    strength = auto_lam(plain, kept) if isinstance(lam, str) else lam
    y, rows = differentiable_mask(x, kept, strength, p=p)
    masks = Masks(plain, rows.y, rows.tau, torch.full_like(plain[:, 0], kept), strength, p)
    return masks, rows, y if choice == "token" else y.T


def _combined(
    scores: Float[Tensor, "T E"], y: Float[Tensor, "T E"], combine: Combine, k: int
) -> Float[Tensor, "T E"]:
    """Turn masks into weights of experts; a token that no expert has keeps the weight 0."""
    if combine == "raw":
        return y
    if combine == "mask":
        return y / k
    active = y.detach() > 0
    some = active.any(1, keepdim=True)
    # among active experts alone: their largest score is taken out, so that one never underflows
    top = torch.where(active, scores.detach(), -math.inf).amax(1, keepdim=True)
    apart = torch.where(active, scores - torch.where(some, top, 0.0), -math.inf)
    raised = y * apart.exp()
    return raised / torch.where(some, raised.sum(1, keepdim=True), 1.0)


def _certificate(
    masks: Masks, y: Float[Tensor, "T E"], weights: Float[Tensor, "T E"], combine: Combine, k: int
) -> Certificate:
    """Hold the weights that are returned against what the masks say they sum to."""
    found = weights.double()
    totals = {"raw": y.sum(1), "mask": y.sum(1) / k, "softmax_mask": (y > 0).any(1).double()}
    smallest = found[found > 0]
    return Certificate(
        float(masks.sum_errors.max()),
        float(masks.gaps.max()),
        float((found.sum(1) - totals[combine]).abs().max()),
        float(smallest.min()) if len(smallest) else 0.0,
    )


def _on_masks(masks: Masks, rows: Rows) -> tuple[Caution, ...]:
    strength, rho = torch.full_like(masks.k, masks.lam), response(masks.p, "power")
    return mask_cautions(masks.x, masks.k, strength, rows, rho, "newton")


def _on_load(
    load: Load, dropped: int, choice: Choice, k: int, capacity: int
) -> tuple[Caution, ...]:
    cautions = list[Caution]()
    size, most = int(load.degrees.sum()), int(load.degrees.nonzero().max())
    if dropped:
        cautions.append(
            Caution(
                "tokens_dropped",
                f"{dropped} of {size} tokens have no expert: their weights are all 0",
                f"raise capacity_factor (an expert takes {capacity} tokens), or lam, which shares "
                "out more",
            )
        )
    if choice == "token" and most > k:
        more = int(load.degrees[k + 1 :].sum())
        cautions.append(
            Caution(
                "more_than_k",
                f"{more} of {size} tokens have more than k = {k} experts, up to {most}: entries "
                "that share a place make the choice differentiable",
                f"for exactly {k}, take a smaller lam, or drop all but the {k} largest weights",
            )
        )
    idle = (load.load == 0).nonzero()[:, 0].tolist()
    if idle:
        names = ", ".join(map(str, idle[:10])) + (", ..." if len(idle) > 10 else "")
        cautions.append(
            Caution(
                "idle_experts",
                f"{len(idle)} of {len(load.load)} experts have no token: {names}",
                "train with balance_loss or importance_cv2, or let experts choose",
            )
        )
    return tuple(cautions)
