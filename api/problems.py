"""Everything that is not an answer: one table of kinds, one exception, one shape of body.

Refusal               what any part of the gateway raises; becomes an application/problem+json
HTTPException         404 and 405 of the router
RequestValidationError, ValidationError      422 with pointers (api/pointers.py)
redis errors          503: the store is away or full
anything else         500 `internal`: caught by api/headers.py, told under an incident number
"""

import logging
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from redis.exceptions import ConnectionError as StoreAway
from redis.exceptions import OutOfMemoryError as StoreFull
from redis.exceptions import TimeoutError as StoreSlow
from starlette.exceptions import HTTPException
from starlette.routing import Route

from api.pointers import MAX_ERRORS, clean, errors_of, query_errors
from schemas.problems import Failure, FieldError, Problem

MEDIA = "application/problem+json"
log = logging.getLogger("brenier.gateway")


@dataclass(frozen=True)
class Kind:
    """One kind of problem: its HTTP status, its name, and what its page says."""

    status: int
    title: str
    about: str


KINDS: dict[str, Kind] = {
    "invalid-json": Kind(400, "The body is not JSON", "JSON is UTF-8 text (RFC 8259) without a "
        "byte-order mark, without duplicate keys, nested at most 32 deep."),
    "bad-request": Kind(400, "The request cannot be read", "The request violates HTTP or ends "
        "early; the detail says where."),
    "unauthorized": Kind(401, "A key is needed", "Send `Authorization: Bearer KEY` or "
        "`X-API-Key: KEY` with a key that the operator has given to you."),
    "not-found": Kind(404, "There is nothing here", "No resource has this address. Addresses have "
        "no trailing slash; /openapi.json lists them."),
    "no-such-routine": Kind(404, "No such routine", "GET /v1/routines lists what can be asked."),
    "no-such-job": Kind(404, "No such job", "The id is unknown, was deleted, has been forgotten "
        "after its time, or belongs to somebody else: the answer is the same."),
    "method-not-allowed": Kind(405, "This method is not offered here", "The Allow header lists the "
        "methods of this address."),
    "not-acceptable": Kind(406, "No such representation", "The detail lists the media types that "
        "this answer has. Large answers are not written as JSON: ask for "
        "application/vnd.safetensors, application/x-npz, or one field as application/x-npy."),
    "body-timeout": Kind(408, "The body did not come", "The connection was silent for too long "
        "while the body was expected."),
    "job-not-finished": Kind(409, "The job has not ended", "Ask again after Retry-After seconds, "
        "wait with GET /v1/jobs/{id}?wait=30, or listen to /v1/jobs/{id}/events."),
    "job-cancelled": Kind(409, "The job was cancelled", "A cancelled job has no result. Asking the "
        "same question again starts a new job."),
    "result-expired": Kind(410, "The result has been dropped", "Results are kept for a limited "
        "time; `expires_at` of the job says until when. Ask the question again."),
    "length-required": Kind(411, "A body is needed", "Send a body with Content-Length, or in "
        "chunks (Transfer-Encoding: chunked)."),
    "payload-too-large": Kind(413, "The body is too large", "The detail says the limit. Binary "
        "bodies may be larger than JSON: upload arrays to /v1/arrays and send their digests."),
    "problem-too-large": Kind(413, "The problem is too large", "The estimated working memory "
        "exceeds what one job may use. Use fewer points, a sparser or hierarchical routine."),
    "unsupported-media-type": Kind(415, "This kind of body is not understood", "The detail lists "
        "what this address reads. Compressed bodies (Content-Encoding) are not accepted."),
    "validation": Kind(422, "The question is not valid", "Each entry of `errors` points to a place "
        "in the body and says what was expected there."),
    "non-finite-number": Kind(422, "A number is not finite", "NaN and infinities are not numbers "
        "that can be computed with; absent bounds are written as null."),
    "shape-mismatch": Kind(422, "Array shapes disagree", "Axes of the same name must have the same "
        "size in all arrays of a question; rows of nested lists must be equally long."),
    "infeasible-problem": Kind(422, "The problem has no solution", "Well formed, but impossible: "
        "for instance balanced transport between different masses."),
    "no-such-array": Kind(422, "An array is unknown", "Upload it to POST /v1/arrays first; arrays "
        "are dropped some time after their last use."),
    "no-such-dataset": Kind(422, "A dataset is unknown", "Upload it to POST /v1/datasets first; "
        "datasets are dropped some time after their last use."),
    "numerical-divergence": Kind(422, "The computation diverged", "Numbers became infinite or "
        "undefined on the way. More regularisation or higher precision may help."),
    "deadline-exceeded": Kind(422, "No answer in time", "The time that the question allowed was "
        "over before there was anything to return; allow more in `timeout_s`."),
    "idempotency-conflict": Kind(422, "The Idempotency-Key was used for another request", "One key "
        "stands for one request: same address, same body. Use a new key for a new request."),
    "rate-limited": Kind(429, "Too many requests", "Wait Retry-After seconds."),
    "internal": Kind(500, "Something is broken here", "This is a fault of the service, not of the "
        "request. Tell the operator the incident number."),
    "worker-lost": Kind(500, "The worker was lost", "The process that computed the answer died "
        "again and again; the problem may need more memory than there is."),
    "queue-full": Kind(503, "The queue is full", "Wait Retry-After seconds and ask again."),
    "broker-unavailable": Kind(503, "The store cannot be reached", "Jobs are safe, but cannot be "
        "read or added right now. Wait Retry-After seconds and ask again."),
    "not-ready": Kind(503, "Not ready", "The detail lists the checks that failed."),
    "out-of-memory": Kind(507, "Not enough memory", "The computation needed more memory than the "
        "device has. Use a smaller problem, or float32."),
}  # fmt: skip
UNKNOWN = Kind(500, "The job failed", "The detail says why.")


