"""Alignment of slices too large for matrices of all pairs: from superspots down to spots.

Shape matters at the coarse level only, where the fused problem is solved; below, every spot is
matched with few candidates around where it is moved to, and the motion is fitted again. Time and
memory grow with the number of spots.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.iterate import Stop, Watch
from algorithms.spatial.alignment import Refinement
from algorithms.spatial.components import Components, components
from algorithms.spatial.expression import Expression
from algorithms.spatial.motions import degrees, moved
from algorithms.spatial.nearest import averaged, untied
from algorithms.spatial.partial import Share, bearings, matched
from algorithms.spatial.procrustes import Motion, motion_of_pairs, procrustes
from algorithms.spatial.residual_field import Field, judged
from algorithms.spatial.search import Found, from_motion, from_product, screened, table
from algorithms.spatial.setting import Setting, paired
from algorithms.spatial.slice import Slice
from algorithms.spatial.starts import Errand, Pair, Start, shared
from algorithms.spatial.superspots import Level, coarse_pair, pooled
from algorithms.spatial.trimmed import Fit, Matching, Stage, match, sent, settle

# Superspots of the larger slice at the level where shape decides.
COARSE = 350
# Expression is averaged over so many spots, or this share of the slice: one spot of few counts
# hardly differs from the next.
SMOOTHED, SMOOTHED_SHARE = 21, 0.01
# Levels between, by superspots of the larger slice, and the last one, of spots.
LEVELS = (
    (1500, Stage(alpha=0.02, epsilon=0.05, affine=False, rounds=30, sweeps=60)),
    (6000, Stage(alpha=0.05, epsilon=0.05, affine=True, rounds=15, sweeps=80)),
)
FINEST = Stage(alpha=0.1, epsilon=0.02, affine=True, rounds=10, sweeps=100)
# The matching that is returned is carried further.
LAST = replace(FINEST, sweeps=600, tol=1e-6)
# A level of superspots is worth its time where it has at most this share of the spots.
FEWER = 0.7
# The residual field averages displacements of the last matching over so many spacings.
BANDWIDTH = 4.0


@dataclass(frozen=True)
class Asked:
    """What of the question the hierarchical solver heeds."""

    alpha: float
    expression: Expression
    pairs: Float[Tensor, "p 2"] | None
    init: Literal["multi", "product"]
    allow_reflection: bool
    tol: float
    max_iter: int


@dataclass(frozen=True)
class Coarse:
    """What the coarse level found: a motion of centred spots, and the search behind it."""

    T: Float[Tensor, "3 3"]
    pair: Pair
    found: Found
    starts: tuple[Start, ...]
    curve: tuple[Share, ...]


@dataclass(frozen=True)
class Settled:
    """The finest level, the motion it ended with, the last matching and the field beside it.

    `ratio` compares held-out genes with the field and without.
    """

    level: Level
    T: Float[Tensor, "3 3"]
    field: Field
    matching: Matching
    ratio: float | None
    levels: tuple[Refinement, ...]
    stop: Stop


@dataclass(frozen=True)
class Centred:
    """Spots kept, in units, about their means, with the components of their expression."""

    z: Float[Tensor, "n 2"]
    y: Float[Tensor, "m 2"]
    source_mean: Float[Tensor, "2"]
    target_mean: Float[Tensor, "2"]
    parts: Components
    spacing: float


def centred(source: Slice, target: Slice, setting: Setting, options: Expression) -> Centred:
    """Bring both slices into units, about their means; reduce and smooth their expression."""
    z = source.coordinates[setting.counts.kept_source].double() / setting.units[0]
    y = target.coordinates[setting.counts.kept_target].double() / setting.units[1]
    means = z.mean(0), y.mean(0)
    z, y = z - means[0], y - means[1]
    parts = components(setting.counts, options.components)
    count = max(1, min(SMOOTHED, int(SMOOTHED_SHARE * max(len(z), len(y)))))
    own = untied(z), untied(y)
    smooth = replace(
        parts,
        source=averaged(own[0], own[0], parts.source, count),
        target=averaged(own[1], own[1], parts.target, count),
    )
    return Centred(z, y, *means, smooth, setting.pitches[1] / setting.units[1])


def begun(
    source: Slice, target: Slice, setting: Setting, spots: Centred, fine: Level, asked: Asked,
    watch: Watch,
) -> Coarse:  # fmt: skip
    """Search between superspots for the motion to begin with, or take that of the pairs given.

    The share of mass that fits is searched as well: balanced plans of torn tissue stretch.
    """
    level = pooled(fine, COARSE)
    pair = coarse_pair(level, asked.alpha)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        errand = Errand(asked.tol, asked.max_iter, pool, shared(watch))
        if asked.pairs is not None:
            z, y = paired(source, target, setting.units, asked.pairs)
            motion = motion_of_pairs(z - spots.source_mean, y - spots.target_mean)
            found = from_motion(pair, errand, motion)
            starts = table(found, found.best(asked.allow_reflection))
            return Coarse(_written(motion), pair, found, starts, ())
        if asked.init == "product" or asked.alpha == 0:
            found = from_product(pair, errand)
        else:
            found = screened(pair, errand)
        best = found.best(asked.allow_reflection)
        mirrored = best.mirrored and asked.allow_reflection
        begins = bearings(pair, best.state.P, mirrored)
        share = matched(pair, errand, begins, None)
    motion = procrustes(share.P, pair.z, pair.y, allow_reflection=mirrored)
    # from cells about their centres to units about the means of the spots
    T = _written(
        replace(
            motion,
            source_mean=level.unit * (motion.source_mean + pair.source.centre),
            target_mean=level.unit * (motion.target_mean + pair.target.centre),
        )
    )
    pitches = level.unit / spots.spacing
    curve = tuple(replace(p, distortion_rms=p.distortion_rms * pitches) for p in share.curve)
    return Coarse(T, pair, found, table(found, best), curve)


def descended(spots: Centred, fine: Level, T: Float[Tensor, "3 3"], watch: Watch) -> Settled:
    """Go down the levels from a proper motion; then match once more, and look at the residual."""
    rows, rounds, largest = list[Refinement](), 0, max(len(fine.z), len(fine.y))
    stages = [(pooled(fine, c), stage) for c, stage in LEVELS if c <= FEWER * largest]
    fit, stop = Fit(T), Stop("converged", 0, 0.0)
    for level, stage in [*stages, (fine, FINEST)]:
        fit, stop = settle(level, stage, fit.T, watch)
        rounds += stop.iterations
        rows.append(_row(level, fit, stop, spots.spacing))
        if stop.status == "interrupted":
            break
    before = fit.matching if len(rows) > len(stages) else None
    last = _last(spots, fine, fit.T, before, watch, stop.status != "interrupted")
    stop = replace(stop, iterations=rounds)
    if stop.status == "converged" and last.matching.plan.stop.status != "converged":
        stop = replace(stop, status=last.matching.plan.stop.status)
    return Settled(fine, fit.T, last.field, last.matching, last.ratio, tuple(rows), stop)


@dataclass(frozen=True)
class _Last:
    """The last matching, the field of what it leaves over, and what held-out genes say of it."""

    matching: Matching
    field: Field
    ratio: float | None


def _last(
    spots: Centred,
    fine: Level,
    T: Float[Tensor, "3 3"],
    before: Matching | None,
    watch: Watch,
    go_on: bool,
) -> _Last:
    """Match where the motion brings the spots; where held-out genes ask for it, where they bend."""
    places = moved(T, fine.z)

    def look(at: Float[Tensor, "n 2"], before: Matching | None) -> _Last:
        matching = match(fine, LAST, at, before, watch)
        field = _field(spots, fine, T, matching)
        return _Last(matching, field, _ratio(spots, fine, places, matching, field))

    straight = look(places, before)
    if straight.ratio is None or straight.ratio >= 1 or not go_on:
        return straight
    bent = look(places + straight.field(untied(fine.z)), straight.matching)
    return bent if bent.ratio is not None and bent.ratio < straight.ratio else straight


def _row(level: Level, fit: Fit, stop: Stop, spacing: float) -> Refinement:
    cost = 0.0 if fit.matching is None else fit.matching.expression_cost
    return Refinement(
        spots_source=len(level.z),
        spots_target=len(level.y),
        unit=level.unit / spacing,
        rounds=stop.iterations,
        change=fit.change,
        settled=stop.status == "converged",
        rotation_degrees=degrees(fit.T),
        expression_cost=cost,
    )


def _field(spots: Centred, fine: Level, T: Float[Tensor, "3 3"], matching: Matching) -> Field:
    inside = ~matching.outside_source
    if not bool(inside.any()):  # nothing was matched, so nothing is left over
        return Field(fine.z[:1], torch.zeros_like(fine.z[:1]), fine.a[:1], spots.spacing)
    rest = (sent(fine, matching) - moved(T, fine.z))[inside]
    own = untied(fine.z)[inside]
    return Field(own, rest, matching.plan.rows[inside], BANDWIDTH * spots.spacing)


def _ratio(
    spots: Centred,
    fine: Level,
    places: Float[Tensor, "n 2"],
    matching: Matching,
    field: Field,
) -> float | None:
    """Compare held-out genes at the places that spots go to, with the field over without."""
    inside = ~matching.outside_source
    judges = spots.parts.judges
    if judges is None or not bool(inside.any()):
        return None
    bent = places + field(untied(fine.z))
    own = untied(fine.z)
    without, beside = judged((own, judges[0]), (fine.y, judges[1]), (places, bent), inside)
    return beside / without if without > 0 else None


def _written(motion: Motion) -> Float[Tensor, "3 3"]:
    T = torch.eye(3, dtype=motion.R.dtype)
    T[:2, :2] = motion.R
    T[:2, 2] = motion.target_mean - motion.R @ motion.source_mean
    return T
