"""Time transport.sinkhorn and transport.exact beside POT: `python -m bench.transport.entropic`.

One process, one thread for all, CPU seconds (so that neighbours on the machine count little).
Accuracy is measured by one function for everyone: the L1 error of
both marginals of the plan that came back, in float64. Writes bench/results/transport_entropic.json.
"""

import json
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from algorithms.geometry import CostMatrix
from algorithms.transport.exact import exact
from algorithms.transport.sinkhorn import sinkhorn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import ot

TOL = 1e-6
SIZES, DIMENSIONS, SHARPNESS = (500, 2000), (2, 50), (0.05, 0.01, 0.002)
EXACT_SIZES = (300, 1000, 2000)
REPEATS = {300: 5, 500: 5, 1000: 3, 2000: 3}
# Peers get this many seconds, the cap on sweeps coming from a short trial: the error that was
# reached then says what the cap cost. Keeps the run in minutes.
SECONDS_A_PEER = 5.0
THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
OUTPUT = Path(__file__).parent.parent / "results" / "transport_entropic.json"
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """One solver on one problem: median CPU seconds, error reached, cost, ratio to ours."""

    problem: str
    solver: str
    seconds: float
    marginal_error: float
    cost: float
    note: str = ""
    ratio_to_ours: float | None = None


def clouds(n: int, d: int) -> tuple[Array, Array, Array]:
    """The clouds of the reference table: N(0, I), and 0.8 N(0, I) + e_1, with random weights."""
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(n, d)), 0.8 * draw.normal(size=(n, d))
    y[:, 0] += 1
    a, b = draw.random(n) + 0.1, draw.random(n) + 0.1
    C = (x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T
    return a / a.sum(), b / b.sum(), np.maximum(C, 0)


def marginal_error(plan: Array, a: Array, b: Array) -> float:
    """Add the L1 errors of both marginals."""
    return float(np.abs(plan.sum(1) - a).sum() + np.abs(plan.sum(0) - b).sum())


def timed(solve: Callable[[], tuple[Array, str]], repeats: int) -> tuple[float, Array, str]:
    """Run `repeats` times or until three seconds are gone; the median, the last plan, its note."""
    seconds: list[float] = []
    while True:
        began = time.process_time()
        plan, note = solve()
        seconds.append(time.process_time() - began)
        if len(seconds) == repeats or sum(seconds) > 3:
            return statistics.median(seconds), plan, note


def measured(
    problem: str, solvers: dict[str, Callable[[], tuple[Array, str]]], a: Array, b: Array, C: Array
) -> list[Row]:
    """Time every solver on one problem; ours comes first and sets the ratios."""
    rows: list[Row] = []
    for name, solve in solvers.items():
        seconds, plan, note = timed(solve, REPEATS[len(a)])
        ratio = seconds / rows[0].seconds if rows else None
        error, cost = marginal_error(plan, a, b), float((plan * C).sum())
        rows.append(Row(problem, name, seconds, error, cost, note, ratio))
        print(f"{problem:28} {name:20} {seconds:8.3f} s  error {error:.1e}", end="")
        print(f"  x{ratio:.1f}  {note}" if ratio else f"  {note}", flush=True)
    return rows


def entropic(n: int, d: int, share: float) -> list[Row]:
    """Compare entropic solvers at epsilon = share mean(C)."""
    a, b, C = clouds(n, d)
    epsilon = share * C.mean()
    p, q, M = (torch.from_numpy(z) for z in (a, b, C))

    def ours() -> tuple[Array, str]:
        answer = sinkhorn(CostMatrix(M), p, q, epsilon=epsilon, tol=TOL)
        return answer.plan.numpy(), f"{answer.stop.status} {answer.stop.iterations}"

    def stabilized(cap: int) -> Any:
        # the default tau, 1e3, is below the n^2 that absorbing makes of u when n = 2000: the
        # solver then absorbs at every sweep and returns a plan of mass 1/n^2
        return ot.bregman.sinkhorn_stabilized(
            a, b, C, epsilon, tau=1e3 * n * n, stopThr=TOL, numItermax=cap
        )

    def logarithmic(cap: int) -> Any:
        return ot.bregman.sinkhorn_log(a, b, C, epsilon, stopThr=TOL, numItermax=cap)

    def capped(solve: Callable[[int], Any], trial: int) -> Callable[[], tuple[Array, str]]:
        began = time.perf_counter()
        solve(trial)
        cap = int(SECONDS_A_PEER * trial / (time.perf_counter() - began))
        return lambda: (solve(cap), f"at most {cap}")

    peers = {"POT stabilized": capped(stabilized, 60), "POT log": capped(logarithmic, 5)}
    return measured(f"sinkhorn n={n} d={d} r={share}", {"ours": ours} | peers, a, b, C)


def exactly(n: int, d: int) -> list[Row]:
    """Compare exact solvers, on clouds with random weights."""
    a, b, C = clouds(n, d)
    p, q, M = (torch.from_numpy(z) for z in (a, b, C))

    def ours() -> tuple[Array, str]:
        answer = exact(CostMatrix(M), p, q)
        return answer.plan.dense(n, n).numpy(), f"{answer.method} {answer.stop.status}"

    solvers = {"ours": ours, "POT emd": lambda: (ot.emd(a, b, C), "")}
    return measured(f"exact n={n} d={d}", solvers, a, b, C)


def main() -> None:
    """Run the table and write it."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # POT warns at its cap: the table says so
    began = time.perf_counter()
    entropic(500, 2, 0.05)  # once to warm up
    print("-- warm --")
    rows = [r for n in SIZES for d in DIMENSIONS for s in SHARPNESS for r in entropic(n, d, s)]
    for n in EXACT_SIZES:
        for d in DIMENSIONS:
            rows += exactly(n, d)
    report = {
        "machine": f"{platform.machine()} {platform.processor()}, one thread",
        "load_average": os.getloadavg(),
        "versions": {m: version(m) for m in ("torch", "numpy", "scipy", "POT")}
        | {"python": platform.python_version()},
        "tol": TOL,
        "seconds": time.perf_counter() - began,
        "rows": [asdict(row) for row in rows],
    }
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    if any(os.environ.get(name) != "1" for name in THREADS):
        # numpy and torch read them when they are imported: start again
        os.execve(
            sys.executable, [sys.executable, "-m", "bench.transport.entropic"], os.environ | THREADS
        )
    main()
