"""Relaxed values of the k largest entries of rows."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from algorithms.errors import Caution
from algorithms.iterate import Stop, Watch, unwatched
from algorithms.topk import mask as masks
from algorithms.topk.answers import Rows
from algorithms.topk.cautions import mask_cautions, value_cautions
from algorithms.topk.derivatives import push_mask, push_values
from algorithms.topk.magnitude import Shrunk, ratio, shrink
from algorithms.topk.methods import Method
from algorithms.topk.operator import differentiable_mask, differentiable_values, value_of
from algorithms.topk.questions import amounts, auto_lam, whole_amounts
from algorithms.topk.response import Response, response
from algorithms.topk.sparse_rows import Form, SparseRows, in_form
from algorithms.topk.windows import Solved

Mode = Literal["magnitude", "signed"]
# Scales and strengths stay within these bounds, so that their products are numbers.
LEAST, MOST = 1e-290, 1e290


@dataclass(frozen=True)
class Certificate:
    """What proves the values, recomputed in float64 from `y` and `tau`."""

    sum_error: float
    stationarity_error: float


@dataclass(frozen=True)
class Values:
    """The values, their thresholds, and how many entries are pooled."""

    y: Float[Tensor, "B n"] | None
    entries: SparseRows | None
    debiased: bool
    value: Float[Tensor, "B"]
    tau: Float[Tensor, "B"]
    lam: Float[Tensor, "B"]
    support: Int[Tensor, "B"]
    saturated: Int[Tensor, "B"]
    interior: Int[Tensor, "B"]
    hard: Bool[Tensor, "B"]
    regime: str
    jvp: Float[Tensor, "B n"] | None
    certificate: Certificate
    stop: Stop
    cautions: tuple[Caution, ...]


@dataclass(frozen=True)
class Found:
    """What both modes find: values with gradients, and what is said of them."""

    y: Float[Tensor, "B n"]
    value: Float[Tensor, "B"]
    rows: Rows
    jvp: Float[Tensor, "B n"] | None
    certificate: Certificate
    cautions: tuple[Caution, ...]


def values(
    x: Float[Tensor, "B n"],
    k: int | None = None,
    k_rows: Float[Tensor, "B"] | None = None,
    *,
    lam: float | None = None,
    lam_relative: float | None = None,
    lam_rows: Float[Tensor, "B"] | None = None,
    p: float = 2.0,
    mode: Mode = "magnitude",
    debias: bool = True,
    method: Method = "newton",
    answer: Form = "auto",
    tangent: Float[Tensor, "B n"] | None = None,
    watch: Watch = unwatched,
) -> Values:
    r"""Solve `max_y <x, y> - |y|_k^2 / 2 - (lam/p) sum |y|^p` for each row of x (magnitude).

    `|.|_k` is the k-support norm. With s = |x| and one threshold tau, the root of
    `sum min(((s - tau)_+/lam)^(1/(p-1)), tau) = k tau`: entries where the power is at least tau
    are `v` with `v + lam v^(p-1) = s`; those above tau are `((s - tau)/lam)^(1/(p-1))`, pooled; the
    others are 0. Debiased: `v + lam v^(p-1)`. Signed: x times the mask of topk.mask.

    Rows are divided by their k-th largest magnitude, and the root is found by Newton's method,
    safeguarded by halvings, in units of lam from there.

    Shapes: x (B, n), k_rows (B,), lam_rows (B,) -> y (B, n), the rest (B,).
    Returns: values, thresholds, counts of clear winners and of pooled entries, and a proof.
    Notes: time O(B n) and a few sweeps over the entries near the threshold; no sort. Gradients by
    the implicit function theorem from the threshold alone; the Jacobian of debiased values is not
    symmetric for p != 2. Those of `value` by the envelope theorem.
    References: Sander, Puigcerver, Djolonga, Peyre, Blondel 2023, arXiv:2302.01425, sections 3, 4;
    Argyriou, Foygel, Srebro 2012, arXiv:1204.5043 (k-support norm).
    """
    rho = response(p, "power")
    kept = whole_amounts(amounts("k", k, k_rows), x)
    strength = lam_rows if lam_rows is not None else _strengths(x, kept, lam, lam_relative, p, mode)
    asked = Asked(x, kept, strength, rho, method, tangent)
    found = _signed(asked, watch) if mode == "signed" else _magnitudes(asked, debias, watch)
    dense, entries = in_form(found.y, answer)
    rows, proof = found.rows, found.certificate
    return Values(
        y=dense,
        entries=entries,
        debiased=mode == "magnitude" and debias,
        value=found.value,
        tau=rows.tau,
        lam=strength.detach().double(),
        support=rows.support,
        saturated=rows.saturated,
        interior=rows.interior,
        hard=rows.hard,
        regime=rows.regime,
        jvp=found.jvp,
        certificate=proof,
        stop=Stop(rows.stop.status, rows.stop.iterations, proof.sum_error),
        cautions=found.cautions,
    )


@dataclass(frozen=True)
class Asked:
    """A question of either mode: rows, how many each keeps, how smoothly, by which method."""

    x: Float[Tensor, "B n"]
    k: Float[Tensor, "B"]
    lam: Float[Tensor, "B"]
    rho: Response
    method: Method
    tangent: Float[Tensor, "B n"] | None


def _strengths(
    x: Tensor, k: Tensor, lam: float | None, relative: float | None, p: float, mode: Mode
) -> Float[Tensor, "B"]:
    """Give each row its lam: as named, or in units of its k-th magnitude."""
    known = x.detach().double()
    if lam is not None:
        return torch.full_like(k, lam)
    if relative is None and mode == "signed":
        return torch.full_like(k, auto_lam(known, k))
    s = known.abs()
    order = s.sort(1, descending=True).values
    at = order.gather(1, k.clamp(1, x.shape[1]).long()[:, None] - 1)[:, 0]
    scale = torch.where(at > 0, at, 1.0)
    if relative is None:
        relative = auto_lam((s / scale[:, None]).clamp(max=MOST), k)
    unit = scale if mode == "signed" else scale.pow(2 - p)
    return (relative * unit).clamp(LEAST, MOST)


def _signed(asked: Asked, watch: Watch) -> Found:
    """Multiply by the mask."""
    x, known = asked.x, asked.x.detach()
    y, rows = differentiable_mask(
        x, asked.k, asked.lam, p=asked.rho.p, method=asked.method, watch=watch
    )
    lam = asked.lam.detach().double()
    moved, tangent = None, asked.tangent
    if tangent is not None:
        assert isinstance(rows.solved, Solved)
        turned = push_mask(known, lam, rows.solved, asked.rho, tangent)
        moved = tangent * rows.y + known * turned
    proof = masks.certified(known, asked.k, lam, rows, asked.rho)
    largest = float(known.abs().amax()) or 1.0
    return Found(
        y=x * y + 0.0,  # no negative zeros
        value=value_of(x, asked.k, asked.lam, rows, asked.rho),
        rows=replace(rows, support=((known * rows.y) != 0).sum(1)),
        jvp=moved,
        certificate=Certificate(proof.sum_error, proof.optimality_gap / largest),
        cautions=mask_cautions(known, asked.k, lam, rows, asked.rho, asked.method),
    )


def _magnitudes(asked: Asked, debias: bool, watch: Watch) -> Found:
    """Keep the largest magnitudes."""
    x, k, p = asked.x, asked.k, asked.rho.p
    y, rows = differentiable_values(
        x, k, asked.lam, p=p, debias=debias, method=asked.method, watch=watch
    )
    known, lam, moved = x.detach(), asked.lam.detach().double(), None
    assert isinstance(rows.solved, Shrunk)
    if asked.tangent is not None:
        moved = push_values(known, k, rows.solved, asked.tangent, p=p, debias=debias)
    magnitudes = rows.y.double().abs()
    v = shrink(magnitudes, lam, p) if debias else magnitudes
    return Found(
        y=y,
        value=_maximum(x, asked.lam, v, rows, k, p),
        rows=rows,
        jvp=moved,
        certificate=_certified(known.double().abs(), v, k, lam, rows, p),
        cautions=value_cautions(known.abs(), lam, k, rows, asked.rho, asked.method),
    )


def _maximum(
    x: Tensor, lam: Tensor, v: Tensor, rows: Rows, k: Tensor, p: float
) -> Float[Tensor, "B"]:
    """Compute the value in its dual form, with the gradients of the envelope theorem."""
    strength, theta = lam.detach().double(), rows.tau
    capped = torch.where(v >= theta[:, None], v, 0.0)
    rest = (k - rows.saturated).clamp(min=0)
    powers = v.pow(p).sum(1)
    level = strength * (p - 1) / p * powers + (capped.pow(2).sum(1) + rest * theta.pow(2)) / 2
    slope = torch.copysign(v, x.detach().double())
    level = level + ((x - x.detach()) * slope).sum(1) - (lam - lam.detach()) * powers / p
    return level.to(x.dtype)


def _certified(s: Tensor, v: Tensor, k: Tensor, lam: Tensor, rows: Rows, p: float) -> Certificate:
    """Measure what values miss of the equation of the threshold, and of stationarity."""
    theta = rows.tau[:, None]
    shared = ratio(torch.minimum(v, theta).sum(1), rows.tau)
    miss = torch.where(rows.tau > 0, (shared - k).abs(), 0.0)
    miss = torch.where((k > 0) & (k < s.shape[1]), miss, 0.0)
    least = s - torch.maximum(v, theta)
    wrong = torch.where(v > 0, (least - lam[:, None] * v.pow(p - 1)).abs(), least.clamp(min=0))
    unit = s.amax(1, keepdim=True)
    wrong = torch.where(unit > 0, wrong / unit, 0.0)
    return Certificate(float(miss.amax()), float(wrong.amax()))
