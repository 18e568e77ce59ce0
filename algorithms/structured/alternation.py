r"""The method: the best plan for a map, the best map for a plan, in turns, for many maps at once.

Neither half step raises F. Where the squared norm has weight q, F falls by `(q/2) |M' - M|^2` or
more in each turn.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.iterate import Stop, iterate
from algorithms.structured.couplings import Coupled, How, coupled
from algorithms.structured.problem import Problem

# Entropic strengths of an annealed run, in units of eps*, with the share of lam that is on: a
# start with lam on at a large strength falls into the map 0, and stays there.
ANNEALED = ((0.4, 0.0), (0.2, 0.0), (0.1, 0.5), (0.05, 1.0), (0.02, 1.0))
TURNS, MOVES = 6, 1e-3
# Plans of an annealed run need not be exact.
ROUGH, ROUGH_SWEEPS = 1e-4, 500
# Turns of starts between vertices: they end at a fixed point, after five or so.
VERTEX_TURNS = 50
# A map below this share of the size of cross moments has vanished.
COLLAPSED = 1e-6
# Plans of fixed points that differ by less than this share of the mass, in total variation, are
# one mode.
APART = 0.1


@dataclass(frozen=True)
class Ended:
    """Where one start ended: its map, the plan's worth, the objective after every turn."""

    M: Float[Tensor, "e d"]
    seen: Coupled
    value: float
    history: tuple[float, ...]
    stop: Stop


def objective(p: Problem, M: Float[Tensor, "S e d"], seen: Coupled) -> Float[Tensor, "S"]:
    """Evaluate F at maps and plans."""
    return -p.alpha * (M * seen.G).sum((1, 2)) + seen.rest + p.penalty.value(M)


def turned(
    p: Problem, M: Float[Tensor, "S e d"], how: How, turns: int
) -> tuple[Float[Tensor, "S e d"], Float[Tensor, "S"]]:
    """Take some turns with all maps together; stop when none moves. Also return F."""
    seen = coupled(p, M, how)
    here = p.best_map(seen.G)
    for _ in range(turns - 1):
        if not how.watch(-1, 0.0):
            break
        seen = coupled(p, here, how, seen.f)
        new = p.best_map(seen.G)
        moved = torch.linalg.matrix_norm(new - here) > MOVES * torch.linalg.matrix_norm(new)
        here = new
        if not bool(moved.any()):
            break
    return here, objective(p, here, seen)


def annealed(p: Problem, M: Float[Tensor, "S e d"], how: How) -> Float[Tensor, "S e d"]:
    """Lower the entropic strength to the one asked for, and raise lam to its own."""
    star, here = p.threshold(), M
    for strength, share in ANNEALED:
        if strength * star <= how.epsilon and share == 1:
            continue
        rough = replace(
            how, epsilon=max(strength * star, how.epsilon), tol=ROUGH, max_iter=ROUGH_SWEEPS
        )
        here, _ = turned(p.weaker(share), here, rough, TURNS)
        if not how.watch(-1, 0.0):
            break
    return here


def settled(p: Problem, M: Float[Tensor, "e d"], how: How, tol: float, max_iter: int) -> Ended:
    """Take turns with one map until it is at rest: until it moves by less than a share `tol`."""
    history: list[float] = []
    vanished = COLLAPSED * (0.0 if p.penalty.bounded else p.spread() ** 0.5)

    def once(M: Tensor, f0: Tensor | None) -> tuple[Tensor, Coupled, float]:
        seen = coupled(p, M[None], how, f0)
        new = p.best_map(seen.G)
        if float(torch.linalg.matrix_norm(new)) <= vanished:
            new = torch.zeros_like(new)  # which it nears by a constant factor each turn, for ever
        history.append(float(objective(p, new, seen)))
        moved = float(torch.linalg.matrix_norm(new[0] - M))
        size = float(torch.linalg.matrix_norm(new[0]))
        return new[0], seen, moved / size if size > 0 else 0.0

    first = once(M, None)
    (end, seen, _), stop = iterate(
        lambda state: once(state[0], state[1].f),
        lambda state: state[2],
        first,
        tol=tol,
        max_iter=max_iter,
        watch=how.watch,
    )
    stop = replace(stop, iterations=stop.iterations + 1)
    return Ended(end, seen, history[-1], tuple(history), stop)


def fixed_point_residual(p: Problem, M: Float[Tensor, "e d"], G: Float[Tensor, "e d"]) -> float:
    """Measure by how much a map misses the best one for the plan it has, as a share of it."""
    best = p.best_map(G)
    size = float(torch.linalg.matrix_norm(best))
    apart = float(torch.linalg.matrix_norm(M - best))
    return apart / size if size > 0 else apart
