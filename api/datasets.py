"""Data files as resources: uploaded once, looked into aside, named by their SHA-256."""

import asyncio
import hashlib
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from api import openapi
from api.answers import immutable, matches
from api.arrays import OCTETS, checked, missing
from api.body import SAFETENSORS, media_of, receive
from api.files import NotData, inspect
from api.gateway import Gateway
from api.negotiate import H5AD, JSON, NPZ, choose
from api.problems import Refusal
from schemas.datasets import DatasetFacts
from schemas.samples import samples

READ = (OCTETS, H5AD, NPZ, "application/zip", "text/csv", "application/gzip", SAFETENSORS)


def router(gate: Gateway) -> APIRouter:
    """Offer upload and download."""
    found = APIRouter(prefix="/v1/datasets", tags=["datasets"], default_response_class=Response)

    @found.post("", status_code=201, **openapi.UPLOAD_DATASET)
    async def post_dataset(request: Request) -> Response:
        media_of(request, READ)
        raw = await receive(request, gate.settings.upload_limit, gate.settings.body_timeout_s)
        digest = await asyncio.to_thread(digest_of, raw)
        known = (await gate.do(gate.ledger.datasets([digest]))).get(digest)
        facts = DatasetFacts(**known) if known else await _inspected(gate, digest, raw)
        text = facts.model_dump_json().encode()
        await gate.do(gate.ledger.put_dataset(digest, text, raw))
        headers = {"Location": f"/v1/datasets/{digest}", "Cache-Control": "no-store"}
        return Response(text, 200 if known else 201, headers, JSON)

    @found.get("/{digest}", **openapi.DESCRIBE_DATASET)
    async def get_dataset(request: Request, digest: str) -> Response:
        name = checked(digest, "dataset")
        media = choose(request.headers.get("accept"), [JSON, OCTETS])
        known = (await gate.do(gate.ledger.datasets([name]))).get(name)
        if known is None:
            raise missing(name, "dataset")
        headers = immutable(f"{name} {media}")
        if matches(request.headers.get("if-none-match"), headers["ETag"]):
            return Response(status_code=304, headers=headers)
        if media == JSON:
            text = DatasetFacts(**known).model_dump_json()
            return Response(text, headers=headers, media_type=JSON)
        raw = await gate.do(gate.ledger.get_dataset(name))
        return Response(raw, headers=headers, media_type=OCTETS)

    return found


def digest_of(raw: bytes) -> str:
    """Name a file."""
    return "sha256:" + hashlib.sha256(raw).hexdigest()


async def put_samples(gate: Gateway) -> None:
    """Store the files that ship with the service, so that every example runs."""
    for digest, path in samples().items():
        raw = await asyncio.to_thread(path.read_bytes)
        known = await gate.do(gate.ledger.datasets([digest]))
        found = known.get(digest) or await asyncio.to_thread(_sample_facts, digest, raw)
        await gate.do(gate.ledger.put_dataset(digest, orjson.dumps(found), raw))


def _sample_facts(digest: str, raw: bytes) -> dict[str, Any]:
    """Look into a file of our own: no need to do it aside."""
    return DatasetFacts(digest=digest, bytes=len(raw), **inspect(raw)).model_dump()


async def _inspected(gate: Gateway, digest: str, raw: bytes) -> DatasetFacts:
    try:
        found = await gate.aside.run(inspect, raw)
    except NotData as error:
        raise Refusal("validation", str(error)) from None
    return DatasetFacts(digest=digest, bytes=len(raw), **found)
