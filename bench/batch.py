"""Many small questions, one by one and in one batch: `python -m bench.batch`.

    1,000 entropic problems of 16 x 16 (points in the plane, the dense plan returned), each asked
    with `Prefer: wait` after the answer to the one before (200 of them, at the start and again at
    the end: it is a rate); between, all in one request to `/batch`.

Answers to one question are JSON; a thousand are too many for JSON and come as safetensors, as the
client reads them.

The service is a real one: gateway, one worker, store, HTTP. Wall seconds of the caller, and CPU
milliseconds of gateway, worker and store; `Cache-Control: no-cache`, so nothing is answered from
memory. Those 200 answers are compared with the ones given together. Target: 20 times the rate.
"""

import json
import os
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from safetensors.numpy import load

from bench.processes import Service, service

RESULTS = Path(__file__).parent / "results" / "batch.json"
PROBLEMS, ALONE, SIZE, SHARE, WARM, ROUNDS = 1000, 200, 16, 0.05, 20, 3
SAFETENSORS = "application/vnd.safetensors"
PATH = "/v1/transport/sinkhorn"
HEADERS = {"Prefer": "wait=120", "Cache-Control": "no-cache"}


@dataclass(frozen=True)
class Line:
    """One way to ask: seconds of the caller, questions a second, CPU milliseconds in all."""

    way: str
    answers: int
    wall_s: float
    rate: float
    gateway_ms: float
    worker_ms: float
    store_ms: float


def questions(seed: int) -> list[dict[str, Any]]:
    """Draw the problems."""
    draw = np.random.default_rng(seed)
    return [
        {
            "geometry": {
                "kind": "points",
                "x": draw.normal(size=(SIZE, 2)).round(4).tolist(),
                "y": (draw.normal(size=(SIZE, 2)) + 0.5).round(4).tolist(),
            },
            "epsilon_relative": SHARE,
        }
        for _ in range(PROBLEMS)
    ]


def one_by_one(http: httpx.Client, asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ask each when the one before is answered."""
    return [_answer(http.post(PATH, json=question, headers=HEADERS)) for question in asked]


def batch(http: httpx.Client, asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ask all at once."""
    headers = HEADERS | {"Accept": SAFETENSORS}
    response = http.post(f"{PATH}/batch", json={"problems": asked}, headers=headers)
    assert response.status_code == 200, response.text[:1000]
    raw, arrays = response.content, load(response.content)
    size = int.from_bytes(raw[:8], "little")
    found = json.loads(json.loads(raw[8 : 8 + size])["__metadata__"]["result"])
    answers = [item["result"] for item in found["items"]]
    for index, answer in enumerate(answers):
        answer["plan"]["values"] = arrays[f"items.{index}.result.plan"]
    return answers


def _answer(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text[:1000]
    return response.json()


def measured(running: Service, way: str, ask: Any) -> tuple[Line, list[dict[str, Any]]]:
    """Time one way, as the caller waits and by the processors."""
    before, began = running.cpu_ms(), time.perf_counter()
    answers = ask()
    wall = time.perf_counter() - began
    spent = {k: v - before[k] for k, v in running.cpu_ms().items()}
    spent["gateway"] += spent["helper"]
    roles = (round(spent[role], 1) for role in ("gateway", "worker", "store"))
    return Line(way, len(answers), round(wall, 3), round(len(answers) / wall, 1), *roles), answers


def apart(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> float:
    """Compare answers: the largest L1 distance of two plans."""
    plans = [[np.array(a["plan"]["values"]) for a in answers] for answers in (one, other)]
    return max(float(np.abs(p - q).sum()) for p, q in zip(*plans, strict=False))


def main() -> None:
    """Measure both ways, print, and write the numbers."""
    lines, together = list[Line](), list[dict[str, Any]]()
    with (
        service(device="cpu", workers=1) as running,
        httpx.Client(base_url=running.url, timeout=300) as http,
    ):
        one_by_one(http, questions(0)[:WARM])
        batch(http, questions(0)[:WARM])
        asked = questions(1)
        line, alone = measured(running, "one by one", lambda: one_by_one(http, asked[:ALONE]))
        lines.append(line)
        for _ in range(ROUNDS):
            line, together = measured(running, "batch", lambda: batch(http, asked))
            lines.append(line)
        line, _ = measured(running, "one by one", lambda: one_by_one(http, asked[:ALONE]))
        lines.append(line)
        distance = apart(alone, together)
    for line in lines:
        print(f"{line.way:<12}", *(f"{v:>10}" for v in list(asdict(line).values())[1:]))
    wall, cpu = (
        statistics.median(_of(z) for z in lines if z.way == "one by one")
        / statistics.median(_of(z) for z in lines if z.way == "batch")
        for _of in (
            lambda z: z.wall_s / z.answers,
            lambda z: (z.gateway_ms + z.worker_ms + z.store_ms) / z.answers,
        )
    )
    print(f"ratio {wall:.1f} by the clock, {cpu:.1f} in CPU time; plans apart by {distance:.1e}")
    body = {
        "rows": [asdict(line) for line in lines],
        "ratio_wall": wall,
        "ratio_cpu": cpu,
        "plans_apart_l1": distance,
        "load_average": os.getloadavg(),
        "cores": os.cpu_count(),
    }
    RESULTS.write_text(json.dumps(body, indent=1) + "\n")


if __name__ == "__main__":
    main()
