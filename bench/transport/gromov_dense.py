"""Time transport.gromov with matrices beside POT: `python -m bench.transport.gromov_dense`.

Geodesics, Euclidean distances, graphs: costs without exact factors. One process, one thread for
all, CPU seconds. What was reached is the objective of a plan that one function first moves to exact
marginals, in float64. `random` is the best of six descents from random vertices, POT's at the
smaller size, at the larger ours (POT's take minutes). Sizes may be named: `... gromov_dense 500`.
Writes bench/results/transport_gromov_dense.json.
"""

import sys
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from algorithms.entropic.rounding import round_plan
from algorithms.quadratic.conditional_gradient import descend
from algorithms.quadratic.dense import balanced, random_cost
from algorithms.quadratic.objective import Pair, Plan
from algorithms.spaces import Relations
from algorithms.sparse import SparsePlan
from algorithms.transport.gromov import gromov
from bench.table import Row, pinned, report, timed
from tests.problems.spaces import SPACES

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import ot

SIZES = (500, 2000)
RANDOM, PEER_UP_TO = 6, 500
DESCENT_TOL = 1e-6


def reached(pair: Pair, plan: Plan) -> dict[str, float]:
    """Evaluate any plan: round it to U(a, b), then take the objective in float64."""
    P = plan.dense(*pair.shape) if isinstance(plan, SparsePlan) else plan
    off = float((P.sum(1) - pair.a).abs().sum() + (P.sum(0) - pair.b).abs().sum())
    return {"value": float(pair.objective(round_plan(P, pair.a, pair.b))), "off": off}


def peer(pair: Pair, start: Tensor | None = None) -> Tensor:
    """Descend by POT's conditional gradient."""
    C, D = (Z.matrix().numpy() for Z in (pair.X, pair.Y))
    G0 = None if start is None else start.numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plan = ot.gromov.gromov_wasserstein(C, D, pair.a.numpy(), pair.b.numpy(), G0=G0)
    return torch.from_numpy(plan)


def best_of_random(pair: Pair) -> Plan:
    """Descend from random vertices; keep the best."""
    oracle, draw = balanced(pair), torch.Generator().manual_seed(1)
    plans: list[Plan] = []
    for k in range(RANDOM):
        start = oracle(random_cost(pair, draw), None).plan
        if max(pair.shape) <= PEER_UP_TO:
            plans.append(peer(pair, start.dense(*pair.shape)))
        else:
            found = descend(pair, oracle, start, start=f"{k}", tol=DESCENT_TOL, max_iter=100)
            plans.append(found.plan)
    return min(plans, key=lambda P: reached(pair, P)["value"])


def ours(pair: Pair) -> Plan:
    """Ask the routine, with its defaults."""
    answer = gromov(
        Cx=pair.X.matrix(), Cy=pair.Y.matrix(), generator=torch.Generator().manual_seed(0)
    )
    plan = answer.plan if answer.plan is not None else answer.dense_plan
    assert plan is not None
    return plan


def measured(name: str, n: int) -> list[Row]:
    """Compare the solvers on one pair."""
    costs, u = SPACES[name](n), torch.full((n,), 1 / n, dtype=torch.float64)
    pair = Pair(Relations(costs.Cx), Relations(costs.Cy), u, u)
    solvers: dict[str, Callable[[], Plan]] = {
        "brenier": lambda: ours(pair),
        "POT CG, product": lambda: peer(pair),
        f"best of {RANDOM} random": lambda: best_of_random(pair),
    }
    rows: list[Row] = []
    for solver, solve in solvers.items():
        seconds, plan = timed(solve, repeats=1)
        ratio = seconds / rows[0].seconds if rows else None
        rows.append(Row(f"{name} n={n}", solver, seconds, reached(pair, plan), "", ratio))
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Print and keep the table."""
    pinned("bench.transport.gromov_dense")
    sizes = [int(word) for word in sys.argv[1:]] or SIZES
    rows = [row for n in sizes for name in SPACES for row in measured(name, n)]
    report("transport_gromov_dense", rows, threads=1, clock="CPU seconds")


if __name__ == "__main__":
    main()
