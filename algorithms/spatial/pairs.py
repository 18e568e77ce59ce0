"""Which pairs of slices are aligned, their alignments, and what these say of each other."""

from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.errors import Caution, IllPosed
from algorithms.iterate import Watch, quietly
from algorithms.sparse import SparsePlan
from algorithms.spatial.align import Alignment, align
from algorithms.spatial.frames import pitch
from algorithms.spatial.motions import moved
from algorithms.spatial.slice import Slice

Policy = Literal["sequential", "star", "procrustes"]
Ends = tuple[int, int]


@dataclass(frozen=True)
class Cycle:
    """Two ways from one slice to another: distances in pitches of the last.

    Attributes:
        first: slice whose spots are sent.
        middle: slice that one way leads through.
        last: slice where both ways end.
        error_median: median distance of the two barycentres that a spot is sent to.
        error_mean: mean of the same.
        motion_error: mean distance of the two places that the rigid motions send a spot to.
    """

    first: int
    middle: int
    last: int
    error_median: float
    error_mean: float
    motion_error: float


def chain(count: int, reference: int, policy: Policy) -> list[Ends]:
    """List the pairs whose motions lead to the reference, each (source, target) pair once.

    A pair comes after the pair of its target, so motions can be composed in this order.
    """
    if policy == "star":
        return [(k, reference) for k in range(count) if k != reference]
    up = [(k, k - 1) for k in range(reference + 1, count)]
    return up + [(k, k + 1) for k in range(reference - 1, -1, -1)]


def wanted(count: int, reference: int, policy: Policy, cycles: bool) -> list[Ends]:
    """List all pairs to be aligned: the source is the one farther from the reference."""
    away = lambda k: (abs(k - reference), k)
    if policy == "procrustes":
        pairs = [(k, l) for l, k in combinations(sorted(range(count), key=away), 2)]
        return sorted(pairs, key=lambda pair: (away(pair[0]), pair[1]))
    first = chain(count, reference, policy)
    if not cycles:
        return first
    if policy == "sequential":
        further = [(k + 2, k) for k in range(count - 2)]
    else:
        others = [k for k in range(count) if k != reference]
        further = list(zip(others[1:], others, strict=False))
    near = [(k, l) if away(k) > away(l) else (l, k) for k, l in further]
    return first + [pair for pair in near if pair not in first]


def aligned_pairs(
    slices: tuple[Slice, ...], pairs: list[Ends], options: dict[str, Any], watch: Watch
) -> dict[Ends, Alignment]:
    """Align every pair; problems name the slice at fault. Between pairs the watch is told."""
    found = dict[Ends, Alignment]()
    left = 1.0
    for count, (k, l) in enumerate(pairs):
        left = 1 - count / len(pairs)
        watch(count, left)
        try:
            # what follows compares plans and distances of all spots
            found[k, l] = align(
                slices[k], slices[l], **options, solver="dense", watch=quietly(watch)
            )
        except IllPosed as error:
            raise renamed(error, k, l) from error
    return found


def renamed(error: IllPosed, source: int, target: int) -> IllPosed:
    """Let a problem with the source or target of a pair name its place in the list."""
    head, _, rest = error.field.partition(".")
    place = {"source": source, "target": target}.get(head)
    if place is None:
        return error
    words = f"slices {source} and {target}: {error.reason}"
    return IllPosed(f"slices.{place}" + (f".{rest}" if rest else ""), words, code=error.code)


def told(found: dict[Ends, Alignment]) -> list[Caution]:
    """Pass on what was said of each pair."""
    return [
        Caution(caution.code, f"slices {k} and {l}: {caution.message}", caution.hint)
        for (k, l), answer in found.items()
        for caution in answer.cautions
    ]


def carried(
    plan: SparsePlan, y: Float[Tensor, "m 2"], n: int
) -> tuple[Float[Tensor, "n 2"], Float[Tensor, "n"]]:
    """Send each source spot to the barycentre of its mass; spots without mass stay at zero."""
    mass = torch.zeros(n, dtype=y.dtype).index_add_(0, plan.rows, plan.mass.to(y.dtype))
    summed = torch.zeros(n, 2, dtype=y.dtype)
    summed.index_add_(0, plan.rows, plan.mass.to(y.dtype)[:, None] * y[plan.cols])
    return summed / torch.where(mass > 0, mass, 1.0)[:, None], mass


def triangles(slices: tuple[Slice, ...], found: dict[Ends, Alignment]) -> tuple[Cycle, ...]:
    """Compare the two ways round every triangle of aligned pairs."""
    cycles = []
    for corners in combinations(range(len(slices)), 3):
        edges = [edge for edge in found if set(edge) <= set(corners)]
        if len(edges) == 3:
            # an acyclic triangle has one corner that is never a target, and one never a source
            first = next(k for k in corners if k not in [l for _, l in edges])
            last = next(k for k in corners if k not in [s for s, _ in edges])
            middle = next(k for k in corners if k not in (first, last))
            cycles.append(_cycle(slices, found, first, middle, last))
    return tuple(cycles)


def _cycle(
    slices: tuple[Slice, ...], found: dict[Ends, Alignment], first: int, middle: int, last: int
) -> Cycle:
    one, two, short = found[first, middle], found[middle, last], found[first, last]
    z, y = slices[first].coordinates.double(), slices[last].coordinates.double()
    via, reached = carried(two.plan, y, len(slices[middle].ids))
    # spots of the middle slice that were dropped carry no mass in either plan
    there, mass = carried(one.plan, via, len(z))
    direct, other = carried(short.plan, y, len(z))
    both = (mass > 0) & (other > 0)
    assert bool(reached[one.plan.cols].gt(0).all())
    error = (there - direct)[both].norm(dim=1) / short.pitch_target
    motions = moved(two.transform @ one.transform, z) - moved(short.transform, z)
    far = motions.norm(dim=1).mean() / pitch(y)
    return Cycle(first, middle, last, float(error.quantile(0.5)), float(error.mean()), float(far))
