"""The hierarchical solver of `spatial.align`: its answer, every number recomputed from the plan."""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.errors import Caution
from algorithms.iterate import Watch
from algorithms.sparse import SparsePlan
from algorithms.spatial import cautions
from algorithms.spatial.alignment import Alignment, Certificate, Hierarchy
from algorithms.spatial.expression import Expression
from algorithms.spatial.frames import frame
from algorithms.spatial.levels import (
    Asked,
    Centred,
    Coarse,
    Settled,
    begun,
    centred,
    descended,
)
from algorithms.spatial.motions import degrees, matched_motion, moved, reflects, shift
from algorithms.spatial.nearest import untied
from algorithms.spatial.partial import Matching as Overlap
from algorithms.spatial.procrustes import Motion, procrustes_of_entries
from algorithms.spatial.scores import scores
from algorithms.spatial.setting import Setting
from algorithms.spatial.slice import Slice
from algorithms.spatial.superspots import MEAN_COST, finest

# Entries below this share of a spot's weight are left out of the table.
NEGLIGIBLE = 1e-5
# The distortion is averaged over so many pairs of entries: 2^16 of them, partners redrawn.
SAMPLED, REDRAWN = 1 << 16, 16
# The same pairs for every question.
DRAW = 0
# Right motions end at 0.3 to 0.6 where random pairs cost 2.
DOUBTFUL_COST = 1.0
# Held-out genes that agree better by this factor say that the tissue is bent.
BENT = 0.9
# What is said of the input of this solver, whatever dissimilarity was asked for.
AS_COMPONENTS = Expression(dissimilarity="pca")


def hierarchical(
    source: Slice, target: Slice, setting: Setting, asked: Asked, watch: Watch
) -> Alignment:
    """Align two slices from superspots down to spots (`align` says what and how)."""
    spots = centred(source, target, setting, asked.expression)
    fine = finest(spots.z, spots.y, spots.parts, spots.spacing)
    coarse = begun(source, target, setting, spots, fine, asked, watch)
    # a mirrored slice is turned over first: all motions below are proper
    flip = torch.ones(2, dtype=spots.z.dtype)
    if bool(torch.linalg.det(coarse.T[:2, :2]) < 0):
        flip[1] = -1.0
    over = torch.diag(torch.cat([flip, torch.ones(1, dtype=flip.dtype)]))
    turned = replace(fine, z=fine.z * flip)
    end = descended(spots, turned, coarse.T @ over, watch)
    return _answer(source, target, setting, asked, _Found(spots, coarse, end, over))


@dataclass(frozen=True)
class _Found:
    """What was found; `over` turns a mirrored slice over, and end.T moves what was turned."""

    spots: Centred
    coarse: Coarse
    end: Settled
    over: Float[Tensor, "3 3"]


