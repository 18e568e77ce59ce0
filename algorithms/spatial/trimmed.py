"""Iterated matching and fitting, in which what has no place in the other slice takes no part.

Each round matches every spot with few candidates around where it is moved to, by sparse unbalanced
transport, and fits the motion to the matched pairs. Spots outside of the other slice, and a rim
about them, are left out of the fit: else they would be pulled onto the edge of a tear.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from algorithms.iterate import Stop, Watch, iterate, quietly
from algorithms.spatial.motions import matched_motion, moved
from algorithms.spatial.nearest import nearest
from algorithms.spatial.sparse_unbalanced import Candidates, Solved, solve
from algorithms.spatial.superspots import Level

# Candidates of a spot: enough to recover from 2 to 3 degrees of a coarse angle.
CANDIDATES = 32
# Weight of targets that no source spot comes near.
FAINT = 1e-3
# Strength of the marginal penalty, in units of the cost.
RHO = 1.0
# Cells about what is outside that are left out of the fit: the widest rim that keeps this share.
# With 4 cells only, three torn pairs of four ended twice as far off.
RIMS, LEAST_KEPT = (8.0, 4.0, 2.0), 0.3
# A level has settled when a round asks for less change of its motion, in cells (root mean square).
SETTLED = 0.01
# A round sees half of what is amiss, for spots are drawn to where they are: go twice as far.
RELAXED = 2.0
# Spots at a time whose expression is compared with that of their candidates.
BLOCK = 4096
# Share of its variance by which an affine fit is held to be no thinner than a line.
RIDGE = 1e-9


@dataclass(frozen=True)
class Stage:
    """How a level is matched and fitted.

    Attributes:
        alpha: weight of distances; small at first, or the pull to the current place creeps.
        epsilon: entropic strength.
        affine: fit an affine motion, else a rigid one.
        rounds: at most.
        sweeps: of one matching, at most.
        tol: to which share of its mass one matching is exact.
    """

    alpha: float
    epsilon: float
    affine: bool
    rounds: int
    sweeps: int
    tol: float = 1e-3


@dataclass(frozen=True)
class Matching:
    """What one round matched: candidates, their mass, and what lies outside of the other slice.

    Attributes:
        cols: candidates of each source spot.
        plan: masses, potentials, how the solver ended.
        outside_source: no target lies near where the spot is moved to.
        outside_target: no source spot is moved near.
        expression_cost: mean scaled cost of what was matched.
    """

    cols: Int[Tensor, "n k"]
    plan: Solved
    outside_source: Bool[Tensor, "n"]
    outside_target: Bool[Tensor, "m"]
    expression_cost: float


@dataclass(frozen=True)
class Fit:
    """A motion, the matching that led there, and how far that asked to move it, in cells."""

    T: Float[Tensor, "3 3"]
    matching: Matching | None = None
    change: float = 1.0


def settle(level: Level, stage: Stage, T: Float[Tensor, "3 3"], watch: Watch) -> tuple[Fit, Stop]:
    """Match and fit at one level until the motion rests."""

    def step(fit: Fit) -> Fit:
        matching = match(level, stage, moved(fit.T, level.z), fit.matching, watch)
        return _fitted(level, stage, fit.T, matching)

    return iterate(
        step, lambda fit: fit.change, Fit(T), tol=SETTLED, max_iter=stage.rounds, watch=watch
    )


def sent(level: Level, matching: Matching) -> Float[Tensor, "n 2"]:
    """Find the barycentre of the places that each source spot is matched with."""
    summed = (matching.plan.mass[:, :, None] * level.y[matching.cols]).sum(1)  # (n, k, 2)
    return summed / matching.plan.rows[:, None]


def _fitted(level: Level, stage: Stage, T: Float[Tensor, "3 3"], matching: Matching) -> Fit:
    places, goal = moved(T, level.z), sent(level, matching)
    w = matching.plan.rows * _kept(level, places, matching)
    asked = _affine(level.z, goal, w) if stage.affine else matched_motion(level.z, goal, w)
    step = (moved(asked, level.z) - places).square().sum(1).mean().sqrt()
    further = torch.lerp(T, asked, RELAXED)
    if not stage.affine:
        U, _, Vh = torch.linalg.svd(further[:2, :2])
        further[:2, :2] = U @ Vh  # the nearest rotation; places are centred, so shifts stay
    return Fit(further, matching, float(step) / level.unit)


def match(
    level: Level,
    stage: Stage,
    places: Float[Tensor, "n 2"],
    before: Matching | None,
    watch: Watch,
) -> Matching:
    """Match every spot with the targets around its place."""
    apart, cols = nearest(level.y, places, CANDIDATES)
    back, _ = nearest(places, level.y, 1)
    outside_source, outside_target = apart[:, 0] > level.reach, back[:, 0] > level.reach
    M = _unlike(level, cols)
    cost = (1 - stage.alpha) * M + stage.alpha * (apart / level.unit).square()
    # without this the common offset of the costs thins all rows alike
    cost = cost - cost.amin(1).median()
    b = torch.where(outside_target, FAINT * level.b, level.b)
    plan = solve(
        Candidates(cols, cost),
        level.a.contiguous(),
        b,
        epsilon=stage.epsilon,
        rho=RHO,
        tol=stage.tol,
        max_iter=stage.sweeps,
        f=None if before is None else before.plan.f,
        watch=quietly(watch),
    )
    seen = float((plan.mass * M).sum() / plan.mass.sum())
    return Matching(cols, plan, outside_source, outside_target, seen)


def _unlike(level: Level, cols: Int[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """Compare the expression of each spot with that of its candidates."""
    blocks = zip(level.source.split(BLOCK), cols.split(BLOCK), strict=True)
    parts = [(own[:, None] - level.target[at]).square().sum(2) for own, at in blocks]
    return level.scale * torch.cat(parts)


def _kept(level: Level, places: Float[Tensor, "n 2"], matching: Matching) -> Float[Tensor, "n"]:
    """Mark the spots that the motion is fitted to: inside, and away from what is outside."""
    inside = ~matching.outside_source
    strange = torch.cat([places[~inside], level.y[matching.outside_target]])
    if len(strange) == 0 or not bool(inside.any()):
        return torch.ones_like(level.a)
    away, r = nearest(strange, places, 1)[0][:, 0] / level.unit, matching.plan.rows
    for rim in RIMS:
        kept = inside & (away > rim)
        if float(r[kept].sum()) >= LEAST_KEPT * float(r[inside].sum()):
            return kept.to(level.a.dtype)
    return inside.to(level.a.dtype)


def _affine(
    z: Float[Tensor, "n 2"], goal: Float[Tensor, "n 2"], w: Float[Tensor, "n"]
) -> Float[Tensor, "3 3"]:
    """Fit an affine motion by weighted least squares."""
    total = w.sum()
    centre, to = w @ z / total, w @ goal / total
    x = z - centre
    spread = (w[:, None] * x).T @ x
    ridge = RIDGE * spread.diagonal().mean() * torch.eye(2, dtype=z.dtype)
    A = torch.linalg.solve(spread + ridge, (w[:, None] * x).T @ (goal - to)).T
    T = torch.eye(3, dtype=z.dtype)
    T[:2, :2], T[:2, 2] = A, to - A @ centre
    return T
