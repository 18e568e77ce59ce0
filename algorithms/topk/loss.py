"""Top-k losses that are zero where the truth is among the k largest scores by a margin."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from algorithms.errors import Caution, IllPosed
from algorithms.iterate import Stop, Watch, unwatched
from algorithms.topk.cautions import mask_cautions
from algorithms.topk.operator import auto_lam
from algorithms.topk.ranks import labels_within, targets_within
from algorithms.topk.response import response
from algorithms.topk.revival import reviving_lam
from algorithms.topk.row_losses import Kind, RowLosses, completed, fenchel_young, likelihood
from algorithms.topk.sparse_rows import Form, SparseRows, in_form

# Products of stronger regularisers and scores leave the range of numbers.
LARGEST = 1e100


@dataclass(frozen=True)
class Certificate:
    """What proves losses and gradients, recomputed in float64."""

    sum_error: float
    optimality_gap: float
    gradient_sum: float
    smallest_loss: float
    curvature_slack: float | None


@dataclass(frozen=True)
class Losses:
    """What each row loses, its gradient, how often the truth ranks high, and what masks did."""

    value: Float[Tensor, ""]
    losses: Float[Tensor, "B"]
    gradient: Float[Tensor, "B n"] | None
    entries: SparseRows | None
    accuracy: Float[Tensor, "J"]
    dead_fraction: float
    dead: Bool[Tensor, "B"]
    lam: float
    tau: Float[Tensor, "B"]
    support: Int[Tensor, "B"]
    saturated: Int[Tensor, "B"]
    interior: Int[Tensor, "B"]
    hard: Bool[Tensor, "B"]
    regime: str
    certificate: Certificate
    stop: Stop
    cautions: tuple[Caution, ...] = ()


def loss(
    x: Float[Tensor, "B n"],
    labels: Float[Tensor, "B"] | None = None,
    targets: Float[Tensor, "B n"] | None = None,
    *,
    kind: Kind = "partial_fy",
    k: int | None = None,
    lam: float | Literal["auto"] = 1.0,
    p: float = 2.0,
    answer: Form = "auto",
    watch: Watch = unwatched,
) -> Losses:
    r"""Evaluate, row by row, a loss of the relaxed top-k mask  y = argmax <x, y> - R(y).

    The maximum f_R(x) is over P_k = {y in [0, 1]^n, sum y = k}, with R(y) = (lam/p) sum_i y_i^p.

    `fy`: L = f_R(x) + R(y*) - <x, y*> for targets y* in P_k. L >= 0 is convex with gradient
    y - y*; it is zero iff y = y*, for k-hot y* iff every true score beats every false one by lam.
    `partial_fy`: the same for one known label c, with the y* of P_k that has y*_c = 1 and loses
    least: l = f_{R,k}(x) - [x_c - lam/p + f_{R,k-1}(x without c)], zero iff y_c = 1, as is its
    gradient. For k = 1 it is convex, for more the least of convex functions.
    `hit`: 1 - y_c.  `nll`: -log max(y_c, 1e-12). Dead where y_c = 0 exactly: the mask is sparse,
    so a label that scores below the threshold gets no gradient.
    One scalar threshold a row, found exactly, gives y; losses are sums of non-negative terms.

    Shapes: x (B, n), labels (B,), targets (B, n) -> losses (B,), gradient (B, n), accuracy (J,).

    Args:
        labels: index of the true column of each row, for `partial_fy`, `hit` and `nll`.
        lam: `auto` is the median over rows of what lies between scores around the k-th.
        targets: for `fy`, entries in [0, 1]; the k of a row is its sum, and need not be whole.

    Returns:
        `value`, the mean of `losses`; the gradient of each row's own loss, dense or by its
        non-zero entries; `accuracy[j-1]`, how often the label is among the j highest scores (`fy`:
        the share of what j scores can hold), equal scores sharing their ranks; which rows are
        `dead`: a loss that is not zero with a gradient that is; threshold and counts of the masks.

    Notes:
        float64 inside. Time O(B n) a sweep of the threshold, 3 to 8 sweeps, and O(B n log n) for
        the accuracies of `fy`; memory O(B n). Gradients of `value` and `losses` for x in closed
        form (fy kinds), or by the derivative of the mask; one-sided where y has a kink.

    References:
        Sander, Puigcerver, Djolonga, Peyre, Blondel 2023, arXiv:2302.01425, sections 4 and 5;
        Blondel, Martins, Niculae 2020, arXiv:1901.02324, propositions 2 and 3.
    """
    _refuse(x, lam, p)
    scores = x.detach().double()
    if kind == "fy":
        wanted = _checked_targets(scores, labels, targets, k)
        strength = auto_lam(scores, wanted.sum(1)) if lam == "auto" else lam
        found, accuracy = fenchel_young(scores, wanted, strength, p), targets_within(scores, wanted)
    else:
        kept, columns = _checked_labels(scores, labels, targets, k)
        strength = auto_lam(scores, float(kept)) if lam == "auto" else lam
        found = _labelled(kind, scores, columns, kept, strength, p)
        accuracy = labels_within(scores, columns, kept)
    losses, gradient = found.losses.to(x), found.gradient.to(x)
    if not bool(losses.isfinite().all()):
        raise IllPosed("x", f"the loss overflows {str(x.dtype)[6:]}; rescale the scores")
    if not bool(gradient.sum().isfinite()):
        raise IllPosed("p", f"with p {p:g} above 2 the slope of the mask is unbounded near 0")
    dead = (found.losses > 0) & ~(found.gradient != 0).any(1)
    certificate = _certificate(found, losses, gradient)
    status = "converged" if found.masks.proved() else "stagnated"
    losses = Attached.apply(x, losses, gradient)
    dense, entries = in_form(gradient, answer)
    return Losses(
        losses.mean(),
        losses,
        dense,
        entries,
        accuracy.to(x),
        float(dead.double().mean()),
        dead,
        strength,
        found.rows.tau,
        found.rows.support,
        found.rows.saturated,
        found.rows.interior,
        found.rows.hard,
        found.rows.regime,
        certificate,
        Stop(status, int(found.rows.iterations.max()), certificate.sum_error),
        (*_on_dead(found, dead, kind, labels), *_on_masks(found)),
    )


class Attached(torch.autograd.Function):
    """Attach the gradient of each row's loss, which is known, to the losses."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, losses: Tensor, gradient: Tensor) -> Tensor:
        """Return the losses."""
        ctx.save_for_backward(gradient)
        return losses.clone()

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] -- ctx loses its name
        ctx: Any, *cotangents: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Weigh the gradients of rows."""
        return cotangents[0][:, None] * ctx.saved_tensors[0], None, None


def _labelled(
    kind: Kind, x: Float[Tensor, "B n"], labels: Int[Tensor, "B"], k: int, lam: float, p: float
) -> RowLosses:
    if kind == "partial_fy":
        return fenchel_young(x, completed(x, labels, k, lam, p), lam, p)
    return likelihood(kind, x, labels, k, lam, p)


def _refuse(x: Tensor, lam: float | str, p: float) -> None:
    if not x.numel():
        raise IllPosed("x", f"has shape {tuple(x.shape)}; rows of at least one score are needed")
    finite = x.detach().isfinite()
    if not bool(finite.all()):
        at = (~finite).nonzero()[0].tolist()
        raise IllPosed("x", f"row {at[0]}, column {at[1]} is NaN or infinite")
    if not isinstance(lam, str) and not 0 < lam < LARGEST:
        raise IllPosed("lam", f"{lam:g}; expected a positive number below {LARGEST:g}, or auto")
    if not 1 < p <= 8:
        raise IllPosed("p", f"{p:g}; expected 1 < p <= 8")


def _checked_targets(
    x: Tensor, labels: Tensor | None, targets: Tensor | None, k: int | None
) -> Tensor:
    if targets is None:
        raise IllPosed("targets", "fy needs a row of targets for each row of scores")
    if labels is not None:
        raise IllPosed("labels", "fy takes targets; leave labels out, or ask partial_fy")
    if k is not None:
        raise IllPosed("k", "fy takes k from the sum of each row of targets; leave it out")
    wanted = targets.detach().to(x)
    wrong = ~((wanted >= 0) & (wanted <= 1))
    if bool(wrong.any()):
        i, j = wrong.nonzero()[0].tolist()
        raise IllPosed("targets", f"row {i}, column {j} is {float(wanted[i, j]):g}, not in [0, 1]")
    if not bool(wanted.any()):
        raise IllPosed("targets", "all targets are 0: no row has anything to find")
    return wanted


def _checked_labels(
    x: Tensor, labels: Tensor | None, targets: Tensor | None, k: int | None
) -> tuple[int, Int[Tensor, "B"]]:
    n = x.shape[1]
    if labels is None:
        raise IllPosed("labels", "this kind needs the true column of each row")
    if targets is not None:
        raise IllPosed("targets", "this kind takes labels; leave targets out, or ask fy")
    if k is None or not 1 <= k <= n:
        raise IllPosed("k", f"{k}; expected 1 <= k <= {n}, the columns of x")
    wrong = ~((labels >= 0) & (labels < n) & (labels == labels.floor()))
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        got = float(labels[row])
        raise IllPosed(
            "labels", f"row {row} has {got:g}; expected a whole number from 0 to {n - 1}"
        )
    return k, labels.detach().long()


def _certificate(found: RowLosses, losses: Tensor, gradient: Tensor) -> Certificate:
    seen = losses.detach().double()
    slack = None if found.curvature is None else float((seen - found.curvature).min())
    return Certificate(
        float(found.masks.sum_errors.max()),
        float(found.masks.gaps.max()),
        float(gradient.double().sum(1).abs().max()),
        float(seen.min()),
        slack,
    )


def _on_dead(
    found: RowLosses, dead: Bool[Tensor, "B"], kind: Kind, labels: Tensor | None
) -> tuple[Caution, ...]:
    """Say how many rows learn nothing, and what would help."""
    if labels is None or not bool(dead.any()):
        return ()
    masks, columns, rows = found.masks, labels.long(), dead.nonzero()[:, 0]
    needed = reviving_lam(masks.x, rows, columns, int(masks.k[0]), masks.p)
    below = masks.tau[rows] - masks.x[rows, columns[rows]]
    return (
        Caution(
            "dead_losses",
            f"{len(rows)} of {len(dead)} rows have a loss and a gradient of exactly zero: their "
            f"label scores up to {float(below.max()):.3g} below the threshold of the mask",
            f"lam above {float(needed.median()):.3g} wakes half of them, above "
            f"{float(needed.max()):.3g} all ({len(needed)} looked at; lam is {masks.lam:.3g}); or "
            f"ask partial_fy in place of {kind}: its gradient is zero only where its loss is",
        ),
    )


def _on_masks(found: RowLosses) -> tuple[Caution, ...]:
    """Say what masks themselves call for; that they are hard is no harm to a loss."""
    masks, n = found.masks, found.masks.x.shape[1]
    strength = torch.full_like(masks.k, masks.lam)
    rho = response(masks.p, "power")
    told = mask_cautions(masks.x, masks.k, strength, found.rows, rho, "newton")
    cautions = [caution for caution in told if caution.code != "no_gradient"]
    whole = int((masks.k >= n).sum())
    if whole:
        cautions.append(
            Caution(
                "nothing_to_choose",
                f"{whole} rows keep all {n} columns: their mask is 1 and their loss 0 whatever the "
                "scores",
                f"ask for k below {n}",
            )
        )
    return tuple(cautions)
