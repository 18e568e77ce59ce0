"""Arrays: upload and download in each form, and .npy files that lie."""

import io
from typing import Any

import httpx
import numpy as np
import pytest

from api import npy
from schemas.facts import digest_of
from tests.api.questions import problem

NPY = {"Content-Type": "application/x-npy"}
X = np.arange(12, dtype=np.float32).reshape(3, 4)


def saved(array: Any, **more: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **more)
    return file.getvalue()


def upload(http: httpx.Client, content: bytes) -> httpx.Response:
    return http.post("/v1/arrays", content=content, headers=NPY)


def test_upload_and_download(http: httpx.Client) -> None:
    first, again = upload(http, saved(X)), upload(http, saved(X))
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    assert first.json()["digest"] == digest_of(X)
    assert first.headers["location"] == first.json()["href"]
    response = http.get(first.json()["href"])
    assert response.headers["content-type"] == "application/x-npy"
    assert np.array_equal(np.load(io.BytesIO(response.content)), X)
    tag = {"If-None-Match": response.headers["etag"]}
    assert http.get(first.json()["href"], headers=tag).status_code == 304
    head = http.head(first.json()["href"])
    assert head.headers["content-length"] == str(len(response.content))
    assert head.headers["etag"] == response.headers["etag"]


@pytest.mark.parametrize("dtype", ["f8", "f4", "f2", "i8", "i4", "u1", "?", ">f8", ">i4"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (2, 3, 4)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_kind_of_array_comes_back(dtype: str, shape: Any, order: Any) -> None:
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype, order=order)
    read = npy.parse(saved(array))
    assert read.dtype == array.dtype.newbyteorder("<")
    assert read.flags.c_contiguous
    assert np.array_equal(read, array)
    assert npy.write(read) == saved(np.ascontiguousarray(read).reshape(shape))
    assert npy.size(read.dtype.name, list(shape)) == len(npy.write(read))


def head(text: str, data: bytes = b"", version: int = 1) -> bytes:
    width = 2 if version == 1 else 4
    return (
        npy.MAGIC + bytes([version, 0]) + len(text).to_bytes(width, "little") + text.encode() + data
    )


PLAIN = "{'descr': '<f8', 'fortran_order': False, 'shape': (%s), }"


def test_newer_versions_are_read() -> None:
    assert npy.parse(head(PLAIN % "1,", bytes(8), 2)).shape == (1,)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "not a .npy"),
        (b"PK\x03\x04" * 10, "not a .npy"),
        (saved(X)[:-1], "47 follow"),
        (saved(X) + b"x", "49 follow"),
        (head(PLAIN % "499999999999, 1000"), "announces"),
        (head(PLAIN % ("9" * 30)), "a huge one"),
        (head(PLAIN % ("1, " * 33), bytes(8)), "32 axes"),
        (head("{'shape': (1,)}", bytes(8)), "no array"),
        (head("(" * 500), "no array"),
        (head((PLAIN % ("1" * 4000)).replace(")", "")), "no array"),
        (head("x" * 5000), "damaged"),
        (head(PLAIN % "1,", bytes(8), 9), "damaged"),
        (saved(X)[:20], "damaged"),
        (saved(np.array(["a"])), "element type"),
        (saved(np.array([b"a"])), "element type"),
        (saved(np.zeros(1, "M8[s]")), "no array"),
        (saved(np.zeros(1, "c16")), "element type"),
        (saved(np.zeros(1, "f8,f8")), "no array"),
        (saved(np.array([None]), allow_pickle=True), "element type"),
        (head((PLAIN % "1,").replace("<f8", "<f99"), bytes(8)), "element type"),
    ],
)
def test_files_that_lie(http: httpx.Client, content: bytes, text: str) -> None:
    assert text in problem(upload(http, content), 422, "validation")["detail"]


def test_large_uploads_are_read_off_the_loop(http: httpx.Client) -> None:
    assert upload(http, saved(np.zeros(50_000))).status_code == 201
    problem(upload(http, saved(np.zeros(50_000))[:-1]), 422, "validation")


def test_json(http: httpx.Client) -> None:
    first = http.post("/v1/arrays", json=[[0.5, 1.0], [2.0, 3.0]])
    assert first.json()["shape"] == [2, 2]
    response = http.get(first.json()["href"], headers={"Accept": "application/json"})
    assert response.json()["values"] == [[0.5, 1.0], [2.0, 3.0]]
    data = {"dtype": "float16", "shape": [1], "data": "ADw="}
    half = http.post("/v1/arrays", json=data).json()
    text = http.get(half["href"], headers={"Accept": "application/json"}).json()
    assert (text["dtype"], text["values"]) == ("float16", [1.0])


@pytest.mark.parametrize(
    ("body", "code", "pointer"),
    [
        ([[1.0], [2.0, 3.0]], "shape-mismatch", "#/1"),
        ({"dtype": "float64"}, "validation", "#"),
        ("sha256:" + "0" * 64, "no-such-array", "#"),
        (True, "validation", "#"),
    ],
)
def test_json_that_is_no_array(http: httpx.Client, body: Any, code: str, pointer: str) -> None:
    found = problem(http.post("/v1/arrays", json=body), 422, code)
    assert found["errors"][0]["pointer"] == pointer


def test_what_json_cannot_say_is_refused(http: httpx.Client) -> None:
    href = upload(http, saved(np.array([np.nan]))).json()["href"]
    response = http.get(href, headers={"Accept": "application/json"})
    assert "NaN" in problem(response, 406, "not-acceptable")["detail"]
    assert np.isnan(np.load(io.BytesIO(http.get(href).content))).all()


@pytest.mark.parametrize("name", ["x", "sha256:" + "0" * 64, "sha256:" + "0" * 63])
@pytest.mark.parametrize("what", ["arrays", "datasets"])
def test_unknown_names(http: httpx.Client, what: str, name: str) -> None:
    problem(http.get(f"/v1/{what}/{name}"), 404, "not-found")
    assert http.head(f"/v1/{what}/{name}").status_code == 404


def test_nothing_is_unchanged_that_is_not_there(http: httpx.Client) -> None:
    unknown = f"/v1/arrays/sha256:{'0' * 64}"
    problem(http.get(unknown, headers={"If-None-Match": "*"}), 404, "not-found")
