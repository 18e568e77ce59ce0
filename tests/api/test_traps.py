"""Inputs that a stock application gets wrong: each row of the table, and what is wanted instead."""

import json
from typing import Any

import httpx
import pytest

from api.body import LARGE
from tests.api.questions import EXAMPLE, PATH, post, problem, raw, spoilt

Row = tuple[bytes, int, str, str]


def row(name: str, content: bytes | Any, status: int, code: str, pointer: str | None = None) -> Any:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return pytest.param(text, status, code, pointer, id=name)


BAD_ENTRIES = ['"x"'] * 20_000
ROWS = [
    row("NaN in an array", raw("a", "[NaN, 0.5, 0.5]"), 422, "non-finite-number", "#/a/0"),
    row("NaN deep in an array", raw("geometry.x", "[[0,0],[0,NaN],[1,1]]"), 422,
        "non-finite-number", "#/geometry/x/1/1"),
    row("NaN in a number", raw("epsilon", "NaN"), 422, "non-finite-number", "#/epsilon"),
    row("Infinity", raw("epsilon", "Infinity"), 422, "non-finite-number", "#/epsilon"),
    row("1e400", raw("epsilon", "1e400"), 422, "non-finite-number", "#/epsilon"),
    row("1e400 in an array", raw("a", "[1e400, 0.5, 0.5]"), 422, "non-finite-number", "#/a/0"),
    row("lone surrogate in a choice", raw("precision", r'"\ud800"'), 422, "validation",
        "#/precision"),
    row("lone surrogate in a name", raw("epsilon", r'0.1, "\ud800": 1'), 422, "validation", "#"),
    row("20,000 bad entries", raw("a", f"[{','.join(BAD_ENTRIES)}]"), 422, "validation", "#/a/0"),
    row("ragged rows", spoilt("geometry.x", [[0.0, 1.0], [2.0]]), 422, "shape-mismatch",
        "#/geometry/x/1"),
    row("text as a number", spoilt("epsilon", "1.5"), 422, "validation", "#/epsilon"),
    row("a boolean as a number", spoilt("epsilon", True), 422, "validation", "#/epsilon"),
    row("a boolean in an array", spoilt("a", [True, 0.5, 0.5]), 422, "validation", "#/a/0"),
    row("null in an array", spoilt("a", [0.5, None, 0.5]), 422, "validation", "#/a/1"),
    row("unknown field", spoilt("epsilonn", 1.0), 422, "validation", "#/epsilonn"),
    row("unknown nested field", spoilt("geometry.points", 1), 422, "validation",
        "#/geometry/points"),
    row("missing field", {k: v for k, v in EXAMPLE.items() if k != "geometry"}, 422, "validation",
        "#/geometry"),
    row("duplicate keys", b'{"epsilon": 1, "epsilon": 2}', 400, "invalid-json"),
    row("100,000 brackets", b"[" * 100_000, 400, "invalid-json"),
    row("100,000 closed brackets", b"[" * 100_000 + b"]" * 100_000, 400, "invalid-json"),
    row("40 brackets in a field", raw("a", "[" * 40 + "]" * 40), 400, "invalid-json"),
    row("5,000 digits", raw("seed", "1" * 5000), 400, "invalid-json"),
    row("30 digits", raw("seed", "1" * 30), 422, "validation", "#/seed"),
    row("UTF-16", json.dumps(EXAMPLE).encode("utf-16"), 400, "invalid-json"),
    row("byte-order mark", b"\xef\xbb\xbf" + json.dumps(EXAMPLE).encode(), 400, "invalid-json"),
    row("not UTF-8", b'{"epsilon": "\xff"}', 400, "invalid-json"),
    row("no JSON", b"epsilon=1", 400, "invalid-json"),
    row("empty body", b"", 400, "invalid-json"),
    row("a list", [], 422, "validation", "#"),
    row("a number", 1, 422, "validation", "#"),
    row("unknown kind of cost", spoilt("geometry.kind", "no"), 422, "validation", "#/geometry"),
    row("no kind of cost", spoilt("geometry", {}), 422, "validation", "#/geometry"),
    row("axes disagree", spoilt("a", [0.5, 0.5]), 422, "shape-mismatch", "#/a"),
    row("axes disagree within", spoilt("geometry.y", [[1.0], [2.0]]), 422, "shape-mismatch",
        "#/geometry/y"),
    row("masses differ", spoilt("b", [0.5, 0.6]), 422, "infeasible-problem", "#/b"),
    row("negative weights", spoilt("a", [-0.5, 1.0, 0.5]), 422, "infeasible-problem", "#/a"),
    row("empty array", spoilt("a", []), 422, "shape-mismatch", "#/a"),
    row("unknown array", spoilt("a", "sha256:" + "0" * 64), 422, "no-such-array", "#/a"),
    row("short base64", spoilt("a", {"dtype": "float64", "shape": [3], "data": "AAAA"}), 422,
        "shape-mismatch", "#/a"),
    row("huge shape", spoilt("a", {"dtype": "float64", "shape": [2**39] * 30, "data": "AAAA"}), 422,
        "shape-mismatch", "#/a"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "status", "code", "pointer"), ROWS)
def test_trap(
    http: httpx.Client, content: bytes, status: int, code: str, pointer: str | None
) -> None:
    response = post(http, content)
    found = problem(response, status, code)
    assert len(response.content) < 10_000
    assert len(found["errors"]) <= 20
    if pointer is not None:
        assert found["errors"][0]["pointer"] == pointer


