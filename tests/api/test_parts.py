"""Pieces that need no server: pointers, JSON text, negotiation, forms."""

import json
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from pydantic import Field, ValidationError

from api import json_text, pages, parts
from api.json_text import NotJson, parse_large, with_arrays
from api.negotiate import choose
from api.pointers import clean, errors_of, pointer
from schemas.arrays import Strict


class Left(Strict):
    kind: Literal["left"] = "left"
    size: int


class Right(Strict):
    kind: Literal["right"] = "right"
    size: int


class Whole(Strict):
    side: Annotated[Left | Right, Field(discriminator="kind")] = Left(size=1)
    sides: list[Annotated[Left | Right, Field(discriminator="kind")]] = []
    either: int | Literal["auto"] = "auto"
    model: Left | float | None = None
    table: dict[str, Left] = {}
    short: dict[Annotated[str, Field(max_length=3)], int] = {}


@pytest.mark.parametrize(
    ("body", "pointers"),
    [
        ({"side": {"kind": "right", "size": "x"}}, ["#/side/size"]),
        ({"side": {"kind": "left", "size": 1, "left": 2}}, ["#/side/left"]),
        ({"sides": [{"kind": "left", "size": 1}, {"kind": "right"}]}, ["#/sides/1/size"]),
        ({"sides": [{"kind": "none"}]}, ["#/sides/0"]),
        ({"either": "x"}, ["#/either", "#/either"]),
        ({"model": {"size": "x"}}, ["#/model/size", "#/model"]),
        ({"table": {"a/b": {"size": "x"}}}, ["#/table/a~1b/size"]),
        ({"short": {"long key": 1}}, ["#/short/long%20key"]),
        ({"what": {"more": 1}}, ["#/what"]),
    ],
)
def test_tags_of_unions_are_not_in_pointers(body: Any, pointers: list[str]) -> None:
    with pytest.raises(ValidationError) as caught:
        Whole.model_validate(body)
    assert [e.pointer for e in errors_of(caught.value, Whole)] == pointers
    below = errors_of(caught.value, Whole, ("problems", 3))
    assert [e.pointer for e in below] == [p.replace("#", "#/problems/3") for p in pointers]


def test_pointers_are_fragments() -> None:
    assert pointer(["a/b", "c~d", 0, "é %", ""]) == "#/a~1b/c~0d/0/%C3%A9%20%25/"
    assert pointer(["\ud800"]) == "#/?"


def test_text_is_made_safe() -> None:
    odd = "\N{REPLACEMENT CHARACTER}"
    assert clean("a\ud800\r\nb") == f"a?{odd}{odd}b"
    assert len(clean("x" * 1000)) == 500


def test_large_bodies_become_arrays() -> None:
    rows = [[float(i), 0.5] for i in range(200)]
    found = parse_large(json.dumps({"x": rows, "few": [1, 2], "items": [{"y": rows}]}).encode())
    assert isinstance(found["x"], np.ndarray)
    assert isinstance(found["items"][0]["y"], np.ndarray)
    assert found["few"] == [1, 2]
    ragged = [*rows, [1.0]]
    assert with_arrays({"x": ragged}) == {"x": ragged}
    assert with_arrays([]) == []


def test_deep_bodies_are_refused() -> None:
    value: Any = 1
    for _ in range(40):
        value = {"a": value}
    with pytest.raises(NotJson, match="deep"):
        with_arrays(value)


def test_large_text_goes_through_the_fast_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_text, "SMALL", 10)
    assert json_text.parse(b'{"a": [1, 2, 3]}') == {"a": [1, 2, 3]}
    assert np.isnan(json_text.parse(b'{"a": [1, NaN, 3]}')["a"][1])
    with pytest.raises(NotJson):
        json_text.parse(b'{"a": [1, 2, 3]')


def test_no_wish_is_any_wish() -> None:
    assert choose(None, ["a/b", "c/d"]) == "a/b"
    assert choose("", ["a/b", "c/d"]) == "a/b"


def test_a_part_with_many_headers() -> None:
    headers = "".join(f"X-{i}: y\r\n" for i in range(9))
    raw = f"--b\r\n{headers}\r\n{{}}\r\n--b--\r\n".encode()
    with pytest.raises(parts.Unreadable, match="not multipart"):
        parts.from_multipart(raw, {b"boundary": b"b"})


def test_pages_need_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="fastapi-offline"):
        pages.assets()
