"""Two modalities of cells without shared features, matched by their inner geometry."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from algorithms.errors import Caution, IllPosed
from algorithms.iterate import Stop, Watch, unwatched
from algorithms.matching_scores import foscttm, label_transfer_accuracy, plan_label_accuracy
from algorithms.spatial.graph_match import (
    Bounds,
    Ending,
    Problem,
    random_plan,
    residual_of,
    solved,
)
from algorithms.spatial.neighbours import (
    Geodesics,
    Metric,
    Mode,
    Normalise,
    geodesics,
    graph_cautions,
    normalised,
    proximity,
)

# The grid of self-tuning: neighbours as shares of the smaller side and in between, strengths.
SMALLEST_K, LARGEST_K, COUNT_K = 20, 110, 5
STRENGTHS = (1e-2, 5e-3, 2.5e-3, 1e-3)
# Trials of the grid end when a step moves less than this share of the mass.
ROUGH = 1e-3
# Plans that place more than this share of the mass differently are different modes.
APART = 0.1
# Plans whose values differ by less than this share cannot be told apart by them.
SAME_VALUE = 1e-2
FEWEST = 3


@dataclass(frozen=True)
class Trial:
    """One setting of the self-tuning, and what it led to."""

    k: int
    epsilon: float | None
    value: float
    components_x: int
    components_y: int


@dataclass(frozen=True)
class Match:
    """One of the distinct plans found."""

    start: str
    value: float
    mass_elsewhere: float
    foscttm: float | None
    label_transfer_accuracy: float | None


@dataclass(frozen=True)
class Scores:
    """Agreement with what is known, where it was given (else None)."""

    foscttm: float | None
    label_transfer_accuracy: float | None
    plan_label_accuracy: float | None


@dataclass(frozen=True)
class Certificate:
    """What shows that the plan is feasible and stationary, recomputed from what is returned.

    Attributes:
        marginal_error_a: `|P 1 - a|_1`; partial: the excess over a; unbalanced: what rho allowed.
        marginal_error_b: `|P^T 1 - b|_1`, likewise.
        fixed_point_residual: how far a full step would move the plan, in L1, as a share of its
            mass; for partial the Frank-Wolfe gap as a share of the value.
        value_difference: `value` minus its expansion from the marginals that the plan has.
    """

    marginal_error_a: float
    marginal_error_b: float
    fixed_point_residual: float
    value_difference: float


@dataclass(frozen=True)
class Joint:
    """The plan, the images of the source cells, and what speaks for and against them."""

    plan: Float[Tensor, "n m"]
    images: Float[Tensor, "n e"]
    target: Float[Tensor, "m e"]
    matched: Float[Tensor, "n"]
    value: float
    mass: float
    k: int
    epsilon: float | None
    trials: tuple[Trial, ...]
    matches: tuple[Match, ...]
    scores: Scores
    certificate: Certificate
    stop: Stop
    cautions: tuple[Caution, ...]


def multiomics(
    x: Float[Tensor, "n d"],
    y: Float[Tensor, "m e"],
    labels_x: Float[Tensor, "n"] | None = None,
    labels_y: Float[Tensor, "m"] | None = None,
    *,
    paired: bool = False,
    normalise: Normalise = "l2",
    metric: Metric = "correlation",
    graph: Mode = "connectivity",
    k: int | None = None,
    epsilon: float | None = None,
    rho: float | None = None,
    mass: float | None = None,
    starts: int = 0,
    tol: float = 1e-5,
    max_iter: int = 500,
    generator: torch.Generator,
    watch: Watch = unwatched,
) -> Joint:
    r"""Minimise  sum_ijkl (Dx_ik - Dy_jl)^2 P_ij P_kl + epsilon KL(P | a b^T)  over plans P.

    Dx and Dy are shortest paths along the graphs that join every cell of a modality with its k
    nearest, each divided by its largest; a = 1/n, b = 1/m. The plan is balanced; with `rho` its
    marginals are free at the price of quadratic KL divergences; with `mass` it carries that share
    only, and has no entropy. Source cells are sent to the barycentre of their targets.

    Shapes: x (n, d), y (m, e), labels_x (n,), labels_y (m,) -> plan (n, m), images (n, e).

    Args:
        x, y: cells by features; nothing is shared between the two.
        labels_x, labels_y: whole numbers, below 0 where unknown; for scores alone.
        paired: row i of x is row i of y; for scores alone.
        k: neighbours, the cell itself counted; None tries several and keeps the lowest value.
        epsilon: entropic strength, as costs are at most 1; None tries several, after k.
        rho: strength of both marginals; None keeps them.
        mass: share of either side that is matched; None is all of it.
        starts: random starts besides the product a b^T, which all lead to `matches`.
        tol: stop when a step moves less than this share of the mass.
        max_iter: steps of one descent.
        generator: draws the random starts.
        watch: asked before each step.

    Returns:
        A `Joint`: `plan`; `images`, in the normalised target space, of which `target` are the
        points; `matched`, the share of its weight that each source cell sends; `value`, the
        quadratic sum without entropy, for partial over the squared mass; `k`, `epsilon` used;
        `trials` of the self-tuning; `matches`, the plans found that differ, lowest first;
        `scores`; a `Certificate`; the `Stop`; cautions.

    Notes:
        Not convex, and the lowest value need not be the likely match: look at `matches`. A cell
        without mass takes the image of the nearest cell, along the graph, that has some.
        Time O(n m (n + m)) a step, memory O(n^2 + m^2 + n m), float64 on the CPU. No gradients.

    References:
        Demetci et al. 2022, doi:10.1089/cmb.2021.0446 (graphs, entropic plans, self-tuning);
        Demetci et al. 2022, doi:10.1089/cmb.2022.0270 (unbalanced); Cao, Hong, Wan 2022,
        doi:10.1093/bioinformatics/btab594 (partial).
    """
    _check(x, y, labels_x, labels_y, paired, k, epsilon, rho, mass)
    source, target = normalised("x", x, normalise), normalised("y", y, normalise)
    near = proximity(source, metric), proximity(target, metric)
    bounds = Bounds(rho, mass, tol, max_iter)
    space = _Spaces(near, graph, {})
    trials, best = _tuned(space, k, epsilon, bounds, generator, watch)
    problem = space.problem(best.k)
    ends = [solved(problem, best.epsilon, bounds, best.plan, "product", generator, watch)]
    for number in range(starts):
        begun = random_plan(problem, bounds, generator)
        name = f"random {number}"
        ends.append(solved(problem, best.epsilon, bounds, begun, name, generator, watch))
    ends.sort(key=lambda end: end.value)
    score = _scorer(target, labels_x, labels_y, paired)
    images = [_images(end.plan, target, space.at(best.k)[0].D) for end in ends]
    matches = _distinct(ends, images, score)
    winner, P = ends[0], ends[0].plan
    told = _cautions(space.at(best.k), best.k, winner.stop, matches)
    return Joint(
        plan=P.to(x),
        images=images[0].to(x),
        target=target.to(x),
        matched=(P.sum(1) * len(P)).to(x),
        value=winner.value,
        mass=float(P.sum()),
        k=best.k,
        epsilon=best.epsilon,
        trials=trials,
        matches=matches,
        scores=_scores(P, score(images[0]), labels_x, labels_y),
        certificate=_certificate(problem, winner, best.epsilon, bounds),
        stop=winner.stop,
        cautions=told,
    )


@dataclass(frozen=True)
class _Setting:
    k: int
    epsilon: float | None
    plan: Float[Tensor, "n m"] | None


@dataclass(frozen=True)
class _Spaces:
    """Both neighbour graphs by k, each measured once."""

    near: tuple[NDArray[np.float64], NDArray[np.float64]]
    mode: Mode
    known: dict[int, tuple[Geodesics, Geodesics]]

    def at(self, k: int) -> tuple[Geodesics, Geodesics]:
        """Measure both graphs for this k."""
        if k not in self.known:
            one, other = (
                geodesics(field, C, k, self.mode)
                for field, C in zip(("x", "y"), self.near, strict=True)
            )
            self.known[k] = one, other
        return self.known[k]

    def problem(self, k: int) -> Problem:
        """Pose the quadratic problem for this k."""
        one, other = self.at(k)
        return Problem(one.D, other.D)


def _tuned(
    space: _Spaces,
    k: int | None,
    epsilon: float | None,
    bounds: Bounds,
    generator: torch.Generator,
    watch: Watch,
) -> tuple[tuple[Trial, ...], _Setting]:
    """Choose k at a middle strength, then the strength at this k, by the lowest value."""
    smaller = min(len(C) for C in space.near)
    exact = bounds.mass is not None
    ks = (k,) if k is not None else _grid(smaller)
    strengths = (None,) if exact else STRENGTHS if epsilon is None else (epsilon,)
    if len(ks) == len(strengths) == 1:
        return (), _Setting(ks[0], strengths[0], None)
    trials: list[Trial] = []
    best = float("inf"), _Setting(ks[0], strengths[0], None)
    rough = replace(bounds, tol=max(bounds.tol, ROUGH))
    middle = strengths[len(strengths) // 2]
    tried = [(one, middle) for one in ks]
    for turn in range(2):
        for one, strength in tried:
            if trials and not watch(-1, float("inf")):
                return tuple(trials), best[1]
            end = solved(space.problem(one), strength, rough, None, "product", generator, watch)
            sizes = (side.components for side in space.at(one))
            trials.append(Trial(one, strength, end.value, *sizes))
            if end.value < best[0]:
                best = end.value, _Setting(one, strength, end.plan)
        tried = [(best[1].k, s) for s in strengths if s != middle] if turn == 0 else []
    return tuple(trials), best[1]


def _grid(smaller: int) -> tuple[int, ...]:
    low = max(2, min(SMALLEST_K, smaller // 8))
    high = max(low, min(LARGEST_K, smaller // 4))
    return tuple(sorted({round(v) for v in np.linspace(low, high, COUNT_K)}))


def _images(
    P: Float[Tensor, "n m"], target: Float[Tensor, "m e"], D: Float[Tensor, "n n"]
) -> Float[Tensor, "n e"]:
    """Send every cell to its barycentre, one without mass where its nearest neighbour goes."""
    rows = P.sum(1)
    sent = rows > 0
    if not bool(sent.any()):
        return target.mean(0).expand(len(P), -1).clone()
    images = P @ target / torch.where(sent, rows, 1.0)[:, None]
    if bool(sent.all()):
        return images
    there = sent.nonzero()[:, 0]
    nearest = there[D[~sent][:, there].argmin(1)]
    images[~sent] = images[nearest]
    return images


Score = Callable[[Tensor], tuple[float | None, float | None]]


def _scorer(
    target: Tensor, labels_x: Tensor | None, labels_y: Tensor | None, paired: bool
) -> Score:
    def score(images: Tensor) -> tuple[float | None, float | None]:
        pairs = foscttm(images, target) if paired else None
        if labels_x is None or labels_y is None:
            return pairs, None
        one, other = labels_x.long().cpu(), labels_y.long().cpu()
        return pairs, label_transfer_accuracy(images, one, target, other)

    return score


def _scores(
    P: Tensor,
    seen: tuple[float | None, float | None],
    labels_x: Tensor | None,
    labels_y: Tensor | None,
) -> Scores:
    accuracy = None
    if labels_x is not None and labels_y is not None:
        accuracy = plan_label_accuracy(P, labels_x.long().cpu(), labels_y.long().cpu())
    return Scores(*seen, accuracy)


def _distinct(ends: list[Ending], images: list[Tensor], score: Score) -> tuple[Match, ...]:
    """List plans that differ from all better ones, with their distance from the best."""
    kept: list[Tensor] = []
    matches: list[Match] = []
    for end, image in zip(ends, images, strict=True):
        apart = [float((end.plan - P).abs().sum() / (end.plan.sum() + P.sum())) for P in kept]
        if apart and min(apart) <= APART:
            continue
        kept.append(end.plan)
        matches.append(Match(end.start, end.value, apart[0] if apart else 0.0, *score(image)))
    return tuple(matches)


def _certificate(
    problem: Problem, winner: Ending, epsilon: float | None, bounds: Bounds
) -> Certificate:
    P, pair = winner.plan, problem.pair
    off = P.sum(1) - pair.a, P.sum(0) - pair.b
    if bounds.mass is not None:
        off = off[0].clamp_min(0), off[1].clamp_min(0)
    mu, nu, (Dx, Dy) = P.sum(1), P.sum(0), (problem.Dx, problem.Dy)
    apart = mu @ Dx.square() @ mu + nu @ Dy.square() @ nu - 2 * ((Dx @ P @ Dy) * P).sum()
    value = float(apart) / (float(P.sum()) ** 2 if bounds.mass is not None else 1.0)
    return Certificate(
        float(off[0].abs().sum()),
        float(off[1].abs().sum()),
        residual_of(problem, winner, epsilon, bounds),
        winner.value - value,
    )


def _cautions(
    graphs: tuple[Geodesics, Geodesics], k: int, stop: Stop, matches: tuple[Match, ...]
) -> tuple[Caution, ...]:
    told: list[Caution] = []
    for field, side in zip(("x", "y"), graphs, strict=True):
        told += graph_cautions(field, side, k)
    if len(matches) > 1 and matches[1].value - matches[0].value <= SAME_VALUE * matches[0].value:
        told.append(
            Caution(
                "match_not_unique",
                f"{len(matches)} plans differ; the two lowest have values {matches[0].value:.6g} "
                f"and {matches[1].value:.6g}",
                "geometry does not decide between them: look at `matches` with labels or pairs",
            )
        )
    if stop.status != "converged":
        told.append(
            Caution(
                "not_converged",
                f"ended as {stop.status} after {stop.iterations} steps, residual "
                f"{stop.residual:.1e}",
                "raise max_iter, epsilon or tol",
            )
        )
    return tuple(told)


def _check(
    x: Tensor,
    y: Tensor,
    labels_x: Tensor | None,
    labels_y: Tensor | None,
    paired: bool,
    k: int | None,
    epsilon: float | None,
    rho: float | None,
    mass: float | None,
) -> None:
    for field, z, labels in (("x", x, labels_x), ("y", y, labels_y)):
        if len(z) < FEWEST:
            raise IllPosed(field, f"has {len(z)} cells; a geometry needs at least {FEWEST}")
        if labels is not None and not bool((labels == labels.round()).all()):
            raise IllPosed(f"labels_{field}", "must be whole numbers, below 0 where unknown")
    if paired and len(x) != len(y):
        raise IllPosed("paired", f"asks for row pairs of {len(x)} and {len(y)} cells")
    if k is not None and not 2 <= k <= min(len(x), len(y)):
        raise IllPosed("k", f"is {k}; it counts the cell itself, 2 to {min(len(x), len(y))}")
    if mass is not None and (rho is not None or epsilon is not None):
        field = "rho" if rho is not None else "epsilon"
        raise IllPosed(field, "partial plans (mass) are balanced up to it and have no entropy")
