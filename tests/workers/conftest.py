"""A real store for the tests of the queue, and an empty corner of it for each test."""

import secrets
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pytest
import redis

from schemas.settings import Settings
from workers.embedded import EmbeddedStore
from workers.port import Call, Claim, Ledger, Question, Store, Submission

LEASE_S = 30.0


@dataclass(frozen=True)
class Queue:
    """A namespace of its own in the store, and the operations of both ends."""

    settings: Settings
    store: Store
    raw: redis.Redis

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.settings)

    def do(self, call: Call[Any]) -> Any:
        return self.store.do(call)

    def submit(self, name: str = "q", *, tenant: str = "t", **more: Any) -> Submission:
        return self.do(self.ledger.submit(tenant, question(name, **more)))

    def claim(self, job: str) -> Claim | None:
        return self.do(self.ledger.claim(job, "worker"))

    def take(self, name: str = "q", **more: Any) -> Claim:
        claim = self.claim(self.submit(name, **more).job)
        assert claim is not None
        return claim

    def record(self, job: str, tenant: str = "t") -> Any:
        return self.do(self.ledger.job(tenant, job))

    def fields(self, job: str) -> dict[bytes, bytes]:
        return self.raw.hgetall(f"{self.ledger.prefix}job:{job}")

    def lapse(self, job: str) -> None:
        """Let the lease of a running job end now."""
        self.raw.hset(f"{self.ledger.prefix}job:{job}", "lease", 0)
        self.raw.zadd(f"{self.ledger.prefix}idx:running", {job: 0}, xx=True)

    def reap(self) -> tuple[int, int]:
        self.raw.delete(f"{self.ledger.prefix}reaper")
        return self.do(self.ledger.reap("reaper"))

    def index(self, name: str) -> set[str]:
        return {k.decode() for k in self.raw.zrange(f"{self.ledger.prefix}idx:{name}", 0, -1)}

    def messages(self) -> int:
        return self.raw.llen(self.ledger.queue)

    def stored(self) -> set[str]:
        return {k.decode() for k in self.raw.keys(f"{self.ledger.prefix}*")}

    def but(self, **changes: Any) -> "Queue":
        return Queue(self.settings.model_copy(update=changes), self.store, self.raw)


def question(name: str = "q", **more: Any) -> Question:
    return Question("transport.sinkhorn", "1", "solve", b'{"seed":0}', name, **more)


def eventually(holds: Any, within_s: float = 5.0) -> Any:
    """Wait until something becomes true, and return it."""
    deadline = time.monotonic() + within_s
    while True:
        found = holds()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {within_s} s"
        time.sleep(0.02)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStore]:
    settings = Settings(data_dir=tmp_path_factory.mktemp("ledger"))
    with EmbeddedStore(settings) as store:
        yield store


@pytest.fixture
def queue(server: EmbeddedStore) -> Iterator[Queue]:
    settings = Settings(data_dir=server.home, namespace=f"t{secrets.token_hex(4)}", lease_s=LEASE_S)
    with redis.Redis.from_url(settings.store_url) as raw, closing(Store(settings)) as store:
        yield Queue(settings, store, raw)
