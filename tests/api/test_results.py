"""Results: what each state answers, and every representation of a success."""

import io
import json
import zipfile
from typing import Any

import httpx
import numpy as np
import pytest
import redis
from safetensors.numpy import load

from schemas.facts import Stored, stored
from schemas.problems import Failure
from schemas.settings import Settings
from tests.api.questions import PATH, ask, problem
from tests.conftest import Hand, serving

PLAN = np.arange(6.0).reshape(2, 3)
ROWS = np.arange(4, dtype=np.int64)
JSON, NPY, NPZ = "application/json", "application/x-npy", "application/x-npz"
SAFETENSORS = "application/vnd.safetensors"
PNG = b"\x89PNG not really"


def reference(item: Stored, **more: Any) -> dict[str, Any]:
    facts = {"dtype": item.facts.dtype, "shape": item.facts.shape}
    return {"digest": item.digest, **facts, "href": f"/v1/arrays/{item.digest}", **more}


@pytest.fixture
def done(http: httpx.Client, hand: Hand) -> str:
    """Finish a job with a small answer; return the address of its result."""
    plan, rows = stored(PLAN), stored(ROWS)
    answer = {
        "plan": reference(plan, values=PLAN.tolist()),
        "sparse": {"rows": reference(rows)},
        "starts": [{"name": "product"}],
        "value": 1.5,
    }
    job = ask(http).json()["id"]
    hand.finish(job, json.dumps(answer).encode(), arrays=[plan, rows])
    return f"/v1/jobs/{job}/result"


def get(http: httpx.Client, path: str, accept: str | None = None) -> httpx.Response:
    return http.get(path, headers={"Accept": accept} if accept else {})


def test_json_is_passed_on_as_the_worker_wrote_it(http: httpx.Client, done: str) -> None:
    response = get(http, done)
    assert response.json()["plan"]["values"] == PLAN.tolist()
    assert response.headers["content-type"] == JSON
    assert response.headers["vary"] == "Accept"
    assert "immutable" in response.headers["cache-control"]


def test_safetensors(http: httpx.Client, done: str) -> None:
    response = get(http, done, SAFETENSORS)
    arrays = load(response.content)
    assert response.headers["content-type"] == SAFETENSORS
    assert np.array_equal(arrays["plan"], PLAN)
    assert np.array_equal(arrays["sparse.rows"], ROWS)
    size = int.from_bytes(response.content[:8], "little")
    result = json.loads(response.content[8 : 8 + size])["__metadata__"]["result"]
    assert json.loads(result)["value"] == 1.5
    assert "values" not in json.loads(result)["plan"]


def test_npz(http: httpx.Client, done: str) -> None:
    response = get(http, done, NPZ)
    assert response.content == get(http, done, NPZ).content
    with np.load(io.BytesIO(response.content)) as arrays:
        assert np.array_equal(arrays["plan"], PLAN)
        assert np.array_equal(arrays["sparse.rows"], ROWS)
    with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
        assert json.loads(archive.read("result.json"))["value"] == 1.5


def test_large_arrays_are_packed_off_the_loop(http: httpx.Client, hand: Hand) -> None:
    item = stored(np.zeros(200_000))
    job = ask(http).json()["id"]
    answer = json.dumps({"plan": reference(item)}).encode()
    hand.finish(job, answer, arrays=[item])
    packed = get(http, f"/v1/jobs/{job}/result", SAFETENSORS).content
    assert load(packed)["plan"].shape == (200_000,)
    single = get(http, f"/v1/jobs/{job}/result/plan").content
    assert np.load(io.BytesIO(single)).shape == (200_000,)