def _answer(
    source: Slice, target: Slice, setting: Setting, asked: Asked, found: _Found
) -> Alignment:
    """Write what was found in rows and coordinates of the files."""
    end, coarse, counts = found.end, found.coarse, setting.counts
    own = _entries(end)
    plan = SparsePlan(counts.kept_source[own.rows], counts.kept_target[own.cols], own.mass)
    motion = procrustes_of_entries(
        own, found.spots.z, found.spots.y, allow_reflection=asked.allow_reflection
    )
    transform, rigid = _in_files(found, setting, end.T), _in_files(found, setting, _rigid(end))
    z = source.coordinates.double()
    apart = (end.level.source[own.rows] - end.level.target[own.cols]).square().sum(1)
    transport_cost = own.mass @ (end.level.scale * apart)
    distortion, doubt = _distortion(own, found.spots.z, found.spots.y)
    outside = end.matching.outside_source, end.matching.outside_target
    unmatched = [
        torch.ones(size, dtype=torch.bool).index_put((kept,), out)
        for size, kept, out in zip(
            (len(z), len(target.coordinates)),
            (counts.kept_source, counts.kept_target),
            outside,
            strict=True,
        )
    ]
    hierarchy = Hierarchy(
        rigid=rigid,
        residual=_residual(found, setting, z),
        residual_ratio=end.ratio,
        genes_held_out=found.spots.parts.held_out,
        outside_source=float(outside[0].double().mean()),
        outside_target=float(outside[1].double().mean()),
        levels=end.levels,
        sinkhorn_residual=end.matching.plan.stop.residual,
        distortion_error=doubt,
    )
    return Alignment(
        plan=plan,
        aligned=moved(transform, z),
        transform=transform,
        value=(1 - asked.alpha) * transport_cost + asked.alpha * distortion,
        transport_cost=transport_cost,
        distortion=distortion,
        mass_moved=float(own.mass.sum()),
        curve=coarse.curve,
        unmatched_source=unmatched[0],
        unmatched_target=unmatched[1],
        kept_source=counts.kept_source,
        kept_target=counts.kept_target,
        genes=len(counts.genes),
        scale_used=setting.scale,
        pitch_source=setting.pitches[0],
        pitch_target=setting.pitches[1],
        reflected=reflects(transform),
        rotation_degrees=degrees(rigid),
        starts=coarse.starts,
        solver="hierarchical",
        hierarchy=hierarchy,
        scores=scores(plan, source, target, ~unmatched[0]),
        certificate=_certificate(found, own, motion),
        stop=end.stop,
        cautions=tuple(_told(source, target, setting, asked, found, motion)),
    )


def _entries(end: Settled) -> SparsePlan:
    """List the entries of the plan: what lies outside carries nothing, nor does what is tiny."""
    matching, level = end.matching, end.level
    inside = ~matching.outside_source
    if not bool(inside.any()):
        inside = torch.ones_like(inside)
    carries = inside[:, None] & (matching.plan.mass > NEGLIGIBLE * level.a[:, None])
    rows = carries.nonzero()[:, 0]
    return SparsePlan(rows, matching.cols[carries], matching.plan.mass[carries])


def _in_files(found: _Found, setting: Setting, T: Float[Tensor, "3 3"]) -> Float[Tensor, "3 3"]:
    """Write a motion of turned, centred spots for the coordinates of the files."""
    into, out = (
        torch.diag(torch.tensor([unit, unit, 1.0], dtype=T.dtype))
        for unit in (1 / setting.units[0], setting.units[1])
    )
    about, to = shift(-found.spots.source_mean), shift(found.spots.target_mean)
    return out @ to @ T @ found.over @ about @ into


def _rigid(end: Settled) -> Float[Tensor, "3 3"]:
    """Find the rotation and shift that move the matched spots most like the affine motion does."""
    inside = ~end.matching.outside_source
    x = end.level.z[inside] if int(inside.sum()) > 1 else end.level.z
    return matched_motion(x, moved(end.T, x), torch.ones_like(x[:, 0]))


def _residual(found: _Found, setting: Setting, z: Float[Tensor, "n 2"]) -> Float[Tensor, "n 2"]:
    """Evaluate the field at all rows of the source's file, in the target's unit."""
    centred = z / setting.units[0] - found.spots.source_mean
    turned = centred * found.over.diagonal()[:2]
    return setting.units[1] * found.end.field(untied(turned))


def _distortion(
    plan: SparsePlan, z: Float[Tensor, "n 2"], y: Float[Tensor, "m 2"]
) -> tuple[Float[Tensor, ""], float]:
    r"""Estimate  sum P_ij P_i'j' (|z_i - z_i'| - |y_j - y_j'|)^2  and its standard error.

    Entries are taken at even steps of the mass, in an order that lies in the tissue and not in the
    file, and paired at random: time and memory do not grow with the number of pairs.
    """
    own = untied(z)
    along = (own @ frame(own, torch.ones_like(own[:, 0]) / len(own)).V[:, 0])[plan.rows]
    order = torch.argsort(along, stable=True)
    total = plan.mass.sum()
    steps = (torch.arange(SAMPLED, dtype=z.dtype) + 0.5) / SAMPLED * total
    at = torch.searchsorted(plan.mass[order].cumsum(0), steps).clamp_max(len(order) - 1)
    x, goal = z[plan.rows[order[at]]], y[plan.cols[order[at]]]
    draw = np.random.default_rng(DRAW)
    seen = []
    for _ in range(REDRAWN):
        other = torch.from_numpy(draw.permutation(SAMPLED))
        seen.append(((x - x[other]).norm(dim=1) - (goal - goal[other]).norm(dim=1)).square())
    values = torch.cat(seen)
    error = float(total**2 * values.std()) / math.sqrt(len(values))
    return total**2 * values.mean(), error


