"""Time transport.sliced and line beside POT and scipy: `python -m bench.transport.sliced`.

One process, one thread, CPU seconds. The same directions go to everybody; `reached` is the value
less ours, relative to it. Where marginals give way, the objective of each plan is recomputed.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from algorithms.transport.line import line
from algorithms.transport.sliced import sliced
from bench.table import Row, pinned, report, timed


def weights(n: int, seed: int, mass: float = 1.0) -> Tensor:
    """Draw weights between 0.1 and 1.1 before they are normalised."""
    w = 0.1 + torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return w * (mass / w.sum())


def compared(name: str, solvers: dict[str, Any]) -> list[Row]:
    """Time every solver; each returns a value. Ours comes first."""
    rows: list[Row] = []
    first = base = 0.0
    for solver, solve in solvers.items():
        seconds, value = timed(solve, repeats=5, at_most_s=4.0)
        first, base = first or value, base or seconds
        off = abs(value - first) / abs(first)
        ratio = seconds / base if rows else None
        rows.append(Row(name, solver, seconds, {"value": value, "off": off}, "", ratio))
        print(rows[-1], flush=True)
    return rows


def in_slices(n: int, d: int, weighted: bool) -> list[Row]:
    """Compare sliced costs of two clouds."""
    import ot

    draw = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, d, generator=draw, dtype=torch.float64) for _ in range(2))
    a, b = (weights(n, 0), weights(n, 1)) if weighted else (None, None)
    ours = lambda: sliced(x, y, a, b, generator=torch.Generator().manual_seed(0))
    theta = ours().theta.numpy().T
    arrays = [None if z is None else z.numpy() for z in (x, y, a, b)]
    theirs = lambda: ot.sliced_wasserstein_distance(*arrays, projections=theta) ** 2
    kind = "weights" if weighted else "uniform"
    solvers = {"ours": lambda: float(ours().value), "POT sliced": theirs}
    return compared(f"sliced n={n} d={d} L=100 {kind}", solvers)


def on_the_line(n: int, weighted: bool) -> list[Row]:
    """Compare exact costs between points of the line, p = 1."""
    import ot
    from scipy.stats import wasserstein_distance

    draw = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, generator=draw, dtype=torch.float64) for _ in range(2))
    a, b = (weights(n, 0), weights(n, 1)) if weighted else (None, None)
    p, q, u, v = (None if z is None else z.numpy() for z in (x, y, a, b))
    kind = "weights" if weighted else "uniform"
    solvers = {
        "ours, proved": lambda: float(line(x, y, a, b, 1.0).value),
        "POT wasserstein_1d": lambda: float(ot.wasserstein_1d(p, q, u, v, p=1)),
        "scipy": lambda: float(wasserstein_distance(p, q, u, v)),
    }
    return compared(f"line n={n} p=1 {kind}", solvers)


def giving_way(n: int, rho: float) -> list[Row]:
    """Compare unbalanced costs on the line; the plan of others is priced by the same formula."""
    import ot

    draw = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, generator=draw, dtype=torch.float64) for _ in range(2))
    y = 0.8 * y + 0.5
    a, b = weights(n, 0), weights(n, 1, 1.3)
    C = (x[:, None] - y).square().numpy()

    def priced(plan: np.ndarray) -> float:
        value = float((plan * C).sum())
        for mu, w in ((plan.sum(1), a.numpy()), (plan.sum(0), b.numpy())):
            some = mu > 0
            value += rho * float(mu[some] @ np.log(mu[some] / w[some]) - mu.sum() + w.sum())
        return value

    def entropic(epsilon: float) -> float:
        return priced(
            ot.unbalanced.sinkhorn_unbalanced_translation_invariant(
                a.numpy(), b.numpy(), C, epsilon, rho, numItermax=1000
            )
        )

    ours = lambda: float(line(x, y, a, b, rho_a=rho, rho_b=rho).value)
    solvers = {"ours, gap 1e-8": ours} | {
        f"POT TI-Sinkhorn {e:g}": lambda e=e: entropic(e) for e in (1e-1, 1e-2)
    }
    if hasattr(ot.unbalanced, "uot_1d"):
        solvers["POT uot_1d"] = lambda: _of_pot(ot, x, y, a, b, rho)
    return compared(f"unbalanced line n={n} rho={rho}", solvers)


def _of_pot(ot: Any, x: Tensor, y: Tensor, a: Tensor, b: Tensor, rho: float) -> float:
    """Run POT's Frank-Wolfe; its total is priced from its own marginals."""
    total = ot.unbalanced.uot_1d(
        x.clone(), y.clone(), rho, u_weights=a, v_weights=b, p=2, numItermax=1000,
        returnCost="total",
    )[2]  # fmt: skip
    return float(total)


def main() -> None:
    """Run the table and write it."""
    rows = [
        r for n, d in ((1000, 3), (10_000, 3)) for w in (0, 1) for r in in_slices(n, d, bool(w))
    ]
    rows += [r for n in (1000, 10_000) for w in (False, True) for r in on_the_line(n, w)]
    rows += [r for rho in (0.01, 0.1, 1.0, 100.0) for r in giving_way(300, rho)]
    report("transport_sliced", rows, threads=1, clock="process")


if __name__ == "__main__":
    pinned("bench.transport.sliced")
    main()