def test_one_field(http: httpx.Client, done: str) -> None:
    assert np.array_equal(np.load(io.BytesIO(get(http, f"{done}/plan").content)), PLAN)
    rows = get(http, f"{done}/sparse.rows", NPY)
    assert np.array_equal(np.load(io.BytesIO(rows.content)), ROWS)
    assert get(http, f"{done}/plan", JSON).json()["values"] == PLAN.tolist()
    assert get(http, f"{done}/value").json() == 1.5
    assert get(http, f"{done}/starts.0.name").json() == "product"
    found = problem(get(http, f"{done}/nothing"), 404, "not-found")
    assert "sparse.rows" in found["detail"]
    problem(get(http, f"{done}/starts.7"), 404, "not-found")
    problem(get(http, f"{done}/value", NPY), 406, "not-acceptable")


@pytest.mark.parametrize("field", ["", "/plan", "/value"])
def test_entity_tags(http: httpx.Client, done: str, field: str) -> None:
    tag = get(http, done + field).headers["etag"]
    same = http.get(done + field, headers={"If-None-Match": f'"x", W/{tag}'})
    assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", tag)
    assert http.get(done + field, headers={"If-None-Match": "*"}).status_code == 304
    assert http.get(done + field, headers={"If-None-Match": '"x"'}).status_code == 200


def test_representations_have_tags_of_their_own(http: httpx.Client, done: str) -> None:
    tags = {get(http, done, media).headers["etag"] for media in (JSON, NPZ, SAFETENSORS)}
    assert len(tags) == 3


def test_head_mirrors_get(http: httpx.Client, done: str) -> None:
    head, whole = http.head(done), http.get(done)
    assert head.content == b""
    for name in ("content-length", "etag", "content-type"):
        assert head.headers[name] == whole.headers[name]


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        ("*/*", JSON),
        ("application/*", JSON),
        ("application/x-npz;q=0.5, application/json;q=0.4", NPZ),
        ("application/x-npz; q=0.5; v=1, application/vnd.safetensors", SAFETENSORS),
        ("*/*;q=0.1, application/json;q=0", SAFETENSORS),
        ("text/html, */*;q=0.1", JSON),
        ("APPLICATION/X-NPZ", NPZ),
    ],
)
def test_accept(http: httpx.Client, done: str, accept: str, media: str) -> None:
    assert get(http, done, accept).headers["content-type"] == media


@pytest.mark.parametrize(
    "accept", ["text/html", "application/json;q=0", "application/json;q=x", "image/gif;q=2"]
)
def test_nothing_acceptable(http: httpx.Client, done: str, accept: str) -> None:
    response = get(http, done, accept)
    found = problem(response, 406, "not-acceptable")
    assert SAFETENSORS in found["detail"]
    assert "image/png" in found["detail"]


def test_large_json_points_to_binary(store: Settings, hand: Hand, empty: Any) -> None:
    item = stored(np.zeros(500))
    with serving(store.model_copy(update={"answer_limit": 1024})) as http:
        job = ask(http).json()["id"]
        answer = json.dumps({"plan": reference(item, values=[0.0] * 500)}).encode()
        hand.finish(job, answer, arrays=[item])
        found = problem(get(http, f"/v1/jobs/{job}/result"), 406, "not-acceptable")
        assert SAFETENSORS in found["detail"]
        problem(get(http, f"/v1/jobs/{job}/result/plan", JSON), 406, "not-acceptable")
        assert load(get(http, f"/v1/jobs/{job}/result", SAFETENSORS).content)


def test_states_without_a_result(http: httpx.Client, hand: Hand, empty: Any) -> None:
    job = ask(http).json()["id"]
    path = f"/v1/jobs/{job}/result"
    queued = http.get(path)
    assert "queued" in problem(queued, 409, "job-not-finished")["detail"]
    assert queued.headers["retry-after"] == "1"
    claim = hand.take(job)
    assert "running" in problem(http.get(f"{path}/plan"), 409, "job-not-finished")["detail"]
    failure = Failure(code="worker-lost", detail="gone", retry=True)
    hand.link.do(hand.ledger.finish(claim, "failed", failure=failure))
    assert problem(http.get(path), 500, "worker-lost")["retry"] is True
    cancelled = ask(http).json()["id"]
    http.delete(f"/v1/jobs/{cancelled}")
    problem(http.get(f"/v1/jobs/{cancelled}/result"), 409, "job-cancelled")


