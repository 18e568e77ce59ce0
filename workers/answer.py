"""Answers to questions: one, or a batch of them."""

import platform
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
import scipy
import torch

from algorithms.errors import IllPosed
from schemas.arrays import Request, Shelf
from schemas.registry import ROUTINES
from schemas.routine import Routine
from workers.bind import Encoder, NotFinite, call
from workers.desk import Desk, Materials, Outcome
from workers.failures import problem_of
from workers.place import Place, choose
from workers.port import Claim
from workers.pulse import Pulse

LIBRARIES = {
    "torch": torch.__version__,
    "numpy": np.__version__,
    "scipy": scipy.__version__,
    "python": platform.python_version(),
}


@dataclass
class Stopwatch:
    """Milliseconds since the last lap."""

    last: float = field(default_factory=time.perf_counter)

    def lap(self) -> float:
        """Return the milliseconds since the last call and start anew."""
        now = time.perf_counter()
        elapsed, self.last = (now - self.last) * 1000, now
        return round(elapsed, 3)


def solve(desk: Desk, claim: Claim, pulse: Pulse) -> Outcome:
    """Answer one question."""
    encoder = Encoder(desk.settings.inline_limit)
    body = answer(desk, claim, claim.request, desk.fetch(claim.request), encoder, pulse)
    arrays = tuple(encoder.arrays.values())
    return Outcome("succeeded", as_json(body), arrays, warnings=body["warnings"])


def batch(desk: Desk, claim: Claim, pulse: Pulse) -> Outcome:
    """Answer several questions; one that fails does not touch the others."""
    encoder, watch = Encoder(desk.settings.inline_limit), Stopwatch()
    materials, items = desk.fetch(claim.request), list[dict[str, Any]]()
    load_ms = watch.lap()
    for index, item in enumerate(claim.request["items"]):
        pulse.limit(None)
        if not pulse(index, 0.0):
            break  # cancelled or lost: nobody will read the items
        items.append(_item(desk, claim, item, materials, encoder, pulse))
    place, timings = choose(desk.settings, "auto"), (claim.queue_ms, load_ms, watch.lap(), 0.0)
    routine = ROUTINES[claim.routine]
    body = {"items": items, "provenance": provenance(routine, place, 0, timings)}
    return Outcome("succeeded", as_json(body), tuple(encoder.arrays.values()))


def _item(
    desk: Desk,
    claim: Claim,
    item: dict[str, Any],
    materials: Materials,
    encoder: Encoder,
    pulse: Pulse,
) -> dict[str, Any]:
    if "error" in item:
        return item
    try:
        return {"result": answer(desk, claim, item["request"], materials, encoder, pulse)}
    except (IllPosed, NotFinite) as error:
        return {"error": problem_of(error).model_dump()}


def answer(
    desk: Desk,
    claim: Claim,
    question: dict[str, Any],
    materials: Materials,
    encoder: Encoder,
    pulse: Pulse,
) -> dict[str, Any]:
    """Bind, compute and encode one question; the answer as a JSON object, checked by its model."""
    watch, routine = Stopwatch(), ROUTINES[claim.routine]
    request: Request = routine.request.model_validate(question, context={"shelf": materials.shelf})
    place = choose(desk.settings, request.precision)
    arguments = desk.binder(materials, place).arguments(request)
    load_ms = watch.lap()
    pulse.limit(request.timeout_s)
    with torch.no_grad():
        found = call(routine, arguments, seed=request.seed, place=place, watch=pulse)
    compute_ms = watch.lap()
    body = encoder.answer(found)
    if pulse.reason == "deadline":
        body["warnings"].append(_deadline(request, body["residual"]))
    timings = (claim.queue_ms, load_ms, compute_ms, watch.lap())
    body["provenance"] = provenance(routine, place, request.seed, timings)
    staged = Shelf(known={digest: item.facts for digest, item in encoder.arrays.items()})
    routine.result.model_validate(body, context={"shelf": staged})
    return body


def provenance(
    routine: Routine, place: Place, seed: int, timings: tuple[float, float, float, float]
) -> dict[str, Any]:
    """Say where an answer comes from."""
    names = ("queue_ms", "load_ms", "compute_ms", "encode_ms")
    return {
        "routine": routine.name,
        "version": routine.version,
        "device": str(place.device),
        "dtype": str(place.dtype).removeprefix("torch."),
        "seed": seed,
        "deterministic": place.device.type == "cpu",
        "timings": dict(zip(names, timings, strict=True)),
        "libraries": LIBRARIES,
    }


def as_json(body: dict[str, Any]) -> bytes:
    """Write an answer, its small arrays in the shortest digits that read back the same."""
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)


def _deadline(request: Request, residual: float) -> dict[str, str]:
    return {
        "code": "deadline",
        "message": f"stopped after timeout_s = {request.timeout_s} with residual {residual:.3g}",
        "hint": "the best answer so far is returned; allow more time or a larger tol",
    }
