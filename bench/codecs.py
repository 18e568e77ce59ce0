"""What it costs the gateway to take in 10,000 x 50 float32, as .npy and as JSON.

    python -m bench.codecs

CPU time of the gateway's process and of its helper per upload, and how long /healthz takes
meanwhile for another client. Targets: .npy 10 ms; JSON 200 ms, /healthz at worst 50 ms.
"""

import io
import json
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson

from bench.processes import Service, service

RESULTS = Path(__file__).parent / "results" / "codecs.json"
SHAPE = (10_000, 50)
UPLOADS = 30
PAUSE_S = 0.005


@dataclass(frozen=True)
class Line:
    """One way of sending the array."""

    name: str
    megabytes: float
    gateway_ms: float
    helper_ms: float
    wall_ms: float
    healthz_median_ms: float
    healthz_worst_ms: float


class Pulse:
    """Another client, who asks /healthz again and again."""

    def __init__(self, url: str) -> None:
        """Ask nothing yet."""
        self.times: list[float] = []
        self._url, self._stop = url, threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Pulse":
        """Begin."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with httpx.Client(base_url=self._url) as http:
            while not self._stop.is_set():
                began = time.perf_counter()
                http.get("/healthz")
                self.times.append((time.perf_counter() - began) * 1000)
                time.sleep(PAUSE_S)


def bodies() -> dict[str, tuple[str, list[tuple[bytes, dict[str, str]]]]]:
    """Write the uploads: another array each time, so that none is known already."""
    npy, nested, asked = list[Any](), list[Any](), list[Any]()
    for seed in range(UPLOADS):
        array = np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)
        file = io.BytesIO()
        np.save(file, array)
        npy.append((file.getvalue(), {"Content-Type": "application/x-npy"}))
        text = orjson.dumps(array, option=orjson.OPT_SERIALIZE_NUMPY)
        nested.append((text, {"Content-Type": "application/json"}))
        clouds = b'{"kind":"points","x":%s,"y":[[%s]]}' % (text, b",".join([b"0.5"] * SHAPE[1]))
        question = b'{"geometry":%s,"epsilon":1.0,"timeout_s":0.001}' % clouds
        asked.append((question, {"Content-Type": "application/json"}))
    return {
        "npy to /v1/arrays": ("/v1/arrays", npy),
        "JSON to /v1/arrays": ("/v1/arrays", nested),
        "JSON in a question": ("/v1/transport/sinkhorn", asked),
    }


def measure(running: Service, name: str, path: str, sent: list[Any]) -> Line:
    """Send everything one after the other."""
    cpu = {}
    with httpx.Client(base_url=running.url, timeout=60) as http:
        http.post(path, content=sent[0][0], headers=sent[0][1]).raise_for_status()
        quiet = http.get("/healthz")
        assert quiet.status_code == 200
        with Pulse(running.url) as idle:
            before = running.cpu_ms()
            time.sleep(1)
            spent = running.cpu_ms()["gateway"] - before["gateway"]
        per_question = spent / len(idle.times)  # what /healthz itself costs
        with Pulse(running.url) as pulse:
            before, began = running.cpu_ms(), time.perf_counter()
            for content, headers in sent[1:]:
                http.post(path, content=content, headers=headers).raise_for_status()
            wall, after = time.perf_counter() - began, running.cpu_ms()
        cpu = {k: after[k] - before[k] for k in after}
        cpu["gateway"] -= per_question * len(pulse.times)
    count = len(sent) - 1
    return Line(
        name,
        round(len(sent[0][0]) / 1e6, 2),
        round(cpu["gateway"] / count, 2),
        round(cpu["helper"] / count, 2),
        round(wall / count * 1000, 1),
        round(float(np.median(pulse.times)), 2),
        round(max(pulse.times), 2),
    )


def show(lines: list[Line]) -> None:
    """Print the table."""
    names = ("MB", "gateway", "helper", "wall", "healthz", "worst")
    print(f"{'10,000 x 50 float32':<22}", *(f"{name:>9}" for name in names), "  (ms)")
    for line in lines:
        name, *numbers = asdict(line).values()
        print(f"{name:<22}", *(f"{number:>9}" for number in numbers))


def main() -> None:
    """Measure, print a table and write the numbers."""
    lines = list[Line]()
    with service(device="cpu") as running:
        for name, (path, sent) in bodies().items():
            lines.append(measure(running, name, path, sent))
    show(lines)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps([asdict(line) for line in lines], indent=1) + "\n")


if __name__ == "__main__":
    main()
