"""Time transport.unbalanced_gromov beside POT: `python -m bench.transport.unbalanced_gromov`.

Two noisy copies of one cloud with groups of different weight; costs scaled to mean one; rho_a = 5,
rho_b = 1. One thread, CPU seconds. The objective of every plan is recomputed by one function, in
float64; so is the mean slope left at the plan, in units of the objective (0 at a stationary point).
Writes bench/results/transport_unbalanced_gromov.json.
"""

import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from algorithms.quadratic.objective import Pair
from algorithms.quadratic.penalties import Strengths, parts, total
from algorithms.spaces import Relations
from algorithms.transport.unbalanced_gromov import unbalanced_gromov
from bench.table import Row, pinned, report, timed

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import ot

theirs: Any = ot.gromov.fused_unbalanced_gromov_wasserstein
SIZES, SHARPNESS, ALPHAS = (100, 300, 600), (0.2, 0.05), (1.0, 0.5)
RHO_A, RHO_B, TOL = 5.0, 1.0, 1e-6
OUTER, INNER = 200, 200


def problem(n: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Two clouds of three groups each, weights of unequal total, and a feature cost."""
    draw = np.random.default_rng(3)
    centres = 2 * draw.normal(size=(3, 3))
    x = centres[draw.choice(3, n, p=[0.6, 0.2, 0.2])] + 0.4 * draw.normal(size=(n, 3))
    y = centres[draw.choice(3, n, p=[0.2, 0.2, 0.6])] + 0.4 * draw.normal(size=(n, 3))
    y = y @ np.linalg.qr(draw.normal(size=(3, 3)))[0]
    Cx, Cy = (((z[:, None] - z) ** 2).sum(-1) for z in (x, y))
    scale = max(Cx.mean(), Cy.mean())
    a, b = draw.random(n) + 0.1, draw.random(n) + 0.1
    M = draw.random((n, n))
    arrays = (x / scale**0.5, y / scale**0.5, a / a.sum(), 1.3 * b / b.sum(), M)
    x_, y_, a_, b_, M_ = (torch.from_numpy(z) for z in arrays)
    return x_, y_, a_, b_, M_


def reached(P: Tensor, pair: Pair, by: Strengths) -> dict[str, float]:
    """Recompute the objective and the slope that is left, by automatic differentiation."""
    log = P.double().clamp_min(1e-300).log().requires_grad_()
    value = total(parts(pair, log.exp()), pair.alpha, by)
    (slope,) = torch.autograd.grad(value, log)
    return {"objective": float(value), "slope": float(slope.abs().sum()), "mass": float(P.sum())}


def compared(n: int, epsilon: float, alpha: float) -> list[Row]:
    """Run both on one problem; ours by points and by matrices."""
    x, y, a, b, M = problem(n)
    Cx, Cy = ((z[:, None] - z).square().sum(-1) for z in (x, y))
    by = Strengths(epsilon, RHO_A, RHO_B)
    pair = Pair(Relations(Cx), Relations(Cy), a, b, M, alpha)
    asked: dict[str, Any] = {"rho_a": RHO_A, "rho_b": RHO_B, "epsilon": epsilon, "tol": TOL}

    def peer(solver: str) -> Callable[[], Tensor]:
        return lambda: torch.from_numpy(
            theirs(
                Cx.numpy(), Cy.numpy(), wx=a.numpy(), wy=b.numpy(),
                reg_marginals=(RHO_A / alpha, RHO_B / alpha), epsilon=epsilon / alpha,
                divergence="kl", unbalanced_solver=solver, alpha=(1 - alpha) / alpha,
                M=M.numpy(), max_iter=OUTER, tol=1e-7 / n**2, max_iter_ot=INNER, tol_ot=1e-7,
            )[0]
        )  # fmt: skip

    solvers: dict[str, Callable[[], Tensor]] = {
        "ours, points": lambda: unbalanced_gromov(x, y, a=a, b=b, C=M, alpha=alpha, **asked).plan,
        "ours, matrices": lambda: (
            unbalanced_gromov(None, None, Cx, Cy, a, b, M, alpha=alpha, **asked).plan
        ),
        "POT sinkhorn": peer("sinkhorn"),
    }
    if n <= SIZES[0]:
        solvers["POT sinkhorn_log"] = peer("sinkhorn_log")
    rows: list[Row] = []
    for name, solve in solvers.items():
        label = f"n={n} epsilon={epsilon} alpha={alpha}"
        try:
            seconds, plan = timed(solve, repeats=3)
        except ValueError as refusal:
            print(f"{label:34} {name:22} failed: {str(refusal)[:40]}")
            continue
        ratio = seconds / rows[0].seconds if rows else None
        rows.append(Row(label, name, seconds, reached(plan, pair, by), ratio=ratio))
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Run the table, or the sizes named, and write it."""
    pinned("bench.transport.unbalanced_gromov")
    warnings.simplefilter("ignore")
    sizes = [int(n) for n in sys.argv[1:]] or SIZES
    compared(50, 0.2, 1.0)
    print("-- warm --")
    rows = [r for n in sizes for e in SHARPNESS for alpha in ALPHAS for r in compared(n, e, alpha)]
    report("transport_unbalanced_gromov", rows, threads=1, clock="process CPU seconds", tol=TOL)


if __name__ == "__main__":
    main()
