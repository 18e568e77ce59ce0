"""What operators see; what the gateway loads; the helper process; news from the store."""

import asyncio
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError
from typing import Any

import httpx
import pytest
import redis

from api import aside, operations
from api.aside import Aside
from api.problems import Refusal
from api.wakeups import Wakeups
from schemas.settings import Settings
from tests.api.questions import ask, problem
from tests.conftest import Hand
from workers.port import AsyncStore, Ledger


def test_health_asks_nobody(http: httpx.Client) -> None:
    assert http.get("/healthz").json() == {"status": "ok"}


def test_ready_with_a_worker(http: httpx.Client, hand: Hand) -> None:
    response = http.get("/readyz")
    assert "no worker" in problem(response, 503, "not-ready")["detail"]
    hand.link.do(hand.ledger.alive("w", warm=True))
    assert http.get("/readyz").json() == {"status": "ready", "workers": 1}


def test_version_of_a_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(operations, "version", missing)
    assert operations.installed() == "0+checkout"


def test_version(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    assert http.get("/version").json()["routines"]["transport.sinkhorn"] == "2"
    monkeypatch.setattr(operations, "version", lambda name: "1.2.3")
    assert http.get("/version").json()["version"] == "1.2.3"


def metrics(http: httpx.Client) -> dict[str, float]:
    lines = [line for line in http.get("/metrics").text.splitlines() if line[0] != "#"]
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines}


def test_metrics(http: httpx.Client, hand: Hand) -> None:
    before = metrics(http)
    hand.finish(ask(http).json()["id"])
    ask(http, Cache_Control="no-cache")
    http.get("/nowhere")
    hand.link.do(hand.ledger.alive("w", warm=True))
    found = metrics(http)
    assert found["queue_depth"] == 1
    assert found["jobs_submitted_total"] == 2
    assert found['jobs_finished_total{status="succeeded"}'] == 1
    assert found["workers_alive"] == 1
    assert 0 <= found["worker_heartbeat_age_seconds"] < 15
    asked = 'http_requests_total{method="POST",route="/v1/transport/sinkhorn",status="202"}'
    assert found[asked] - before.get(asked, 0) == 2
    assert found['http_requests_total{method="any",route="none",status="404"}'] >= 1


def test_nothing_is_collected_before_the_store_was_asked() -> None:
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    operations.QueueMetrics(registry)
    assert generate_latest(registry) == b""


def run(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_gateway_is_light() -> None:
    heavy = ["torch", "scipy", "matplotlib", "anndata", "algorithms", "brenier", "celery", "h5py"]
    code = f"""
import sys, time, resource
import api.main
used = resource.getrusage(resource.RUSAGE_SELF)
print([m for m in {heavy!r} if m in sys.modules], used.ru_utime + used.ru_stime)
"""
    loaded, seconds = run(code).rsplit(" ", 1)
    assert loaded == "[]"
    assert float(seconds) < 1.5


def test_the_helper_process_is_lighter() -> None:
    code = "import sys, api.settle, api.json_text, api.files\nprint('fastapi' in sys.modules)"
    assert run(code).strip() == "False"


def kill(raw: bytes) -> None:
    import os

    os._exit(3)


def test_an_input_that_kills_the_helper_is_refused() -> None:
    async def main() -> bytes:
        helper = Aside()
        try:
            with pytest.raises(Refusal, match="too much"):
                await helper.run(kill, b"")
            return await helper.run(bytes, b"x")
        finally:
            helper.close()

    assert asyncio.run(main()) == b"x"


def test_an_input_that_takes_for_ever_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        helper = Aside()
        helper.warm()
        await helper.run(bytes, b"")
        monkeypatch.setattr(aside, "PATIENCE_S", 0.1)
        with pytest.raises(Refusal, match="too much"):
            await helper.run(_sleep, b"")

    asyncio.run(main())


def _sleep(raw: bytes) -> None:
    time.sleep(30)


def test_news_reach_only_who_asked(store: Settings, empty: redis.Redis) -> None:
    async def main() -> list[bool]:
        link, ledger = AsyncStore(store), Ledger(store)
        wakeups = Wakeups(link, ledger)
        task = asyncio.create_task(wakeups.run())
        try:
            await asyncio.sleep(0.1)
            with wakeups.listen("a") as first, wakeups.listen("a", ends_only=True) as last:
                await link.redis.publish(ledger.channel("b"), "succeeded")
                await link.redis.publish(ledger.channel("a"), "running")
                return [await timed(bell.wait(0.3)) < 0.25 for bell in (first, last)]
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await link.close()

    assert asyncio.run(main()) == [True, False]


async def timed(waiting: Any) -> float:
    began = time.monotonic()
    await waiting
    return time.monotonic() - began


def test_a_new_subscription_wakes_everybody(store: Settings) -> None:
    async def main() -> float:
        wakeups = Wakeups(AsyncStore(store), Ledger(store))
        with wakeups.listen("a") as bell:
            wakeups._ring_all()
            return await timed(bell.wait(5))

    assert asyncio.run(main()) < 1


def test_old_news_are_forgotten(store: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.wakeups.REMEMBERED", 2)
    wakeups = Wakeups(AsyncStore(store), Ledger(store))
    for job in ("a", "b", "c"):
        channel = Ledger(store).channel(job).encode()
        wakeups._hear({"channel": channel, "data": b"failed"})
    assert list(wakeups._ended) == ["b", "c"]