def test_an_unheard_of_failure_is_still_a_problem(http: httpx.Client, hand: Hand) -> None:
    job = ask(http).json()["id"]
    hand.fail(job, Failure(code="new-kind", detail="?"))
    problem(http.get(f"/v1/jobs/{job}/result"), 500, "new-kind")


def test_expired_results_are_gone(http: httpx.Client, hand: Hand, empty: Any, done: str) -> None:
    job = done.split("/")[3]
    empty.delete(*empty.keys(f"{hand.ledger.prefix}array:*"))
    problem(get(http, done, NPZ), 410, "result-expired")
    problem(get(http, f"{done}/plan"), 410, "result-expired")
    empty.delete(*empty.keys(f"{hand.ledger.prefix}out:*"))
    problem(get(http, done), 410, "result-expired")
    empty.hset(f"{hand.ledger.prefix}job:{job}", "expires", 1)
    problem(get(http, done), 410, "result-expired")
    assert http.get(f"/v1/jobs/{job}").json()["status"] == "expired"


# pictures


def test_pictures_are_drawn_by_a_worker(http: httpx.Client, hand: Hand, done: str) -> None:
    def draw() -> None:
        claim = hand.take(_waiting(hand))
        assert claim.request == {"job": done.split("/")[3], "media": "image/png"}
        assert claim.kind == "render"
        hand.link.do(hand.ledger.finish(claim, "succeeded", result=PNG))

    thread = hand.later(draw)
    response = get(http, done, "image/png")
    thread.join()
    assert (response.content, response.headers["content-type"]) == (PNG, "image/png")
    assert get(http, done, "image/png").content == PNG
    assert len(http.get("/v1/jobs").json()["jobs"]) == 1
    tag = response.headers["etag"]
    same = http.get(done, headers={"Accept": "image/png", "If-None-Match": tag})
    assert same.status_code == 304


def _waiting(hand: Hand) -> str:
    """Return the id of the job that waits in the queue."""
    with redis.Redis.from_url(hand.settings.store_url) as raw:
        return raw.zrange(f"{hand.ledger.prefix}idx:queued", 0, -1)[0].decode()


def test_pictures_that_take_long(store: Settings, hand: Hand, empty: Any) -> None:
    with serving(store.model_copy(update={"wait_cap_s": 0.1})) as http:
        job = ask(http).json()["id"]
        hand.finish(job, b"{}")
        response = get(http, f"/v1/jobs/{job}/result", "image/svg+xml")
        assert (response.status_code, response.headers["retry-after"]) == (202, "1")
        hand.finish(response.json()["id"], b"<svg/>")
        found = http.get(response.headers["location"])
        assert (found.content, found.headers["content-type"]) == (b"<svg/>", "image/svg+xml")
        problem(get(http, response.headers["location"], JSON), 406, "not-acceptable")
        problem(get(http, response.headers["location"] + "/plan"), 404, "not-found")


def test_pictures_that_fail(http: httpx.Client, hand: Hand, done: str) -> None:
    failure = Failure(code="internal", detail="x", incident="1")
    thread = hand.later(lambda: hand.fail(_waiting(hand), failure))
    assert problem(get(http, done, "image/png"), 500, "internal")["incident"] == "1"
    thread.join()


def test_batches_have_no_pictures(http: httpx.Client, hand: Hand) -> None:
    job = ask(http, {"problems": [{}]}, f"{PATH}/batch").json()["id"]
    hand.finish(job, b'{"items":[]}')
    problem(get(http, f"/v1/jobs/{job}/result", "image/png"), 406, "not-acceptable")
