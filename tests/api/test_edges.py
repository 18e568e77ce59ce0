"""What surrounds every request: ids, headers, keys, faults, the store being away."""

import hashlib
import logging
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from api.main import app, build
from schemas.settings import Settings
from tests.api.questions import EXAMPLE, PATH, ask, problem
from tests.conftest import Hand, serving
from workers.embedded import EmbeddedStore

KEYS = {tenant: hashlib.sha256(f"key-of-{tenant}".encode()).hexdigest() for tenant in ("ada", "bo")}


def test_request_ids(http: httpx.Client) -> None:
    given = http.get("/healthz", headers={"X-Request-ID": "abc-1.2"})
    assert given.headers["x-request-id"] == "abc-1.2"
    for bad in ("", "a b", "x" * 129, "a\tb"):
        made = http.get("/healthz", headers={"X-Request-ID": bad}).headers["x-request-id"]
        assert len(made) == 32
    ids = {http.get("/healthz").headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3


@pytest.mark.parametrize("path", ["/healthz", "/nowhere", "/v1/jobs", "/docs"])
def test_security_headers(http: httpx.Client, path: str) -> None:
    headers = http.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "server" not in headers


def test_keys(store: Settings, hand: Hand, empty: redis.Redis) -> None:
    with serving(store.model_copy(update={"api_keys": KEYS})) as http:
        for headers in ({}, {"Authorization": "Bearer x"}, {"X-API-Key": "é"}, {"X-API-Key": ""}):
            raw = [(k, v.encode("latin-1")) for k, v in headers.items()]
            response = http.get("/v1/jobs", headers=raw)
            problem(response, 401, "unauthorized")
            assert response.headers["www-authenticate"].startswith("Bearer")
        problem(http.get("/metrics"), 401, "unauthorized")
        for path in ("/healthz", "/version", "/docs", "/openapi.json", "/problems/unauthorized"):
            assert http.get(path).status_code == 200
        ada, bo = {"Authorization": "bearer key-of-ada"}, {"X-API-Key": "key-of-bo"}
        mine = http.post(PATH, json=EXAMPLE, headers=ada).json()["id"]
        theirs = http.post(PATH, json=EXAMPLE, headers=bo).json()["id"]
        assert mine != theirs
        assert [j["id"] for j in http.get("/v1/jobs", headers=bo).json()["jobs"]] == [theirs]
        for end in ("", "/result", "/result/plan", "/events"):
            foreign = http.get(f"/v1/jobs/{mine}{end}", headers=bo)
            unknown = http.get(f"/v1/jobs/{'0' * 32}{end}", headers=bo)
            parts = [{**r.json(), "instance": ""} for r in (foreign, unknown)]
            assert parts[0] == parts[1]
            problem(foreign, 404, "no-such-job")
        problem(http.delete(f"/v1/jobs/{mine}", headers=bo), 404, "no-such-job")
        security = http.get("/openapi.json").json()["paths"]["/v1/jobs"]["get"]["security"]
        assert {} not in security


def test_nobody_is_served_beyond_loopback_without_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRENIER_HOST", "0.0.0.0")
    with pytest.raises(ValueError, match="API keys"):
        app()
    monkeypatch.setenv("BRENIER_INSECURE", "true")
    assert app().title == "Brenier"


def test_faults_are_problems_with_an_incident(
    store: Settings,
    empty: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("secret path /etc")

    with serving(store) as http:
        monkeypatch.setattr("workers.port.Ledger.jobs", broken)
        with caplog.at_level(logging.ERROR):
            response = http.get("/v1/jobs")
        found = problem(response, 500, "internal")
        assert "secret" not in response.text
        assert found["incident"] in caplog.text
        assert "secret" in caplog.text
        assert response.headers["x-content-type-options"] == "nosniff"
        monkeypatch.undo()
        assert http.get("/v1/jobs").status_code == 200


def test_a_fault_in_the_middle_of_an_answer(
    http: httpx.Client, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("x")

    job = ask(http).json()["id"]
    monkeypatch.setattr("api.events._event", broken)
    with pytest.raises(httpx.RemoteProtocolError):
        http.get(f"/v1/jobs/{job}/events")


def test_the_store_is_away(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    with serving(settings) as http:
        response = http.get("/v1/jobs")
        assert problem(response, 503, "broker-unavailable")["retry"] is True
        assert int(response.headers["retry-after"]) >= 1
        problem(ask(http), 503, "broker-unavailable")
        problem(http.get("/readyz"), 503, "not-ready")
        problem(http.get("/metrics"), 503, "broker-unavailable")
        assert http.get("/healthz").status_code == 200


def test_the_store_comes_back(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    hand = Hand(settings, Hand.link_to(settings))
    with serving(settings) as http:
        with EmbeddedStore(settings):
            deadline = time.monotonic() + 10
            while (response := ask(http)).status_code == 503 and time.monotonic() < deadline:
                time.sleep(0.05)
            assert response.status_code in (200, 202)
        problem(http.get("/v1/jobs"), 503, "broker-unavailable")
        with EmbeddedStore(settings):
            thread = hand.later(lambda: hand.finish(response.json()["id"]), 0.3)
            assert ask(http, Prefer="wait=20").status_code == 200
            thread.join()


def test_a_full_store_is_no_fault(store: Settings, empty: redis.Redis, http: httpx.Client) -> None:
    empty.config_set("maxmemory", 1)
    try:
        problem(ask(http), 503, "queue-full")
    finally:
        empty.config_set("maxmemory", store.store_memory)


def test_lost_jobs_are_queued_again(http: httpx.Client, hand: Hand, empty: redis.Redis) -> None:
    job = ask(http).json()["id"]
    hand.take(job)
    empty.zadd(f"{hand.ledger.prefix}idx:running", {job: 0})
    empty.hset(f"{hand.ledger.prefix}job:{job}", "lease", 0)
    deadline = time.monotonic() + 5
    while http.get(f"/v1/jobs/{job}").json()["status"] != "queued":
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_apps_do_not_share_metrics(store: Settings) -> None:
    assert build(store) is not build(store)
