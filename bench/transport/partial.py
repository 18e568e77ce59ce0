"""Time transport.partial beside POT's partial solvers: `python -m bench.transport.partial`.

One thread for all, CPU seconds, the cost matrix given. Exact: `partial_wasserstein`. Entropic:
`entropic_partial_wasserstein`, with its kernel and in logarithms, stopped by its own rule, the
change of the plan, at 1e-6 and 1e-9 of the mass, and after 1000 sweeps. Its entropy is that of the
plan alone: it is given `C - epsilon log(a b^T)`, which makes the problem ours. What each reached is
judged by one function in float64, from the plan alone: the objective, the L1 error beyond the caps
and the error of the mass, as shares of the mass. For entropic plans, `apart` is the L1 distance
from a plan of ours whose tol is 1e-11, as a share too: a plan can be feasible and not optimal.
"""

import math
import warnings
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray

from algorithms.geometry import CostMatrix
from algorithms.transport.partial import partial
from bench.table import Row, pinned, report, timed

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import ot

MASS = 0.7
EXACT = (500, 1000, 2000)
ENTROPIC = ((1000, 1.0), (300, 0.1), (300, 1e-2), (300, 1e-3))
OURS = (1e-6, 1e-9)
THEIRS = ((1e-6, ""), (1e-9, ""), (1e-6, "_log"))
SWEEPS = 1000
Array = NDArray[np.float64]


def problem(n: int) -> tuple[Array, Array, Array]:
    """Costs from N(0, I) to 0.8 N(0, I) + e_1 in the plane; drawn weights of mass one."""
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(n, 2)), 0.8 * draw.normal(size=(n, 2))
    y[:, 0] += 1
    a, b = (draw.random(n) + 0.1 for _ in range(2))
    return ((x[:, None] - y) ** 2).sum(2), a / a.sum(), b / b.sum()


def reached(
    C: Array, a: Array, b: Array, P: Array, epsilon: float = 0.0, best: Array | None = None
) -> dict[str, float]:
    """Judge a plan, whoever found it; a plan with a NaN has NaN for everything."""
    relative = np.where(P > 0, P * np.log(np.where(P > 0, P, 1.0) / np.outer(a, b)), 0 * P)
    value = float((P * C).sum() + epsilon * (relative.sum() - P.sum() + a.sum() * b.sum()))
    beyond = np.maximum(P.sum(1) - a, 0).sum() + np.maximum(P.sum(0) - b, 0).sum()
    seen = {"value": value, "beyond": beyond / MASS, "mass": abs(P.sum() - MASS) / MASS}
    if best is not None:
        seen["apart"] = np.abs(P - best).sum() / MASS
    return {name: float(number) for name, number in seen.items()}


def exactly(n: int) -> list[Row]:
    """Compare exact plans."""
    C, a, b = problem(n)
    given = CostMatrix(torch.from_numpy(C))
    p, q = torch.from_numpy(a), torch.from_numpy(b)
    seconds, ours = timed(lambda: partial(given, p, q, mass=MASS))
    if ours.plan is None:
        raise ValueError("the exact form answers with a sparse plan")
    P = ours.plan.dense(n, n).numpy()
    gap = f"gap {ours.certificate.duality_gap:.1e}"
    rows = [Row(f"exact n={n}", "ours", seconds, reached(C, a, b, P), gap)]
    solve = lambda: ot.partial.partial_wasserstein(a, b, C, m=MASS, numItermax=10**9)
    spent, theirs = timed(solve)
    seen = reached(C, a, b, np.asarray(theirs))
    return [*rows, Row(f"exact n={n}", "POT", spent, seen, ratio=spent / seconds)]


def entropically(n: int, epsilon: float) -> list[Row]:
    """Compare entropic plans; ratios are to ours at the first tol."""
    C, a, b = problem(n)
    given = CostMatrix(torch.from_numpy(C))
    p, q = torch.from_numpy(a), torch.from_numpy(b)
    solve = lambda tol: partial(given, p, q, mass=MASS, epsilon=epsilon, tol=tol)
    plan = solve(1e-11).dense
    best = C if plan is None else plan.numpy()
    name, rows, first = f"eps={epsilon:g} n={n}", list[Row](), math.nan
    for tol in OURS:
        seconds, ours = timed(lambda tol=tol: solve(tol))
        first = seconds if math.isnan(first) else first
        P = best if ours.dense is None else ours.dense.numpy()
        note = f"{ours.stop.status}, {ours.stop.iterations} sweeps"
        seen = reached(C, a, b, P, epsilon, best)
        rows.append(Row(name, f"ours, {tol:.0e}", seconds, seen, note))
    for tol, method in THEIRS:
        spent, theirs = timed(lambda tol=tol, method=method: peer(C, a, b, epsilon, tol, method))
        note = "" if np.isfinite(theirs).all() else "not a number"
        seen = reached(C, a, b, theirs, epsilon, best)
        rows.append(Row(name, f"POT{method}, {tol:.0e}", spent, seen, note, spent / first))
    return rows


def peer(C: Array, a: Array, b: Array, epsilon: float, tol: float, method: str) -> Array:
    """Solve with POT, in its own kernel or in logarithms; the cost makes its entropy ours."""
    relative = C - epsilon * np.log(np.outer(a, b))
    return np.asarray(
        ot.partial.entropic_partial_wasserstein(
            a, b, relative, epsilon, m=MASS, method=f"sinkhorn{method}", numItermax=SWEEPS,
            stopThr=tol * MASS,
        )
    )  # fmt: skip


def main() -> None:
    """Run the table and write it."""
    pinned("bench.transport.partial")
    warnings.simplefilter("ignore")
    exactly(100)  # once to warm up
    entropically(50, 1.0)
    rows: list[Row] = []
    for found in chain(map(exactly, EXACT), (entropically(*case) for case in ENTROPIC)):
        rows += found
        print(*found, sep="\n", flush=True)
    report("transport_partial", rows, threads=1, clock="CPU seconds", mass=MASS)


if __name__ == "__main__":
    main()
