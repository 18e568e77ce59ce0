"""Measure transport.refine beside its peers: `python -m bench.transport.refine [small large]`.

Costs over the exact cost, from one function for all: the plan's pairs priced in float64. Small
problems are timed in this process; large ones each run in a child of their own, whose peak memory
the system tells. Two threads for ours. Writes bench/results/transport_refine.json.
"""

import json
import os
import resource
import subprocess
import sys
import time
import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from algorithms.transport.low_rank import low_rank as blurred
from algorithms.transport.refine import RefinedPlan, refine
from bench.table import Row, pinned, report, timed

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import ot

pot: Any = ot

THREADS = 2
Array = NDArray[np.float64]
# Exact cost of the square, n = 20,000 and seed 0: by network simplex on arcs near a refined
# bijection, with all pairs priced until none was left below -1e-9 (236,186 arcs, 5 rounds; the
# least reduced cost was -3.6e-12, so the optimum is within 4e-12 of it).
EXACT = {"square n=20000": 0.00012475303585}
# Kind, points, dimensions.
SMALL = [("square", 1024, 2), ("clouds", 1024, 20), ("clouds", 4096, 2), ("clouds", 4096, 20)]
LARGE = [("square", 20_000, 2), ("square", 100_000, 2), ("clouds", 100_000, 20)]
BATCH, RANK = 512, 50
LOW_RANK_POINTS = 1024  # POT's low-rank solver takes minutes beyond
BLURRED_POINTS = 20_000  # as many for ours


def problem(kind: str, n: int, d: int) -> tuple[Array, Array]:
    """Two samples of the uniform law on the unit square; or N(0, I) and 0.8 N(0, I) + e_1."""
    draw = np.random.default_rng(0)
    if kind == "square":
        return draw.random((n, d)), draw.random((n, d))
    x, y = draw.normal(size=(n, d)), 0.8 * draw.normal(size=(n, d))
    y[:, 0] += 1
    return x, y


def price(x: Array, y: Array, sigma: Array) -> float:
    """Price a bijection."""
    return float(((x - y[sigma]) ** 2).sum(1).mean())


def ours(x: Array, y: Array) -> RefinedPlan:
    """Refine with default options."""
    generator = torch.Generator().manual_seed(0)
    return refine(torch.from_numpy(x), torch.from_numpy(y), generator=generator)


def minibatch(x: Array, y: Array) -> Array:
    """Match random batches exactly."""
    draw = np.random.default_rng(1)
    i, j = draw.permutation(len(x)), draw.permutation(len(y))
    sigma = np.empty(len(x), dtype=int)
    for first in range(0, len(x), BATCH):
        some, other = i[first : first + BATCH], j[first : first + BATCH]
        choice = linear_sum_assignment(pot.dist(x[some], y[other]))[1]
        sigma[some] = other[np.asarray(choice, dtype=np.intp)]
    return sigma


def low_rank(x: Array, y: Array) -> float:
    """Price POT's low-rank plan; its marginals are as it left them."""
    Q, R, g = pot.lowrank_sinkhorn(x, y, rank=RANK, numItermax=200)
    plan = (Q / g) @ R.T
    return float((plan / plan.sum() * pot.dist(x, y)).sum())


def our_low_rank(x: Array, y: Array) -> float:
    """Price the low-rank plan of transport.low_rank, whose marginals are exact."""
    clouds = torch.from_numpy(x), torch.from_numpy(y)
    return float(blurred(*clouds, rank=RANK, generator=torch.Generator().manual_seed(0)).value)


