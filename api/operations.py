"""What operators ask: alive, ready, how much, which version."""

import asyncio
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import orjson
from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from redis.exceptions import RedisError

from api import openapi
from api.gateway import Gateway
from api.negotiate import JSON
from api.problems import Refusal
from schemas.registry import ROUTINES
from workers.port import Health

PING_S = 1.0
FRESH = {"Cache-Control": "no-store"}


def installed() -> str:
    """Return the version of the package; that of a bare checkout is not known."""
    try:
        return version("brenier")
    except PackageNotFoundError:
        return "0+checkout"


class QueueMetrics(Collector):
    """The queue and the workers, as the store had them when the metrics were asked for."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Join the registry of one gateway."""
        self.health: Health | None = None
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Write what was seen last."""
        if self.health is None:
            return
        seen, counters = self.health, self.health.counters
        yield GaugeMetricFamily("queue_depth", "Jobs that wait.", seen.queued)
        yield GaugeMetricFamily("jobs_running", "Jobs in workers' hands.", seen.running)
        yield GaugeMetricFamily("queue_oldest_seconds", "Age of the oldest job.", seen.oldest_s)
        yield GaugeMetricFamily("store_memory_bytes", "Memory of the store.", seen.memory)
        yield GaugeMetricFamily("workers_alive", "Workers heard of lately.", len(seen.workers))
        age = max(seen.workers.values(), default=0.0)
        yield GaugeMetricFamily("worker_heartbeat_age_seconds", "Longest silence.", age)
        yield CounterMetricFamily("jobs_submitted", "Jobs queued.", counters.get("submitted", 0))
        again = counters.get("redelivered", 0)
        yield CounterMetricFamily("jobs_redelivered", "Jobs queued again.", again)
        ended = CounterMetricFamily("jobs_finished", "Jobs that ended.", labels=["status"])
        for status in ("succeeded", "failed", "cancelled"):
            ended.add_metric([status], counters.get(status, 0))
        yield ended


def router(gate: Gateway) -> APIRouter:
    """Offer the addresses of operations."""
    found = APIRouter(tags=["operations"], default_response_class=Response)
    metrics = QueueMetrics(gate.registry)
    versions = {routine.name: routine.version for routine in ROUTINES.values()}

    @found.get("/healthz", **openapi.plain("healthz", "Tell whether this process is alive"))
    async def healthz() -> Response:
        return Response(b'{"status":"ok"}', headers=FRESH, media_type=JSON)

    @found.get("/readyz", **openapi.plain("readyz", "Tell whether jobs can be done"))
    async def readyz() -> Response:
        workers = await _workers(gate)
        body = orjson.dumps({"status": "ready", "workers": workers})
        return Response(body, headers=FRESH, media_type=JSON)

    @found.get("/metrics", **openapi.METRICS)
    async def get_metrics(request: Request) -> Response:
        metrics.health = await gate.do(gate.ledger.health())
        text = generate_latest(gate.registry)
        return Response(text, headers=FRESH, media_type=CONTENT_TYPE_LATEST)

    @found.get("/version", **openapi.plain("version", "Tell what is running"))
    async def get_version() -> Response:
        body = orjson.dumps({"version": installed(), "api": "v1", "routines": versions})
        return Response(body, media_type=JSON)

    return found


async def _workers(gate: Gateway) -> int:
    """Count the workers that are alive.

    Raises:
        Refusal: not-ready, listing what failed.
    """
    retry = {"Retry-After": "2"}
    try:
        async with asyncio.timeout(PING_S):
            alive = len((await gate.do(gate.ledger.health())).workers)
    except (RedisError, OSError, TimeoutError):
        raise Refusal("not-ready", "the store does not answer", headers=retry) from None
    if alive == 0:
        raise Refusal("not-ready", "no worker is alive: jobs would wait", headers=retry)
    return alive
