"""Nine pairs of real tissue sections, aligned with default options, against listed objectives.

    python -m bench.spatial [name ...]

Prints one table; a run over all pairs writes bench/results/spatial.json. The sections are looked
for beside the repository, in ../shared/data/spatial; without them the reason is printed.
"""

import json
import os
import platform
import sys
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import anndata
import torch
from scipy.sparse import csr_matrix

from algorithms.spatial.align import Alignment, align
from algorithms.spatial.slice import Slice

SECTIONS = Path(__file__).resolve().parents[2] / "shared" / "data" / "spatial"
RESULTS = Path(__file__).resolve().parent / "results" / "spatial.json"
ABSENT = f"the sections are not at {Path('..', 'shared', 'data', 'spatial')}"
UNLABELLED = "unassigned"
# Another rounding may end in a neighbouring stationary plan of the rough bottom.
ROOM = 5e-5


@dataclass(frozen=True)
class Listed:
    """A pair of adjacent sections and the lowest objective known for it."""

    name: str
    source: str
    target: str
    objective: float


PAIRS = (
    Listed("Stahl 1-2", "stahl_breast_slice1", "stahl_breast_slice2", 2.370249),
    Listed("Stahl 2-3", "stahl_breast_slice2", "stahl_breast_slice3", 2.412141),
    Listed("Stahl 3-4", "stahl_breast_slice3", "stahl_breast_slice4", 2.424843),
    Listed("A1-A2", "her2_A1", "her2_A2", 1.766666),
    Listed("B1-B2", "her2_B1", "her2_B2", 2.434435),
    Listed("G1-G2", "her2_G1", "her2_G2", 2.400161),
    Listed("G2-G3", "her2_G2", "her2_G3", 2.347937),
    Listed("H1-H2", "her2_H1", "her2_H2", 2.119956),
    Listed("H2-H3", "her2_H2", "her2_H3", 2.438996),
)


def section(name: str) -> Slice:
    """Read one section: raw counts, array coordinates, clusters, image-registered landmarks."""
    table = anndata.read_h5ad(SECTIONS / f"{name}.h5ad")
    labels = None
    if "cluster" in table.obs:
        words = [str(word) for word in table.obs["cluster"]]
        labels = tuple(None if word == UNLABELLED else word for word in words)
    landmarks = None
    if "warped_pixel" in table.obsm:
        landmarks = torch.as_tensor(table.obsm["warped_pixel"], dtype=torch.float64)
    return Slice(
        csr_matrix(table.X),
        torch.as_tensor(table.obsm["spatial"][:, :2], dtype=torch.float64),
        tuple(table.var_names),
        tuple(table.obs_names),
        labels,
        landmarks,
    )


def main(names: list[str]) -> int:
    """Align the named pairs (all when none is named); answer 1 where one misses its objective."""
    if not SECTIONS.is_dir():
        print(f"skipped: {ABSENT}")
        return 0
    print(HEADER, flush=True)
    rows = [run(pair) for pair in PAIRS if not names or pair.name in names]
    if not names:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps({"machine": machine(), "pairs": rows}, indent=1) + "\n")
    missed = [row["pair"] for row in rows if row["difference"] > ROOM]
    print(f"missed: {', '.join(missed)}" if missed else f"all within {ROOM:g} of the listed values")
    return 1 if missed else 0


HEADER = (
    f"{'pair':<10}{'objective':>11}{'listed':>11}{'diff':>10}{'label':>7}{'landmark':>10}"
    f"{'margin':>9}{'seconds':>9}{'cpu':>7}  status"
)


def run(pair: Listed) -> dict:
    """Align one pair, print its row, return it."""
    source, target = section(pair.source), section(pair.target)
    begun, spent = time.perf_counter(), time.process_time()
    answer = align(source, target)
    seconds, spent = time.perf_counter() - begun, time.process_time() - spent
    row = summary(pair, answer, seconds, spent)
    label = "-" if row["label_accuracy"] is None else f"{row['label_accuracy']:.3f}"
    landmark = "-" if row["landmark_error"] is None else f"{row['landmark_error']:.3f}"
    margin = "-" if row["mirrored_margin"] is None else f"{row['mirrored_margin']:+.3f}"
    print(
        f"{pair.name:<10}{row['objective']:>11.6f}{pair.objective:>11.6f}"
        f"{row['difference']:>+10.1e}{label:>7}{landmark:>10}{margin:>9}"
        f"{seconds:>9.2f}{spent:>7.2f}  {row['status']}",
        flush=True,
    )
    return row


def summary(pair: Listed, answer: Alignment, seconds: float, spent: float) -> dict:
    """Reduce an answer to what the table and the JSON file hold."""
    return {
        "pair": pair.name,
        "objective": float(answer.value),
        "listed": pair.objective,
        "difference": float(answer.value) - pair.objective,
        "label_accuracy": answer.scores.label_accuracy,
        "landmark_error": answer.scores.landmark_error_median,
        "mirrored_margin": answer.certificate.reflection_margin,
        "rotation_degrees": answer.rotation_degrees,
        "seconds": round(seconds, 3),
        "cpu_seconds": round(spent, 3),
        "status": answer.stop.status,
        "winner": answer.starts[0].name,
        "scores": asdict(answer.scores),
        "certificate": asdict(answer.certificate),
        "cautions": [caution.code for caution in answer.cautions],
    }


def machine() -> dict:
    """Say what the numbers were measured on."""
    packages = ("torch", "numpy", "scipy", "POT")
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