def _certificate(found: _Found, plan: SparsePlan, motion: Motion) -> Certificate:
    level, search = found.end.level, found.coarse.found
    rows = torch.zeros_like(level.z[:, 0]).index_add(0, plan.rows, plan.mass)
    columns = torch.zeros_like(level.y[:, 0]).index_add(0, plan.cols, plan.mass)
    return Certificate(
        marginal_error_a=float((rows - level.a).clamp_min(0).sum()),
        marginal_error_b=float((columns - level.b).clamp_min(0).sum()),
        mass_error=None,
        frank_wolfe_gap=None,
        value_difference=None,
        reflection_margin=search.margin(found.coarse.pair.problem),
        mirrored_value=search.mirrored.value if search.mirrored else None,
        singular_ratio=motion.singular_ratio,
        rigid_strength=motion.strength,
    )


def _told(
    source: Slice,
    target: Slice,
    setting: Setting,
    asked: Asked,
    found: _Found,
    motion: Motion,
) -> list[Caution]:
    told = cautions.of_input(setting.counts, source, target, AS_COMPONENTS, setting.pitches)
    told += cautions.of_frames(found.coarse.pair)
    search, end = found.coarse.found, found.end
    if search.proper is not None and search.mirrored is not None:
        margin = search.margin(found.coarse.pair.problem) or 0.0
        told += cautions.of_orientation(search.proper.value, search.mirrored.value, margin)
    elif search.proper is None and not asked.allow_reflection:
        told.append(
            Caution(
                "reflected",
                "every descent between superspots ended in a mirrored alignment; the best, "
                f"{search.best(True).value:.6g}, is not allowed, and the motion starts from its "
                "plan",
                "was a section turned over, or does y point down in one file? Allow it with "
                "allow_reflection=true",
            )
        )
    inside = 1 - float(end.matching.outside_source.double().mean())
    none = torch.zeros(0, 0, dtype=torch.float64)
    overlap = Overlap(none, 0.0, inside, end.stop, doubt=None)
    told += cautions.of_overlap(overlap)
    settled = replace(end.stop, status="converged")
    told += cautions.of_answer(motion.singular_ratio, motion.strength, settled)
    return told + _of_solver(asked, end)


def _of_solver(asked: Asked, end: Settled) -> list[Caution]:
    told = list[Caution]()
    if asked.expression.dissimilarity != "pca":
        told.append(
            Caution(
                "compared_by_components",
                f"the hierarchical solver compares {asked.expression.components} principal "
                f"components, not {asked.expression.dissimilarity}",
                "solver='dense' compares as asked, where its matrices fit",
            )
        )
    seen = end.matching.expression_cost
    if seen > DOUBTFUL_COST:
        told.append(
            Caution(
                "doubtful_match",
                f"what was matched differs by {seen:.2f} in expression, random pairs by "
                f"{MEAN_COST:g}: the motion may be wrong altogether",
                "look at the picture, and give `pairs` of rows that show the same place",
            )
        )
    if end.ratio is not None and end.ratio < BENT:
        told.append(
            Caution(
                "bent_tissue",
                f"with the residual field held-out genes differ {end.ratio:.3f} times as much",
                "add hierarchy.residual to aligned to follow the bends of the tissue",
            )
        )
    if end.stop.status != "converged":
        told.append(
            Caution(
                end.stop.status,
                f"the rounds ended as {end.stop.status} after {end.stop.iterations}; the last one "
                f"asked to move the spots by {end.stop.residual:.2g} of their spacing",
                "look at the picture; `pairs` of rows that show the same place give a better start",
            )
        )
    return told
