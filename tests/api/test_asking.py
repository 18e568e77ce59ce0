"""From a body to a job: digests, preferences, idempotency, batches, limits."""

import io
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
import redis
from safetensors.numpy import save

from schemas.facts import stored
from schemas.problems import Failure
from schemas.settings import Settings
from tests.api.questions import EXAMPLE, PATH, ask, post, problem, spoilt
from tests.conftest import Hand, serving

SAFETENSORS = {"Content-Type": "application/vnd.safetensors"}


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.fixture
def tight(store: Settings, empty: redis.Redis) -> Iterator[httpx.Client]:
    limits = {"json_limit": 2048, "upload_limit": 4096, "queue_limit": 1, "body_timeout_s": 0.2}
    with serving(store.model_copy(update=limits | {"memory_limit": 1 << 20})) as client:
        yield client


def test_a_question_becomes_a_job(http: httpx.Client) -> None:
    response = ask(http, X_Request_ID="me-1")
    record = response.json()
    assert response.status_code == 202
    assert response.headers["location"] == record["links"]["self"] == f"/v1/jobs/{record['id']}"
    assert response.headers["retry-after"] == "1"
    assert (record["status"], record["kind"], record["request_id"]) == ("queued", "solve", "me-1")
    assert http.get(response.headers["location"]).json() == record


def test_the_same_question_is_the_same_job(http: httpx.Client, hand: Hand) -> None:
    first = ask(http).json()["id"]
    again = ask(http, json.loads(json.dumps(EXAMPLE)))
    assert (again.status_code, again.json()["id"]) == (200, first)
    hand.finish(first)
    done = ask(http)
    assert (done.status_code, done.json()["status"]) == (200, "succeeded")
    assert "retry-after" not in done.headers
    assert ask(http, Cache_Control="no-cache").json()["id"] != first


@pytest.mark.parametrize(
    "changed", [{"seed": 1}, {"epsilon": 0.2}, {"a": [0.25, 0.5, 0.25]}, {"precision": "float32"}]
)
def test_another_question_is_another_job(http: httpx.Client, changed: dict[str, Any]) -> None:
    assert ask(http).json()["id"] != ask(http, {**EXAMPLE, **changed}).json()["id"]


def test_failed_and_cancelled_jobs_answer_nothing(http: httpx.Client, hand: Hand) -> None:
    first = ask(http).json()["id"]
    hand.fail(first, Failure(code="internal", detail="x"))
    second = ask(http).json()["id"]
    http.delete(f"/v1/jobs/{second}")
    assert len({first, second, ask(http).json()["id"]}) == 3


def test_arrays_are_named_in_the_stored_question(http: httpx.Client, hand: Hand) -> None:
    job = ask(http).json()["id"]
    request = hand.take(job).request
    item = stored(np.array(EXAMPLE["a"]))
    assert request["a"] == item.digest
    assert hand.link.do(hand.ledger.get([item.digest]))[item.digest].array.tolist() == EXAMPLE["a"]


