"""Jobs as resources: read one, list one's own, follow, fetch the result, cancel or forget."""

import re
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from api import openapi
from api.answers import Reader, answer, field_answer, no_such_job, settled
from api.events import stream
from api.gateway import Gateway, tenant_of
from api.negotiate import JSON
from api.problems import Refusal, no_such_routine
from schemas.jobs import LIVE, JobList, JobRecord, State
from schemas.registry import ROUTINES
from workers.port import JOB_ID

CURSOR = re.compile(r"(\d{1,15})-([0-9a-f]{32})")
PAGE = 200  # records read at a time
MAX_PAGES = 20  # after so many without enough matches the answer is a short page with a cursor

Wait = Annotated[
    float,
    Query(ge=0, allow_inf_nan=False, description="Seconds to wait for the end of the job."),
]
Limit = Annotated[int, Query(ge=1, le=200, description="Jobs on a page.")]
Status = Annotated[State | None, Query(description="Only jobs in this state.")]
OfRoutine = Annotated[str | None, Query(description="Only jobs of this routine.")]
Cursor = Annotated[str | None, Query(description="`next` of the page before.")]


def router(gate: Gateway) -> APIRouter:
    """Offer the addresses of jobs."""
    found = APIRouter(prefix="/v1/jobs", tags=["jobs"], default_response_class=Response)

    @found.get("", **openapi.reading("job_list", "List your jobs, newest first", JobList))
    async def list_jobs(
        request: Request,
        limit: Limit = 50,
        status: Status = None,
        routine: OfRoutine = None,
        cursor: Cursor = None,
    ) -> Response:
        page = await _page(gate, tenant_of(request), limit, status, routine, cursor)
        headers = {"Cache-Control": "no-store"}
        return Response(page.model_dump_json(), headers=headers, media_type=JSON)

    @found.get("/{id}", **openapi.reading("job_get", "Read the record of a job", JobRecord))
    async def get_job(request: Request, id: str, wait: Wait = 0) -> Response:
        seconds = min(wait, gate.settings.poll_cap_s)
        record, _ = await settled(gate, request, known_id(id), seconds)
        return _record(record, 200)

    @found.get("/{id}/events", **openapi.EVENTS)
    async def get_events(request: Request, id: str) -> Response:
        return await stream(gate, request, known_id(id))

    @found.get("/{id}/result", **openapi.RESULT)
    async def get_result(request: Request, id: str) -> Response:
        record, key = await settled(gate, request, known_id(id))
        return await answer(gate, record, key, _reader(request))

    @found.get("/{id}/result/{field}", **openapi.FIELD)
    async def get_field(request: Request, id: str, field: str) -> Response:
        record, key = await settled(gate, request, known_id(id))
        return await field_answer(gate, record, key, field, _reader(request))

    @found.delete("/{id}", status_code=202, **openapi.DELETE)
    async def delete_job(request: Request, id: str) -> Response:
        tenant, job = tenant_of(request), known_id(id)
        verdict = await gate.do(gate.ledger.cancel(tenant, job))
        if verdict == "gone":
            raise no_such_job()
        if verdict == "forgotten":
            return Response(status_code=204)
        record, _ = await settled(gate, request, job)
        return _record(record, 202)

    return found


def known_id(text: str) -> str:
    """Let through what looks like an id of ours; the answer to others is that of unknown ones."""
    if not JOB_ID.match(text):
        raise no_such_job()
    return text


def _reader(request: Request) -> Reader:
    return Reader(request, request.headers.get("if-none-match"))


def _record(record: JobRecord, status: int) -> Response:
    headers = {"Cache-Control": "no-store"}
    if record.status in LIVE:
        headers["Retry-After"] = "1"
    return Response(record.model_dump_json(), status, headers=headers, media_type=JSON)


async def _page(
    gate: Gateway,
    tenant: str,
    limit: int,
    status: State | None,
    routine: str | None,
    cursor: str | None,
) -> JobList:
    """Collect matching jobs, reading on until the page is full."""
    if routine is not None and routine not in ROUTINES:
        raise no_such_routine(routine)
    place, found = _place(cursor), list[JobRecord]()
    for _ in range(MAX_PAGES):
        jobs, place = await _older(gate, tenant, place)
        places = dict(jobs)
        for record in await gate.do(gate.ledger.records(tenant, list(places))):
            if _wanted(record, status, routine):
                found.append(record)
                if len(found) == limit:
                    return JobList(jobs=found, next=f"{places[record.id]}-{record.id}")
        if place is None:
            return JobList(jobs=found)
    return JobList(jobs=found, next=None if place is None else f"{place[0]}-{place[1]}")


def _wanted(record: JobRecord, status: State | None, routine: str | None) -> bool:
    return (
        record.kind != "render"
        and status in (None, record.status)
        and routine in (None, record.routine)
    )


def _place(cursor: str | None) -> tuple[int, str] | None:
    if cursor is None:
        return None
    match = CURSOR.fullmatch(cursor)
    if match is None:
        raise Refusal("validation", "cursor: send back `next` of the page before, unchanged")
    return int(match[1]), match[2]


async def _older(
    gate: Gateway, tenant: str, place: tuple[int, str] | None
) -> tuple[list[tuple[str, int]], tuple[int, str] | None]:
    """List the next ids with their times; ids of one millisecond are told apart by their order."""
    before = "" if place is None else str(place[0] + 1)
    scored = await gate.do(gate.ledger.jobs(tenant, before, PAGE))
    jobs = [(job, int(score)) for job, score in scored]
    last = (jobs[-1][1], jobs[-1][0]) if len(jobs) == PAGE else None
    if place is not None:
        jobs = [(job, at) for job, at in jobs if (at, job) < place]
    return jobs, last
