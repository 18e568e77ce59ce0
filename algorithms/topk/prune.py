"""Prune tensors to a sparsity, relaxed and exactly, at one call."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from algorithms.errors import Caution, IllPosed
from algorithms.iterate import Stop, Watch, unwatched
from algorithms.state_dict import StateDict
from algorithms.topk.operator import differentiable_values
from algorithms.topk.prune_cautions import Told, cautions_of
from algorithms.topk.prune_proof import Pooled, Pruned, choice, optimality
from algorithms.topk.pruned_rows import auto_lam, chosen, order, strengths
from algorithms.topk.sheets import Amount, Scope, Sheet, Tensors, sheets

# Conditions of optimality hold up to so much of the row: rounding of sums of many float64.
PROVED = 1e-9


@dataclass(frozen=True)
class LamSchedule:
    """A geometric sequence of so many strengths that ends with `last`."""

    steps: int
    last: float


@dataclass(frozen=True)
class Certificate:
    """What proves both answers, in float64 from what is returned.

    Attributes:
        sum_residual: largest `|sum_i min(y_i, theta) - k theta| / (k theta)` of a row.
        stationarity: largest miss of an entry's condition, as a share of its row's largest.
        miscounted_rows: rows whose hard answer does not keep exactly k.
        hard_gap: by how much a dropped entry exceeds a kept one, as such a share.
    """

    sum_residual: float
    stationarity: float
    miscounted_rows: int
    hard_gap: float


@dataclass(frozen=True)
class Pruning:
    """Soft and hard values of all tensors, their thresholds, and how to go on."""

    values: dict[str, Shaped[Tensor, "..."]]
    hard: dict[str, Shaped[Tensor, "..."]]
    kept: dict[str, Bool[Tensor, "..."]]
    hard_kept: dict[str, Bool[Tensor, "..."]]
    theta: dict[str, Float[Tensor, "..."]]
    gradients: dict[str, Float[Tensor, "..."]] | None
    pruned: tuple[Pruned, ...]
    unchanged: tuple[str, ...]
    k: int
    nnz: int
    extra: int
    soft_share: float
    lam: float
    lam_relative: bool
    lam_schedule: Float[Tensor, "T"] | None
    debias: bool
    regime: str
    certificate: Certificate
    stop: Stop
    cautions: tuple[Caution, ...]


def prune(
    tensors: dict[str, Float[Tensor, "..."]] | None = None,
    state: StateDict | None = None,
    sparsity: float | None = None,
    *,
    keep: float | None = None,
    k: int | None = None,
    scope: Scope = "per_tensor",
    group: int | None = None,
    normalise: bool = False,
    p: float = 2.0,
    lam: float | Literal["auto"] = "auto",
    lam_relative: bool = False,
    debias: bool = True,
    lam_schedule: LamSchedule | None = None,
    cotangent: dict[str, Float[Tensor, "..."]] | None = None,
    watch: Watch = unwatched,
) -> Pruning:
    r"""Solve  max_y <x, y> - |y|_(k)^2 / 2 - (lam/p) sum |y_i|^p  for each row x; keep k exactly.

    `|y|_(k)` is the k-support norm: its unit ball is the convex hull of the vectors with k non-zero
    entries and norm 1. Without the last term the answer is x with all but its k largest
    magnitudes put to 0, the hard answer; with it, magnitudes within reach of the k-th share what
    is kept, and the answer follows the entries continuously. With `s = |x|`, `r = 1/(p-1)` and the
    threshold theta, the root of `sum_i min(((s_i - theta)_+ / lam)^r, theta) = k theta`, y is 0 up
    to theta, `((s_i - theta) / lam)^r` in the block above, and solves `y + lam y^(p-1) = s_i` where
    that would exceed theta. `debias` returns `y + lam y^(p-1)` with the signs of x: s_i itself
    where an entry is a clear winner.

    Newton's steps inside a bracket find theta. A row is a tensor (`per_tensor`), all tensors
    (`global`), what feeds one output (`row`: all but the first axis), or a group of M neighbours of
    such a row (`n_m`).

    Shapes: tensors of any shapes; what is returned has the same.

    Args:
        tensors, state: what is pruned, one of the two.
        sparsity, keep, k: how much of each row is dropped, kept, or kept by number; one of the
            three. k is `round(keep * n)` of a row of n entries.
        normalise: divide each tensor by its root mean square before all are compared.
        lam: `auto` is the median over rows of `(s_(k-j) - s_(k+j)) / s_(k)` with j a tenth of k,
            and relative.
        lam_relative: multiply lam by `s_(k)^(2-p)` of each row, which makes it free of units.
        lam_schedule: strengths from lam on, for training.
        cotangent: of the soft values, by name; absent tensors have cotangent 0.

    Returns:
        Soft values, hard values (ties to the first), masks of both, thresholds in the units of the
        tensors, gradients `J^T cotangent`, counts, the strengths of a schedule, and the proof.

    Notes: time O(n) a row and sweep, 3 to 8 sweeps, memory about 30 n numbers of the longest row
    and 4 of the others; solved in float64 whatever the tensors are. Gradients by the implicit
    function theorem at fixed lam, fixed `s_(k)` in relative strengths, and fixed root mean squares.

    References: Sander, Puigcerver, Djolonga, Peyre, Blondel 2023, arXiv:2302.01425, section 4;
    Argyriou, Foygel, Srebro 2012, arXiv:1204.5043 (k-support norm); Zhou et al. 2021,
    arXiv:2102.04010 (N:M).
    """
    given = _given(tensors, state)
    amount = _amount(sparsity, keep, k, scope, normalise)
    laid = sheets(given, amount, scope, group=group, normalise=normalise)
    if lam == "auto":
        strength, lam_relative = auto_lam(laid), True
    else:
        strength = lam
    _check_cotangent(cotangent, given)
    answers = [
        _pooled(sheet, strength, cotangent, p=p, relative=lam_relative, debias=debias)
        for sheet in laid
    ]
    found = _Answer.of(answers, given, p, debias=debias)
    rest = state.rest if state is not None else {}
    nnz, kept = sum(one.nnz for one in found.pruned), sum(one.k for one in found.pruned)
    iterations = max(rows.iterations for rows, _ in answers)
    proved = found.miss <= PROVED
    told = Told(p, strength, lam_relative, cotangent is not None, normalise, found.miss, proved)
    return Pruning(
        values=found.values | rest,
        hard=found.hard | rest,
        kept=found.kept,
        hard_kept=found.hard_kept,
        theta=found.theta,
        gradients=_gradients(answers, given, cotangent),
        pruned=found.pruned,
        unchanged=tuple(rest),
        k=kept,
        nnz=nnz,
        extra=nnz - kept,
        soft_share=sum(one.soft for one in found.pruned) / max(nnz, 1),
        lam=strength,
        lam_relative=lam_relative,
        lam_schedule=_schedule(strength, lam_schedule),
        debias=debias,
        regime=", ".join(sorted({rows.regime for rows, _ in answers})),
        certificate=found.certificate,
        stop=Stop("converged" if proved else "stagnated", iterations, found.miss),
        cautions=cautions_of(
            told, given, [rows for rows, _ in answers], found.pruned,
            widened=state.widened if state is not None else (),
        ),
    )  # fmt: skip


def _given(tensors: Tensors | None, state: StateDict | None) -> Tensors:
    if (tensors is None) == (state is None):
        raise IllPosed("tensors", "give tensors or state, one of the two")
    found = tensors if tensors is not None else state.chosen if state is not None else {}
    if not found or any(tensor.numel() == 0 for tensor in found.values()):
        raise IllPosed("tensors", "there is no tensor, or one without entries; leave it out")
    return found


def _amount(
    sparsity: float | None, keep: float | None, k: int | None, scope: Scope, normalise: bool
) -> Amount:
    if sum(given is not None for given in (sparsity, keep, k)) != 1:
        raise IllPosed("sparsity", "give sparsity, keep or k, one of the three")
    if normalise and scope != "global":
        raise IllPosed("normalise", f"tensors are compared in scope global, not in {scope}")
    return Amount(sparsity, keep, k)


def _check_cotangent(cotangent: Tensors | None, given: Tensors) -> None:
    for name, g in (cotangent or {}).items():
        if name not in given:
            known = ", ".join(list(given)[:20])
            raise IllPosed("cotangent", f"{name} is not pruned here; there are {known}")
        if g.shape != given[name].shape:
            want, got = list(given[name].shape), list(g.shape)
            reason = f"{name} has shape {want}, its cotangent {got}"
            raise IllPosed("cotangent", reason, code="shape-mismatch")


Answered = tuple[Pooled, Float[Tensor, "B n"] | None]


def _pooled(
    sheet: Sheet,
    strength: float,
    cotangent: Tensors | None,
    *,
    p: float,
    relative: bool,
    debias: bool,
) -> Answered:
    """Prune the rows of one sheet, and pull the cotangent back through them."""
    s = sheet.x.abs()
    first, second = order(s, sheet.k), order(s, sheet.k + 1)
    lam, g = strengths(strength, first, p, relative=relative), None
    asked = cotangent is not None and any(name in cotangent for name in sheet.names)
    with torch.enable_grad():
        x = sheet.x.detach().requires_grad_(asked)
        z, rows = differentiable_values(x, float(sheet.k), lam, p=p, debias=debias)
        if asked and cotangent is not None:
            (g,) = torch.autograd.grad(z, x, sheet.joined(cotangent))
    found = Pooled(
        sheet=sheet,
        z=z.detach(),
        theta=rows.tau,
        lam=lam,
        first=first,
        second=second,
        chosen=chosen(s, sheet.k),
        hard=rows.hard,
        iterations=int(rows.iterations.max()),
        regime=rows.regime,
    )
    return found, g


@dataclass(frozen=True)
class _Answer:
    """What is returned of all tensors, and what proves it."""

    values: dict[str, Tensor]
    hard: dict[str, Tensor]
    kept: dict[str, Tensor]
    hard_kept: dict[str, Tensor]
    theta: dict[str, Tensor]
    pruned: tuple[Pruned, ...]
    certificate: Certificate
    miss: float  # of the conditions of optimality, before values are rounded to their type

    @staticmethod
    def of(answers: Iterable[Answered], given: Tensors, p: float, *, debias: bool) -> "_Answer":
        """Write out sheet by sheet, in the types of the tensors."""
        found = _Answer({}, {}, {}, {}, {}, (), Certificate(0.0, 0.0, 0, 0.0), 0.0)
        reports: dict[str, Pruned] = {}
        sums, off, miscounted, gap, miss = 0.0, 0.0, 0, 0.0, 0.0
        for rows, _ in answers:
            found._write(rows, given, reports, p, debias=debias)
            returned = _returned(rows, found.values)
            conditions = optimality(rows, returned, p, debias=debias)
            wrong, beyond = choice(rows)
            sums, off = max(sums, conditions[0]), max(off, conditions[1])
            miscounted, gap = miscounted + wrong, max(gap, beyond)
            miss = max(miss, *optimality(rows, rows.z, p, debias=debias))
        certificate = Certificate(sums, off, miscounted, gap)
        pruned = tuple(reports[name] for name in given)
        return _Answer(
            found.values, found.hard, found.kept, found.hard_kept, found.theta, pruned,
            certificate, miss,
        )  # fmt: skip

    def _write(
        self, rows: Pooled, given: Tensors, reports: dict[str, Pruned], p: float, *, debias: bool
    ) -> None:
        sheet = rows.sheet
        whole = rows.theta + rows.lam * rows.theta.pow(p - 1)  # above, entries are clear winners
        soft = (sheet.x.abs() < whole[:, None]) & ~rows.hard[:, None]
        columns = (rows.z, sheet.x, rows.chosen, soft)
        z, x, chosen, soft = (sheet.parts(part) for part in columns)
        for name, unit in zip(sheet.names, sheet.units, strict=True):
            tensor = given[name].detach()
            values = (z[name] * unit).to(tensor.dtype)
            if debias:  # winners to the last digit, whatever they were divided by
                values = torch.where(z[name] == x[name], tensor, values)
            self.values[name], self.kept[name] = values, values != 0
            self.hard[name] = torch.where(chosen[name], tensor, 0.0)
            self.hard_kept[name], self.theta[name] = chosen[name], rows.theta * unit
            nnz, k = int(self.kept[name].sum()), int(chosen[name].sum())
            shared = int((soft[name] & self.kept[name]).sum())
            count = sheet.x.shape[0]
            reports[name] = Pruned(name, tensor.numel(), count, k, nnz, nnz - k, shared)


def _returned(rows: Pooled, values: Mapping[str, Tensor]) -> Float[Tensor, "B n"]:
    """Lay what is returned out in rows again, in the units in which it was found."""
    units = zip(rows.sheet.names, rows.sheet.units, strict=True)
    return rows.sheet.joined({name: values[name].double() / unit for name, unit in units})


def _gradients(
    answers: Iterable[Answered], given: Tensors, cotangent: Tensors | None
) -> dict[str, Tensor] | None:
    if cotangent is None:
        return None
    found: dict[str, Tensor] = {}
    for rows, g in answers:
        pieces = rows.sheet.parts(torch.zeros_like(rows.sheet.x) if g is None else g)
        found |= {name: piece.to(given[name].dtype) for name, piece in pieces.items()}
    return found


def _schedule(first: float, asked: LamSchedule | None) -> Float[Tensor, "T"] | None:
    if asked is None:
        return None
    if asked.last >= first:
        raise IllPosed(
            "lam_schedule.last", f"{asked.last:g} is not below the first strength {first:g}"
        )
    share = torch.linspace(0, 1, asked.steps, dtype=torch.float64)
    return first * (asked.last / first) ** share
