"""Time transport.low_rank beside POT and OTT-JAX: `python -m bench.transport.low_rank`.

One process, one thread, CPU seconds. One function judges everybody in float64: the factors that
came back are rounded to exact marginals, and their cost is divided by that of the exact plan.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from algorithms.entropic.rounding import round_plan
from algorithms.transport.low_rank import low_rank
from bench.table import Row, pinned, report, timed

POINTS, RANKS, DIMENSIONS = 1000, (5, 20, 50), (2, 20)
# What was asked for, by dimension and rank.
ASKED = {2: (1.83, 1.23, 1.09), 20: (2.20, 1.93, 1.73)}


def clouds(n: int, d: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """N(0, I), and 0.8 N(0, I) + e_1."""
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(n, d)), 0.8 * draw.normal(size=(n, d))
    y[:, 0] += 1
    return x, y


def reached(x: Tensor, y: Tensor, factors: tuple[Tensor, Tensor, Tensor], best: float) -> dict:
    """Round factors to exact marginals and price their plan without the cost matrix."""
    Q, R, g = (z.double() for z in factors)
    kept = g > 0
    a = torch.full((len(x),), 1 / len(x), dtype=torch.float64)
    b = torch.full((len(y),), 1 / len(y), dtype=torch.float64)
    off = float((Q @ (R.sum(0) / g.clamp_min(1e-300)) - a).abs().sum())
    g = g[kept] / g[kept].sum()
    Q, R = round_plan(Q[:, kept], a, g), round_plan(R[:, kept], b, g)
    value = a @ x.square().sum(1) + b @ y.square().sum(1)
    value = value - 2 * (((Q.T @ x) * (R.T @ y)).sum(1) / g).sum()
    return {"value/exact": float(value) / best, "marginal error before rounding": off}


def pot(x: NDArray[Any], y: NDArray[Any], rank: int) -> tuple[Tensor, ...]:
    """Run the solver of POT, which returns the factors in its log."""
    import ot

    Q, R, g = ot.lowrank_sinkhorn(
        x, y, rank=rank, init="kmeans", reg=0.0, seed_init=0, numItermax=2000, warn=False
    )[:3]
    return tuple(torch.from_numpy(np.asarray(z)) for z in (Q, R, g))


def ott(x: NDArray[Any], y: NDArray[Any], rank: int) -> Any:
    """Prepare the solver of OTT, compiled by a first call."""
    import jax

    jax.config.update("jax_enable_x64", True)
    from ott.geometry.pointcloud import PointCloud
    from ott.initializers.linear.initializers_lr import KMeansInitializer
    from ott.problems.linear.linear_problem import LinearProblem
    from ott.solvers.linear.sinkhorn_lr import LRSinkhorn

    problem = LinearProblem(PointCloud(jax.numpy.asarray(x), jax.numpy.asarray(y)))
    solver = jax.jit(LRSinkhorn(rank=rank, initializer=KMeansInitializer(rank)))

    def solve() -> tuple[Tensor, ...]:
        out = solver(problem)
        return tuple(torch.from_numpy(np.array(z)) for z in (out.q, out.r, out.g))

    solve()
    return solve


def table() -> list[Row]:
    """Run every solver on every problem."""
    import ot

    rows: list[Row] = []
    for d in DIMENSIONS:
        x, y = clouds(POINTS, d)
        u, v = torch.from_numpy(x), torch.from_numpy(y)
        w = np.full(POINTS, 1 / POINTS)
        best = float(ot.emd2(w, w, ot.dist(x, y), numItermax=10**7))
        for rank, asked in zip(RANKS, ASKED[d], strict=True):
            name = f"low rank n={POINTS} d={d} r={rank}"

            def ours(method: Any = "alternation", rank: int = rank, u: Tensor = u, v: Tensor = v):
                draw = torch.Generator().manual_seed(0)
                answer = low_rank(u, v, rank=rank, method=method, generator=draw)
                return answer.Q, answer.R, answer.g

            solvers = {
                "ours": ours,
                "ours, mirror descent": lambda ours=ours: ours("mirror_descent"),
                "POT lowrank_sinkhorn": lambda rank=rank, x=x, y=y: pot(x, y, rank),
                "OTT LRSinkhorn": ott(x, y, rank),
            }
            base = 0.0
            for solver, solve in solvers.items():
                seconds, factors = timed(solve, repeats=3, at_most_s=6.0)
                base = base or seconds
                seen = reached(u, v, factors, best)
                note = f"asked {asked}" if solver == "ours" else ""
                ratio = None if solver == "ours" else seconds / base
                rows.append(Row(name, solver, seconds, seen, note, ratio))
                print(rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    pinned("bench.transport.low_rank")
    report("transport_low_rank", table(), threads=1, clock="process")
