"""Arrays as resources: uploaded once, named by a digest of their bytes, fetched as .npy or JSON."""

import asyncio
import re

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import TypeAdapter, ValidationError

from api import npy, openapi
from api.answers import array_json, immutable, matches, npy_bytes, reference_to
from api.body import LARGE, json_value, media_of, receive
from api.gateway import Gateway
from api.negotiate import JSON, NPY, choose
from api.problems import Refusal, invalid
from schemas.arrays import ArrayRef, Shelf
from schemas.facts import DIGEST, Stored, stored

OCTETS = "application/octet-stream"
READ = (NPY, OCTETS, JSON)


ARRAY = TypeAdapter(ArrayRef)


def router(gate: Gateway) -> APIRouter:
    """Offer upload and download."""
    found = APIRouter(prefix="/v1/arrays", tags=["arrays"], default_response_class=Response)

    @found.post("", status_code=201, **openapi.UPLOAD_ARRAY)
    async def post_array(request: Request) -> Response:
        media, _ = media_of(request, READ)
        settings = gate.settings
        limit = settings.json_limit if media == JSON else settings.upload_limit
        raw = await receive(request, limit, settings.body_timeout_s)
        item = await _from_json(gate, raw) if media == JSON else await _from_npy(raw)
        known = await gate.do(gate.ledger.facts([item.digest]))
        await gate.do(gate.ledger.put([item]))
        body = reference_to(item.digest, item.array)
        headers = {"Location": body["href"], "Cache-Control": "no-store"}
        return Response(orjson.dumps(body), 200 if known else 201, headers, JSON)

    @found.get("/{digest}", **openapi.DOWNLOAD_ARRAY)
    async def get_array(request: Request, digest: str) -> Response:
        name = checked(digest, "array")
        media = choose(request.headers.get("accept"), [NPY, JSON])
        headers = immutable(f"{name} {media}")
        if matches(request.headers.get("if-none-match"), headers["ETag"]):
            await _told(gate, name, headers)  # `*` matches whatever there is, not what is missing
            return Response(status_code=304, headers=headers)
        if media == NPY and request.scope["state"]["head"]:
            return await _told(gate, name, headers)
        item = (await gate.do(gate.ledger.get([name]))).get(name)
        if item is None:
            raise missing(name, "array")
        if media == NPY:
            return Response(await npy_bytes(item.array), headers=headers, media_type=NPY)
        text = array_json(name, item.array, gate.settings.answer_limit)
        return Response(text, headers=headers, media_type=JSON)

    return found


def checked(digest: str, what: str) -> str:
    """Let through what looks like a digest; the answer to others is that of unknown ones."""
    if not re.fullmatch(DIGEST, digest):
        raise missing(digest, what)
    return digest


def missing(digest: str, what: str) -> Refusal:
    """Refuse a digest that is not stored (any more)."""
    return Refusal("not-found", f"no {what} {digest[:80]}: never uploaded, or dropped since")


async def _told(gate: Gateway, name: str, headers: dict[str, str]) -> Response:
    """Answer HEAD without fetching the entries."""
    facts = (await gate.do(gate.ledger.facts([name]))).get(name)
    if facts is None:
        raise missing(name, "array")
    length = {"Content-Length": str(npy.size(facts.dtype, facts.shape))}
    return Response(headers=headers | length, media_type=NPY)


async def _from_npy(raw: bytes) -> Stored:
    try:
        return await asyncio.to_thread(_read, raw) if len(raw) > LARGE else _read(raw)
    except npy.NotNpy as error:
        raise Refusal("validation", str(error)) from None


def _read(raw: bytes) -> Stored:
    return stored(npy.parse(raw))


async def _from_json(gate: Gateway, raw: bytes) -> Stored:
    value, shelf = await json_value(raw, gate.aside), Shelf()
    try:
        reference = ARRAY.validate_python(value, context={"shelf": shelf})
    except ValidationError as error:
        raise invalid(error, None) from None
    return shelf.staged[reference.digest]
