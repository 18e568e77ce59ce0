"""The life of a job as server-sent events: status, progress, done.

    id: 2000000000042        grows with attempt, state and iteration; the same at every gateway
    event: progress
    data: {...the job record...}

A client that comes back with Last-Event-ID gets what is newer than that, from the record.

References:
    https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import time
from collections.abc import AsyncIterator

from fastapi import Request, Response
from starlette.responses import StreamingResponse

from api.answers import settled
from api.gateway import Gateway, tenant_of
from api.wakeups import RECHECK_S
from schemas.jobs import LIVE, JobRecord

MEDIA = "text/event-stream"
PING_S = 15.0
ITERATIONS = 10**12  # ids: attempts are so far apart
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def number(record: JobRecord) -> int:
    """Number a moment of a job: later moments have greater numbers."""
    if record.status == "running":
        iteration = record.progress.iteration if record.progress else 0
        return 2 * record.attempt * ITERATIONS + min(iteration, ITERATIONS - 1)
    ended = 0 if record.status in LIVE else ITERATIONS // 2
    return (2 * record.attempt + 1) * ITERATIONS + ended


async def stream(gate: Gateway, request: Request, job: str) -> Response:
    """Open the stream, or say that there will be nothing more (204: do not come back)."""
    tenant = tenant_of(request)
    record, _ = await settled(gate, request, job)
    text = request.headers.get("last-event-id", "")
    seen = int(text) if text.isdecimal() and len(text) < 20 else -1
    if record.status not in LIVE and number(record) <= seen:
        return Response(status_code=204)
    return StreamingResponse(_events(gate, tenant, job, seen), headers=HEADERS, media_type=MEDIA)


async def _events(gate: Gateway, tenant: str, job: str, seen: int) -> AsyncIterator[bytes]:
    status, sent = "", time.monotonic()
    with gate.wakeups.listen(job) as bell:
        while True:
            record = await gate.do(gate.ledger.job(tenant, job))
            if record is None:  # deleted meanwhile
                return
            if number(record) > seen:
                yield _event(record, status)
                seen, status, sent = number(record), record.status, time.monotonic()
            if record.status not in LIVE:
                return
            if time.monotonic() - sent >= PING_S:
                yield b": ping\n\n"
                sent = time.monotonic()
            await bell.wait(min(RECHECK_S, PING_S))


def _event(record: JobRecord, before: str) -> bytes:
    kind = "progress" if record.status == before else "status"
    kind = kind if record.status in LIVE else "done"
    text = f"id: {number(record)}\nevent: {kind}\ndata: {record.model_dump_json()}\n\n"
    return text.encode()
