"""Where descents start from: vertices that a rotation suggests, and three plans without one."""

from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from threading import Lock
from typing import Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.iterate import Stop, Watch, quietly
from algorithms.simplex import Vertex, network_simplex
from algorithms.spatial.frames import Frame, frame
from algorithms.spatial.fused import Descent, Fused, descend, from_vertex, product
from algorithms.spatial.procrustes import procrustes, rotation

# Basins are about 30 degrees to either side: 8 angles would be near the edge.
ANGLES = 12
# Of the vertices of the sweep, so many are tried further; the right basin was always the lowest.
SWEPT_PROPER, SWEPT_MIRRORED = 3, 2
# Rounds of rigid fit and vertex; the plan stops changing after 3 to 5.
ICP_ROUNDS = 5

UNTRIED = Stop("max_iter", 0, 1.0)

Stage = Literal["sweep", "screen", "descent", "polish", "winner"]
Item = TypeVar("Item")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Pair:
    """A fused problem with the points behind it, each in its canonical frame's centre.

    Attributes:
        problem: the fused problem.
        z: source points, centred; in the unit that `problem.D1` has.
        y: target points, centred.
        source: canonical frame of z.
        target: canonical frame of y.
    """

    problem: Fused
    z: Float[Tensor, "n 2"]
    y: Float[Tensor, "m 2"]
    source: Frame
    target: Frame


@dataclass(frozen=True)
class Start:
    """A row of the table of starts.

    Above `coarse.LARGE` spots the rows dropped before the polish are of the superspot problem.

    Attributes:
        name: where it started.
        stage: the stage at whose end it was dropped, or `winner`.
        value: F when it was last seen.
        determinant: 1, or -1 where the rigid fit of its plan is a reflection.
    """

    name: str
    stage: Stage
    value: float
    determinant: int


@dataclass(frozen=True, eq=False)
class Candidate:
    """One start and how far its descent has come.

    Attributes:
        name: where it started.
        state: the plan reached.
        mirrored: the unconstrained rigid fit of the plan is a reflection.
        stop: how its descent ended; iterations counted from the start.
    """

    name: str
    state: Descent
    mirrored: bool
    stop: Stop = UNTRIED

    @property
    def value(self) -> float:
        """F at the plan reached."""
        return float(self.state.value)

    def dropped(self, stage: Stage) -> Start:
        """Write the row of the table that ends here."""
        return Start(self.name, stage, self.value, -1 if self.mirrored else 1)


@dataclass(frozen=True)
class Errand:
    """What every stage needs to know of the run: its budget, its threads, its watch (shared)."""

    tol: float
    max_iter: int
    pool: Executor
    watch: Watch

    def go_on(self) -> bool:
        """Ask whether to begin another piece of work; reports no numbers."""
        return quietly(self.watch)(0, 0.0)

    def together(self, work: Callable[[Item], Answer], items: Iterable[Item]) -> list[Answer]:
        """Do independent work in threads; answers come in the order of the items."""
        return list(self.pool.map(work, items))


def pair(problem: Fused, z: Float[Tensor, "n 2"], y: Float[Tensor, "m 2"]) -> Pair:
    """Centre both point sets and find their canonical frames."""
    source, target = frame(z, problem.a), frame(y, problem.b)
    return Pair(problem, z - source.centre, y - target.centre, source, target)


def shared(watch: Watch) -> Watch:
    """Let threads share a watch: one asks at a time, and after a no nobody asks again."""
    lock, refused = Lock(), []

    def one_at_a_time(iteration: int, residual: float) -> bool:
        with lock:
            if not refused and not watch(iteration, residual):
                refused.append(True)
            return not refused

    return one_at_a_time


def rigid_vertex(
    pair: Pair, R: Float[Tensor, "2 2"], warm: tuple[Tensor, Tensor] | None = None
) -> Vertex:
    r"""Solve  min_P (1 - alpha) <M, P> + alpha sum_ij P_ij |R z_i - y_j|^2  exactly.

    Only -2 alpha (R z_i).y_j is written into the cost: the squares, and any shift t, are
    functions of i or of j alone and move nothing but the duals.
    """
    problem = pair.problem
    cost = (1 - problem.alpha) * problem.M - 2 * problem.alpha * (pair.z @ R.T) @ pair.y.T
    return network_simplex(problem.a, problem.b, cost, warm=warm)


def candidate(pair: Pair, name: str, state: Descent) -> Candidate:
    """Name a plan and look at the sign of its rigid fit."""
    return Candidate(name, state, procrustes(state.P, pair.z, pair.y).mirrored)


def sweep(pair: Pair, flip: bool, errand: Errand) -> tuple[list[Candidate], list[Start]]:
    """Stage A: turn the source by 12 angles about its canonical frame; one vertex each.

    Returns the few lowest and the rows of the others: plans are large, so no more are held.
    """
    V1, V2 = pair.source.V, pair.target.V
    turn = V1 * torch.tensor([1.0, -1.0 if flip else 1.0], dtype=V1.dtype, device=V1.device)
    mirrored = bool(torch.linalg.det(V2 @ turn.T) < 0)
    keep = SWEPT_MIRRORED if mirrored else SWEPT_PROPER
    kept, dropped, warm = [], [], None
    for k in range(ANGLES):
        if not errand.go_on():
            break
        degrees = k * 360 / ANGLES
        vertex = rigid_vertex(pair, V2 @ rotation(degrees, V1) @ turn.T, warm)
        warm = (vertex.f, vertex.g)
        name = f"sweep {degrees:g}" + (" mirrored" if mirrored else "")
        kept.append(Candidate(name, from_vertex(pair.problem, vertex), mirrored))
        kept.sort(key=lambda c: c.value)
        dropped += [c.dropped("sweep") for c in kept[keep:]]
        kept = kept[:keep]
    return kept, dropped


def flat(pair: Pair, name: str = "product") -> Candidate:
    """Start at a b^T."""
    return Candidate(name, product(pair.problem), False)


def by_expression(pair: Pair, errand: Errand) -> tuple[list[Candidate], list[Start]]:
    """Stage B: the vertex of expression alone, and rigid fits iterated from it; none dropped."""
    if not errand.go_on():
        return [], []
    problem = pair.problem
    vertex = network_simplex(problem.a, problem.b, (1 - problem.alpha) * problem.M)
    alone = candidate(pair, "expression", from_vertex(problem, vertex))
    state = alone.state
    for _ in range(ICP_ROUNDS):
        if not errand.go_on():
            break
        R = procrustes(state.P, pair.z, pair.y).R
        vertex = rigid_vertex(pair, R, (vertex.f, vertex.g))
        state = from_vertex(problem, vertex)
    return [alone, candidate(pair, "icp", state)], []


def advance(pair: Pair, errand: Errand, start: Candidate, steps: int) -> Candidate:
    """Descend by at most `steps` more iterations, within the budget of the whole."""
    left = min(steps, errand.max_iter - start.stop.iterations)
    state, stop = descend(
        pair.problem,
        start.state,
        tol=errand.tol,
        max_iter=left,
        watch=quietly(errand.watch),
    )
    spent = replace(stop, iterations=start.stop.iterations + stop.iterations)
    return replace(candidate(pair, start.name, state), stop=spent)
