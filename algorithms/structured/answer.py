"""From the ends of a search to an answer: units, terms, certificate, scores, cautions."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.errors import IllPosed
from algorithms.matching_scores import foscttm, label_transfer_accuracy, plan_label_accuracy
from algorithms.structured import search
from algorithms.structured.alternation import COLLAPSED, fixed_point_residual
from algorithms.structured.couplings import How
from algorithms.structured.problem import Problem, divergence
from algorithms.structured.question import Question
from algorithms.structured.readings import Seen, gromov_value, read
from algorithms.structured.verdicts import verdicts

# Singular values below this share of the largest are rounding.
NEGLIGIBLE = 1e-10
# Axes whose signs tell modes apart.
AXES = 3
# More mass than this, of measures of mass one, was made up.
MOST_MASS = 2.0

Truth = tuple[bool, Tensor | None, Tensor | None, int]


@dataclass(frozen=True)
class Terms:
    """The parts of the objective; see the schema."""

    linear: float
    shared: float
    regularizer: float
    entropy: float
    marginals: float


@dataclass(frozen=True)
class Scores:
    """How right the match is, where the truth was given."""

    foscttm: float | None
    label_transfer_accuracy: float | None
    plan_label_accuracy: float | None


@dataclass(frozen=True)
class Mode:
    """One end of the search that is unlike the others."""

    start: str
    value: float
    signs: str
    map: Float[Tensor, "e d"]
    scores: Scores


@dataclass(frozen=True)
class Certificate:
    """What shows that map and plan belong together; see the schema."""

    fixed_point_residual: float
    marginal_error_a: float
    marginal_error_b: float
    largest_increase: float
    epsilon_star: float
    collapsed: bool
    smallest_singular_value: float
    starts_tried: int
    starts_reached: int


def answered(
    q: Question,
    modes: list[search.Mode],
    attempts: list[search.Attempt],
    how: How,
    truth: Truth,
    top: int,
    y: Float[Tensor, "m e"],
) -> dict[str, Any]:
    """Write the best end out as the fields of an answer."""
    best = modes[0].ended
    p, M = q.every, best.M
    seen = read(q, M, how, top, y)
    mass = float(seen.mu.sum())
    if not mass <= MOST_MASS and not p.balanced:
        raise IllPosed(
            "rho_a" if p.rho_a is not None else "rho_b",
            f"is too small: the plan has mass {mass:.3g} between measures of mass 1, as costs "
            "take both signs; give at least the range of the costs",
        )
    s = torch.linalg.svdvals(M)
    back = 1.0 if q.asked.bounded else q.unit
    terms = _terms(q, M, seen)
    certificate = _certificate(q, best.history, M, seen, attempts)
    listed = tuple(_mode(q, mode, how, top, y, truth, seen if k == 0 else None)
                   for k, mode in enumerate(modes))  # fmt: skip
    rank = q.problem.penalty.rank
    U, sv, V = torch.linalg.svd(M * back, full_matrices=False)
    factored = q.asked.name == "rank"
    dense = seen.P is not None and q.epsilon > 0
    lam = q.problem.penalty.lam * q.unit
    return {
        "map": M * back,
        "left": U[:, :rank] if factored else None,
        "right": (sv[:rank, None] * V[:rank]).T if factored else None,
        "plan": None if dense else seen.entries,
        "dense_plan": seen.P if dense else None,
        "dropped": 0.0 if seen.P is not None else mass - float(seen.entries.mass.sum()),
        "images": seen.images,
        "f": seen.f * q.price,
        "g": seen.g * q.price,
        "epsilon": q.epsilon * q.price,
        "lam": lam if q.asked.lam is not None or q.asked.lam_relative is not None else None,
        "value": seen.value * q.price,
        "terms": terms,
        "gw": gromov_value(q, seen),
        "mass": mass,
        "singular_values": s * back,
        "numerical_rank": int((s > NEGLIGIBLE * s[0]).sum()) if float(s[0]) > 0 else 0,
        "zeros_percent": 100 * float((M == 0).double().mean()),
        "source_features": tuple((M != 0).any(0).nonzero()[:, 0].tolist()),
        "target_features": tuple((M != 0).any(1).nonzero()[:, 0].tolist()),
        **{f"{what}_{side}": getattr(z, what)
           for what in ("center", "scale") for side, z in zip("xy", q.ready, strict=True)},
        "history": M.new_tensor(best.history) * q.price,
        "attempts": tuple(search.Attempt(t.start, t.value * q.price) for t in attempts),
        "modes": listed,
        "scores": listed[0].scores,
        "certificate": certificate,
        "stop": best.stop,
        "cautions": verdicts(q, certificate, best, listed, mass),
    }  # fmt: skip


def _terms(q: Question, M: Tensor, seen: Seen) -> Terms:
    """Split the objective; what entropy and marginals cost is what the rest leaves."""
    p = q.problem
    linear = -p.alpha * float((M * seen.G).sum())
    regularizer = float(p.penalty.value(M))
    marginals = 0.0
    for rho, mu, w, at in ((p.rho_a, seen.mu, p.a, 0), (p.rho_b, seen.nu, p.b, 1)):
        if rho is not None:
            marginals += rho * float(divergence(mu[q.present[at]], w))
    entropy = seen.value - linear - seen.fixed - regularizer - marginals
    entropy = entropy if q.epsilon else 0.0
    parts = (linear, seen.fixed, regularizer, entropy, marginals)
    return Terms(*(float(part * q.price) for part in parts))


def _certificate(
    q: Question,
    history: tuple[float, ...],
    M: Tensor,
    seen: Seen,
    attempts: list[search.Attempt],
) -> Certificate:
    p = q.problem
    rises = [later - earlier for earlier, later in pairwise(history)]
    low = min(t.value for t in attempts)
    same = search.SAME_VALUE * abs(low)
    threshold = p.threshold()
    size = p.penalty.radius if q.asked.bounded else p.spread() ** 0.5
    off = [
        0.0 if rho is not None else float((mu - w).abs().sum())
        for rho, mu, w in ((p.rho_a, seen.mu, q.every.a), (p.rho_b, seen.nu, q.every.b))
    ]
    return Certificate(
        fixed_point_residual(p, M, seen.G),
        off[0],
        off[1],
        max(0.0, *rises, 0.0) * q.price,
        threshold * q.price,
        bool(torch.linalg.matrix_norm(M) <= COLLAPSED * size),
        float(torch.linalg.svdvals(seen.G)[-1]) * q.unit,
        len(attempts),
        sum(t.value <= low + same for t in attempts),
    )


def _mode(
    q: Question,
    mode: search.Mode,
    how: How,
    top: int,
    y: Tensor,
    truth: Truth,
    known: Seen | None,
) -> Mode:
    M = mode.ended.M
    seen = known or read(q, M, how, top, y)
    back = 1.0 if q.asked.bounded else q.unit
    return Mode(mode.start, seen.value * q.price, _signs(q.problem, M), M * back,
                _scores(q, seen, truth))  # fmt: skip


def _signs(p: Problem, M: Tensor) -> str:
    """Tell the signs with which a map takes principal axes to principal axes."""
    axes = []
    for Z, w in ((p.X, p.a), (p.Y, p.b)):
        V = torch.linalg.eigh((Z * w[:, None]).T @ Z)[1].flip(1)
        axes.append(V * torch.where((w @ (Z @ V).pow(3)) < 0, -1.0, 1.0))
    diagonal = (axes[1].T @ M @ axes[0]).diagonal()[:AXES]
    small = NEGLIGIBLE * float(torch.linalg.matrix_norm(M))
    return "".join("0" if abs(v) <= small else "+" if v > 0 else "-" for v in diagonal.tolist())


def _scores(q: Question, seen: Seen, truth: Truth) -> Scores:
    """Compare with what is known, between prepared points."""
    paired, labels, targets, k = truth
    y = q.ready[1].points
    if paired and len(y) != len(seen.prepared):
        raise IllPosed("paired", f"needs as many targets ({len(y)}) as sources")
    one = foscttm(seen.prepared, y) if paired else None
    if labels is None or targets is None:
        return Scores(one, None, None)
    names = labels.long(), targets.long()
    two = label_transfer_accuracy(seen.prepared, names[0], y, names[1], k)
    plan = seen.P if seen.P is not None else seen.entries
    return Scores(one, two, plan_label_accuracy(plan, *names))