def small(kind: str, n: int, d: int) -> list[Row]:
    """Compare on problems whose exact cost network simplex finds at once."""
    x, y = problem(kind, n, d)
    name = f"{kind} n={n} d={d}"
    even = np.full(n, 1 / n)
    seconds, best = timed(lambda: pot.emd2(even, even, pot.dist(x, y), numItermax=10**9), repeats=1)
    rows = [refined(name, x, y, best)]
    base = rows[0].seconds

    def beside(solver: str, seconds: float, cost: float, note: str = "") -> None:
        row = Row(name, solver, seconds, {"cost/exact": cost / best}, note, seconds / base)
        rows.append(row)
        print(row, flush=True)

    print(rows[0], flush=True)
    beside("POT emd2 (exact)", seconds, best, "n x n costs")
    spent, sigma = timed(lambda: minibatch(x, y), repeats=1)
    beside(f"mini-batches of {BATCH}", spent, price(x, y, sigma))
    spent, cost = timed(lambda: our_low_rank(x, y), repeats=1)
    beside(f"transport.low_rank {RANK}", spent, cost)
    if n <= LOW_RANK_POINTS:
        spent, cost = timed(lambda: low_rank(x, y), repeats=1)
        beside(f"POT low rank {RANK}", spent, cost, "200 steps")
    return rows


def refined(name: str, x: Array, y: Array, best: float) -> Row:
    """Run ours, and say all that it reached."""
    seconds, answer = timed(lambda: ours(x, y), repeats=3)
    assert answer.map is not None
    cost, seen = price(x, y, answer.map.numpy()), answer.certificate
    reached: dict[str, float] = {"cost/exact": cost / best, "bound/exact": seen.lower_bound / best}
    reached |= {"relative_gap": seen.relative_gap, "bijective": float(bool(seen.bijective))}
    note = f"{answer.stop.status} after {answer.stop.iterations} passes, bound by {seen.bound}"
    return Row(name, "ours", seconds, reached, note)


def large(kind: str, n: int, d: int) -> list[Row]:
    """Run ours, then mini-batches, in a child; wall seconds, and its peak memory."""
    command = [sys.executable, "-m", "bench.transport.refine", "child", kind, str(n), str(d)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = [Row(**row) for row in json.loads(text.splitlines()[-1])]
    for row in rows:
        print(row, flush=True)
    return rows


def child(kind: str, n: int, d: int) -> None:
    """Solve one large problem and print what came of it."""
    x, y = problem(kind, n, d)
    name = f"{kind} n={n} d={d}"
    best = EXACT.get(f"{kind} n={n}")
    before, cpu = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    began = time.perf_counter()
    answer = ours(x, y)
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert answer.map is not None
    cost, seen = price(x, y, answer.map.numpy()), answer.certificate
    reached: dict[str, float] = {"cost": cost, "cpu_s": cpu, "peak_GB": peak / 2**20}
    reached |= {"peak_before_GB": before / 2**20, "relative_gap": seen.relative_gap}
    reached |= {"cost/exact": cost / best} if best else {}
    note = f"{answer.stop.status} after {answer.stop.iterations} passes, bound by {seen.bound}"
    ours_row: dict[str, Any] = vars(Row(name, "ours", wall, reached, note))
    began = time.perf_counter()
    batches = price(x, y, minibatch(x, y))
    spent = time.perf_counter() - began
    against = {"cost": batches, "cost/ours": batches / cost}
    other = vars(Row(name, f"mini-batches of {BATCH}", spent, against, "", spent / wall))
    rows = [ours_row, other]
    if n <= BLURRED_POINTS:
        began = time.perf_counter()
        blurry = our_low_rank(x, y)
        spent = time.perf_counter() - began
        against = {"cost": blurry, "cost/ours": blurry / cost}
        rows.append(vars(Row(name, f"transport.low_rank {RANK}", spent, against, "", spent / wall)))
    print(json.dumps(rows))


def main() -> None:
    """Run the tables that were asked for, and write them."""
    if sys.argv[1:2] == ["child"]:
        torch.set_num_threads(THREADS)
        child(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
        return
    asked = sys.argv[1:] or ["small", "large"]
    warnings.simplefilter("ignore")
    rows: list[Row] = []
    if "small" in asked:
        rows += [row for each in SMALL for row in small(*each)]
    if "large" in asked:
        rows += [row for each in LARGE for row in large(*each)]
    clock = "small: CPU seconds; large: wall seconds"
    report("transport_refine", rows, threads=THREADS, clock=clock, processors=os.cpu_count())


if __name__ == "__main__":
    if sys.argv[1:2] != ["child"]:
        pinned("bench.transport.refine", THREADS)
    main()
