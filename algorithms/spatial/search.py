"""The search for the best plan: many starts, screened early; then a polish of the winner.

The bottom of a basin is rough: within 3 degrees of the best rotation lie several stationary
plans, 1e-5 to 5e-4 apart, while descents in the wrong basin end 3 % above and cost the most.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from algorithms.spatial.fused import NEARLY_ZERO, Fused, blurred, from_plan, from_vertex
from algorithms.spatial.procrustes import Motion, procrustes, rotation
from algorithms.spatial.starts import (
    Candidate,
    Errand,
    Pair,
    Start,
    advance,
    by_expression,
    candidate,
    flat,
    rigid_vertex,
    sweep,
)

# Steps after which the basins are told apart and most descents can be dropped.
SCREEN_STEPS = 3
# Descents that are run to their end.
FINISHED_PROPER, FINISHED_MIRRORED = 2, 1
# Small turns that reach the neighbouring dents of the rough bottom, in degrees.
JITTER = (-2.5, -1.0, 0.0, 1.0, 2.5)
# The same where each descent is long.
JITTER_LARGE = (-1.0, 1.0)
# The polish goes on while it gains more than this share, at most so many rounds.
POLISH_GAIN, POLISH_ROUNDS = 1e-5, 3
# Values this close, in shares of F(a b^T), are one plan reached twice; rounding is near 1e-14.
SAME_PLAN = 1e-12


@dataclass(frozen=True)
class Found:
    """The best plan that turns the source, the best that mirrors it, and all that was dropped."""

    proper: Candidate | None
    mirrored: Candidate | None
    dropped: tuple[Start, ...]

    def best(self, allow_reflection: bool) -> Candidate:
        """Choose the answer: the lowest allowed, a mirrored one where nothing else was found."""
        if self.proper is not None and not allow_reflection:
            return self.proper
        return min((c for c in (self.proper, self.mirrored) if c is not None), key=_value)

    def margin(self, problem: Fused) -> float | None:
        """Compute F(mirrored) / F(proper) - 1; two exact fits, 0 against 0, have margin 0."""
        if self.proper is None or self.mirrored is None:
            return None
        least = NEARLY_ZERO * problem.size
        return (self.mirrored.value - self.proper.value) / max(self.proper.value, least)


def from_product(pair: Pair, errand: Errand) -> Found:
    """Descend from a b^T only."""
    return _sorted_out(pair, [advance(pair, errand, flat(pair), errand.max_iter)], [])


def from_motion(pair: Pair, errand: Errand, motion: Motion) -> Found:
    """Descend from the vertex about a given motion only."""
    start = _turned(pair, "pairs", motion.R)
    return _sorted_out(pair, [advance(pair, errand, start, errand.max_iter)], [])


def given(pair: Pair, errand: Errand, plan: Tensor) -> Found:
    """Descend from a given feasible plan only."""
    start = candidate(pair, "plan", from_plan(pair.problem, plan))
    return _sorted_out(pair, [advance(pair, errand, start, errand.max_iter)], [])


def screened(pair: Pair, errand: Errand) -> Found:
    """Stages A to C: a sweep and three other starts, three steps each, the best few to the end."""
    (turned, rows), (flipped, more_rows), (others, _) = errand.together(
        lambda work: work(),
        [
            partial(sweep, pair, False, errand),
            partial(sweep, pair, True, errand),
            partial(by_expression, pair, errand),
        ],
    )
    starts = [*turned, *flipped, *others, flat(pair)]
    short = errand.together(lambda c: advance(pair, errand, c, SCREEN_STEPS), starts)
    chosen = _lowest(pair, short, FINISHED_PROPER, False) + _lowest(
        pair, short, FINISHED_MIRRORED, True
    )
    rows += more_rows + [c.dropped("screen") for c in short if c not in chosen]
    ends = errand.together(lambda c: advance(pair, errand, c, errand.max_iter), chosen)
    return _sorted_out(pair, ends, rows)


def refined(pair: Pair, errand: Errand, coarse: Pair, guides: Found) -> Found:
    """Carry the motions that a coarse search found to the full problem: vertex, then descent."""

    def descent(guide: Candidate) -> Candidate:
        if not errand.go_on():
            return flat(pair)
        start = _turned(pair, guide.name, _turn(coarse, guide))
        return advance(pair, errand, start, errand.max_iter)

    ends = [c for c in (guides.proper, guides.mirrored) if c is not None]
    return _sorted_out(pair, errand.together(descent, ends), guides.dropped)


def polished(
    pair: Pair, errand: Errand, found: Found, best: Candidate, jitter: Sequence[float]
) -> Found:
    """Stage D: descend again from near the best rotation, from its blur, and from a b^T.

    Repeated while the best falls. Ends of the other orientation are no answers and are dropped.
    """
    rows = list(found.dropped)
    extra = [partial(flat, pair, "product again")] if _dropped_product(found) else []

    def descent(start: Callable[[], Candidate]) -> Candidate | None:
        return advance(pair, errand, start(), errand.max_iter) if errand.go_on() else None

    for _ in range(POLISH_ROUNDS):
        starts = [*extra, *_near(pair, best, jitter)] if errand.go_on() else []
        ends = [c for c in errand.together(descent, starts) if c is not None]
        before, extra = best, []
        best = _lowest(pair, [best, *ends], 1, best.mirrored)[0]
        rows += [c.dropped("polish") for c in (before, *ends) if c is not best]
        gain = before.value - best.value
        if gain <= POLISH_GAIN * abs(best.value) or not errand.watch(
            best.stop.iterations, best.stop.residual
        ):
            break
    if best.mirrored:
        return Found(found.proper, best, tuple(rows))
    return Found(best, found.mirrored, tuple(rows))


def _dropped_product(found: Found) -> bool:
    """Tell whether the descent from a b^T was not run to its end."""
    return not any(row.name == "product" and row.stage != "screen" for row in found.dropped) and (
        all(end is None or end.name != "product" for end in (found.proper, found.mirrored))
    )


def _near(pair: Pair, best: Candidate, jitter: Sequence[float]) -> list[Callable[[], Candidate]]:
    R = _turn(pair, best)
    base = rigid_vertex(pair, R)
    warm = (base.f, base.g)
    turns = [
        partial(_turned, pair, f"{best.name} {degrees:+g}", rotation(degrees, R) @ R, warm)
        for degrees in jitter
    ]
    blur = lambda: candidate(pair, f"{best.name} blurred", blurred(pair.problem, best.state))
    return [*turns, blur]


def _turned(
    pair: Pair, name: str, R: Tensor, warm: tuple[Tensor, Tensor] | None = None
) -> Candidate:
    return candidate(pair, name, from_vertex(pair.problem, rigid_vertex(pair, R, warm)))


def _turn(pair: Pair, guide: Candidate) -> Tensor:
    """Fit the rotation of a proper plan, the reflection of a mirrored one."""
    return procrustes(guide.state.P, pair.z, pair.y, allow_reflection=guide.mirrored).R


def _value(candidate: Candidate) -> float:
    return candidate.value


def _lowest(
    pair: Pair, candidates: Iterable[Candidate], count: int, mirrored: bool
) -> list[Candidate]:
    """Take the lowest few different plans; of a plan reached several times, the first to name it.

    Rounding, which varies with the number of threads, then decides nothing.
    """
    own = [c for c in candidates if c.mirrored == mirrored]
    groups: list[list[Candidate]] = []
    for c in sorted(own, key=_value):
        if groups and c.value - groups[-1][-1].value <= SAME_PLAN * pair.problem.size:
            groups[-1].append(c)
        else:
            groups.append([c])
    return [min(group, key=own.index) for group in groups[:count]]


def _sorted_out(pair: Pair, ends: list[Candidate], rows: Sequence[Start]) -> Found:
    """Keep the lowest of each orientation: a descent may have turned over on its way."""
    proper, mirrored = _lowest(pair, ends, 1, False), _lowest(pair, ends, 1, True)
    lost = [c.dropped("descent") for c in ends if c not in proper + mirrored]
    return Found(proper[0] if proper else None, mirrored[0] if mirrored else None, (*rows, *lost))


def table(found: Found, winner: Candidate) -> tuple[Start, ...]:
    """List every start once, the winner first, then by value."""
    ends = [c for c in (found.proper, found.mirrored) if c is not None and c is not winner]
    rows = [*found.dropped, *(c.dropped("descent") for c in ends)]
    return winner.dropped("winner"), *sorted(rows, key=lambda row: row.value)
