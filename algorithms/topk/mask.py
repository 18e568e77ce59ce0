"""Relaxed masks of the k largest entries of rows."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from algorithms.errors import Caution, IllPosed
from algorithms.iterate import Stop, Watch, unwatched
from algorithms.topk.cautions import mask_cautions
from algorithms.topk.derivatives import push_mask
from algorithms.topk.methods import Method
from algorithms.topk.operator import Rows, auto_lam, differentiable_mask, still, value_of
from algorithms.topk.questions import Number, amounts
from algorithms.topk.response import Regularizer, Response, response
from algorithms.topk.rows import compile_ahead
from algorithms.topk.sparse_rows import Form, SparseRows, in_form
from algorithms.topk.windows import FAR, Solved

prepare = compile_ahead


@dataclass(frozen=True)
class Certificate:
    """What proves the masks, recomputed in float64 from `y` and `tau`."""

    sum_error: float
    optimality_gap: float
    outside: float


@dataclass(frozen=True)
class Masks:
    """The masks, their thresholds, and how many entries carry a gradient."""

    y: Float[Tensor, "B n"] | None
    entries: SparseRows | None
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


def mask(
    x: Float[Tensor, "B n"],
    k: float | None = None,
    k_rows: Float[Tensor, "B"] | None = None,
    *,
    lam: float | str = "auto",
    lam_rows: Float[Tensor, "B"] | None = None,
    p: float = 2.0,
    regularizer: Regularizer = "power",
    method: Method = "newton",
    valid: Float[Tensor, "B n"] | None = None,
    answer: Form = "auto",
    tangent: Float[Tensor, "B n"] | None = None,
    watch: Watch = unwatched,
) -> Masks:
    r"""Solve `max_y <x, y> - R(y)` over y in [0, 1]^n with `sum y = k`, for each row of x.

    `R(y) = (lam/p) sum y^p` (power), `(lam/p) sum (y^p + (1-y)^p)` (two_sided), or lam times the
    binary entropy (sigmoid) or its Laplace analogue. Then `y = rho((x - tau) / lam)` with rho the
    inverse of R' at lam = 1, and one threshold tau, the root of the falling function
    `sum rho((x - tau)/lam) - k`: found by Newton's method, safeguarded by halvings, in units of
    lam from the k-th largest entry, where float32 differences are exact or nearly so.

    Shapes: x (B, n), k_rows (B,), lam_rows (B,) -> y (B, n), the rest (B,).
    Returns: masks, thresholds, counts of entries that are 1 or between, the value, and a proof.
    Notes: time O(B n) and a few sweeps over the entries near the threshold; no sort. Gradients by
    the implicit function theorem, `J = diag(d) - d d^T / sum d` with d = rho'/lam, from the
    threshold alone; those of `value` by the envelope theorem. For p < 2 the Jacobian of the power
    mask is continuous where entries reach 0, and jumps where one reaches 1 while others are
    between. Rows with a gap of at least lam behind the k-th entry are exactly hard.
    References: Sander, Puigcerver, Djolonga, Peyre, Blondel 2023, arXiv:2302.01425, sections 3, 4.
    """
    rho, kept = response(p, regularizer), amounts("k", k, k_rows)
    known = x if valid is None else torch.where(valid > 0, x, -torch.inf)
    strength = lam_rows if lam_rows is not None else _named(lam, known, kept)
    y, rows = differentiable_mask(
        known, kept, strength, p=p, regularizer=regularizer, method=method, watch=watch
    )
    given = torch.as_tensor(strength, dtype=torch.float64, device=x.device).expand(x.shape[0])
    value = value_of(known, kept, strength, rows, rho)
    dense, entries = in_form(y, answer)
    moved = None
    if tangent is not None:
        assert isinstance(rows.solved, Solved)
        moved = push_mask(known.detach(), given.detach(), rows.solved, rho, tangent)
    proof = certified(known.detach(), still(kept), given.detach(), rows, rho)
    stop = Stop(rows.stop.status, rows.stop.iterations, proof.sum_error)
    cautions = mask_cautions(known.detach(), still(kept), given.detach(), rows, rho, method)
    return Masks(
        y=dense,
        entries=entries,
        value=value,
        tau=rows.tau,
        lam=given.detach(),
        support=rows.support,
        saturated=rows.saturated,
        interior=rows.interior,
        hard=rows.hard,
        regime=rows.regime,
        jvp=moved,
        certificate=proof,
        stop=stop,
        cautions=cautions,
    )


def _named(lam: int | float | str, x: Tensor, k: Number) -> Number:
    """Take the strength that was named, or choose one."""
    if not isinstance(lam, str):
        return lam
    if lam != "auto":
        raise IllPosed("lam", f"received {lam}; expected a number > 0, or auto", code="validation")
    return auto_lam(x, k)


def certified(
    x: Float[Tensor, "B n"], k: Number, lam: Float[Tensor, "B"], rows: Rows, rho: Response
) -> Certificate:
    """Measure what masks miss of feasibility, and of the best value at most."""
    y, kept = rows.y.double(), torch.as_tensor(k, dtype=torch.float64, device=x.device)
    miss = float((y.sum(1) - kept).abs().amax())
    z = ((x.double() - rows.tau[:, None]) / lam[:, None]).clamp(-FAR, FAR)
    best = rho.value(z)
    moved = best != y  # elsewhere nothing is lost, and 0 times far is nothing
    lost = torch.where(moved, z * (best - y), 0.0).sum(1) - (rho.price(best) - rho.price(y))
    gap = float((lam * lost.clamp(min=0)).amax())
    outside = float(torch.maximum(-y, y - 1).clamp(min=0).amax())
    return Certificate(miss, gap, outside)
