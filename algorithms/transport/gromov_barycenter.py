"""Gromov-Wasserstein barycenters: the mean of spaces that share no coordinates."""

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse.linalg import eigsh
from torch import Tensor

from algorithms.entropic.rounding import round_plan
from algorithms.errors import Caution, IllPosed
from algorithms.iterate import Stop, Watch, iterate, quietly, unwatched
from algorithms.measures import same_mass
from algorithms.measures import weights as measure
from algorithms.quadratic.dense import gradient_scale, solve_dense
from algorithms.quadratic.entropic import solve_entropic
from algorithms.quadratic.objective import Found, Pair, marginals
from algorithms.quadratic.quantised import part, selected
from algorithms.simplex import network_simplex
from algorithms.spaces import Cloud, Relations, Space, space
from algorithms.sparse import SparsePlan

Method = Literal["conditional_gradient", "entropic"]

# Rounds in which plans are sought from many starts; later ones go on from the plans they have.
SEARCHING = 2
# First means, each a selection of the points of one input.
FIRSTS = 3
# Inner steps gain less than this share of the outer tolerance when they end, and so many are made.
INNER, INNER_STEPS = 0.1, 20
# Entropic plans move on by so many steps a round, or until a step moves less than this share.
SMOOTH_STEPS, SMOOTH_TOL = 10, 1e-6
# Default strength of `entropic`, as a share of the size of the gradient.
STRENGTH = 0.02
# Decreases below this share of the squared costs are rounding.
ROUNDING = 1e-14
# Largest cost: its square, summed over all pairs, is still a number.
LARGEST = 1e70
# Spaces of more points are drawn by Lanczos iterations.
SMALL = 500
# Two axes that hold less of the squared spectrum show little of a space.
FLAT = 0.5


@dataclass(frozen=True)
class WeightedSpace:
    """One space, by points (squared distances) or by a matrix of costs, and its weights."""

    x: Float[Tensor, "n d"] | None = None
    C: Float[Tensor, "n n"] | None = None
    a: Float[Tensor, "n"] | None = None


@dataclass(frozen=True)
class Certificate:
    """What can be checked of the answer, recomputed in float64 from what is returned.

    Attributes:
        objective: `sum_k w_k GW(C, C_k)` of the plans.
        barycenter_error: largest distance of C from the best C for these plans, as a share of
            the largest entry.
        marginal_error: the largest L1 error of a marginal of a plan, as a share of the mass.
        plan_gap: `sum_k w_k <gradient_k, P_k - V_k>` with V_k the best corner: zero where
            no linear step improves any plan; None for `entropic`.
    """

    objective: float
    barycenter_error: float
    marginal_error: float
    plan_gap: float | None


@dataclass(frozen=True)
class Barycenter:
    """The mean space, how it is matched with each input, and how far it is from each."""

    C: Float[Tensor, "n n"]
    a: Float[Tensor, "n"]
    plans: tuple[SparsePlan, ...]
    gw: Float[Tensor, "k"]
    value: float
    epsilon: float | None
    coordinates: Float[Tensor, "n 2"]
    shown: float
    certificate: Certificate
    stop: Stop
    cautions: tuple[Caution, ...]


@dataclass(frozen=True)
class Problem:
    """Spaces of one mass and what is asked of their mean; float64 on the CPU."""

    spaces: tuple[Space, ...]
    b: tuple[Tensor, ...]
    w: Float[Tensor, "k"]
    a: Float[Tensor, "n"]
    epsilon: float | None
    starts: int
    tol: float

    def pair(self, C: Float[Tensor, "n n"], k: int) -> Pair:
        """Pose the problem between the mean and one space."""
        return Pair(Relations(C), self.spaces[k], self.a, self.b[k])


@dataclass(frozen=True)
class Mean:
    """A mean space with the plans that it is the best for, the distances, and the last gain."""

    C: Float[Tensor, "n n"]
    plans: tuple[Tensor, ...]
    gw: tuple[float, ...]
    value: float
    gain: float = 1.0
    rounds: int = 0


