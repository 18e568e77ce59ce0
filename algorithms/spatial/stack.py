"""Many slices in one frame: composed motions, or all motions fitted at once."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from algorithms.errors import Caution, IllPosed
from algorithms.iterate import Stop, Watch, iterate, quietly, unwatched
from algorithms.sparse import SparsePlan
from algorithms.spatial.align import AS_COUNTS, Alignment
from algorithms.spatial.expression import Expression
from algorithms.spatial.frames import pitch
from algorithms.spatial.motions import degrees, matched_motion, moved, reflects, shift
from algorithms.spatial.pairs import (
    Cycle,
    Ends,
    aligned_pairs,
    chain,
    told,
    triangles,
    wanted,
)
from algorithms.spatial.slice import Slice
from algorithms.spatial.starts import shared

# A round of procrustes that lowers the squared mismatch by a smaller share is the last.
ROUND_TOL, ROUNDS = 1e-12, 1000
# A cycle that does not close within so many pitches deserves a word.
OPEN_CYCLE = 2.0
# The worst ending of several descents speaks for all.
WORST = ("converged", "max_iter", "stagnated", "diverged", "interrupted")


@dataclass(frozen=True)
class Placed:
    """One slice in the common frame; rows as in its file.

    Attributes:
        ids: names of its spots.
        aligned: their coordinates in the common frame.
        rotation_degrees: angle of its motion.
        cumulative_degrees: sum of the angles of the alignments between it and the reference.
        links: how many these are.
        reflected: its motion turns it over.
    """

    ids: tuple[str, ...]
    aligned: Float[Tensor, "n 2"]
    rotation_degrees: float
    cumulative_degrees: float
    links: int
    reflected: bool


@dataclass(frozen=True)
class Link:
    """The alignment of a pair, in short; `mismatch` is measured in the common frame."""

    source: int
    target: int
    plan: SparsePlan
    transform: Float[Tensor, "3 3"]
    value: Float[Tensor, ""]
    transport_cost: Float[Tensor, ""]
    distortion: Float[Tensor, ""]
    label_accuracy: float | None
    landmark_error_median: float | None
    mismatch: float
    status: str


@dataclass(frozen=True)
class Certificate:
    """What can be recomputed from plans and matrices.

    Attributes:
        marginal_error: largest L1 error of a marginal of any plan.
        frank_wolfe_gap: largest gap of any plan; None where one was interrupted.
        composition_error: largest distance, in pitches of the reference, between the returned
            coordinates and the motions of the pairs applied one after another.
        mismatch_composed: root mean square distance of matched spots under composed motions.
        mismatch: the same under the returned motions.
        procrustes_fall: relative fall of the squared mismatch in the last round.
    """

    marginal_error: float
    frank_wolfe_gap: float | None
    composition_error: float | None
    mismatch_composed: float
    mismatch: float
    procrustes_fall: float | None


@dataclass(frozen=True)
class Stack:
    """All slices in one frame."""

    slices: tuple[Placed, ...]
    transforms: Float[Tensor, "k 3 3"]
    reference: int
    pitch: float
    pairs: tuple[Link, ...]
    cycles: tuple[Cycle, ...]
    certificate: Certificate
    stop: Stop
    cautions: tuple[Caution, ...]


def stack(
    slices: tuple[Slice, ...],
    *,
    policy: Literal["sequential", "star", "procrustes"] = "sequential",
    reference: int = 0,
    center_origin: bool = False,
    cycles: bool = True,
    alpha: float = 0.1,
    expression: Expression = AS_COUNTS,
    scale: Literal["auto", "pitch", "none"] = "auto",
    effort: Literal["default", "fast"] = "default",
    allow_reflection: bool = False,
    tol: float = 1e-9,
    max_iter: int = 200,
    watch: Watch = unwatched,
) -> Stack:
    r"""Put slices 0..K-1 into the frame of one of them by rigid motions T_k.

    Each pair (k, l) that the policy asks for is aligned (`spatial.align`): a plan P^kl and the
    motion T^kl of slice k onto slice l. Then

        sequential, star:  T_k = T_l T^kl along the pairs that lead to the reference;
        procrustes:        min_T  Q(T) = 1/|pairs| sum_kl sum_ij P^kl_ij |T_k z_i - T_l y_j|^2

    over the motions of all slices but the reference, from the better of both compositions, one
    slice after another: each step is an orthogonal Procrustes problem, so Q never rises.

    Shapes: coordinates (n_k, 2) and counts (n_k, genes) a slice; transforms (K, 3, 3).

    Args:
        policy: see above; procrustes aligns all K (K - 1) / 2 pairs.
        reference: the slice whose frame and unit are kept.
        center_origin: shift the stack so that the reference's mean is the origin.
        cycles: also align (k + 2, k), or (k + 1, k) under star, so that every slice lies on a
            triangle, and compare the two ways round it.
        alpha, expression, scale, effort, allow_reflection, tol, max_iter: of each alignment.

    Returns:
        slices: ids, coordinates in the common frame, angles (`Placed`), in the order that came.
        transforms: matrices that map original coordinates to the returned ones.
        reference, pitch: the slice that kept its frame, and its median spacing.
        pairs: plan, motion, objective, scores and mismatch of each pair (`Link`).
        cycles: for each triangle of pairs, how far apart the two ways round end.
        certificate: what proves the answer (`Certificate`).
        stop: the worst ending of a descent; iterations of all; the largest residual.
        cautions: those of each pair, and open_cycle.

    Notes:
        Time and memory are those of the alignments, one after another; the rest is linear in the
        non-zero entries of the plans. Units only enter through the pitch: slices in pixels and in
        micrometres may be mixed with scale `pitch` (or `auto`). No gradient: plans are piecewise
        constant in their inputs.

    References:
        Zeira, Land, Strzalkowski, Raphael 2022, doi:10.1038/s41592-022-01459-6 (sequential
        stacks); Gower 1975, doi:10.1007/BF02291478 (generalised Procrustes analysis).
    """
    if reference >= len(slices):
        raise IllPosed("reference", f"is {reference}; there are {len(slices)} slices")
    if len(slices) < 2:
        raise IllPosed("slices", f"{len(slices)} slice; a stack has at least 2")
    watch = shared(watch)
    options: dict[str, Any] = {
        "alpha": alpha, "expression": expression, "scale": scale, "effort": effort,
        "allow_reflection": allow_reflection, "tol": tol, "max_iter": max_iter,
    }  # fmt: skip
    found = aligned_pairs(slices, wanted(len(slices), reference, policy, cycles), options, watch)
    points = _Points.of(slices, found, pitch(slices[reference].coordinates.double()))
    route, motions = _composed(points, found, len(slices), reference, policy)
    composed, stop = points.mismatch(motions), None
    if policy == "procrustes":
        motions, stop = _together(points, motions, reference, watch)
    if center_origin:
        away = shift(-slices[reference].coordinates.double().mean(0))
        motions = [away @ T for T in motions]
    return _written(slices, found, points, route, motions, reference, composed, stop)


@dataclass(frozen=True)
class _Points:
    """Spots of all slices in one list, and the entries of all plans between them."""

    z: tuple[Tensor, ...]  # each (n_k, 2), of its own length
    first: tuple[int, ...]
    rows: Int[Tensor, "e"]
    cols: Int[Tensor, "e"]
    mass: Float[Tensor, "e"]
    owner: Int[Tensor, "s"]
    pair: Int[Tensor, "e"]
    unit: float

    @staticmethod
    def of(slices: tuple[Slice, ...], found: dict[Ends, Alignment], unit: float) -> "_Points":
        z = tuple(s.coordinates.double() for s in slices)
        sizes = torch.tensor([len(x) for x in z])
        first = (sizes.cumsum(0) - sizes).tolist()
        owner = torch.repeat_interleave(torch.arange(len(z)), sizes)
        plans = [answer.plan for answer in found.values()]
        rows = torch.cat([p.rows + first[k] for p, (k, _) in zip(plans, found, strict=True)])
        cols = torch.cat([p.cols + first[l] for p, (_, l) in zip(plans, found, strict=True)])
        mass = torch.cat([p.mass.double() / p.mass.sum() / len(plans) for p in plans])
        pair = torch.repeat_interleave(
            torch.arange(len(plans)), torch.tensor([len(p.mass) for p in plans])
        )
        return _Points(z, tuple(first), rows, cols, mass, owner, pair, unit)

    def under(self, motions: list[Tensor]) -> Float[Tensor, "s 2"]:
        """Move every slice."""
        return torch.cat([moved(T, z) for T, z in zip(motions, self.z, strict=True)])

    def squares(self, motions: list[Tensor]) -> Float[Tensor, "e"]:
        """Weigh the squared distance of each matched pair of spots, in pitches."""
        x = self.under(motions) / self.unit
        return self.mass * (x[self.rows] - x[self.cols]).square().sum(1)

    def mismatch(self, motions: list[Tensor]) -> float:
        """Take the root mean square distance of matched spots, in pitches."""
        return float(self.squares(motions).sum().sqrt())

    def refit(self, motions: list[Tensor], k: int) -> list[Tensor]:
        """Move slice k to where its partners are; all others stay."""
        x = self.under(motions)
        as_source, as_target = self.owner[self.rows] == k, self.owner[self.cols] == k
        own = torch.cat([self.rows[as_source], self.cols[as_target]])
        other = torch.cat([self.cols[as_source], self.rows[as_target]])
        mass = torch.cat([self.mass[as_source], self.mass[as_target]])
        T = matched_motion(x[own], x[other], mass)
        return [*motions[:k], T @ motions[k], *motions[k + 1 :]]


@dataclass(frozen=True)
class _Route:
    """The pairs between each slice and the reference."""

    pairs: tuple[tuple[Ends, ...], ...]
    motions: tuple[Tensor, ...]


def _route(
    found: dict[Ends, Alignment], count: int, reference: int, policy: Literal["sequential", "star"]
) -> _Route:
    ways: dict[int, tuple[Ends, ...]] = {reference: ()}
    motions = {reference: torch.eye(3, dtype=torch.float64)}
    for k, l in chain(count, reference, policy):
        ways[k] = ((k, l), *ways[l])
        motions[k] = motions[l] @ found[k, l].transform.double()
    order = range(count)
    return _Route(tuple(ways[k] for k in order), tuple(motions[k] for k in order))


def _composed(
    points: _Points, found: dict[Ends, Alignment], count: int, reference: int, policy: str
) -> tuple[_Route, list[Tensor]]:
    """Compose the motions of pairs; where all pairs are known, along the better of both ways."""
    ways: list[Literal["sequential", "star"]] = ["sequential", "star"]
    if policy != "procrustes":
        ways = ["star"] if policy == "star" else ["sequential"]
    routes = [_route(found, count, reference, way) for way in ways]
    best = min(routes, key=lambda route: points.mismatch(list(route.motions)))
    return best, list(best.motions)


def _together(
    points: _Points, motions: list[Tensor], reference: int, watch: Watch
) -> tuple[list[Tensor], Stop]:
    """Lower the squared mismatch, slice by slice, until a round changes nothing."""
    free = [k for k in range(len(motions)) if k != reference]

    def step(state: tuple[list[Tensor], float, float]) -> tuple[list[Tensor], float, float]:
        now, value, _ = state
        for k in free:
            now = points.refit(now, k)
        lower = float(points.squares(now).sum())
        if lower >= value:  # rounding: keep what is better
            return state[0], value, 0.0
        return now, lower, (value - lower) / value

    start = motions, float(points.squares(motions).sum()), 1.0
    (found, _, _), stop = iterate(
        step, lambda s: s[2], start, tol=ROUND_TOL, max_iter=ROUNDS, watch=quietly(watch)
    )
    return found, stop


def _written(
    slices: tuple[Slice, ...],
    found: dict[Ends, Alignment],
    points: _Points,
    route: _Route,
    motions: list[Tensor],
    reference: int,
    composed: float,
    rounds: Stop | None,
) -> Stack:
    """Recompute everything that is reported from the plans and matrices that are returned."""
    placed = tuple(
        Placed(
            ids=s.ids,
            aligned=moved(T, s.coordinates.double()),
            rotation_degrees=degrees(T),
            cumulative_degrees=sum((found[pair].rotation_degrees for pair in way), 0.0),
            links=len(way),
            reflected=reflects(T),
        )
        for s, T, way in zip(slices, motions, route.pairs, strict=True)
    )
    squares = points.squares(motions)
    own = torch.zeros(len(found), dtype=torch.float64).index_add_(0, points.pair, squares)
    pairs = tuple(
        _link(ends, answer, float((len(found) * own[index]).sqrt()))
        for index, (ends, answer) in enumerate(found.items())
    )
    ways = triangles(slices, found)
    stops = [answer.stop for answer in found.values()] + ([rounds] if rounds else [])
    return Stack(
        slices=placed,
        transforms=torch.stack(motions),
        reference=reference,
        pitch=points.unit,
        pairs=pairs,
        cycles=ways,
        certificate=_certificate(found, points, route, placed, motions, composed, rounds),
        stop=ending(stops),
        cautions=(*told(found), *_open(ways)),
    )


def _link(ends: Ends, answer: Alignment, mismatch: float) -> Link:
    return Link(
        source=ends[0],
        target=ends[1],
        plan=answer.plan,
        transform=answer.transform,
        value=answer.value,
        transport_cost=answer.transport_cost,
        distortion=answer.distortion,
        label_accuracy=answer.scores.label_accuracy,
        landmark_error_median=answer.scores.landmark_error_median,
        mismatch=mismatch,
        status=answer.stop.status,
    )


def _certificate(
    found: dict[Ends, Alignment],
    points: _Points,
    route: _Route,
    placed: tuple[Placed, ...],
    motions: list[Tensor],
    composed: float,
    rounds: Stop | None,
) -> Certificate:
    gaps = [answer.certificate.frank_wolfe_gap for answer in found.values()]
    errors = [
        max(answer.certificate.marginal_error_a, answer.certificate.marginal_error_b)
        for answer in found.values()
    ]
    far = None
    if rounds is None:
        base = motions[route.pairs.index(())]
        far = max(
            float((_along(found, way, base, z) - own.aligned).norm(dim=1).max()) / points.unit
            for z, way, own in zip(points.z, route.pairs, placed, strict=True)
        )
    known = [gap for gap in gaps if gap is not None]
    return Certificate(
        marginal_error=max(errors),
        frank_wolfe_gap=max(known) if len(known) == len(gaps) else None,
        composition_error=far,
        mismatch_composed=composed,
        mismatch=points.mismatch(motions),
        procrustes_fall=rounds.residual if rounds else None,
    )


def _along(
    found: dict[Ends, Alignment], way: tuple[Ends, ...], base: Tensor, z: Float[Tensor, "n 2"]
) -> Float[Tensor, "n 2"]:
    """Move points by one alignment after another, and last as the reference was moved."""
    for pair in way:
        z = moved(found[pair].transform.double(), z)
    return moved(base, z)


def ending(stops: list[Stop]) -> Stop:
    """Let the worst ending speak for all, with the iterations of all."""
    worst = max(stops, key=lambda stop: WORST.index(stop.status))
    return Stop(worst.status, sum(s.iterations for s in stops), max(s.residual for s in stops))


def _open(ways: tuple[Cycle, ...]) -> list[Caution]:
    return [
        Caution(
            "open_cycle",
            f"slices {way.first}, {way.middle}, {way.last}: the two ways end "
            f"{way.motion_error:.2f} pitches apart in the mean, more than {OPEN_CYCLE:g}",
            "one of the three alignments is likely wrong: compare their objectives and pictures, "
            "or use policy='procrustes'",
        )
        for way in ways
        if way.motion_error > OPEN_CYCLE
    ]
