"""One table for a family of benchmarks: rows measured alike, printed, and kept as JSON."""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import torch

RESULTS = Path(__file__).parent / "results"
LIBRARIES = ("torch", "numpy", "scipy", "POT", "ott-jax", "geomloss")
POOLS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Row:
    """One solver on one problem.

    Attributes:
        seconds: median, by the clock that the report names.
        reached: what the solver reached, by one function for all, in the report's words.
        ratio: seconds over those of ours on the same problem; None for ours.
    """

    problem: str
    solver: str
    seconds: float
    reached: dict[str, float]
    note: str = ""
    ratio: float | None = None

    def __str__(self) -> str:
        """Write one line of the table."""
        reached = "  ".join(f"{k} {v:.6g}" for k, v in self.reached.items())
        ratio = "" if self.ratio is None else f"x{self.ratio:.2f} "
        timing = f"{self.problem:34} {self.solver:22} {self.seconds:9.3f} s"
        return f"{timing}  {ratio:8}{reached}  {self.note}"


def pinned(module: str, threads: int = 1) -> None:
    """Start the program again with thread pools of this size: they read it when imported."""
    wanted = dict.fromkeys(POOLS, str(threads)) | {"OMP_WAIT_POLICY": "PASSIVE"}
    if any(os.environ.get(name) != size for name, size in wanted.items()):
        command = [sys.executable, "-m", module, *sys.argv[1:]]
        os.execve(sys.executable, command, os.environ | wanted)
    torch.set_num_threads(threads)


def timed(
    solve: Callable[[], Answer],
    *,
    repeats: int = 3,
    at_most_s: float = 3.0,
    clock: Callable[[], float] = time.process_time,
) -> tuple[float, Answer]:
    """Run `repeats` times or until `at_most_s` are gone; the median seconds, the last answer."""
    seconds: list[float] = []
    while True:
        began = clock()
        answer = solve()
        seconds.append(clock() - began)
        if len(seconds) == repeats or sum(seconds) > at_most_s:
            return statistics.median(seconds), answer


def report(name: str, rows: list[Row], *, threads: int, clock: str, **more: Any) -> None:
    """Write the rows to `bench/results/{name}.json`, with the machine and the versions."""
    versions = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            continue
    body = {
        "machine": f"{platform.machine()} {platform.processor()}",
        "threads": threads,
        "clock": clock,
        "load_average": os.getloadavg(),
        "versions": versions,
        **more,
        "rows": [asdict(row) for row in rows],
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(body, indent=1) + "\n")
