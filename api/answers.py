"""Results as answers: which state a job is in, which representation is wanted, how it is written.

The worker has stored the JSON answer as it is sent; binary forms are packed here from the arrays
that it names, pictures and data files are jobs of their own (kind `render`).
"""

import asyncio
import hashlib
import io
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from fastapi import Request, Response
from safetensors.numpy import save
from starlette.requests import ClientDisconnect

from api import npy
from api.asking import Asked, rendering, submit
from api.gateway import Gateway, tenant_of
from api.negotiate import JSON, NPY, NPZ, RENDERS, SAFETENSORS, choose, unacceptable
from api.problems import Refusal, failed, later
from api.wakeups import RECHECK_S
from schemas.arrays import Shelf
from schemas.jobs import LIVE, JobRecord
from schemas.registry import ROUTINES

LARGE = 1 << 20
PACKED = (SAFETENSORS, NPZ)


@dataclass(frozen=True)
class Reader:
    """Who reads a result, and how they want it."""

    request: Request
    known: str | None = None  # If-None-Match

    @property
    def accept(self) -> str | None:
        """Return the representations that are wished for."""
        return self.request.headers.get("accept")

    @property
    def tenant(self) -> str:
        """Return whose request this is."""
        return tenant_of(self.request)


async def settled(
    gate: Gateway, request: Request, job: str, seconds: float = 0, *, new: bool = False
) -> tuple[JobRecord, str]:
    """Read a job when it has ended, or when the time is over; also the key of its result.

    Raises:
        Refusal: no-such-job.
        ClientDisconnect: nobody waits any more; the job goes on.
    """
    until, tenant = time.monotonic() + seconds, tenant_of(request)
    with gate.wakeups.listen(job, ends_only=True) as bell:
        if new:  # just queued: there is nothing to read before the first news
            await bell.wait(min(RECHECK_S, seconds))
        while True:
            record, key = await gate.do(gate.ledger.result(tenant, job))
            if record is None:
                raise no_such_job()
            left = until - time.monotonic()
            if record.status not in LIVE or left <= 0:
                return record, key
            await bell.wait(min(RECHECK_S, left))
            if await request.is_disconnected():
                raise ClientDisconnect


def no_such_job() -> Refusal:
    """Refuse an id that is unknown, forgotten or somebody else's, all alike."""
    return Refusal("no-such-job", "there is no job with this id; GET /v1/jobs lists yours")


def offered(record: JobRecord) -> list[str]:
    """List the media types of a job's result."""
    renders = ROUTINES[record.routine].result.renders if record.kind == "solve" else ()
    return [JSON, *PACKED, *(RENDERS[name] for name in renders)]


def check_ended(record: JobRecord) -> None:
    """Let succeeded jobs pass.

    Raises:
        Refusal: what there is instead of a result.
    """
    match record.status:
        case "succeeded":
            return
        case "failed" if record.error is not None:
            raise failed(record.error)
        case "cancelled":
            raise Refusal("job-cancelled", "the job was cancelled; ask again for a new one")
        case "expired":
            raise _expired(record)
        case status:
            raise later("job-not-finished", f"the job is {status}; see {record.links.self}")


def _expired(record: JobRecord) -> Refusal:
    return Refusal(
        "result-expired",
        f"the result was kept until {record.expires_at}; ask the question again",
    )