class Refusal(Exception):
    """There is no answer, and this is why; raised anywhere, answered as a problem."""

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
        total: int | None = None,
        retry: bool = False,
        incident: str | None = None,
    ) -> None:
        """Take what RFC 9457 wants to know."""
        super().__init__(code, detail)
        self.code, self.detail, self.errors = code, detail, list(errors)
        self.headers, self.total = dict(headers or {}), total
        self.retry, self.incident = retry, incident

    @property
    def kind(self) -> Kind:
        """Return the line of the table."""
        return KINDS.get(self.code, UNKNOWN)


def later(code: str, detail: str, seconds: int = 1) -> Refusal:
    """Refuse for now."""
    return Refusal(code, detail, headers={"Retry-After": str(seconds)}, retry=True)


def failed(failure: Failure) -> Refusal:
    """Tell a stored failure as the problem that it is."""
    return Refusal(
        failure.code,
        failure.detail,
        errors=failure.errors,
        retry=failure.retry,
        incident=failure.incident,
    )


def invalid(
    error: ValidationError, model: type[BaseModel] | None, at: Sequence[str | int] = ()
) -> Refusal:
    """Refuse a body that its model refuses, with pointers; `at` is where the model begins."""
    errors, total = errors_of(error, model, at), error.error_count()
    codes = {e.code for e in errors}
    code = codes.pop() if len(codes) == 1 else "validation"
    first = f"{errors[0].pointer}: {errors[0].message}"
    more = f" (and {total - 1} more)" if total > 1 else ""
    return Refusal(code, first + more, errors=errors, total=total)


def failure_of(refusal: Refusal) -> Failure:
    """Store a refusal with a batch: the item's own error."""
    return Failure(code=refusal.code, detail=clean(refusal.detail), errors=refusal.errors)


def respond(refusal: Refusal, request_id: str) -> Response:
    """Write a problem."""
    kind = refusal.kind
    truncated = refusal.total is not None and refusal.total > MAX_ERRORS
    problem = Problem(
        type=f"/problems/{refusal.code}",
        title=kind.title,
        status=kind.status,
        detail=clean(refusal.detail),
        instance=f"urn:brenier:request:{request_id}",
        errors=refusal.errors,
        truncated=truncated,
        total=refusal.total if truncated else None,
        retry=refusal.retry,
        incident=refusal.incident,
    )
    body = orjson.dumps(problem.model_dump(exclude_none=True))
    headers = {"Cache-Control": "no-store", **refusal.headers}
    return Response(body, kind.status, headers=headers, media_type=MEDIA)


def refuse(request: Request, refusal: Refusal) -> Response:
    """Answer a request with a problem."""
    return respond(refusal, request.scope["state"]["request_id"])


async def _refused(request: Request, error: Any) -> Response:
    return refuse(request, error)


async def _query(request: Request, error: Any) -> Response:
    found = query_errors(error.errors())
    return refuse(request, Refusal("validation", found[0].message, errors=found, total=len(found)))


async def _http(request: Request, error: Any) -> Response:
    path = request.url.path
    if error.status_code == 405:
        allowed = ", ".join(sorted(_methods(request)))
        detail = f"{request.method} is not offered at {path}; use {allowed}"
        return refuse(request, Refusal("method-not-allowed", detail, headers={"Allow": allowed}))
    if error.status_code == 404:
        return refuse(request, _missing(path))
    return refuse(request, Refusal("bad-request", str(error.detail)))


def _methods(request: Request) -> set[str]:
    """Collect what all routes of an address offer; files (mounts) can only be read."""
    found: set[str] = set()
    for route in request.app.routes:
        if isinstance(route, Route) and re.fullmatch(route.path_regex, request.scope["path"]):
            found |= route.methods or set()
    return found | {"GET", "HEAD"} if "GET" in found or not found else found


_RESOURCES = {"jobs", "arrays", "datasets", "routines"}


def _missing(path: str) -> Refusal:
    parts = path.split("/")[1:]
    if len(parts) in (3, 4) and parts[0] == "v1" and parts[1] not in _RESOURCES and parts[2]:
        return no_such_routine(f"{parts[1]}.{parts[2]}")
    return Refusal("not-found", f"there is nothing at {path[:200]}; /openapi.json lists what is")


def no_such_routine(name: str) -> Refusal:
    """Refuse a routine that nobody registered."""
    return Refusal("no-such-routine", f"no routine {name[:100]}; GET /v1/routines lists them")


async def _store_away(request: Request, error: Any) -> Response:
    log.warning("the store cannot be reached: %s", error)
    return refuse(request, later("broker-unavailable", "the store cannot be reached right now", 2))


async def _store_full(request: Request, error: Any) -> Response:
    log.warning("the store is full: %s", error)
    return refuse(request, later("queue-full", "the store's memory is used up; try later", 5))


Handler = Callable[[Request, Any], Awaitable[Response]]
HANDLERS: dict[type[Exception], Handler] = {
    Refusal: _refused,
    RequestValidationError: _query,
    HTTPException: _http,
    StoreAway: _store_away,
    StoreSlow: _store_away,
    StoreFull: _store_full,
}


def install(app: FastAPI) -> None:
    """Answer every exception of the table with a problem."""
    for kind, handler in HANDLERS.items():
        app.add_exception_handler(kind, handler)