def test_all_forms_of_a_question_are_the_same_question(http: httpx.Client) -> None:
    geometry = EXAMPLE["geometry"]
    x, y, a, b = (np.array(v) for v in (geometry["x"], geometry["y"], EXAMPLE["a"], EXAMPLE["b"]))
    job = ask(http).json()["id"]
    digest = http.post("/v1/arrays", json=EXAMPLE["a"]).json()["digest"]
    assert ask(http, spoilt("a", digest)).json()["id"] == job
    assert ask(http, spoilt("a", {"digest": digest, "shape": [99]})).json()["id"] == job
    plain = {name: EXAMPLE[name] for name in ("epsilon", "barycentric")}
    options = {"geometry": {"kind": "points"}, **plain}
    tensors = {"geometry.x": x, "geometry.y": y, "a": a, "b": b}
    packed = save(tensors, {"options": json.dumps(options)})
    assert http.post(PATH, content=packed, headers=SAFETENSORS).json()["id"] == job
    body = {**EXAMPLE, "geometry": {"kind": "points", "x": {"$tensor": "p"}, "y": {"$tensor": "q"}}}
    files = {"p": npy(x), "q": ("y.npy", npy(np.asfortranarray(y)))}
    form = {"request": (None, json.dumps(body))} | files
    assert http.post(PATH, files=form).json()["id"] == job


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"nonsense", 422, "validation"),
        (save({"a": np.zeros(3)}, {"options": "[]"}), 422, "validation"),
        (save({"a": np.zeros(3)}, {"options": "{"}), 400, "invalid-json"),
        (save({"a": np.zeros(3)}, {"options": '{"a": 1}'}), 422, "validation"),
        (save({"a.b": np.zeros(3)}, {"options": '{"a": 1}'}), 422, "validation"),
        (save({"geometry.x": np.zeros((2, 2))}), 422, "validation"),
        (save({"a": np.zeros(3)}).replace(b"F64", b"I99"), 422, "validation"),
        (save({"a": np.zeros(3, "f2")}).replace(b"F16", b"BF16"[:3]), 422, "validation"),
    ],
)
def test_bad_safetensors(http: httpx.Client, content: bytes, status: int, code: str) -> None:
    problem(http.post(PATH, content=content, headers=SAFETENSORS), status, code)


def test_bfloat16_is_not_read(http: httpx.Client) -> None:
    header = b'{"a":{"dtype":"BF16","shape":[3],"data_offsets":[0,6]}}'
    content = len(header).to_bytes(8, "little") + header + bytes(6)
    response = http.post(PATH, content=content, headers=SAFETENSORS)
    assert "BF16" in problem(response, 415, "unsupported-media-type")["detail"]


def test_errors_in_binary_questions_have_pointers(http: httpx.Client) -> None:
    tensors = {"geometry.x": np.array([[0.0, np.nan]]), "geometry.y": np.zeros((2, 2))}
    options = json.dumps({"geometry": {"kind": "points"}, "epsilon": 0.1})
    response = http.post(PATH, content=save(tensors, {"options": options}), headers=SAFETENSORS)
    found = problem(response, 422, "non-finite-number")
    assert found["errors"][0]["pointer"] == "#/geometry/x/0/1"


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ({"other": (None, "{}")}, "no part named `request`"),
        ({"request": (None, '{"a": {"$tensor": "z"}}')}, "no part named 'z'"),
        ({"request": (None, '{"a": {"$tensor": "z"}}'), "z": b"no npy"}, "part 'z': not a .npy"),
        ({"request": (None, '{"a": [{"$tensor": "z"}]}')}, "no part named 'z'"),
    ],
)
def test_bad_forms(http: httpx.Client, form: Any, text: str) -> None:
    assert text in problem(http.post(PATH, files=form), 422, "validation")["detail"]


def _form(*parts: str) -> bytes:
    return "".join(f"--b\r\n{part}\r\n" for part in parts).encode() + b"--b--\r\n"


NAMED = 'Content-Disposition: form-data; name="{}"\r\n\r\n{{}}'


@pytest.mark.parametrize(
    ("content", "boundary"),
    [
        (b"x", ""),
        (b"x", "; boundary=b"),
        (_form(NAMED.format("request"), NAMED.format("request")), "; boundary=b"),
        (_form(*(NAMED.format(i) for i in range(65))), "; boundary=b"),
        (_form("".join(f"X-{i}: y\r\n" for i in range(9)) + "\r\n{}"), "; boundary=b"),
    ],
)
def test_damaged_forms(http: httpx.Client, content: bytes, boundary: str) -> None:
    headers = {"Content-Type": f"multipart/form-data{boundary}"}
    problem(http.post(PATH, content=content, headers=headers), 422, "validation")


# Prefer


def test_prefer_wait_answers_with_the_result(http: httpx.Client, hand: Hand) -> None:
    job = ask(http).json()["id"]
    hand.later(lambda: hand.finish(job, b'{"value":1.0}'))
    response = ask(http, Prefer="handling=lenient; x=y, wait=5")
    assert (response.status_code, response.json()) == (200, {"value": 1.0})
    assert response.headers["preference-applied"] == "wait=5"
    assert response.headers["content-location"] == f"/v1/jobs/{job}/result"
    assert response.headers["location"] == f"/v1/jobs/{job}"
    assert response.headers["vary"] == "Accept"


