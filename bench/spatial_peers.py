"""Pairs of real sections: our descents beside POT's fused Gromov-Wasserstein; partial alignment.

    python -m bench.spatial_peers [name ...]

One cost matrix a pair, made once and not timed, is given to all. `descent` starts where the peer
does, at a b^T, with the peer's tolerances; `search` is everything that `align` does by default,
`fast` leaves out its polish. The objective is recomputed from each plan by one function.
Rows of partial alignment time the whole of `align(mass="auto")`. A run over all pairs writes
bench/results/spatial_peers.json.
"""

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import ot
import torch
from torch import Tensor

from algorithms.spatial.align import AS_COUNTS, Alignment, align
from algorithms.spatial.expression import common_counts, dissimilarity
from algorithms.spatial.frames import distances
from algorithms.spatial.fused import Fused, descend, product, terms
from algorithms.spatial.search import JITTER, polished, screened
from algorithms.spatial.starts import Errand, Pair, pair, shared
from bench.spatial import ABSENT, PAIRS, SECTIONS, Listed, section
from bench.table import Row, pinned, report, timed

ALPHA, TOL, STEPS = 0.1, 1e-9, 200
PARTIAL = ("H1-H2", "H2-H3")


def posed(listed: Listed) -> Pair:
    """Read a pair of sections and make its costs."""
    source, target = section(listed.source), section(listed.target)
    counts = common_counts(source, target, AS_COUNTS)
    z = source.coordinates[counts.kept_source]
    y = target.coordinates[counts.kept_target]
    M = dissimilarity(counts, AS_COUNTS)
    n, m = M.shape
    a, b = torch.full((n,), 1 / n, dtype=M.dtype), torch.full((m,), 1 / m, dtype=M.dtype)
    return pair(Fused(M, distances(z), distances(y), a, b, ALPHA), z, y)


def descent(posed: Pair) -> Tensor:
    """Descend from a b^T."""
    return descend(posed.problem, product(posed.problem), tol=TOL, max_iter=STEPS)[0].P


def searched(posed: Pair, *, polish: bool) -> Tensor:
    """Search from all starts, in this one thread."""
    with ThreadPoolExecutor(1) as pool:
        errand = Errand(TOL, STEPS, pool, shared(lambda iteration, residual: True))
        found = screened(posed, errand)
        best = found.best(False)
        if polish:
            best = polished(posed, errand, found, best, JITTER).best(False)
    return best.state.P


def pot(posed: Pair) -> Tensor:
    """Ask POT for the same plan, from a b^T with its exact line search."""
    own = posed.problem
    M, D1, D2, a, b = (t.numpy() for t in (own.M, own.D1, own.D2, own.a, own.b))
    plan = ot.gromov.fused_gromov_wasserstein(
        M, D1, D2, a, b, "square_loss", alpha=ALPHA, symmetric=True,
        max_iter=STEPS, tol_rel=TOL, tol_abs=TOL,
    )  # fmt: skip
    return torch.as_tensor(plan)


def beside(listed: Listed) -> Iterator[Row]:
    """Measure all solvers on one pair."""
    problem = posed(listed)
    ours, first = timed(lambda: descent(problem))
    solvers: list[tuple[str, Callable[[], Tensor]]] = [
        ("POT, product start", lambda: pot(problem)),
        ("search, fast", lambda: searched(problem, polish=False)),
        ("search", lambda: searched(problem, polish=True)),
    ]
    size = "x".join(map(str, problem.problem.M.shape))
    name = f"{listed.name} {size}"
    yield Row(name, "descent, product start", ours, reached(problem, first))
    for solver, solve in solvers:
        seconds, plan = timed(solve)
        yield Row(name, solver, seconds, reached(problem, plan), ratio=seconds / ours)


def reached(problem: Pair, plan: Tensor) -> dict[str, float]:
    """Recompute the objective from the plan alone."""
    return {"objective": float(terms(problem.problem, plan)[0])}


def partial(listed: Listed) -> Row:
    """Align with the share of the mass left open."""
    source, target = section(listed.source), section(listed.target)
    seconds, answer = timed(lambda: align(source, target, mass="auto"), repeats=1)
    size = f"{len(source.ids)}x{len(target.ids)}"
    note = " ".join(caution.code for caution in answer.cautions)
    return Row(f"{listed.name} {size}", "partial, mass auto", seconds, told(answer), note)


def told(answer: Alignment) -> dict[str, float]:
    """Reduce a partial alignment to what was asked of it."""
    return {
        "mass": answer.mass_moved,
        "objective": float(answer.value),
        "landmark_error": answer.scores.landmark_error_median or 0.0,
        "gap": answer.certificate.frank_wolfe_gap or 0.0,
    }


def main(names: list[str]) -> int:
    """Measure the named pairs, all when none is named."""
    if not SECTIONS.is_dir():
        print(f"skipped: {ABSENT}")
        return 0
    rows: list[Row] = []
    for listed in PAIRS:
        if names and listed.name not in names:
            continue
        for row in beside(listed):
            print(row, flush=True)
            rows.append(row)
        if listed.name in PARTIAL:
            rows.append(partial(listed))
            print(rows[-1], flush=True)
        if not names:
            report("spatial_peers", rows, threads=1, clock="process seconds")
    return 0


if __name__ == "__main__":
    pinned("bench.spatial_peers")
    sys.exit(main(sys.argv[1:]))
