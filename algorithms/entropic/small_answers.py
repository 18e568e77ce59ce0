"""Answers to many small balanced entropic questions, made in one tensor; the certificate of each.

Only plain cases are answered here: those that end converged and without a caution. `sinkhorn`
itself answers every other one, so nothing is refused or warned of in two places.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from algorithms.entropic.batched import ROOM, Potentials, Small, solve_small
from algorithms.entropic.penalised import Certificate
from algorithms.entropic.potentials import REACHABLE
from algorithms.geometry import CostMatrix, PointClouds
from algorithms.iterate import Stop, Watch
from algorithms.marginals import Balanced

# Above so many entries a problem is better off alone: its sweeps cost more than their calls.
SMALL = 1 << 12
# What `sinkhorn` takes for granted when a question does not say.
USUAL = {
    "entropy_reference": "product",
    "f0": None,
    "g0": None,
    "barycentric": False,
    "rounded": False,
}
# With the share of the mass below which a KL to a b^T deserves a caution, and some room.
DEPENDENT = 2e-3


def answer_small(
    questions: Sequence[Mapping[str, Any]], relative: float, watch: Watch
) -> list[dict[str, Any] | None]:
    """Return the fields of an answer for each question that is plain, None for the others.

    Args:
        relative: epsilon in means of the cost, of questions that name neither.
    """
    answers: list[dict[str, Any] | None] = [None] * len(questions)
    alike = dict[Hashable, list[int]]()
    for i, question in enumerate(questions):
        kind = _kind(question)
        if kind is not None:
            alike.setdefault(kind, []).append(i)
    with torch.no_grad():
        for members in alike.values():
            n, m = questions[members[0]]["geometry"].shape
            step = max(1, ROOM // (n * m))
            for first in range(0, len(members), step):
                some = members[first : first + step]
                _answer_alike([questions[i] for i in some], some, relative, watch, answers)
    return answers


def _answer_alike(
    questions: list[Mapping[str, Any]],
    members: list[int],
    relative: float,
    watch: Watch,
    answers: list[dict[str, Any] | None],
) -> None:
    """Answer questions of one kind where they are plain."""
    problems, plain = _stacked(questions, relative)
    which = plain.nonzero()[:, 0]
    problems = problems.pick(which)
    found = solve_small(problems, watch=watch)
    made = _measured(problems.pick(found.index), found)
    for k, answer in zip(which[found.index].tolist(), made, strict=True):
        keep = questions[k].get("plan_form", "dense") == "dense"
        answers[members[k]] = answer if answer is None or keep else answer | {"plan": None}


def _kind(question: Mapping[str, Any]) -> Hashable | None:
    """Tell which questions can be stacked: by shapes and cost; None if it is not for this file."""
    if any(question.get(name, usual) != usual for name, usual in USUAL.items()):
        return None
    sides = [question.get(name) for name in ("marginal_a", "marginal_b")]
    form, method = question.get("plan_form", "dense"), question.get("method", "auto")
    geometry = question["geometry"]
    n, m = geometry.shape
    if not all(s is None or isinstance(s, Balanced) for s in sides):
        return None
    if form not in ("dense", "none") or method == "streamed" or not 1 < min(n, m) <= n * m <= SMALL:
        return None
    both = question.get("epsilon") is not None and question.get("epsilon_relative") is not None
    if both or geometry.like.dtype != torch.float64:
        return None
    if isinstance(geometry, CostMatrix):
        return n, m
    same = geometry.x.shape[1] == geometry.y.shape[1]
    plain = same and geometry.cost in ("sqeuclidean", "euclidean")
    return (n, m, geometry.x.shape[1], geometry.cost) if plain else None


def _stacked(
    questions: list[Mapping[str, Any]], relative: float
) -> tuple[Small, Bool[Tensor, "B"]]:
    """Stack questions of one kind, and tell which of them are plain."""
    C = _costs([question["geometry"] for question in questions])
    _, n, m = C.shape
    a = torch.stack([_weights(question.get("a"), n, C) for question in questions])
    b = torch.stack([_weights(question.get("b"), m, C) for question in questions])
    strengths = [_strength(question, relative) for question in questions]
    limits = [(q.get("tol", 1e-6), float(q.get("max_iter", 10_000))) for q in questions]
    share, absolute = torch.tensor(strengths, dtype=C.dtype, device=C.device).T
    tol, max_iter = torch.tensor(limits, dtype=C.dtype, device=C.device).T
    epsilon = share * C.mean((1, 2)) + absolute
    largest, mass, other = C.abs().amax((1, 2)), a.sum(1), b.sum(1)
    room = (n + m) ** 0.5 * torch.finfo(C.dtype).eps
    plain = (mass - other).abs() <= room * torch.maximum(mass, other)
    plain &= (epsilon > 0) & epsilon.isfinite() & largest.isfinite()
    plain &= tol >= REACHABLE * 2e-16 * largest / epsilon
    plain &= torch.minimum(a.amin(1), b.amin(1)) > 0
    return Small(C, a, b, mass, epsilon, tol, max_iter.long()), plain


def _costs(geometries: list[CostMatrix | PointClouds]) -> Float[Tensor, "B n m"]:
    """Compute the costs of geometries of one kind, as each computes its own."""
    first = geometries[0]
    if isinstance(first, CostMatrix):
        return torch.stack([geometry.matrix() for geometry in geometries])
    x, y = (torch.stack([getattr(z, name) for z in geometries]) for name in ("x", "y"))
    if first.cost == "euclidean":
        return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
    centre = torch.cat([x, y], 1).mean(1, keepdim=True)
    x, y = x - centre, y - centre
    norms = x.square().sum(2)[:, :, None] + y.square().sum(2)[:, None]  # -> (B, n, m)
    return torch.baddbmm(norms, x, y.mT, alpha=-2).clamp_min(0)


def _weights(w: Float[Tensor, "k"] | None, k: int, like: Tensor) -> Float[Tensor, "k"]:
    return like.new_full((k,), 1 / k) if w is None else w


def _strength(question: Mapping[str, Any], relative: float) -> tuple[float, float]:
    """Return epsilon in means of the cost and what it is besides: one of the two is zero."""
    epsilon, share = question.get("epsilon"), question.get("epsilon_relative")
    if epsilon is not None:
        return 0.0, epsilon
    return relative if share is None else share, 0.0


def _measured(p: Small, found: Potentials) -> list[dict[str, Any] | None]:
    r"""Compute values and certificates of problems of one shape, all of them solved.

    As `eps log(P/ab) = f + g - C`, the objective of P is `<P1, f> + <P^T 1, g> - eps (m(P) - m^2)`
    and the dual value `<a, f> + <b, g> - eps (m(P) - m^2)`. For the gap P is rounded to Q + R,
    Q = diag(x) P diag(y), R = da db^T / r of mass r, whose objective is bounded by convexity as
    `penalised` does it for one.
    """
    C, a, b, epsilon, mass = p.C, p.a, p.b, p.epsilon, p.mass
    f, g = found.f, found.g - (epsilon * mass.log())[:, None]
    P = found.plan * mass[:, None, None]
    mu, nu, total = P.sum(2), P.sum(1), P.sum((1, 2))
    left, right = (mu - a).abs().sum(1), (nu - b).abs().sum(1)
    excess = epsilon * (total - mass.square())
    value = _dot(mu, f) + _dot(nu, g) - excess
    dual = _dot(a, f) + _dot(b, g) - excess
    gap = (_rounded_above((C, a, b, epsilon, mass), f, g, P) - dual).clamp_min(0)
    cost = (P * C).sum((1, 2))
    spread = (_dot(mu, f) + _dot(nu, g) - cost) / epsilon - total + mass.square()
    residual = (left + right) / mass
    plain = (spread / total >= DEPENDENT) & (residual <= p.tol)
    tensors = P, torch.zeros_like(value), f, g, value, cost, total, mu, nu
    numbers = epsilon, left, right, left + right, dual, gap, residual, found.sweeps, plain
    answers: list[dict[str, Any] | None] = []
    for fields, row in zip(
        zip(*(z.unbind() for z in tensors), strict=True),
        zip(*(z.tolist() for z in numbers), strict=True),
        strict=True,
    ):
        answers.append(_fields(*fields, row=row) if row[-1] else None)
    return answers


def _fields(*tensors: Tensor, row: tuple[Any, ...]) -> dict[str, Any]:
    """Name what an answer consists of."""
    P, nothing, f, g, value, cost, total, mu, nu = tensors
    epsilon, left, right, both, dual, gap, residual, sweeps, _ = row
    return {
        "plan": P, "entries": None, "dropped": nothing, "map": None, "f": f, "g": g,
        "epsilon": epsilon, "value": value, "transport_cost": cost, "mass": total,
        "rows": mu, "columns": nu,
        "certificate": Certificate(left, right, both, None, dual, gap),
        "stop": Stop("converged", sweeps, residual), "cautions": (),
    }  # fmt: skip


def _rounded_above(
    problem: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    f: Float[Tensor, "B n"],
    g: Float[Tensor, "B m"],
    P: Float[Tensor, "B n m"],
) -> Float[Tensor, "B"]:
    """Bound the objective of the plans rounded to exact marginals, by that of their two parts."""
    C, a, b, epsilon, mass = problem
    mu, nu = P.sum(2), P.sum(1)
    x = torch.where(mu > a, a / mu, 1.0)
    nu = nu - torch.bmm((1 - x)[:, None], P)[:, 0]
    y = torch.where(nu > b, b / nu, 1.0)
    da = (a - x * (mu - torch.bmm(P, (1 - y)[:, :, None])[:, :, 0])).clamp_min(0)
    db = (b - y * nu).clamp_min(0)
    r, eps = da.sum(1), epsilon[:, None]
    upper = _dot(a - da, f + eps * x.log()) + _dot(b - db, g + eps * y.log())
    upper = upper - epsilon * (torch.xlogy(mass - r, 1 - r / mass) + mass - mass.square())
    product = torch.xlogy(da, da / a).sum(1) + torch.xlogy(db, db / b).sum(1)
    product = product - torch.xlogy(r, r) - torch.xlogy(r, r / mass)
    moved = torch.bmm(C, (db / r.clamp_min(1e-300)[:, None])[:, :, None])[:, :, 0]
    return upper + _dot(da, moved) + epsilon * product


def _dot(x: Float[Tensor, "B k"], y: Float[Tensor, "B k"]) -> Float[Tensor, "B"]:
    return (x * y).sum(1)
