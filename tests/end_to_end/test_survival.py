"""Nothing that is killed, stopped or restarted loses a job or ends one twice."""

import contextlib
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.end_to_end.conftest import GRACE_S, LEASE_S, House, ended, eventually, parent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]


def test_a_deadline_returns_the_best_answer_so_far(house: House) -> None:
    house.warm(2)
    job = house.submit(timeout_s=0.5)
    house.until(job, "succeeded", 5)
    answer = house.answer(job)
    assert answer["status"] == "interrupted"
    assert "deadline" in [warning["code"] for warning in answer["warnings"]]


def test_a_cancelled_job_stops_within_a_second_and_frees_its_worker(
    house: House, record_property: Callable[[str, object], None]
) -> None:
    house.warm(2)
    jobs = [house.submit(timeout_s=30) for _ in range(2)]
    for job in jobs:
        house.until(job, "running", 5)
    eventually(lambda: house.record(jobs[0]).progress, 5)
    assert house.store.do(house.ledger.cancel("t", jobs[0])) == "cancelling"
    record_property("cancel_s", house.until(jobs[0], "cancelled", 1))
    record_property("next_job_s", house.until(house.submit(), "succeeded", 1))
    house.store.do(house.ledger.cancel("t", jobs[1]))
    house.until(jobs[1], "cancelled", 1)


@pytest.mark.parametrize("how", ["cancel", "deadline"])
def test_a_routine_that_does_not_listen_is_ended(house: House, how: str) -> None:
    rng = np.random.default_rng(0)
    points = {"x": rng.random((6000, 2)).tolist(), "y": rng.random((6000, 2)).tolist()}
    geometry = {"kind": "points", **points}
    asked: dict[str, Any] = {"geometry": geometry, "method": "simplex"}  # one call, many seconds
    job = house.ask("transport.exact", asked | ({"timeout_s": 0.5} if how == "deadline" else {}))
    house.until(job, "running", 20)
    if how == "cancel":
        house.store.do(house.ledger.cancel("t", job))
    house.until(job, "cancelled" if how == "cancel" else "failed", GRACE_S + 5)
    record = house.record(job)
    assert record.attempt == 1
    assert how == "cancel" or record.error.code == "deadline-exceeded"
    house.until(house.submit(), "succeeded", 40)


def test_a_killed_workers_job_starts_again_elsewhere_and_ends_once(
    house: House, record_property: Callable[[str, object], None]
) -> None:
    house.warm(2)
    before = house.counters().get("succeeded", 0)
    job = house.submit(timeout_s=2)
    house.until(job, "running", 5)
    first = house.owner(job)
    os.kill(parent(first), signal.SIGKILL)
    record_property("restart_s", house.until(job, "running", LEASE_S + 2, attempt=2))
    assert house.owner(job) != first
    eventually(lambda: ended(first), 2)
    house.until(job, "succeeded", 5)
    assert house.record(job).attempt == 2
    assert house.counters()["succeeded"] == before + 1


def test_a_worker_that_is_asked_to_end_finishes_its_job(house: House) -> None:
    jobs = [house.submit(timeout_s=1.5) for _ in range(3)]
    house.until(jobs[0], "running", 20)
    worker = parent(house.owner(jobs[0]))
    os.kill(worker, signal.SIGTERM)
    for job in jobs:
        house.until(job, "succeeded", 40)
        assert house.record(job).attempt == 1
    eventually(lambda: ended(worker), 10)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_a_restarted_store_has_lost_nothing(house: House, signum: signal.Signals) -> None:
    before = house.counters()
    jobs = [house.submit(timeout_s=1.5), *(house.submit() for _ in range(4))]
    house.until(jobs[0], "running", 40)
    os.kill(house.raw.info("server")["process_id"], signum)
    for job in jobs:
        house.until(job, "succeeded", 40)
        assert house.answer(job)["status"] == "interrupted"
    assert house.counters()["succeeded"] == before["succeeded"] + 5


def test_a_job_that_kills_its_workers_fails_after_its_attempts(house: House) -> None:
    job = house.submit(timeout_s=30)
    for attempt in range(1, house.settings.max_attempts + 1):
        house.until(job, "running", 40, attempt=attempt)
        os.kill(house.owner(job), signal.SIGKILL)
    house.until(job, "failed", LEASE_S + 3)
    record = house.record(job)
    assert (record.attempt, record.error.code) == (house.settings.max_attempts, "worker-lost")


def test_chaos(house: House) -> None:
    chance, before = random.Random(0), house.counters()
    jobs = [house.submit(timeout_s=chance.uniform(0.05, 0.4)) for _ in range(40)]
    for number in range(4):
        job = eventually(lambda: [j for j in jobs if house.record(j).status == "running"], 40)[0]
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just died
            if number == 1:
                os.kill(house.raw.info("server")["process_id"], signal.SIGKILL)
            elif number == 2:  # a child of the pool alone
                os.kill(house.owner(job), signal.SIGKILL)
            else:
                os.kill(parent(house.owner(job)), signal.SIGKILL)
        time.sleep(0.5)
    for job in jobs:
        house.until(job, "succeeded", 60)
    counters = house.counters()
    assert counters["succeeded"] == before["succeeded"] + len(jobs)
    assert counters.get("failed", 0) == before.get("failed", 0)
    assert house.store.do(house.ledger.health()).running == 0
