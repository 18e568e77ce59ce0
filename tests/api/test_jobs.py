"""Jobs as resources: waiting, lists, events, deletion."""

import json
import logging
import threading
import time
from typing import Any

import httpx
import pytest

from api import events
from schemas.jobs import JobRecord, Progress
from schemas.problems import Failure
from tests.api.questions import EXAMPLE, PATH, ask, problem
from tests.conftest import Hand


def asked(http: httpx.Client, count: int) -> list[str]:
    """Ask several questions; return their jobs, newest first."""
    jobs = [ask(http, {**EXAMPLE, "seed": i}).json()["id"] for i in range(count)]
    return jobs[::-1]


def test_waiting_for_the_end(http: httpx.Client, hand: Hand) -> None:
    job = ask(http).json()["id"]
    assert http.get(f"/v1/jobs/{job}?wait=0.05").json()["status"] == "queued"
    thread = hand.later(lambda: hand.finish(job))
    began = time.monotonic()
    response = http.get(f"/v1/jobs/{job}?wait=20")
    thread.join()
    assert response.json()["status"] == "succeeded"
    assert response.headers["cache-control"] == "no-store"
    assert time.monotonic() - began < 2
    assert http.get(f"/v1/jobs/{job}?wait=20").json()["status"] == "succeeded"


def test_a_failed_job_is_a_successful_lookup(http: httpx.Client, hand: Hand) -> None:
    job = ask(http).json()["id"]
    hand.fail(job, Failure(code="out-of-memory", detail="x"))
    response = http.get(f"/v1/jobs/{job}")
    assert (response.status_code, response.json()["error"]["code"]) == (200, "out-of-memory")


def test_lists_are_read_page_by_page(http: httpx.Client) -> None:
    jobs, found, cursor = asked(http, 5), list[str](), ""
    for size in (2, 2, 1):
        page = http.get(f"/v1/jobs?limit=2{cursor}").json()
        assert len(page["jobs"]) == size
        found += [job["id"] for job in page["jobs"]]
        cursor = f"&cursor={page['next']}"
    assert found == jobs
    assert page["next"] is None


def test_jobs_of_one_millisecond_are_all_listed(http: httpx.Client, hand: Hand, empty: Any) -> None:
    jobs = asked(http, 5)
    empty.zadd(f"{hand.ledger.prefix}idx:tenant:public", dict.fromkeys(jobs, 1000))
    found, cursor = list[str](), ""
    while cursor is not None:
        page = http.get("/v1/jobs", params={"limit": 2} | ({"cursor": cursor} if cursor else {}))
        found += [job["id"] for job in page.json()["jobs"]]
        cursor = page.json()["next"]
    assert sorted(found) == sorted(jobs)


def test_lists_are_filtered(http: httpx.Client, hand: Hand) -> None:
    first, second, third = asked(http, 3)
    hand.finish(second)
    page = http.get("/v1/jobs?status=queued&routine=transport.sinkhorn").json()
    assert [job["id"] for job in page["jobs"]] == [first, third]
    assert http.get("/v1/jobs?routine=transport.exact").json()["jobs"] == []