def gromov_barycenter(
    spaces: tuple[WeightedSpace, ...],
    *,
    weights: Float[Tensor, "k"] | None = None,
    size: int | None = None,
    a: Float[Tensor, "n"] | None = None,
    method: Method = "conditional_gradient",
    epsilon: float | None = None,
    starts: int = 8,
    tol: float = 1e-6,
    max_iter: int = 100,
    generator: torch.Generator,
    watch: Watch = unwatched,
) -> Barycenter:
    r"""Minimise `sum_k w_k GW(C, C_k)` over matrices C (n, n) between n points of weights a.

    `GW(C, C_k) = min_P sum_ijpq (C_ip - C_k,jq)^2 P_ij P_pq` over plans P with `P 1 = a`,
    `P^T 1 = a_k`. Rounds of two steps: a plan P_k to each space, then
    `C = sum_k w_k P_k C_k P_k^T / (a a^T)`, the best for these plans. Neither raises the objective.
    The first C is a selection of the points of one space; each of the three of largest weight
    has a try, and the one that is best after a round goes on.

    Shapes: weights (k,), a (n,); each of the spaces has its own number of points.

    Args:
        spaces: the inputs, all of one mass.
        weights: w, at least zero, divided by their sum; None is equal weights.
        size: n; None is the length of a or else the number of points of the space of largest
            weight.
        a: weights of the points of the mean, of the mass of the inputs; None is uniform.
        method: `conditional_gradient` seeks plans that no linear step improves; `entropic` plans
            of `GW + epsilon KL(P | a a_k^T)`, which blur the mean.
        epsilon: of `entropic`; None is 0.02 times the squared mean cost, the largest of all.
        starts: from which plans are sought in the first two rounds.
        tol: rounds end when one gains no more than this share of the objective.
        max_iter: rounds.
        generator: draws starts and the first points.
        watch: asked before each round; when it says no, the mean so far is returned.

    Returns:
        A `Barycenter`: `C` and `a`; `plans`, from the mean to each input; `gw`, the distances
        `GW(C, C_k)` along them; `value`, their mean with weights w; `epsilon`;
        `coordinates`, the mean drawn in the plane by classical scaling (of C as squared
        distances if some input is given by points, else of C as distances), and `shown`,
        the share of the squared spectrum that these two axes hold; a `Certificate`; the `Stop`,
        with the relative gain of the last round as residual; cautions.

    Notes:
        float64 on the CPU inside. A round costs a few problems of exact transport for each
        space and products of n^2 m_k + n m_k^2. Not convex: a local minimum; seeds may differ.
        Without gradients.

    References:
        Peyre, Cuturi, Solomon 2016, section 4 (the problem, the update of C);
        Vayer et al. 2019, arXiv:1805.09114, section 3 (conditional gradient).
    """
    p = _posed(spaces, weights, size, a, method, epsilon, starts, tol)
    heaviest = p.w.argsort(descending=True)[:FIRSTS].tolist()
    firsts = [_first(p, k, generator) for k in heaviest if float(p.w[k]) > 0]
    rounds = (_round(p, first, generator, quietly(watch)) for first in firsts)
    state = min(rounds, key=lambda mean: mean.value)
    state, stop = iterate(
        lambda mean: _round(p, mean, generator, quietly(watch)),
        lambda mean: mean.gain,
        state,
        tol=tol,
        max_iter=max_iter - 1,
        watch=watch,
    )
    stop = replace(stop, iterations=stop.iterations + 1)
    return _answer(p, state, stop, spaces)


def _posed(
    spaces: tuple[WeightedSpace, ...],
    w: Float[Tensor, "k"] | None,
    size: int | None,
    a: Float[Tensor, "n"] | None,
    method: Method,
    epsilon: float | None,
    starts: int,
    tol: float,
) -> Problem:
    """Check the inputs and bring them to float64 on the CPU and to one mass."""
    if not spaces:
        raise IllPosed("spaces", "is empty; a mean needs at least one space")
    inner, masses = [], []
    for k, one in enumerate(spaces):
        Z = space(f"spaces.{k}.x", one.x, f"spaces.{k}.C", one.C)
        _check_range(Z, k)
        masses.append(_wide(measure(f"spaces.{k}.a", one.a, Z.size, Z.like)))
        inner.append(Cloud(_wide(Z.x)) if isinstance(Z, Cloud) else Relations(_wide(Z.C)))
    share = _wide(measure("weights", w, len(spaces), inner[0].like))
    share = share / share.sum()
    if a is None:
        n = inner[int(share.argmax())].size if size is None else size
        mean = torch.full((n,), float(masses[0].sum()) / n, dtype=torch.float64)
    else:
        if size is not None and size != len(a):
            raise IllPosed("size", f"is {size}; a has {len(a)} weights")
        mean = _wide(measure("a", a, len(a), a))
    for k, b in enumerate(masses):
        try:
            masses[k] = same_mass(mean, b)[0]
        except IllPosed as mismatch:
            raise IllPosed(f"spaces.{k}.a", mismatch.reason) from None
    p = Problem(tuple(inner), tuple(masses), share, mean, None, starts, tol)
    if method == "conditional_gradient":
        if epsilon is not None:
            raise IllPosed("epsilon", "belongs to the method entropic")
        return p
    if epsilon is None:
        pairs = (Pair(Z, Z, b, b) for Z, b in zip(p.spaces, p.b, strict=True))
        epsilon = STRENGTH * max(gradient_scale(pair) for pair in pairs)
    if not (0 < epsilon < math.inf):
        raise IllPosed("epsilon", f"is {epsilon}; it must be positive: are all costs zero?")
    return replace(p, epsilon=epsilon)


