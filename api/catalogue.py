"""The catalogue of routines, as JSON: generated from the registry, written once."""

from functools import cache
from typing import Any

import orjson
from fastapi import APIRouter, Response

from api import openapi
from api.gateway import Gateway
from api.negotiate import JSON
from api.problems import no_such_routine
from schemas.registry import ROUTINES
from schemas.routine import MAX_BATCH, Routine
from schemas.settings import Settings

CACHED = {"Cache-Control": "public, max-age=300"}


def router(gate: Gateway) -> APIRouter:
    """Offer the list and the pages of routines."""
    found = APIRouter(prefix="/v1/routines", tags=["routines"], default_response_class=Response)
    everything = orjson.dumps({"routines": [_line(r) for r in ROUTINES.values()]})

    @cache
    def entry(name: str) -> bytes:
        return orjson.dumps(_entry(ROUTINES[name], gate.settings))

    @found.get("", **openapi.plain("routine_list", "List what can be asked"))
    async def list_routines() -> Response:
        return Response(everything, headers=CACHED, media_type=JSON)

    @found.get("/{name}", **openapi.plain("routine_get", "Describe a routine"))
    async def get_routine(name: str) -> Response:
        if name not in ROUTINES:
            raise no_such_routine(name)
        return Response(entry(name), headers=CACHED, media_type=JSON)

    return found


def _line(routine: Routine) -> dict[str, Any]:
    return {
        "name": routine.name,
        "version": routine.version,
        "summary": routine.summary,
        "href": f"/v1{routine.path}",
        "about": f"/v1/routines/{routine.name}",
    }


def _entry(routine: Routine, settings: Settings) -> dict[str, Any]:
    return {
        **_line(routine),
        "description": (routine.request.__doc__ or "").strip(),
        "request_schema": routine.request.model_json_schema(mode="validation"),
        "result_schema": routine.result.model_json_schema(mode="serialization"),
        "example": routine.example,
        "differentiable": {"outputs": routine.outputs, "inputs": routine.inputs},
        "renders": list(routine.result.renders),
        "limits": {
            "memory_bytes": settings.memory_limit,
            "json_bytes": settings.json_limit,
            "upload_bytes": settings.upload_limit,
            "batch": MAX_BATCH,
        },
    }
