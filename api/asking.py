"""From a body to a job: validate the question, name it by its digest, put it into the queue."""

import asyncio
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import orjson
from pydantic import BaseModel, Field, ValidationError

from api.gateway import Gateway
from api.problems import Refusal, failure_of, invalid, later
from schemas.arrays import Request, Shelf, Strict
from schemas.facts import MAX_DEPTH, Facts
from schemas.jobs import Kind
from schemas.routine import MAX_BATCH, Routine
from workers.port import Call, Question, Submission

NAMES_ONLY = {"names_only": True}
DIGEST_LENGTH = len("sha256:") + 64
MANY = 50  # problems of a batch from which on they are validated in a thread


class Problems(Strict):
    """The outside of a batch; its items are validated one by one."""

    problems: list[Any] = Field(min_length=1, max_length=MAX_BATCH)


@dataclass(frozen=True)
class Asked:
    """A valid question, and the arrays that came with it."""

    question: Question
    shelf: Shelf

    def having(self, **changes: Any) -> "Asked":
        """Add what the headers say."""
        return replace(self, question=replace(self.question, **changes))


async def question(
    gate: Gateway, tenant: str, routine: Routine, kind: Kind, value: Any, *, large: bool = False
) -> Asked:
    """Validate a body against the routine.

    Raises:
        Refusal: validation, with pointers; problem-too-large.
    """
    shelf = await _shelf(gate, value)
    large = large or _count(value) > MANY
    work = (routine, kind, value, shelf, gate.settings.memory_limit)
    request = await asyncio.to_thread(_request, *work) if large else _request(*work)
    return Asked(_named(tenant, routine, kind, request, shelf), shelf)


async def submit(gate: Gateway, tenant: str, asked: Asked) -> Submission:
    """Queue a question, or find the job that answers it already.

    Raises:
        Refusal: queue-full; idempotency-conflict.
    """
    call = gate.ledger.submit(tenant, asked.question, asked.shelf.staged.values())
    submission = await gate.do(call)
    if submission.verdict == "full":
        raise later("queue-full", f"{gate.settings.queue_limit} jobs are waiting; try later", 5)
    if submission.verdict == "conflict":
        raise Refusal(
            "idempotency-conflict",
            f"this Idempotency-Key belongs to another request, answered by job {submission.job}; "
            "use a new key for a new request",
        )
    return submission


def rendering(tenant: str, routine: Routine, job: str, media: str) -> Question:
    """Ask for a picture of a result, or for the result as a data file."""
    body = orjson.dumps({"job": job, "media": media}, option=orjson.OPT_SORT_KEYS)
    return _named(tenant, routine, "render", body, Shelf())


def _named(tenant: str, routine: Routine, kind: Kind, body: bytes, shelf: Shelf) -> Question:
    """Name a question by everything that its answer depends on."""
    name = orjson.dumps([routine.name, routine.version, kind, tenant, orjson.Fragment(body)])
    return Question(
        routine=routine.name,
        version=routine.version,
        kind=kind,
        request=body,
        digest="sha256:" + hashlib.sha256(name).hexdigest(),
        arrays=(*shelf.known, *shelf.staged),
        datasets=tuple(shelf.datasets),
    )


def _request(routine: Routine, kind: Kind, value: Any, shelf: Shelf, limit: int) -> bytes:
    if kind == "batch":
        items = _validated(Problems, value, shelf).problems
        dumped: Any = {"items": [_item(routine, i, v, shelf, limit) for i, v in enumerate(items)]}
    elif kind == "vjp" and routine.vjp is not None:
        asked = _validated(routine.vjp, value, shelf)
        dumped = _fitting(asked, asked.request, limit)
    else:
        asked = _validated(routine.request, value, shelf)
        dumped = _fitting(asked, asked, limit)
    return orjson.dumps(dumped, option=orjson.OPT_SORT_KEYS)


def _item(routine: Routine, index: int, value: Any, shelf: Shelf, limit: int) -> dict[str, Any]:
    try:
        asked = _validated(routine.request, value, shelf, ("problems", index))
        return {"request": _fitting(asked, asked, limit)}
    except Refusal as refusal:
        return {"error": failure_of(refusal).model_dump()}


def _validated(model: type[Any], value: Any, shelf: Shelf, at: tuple[str | int, ...] = ()) -> Any:
    try:
        return model.model_validate(value, context={"shelf": shelf})
    except ValidationError as error:
        raise invalid(error, model, at) from None


def _fitting(model: BaseModel, request: Request, limit: int) -> dict[str, Any]:
    need = request.footprint()
    if need > limit:
        raise Refusal(
            "problem-too-large",
            f"this needs about {need} bytes of working memory; one job may use {limit}"
            + (f"; {request.smaller}" if request.smaller else ""),
        )
    return model.model_dump(mode="json", context=NAMES_ONLY)


async def _shelf(gate: Gateway, value: Any) -> Shelf:
    """Look up everything that a body names by digest, in one round trip."""
    digests = list(dict.fromkeys(digests_in(value)))
    if not digests:
        return Shelf()
    arrays, datasets = gate.ledger.facts(digests), gate.ledger.datasets(digests)
    half = len(digests)

    def read(replies: list[Any]) -> tuple[dict[str, Facts], dict[str, dict[str, Any]]]:
        return arrays.read(replies[:half]), datasets.read(replies[half:])

    known, files = await gate.do(Call([*arrays.commands, *datasets.commands], read))
    return Shelf(known=known, datasets=files)


def digests_in(value: Any) -> Iterator[str]:
    """Find the strings that look like digests; refuse values that are nested too deep."""
    level, depth = [value], 0
    while level:
        if depth > MAX_DEPTH:
            raise Refusal("invalid-json", f"nested more than {MAX_DEPTH} deep")
        yield from (v for v in level if isinstance(v, str) and _like_a_digest(v))
        level, depth = [inner for v in level for inner in _inside(v)], depth + 1


def _like_a_digest(text: str) -> bool:
    return len(text) == DIGEST_LENGTH and text.startswith("sha256:")


def _inside(value: Any) -> Iterable[Any]:
    """List what may hold digests: of a list of numbers nothing, told by its first entry."""
    if isinstance(value, dict):
        return value.values()
    told = isinstance(value, list) and value and isinstance(value[0], str | dict | list)
    return value if told else ()


def _count(value: Any) -> int:
    problems = value.get("problems") if isinstance(value, dict) else None
    return len(problems) if isinstance(problems, list) else 0
