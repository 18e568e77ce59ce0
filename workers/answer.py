"""Answers to questions: one, or a batch of them."""

import platform
import time
from collections.abc import Callable, Hashable
from contextlib import suppress
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
from workers.bind import Binder, Encoder, NotFinite, call, together
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


# Questions of a batch that are answered at once; between two such groups it may be cancelled.
TOGETHER = 1000
# Bytes of working memory up to which a question may be held together with as many others.
SMALL = 1 << 18


@dataclass(frozen=True)
class Bound:
    """A question ready for its routine."""

    request: Request
    place: Place
    arguments: dict[str, Any]


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
    questions: list[dict[str, Any]] = claim.request["items"]
    for first in range(0, len(questions), TOGETHER):
        pulse.limit(None)
        if not pulse(first, 0.0):
            break  # cancelled or lost: nobody will read the items
        group = questions[first : first + TOGETHER]
        items += _group(desk, claim, group, materials, encoder, pulse)
    place, timings = choose(desk.settings, "auto"), (claim.queue_ms, load_ms, watch.lap(), 0.0)
    routine = ROUTINES[claim.routine]
    body = {"items": items, "provenance": provenance(routine, place, 0, timings)}
    return Outcome("succeeded", as_json(body), tuple(encoder.arrays.values()))


def _group(
    desk: Desk,
    claim: Claim,
    items: list[dict[str, Any]],
    materials: Materials,
    encoder: Encoder,
    pulse: Pulse,
) -> list[dict[str, Any]]:
    """Answer at once what the routine answers at once, and the rest one by one."""
    found: dict[int, dict[str, Any]] = {}
    many = together(ROUTINES[claim.routine])
    if many is not None and len(items) > 1:
        found = _at_once(many, desk, claim, items, materials, encoder, pulse)
    answers = list[dict[str, Any]]()
    for index, item in enumerate(items):
        pulse.limit(None)
        if not pulse(-1, 0.0):
            break
        alone = index not in found
        one = _item(desk, claim, item, materials, encoder, pulse) if alone else found[index]
        answers.append(one)
    return answers


def _at_once(
    many: Callable[..., list[Any]],
    desk: Desk,
    claim: Claim,
    items: list[dict[str, Any]],
    materials: Materials,
    encoder: Encoder,
    pulse: Pulse,
) -> dict[int, dict[str, Any]]:
    """Answer the small questions without a deadline of their own; others wait for their turn."""
    watch, bound = Stopwatch(), _bound_together(desk, claim, items, materials)
    load_ms, share = watch.lap(), max(1, len(bound))
    with torch.no_grad():
        answers = many([ready.arguments for ready in bound.values()], watch=pulse)
    spent = (claim.queue_ms, round(load_ms / share, 3), round(watch.lap() / share, 3))
    encoder.expect([answer for answer in answers if not isinstance(answer, IllPosed)])
    found, seen = dict[int, dict[str, Any]](), set[Hashable]()
    for (index, ready), answer in zip(bound.items(), answers, strict=True):
        try:
            if isinstance(answer, IllPosed):
                raise answer
            body = _written(claim, ready, answer, encoder, pulse, spent)
        except (IllPosed, NotFinite) as error:
            found[index] = {"error": problem_of(error).model_dump()}
            continue
        if (form := _form(body)) not in seen:  # numbers are finite; the rest is the same for all
            _check(claim, body, encoder)
            seen.add(form)
        found[index] = {"result": body}
    return found


def _bound_together(
    desk: Desk, claim: Claim, items: list[dict[str, Any]], materials: Materials
) -> dict[int, Bound]:
    """Bind the small questions, by their place in the batch."""
    binders, bound = dict[Place, Binder](), dict[int, Bound]()
    for index, item in enumerate(items):
        if "error" in item:
            continue
        request = _request(claim, item["request"], materials)
        if request.timeout_s is not None or request.footprint() > SMALL:
            continue
        place = choose(desk.settings, request.precision)
        if place not in binders:
            binders[place] = desk.binder(materials, place, many=True)
        with suppress(IllPosed):  # said when its turn comes
            bound[index] = Bound(request, place, binders[place].arguments(request))
    return bound


def _form(body: dict[str, Any]) -> Hashable:
    """Tell which fields an answer has, and of which kinds."""
    return tuple(map(type, body.values()))


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
    watch = Stopwatch()
    ready = _bound(desk, claim, question, materials)
    load_ms = watch.lap()
    pulse.limit(ready.request.timeout_s)
    routine, seed = ROUTINES[claim.routine], ready.request.seed
    with torch.no_grad():
        found = call(routine, ready.arguments, seed=seed, place=ready.place, watch=pulse)
    spent = (claim.queue_ms, load_ms, watch.lap())
    return _encoded(claim, ready, found, encoder, pulse, spent)


def _request(claim: Claim, question: dict[str, Any], materials: Materials) -> Request:
    context = {"shelf": materials.shelf}
    return ROUTINES[claim.routine].request.model_validate(question, context=context)


def _bound(desk: Desk, claim: Claim, question: dict[str, Any], materials: Materials) -> Bound:
    request = _request(claim, question, materials)
    place = choose(desk.settings, request.precision)
    return Bound(request, place, desk.binder(materials, place).arguments(request))


def _encoded(
    claim: Claim,
    ready: Bound,
    found: Any,
    encoder: Encoder,
    pulse: Pulse,
    spent: tuple[float, float, float],
) -> dict[str, Any]:
    """Write an answer as a JSON object, checked by its model; `spent` are milliseconds."""
    body = _written(claim, ready, found, encoder, pulse, spent)
    _check(claim, body, encoder)
    return body


def _written(
    claim: Claim,
    ready: Bound,
    found: Any,
    encoder: Encoder,
    pulse: Pulse,
    spent: tuple[float, float, float],
) -> dict[str, Any]:
    watch, routine, request = Stopwatch(), ROUTINES[claim.routine], ready.request
    body = encoder.answer(found)
    if pulse.reason == "deadline":
        body["warnings"].append(_deadline(request, body["residual"]))
    timings = (*spent, watch.lap())
    body["provenance"] = provenance(routine, ready.place, request.seed, timings)
    return body


def _check(claim: Claim, body: dict[str, Any], encoder: Encoder) -> None:
    """Compare an answer with its model."""
    context = {"shelf": Shelf(known=encoder.facts)}
    ROUTINES[claim.routine].result.model_validate(body, context=context)


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