async def answer(gate: Gateway, record: JobRecord, key: str, reader: Reader) -> Response:
    """Send the result of a job that has ended."""
    check_ended(record)
    if record.kind == "render":
        return await _drawn(gate, record, key, reader)
    media = choose(reader.accept, offered(record))
    if media not in (JSON, *PACKED):
        return await _rendered(gate, record, media, reader)
    headers = immutable(f"{key} {media}")
    if matches(reader.known, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    raw = await stored(gate, record, key)
    if media == JSON:
        if len(raw) > gate.settings.answer_limit:
            raise unacceptable(JSON, offered(record)[1:], f"{len(raw)} bytes are much for JSON")
        return Response(raw, headers=headers, media_type=JSON)
    return Response(await _packed(gate, record, raw, media), headers=headers, media_type=media)


async def stored(gate: Gateway, record: JobRecord, key: str) -> bytes:
    """Fetch what the worker has stored as the result."""
    raw = await gate.do(gate.ledger.blob(key))
    if raw is None:
        raise _expired(record)
    return raw


def immutable(name: str) -> dict[str, str]:
    """Name bytes that will not change."""
    return {
        "ETag": f'"{hashlib.sha256(name.encode()).hexdigest()}"',
        "Cache-Control": "private, max-age=86400, immutable",
        "Vary": "Accept",
    }


def matches(wanted: str | None, etag: str) -> bool:
    """Compare If-None-Match with an entity tag (RFC 9110, 13.1.2)."""
    if wanted is None:
        return False
    tags = (tag.strip().removeprefix("W/") for tag in wanted.split(","))
    return wanted.strip() == "*" or etag in tags


def arrays_of(value: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Walk the array references of an answer: dotted path, reference."""
    if isinstance(value, dict) and "digest" in value and "href" in value:
        yield path, value
        return
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    for name, inner in inside:
        if isinstance(inner, dict | list):
            yield from arrays_of(inner, f"{path}.{name}" if path else str(name))


async def fetch(
    gate: Gateway, record: JobRecord, references: dict[str, dict[str, Any]]
) -> dict[str, np.ndarray]:
    """Fetch arrays by path.

    Raises:
        Refusal: result-expired, when one is gone.
    """
    digests = list({r["digest"] for r in references.values()})
    found = await gate.do(gate.ledger.get(digests))
    if len(found) < len(digests):
        raise _expired(record)
    return {path: found[r["digest"]].array for path, r in references.items()}


async def _packed(gate: Gateway, record: JobRecord, raw: bytes, media: str) -> bytes:
    value = orjson.loads(raw)
    references = dict(arrays_of(value))
    arrays = {p: _inline(r, r.pop("values")) for p, r in references.items() if "values" in r}
    rest = {path: r for path, r in references.items() if path not in arrays}
    fetched = await fetch(gate, record, rest)
    arrays = {path: arrays[path] if path in arrays else fetched[path] for path in references}
    pack = as_safetensors if media == SAFETENSORS else as_npz
    text = orjson.dumps(value)
    if sum(a.nbytes for a in arrays.values()) > LARGE:
        return await asyncio.to_thread(pack, arrays, text)
    return pack(arrays, text)


def _inline(reference: dict[str, Any], values: Any) -> np.ndarray:
    """Read the entries that are in the answer itself: they are written so that none is rounded."""
    return np.array(values, reference["dtype"]).reshape(reference["shape"])


def as_safetensors(arrays: dict[str, np.ndarray], text: bytes) -> bytes:
    """Pack arrays; the rest of the answer is JSON text in the metadata entry `result`.

    Some readers of state dicts want to be told a `format`.
    """
    return save(arrays, {"format": "pt", "result": text.decode()})


def as_npz(arrays: dict[str, np.ndarray], text: bytes) -> bytes:
    """Pack arrays for `numpy.load`; the rest of the answer is the member `result.json`."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo("result.json"), text)
        for path, array in arrays.items():
            archive.writestr(zipfile.ZipInfo(f"{path}.npy"), npy.write(array))
    return file.getvalue()


async def _rendered(gate: Gateway, record: JobRecord, media: str, reader: Reader) -> Response:
    """Have a worker draw the result, or find the drawing that it has made before."""
    question = rendering(reader.tenant, ROUTINES[record.routine], record.id, media)
    submission = await submit(gate, reader.tenant, Asked(question, Shelf()))
    drawing, key = await settled(
        gate, reader.request, submission.job, gate.settings.wait_cap_s,
        new=submission.verdict == "created",
    )  # fmt: skip
    if drawing.status in LIVE:
        headers = {
            "Retry-After": "1",
            "Location": drawing.links.result,
            "Cache-Control": "no-store",
        }
        return Response(drawing.model_dump_json(), 202, headers=headers, media_type=JSON)
    check_ended(drawing)
    return await _picture(gate, drawing, key, media, reader)


async def _drawn(gate: Gateway, record: JobRecord, key: str, reader: Reader) -> Response:
    """Send a picture asked for by the id of its own job."""
    request = await gate.do(gate.ledger.request(reader.tenant, record.id))
    media = choose(reader.accept, [(request or {})["media"]])
    return await _picture(gate, record, key, media, reader)


async def _picture(
    gate: Gateway, drawing: JobRecord, key: str, media: str, reader: Reader
) -> Response:
    headers = immutable(f"{key} {media}")
    if matches(reader.known, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    raw = await stored(gate, drawing, key)
    return Response(raw, headers=headers, media_type=media)


async def field_answer(
    gate: Gateway, record: JobRecord, key: str, path: str, reader: Reader
) -> Response:
    """Send one field of a result: an array as .npy or JSON, anything else as JSON.

    A field that holds arrays can also be had as one file of them, named within the field: arrays
    by name, such as a state dict, come back under the names that they were sent with.

    Raises:
        Refusal: not-found, listing the fields.
    """
    check_ended(record)
    if record.kind == "render":
        raise Refusal("not-found", "a picture has no fields")
    value = orjson.loads(await stored(gate, record, key))
    references = dict(arrays_of(value))
    if path in references:
        return await _array_answer(gate, record, key, references[path], reader)
    found, inside = _at(value, path), any(p.startswith(f"{path}.") for p in references)
    media = choose(reader.accept, [JSON, *PACKED] if inside else [JSON])
    headers = immutable(f"{key} {path} {media}")
    if matches(reader.known, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    text = orjson.dumps(found)
    packed = text if media == JSON else await _packed(gate, record, text, media)
    return Response(packed, headers=headers, media_type=media)


async def _array_answer(
    gate: Gateway, record: JobRecord, key: str, reference: dict[str, Any], reader: Reader
) -> Response:
    media = choose(reader.accept, [NPY, JSON])
    headers = immutable(f"{reference['digest']} {media}")
    if matches(reader.known, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    array = (await fetch(gate, record, {"": reference}))[""]
    if media == NPY:
        return Response(await npy_bytes(array), headers=headers, media_type=NPY)
    body = array_json(reference["digest"], array, gate.settings.answer_limit)
    return Response(body, headers=headers, media_type=JSON)


async def npy_bytes(array: np.ndarray) -> bytes:
    """Write an array, off the loop when it is large."""
    return await asyncio.to_thread(npy.write, array) if array.nbytes > LARGE else npy.write(array)


def array_json(digest: str, array: np.ndarray, limit: int) -> bytes:
    """Write an array as JSON with its values.

    Raises:
        Refusal: not-acceptable, when it is large or JSON has no word for an entry.
    """
    if array.size * 8 > limit:
        raise unacceptable(JSON, [NPY], f"{array.size} numbers are much for JSON")
    if not np.isfinite(array).all():
        raise unacceptable(JSON, [NPY], "JSON cannot say NaN or infinity")
    values = array.tolist() if array.dtype == np.float16 else array
    body = {**reference_to(digest, array), "values": values}
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)


def reference_to(digest: str, array: np.ndarray) -> dict[str, Any]:
    """Refer to a stored array, as answers do."""
    return {
        "digest": digest,
        "dtype": array.dtype.name,
        "shape": list(array.shape),
        "href": f"/v1/arrays/{digest}",
    }


def _at(value: Any, path: str) -> Any:
    here = value
    for part in path.split("."):
        if isinstance(here, dict) and part in here:
            here = here[part]
        elif isinstance(here, list) and part.isdecimal() and int(part) < len(here):
            here = here[int(part)]
        else:
            names = ", ".join([*(value), *(p for p, _ in arrays_of(value) if "." in p)][:50])
            raise Refusal("not-found", f"no field {path[:100]} in this result; it has {names}")
    return here
