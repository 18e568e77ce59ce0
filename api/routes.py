"""The routines as addresses: one loop over the registry, no line about any routine.

Bodies are read and answers written by hand: FastAPI's own parsing can neither pass validation
context nor stay off the event loop. What each address takes and gives is said in api/openapi.py.
"""

import hashlib
import math
from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from starlette.routing import Match
from starlette.types import Scope

from api import openapi
from api.answers import PACKED, Reader, answer, settled
from api.asking import question, submit
from api.body import Body, read
from api.gateway import Gateway, request_id_of, tenant_of
from api.negotiate import JSON, RENDERS, choose
from api.problems import Refusal
from schemas.jobs import LIVE, JobRecord, Kind
from schemas.registry import ROUTINES
from schemas.routine import Routine
from workers.port import Submission

POLL_S = "1"
Endpoint = Callable[[Request], Awaitable[Response]]


class Fixed(APIRoute):
    """A route without parameters: most requests for others are told by the end of their path."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Compare the end of the path before anything else."""
        if scope["type"] != "http" or not scope["path"].endswith(self.path):
            return Match.NONE, {}
        return super().matches(scope)


def router(gate: Gateway) -> APIRouter:
    """Offer every routine: one question, a batch, gradients."""
    found = APIRouter(prefix="/v1", route_class=Fixed)
    for routine in ROUTINES.values():
        _add(found, gate, routine, "solve")
        _add(found, gate, routine, "batch")
        if routine.vjp is not None:
            _add(found, gate, routine, "vjp")
    return found


def _add(found: APIRouter, gate: Gateway, routine: Routine, kind: Kind) -> None:
    suffix = "" if kind == "solve" else f"/{kind}"
    found.add_api_route(
        routine.path + suffix,
        _endpoint(gate, routine, kind),
        methods=["POST"],
        status_code=202,
        response_class=Response,
        **openapi.asking(routine, kind),
    )


def _endpoint(gate: Gateway, routine: Routine, kind: Kind) -> Endpoint:
    async def ask(request: Request) -> Response:
        seconds = _wait(request, gate)
        media = [JSON, *PACKED]
        if kind == "solve":
            media += [RENDERS[name] for name in routine.result.renders]
        if seconds is not None:
            choose(request.headers.get("accept"), media)  # refuse before anything is queued
        body = await read(request, gate.settings, gate.aside)
        tenant = tenant_of(request)
        asked = await question(gate, tenant, routine, kind, body.value, large=body.large)
        asked = asked.having(
            request_id=request_id_of(request),
            idempotency=_idempotency(request, body),
            fresh="no-cache" in request.headers.get("cache-control", ""),
        )
        submission = await submit(gate, tenant, asked)
        return await _reply(gate, request, submission, seconds)

    return ask


async def _reply(
    gate: Gateway, request: Request, submission: Submission, seconds: float | None
) -> Response:
    """Answer with the record, or with the result when that was wished and comes in time."""
    new = submission.verdict == "created"
    record, key = await settled(
        gate, request, submission.job, seconds or 0, new=new and bool(seconds)
    )
    headers = {"Location": record.links.self, "Cache-Control": "no-store"}
    if submission.verdict == "replayed":
        headers["Idempotency-Replayed"] = "true"
    if seconds is None or record.status in LIVE:
        return _accepted(record, headers, 202 if new else 200)
    headers |= {
        "Preference-Applied": f"wait={seconds:g}",
        "Content-Location": record.links.result,
    }
    try:
        response = await answer(gate, record, key, Reader(request))
    except Refusal as refusal:
        refusal.headers |= headers
        raise
    response.headers.update(headers)
    return response


def _accepted(record: JobRecord, headers: dict[str, str], status: int) -> Response:
    if record.status in LIVE:
        headers["Retry-After"] = POLL_S
    return Response(record.model_dump_json(), status, headers=headers, media_type=JSON)


def _wait(request: Request, gate: Gateway) -> float | None:
    """Read `Prefer: wait=N` (RFC 7240); None when the client does not wait.

    `respond-async` beside it means: after that time. Unknown preferences are ignored.
    """
    for header in request.headers.getlist("prefer"):
        for preference in header.replace(";", ",").split(","):
            name, _, value = preference.partition("=")
            if name.strip().lower() == "wait":
                seconds = _seconds(value.strip(' "'))
                if seconds is not None:
                    return min(seconds, gate.settings.wait_cap_s)
    return None


def _seconds(text: str) -> float | None:
    try:
        seconds = float(text)
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds > 0 else None


def _idempotency(request: Request, body: Body) -> tuple[str, str] | None:
    """Read Idempotency-Key (quoted or bare): the key within its address, and a fingerprint."""
    text = request.headers.get("idempotency-key")
    if text is None:
        return None
    key = text.strip()
    if len(key) > 1 and key.startswith('"') and key.endswith('"'):
        key = key[1:-1]
    if not 0 < len(key) <= 255 or not key.isprintable():
        raise Refusal("bad-request", "Idempotency-Key has 1 to 255 printable characters")
    fingerprint = hashlib.sha256(body.media.encode() + b"\0" + body.raw).hexdigest()
    return f"{request.url.path}:{key}", fingerprint
