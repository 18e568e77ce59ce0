"""What tests of several kinds share: a real store, a real gateway, a whole running service."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
import uvicorn
from hypothesis import settings as laws

from api.main import build
from schemas.settings import Settings
from tests.axes import check_again
from workers.embedded import EmbeddedStore
from workers.port import Claim, Ledger, Store

PATIENCE_S = 60.0

# One commit, one verdict: the same examples on every run. `make laws` draws others.
laws.register_profile("same", derandomize=True, database=None)
laws.register_profile("new", derandomize=False)
laws.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


def pytest_runtest_setup() -> None:
    """Check the axes of each function in each test."""
    check_again()


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Run one store for all tests; each test that uses it finds it empty (see `empty`)."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("store"))
    with EmbeddedStore(settings) as server:
        yield settings.model_copy(update={"redis_url": f"unix://{server.socket}?db=0"})


@pytest.fixture
def empty(store: Settings) -> Iterator[redis.Redis]:
    """Empty the store."""
    with redis.Redis.from_url(store.store_url) as raw:
        raw.flushall()
        yield raw


@contextmanager
def serving(settings: Settings) -> Iterator[httpx.Client]:
    """Serve a gateway from a thread of this process: real HTTP, and seen by coverage."""
    config = uvicorn.Config(build(settings), port=0, log_level="warning", server_header=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join(PATIENCE_S)


@pytest.fixture(scope="session")
def shared_gateway(store: Settings) -> Iterator[httpx.Client]:
    """Serve one gateway with default settings for all tests."""
    with serving(store) as client:
        yield client


@pytest.fixture
def http(shared_gateway: httpx.Client, empty: redis.Redis) -> httpx.Client:
    """Speak to a gateway whose store is empty."""
    return shared_gateway


@dataclass(frozen=True)
class Hand:
    """Does by hand what a worker does, so that tests decide when and how jobs end."""

    settings: Settings
    link: Store

    @staticmethod
    def link_to(settings: Settings) -> Store:
        return Store(settings)

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.settings)

    def take(self, job: str) -> Claim:
        claim = self.link.do(self.ledger.claim(job, "hand"))
        assert claim is not None
        return claim

    def finish(self, job: str, result: bytes = b"{}", **more: Any) -> Claim:
        """Take a job and let it succeed."""
        claim = self.take(job)
        assert self.link.do(self.ledger.finish(claim, "succeeded", result=result, **more))
        return claim

    def fail(self, job: str, failure: Any) -> None:
        """Take a job and let it fail."""
        assert self.link.do(self.ledger.finish(self.take(job), "failed", failure=failure))

    def later(self, act: Callable[[], Any], seconds: float = 0.1) -> threading.Thread:
        """Do something while a request waits."""
        thread = threading.Timer(seconds, act)
        thread.start()
        return thread


@pytest.fixture
def hand(store: Settings) -> Hand:
    """Be the worker."""
    return Hand(store, Store(store))


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Run store, worker and gateway as `brenier up` does, in processes of their own."""
    home = tmp_path_factory.mktemp("service")
    settings = Settings(data_dir=home / "data")
    log = home / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "workers.up", "--port", "0"],
            env=settings.environment(), stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        with httpx.Client(base_url=_address(log, process), timeout=PATIENCE_S) as client:
            yield client
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(PATIENCE_S)
        finally:
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)


def _address(log: Path, process: subprocess.Popen[bytes]) -> str:
    """Wait until the service says that it is ready, and where."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and process.poll() is None:
        found = re.search(r"http://[\w.:]+", log.read_text())
        if found:
            return found[0]
        time.sleep(0.05)
    raise AssertionError(f"the service did not start: {log.read_text()[-4000:]}")