def test_two_kinds_of_errors_are_a_validation_problem(http: httpx.Client) -> None:
    content = raw("geometry.x", "[[0, 1], [2]]").replace(b"0.1", b"NaN")
    found = problem(post(http, content), 422, "validation")
    assert {e["code"] for e in found["errors"]} == {"shape-mismatch", "non-finite-number"}


def test_many_errors_are_cut_short_and_counted(http: httpx.Client) -> None:
    body = {**EXAMPLE, **{f"field{i}": i for i in range(50)}}
    found = problem(post(http, json.dumps(body).encode()), 422, "validation")
    assert (len(found["errors"]), found["truncated"], found["total"]) == (20, True, 50)


def test_an_unknown_field_names_its_neighbour(http: httpx.Client) -> None:
    near = problem(post(http, json.dumps(spoilt("epsilonn", 1)).encode()), 422, "validation")
    assert "did you mean `epsilon`?" in near["errors"][0]["message"]
    far = problem(post(http, json.dumps(spoilt("qqq", 1)).encode()), 422, "validation")
    assert "known fields are" in far["errors"][0]["message"]


def test_what_was_sent_is_not_repeated(http: httpx.Client) -> None:
    content = json.dumps(spoilt("precision", "my-secret")).encode()
    assert "my-secret" not in post(http, content).text


@pytest.mark.parametrize(
    "query", ["limit=-1", f"limit={10**23}", "limit=nan", "limit=", "status=odd", "cursor=odd"]
)
def test_queries_are_strict(http: httpx.Client, query: str) -> None:
    problem(http.get(f"/v1/jobs?{query}"), 422, "validation")


@pytest.mark.parametrize("query", ["wait=nan", "wait=-1", "wait=inf", "wait=x"])
def test_waiting_times_are_strict(http: httpx.Client, query: str) -> None:
    found = problem(http.get(f"/v1/jobs/{'0' * 32}?{query}"), 422, "validation")
    assert found["errors"][0]["pointer"] == "?wait"


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"Content-Type": "text/plain"}, 415, "unsupported-media-type"),
        ({"Content-Type": "application/json; charset=utf-16"}, 415, "unsupported-media-type"),
        ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, 415,
         "unsupported-media-type"),
        ({}, 415, "unsupported-media-type"),
    ],
)  # fmt: skip
def test_kinds_of_bodies(
    http: httpx.Client, headers: dict[str, str], status: int, code: str
) -> None:
    content = json.dumps(EXAMPLE).encode()
    problem(http.post(PATH, content=content, headers=headers), status, code)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/jobs/", 404, "not-found"),
        ("GET", "/nowhere", 404, "not-found"),
        ("GET", "/v1", 404, "not-found"),
        ("POST", "/v1/transport/nothing", 404, "no-such-routine"),
        ("POST", "/v1/nothing/sinkhorn/batch", 404, "no-such-routine"),
        ("POST", "/v1/transport/sinkhorn/", 404, "no-such-routine"),
        ("GET", "/v1/routines/nothing", 404, "no-such-routine"),
        ("GET", "/v1/jobs?routine=nothing", 404, "no-such-routine"),
        ("GET", "/v1/jobs/unknown", 404, "no-such-job"),
        ("GET", f"/v1/jobs/{'0' * 32}", 404, "no-such-job"),
        ("DELETE", f"/v1/jobs/{'0' * 32}", 404, "no-such-job"),
        ("GET", f"/v1/jobs/{'0' * 32}/events", 404, "no-such-job"),
        ("GET", "/problems/unheard-of", 404, "not-found"),
    ],
)
def test_addresses_without_anything(
    http: httpx.Client, method: str, path: str, status: int, code: str
) -> None:
    problem(http.request(method, path), status, code)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", PATH, "POST"),
        ("PUT", "/v1/jobs/x", "DELETE, GET, HEAD"),
        ("POST", "/healthz", "GET, HEAD"),
        ("DELETE", "/v1/arrays", "POST"),
        ("PATCH", "/openapi.json", "GET, HEAD"),
        ("POST", "/docs/assets/favicon.png", "GET, HEAD"),
    ],
)
def test_methods_that_are_not_offered(
    http: httpx.Client, method: str, path: str, allowed: str
) -> None:
    response = http.request(method, path)
    problem(response, 405, "method-not-allowed")
    assert response.headers["allow"] == allowed


def test_large_bodies_meet_the_same_answers(http: httpx.Client) -> None:
    """The helper process parses; the errors have the same pointers."""
    rows = ",".join(["[0.25, 0.5]"] * 100_000)
    wide = f"[{rows}, [1, NaN]]"
    assert len(wide) > LARGE
    nan = post(http, raw("geometry.x", wide))
    assert problem(nan, 422, "non-finite-number")["errors"][0]["pointer"] == "#/geometry/x/100000/1"
    ragged = post(http, raw("geometry.x", f"[{rows}, [1]]"))
    found = problem(ragged, 422, "shape-mismatch")
    assert found["errors"][0]["pointer"] == "#/geometry/x/100000"
    problem(post(http, raw("geometry.x", f"[{rows}, [1]")), 400, "invalid-json")
    problem(post(http, b"[" * (LARGE + 1)), 400, "invalid-json")