def test_prefer_wait_on_a_new_job(http: httpx.Client, hand: Hand, empty: redis.Redis) -> None:
    def work() -> None:
        while not (raw := empty.brpop([hand.ledger.queue], 5)):
            pass
        hand.finish(json.loads(raw[1])["headers"]["id"], b'{"value":2.0}')

    thread = threading.Thread(target=work)
    thread.start()
    response = ask(http, Prefer='wait="5"')
    thread.join()
    assert (response.status_code, response.json()) == (200, {"value": 2.0})


def test_prefer_wait_gives_up(http: httpx.Client) -> None:
    response = ask(http, Prefer="wait=0.1")
    assert (response.status_code, response.json()["status"]) == (202, "queued")
    assert "preference-applied" not in response.headers


@pytest.mark.parametrize("prefer", ["respond-async", "wait=x", "wait=nan", "wait=-1", "odd", ""])
def test_other_preferences_do_not_wait(http: httpx.Client, prefer: str) -> None:
    assert ask(http, Prefer=prefer).status_code == 202


def test_prefer_wait_on_a_failing_job(http: httpx.Client, hand: Hand) -> None:
    job = ask(http).json()["id"]
    error = {"pointer": "#/b", "code": "infeasible-problem", "message": "no"}
    failure = Failure.model_validate(
        {"code": "infeasible-problem", "detail": "no", "errors": [error]}
    )
    hand.later(lambda: hand.fail(job, failure))
    response = ask(http, Prefer="wait=5")
    assert problem(response, 422, "infeasible-problem")["errors"] == [error]
    assert response.headers["location"] == f"/v1/jobs/{job}"


def test_prefer_wait_on_a_cancelled_job(http: httpx.Client, hand: Hand) -> None:
    job = ask(http).json()["id"]
    cancel = hand.ledger.cancel("public", job)
    hand.later(lambda: hand.link.do(cancel))
    problem(ask(http, Prefer="wait=5"), 409, "job-cancelled")


def test_an_unacceptable_wish_queues_nothing(http: httpx.Client) -> None:
    response = ask(http, Prefer="wait=5", Accept="text/html")
    problem(response, 406, "not-acceptable")
    assert http.get("/v1/jobs").json()["jobs"] == []


# Idempotency-Key


def test_a_key_replays_the_same_job(http: httpx.Client) -> None:
    fresh = {"Cache_Control": "no-cache"}
    first = ask(http, Idempotency_Key='"k"', **fresh)
    again = ask(http, Idempotency_Key="k", **fresh)
    assert first.json()["id"] == again.json()["id"]
    assert again.headers["idempotency-replayed"] == "true"
    assert "idempotency-replayed" not in first.headers
    assert ask(http, Idempotency_Key="other", **fresh).json()["id"] != first.json()["id"]
    elsewhere = ask(http, EXAMPLE | {"x": 0}, "/v1/transport/exact", Idempotency_Key="k")
    problem(elsewhere, 422, "validation")


def test_a_key_stands_for_one_body(http: httpx.Client) -> None:
    ask(http, Idempotency_Key="k")
    response = ask(http, {**EXAMPLE, "seed": 1}, Idempotency_Key="k")
    problem(response, 422, "idempotency-conflict")


def test_sixteen_at_once_are_one_job(http: httpx.Client) -> None:
    def one(_: int) -> str:
        return ask(http, Idempotency_Key="k", Cache_Control="no-cache").json()["id"]

    with ThreadPoolExecutor(16) as pool:
        assert len(set(pool.map(one, range(16)))) == 1


@pytest.mark.parametrize("key", ['""', "", "x" * 256])
def test_odd_keys_are_refused(http: httpx.Client, key: str) -> None:
    problem(ask(http, Idempotency_Key=key), 400, "bad-request")


