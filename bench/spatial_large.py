"""Large simulated sections: what the dense and the hierarchical solver of spatial.align need.

    python -m bench.spatial_large [case ...]

Each case runs in a process of its own, so that its peak of memory is its own; the JSON file keeps
the rows of the cases run last and those of earlier runs of the others. Errors are measured on
spots of the true overlap: distance, in pitches, from where the simulation says that the tissue of
a source spot lies in the target's frame, by interpolation between the four target spots that are
nearest in the tissue.
"""

import json
import os
import platform
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

import numpy as np
import torch
from scipy.sparse import csr_matrix
from scipy.spatial import KDTree
from torch import Tensor

from algorithms.spatial.align import align
from algorithms.spatial.motions import moved
from algorithms.spatial.slice import Slice
from bench.table import RESULTS, pinned
from brenier.simulate import Section, simulate_sections

FILE = RESULTS / "spatial_large.json"
GENES, DEPTH, WARP = 500, 500.0, 0.3
# A source spot has a place in the target when a target spot lies within so many pitches.
WITHIN = 1.0
THREADS = 2


@dataclass(frozen=True)
class Case:
    """A simulated pair and the solver that aligns it."""

    spots: int
    tear: float
    seed: int
    solver: Literal["dense", "hierarchical"]
    max_iter: int = 200


CASES = {
    "2,000 whole, dense": Case(2000, 0.0, 0, "dense"),
    "2,000 whole, hierarchical": Case(2000, 0.0, 0, "hierarchical"),
    # memory is at its peak in the first steps; the end was not reached within 25 minutes
    "5,000 whole, dense, 2 steps": Case(5000, 0.0, 0, "dense", max_iter=2),
    "5,000 whole, hierarchical": Case(5000, 0.0, 0, "hierarchical"),
    "20,000 whole": Case(20_000, 0.0, 0, "hierarchical"),
    "20,000 whole, seed 1": Case(20_000, 0.0, 1, "hierarchical"),
    "20,000 torn .15": Case(20_000, 0.15, 0, "hierarchical"),
    "20,000 torn .15, seed 1": Case(20_000, 0.15, 1, "hierarchical"),
    "20,000 torn .15, seed 4": Case(20_000, 0.15, 4, "hierarchical"),
    "20,000 torn .15, seed 5": Case(20_000, 0.15, 5, "hierarchical"),
    "50,000 whole": Case(50_000, 0.0, 0, "hierarchical"),
}


def tissue(section: Section) -> Slice:
    """Write a simulated section as a slice."""
    return Slice(
        csr_matrix(section.counts, dtype=np.float64),
        torch.from_numpy(section.coordinates),
        tuple(section.genes),
        tuple(section.ids),
        tuple(section.domain),
        torch.from_numpy(section.tissue),
    )


def true_places(source: Section, target: Section) -> tuple[Tensor, Tensor]:
    """Find where each source spot lies in the target's frame, and whether anything is there."""
    apart, near = KDTree(target.tissue).query(source.tissue, k=4)
    turn = source.truth["transform"][:2, :2]
    places = target.coordinates[near] + (source.tissue[:, None] - target.tissue[near]) @ turn.T
    return torch.from_numpy(places.mean(1)), torch.from_numpy(apart[:, 0] < WITHIN)


def run(case: Case) -> dict[str, Any]:
    """Align one pair; return what it took and what it reached."""
    first, second = simulate_sections(
        spots=case.spots, genes=GENES, depth=DEPTH, warp=WARP, tear=case.tear, seed=case.seed
    )
    places, overlap = true_places(first, second)
    source, target = tissue(first), tissue(second)
    before = _peak()
    begun, spent = time.perf_counter(), time.process_time()
    answer = align(source, target, solver=case.solver, effort="fast", max_iter=case.max_iter)
    seconds, spent = time.perf_counter() - begun, time.process_time() - spent

    def error(at: Tensor) -> float:
        return float((at - places)[overlap].norm(dim=1).median())

    right = (~answer.unmatched_source == overlap).double().mean()
    row: dict[str, Any] = {
        "spots": [len(source.ids), len(target.ids)],
        "solver": answer.solver,
        "status": answer.stop.status,
        "wall_s": round(seconds, 2),
        "cpu_s": round(spent, 2),
        "peak_gib": round(_peak(), 3),
        "peak_before_gib": round(before, 3),
        "motion_error": error(answer.aligned),
        "flags_right": float(right),
        "label_accuracy": answer.scores.label_accuracy,
        "plan_error": answer.scores.landmark_error_median,
        "mass": answer.mass_moved,
        "margin": answer.certificate.reflection_margin,
        "cautions": [caution.code for caution in answer.cautions],
    }
    more = answer.hierarchy
    if more is not None:
        row |= {
            "rigid_error": error(moved(more.rigid, source.coordinates)),
            "bent_error": error(answer.aligned + more.residual),
            "residual_ratio": more.residual_ratio,
            "sinkhorn_residual": more.sinkhorn_residual,
            "rounds": [level.rounds for level in more.levels],
        }
    return row


def _peak() -> float:
    """Measure the largest resident memory of this process so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main(names: list[str]) -> int:
    """Run the named cases, or all of them, one process each."""
    known = json.loads(FILE.read_text())["cases"] if FILE.exists() else {}
    for name in names or CASES:
        command = [sys.executable, "-m", "bench.spatial_large", "--alone", name]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        row = json.loads(done.stdout.splitlines()[-1])
        known[name] = row
        print(
            f"{name:<28}{row['wall_s']:>8.1f} s wall{row['cpu_s']:>8.1f} s cpu"
            f"{row['peak_gib']:>7.2f} GiB  motion {row['motion_error']:.3f}  flags "
            f"{row['flags_right']:.4f}  {row['status']}",
            flush=True,
        )
        _kept(known)
    return 0


def _kept(rows: dict[str, Any]) -> None:
    body = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "threads": THREADS,
        "simulated": {"genes": GENES, "depth": DEPTH, "warp": WARP},
        "versions": {name: version(name) for name in ("torch", "numpy", "scipy")},
        "cases": {name: rows[name] for name in CASES if name in rows},
    }
    RESULTS.mkdir(exist_ok=True)
    FILE.write_text(json.dumps(body, indent=1) + "\n")


if __name__ == "__main__":
    pinned("bench.spatial_large", THREADS)
    if sys.argv[1:2] == ["--alone"]:
        print(json.dumps(run(CASES[sys.argv[2]])))
    else:
        sys.exit(main(sys.argv[1:]))
