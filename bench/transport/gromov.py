"""Time transport.gromov between clouds beside its peers: `python -m bench.transport.gromov`.

Every value is computed by one function, in float64, from the plan that came back, moved to exact
marginals. CPU seconds, one thread for all (`--threads 2` for two, then by the wall clock); peers
start from the product plan, as they do by default. `--small` leaves out n = 2,000. OTT-JAX, where
it is installed, runs at n = 200, its compilation not counted.
Writes bench/results/transport_gromov.json.
"""

import argparse
import os
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.table import Row, pinned, report, timed

MODULE = "bench.transport.gromov"
# Best values known for these clouds: a value above by more than the share given is a failure.
ASKED = {
    ("spirals", 2000): (0.010892, 0.01),
    ("mixtures", 2000): (0.394314, 0.01),
    ("rotated", 2000): (3.760e-4, 0.01),
    ("isotropic", 2000): (0.03751, 0.02),
    ("20-D/30-D", 2000): (0.069867, 0.01),
    ("spirals", 500): (0.06289, 0.0),
    ("mixtures", 500): (0.4385, 0.0),
    ("isotropic", 500): (0.0902, 0.0),
    ("20-D/30-D", 500): (0.0970, 0.0),
}
SMALL = 200  # where every peer ends in seconds
EPSILON = 0.05  # of the peers with entropy, in units of the squared mean cost
SLOW_PEERS_UP_TO = 200


def squared(x: Tensor) -> np.ndarray:
    """Compute the matrix that peers take."""
    from algorithms.geometry import squared_distances

    return squared_distances(x, x).numpy()


def ours(x: Tensor, y: Tensor, seed: int) -> tuple[Tensor, str]:
    """Ask with default options."""
    from algorithms.transport.gromov import gromov

    answer = gromov(x, y, generator=torch.Generator().manual_seed(seed))
    assert answer.plan is not None
    seen = answer.certificate
    note = (
        f"{answer.stop.status}, {seen.starts_reached} of {seen.starts_tried} starts, "
        f"at least {seen.lower_bound:.5g}"
    )
    return answer.plan.dense(len(x), len(y)), note


def peers(x: Tensor, y: Tensor) -> dict[str, Callable[[], tuple[Any, str]]]:
    """List what others offer for these clouds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ot
    Cx, Cy = squared(x), squared(y)
    a, b = (np.full(len(z), 1 / len(z)) for z in (x, y))
    found: dict[str, Callable[[], tuple[Any, str]]] = {
        "POT gromov_wasserstein": lambda: (
            ot.gromov_wasserstein(Cx, Cy, a, b, symmetric=True), "from the product",
        )
    }  # fmt: skip
    if len(x) <= SLOW_PEERS_UP_TO:
        smooth = {"epsilon": EPSILON, "symmetric": True, "max_iter": 300, "tol": 1e-7}
        for solver in ("PGD", "PPA"):
            found[f"POT entropic {solver}"] = lambda solver=solver: (
                ot.gromov.entropic_gromov_wasserstein(Cx, Cy, a, b, solver=solver, **smooth),
                f"epsilon {EPSILON}, rounded",
            )
    if len(x) <= SMALL:
        found |= _ott(Cx, Cy)
    return found


def _ott(Cx: np.ndarray, Cy: np.ndarray) -> dict[str, Callable[[], tuple[Any, str]]]:
    """Compile OTT-JAX's entropic solver, where it is installed."""
    try:
        import jax
        from ott.geometry import geometry
        from ott.problems.quadratic import quadratic_problem
        from ott.solvers.linear import sinkhorn
        from ott.solvers.quadratic import gromov_wasserstein
    except ImportError:
        return {}
    jax.config.update("jax_enable_x64", True)
    solver = gromov_wasserstein.GromovWasserstein(
        sinkhorn.Sinkhorn(), epsilon=EPSILON, max_iterations=200
    )
    problem = quadratic_problem.QuadraticProblem(
        geometry.Geometry(cost_matrix=Cx), geometry.Geometry(cost_matrix=Cy)
    )
    solve = jax.jit(lambda p: solver(p).matrix)
    np.asarray(solve(problem))
    return {"OTT-JAX": lambda: (np.asarray(solve(problem)), f"epsilon {EPSILON}, rounded")}


def reached(plan: Any, x: Tensor, y: Tensor) -> dict[str, float]:
    """Round to exact marginals, then value from the marginals that the plan then has."""
    from algorithms.entropic.rounding import round_plan
    from algorithms.quadratic.objective import Pair
    from algorithms.spaces import Cloud

    a, b = (torch.full((len(z),), 1 / len(z), dtype=torch.float64) for z in (x, y))
    P = torch.as_tensor(np.array(plan), dtype=torch.float64)
    off = float((P.sum(1) - a).abs().sum() + (P.sum(0) - b).abs().sum())
    value = float(Pair(Cloud(x), Cloud(y), a, b).objective(round_plan(P, a, b)))
    return {"value": value, "marginal_error": off}


def rows_for(name: str, n: int, *, with_peers: bool, clock: Callable[[], float]) -> list[Row]:
    """Measure all solvers on one pair of clouds."""
    from tests.problems.gromov import clouds

    x, y = clouds(name, n)
    problem = f"{name}, n = {n}"
    seconds, (plan, note) = timed(lambda: ours(x, y, 0), repeats=1, clock=clock)
    best, room = ASKED.get((name, n), (float("inf"), 0.0))
    got = reached(plan, x, y)
    verdict = "" if got["value"] <= best * (1 + room) else f"; ASKED {best}"
    rows = [Row(problem, "brenier", seconds, got, note + verdict)]
    print(rows[0], flush=True)
    for solver, solve in (peers(x, y) if with_peers else {}).items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            spent, (plan, note) = timed(solve, repeats=1, clock=clock)
        got = reached(plan, x, y)
        rows.append(Row(problem, solver, spent, got, note, spent / seconds))
        print(rows[-1], flush=True)
    return rows


def main() -> int:
    """Print the table and keep it."""
    parser = argparse.ArgumentParser(prog=MODULE)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="nothing above n = 500")
    parser.add_argument("--alone", action="store_true", help="no peers")
    parser.add_argument("--only", nargs="*", help="names of clouds")
    asked = parser.parse_args()
    pinned(MODULE, asked.threads)
    from tests.problems.gromov import CLOUDS

    clock = time.process_time if asked.threads == 1 else time.perf_counter
    rows: list[Row] = []
    for n in (SMALL, 500) if asked.small else (SMALL, 500, 2000):
        for name in asked.only or CLOUDS:
            rows += rows_for(name, n, with_peers=not asked.alone, clock=clock)
    if not asked.only:
        suffix = "" if asked.threads == 1 else f"_{asked.threads}_threads"
        kind = "CPU seconds" if asked.threads == 1 else "wall seconds"
        report(f"transport_gromov{suffix}", rows, threads=asked.threads, clock=kind,
               load=os.getloadavg())  # fmt: skip
    failed = [row for row in rows if "ASKED" in row.note]
    print(f"{len(failed)} values above what was asked")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