# batches, gradients


def test_a_batch_keeps_its_bad_items(http: httpx.Client, hand: Hand) -> None:
    body = {"problems": [EXAMPLE, spoilt("epsilon", -1.0), {}]}
    response = ask(http, body, f"{PATH}/batch")
    assert (response.status_code, response.json()["kind"]) == (202, "batch")
    good, negative, empty_ = hand.take(response.json()["id"]).request["items"]
    assert good["request"]["epsilon"] == EXAMPLE["epsilon"]
    assert negative["error"]["errors"][0]["pointer"] == "#/problems/1/epsilon"
    assert empty_["error"]["code"] == "validation"


@pytest.mark.parametrize("body", [[], {}, {"problems": []}, {"problems": 1}, {"problem": [1]}])
def test_a_batch_that_is_none(http: httpx.Client, body: Any) -> None:
    problem(ask(http, body, f"{PATH}/batch"), 422, "validation")


def test_a_large_batch(http: httpx.Client, hand: Hand) -> None:
    body = {"problems": [{**EXAMPLE, "seed": i} for i in range(60)]}
    job = ask(http, body, f"{PATH}/batch").json()["id"]
    assert len(hand.take(job).request["items"]) == 60


def test_gradients_are_asked_for(http: httpx.Client, hand: Hand) -> None:
    body = {"request": EXAMPLE, "cotangents": {"value": 1.0}, "wrt": ["geometry.x"]}
    response = ask(http, body, f"{PATH}/vjp")
    assert (response.status_code, response.json()["kind"]) == (202, "vjp")
    assert hand.take(response.json()["id"]).request["wrt"] == ["geometry.x"]


def test_gradients_of_what_is_not_there(http: httpx.Client) -> None:
    body = {"request": EXAMPLE, "cotangents": {"value": 1.0}, "wrt": ["geometry.C"]}
    found = problem(ask(http, body, f"{PATH}/vjp"), 422, "validation")
    assert found["errors"][0]["pointer"] == "#/wrt/0"
    body = {"request": spoilt("geometry.x", [["?"]]), "cotangents": {"value": 1.0}, "wrt": ["a"]}
    found = problem(ask(http, body, f"{PATH}/vjp"), 422, "validation")
    assert found["errors"][0]["pointer"] == "#/request/geometry/x/0/0"


# limits


def test_too_large_a_problem(tight: httpx.Client) -> None:
    x = {"dtype": "uint8", "shape": [400, 1], "data": "A" * 532 + "AA=="}
    body = {"geometry": {"kind": "points", "x": x, "y": x}, "epsilon": 0.1}
    found = problem(ask(tight, body), 413, "problem-too-large")
    assert "1048576" in found["detail"]


def test_too_large_a_body(tight: httpx.Client) -> None:
    response = post(tight, b" " * 3000)
    problem(response, 413, "payload-too-large")
    assert response.headers["connection"] == "close"


def test_too_large_a_body_in_chunks(tight: httpx.Client) -> None:
    chunks = (b" " * 100 for _ in range(100))
    response = tight.post(PATH, content=chunks, headers={"Content-Type": "application/json"})
    problem(response, 413, "payload-too-large")


def test_a_body_that_does_not_come(tight: httpx.Client) -> None:
    silence = threading.Event()

    def slow() -> Iterator[bytes]:
        yield b"{"
        silence.wait(1)
        yield b"}"

    response = tight.post(PATH, content=slow(), headers={"Content-Type": "application/json"})
    problem(response, 408, "body-timeout")
    silence.set()


def test_no_body_at_all(http: httpx.Client) -> None:
    request = http.build_request("POST", PATH, headers={"Content-Type": "application/json"})
    del request.headers["content-length"]
    problem(http.send(request), 411, "length-required")


def test_a_full_queue(tight: httpx.Client) -> None:
    assert ask(tight).status_code == 202
    response = ask(tight, {**EXAMPLE, "seed": 1})
    assert problem(response, 503, "queue-full")["retry"] is True
    assert int(response.headers["retry-after"]) >= 1
