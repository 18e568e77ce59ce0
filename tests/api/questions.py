"""A valid question, and ways to spoil it."""

import copy
import json
from typing import Any

import httpx

from schemas.registry import ROUTINES

PATH = "/v1/transport/sinkhorn"
EXAMPLE: dict[str, Any] = ROUTINES["transport.sinkhorn"].example
JSON = {"Content-Type": "application/json"}


def spoilt(path: str, value: Any) -> dict[str, Any]:
    """Copy the example with one field replaced, dotted."""
    body = copy.deepcopy(EXAMPLE)
    *parents, name = path.split(".")
    here = body
    for parent in parents:
        here = here[parent]
    here[name] = value
    return body


def raw(path: str, literal: str) -> bytes:
    """Write the example with one field replaced by text that json.dumps would not write."""
    return json.dumps(spoilt(path, "@@")).replace('"@@"', literal).encode()


def post(http: httpx.Client, content: bytes, **headers: str) -> httpx.Response:
    """Send bytes as JSON."""
    return http.post(PATH, content=content, headers=JSON | headers)


def ask(http: httpx.Client, body: Any = None, path: str = PATH, **headers: str) -> httpx.Response:
    """Ask the example, or something else; header names have underscores for dashes."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return http.post(path, json=EXAMPLE if body is None else body, headers=named)


def problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Check that an answer is a problem in every respect; return it."""
    body = response.json()
    assert response.headers["content-type"] == "application/problem+json"
    assert (response.status_code, body["status"]) == (status, status), body
    assert body["type"] == f"/problems/{code}", body
    assert body["instance"].endswith(response.headers["x-request-id"])
    assert body["title"]
    assert body["detail"]
    return body
