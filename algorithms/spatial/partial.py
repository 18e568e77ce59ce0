r"""Partial alignment: a share of the mass is matched, the rest of both slices is left out.

    min_P F(P)   over   P >= 0,  P 1 <= a,  P^T 1 <= b,  sum P = s

F is the fused objective with the marginals that P has. What grows with s is not the objective, it
is the distortion: while s is below the true overlap, distances agree; above, plans must stretch.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.iterate import Stop, quietly
from algorithms.quadratic import objective
from algorithms.quadratic.conditional_gradient import Oracle, descend
from algorithms.quadratic.partial import capped
from algorithms.spaces import Relations
from algorithms.sparse import SparsePlan
from algorithms.spatial.frames import pitch
from algorithms.spatial.procrustes import Motion, procrustes
from algorithms.spatial.starts import Errand, Pair
from algorithms.spatial.voting import voted

# Shares of the mass at which the curve is drawn.
GRID = (0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98)
# The way up begins with so little that a start of 30 degrees off still matches true pairs.
SEED_SHARE = 0.3
# A point of the curve needs no more: the chosen one is run to its end.
CURVE_TOL, CURVE_STEPS = 1e-7, 60
# The largest share whose distortion is within this factor of the least is the overlap.
RISE = 1.05
# Distortions of exact copies are roots of rounding, in pitches.
EXACT = 1e-6
# Neighbours of a spot lie within so many pitches: diagonals of a square grid count.
NEIGHBOURS = 1.5
# A spot is matched when it carries at least this share of its mass.
MATCHED = 0.5


@dataclass(frozen=True)
class Share:
    """A point of the curve: what the best plan found of this mass is like.

    Attributes:
        mass: what travels, as a share of all.
        value: the objective.
        expression_cost: <M, P> / mass, the mean dissimilarity of matched spots.
        distortion_rms: root of the quadratic sum over mass^2, in pitches of the target: by how
            much distances between matched spots disagree.
        slope: rise of the objective to the next larger mass, over the rise of the mass; None at
            the largest. The price of matching more.
        edge_score: share of pairs of neighbours in the source of which one alone is matched.
    """

    mass: float
    value: float
    expression_cost: float
    distortion_rms: float
    slope: float | None
    edge_score: float


@dataclass(frozen=True)
class Matching:
    """A plan of some mass, the value carried along, how its descent ended, and the curve.

    Attributes:
        doubt: distance between where the plan moves the source and where the votes do (rms over
            all spots), as a share of the radius of the source; None where nothing voted.
    """

    P: Float[Tensor, "n m"]
    value: float
    mass: float
    stop: Stop
    gap: float | None = None
    curve: tuple[Share, ...] = ()
    doubt: float | None = None


@dataclass(frozen=True)
class Bearings:
    """Where partial plans start from: a balanced plan, and motions worth trying."""

    balanced: Float[Tensor, "n m"]
    motions: tuple[Motion, ...]


def quadratic(pair: Pair) -> objective.Pair:
    """Pose the problem for solvers that take plans of any marginals."""
    own = pair.problem
    return objective.Pair(Relations(own.D1), Relations(own.D2), own.a, own.b, own.M, own.alpha)


def bearings(pair: Pair, balanced: Float[Tensor, "n m"], mirrored: bool) -> Bearings:
    """Let expression vote for a motion, to begin from where shape misleads."""
    unit = pitch(pair.y)
    axes = pair.target.V @ pair.source.V.T
    if bool(torch.linalg.det(axes) < 0) != mirrored:
        flip = axes.new_tensor([1.0, -1.0])
        axes = (pair.target.V * flip) @ pair.source.V.T
    best = voted(pair.problem.M, pair.z / unit, pair.y / unit, axes=axes)[0]
    origin = torch.zeros_like(best.t)
    return Bearings(balanced, (Motion(best.R, origin, best.t * unit, 0.0, 0.0, mirrored),))


def matched(pair: Pair, errand: Errand, begun: Bearings, mass: float | None) -> Matching:
    r"""Match a given share of the mass, or the largest that distances allow (None), with its curve.

    Two families of starts, the lower of both at each share. Down: the balanced plan, thinned from
    share to share. Up: a vertex of expression and a motion at little mass, then at each larger
    share a new vertex about the motion of the last plan (a scaled plan would exceed the caps).
    """
    shares = GRID if mass is None else (*(s for s in GRID if s < mass), mass)
    above = () if mass is None else tuple(s for s in GRID if s > mass)
    problem = quadratic(pair)
    down = lambda: _down(problem, errand, begun.balanced, (*shares, *above))
    families: list[Callable[[], dict[float, Tensor]]] = [down]
    for motion in begun.motions:
        families.append(lambda motion=motion: _up(pair, problem, errand, motion, shares))
    found = errand.together(lambda family: family(), families)
    best = {
        s: min((f[s] for f in found if s in f), key=lambda P: float(problem.objective(P)))
        for s in (shares if mass is None else (mass,))
        if any(s in f for f in found)
    }
    if mass is not None:
        end = _finished(problem, errand, best.get(mass, begun.balanced * mass), mass)
        return replace(end, doubt=_doubt(pair, end.P, begun))
    curve = _curve(pair, problem, {**best, 1.0: begun.balanced})
    chosen = _chosen(curve)
    P = begun.balanced if chosen == 1.0 else best[chosen]
    if chosen == 1.0:  # the curve asks for a balanced plan, which its own search finishes
        return Matching(P, curve[-1].value, 1.0, Stop("converged", 0, 0.0), curve=curve)
    end = _finished(problem, errand, P, chosen)
    return replace(end, curve=curve, doubt=_doubt(pair, end.P, begun))


def around(pair: Pair, errand: Errand, motion: Motion, mass: float) -> Matching:
    """Match a share of the mass from the vertex about a motion."""
    problem = quadratic(pair)
    P = _vertex(pair, capped(problem, mass), motion)
    return _finished(problem, errand, P, mass)


def _doubt(pair: Pair, P: Tensor, begun: Bearings) -> float | None:
    if not begun.motions:
        return None
    voted = begun.motions[0]
    own = procrustes(P, pair.z, pair.y, allow_reflection=voted.mirrored)
    apart = (own(pair.z) - voted(pair.z)).square().sum(1)  # (n, 2) -> (n,)
    return math.sqrt(float(apart.mean() / pair.z.square().sum(1).mean()))


def _down(
    problem: objective.Pair, errand: Errand, P: Tensor, shares: tuple[float, ...]
) -> dict[float, Tensor]:
    found, plan, before = dict[float, Tensor](), P, 1.0
    for s in sorted(shares, reverse=True):
        if not errand.go_on():
            break
        plan = _descended(problem, errand, plan * (s / before), s)
        found[s], before = plan, s
    return found


def _up(
    pair: Pair,
    problem: objective.Pair,
    errand: Errand,
    motion: Motion,
    shares: tuple[float, ...],
) -> dict[float, Tensor]:
    found, mirrored = dict[float, Tensor](), motion.mirrored
    for s in sorted({min(SEED_SHARE, *shares), *shares}):
        if not errand.go_on():
            break
        P = _descended(problem, errand, _vertex(pair, capped(problem, s), motion), s)
        motion = procrustes(P, pair.z, pair.y, allow_reflection=mirrored)
        found[s] = P
    return found


def _vertex(pair: Pair, oracle: Oracle, motion: Motion) -> Float[Tensor, "n m"]:
    """Match spots of like expression that lie near each other once the source is moved."""
    alpha, M = pair.problem.alpha, pair.problem.M
    apart = torch.cdist(motion(pair.z), pair.y).square()
    return oracle((1 - alpha) * M + alpha * apart, None).plan.dense(*M.shape)


def _descended(problem: objective.Pair, errand: Errand, P: Tensor, s: float) -> Tensor:
    found = descend(
        problem,
        capped(problem, s),
        P,
        start="share",
        tol=CURVE_TOL,
        max_iter=CURVE_STEPS,
        watch=quietly(errand.watch),
    )
    return _dense(problem, found.plan)


def _finished(problem: objective.Pair, errand: Errand, P: Tensor, s: float) -> Matching:
    oracle = capped(problem, s)
    found = descend(
        problem,
        oracle,
        P,
        start="share",
        tol=errand.tol,
        max_iter=errand.max_iter,
        watch=errand.watch,
    )
    plan = _dense(problem, found.plan)
    gap = None
    if found.status != "interrupted":
        slope = problem.gradient(plan)
        corner = oracle(slope, None).plan
        gap = float((slope * plan).sum() - corner.mass @ slope[corner.rows, corner.cols])
    stop = Stop(found.status, found.steps, found.residual)
    return Matching(plan, found.value, s, stop, gap)


def _dense(problem: objective.Pair, plan: objective.Plan) -> Float[Tensor, "n m"]:
    return plan.dense(*problem.shape) if isinstance(plan, SparsePlan) else plan


def _curve(pair: Pair, problem: objective.Pair, plans: dict[float, Tensor]) -> tuple[Share, ...]:
    unit = pitch(pair.y)
    near = torch.cdist(pair.z, pair.z) < NEIGHBOURS * pitch(pair.z)
    rows, cols = near.triu(1).nonzero(as_tuple=True)
    values = {s: float(problem.objective(P)) for s, P in plans.items()}
    points: list[Share] = []
    shares = sorted(plans)
    for s, ahead in zip(shares, [*shares[1:], None], strict=True):
        P = plans[s]
        kept = P.sum(1) >= MATCHED * pair.problem.a
        torn = (kept[rows] != kept[cols]).double()
        points.append(
            Share(
                s,
                values[s],
                float(problem.linear(P)) / s,
                math.sqrt(max(0.0, float(problem.quadratic(P)))) / s / unit,
                None if ahead is None else (values[ahead] - values[s]) / (ahead - s),
                float(torn.mean()) if len(torn) else 0.0,
            )
        )
    return tuple(points)


def _chosen(curve: tuple[Share, ...]) -> float:
    """Take the largest share whose distortion is nearly the least of all."""
    least = min(point.distortion_rms for point in curve)
    return max(p.mass for p in curve if p.distortion_rms <= RISE * least + EXACT)
