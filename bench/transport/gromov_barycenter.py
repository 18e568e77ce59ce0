"""Time transport.gromov_barycenter beside POT: `python -m bench.transport.gromov_barycenter`.

One process, one thread for both, CPU seconds. What was reached is `sum_k w_k GW(C, C_k)` along the
solver's own plans, which one function first moves to exact marginals, in float64; `isometric` are
three copies of one cloud, whose mean costs nothing. Writes
bench/results/transport_gromov_barycenter.json.
"""

import sys
import warnings

import numpy as np
import torch
from torch import Tensor

from algorithms.entropic.rounding import round_plan
from algorithms.quadratic.objective import Pair
from algorithms.spaces import Cloud, Relations
from algorithms.transport.gromov_barycenter import WeightedSpace, gromov_barycenter
from bench.table import Row, pinned, report, timed

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import ot

Answer = tuple[Tensor, list[Tensor]]
POINTS, SIZE = 100, 60


def spirals(points: int) -> list[Tensor]:
    """Draw arcs of growing curl, in two and three dimensions."""
    draw = np.random.default_rng(0)
    clouds = []
    for turns, d in ((0.3, 2), (0.6, 3), (0.9, 2)):
        t = np.sort(draw.random(points)) * 2 * np.pi * turns
        x = np.stack([np.cos(t), np.sin(t), t / 3][:d], 1) + 0.03 * draw.normal(size=(points, d))
        clouds.append(torch.from_numpy(x))
    return clouds


def isometric(points: int) -> list[Tensor]:
    """Draw one cloud and turn and shuffle copies of it."""
    draw = np.random.default_rng(1)
    x = draw.normal(size=(points, 3))
    copies = [x]
    for _ in range(2):
        turn = np.linalg.qr(draw.normal(size=(3, 3)))[0]
        copies.append((x @ turn)[draw.permutation(points)])
    return [torch.from_numpy(y) for y in copies]


def reached(clouds: list[Tensor], C: Tensor, plans: list[Tensor]) -> dict[str, float]:
    """Evaluate a mean along plans that are rounded to their marginals first."""
    a = torch.full((len(C),), 1 / len(C), dtype=torch.float64)
    values: list[float] = []
    for x, plan in zip(clouds, plans, strict=True):
        b = torch.full((len(x),), 1 / len(x), dtype=torch.float64)
        pair = Pair(Relations(C), Relations(Cloud(x).matrix()), a, b)
        values.append(float(pair.objective(round_plan(plan, a, b))))
    return {"value": sum(values) / len(values)}


def ours(clouds: list[Tensor], size: int) -> Answer:
    """Ask the routine, with its defaults."""
    spaces = tuple(WeightedSpace(x=x) for x in clouds)
    answer = gromov_barycenter(spaces, size=size, generator=torch.Generator().manual_seed(0))
    plans = [P.dense(size, len(x)) for P, x in zip(answer.plans, clouds, strict=True)]
    return answer.C, plans


def peer(clouds: list[Tensor], size: int) -> Answer:
    """Ask POT, which starts from a random cloud."""
    spaces = [Cloud(x).matrix().numpy() for x in clouds]
    C, log = ot.gromov.gromov_barycenters(size, spaces, max_iter=100, log=True, random_state=0)
    return torch.from_numpy(C), [torch.from_numpy(P) for P in log["T"]]


def main() -> None:
    """Print and keep the table."""
    pinned("bench.transport.gromov_barycenter")
    points = int(sys.argv[1]) if len(sys.argv) > 1 else POINTS
    rows: list[Row] = []
    for name, clouds, size in (
        ("isometric", isometric(points), points),
        ("arcs", spirals(points), SIZE),
    ):
        first = None
        for solver, solve in (("brenier", ours), ("POT", peer)):
            seconds, (C, plans) = timed(lambda s=solve, c=clouds, k=size: s(c, k), repeats=1)
            ratio = None if first is None else seconds / first
            first = seconds if first is None else first
            problem = f"{name} n={points} to {size}"
            rows.append(Row(problem, solver, seconds, reached(clouds, C, plans), "", ratio))
            print(rows[-1], flush=True)
    report("transport_gromov_barycenter", rows, threads=1, clock="CPU seconds")


if __name__ == "__main__":
    main()