def _wide(z: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    return z.detach().double().cpu()


def _check_range(Z: Space, k: int) -> None:
    """Refuse costs whose squares leave the range of numbers."""
    values, name = (Z.x, "x") if isinstance(Z, Cloud) else (Z.C, "C")
    if not values.numel():
        raise IllPosed(f"spaces.{k}.{name}", "is empty")
    limit = LARGEST**0.5 if isinstance(Z, Cloud) else LARGEST
    if float(values.detach().abs().amax()) > limit:
        raise IllPosed(f"spaces.{k}.{name}", f"exceeds {limit:.0e}: squares of costs overflow")


def _first(p: Problem, k: int, generator: torch.Generator) -> Mean:
    """Select points of one space, with the plan that this makes."""
    index = selected(p.spaces[k], p.b[k], len(p.a), generator)
    plan = torch.zeros(len(p.a), len(p.b[k]), dtype=torch.float64)
    plan[torch.arange(len(p.a)), index] = p.a
    plans = tuple(
        round_plan(plan, p.a, p.b[k]) if i == k else p.a[:, None] * (b / b.sum())
        for i, b in enumerate(p.b)
    )
    return Mean(part(p.spaces[k], index).matrix(), plans, (), math.inf)


def _round(p: Problem, mean: Mean, generator: torch.Generator, watch: Watch) -> Mean:
    """Seek a plan to each space, from where the last round ended; then take the best C."""
    found = [_matched(p, mean, k, generator, watch) for k in range(len(p.spaces))]
    plans = tuple(_dense(one, p.pair(mean.C, k)) for k, one in enumerate(found))
    C = _best(p, plans)
    pairs = [p.pair(C, k) for k in range(len(plans))]
    gw = tuple(float(pair.objective(P)) for pair, P in zip(pairs, plans, strict=True))
    value = float(sum(w * v for w, v in zip(p.w.tolist(), gw, strict=True)))
    if p.epsilon is not None:
        near = (_divergence(pair, P) for pair, P in zip(pairs, plans, strict=True))
        value += p.epsilon * sum(w * v for w, v in zip(p.w.tolist(), near, strict=True))
    noise = ROUNDING * max(pair.scale for pair in pairs) ** 2 * float(p.a.sum()) ** 2
    gain = max(0.0, mean.value - value - noise) / max(abs(value), noise, 1e-300)
    # what was interrupted has not come to rest, even if it gained nothing
    halted = any(one.status == "interrupted" for one in found)
    return Mean(C, plans, gw, value, 1.0 if halted else min(1.0, gain), mean.rounds + 1)


def _matched(p: Problem, mean: Mean, k: int, generator: torch.Generator, watch: Watch) -> Found:
    pair = p.pair(mean.C, k)
    if p.epsilon is not None:
        return solve_entropic(
            pair, epsilon=p.epsilon, plan0=mean.plans[k], tol=SMOOTH_TOL, max_iter=SMOOTH_STEPS,
            watch=watch,
        )  # fmt: skip
    return solve_dense(
        pair, starts=p.starts if mean.rounds < SEARCHING else 1, plan0=mean.plans[k],
        tol=INNER * p.tol, max_iter=INNER_STEPS, generator=generator, watch=watch,
    )[0]  # fmt: skip


def _dense(found: Found, pair: Pair) -> Float[Tensor, "n m"]:
    plan = found.plan
    return plan.dense(*pair.shape) if isinstance(plan, SparsePlan) else plan


def _best(p: Problem, plans: tuple[Tensor, ...]) -> Float[Tensor, "n n"]:
    """Compute `sum_k w_k P_k C_k P_k^T / (a a^T)`; zero where a point has no mass."""
    total = torch.zeros(len(p.a), len(p.a), dtype=torch.float64)
    for w, Z, P in zip(p.w, p.spaces, plans, strict=True):
        total += w * (P @ Z.apply(P.T.contiguous()))  # (n, m), (m, n) -> (n, n)
    area = p.a[:, None] * p.a
    return torch.where(area > 0, total / area, 0.0)


def _divergence(pair: Pair, P: Float[Tensor, "n m"]) -> float:
    reference = pair.a[:, None] * pair.b
    return float((torch.xlogy(P, P) - torch.xlogy(P, reference)).sum())


def _answer(p: Problem, mean: Mean, stop: Stop, spaces: tuple[WeightedSpace, ...]) -> Barycenter:
    like = next(z for z in (spaces[0].x, spaces[0].C) if z is not None)
    squared = any(isinstance(Z, Cloud) for Z in p.spaces)
    points, shown = _drawn(mean.C if squared else mean.C.square(), p.a)
    plans = tuple(_sparse(P.to(like)) for P in mean.plans)
    C = mean.C.to(like)
    exact = [
        SparsePlan(P.rows.cpu(), P.cols.cpu(), P.mass.double().cpu()).dense(len(p.a), len(b))
        for P, b in zip(plans, p.b, strict=True)
    ]
    certificate = _certificate(p, C.double().cpu(), tuple(exact))
    cautions = ()
    if shown < FLAT:
        cautions = (
            Caution(
                "two_axes_show_little",
                f"two axes hold {shown:.0%} of the spectrum of the mean",
                "read distances from C, not from coordinates",
            ),
        )
    gw = torch.tensor(mean.gw, dtype=torch.float64)
    return Barycenter(
        C, p.a.to(like), plans, gw.to(like), certificate.objective, p.epsilon,
        points.to(like), shown, certificate, stop, cautions,
    )  # fmt: skip


def _sparse(P: Float[Tensor, "n m"]) -> SparsePlan:
    rows, cols = P.nonzero(as_tuple=True)
    return SparsePlan(rows, cols, P[rows, cols])


def _certificate(p: Problem, C: Float[Tensor, "n n"], plans: tuple[Tensor, ...]) -> Certificate:
    """Recompute the objective, how far C is from the best, the marginals, the linear gaps."""
    objective, gap, off = 0.0, 0.0, 0.0
    for k, (w, P) in enumerate(zip(p.w.tolist(), plans, strict=True)):
        pair = p.pair(C, k)
        objective += w * float(pair.objective(P))
        for seen, due in zip(marginals(P, *pair.shape), (pair.a, pair.b), strict=True):
            off = max(off, float((seen - due).abs().sum() / due.sum()))
        if p.epsilon is None:
            slope = pair.gradient(P)
            least = network_simplex(pair.a, pair.b, slope).transport_cost
            gap += w * max(0.0, float((slope * P).sum() - least))
    best = _best(p, plans)
    size = max(float(best.abs().amax()), float(C.abs().amax()))
    error = float((C - best).abs().amax()) / size if size > 0 else 0.0
    return Certificate(objective, error, off, gap if p.epsilon is None else None)


def _drawn(C: Float[Tensor, "n n"], a: Float[Tensor, "n"]) -> tuple[Float[Tensor, "n 2"], float]:
    """Place points in the plane so that squared distances resemble C (classical scaling)."""
    w = a / a.sum()
    even = (C + C.T) / 2
    r = even @ w
    r = r - w @ r / 2
    B = -(even - r[:, None] - r) / 2
    kept = min(2, len(C))
    size, axes = _largest(B, kept)
    size = size.clamp_min(0)
    points = torch.zeros(len(C), 2, dtype=C.dtype)
    points[:, :kept] = axes * size.sqrt()
    total = float(B.square().sum())
    return points, min(1.0, float(size.square().sum()) / total) if total > 0 else 1.0


def _largest(B: Float[Tensor, "n n"], k: int) -> tuple[Float[Tensor, "k"], Float[Tensor, "n k"]]:
    """Find the k largest eigenvalues, descending, and their vectors; of large n by Lanczos."""
    if len(B) <= SMALL:
        size, axes = torch.linalg.eigh(B)
    else:
        seed = torch.ones(len(B), dtype=B.dtype).numpy()
        found = eigsh(B.numpy(), k=k, which="LA", v0=seed + B[0].sign().numpy())
        size, axes = (torch.from_numpy(np.ascontiguousarray(part)) for part in found)
    return size[-k:].flip(0), axes[:, -k:].flip(1)
