"""The gateway: HTTP in front of the queue.

    uvicorn api.main:app --factory

A request passes api/headers.py (ids, headers, faults), api/keys.py (who asks), FastAPI's router,
and an endpoint; what goes wrong anywhere becomes a problem (api/problems.py).
"""

import asyncio
import gc
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

import orjson
from fastapi import FastAPI, Response
from redis.exceptions import RedisError
from starlette.staticfiles import StaticFiles

from api import arrays, catalogue, datasets, jobs, openapi, operations, pages, problems, routes
from api.gateway import Gateway
from api.headers import Edge, Traffic
from api.keys import Keys, check_exposed
from api.negotiate import JSON
from schemas.settings import Settings

log = logging.getLogger("brenier.gateway")
SAMPLES_S = 600.0
RARELY = 50_000, 20, 20  # of the objects of one large body none is garbage until it is answered
API_VERSION = "1.0.0"  # of the document: grows with what /v1 offers


def app() -> FastAPI:
    """Build the application that the environment describes."""
    settings = Settings()
    check_exposed(settings)
    return build(settings)


def build(settings: Settings) -> FastAPI:
    """Build an application; it opens its connections when it starts to serve."""
    gate = Gateway(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        async with gate.serving():
            pause = await _put_samples(gate)
            keeping = asyncio.create_task(_keep_samples(gate, pause))
            gc.freeze()  # what is there now stays: collections need not look at it
            gc.set_threshold(*RARELY)
            yield
            keeping.cancel()

    found = FastAPI(
        title="Brenier",
        version=API_VERSION,
        lifespan=lifespan,
        openapi_url=None,
        redirect_slashes=False,
    )
    found.add_middleware(Keys, settings=settings)
    found.add_middleware(Edge, traffic=Traffic(gate.registry))
    problems.install(found)
    for part in (operations, jobs, arrays, datasets, routes, catalogue, pages):
        found.router.routes += part.router(gate).routes  # flat: one scan finds any of them
    found.mount("/docs/assets", StaticFiles(directory=pages.assets()), name="assets")
    _describe(found, guarded=bool(settings.api_keys))
    return found


def _describe(found: FastAPI, *, guarded: bool) -> None:
    """Serve the OpenAPI document, generated when somebody first asks."""

    @cache
    def description() -> dict[str, Any]:
        return openapi.document(found, guarded)

    @cache
    def text() -> bytes:
        return orjson.dumps(description())

    async def serve() -> Response:
        return Response(text(), media_type=JSON)

    found.openapi = description
    found.add_api_route("/openapi.json", serve, include_in_schema=False, response_class=Response)


async def _put_samples(gate: Gateway) -> float:
    """Put the sample files into the store; return after how many seconds to do it again."""
    try:
        await datasets.put_samples(gate)
    except (RedisError, OSError) as error:
        log.warning("the samples could not be stored: %s", error)
        return 1.0
    return min(SAMPLES_S, gate.settings.retention_s / 3)


async def _keep_samples(gate: Gateway, pause: float) -> None:
    """Put the sample files into the store again before they expire."""
    while True:
        await asyncio.sleep(pause)
        pause = await _put_samples(gate)
