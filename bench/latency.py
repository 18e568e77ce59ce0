"""What a tiny question costs from end to end, next to the floor of bare HTTP.

    python -m bench.latency

The example of transport.sinkhorn, `Prefer: wait`, `Cache-Control: no-cache`, one client after the
other: median and 99th percentile of the answer's time, CPU time per job in gateway, worker and
store. The floor is a POST to an endpoint of FastAPI that reads the body and answers, in a process
of its own, measured in turns with the service. Targets: median 3 floors, 5 ms of CPU in all.
"""

import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import numpy as np
from fastapi import FastAPI, Request, Response

from bench.processes import PATIENCE_S, cpu_ms, service
from schemas.registry import ROUTINES

RESULTS = Path(__file__).parent / "results" / "latency.json"
ROUNDS, PER_ROUND, WARM = 5, 100, 30
NAME = "transport.exact"
HEADERS = {"Prefer": "wait=10", "Cache-Control": "no-cache"}


@dataclass(frozen=True)
class Line:
    """One thing measured: times in milliseconds, CPU time per request by process."""

    name: str
    p50_ms: float
    p99_ms: float
    cpu_ms: float
    gateway_ms: float
    worker_ms: float
    store_ms: float


def floor() -> FastAPI:
    """Build an application that does nothing but HTTP."""
    found = FastAPI(openapi_url=None)

    @found.post("/nothing", response_class=Response)
    async def nothing(request: Request) -> Response:
        await request.body()
        return Response(b"{}", media_type="application/json")

    return found


@contextmanager
def floor_process() -> Generator[tuple[str, int]]:
    """Serve it as the gateway is served."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "bench.latency:floor", "--factory", "--port",
             str(port), "--no-access-log", "--no-server-header", "--log-level", "warning"],
            stdout=log, stderr=log,
        )  # fmt: skip
        try:
            yield f"http://127.0.0.1:{port}", process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE_S)


def ask(http: httpx.Client, path: str, count: int) -> list[float]:
    """Ask so many times; return the milliseconds of each answer."""
    times = list[float]()
    for _ in range(count):
        began = time.perf_counter()
        response = http.post(path, json=ROUTINES[NAME].example, headers=HEADERS)
        times.append((time.perf_counter() - began) * 1000)
        assert response.status_code == 200, response.text
    return times


def line(name: str, times: list[float], cpu: dict[str, float]) -> Line:
    """Summarise."""
    each = {role: round(spent / len(times), 2) for role, spent in cpu.items()}
    p50, p99 = np.percentile(times, [50, 99])
    gateway, worker, store = (each.get(role, 0.0) for role in ("gateway", "worker", "store"))
    total = round(sum(each.values()), 2)
    return Line(name, round(float(p50), 2), round(float(p99), 2), total, gateway, worker, store)


def measure() -> list[Line]:
    """Measure service and floor in turns, so that both see the same machine."""
    path = f"/v1{ROUTINES[NAME].path}"
    whole, bare, cpu, bare_cpu = list[float](), list[float](), dict[str, float](), 0.0
    with service(device="cpu") as running, floor_process() as (url, pid):
        transport = httpx.HTTPTransport(retries=5)
        with (
            httpx.Client(base_url=running.url, timeout=60) as http,
            httpx.Client(base_url=url, timeout=60, transport=transport) as other,
        ):
            ask(http, path, WARM)
            ask(other, "/nothing", WARM)
            for _ in range(ROUNDS):
                before = running.cpu_ms()
                whole += ask(http, path, PER_ROUND)
                for role, spent in running.cpu_ms().items():
                    cpu[role] = cpu.get(role, 0.0) + spent - before[role]
                before_bare = cpu_ms(pid)
                bare += ask(other, "/nothing", PER_ROUND)
                bare_cpu += cpu_ms(pid) - before_bare
    return [line("bare HTTP", bare, {"gateway": bare_cpu}), line(NAME, whole, cpu)]


def main() -> None:
    """Measure, print a table and write the numbers."""
    lines = measure()
    names = ("p50", "p99", "cpu", "gateway", "worker", "store")
    print(f"{'':<20}", *(f"{name:>8}" for name in names), "  (ms)")
    for each in lines:
        name, *numbers = asdict(each).values()
        print(f"{name:<20}", *(f"{number:>8}" for number in numbers))
    print(f"{lines[1].p50_ms / lines[0].p50_ms:.1f} floors at the median")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps([asdict(each) for each in lines], indent=1) + "\n")


if __name__ == "__main__":
    main()
