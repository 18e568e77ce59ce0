"""Answers to many small balanced entropic questions, made in one tensor; the certificate of each.

Only plain cases are answered here: those that end converged and without a caution. `sinkhorn`
itself answers every other one, so nothing is refused or warned of in two places.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.entropic.batched import Potentials, Small, solve_small
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
    with torch.no_grad():
        problems = [_small(question, relative) for question in questions]
        plain = [i for i, p in enumerate(problems) if p is not None]
        solved = solve_small([p for p in problems if p is not None], watch=watch)
        answers: list[dict[str, Any] | None] = [None] * len(questions)
        shapes = dict[tuple[int, ...], list[tuple[int, Small, Potentials]]]()
        for i, found in zip(plain, solved, strict=True):
            p = problems[i]
            if found is not None and p is not None:
                shapes.setdefault(tuple(p.C.shape), []).append((i, p, found))
        for members in shapes.values():
            made = _measured([m[1] for m in members], [m[2] for m in members])
            for (i, _, _), answer in zip(members, made, strict=True):
                keep = questions[i].get("plan_form", "dense") == "dense"
                answers[i] = answer if answer is None or keep else answer | {"plan": None}
        return answers


def _small(question: Mapping[str, Any], relative: float) -> Small | None:
    """Read a question, if it is one for this file."""
    if any(question.get(name, usual) != usual for name, usual in USUAL.items()):
        return None
    sides = [question.get(name, Balanced()) for name in ("marginal_a", "marginal_b")]
    form, method = question.get("plan_form", "dense"), question.get("method", "auto")
    geometry = question["geometry"]
    n, m = geometry.shape
    if not all(isinstance(s, Balanced) for s in sides) or form not in ("dense", "none"):
        return None
    if method == "streamed" or not 1 < min(n, m) <= n * m <= SMALL or not _plain(geometry):
        return None
    C = geometry.matrix()
    weights = [
        torch.full((k,), 1 / k, dtype=C.dtype, device=C.device) if w is None else w
        for w, k in ((question.get("a"), n), (question.get("b"), m))
    ]
    mean, largest, *ends = torch.stack(
        [C.mean(), C.abs().amax(), *(z for w in weights for z in (w.sum(), w.amin()))]
    ).tolist()
    epsilon, share = question.get("epsilon"), question.get("epsilon_relative")
    if epsilon is None:
        epsilon = (relative if share is None else share) * mean
    elif share is not None:
        return None
    tol, (mass_a, low_a, mass_b, low_b) = question.get("tol", 1e-6), ends
    same = abs(mass_a - mass_b) <= (n + m) ** 0.5 * torch.finfo(C.dtype).eps * max(mass_a, mass_b)
    reachable = 0 < epsilon < float("inf") and tol >= REACHABLE * 2e-16 * largest / epsilon
    if not (same and reachable and min(low_a, low_b) > 0 and largest < float("inf")):
        return None
    a, b = weights[0], weights[1]
    return Small(C, a, b, mass_a, epsilon, tol, question.get("max_iter", 10_000))


def _plain(geometry: CostMatrix | PointClouds) -> bool:
    """Tell whether the cost is a plain number for each pair, in float64."""
    if geometry.like.dtype != torch.float64:
        return False
    if isinstance(geometry, CostMatrix):
        return True
    same = geometry.x.shape[1] == geometry.y.shape[1]
    return same and geometry.cost in ("sqeuclidean", "euclidean")


def _measured(problems: list[Small], found: list[Potentials]) -> list[dict[str, Any] | None]:
    r"""Compute values and certificates of problems of one shape.

    As `eps log(P/ab) = f + g - C`, the objective of P is `<P1, f> + <P^T 1, g> - eps (m(P) - m^2)`
    and the dual value `<a, f> + <b, g> - eps (m(P) - m^2)`. For the gap P is rounded to Q + R,
    Q = diag(x) P diag(y), R = da db^T / r of mass r, whose objective is bounded by convexity as
    `penalised` does it for one.
    """
    C, a, b = (torch.stack([getattr(p, name) for p in problems]) for name in ("C", "a", "b"))
    f, g, unit = (torch.stack([getattr(p, name) for p in found]) for name in ("f", "g", "plan"))
    more = [(p.epsilon, p.mass) for p in problems]
    epsilon, mass = torch.tensor(more, dtype=C.dtype, device=C.device).T
    g, P = g - (epsilon * mass.log())[:, None], unit * mass[:, None, None]
    mu, nu, total = P.sum(2), P.sum(1), P.sum((1, 2))
    errors = (mu - a).abs().sum(1), (nu - b).abs().sum(1)
    excess = epsilon * (total - mass.square())
    value = _dot(mu, f) + _dot(nu, g) - excess
    dual = _dot(a, f) + _dot(b, g) - excess
    upper = _rounded_above((C, a, b, epsilon, mass), f, g, P)
    gap = (upper - dual).clamp_min(0)
    cost = (P * C).sum((1, 2))
    spread = (_dot(mu, f) + _dot(nu, g) - cost) / epsilon - total + mass.square()
    numbers = [z.tolist() for z in (*errors, dual, gap, spread / total)]
    answers: list[dict[str, Any] | None] = []
    for k, p in enumerate(problems):
        left, right, low, apart, spread_k = (z[k] for z in numbers)
        residual = (left + right) / p.mass
        if spread_k < DEPENDENT or not residual <= p.tol:
            answers.append(None)
            continue
        answers.append(
            {
                "plan": P[k], "entries": None, "dropped": torch.zeros_like(value[k]), "map": None,
                "f": f[k], "g": g[k], "epsilon": p.epsilon, "value": value[k],
                "transport_cost": cost[k], "mass": total[k], "rows": mu[k], "columns": nu[k],
                "certificate": Certificate(left, right, left + right, None, low, apart),
                "stop": Stop("converged", found[k].sweeps, residual), "cautions": (),
            }
        )  # fmt: skip
    return answers


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