def test_long_lists_without_matches_end_in_a_cursor(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.jobs.PAGE", 2)
    monkeypatch.setattr("api.jobs.MAX_PAGES", 1)
    jobs = asked(http, 4)
    page = http.get("/v1/jobs?status=failed").json()
    assert (page["jobs"], page["next"].split("-")[1]) == ([], jobs[1])


def test_deleting(http: httpx.Client, hand: Hand) -> None:
    job = ask(http).json()["id"]
    cancelled = http.delete(f"/v1/jobs/{job}")
    assert (cancelled.status_code, cancelled.json()["status"]) == (202, "cancelled")
    assert http.delete(f"/v1/jobs/{job}").status_code == 204
    problem(http.get(f"/v1/jobs/{job}"), 404, "no-such-job")
    problem(http.delete(f"/v1/jobs/{job}"), 404, "no-such-job")
    running = ask(http).json()["id"]
    hand.take(running)
    asked_ = http.delete(f"/v1/jobs/{running}").json()
    assert (asked_["status"], asked_["cancel_requested"]) == ("running", True)


# events


def read(http: httpx.Client, job: str, **headers: str) -> list[tuple[int, str, Any]]:
    """Read a stream to its end."""
    with http.stream("GET", f"/v1/jobs/{job}/events", headers=headers) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["x-accel-buffering"] == "no"
        text = "".join(response.iter_text())
    return [parsed(block) for block in text.split("\n\n") if block.startswith("id")]


def parsed(block: str) -> tuple[int, str, Any]:
    fields = dict(line.split(": ", 1) for line in block.splitlines())
    return int(fields["id"]), fields["event"], json.loads(fields["data"])


def test_the_life_of_a_job(http: httpx.Client, hand: Hand) -> None:
    job = ask(http).json()["id"]

    def work() -> None:
        time.sleep(0.15)
        claim = hand.take(job)
        for iteration in (10, 20):
            time.sleep(0.1)
            hand.link.do(hand.ledger.heartbeat(claim, Progress(iteration=iteration)))
        time.sleep(0.1)
        hand.link.do(hand.ledger.finish(claim, "succeeded", result=b"{}"))

    thread = threading.Thread(target=work)
    thread.start()
    found = read(http, job)
    thread.join()
    assert [kind for _, kind, _ in found] == ["status", "status", "progress", "progress", "done"]
    numbers = [number for number, _, _ in found]
    assert numbers == sorted(set(numbers))
    assert found[3][2]["progress"]["iteration"] == 20
    resumed = read(http, job, **{"Last-Event-ID": str(numbers[1])})
    assert [(n, kind) for n, kind, _ in resumed] == [(numbers[-1], "done")]
    seen = {"Last-Event-ID": str(numbers[-1])}
    assert http.get(f"/v1/jobs/{job}/events", headers=seen).status_code == 204


def test_silence_is_broken_by_pings(
    http: httpx.Client, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "PING_S", 0.05)
    job = ask(http).json()["id"]
    thread = hand.later(lambda: hand.finish(job), 0.4)
    with http.stream("GET", f"/v1/jobs/{job}/events") as response:
        text = "".join(response.iter_text())
    thread.join()
    assert text.count(": ping\n\n") >= 2


def test_a_stream_ends_with_its_job(http: httpx.Client, hand: Hand, empty: Any) -> None:
    job = ask(http).json()["id"]

    def forget() -> None:
        empty.delete(f"{hand.ledger.prefix}job:{job}")
        empty.publish(hand.ledger.channel(job), "forgotten")

    thread = hand.later(forget, 0.2)
    assert [kind for _, kind, _ in read(http, job)] == ["status"]
    thread.join()


def test_a_client_may_leave_a_stream(http: httpx.Client, hand: Hand) -> None:
    job = ask(http).json()["id"]
    with http.stream("GET", f"/v1/jobs/{job}/events") as response:
        next(response.iter_text())
    assert http.get(f"/v1/jobs/{job}").json()["status"] == "queued"


def test_a_client_may_leave_while_it_waits(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("api.answers.RECHECK_S", 0.05)
    caplog.set_level(logging.INFO)
    with pytest.raises(httpx.ReadTimeout):
        http.post(PATH, json=EXAMPLE, headers={"Prefer": "wait=20"}, timeout=0.2)
    deadline = time.monotonic() + 5
    while "the client went away" not in caplog.text:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert http.get("/v1/jobs").json()["jobs"][0]["status"] == "queued"


def moment(status: str, attempt: int, iteration: int | None = None) -> int:
    progress = None if iteration is None else Progress(iteration=iteration)
    record = JobRecord.model_construct(
        status=status,  # type: ignore[arg-type]
        attempt=attempt,
        progress=progress,
    )
    return events.number(record)


def test_numbers_grow_over_a_life_with_a_lost_worker() -> None:
    life = [
        moment("queued", 0),
        moment("running", 1),
        moment("running", 1, 5),
        moment("queued", 1),
        moment("running", 2),
        moment("running", 2, 10**15),
        moment("succeeded", 2),
    ]
    assert life == sorted(set(life))
