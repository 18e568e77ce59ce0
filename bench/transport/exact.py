"""Time transport.exact beside POT's `emd2`: `python -m bench.transport.exact`.

One thread for all, CPU seconds. What each reached is judged by one function in float64, from the
plan and potentials that came back: the cost, the L1 error of both marginals, how far the
potentials are from feasible and the gap, both as shares of the largest cost. The peer is timed
with and without the cost matrix that it needs. The last row is one large problem in a process of
its own: CPU and wall seconds on two threads, and the most memory that process ever held.
"""

import json
import subprocess
import sys
import time
import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from algorithms.geometry import PointClouds
from algorithms.transport.exact import ExactPlan, exact
from bench.table import Row, pinned, report, timed

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import ot

CASES = [
    (n, kind, weighted)
    for n in (1000, 2000, 5000)
    for kind in ("square", "2-D", "50-D")
    for weighted in (False, True)
]
LARGE = 20_000
Array = NDArray[np.float64]


def clouds(n: int, kind: str, weighted: bool) -> tuple[Array, Array, Array, Array]:
    """Two samples of the unit square, or N(0, I) and 0.8 N(0, I) + e_1; weights equal or drawn."""
    draw = np.random.default_rng(0)
    if kind == "square":
        x, y = draw.random((n, 2)), draw.random((n, 2))
    else:
        d = int(kind.removesuffix("-D"))
        x, y = draw.normal(size=(n, d)), 0.8 * draw.normal(size=(n, d))
        y[:, 0] += 1
    a, b = (draw.random(n) + 0.1 if weighted else np.ones(n) for _ in range(2))
    return x, y, a / a.sum(), b / b.sum()


def reached(x: Array, y: Array, a: Array, b: Array, answer: Any) -> dict[str, float]:
    """Judge rows, columns, masses and potentials, whoever found them."""
    rows, cols, mass, f, g = answer
    cost = float((((x[rows] - y[cols]) ** 2).sum(1) * mass).sum())
    off = np.abs(np.bincount(rows, mass, len(a)) - a).sum()
    off += np.abs(np.bincount(cols, mass, len(b)) - b).sum()
    beyond, largest = 0.0, 0.0
    for i in range(0, len(x), 100):
        C = ((x[i : i + 100, None] - y) ** 2).sum(2)
        beyond = max(beyond, float((f[i : i + 100, None] + g - C).max()))
        largest = max(largest, float(C.max()))
    gap = abs(cost - a @ f - b @ g) / largest
    return {"cost": cost, "marginals": float(off), "infeasible": beyond / largest, "gap": gap}


def entries(answer: ExactPlan) -> tuple[Array, ...]:
    """Take the arrays out of our answer."""
    plan = answer.plan
    return tuple(t.numpy() for t in (plan.rows, plan.cols, plan.mass, answer.f, answer.g))


def compared(n: int, kind: str, weighted: bool) -> list[Row]:
    """Solve one problem with both."""
    x, y, a, b = clouds(n, kind, weighted)
    X, Y, p, q = (torch.from_numpy(z) for z in (x, y, a, b))
    name = f"{kind} n={n} {'drawn' if weighted else 'equal'} weights"
    seconds, ours = timed(lambda: exact(PointClouds(X, Y), p, q))
    rows = [Row(name, "ours", seconds, reached(x, y, a, b, entries(ours)), ours.method)]
    making, C = timed(lambda: ot.dist(x, y))
    solving, (plan, log) = timed(lambda: ot.emd(a, b, C, numItermax=10**9, log=True))
    i, j = np.nonzero(plan)
    seen = reached(x, y, a, b, (i, j, plan[i, j], log["u"], log["v"]))
    for solver, spent in (("POT emd, C given", solving), ("POT emd and C", making + solving)):
        rows.append(Row(name, solver, spent, seen, ratio=spent / seconds))
    return rows


def alone() -> None:
    """Solve the large problem in this process; print what it took and reached."""
    import resource

    x, y, a, b = clouds(LARGE, "square", False)
    cpu, wall = time.process_time(), time.perf_counter()
    answer = exact(PointClouds(torch.from_numpy(x), torch.from_numpy(y)))
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seen = reached(x, y, a, b, entries(answer))
    print(json.dumps({"cpu": cpu, "seen": seen | {"wall s": wall, "peak MB": peak}}))


def large() -> Row:
    """Solve the large problem in a process of its own, on two threads."""
    program = "import torch; torch.set_num_threads(2); import bench.transport.exact as e; e.alone()"
    text = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout
    found = json.loads(text.splitlines()[-1])
    return Row(f"square n={LARGE} equal weights", "ours, 2 threads", found["cpu"], found["seen"])


def main() -> None:
    """Run the table and write it."""
    pinned("bench.transport.exact")
    warnings.simplefilter("ignore")
    compared(500, "2-D", False)  # once to warm up
    rows: list[Row] = []
    for case in CASES:
        found = compared(*case)
        rows += found
        print(*found, sep="\n", flush=True)
    rows.append(large())
    print(rows[-1])
    report("transport_exact", rows, threads=1, clock="CPU seconds")


if __name__ == "__main__":
    main()
