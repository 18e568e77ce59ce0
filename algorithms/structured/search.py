"""Many starts, annealed and not; the best of those that end apart."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.iterate import quietly
from algorithms.structured.alternation import (
    APART,
    VERTEX_TURNS,
    Ended,
    annealed,
    settled,
    turned,
)
from algorithms.structured.couplings import How, coupled
from algorithms.structured.problem import Problem
from algorithms.structured.starts import Starts, designed, drawn

# Starts are compared between at most so many points of each side, drawn once.
SAMPLED = 500
# Random starts between vertices: as many as take about as long as one annealed run, within bounds.
VERTEX_ROOM, FEWEST, MOST = 500_000, 8, 256
ANNEALED_STARTS = 8
# Values this close, relatively, are one value.
SAME_VALUE = 1e-6
# Ends that are looked at more closely, beyond the modes asked for.
SPARE = 3
# Plans of ends that are compared: so exact, within so many sweeps.
COMPARED, SWEEPS = 1e-5, 1000
# Turns after annealing, before ends are compared.
LAST_TURNS = 12


@dataclass(frozen=True)
class Attempt:
    """One start and the objective at which it was last seen."""

    start: str
    value: float


@dataclass(frozen=True)
class Mode:
    """An end that is unlike the others."""

    start: str
    ended: Ended


@dataclass(frozen=True)
class Search:
    """What is asked of the search.

    Attributes:
        given: maps to start from besides.
        starts: random ones; None is a number that suits the size.
        anneal: whether to begin at larger entropic strengths.
        modes: ends to tell apart.
    """

    given: Starts | None
    starts: int | None
    anneal: bool
    modes: int
    tol: float
    max_iter: int


def searched(
    p: Problem, ask: Search, how: How, generator: torch.Generator
) -> tuple[list[Mode], list[Attempt]]:
    """Run every start, settle the best that differ; modes by value, attempts likewise."""
    rows, columns = (_sample(len(w), generator, w.device) for w in (p.a, p.b))
    small = p.kept(rows, columns)
    quick = replace(how, streamed=False, watch=quietly(how.watch))
    names, maps, values = _ends(small, ask, quick, generator)
    order = values.argsort(stable=True).tolist()
    attempts = [Attempt(names[k], float(values[k])) for k in order]
    whole = len(rows) == len(p.a) and len(columns) == len(p.b)
    modes: list[Mode] = []
    for k in _apart(small, maps, order, quick, ask.modes + (0 if whole else SPARE)):
        watch = how if not modes else quick
        watch = replace(watch, streamed=how.streamed)
        modes.append(Mode(names[k], settled(p, maps[k], watch, ask.tol, ask.max_iter)))
    modes.sort(key=lambda mode: mode.ended.value)
    return modes[: ask.modes], attempts


def _sample(n: int, generator: torch.Generator, device: torch.device) -> Tensor:
    if n <= SAMPLED:
        return torch.arange(n, device=device)
    picked = torch.randperm(n, generator=generator, device=generator.device)[:SAMPLED]
    return picked.sort().values.to(device)


def _ends(
    p: Problem, ask: Search, how: How, generator: torch.Generator
) -> tuple[list[str], Float[Tensor, "S e d"], Float[Tensor, "S"]]:
    """Let every start descend; those that were given and those that vanish come as they are."""
    count = ANNEALED_STARTS if ask.starts is None else ask.starts
    starts = designed(p) + drawn(p, count, generator)
    if ask.anneal:
        starts = Starts(starts.names, annealed(p, starts.maps, how))
    if ask.given is not None:
        starts = ask.given + starts
    last = replace(how, tol=max(how.tol, COMPARED), max_iter=min(how.max_iter, SWEEPS))
    maps, values = turned(p, starts.maps, last, VERTEX_TURNS if how.epsilon == 0 else LAST_TURNS)
    names = list(starts.names)
    if how.epsilon == 0 and ask.starts != 0:
        more = _vertices(p, ask, how, generator)
        ends, reached = turned(p, more.maps, how, VERTEX_TURNS)
        maps, values = torch.cat([maps, ends]), torch.cat([values, reached])
        names += more.names
    return names, maps, values


def _vertices(p: Problem, ask: Search, how: How, generator: torch.Generator) -> Starts:
    """Draw more maps where plans are cheap; half of them take two turns without lam first."""
    affordable = VERTEX_ROOM // (len(p.a) * len(p.b))
    count = min(MOST, max(FEWEST, affordable)) if ask.starts is None else ask.starts
    starts = drawn(p, count, generator, "vertex")
    half = count // 2
    eased, _ = turned(p.weaker(0.0), starts.maps[:half], how, 2) if half else (starts.maps[:0], 0)
    return Starts(starts.names, torch.cat([eased, starts.maps[half:]]))


def _apart(p: Problem, maps: Tensor, order: list[int], how: How, wanted: int) -> list[int]:
    """Pick the best ends whose plans differ; a map that was seen is known without its plan."""
    found, plans, seen = list[int](), list[Tensor](), list[Tensor]()
    rough = replace(how, tol=max(how.tol, COMPARED), max_iter=min(how.max_iter, SWEEPS))
    for k in order:
        if len(found) >= wanted:
            break
        M = maps[k]
        size = float(torch.linalg.matrix_norm(M))
        if any(float(torch.linalg.matrix_norm(M - other)) <= SAME_VALUE * size for other in seen):
            continue
        seen.append(M)
        P = coupled(p, M[None], rough, keep=True).plans
        assert P is not None
        if all(float((P[0] - other).abs().sum()) / 2 > APART for other in plans):
            found.append(k)
            plans.append(P[0])
    return found
