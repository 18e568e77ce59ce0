"""Time transport.barycenter beside POT: `python -m bench.transport.barycenter`.

Bumps on a line and blobs on square grids; one thread, CPU seconds. The L1 distance of
every barycenter from our own answer at a tol 10^3 to 10^4 times smaller is `off`; for free points
the mean exact transport cost is recomputed by POT's emd2.
Writes bench/results/transport_barycenter.json.
"""

import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from algorithms.transport.barycenter import (
    FixedSupport,
    FreeSupport,
    Images,
    WeightedCloud,
    barycenter,
)
from bench.table import Row, pinned, report, timed

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import ot

TOL, MAX_ITER = 1e-6, 5000


def measured(
    problem: str,
    solvers: dict[str, Callable[[], Tensor]],
    seen: Callable[[Tensor], dict[str, float]],
) -> list[Row]:
    """Time every solver; ours comes first and sets the ratios."""
    rows: list[Row] = []
    for name, solve in solvers.items():
        seconds, answer = timed(solve, repeats=3)
        ratio = seconds / rows[0].seconds if rows else None
        rows.append(Row(problem, name, seconds, seen(answer), ratio=ratio))
        print(rows[-1], flush=True)
    return rows


def line(n: int, epsilon: float, debiased: bool) -> list[Row]:
    """Average four bumps on a line."""
    x = torch.linspace(0, 1, n, dtype=torch.float64)[:, None]
    places = ((0.2, 0.05), (0.4, 0.1), (0.6, 0.04), (0.8, 0.08))
    bumps = torch.stack([torch.exp(-((x[:, 0] - m) ** 2) / (2 * s * s)) for m, s in places])
    W = bumps / bumps.sum(1, keepdim=True)
    M = (x - x.T) ** 2
    asked = FixedSupport(W, C=M)
    best = barycenter(asked, epsilon=epsilon, debiased=debiased, tol=1e-10, max_iter=50_000).weights
    theirs = ot.bregman.barycenter_debiased if debiased else ot.bregman.barycenter

    def peer(method: str) -> Callable[[], Tensor]:
        return lambda: torch.from_numpy(
            np.asarray(
                theirs(
                    W.T.numpy(), M.numpy(), epsilon, method=method, numItermax=MAX_ITER, stopThr=TOL
                )
            )
        )

    solvers = {
        "ours": lambda: barycenter(asked, epsilon=epsilon, debiased=debiased, tol=TOL).weights,
        "POT sinkhorn": peer("sinkhorn"),
        "POT sinkhorn_log": peer("sinkhorn_log"),
    }
    label = f"{'debiased' if debiased else 'plain'} line n={n} eps={epsilon}"
    return measured(label, solvers, lambda beta: {"off": float((beta - best).abs().sum())})


def grid(side: int, epsilon: float, debiased: bool) -> list[Row]:
    """Average two blobs on a square."""
    z = torch.arange(side, dtype=torch.float64) / side
    blob = lambda h, w, s: torch.exp(-((z[:, None] - h) ** 2 + (z - w) ** 2) / (2 * s * s))
    blobs = torch.stack([blob(0.3, 0.3, 0.05) + blob(0.5, 0.3, 0.05), blob(0.7, 0.6, 0.1)])
    H = blobs / blobs.sum((1, 2), keepdim=True)
    asked = Images(H, 1 / side)
    best = barycenter(asked, epsilon=epsilon, debiased=debiased, tol=1e-9, max_iter=20_000).weights
    theirs = (
        ot.bregman.convolutional_barycenter2d_debiased
        if debiased
        else ot.bregman.convolutional_barycenter2d
    )

    def peer(method: str) -> Callable[[], Tensor]:
        # its kernel is exp(-(i/(n-1) - j/(n-1))^2 / reg): the same one in its own units
        reg = epsilon * side**2 / (side - 1) ** 2
        return lambda: torch.from_numpy(
            np.asarray(theirs(H.numpy(), reg, method=method, numItermax=MAX_ITER, stopThr=TOL))
        )

    solvers = {
        "ours": lambda: barycenter(asked, epsilon=epsilon, debiased=debiased, tol=TOL).weights,
        "POT sinkhorn": peer("sinkhorn"),
        "POT sinkhorn_log": peer("sinkhorn_log"),
    }
    label = f"{'debiased' if debiased else 'plain'} grid {side}x{side} eps={epsilon}"
    return measured(label, solvers, lambda beta: {"off": float((beta - best).abs().sum())})


def free(n: int) -> list[Row]:
    """Average three clouds by as many points, all from one start."""
    draw = np.random.default_rng(0)
    clouds = [draw.normal(size=(n, 2)) * s + s for s in (0.5, 1.0, 1.5)]
    start, w = draw.normal(size=(n, 2)), np.full(n, 1 / n)
    asked = FreeSupport(
        tuple(WeightedCloud(torch.from_numpy(z)) for z in clouds), n, torch.from_numpy(start)
    )
    seen = lambda x: {
        "cost": float(np.mean([ot.emd2(w, w, ot.dist(x.numpy(), z)) for z in clouds]))
    }
    solvers: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: _points(asked),
        "POT free_support": lambda: torch.from_numpy(
            ot.lp.free_support_barycenter(clouds, [w] * 3, start, numItermax=100, stopThr=1e-12)
        ),
    }
    return measured(f"free n={n} d=2", solvers, seen)


def _points(asked: FreeSupport) -> Tensor:
    points = barycenter(asked, max_iter=100).points
    assert points is not None
    return points


def main() -> None:
    """Run the table and write it."""
    pinned("bench.transport.barycenter")
    warnings.simplefilter("ignore")
    line(50, 1e-2, False)
    print("-- warm --")
    rows: list[Row] = []
    for debiased in (False, True):
        for n in (200, 1000):
            rows += line(n, 5e-3, debiased)
        rows += line(200, 5e-4, debiased)
        for side in (32, 100):
            rows += grid(side, 5e-3, debiased)
    for n in (100, 400):
        rows += free(n)
    report("transport_barycenter", rows, threads=1, clock="process CPU seconds", tol=TOL)


if __name__ == "__main__":
    main()
