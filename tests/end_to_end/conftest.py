"""A whole service in processes of its own: supervisor, store, workers, gateway."""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from schemas.arrays import Shelf
from schemas.registry import ROUTINES
from schemas.settings import Settings
from workers.port import Ledger, Question, Store

LEASE_S = 1.0
GRACE_S = 1.0
# so small that only the deadline ends it, and a tolerance that the question's check lets pass
ENDLESS = {"epsilon": 1e-4, "tol": 1e-12, "max_iter": 10_000_000}
COST = np.random.default_rng(0).random((120, 120)).tolist()


@dataclass
class House:
    """A running supervisor, and a short way to its queue."""

    settings: Settings
    process: subprocess.Popen[bytes]
    log: Path

    def __post_init__(self) -> None:
        self.ledger, self.store = Ledger(self.settings), Store(self.settings)
        self.raw = redis.Redis.from_url(self.settings.store_url, decode_responses=True)

    def submit(self, *, timeout_s: float = 0.05, fresh: bool = True) -> str:
        """Queue a computation that takes `timeout_s` seconds, whatever the machine."""
        asked = {"geometry": {"kind": "cost", "C": COST}, "timeout_s": timeout_s, **ENDLESS}
        return self.ask("transport.sinkhorn", asked, fresh=fresh)

    def ask(self, name: str, asked: dict[str, Any], *, fresh: bool = True) -> str:
        """Queue a question."""
        shelf = Shelf()
        request = ROUTINES[name].request.model_validate(asked, context={"shelf": shelf})
        text = request.model_dump_json(context={"names_only": True}).encode()
        question = Question(name, "1", "solve", text, secrets.token_hex(8), fresh=fresh)
        return self.store.do(self.ledger.submit("t", question, shelf.staged.values())).job

    def record(self, job: str) -> Any:
        return self.store.do(self.ledger.job("t", job))

    def answer(self, job: str) -> dict[str, Any]:
        _, key = self.store.do(self.ledger.result("t", job))
        return json.loads(self.store.do(self.ledger.blob(key)) or b"null")

    def until(self, job: str, status: str, within_s: float, attempt: int = 0) -> float:
        """Wait for a state; return the seconds that it took."""
        began = time.monotonic()

        def there() -> bool:
            record = self.record(job)
            return record.status == status and record.attempt >= attempt

        eventually(there, within_s, lambda: f"{self.record(job)}\n{self.log.read_text()[-4000:]}")
        return time.monotonic() - began

    def owner(self, job: str) -> int:
        """Return the process of the pool that took a job last."""
        return int(self.raw.hget(f"{self.ledger.prefix}job:{job}", "worker").split("@")[0])

    def counters(self) -> dict[str, int]:
        return {k: int(v) for k, v in self.raw.hgetall(f"{self.ledger.prefix}counters").items()}

    def pids(self, name: str) -> list[int]:
        """List the processes that the supervisor started under a name, oldest first."""
        lines = self.log.read_text().splitlines()
        started = [line for line in lines if line.startswith(f"brenier: {name} started (pid ")]
        return [int(line.split("(pid ")[1].split(")")[0]) for line in started]

    def warm(self, workers: int) -> None:
        """Wait until so many workers take jobs at once."""

        def shared() -> bool:
            jobs = [self.submit(timeout_s=0.4) for _ in range(workers)]
            for job in jobs:
                self.until(job, "succeeded", 40)
            return len({self.owner(job) for job in jobs}) == workers

        eventually(shared, 60, self.log.read_text)


def eventually(
    holds: Callable[[], Any], within_s: float, explain: Callable[[], str] = lambda: ""
) -> Any:
    """Wait until something becomes true, and return it; the store may be away meanwhile."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            if found := holds():
                return found
        except redis.RedisError:
            pass
        assert time.monotonic() < deadline, f"not within {within_s} s: {explain()}"
        time.sleep(0.02)


def parent(pid: int) -> int:
    """Return the process that started another."""
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def ended(pid: int) -> bool:
    """Tell whether a process has ended (one that nobody waits for stays as a zombie)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def open_house(home: Path, *, workers: int, options: tuple[str, ...] = (), **more: Any) -> House:
    """Start a supervisor; the caller stops it."""
    settings = Settings(
        data_dir=home / "data", workers=workers, lease_s=LEASE_S, watch_every_s=0.1, **more
    )
    log = home / "log"
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "workers.up", "--port", "0", *options],
            env=settings.environment(), stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip
    house = House(settings, process, log)
    eventually(house.raw.ping, 20, log.read_text)
    return house


def close_house(house: House) -> int:
    """Ask the supervisor to stop, and see to it that it does."""
    if house.process.poll() is None:
        house.process.send_signal(signal.SIGTERM)
    try:
        return house.process.wait(60)
    finally:
        if house.process.poll() is None:
            os.kill(house.process.pid, signal.SIGKILL)
            house.process.wait()
        house.raw.close()
        house.store.close()


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """Open a house with two workers for the tests of one file."""
    opened = open_house(tmp_path_factory.mktemp("house"), workers=2, cancel_grace_s=GRACE_S)
    try:
        yield opened
    finally:
        code = close_house(opened)
    assert code == 0, opened.log.read_text()[-4000:]
