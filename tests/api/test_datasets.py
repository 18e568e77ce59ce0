"""Data files: what is told about each kind, and files that are bombs, lies or traps."""

import gzip
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import httpx
import numpy as np
import pytest
from safetensors.numpy import save

from api import files
from api.files import NotData, inspect
from schemas.samples import samples
from tests.api.questions import problem
from tests.api.test_arrays import saved

OCTETS = {"Content-Type": "application/octet-stream"}


def zipped(members: dict[str, bytes], **more: Any) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **more) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def hdf5(fill: Callable[[Any], None]) -> bytes:
    file = io.BytesIO()
    with h5py.File(file, "w") as root:
        frame(root, "obs", 3)
        frame(root, "var", 2)
        fill(root)
    return file.getvalue()


def frame(root: Any, name: str, count: int) -> None:
    group = root.create_group(name)
    group.attrs["_index"], group.attrs["column-order"] = "_index", ["label"]
    group["_index"] = np.arange(count)
    group["label"] = np.arange(count)


def upload(http: httpx.Client, content: bytes) -> httpx.Response:
    return http.post("/v1/datasets", content=content, headers=OCTETS)


def test_upload_and_download(http: httpx.Client) -> None:
    digest, path = next(iter(samples().items()))
    raw = path.read_bytes()
    first, again = upload(http, raw), upload(http, raw)
    assert (first.status_code, again.status_code) == (201, 200)
    facts = first.json()
    assert (facts["digest"], facts["kind"], facts["bytes"]) == (digest, "h5ad", len(raw))
    assert facts["arrays"]["obsm/spatial"] == [facts["obs"], 2]
    assert facts["arrays"]["X"] == [facts["obs"], facts["var"]]
    assert "domain" in facts["obs_columns"]
    described = http.get(first.headers["location"])
    assert described.json() == facts == again.json()
    tag = {"If-None-Match": described.headers["etag"]}
    assert http.get(first.headers["location"], headers=tag).status_code == 304
    octets = {"Accept": "application/octet-stream"}
    assert http.get(first.headers["location"], headers=octets).content == raw


def test_bad_files_are_problems(http: httpx.Client) -> None:
    found = problem(upload(http, b"\xff\xfe"), 422, "validation")
    assert "none of .h5ad" in found["detail"]
    problem(http.post("/v1/datasets", content=b"x"), 415, "unsupported-media-type")


def test_h5ad() -> None:
    def fill(root: Any) -> None:
        sparse = root.create_group("X")
        sparse.attrs["shape"] = [3, 2]
        root["obsm/spatial"] = np.zeros((3, 2))
        root["layers/counts"] = np.zeros((3, 2))

    facts = inspect(hdf5(fill))
    assert facts["arrays"] == {"X": [3, 2], "layers/counts": [3, 2], "obsm/spatial": [3, 2]}
    assert (facts["obs"], facts["var"], facts["obs_columns"]) == (3, 2, ["label"])


def test_h5ad_with_compound_frames() -> None:
    def fill(root: Any) -> None:
        del root["obs"], root["var"]
        root["obs"] = np.zeros(3, [("index", "i4"), ("label", "i4")])
        root["var"] = np.zeros(2, [("index", "i4")])

    facts = inspect(hdf5(fill))
    assert (facts["obs"], facts["obs_columns"], facts["var_columns"]) == (3, ["label"], [])


def external(root: Any) -> None:
    root.create_dataset("X", (3, 2), "u1", external=[("/etc/passwd", 0, 6)])


def virtual(root: Any) -> None:
    layout = h5py.VirtualLayout((3,), "u1")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (3,))
    root.create_virtual_dataset("X", layout)


def linked(root: Any) -> None:
    root["X"] = h5py.ExternalLink("/etc/passwd", "/x")


def soft(root: Any) -> None:
    root["X"] = h5py.SoftLink("/obs")


def bomb(root: Any) -> None:
    root.create_dataset("X", (2**40, 2**10), "f8", chunks=(1, 1024), compression="gzip")


def endless(root: Any) -> None:
    root["round"] = root["/"]


@pytest.mark.parametrize(
    ("fill", "text"),
    [
        (external, "other files"),
        (virtual, "other files"),
        (linked, "not followed"),
        (soft, "not followed"),
        (bomb, "inflates"),
        (endless, "more than"),
    ],
)
def test_h5ad_traps(
    fill: Callable[[Any], None], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_OBJECTS", 100)
    with pytest.raises(NotData, match=text):
        inspect(hdf5(fill))


def test_h5ad_that_is_none() -> None:
    whole = hdf5(lambda root: None)
    with pytest.raises(NotData, match=r"not an \.h5ad"):
        inspect(whole[: len(whole) // 2])
    file = io.BytesIO()
    with h5py.File(file, "w") as root:
        root["x"] = 1
    with pytest.raises(NotData, match=r"not an \.h5ad"):
        inspect(file.getvalue())


def test_npz() -> None:
    for write in (np.savez, np.savez_compressed):
        file = io.BytesIO()
        write(file, x=np.zeros((2, 3)), y=np.zeros(70_000))
        assert inspect(file.getvalue())["arrays"] == {"x": [2, 3], "y": [70_000]}


ARRAY = saved(np.zeros(3))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (zipped({f"{i}.npy": ARRAY for i in range(65)}), "65 members"),
        (zipped({"a/x.npy": ARRAY}), "top level"),
        (zipped({"x.txt": ARRAY}), "top level"),
        (zipped({"x.npy": ARRAY}, compression=zipfile.ZIP_BZIP2), "unusual"),
        (zipped({"x.npy": ARRAY[:-1]}), "disagree"),
        (zipped({"x.npy": saved(np.array([None]), allow_pickle=True)}), "plain array"),
        (zipped({"x.npy": b""}), "plain array"),
        (zipped({"x.npy": ARRAY})[:-30], "not an .npz"),
        (zipped({"x.npy": ARRAY}).replace(b"\x93NUMPY", b"\x93NUMPX"), "not an .npz"),
    ],
)
def test_npz_traps(content: bytes, text: str) -> None:
    with pytest.raises(NotData, match=text):
        inspect(content)


def test_encrypted_npz() -> None:
    content = bytearray(zipped({"x.npy": ARRAY}))
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(NotData, match="encrypted"):
        inspect(bytes(content))


def test_zip_bomb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "INFLATED", 10_000)
    content = zipped({"x.npy": saved(np.zeros(10_000))}, compression=zipfile.ZIP_DEFLATED)
    assert len(content) < 1000
    with pytest.raises(NotData, match="inflates"):
        inspect(content)


def test_gzip_bomb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "INFLATED", 10_000)
    with pytest.raises(NotData, match="inflates"):
        inspect(gzip.compress(b"1,2\n" * 10_000))


@pytest.mark.parametrize("pack", [lambda text: text, gzip.compress])
def test_csv(pack: Callable[[bytes], bytes]) -> None:
    named = inspect(pack(b"x,y\n1,2\n3,4\n"))
    assert (named["arrays"], named["obs_columns"]) == ({"table": [2, 2]}, ["x", "y"])
    bare = inspect(pack(b"1,2\n3,4\n5,6\n"))
    assert (bare["arrays"], bare["obs_columns"], bare["obs"]) == ({"table": [3, 2]}, [], 3)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "at least one row"),
        (b"x,y\n", "at least one row"),
        (b"1,2\n3\n", "line 2 has 1 cells"),
        (b"\n1,2\n", "1 to"),
        (b'"x\n', "none of"),
        (b"\xff\xff", "none of"),
        (gzip.compress(b"1,2\n", mtime=0)[:-4], "not a gzip"),
        (b"\x1f\x8b\x08rubbish", "not a gzip"),
    ],
)
def test_csv_traps(content: bytes, text: str) -> None:
    with pytest.raises(NotData, match=text):
        inspect(content)


def test_safetensors(monkeypatch: pytest.MonkeyPatch) -> None:
    content = save({"x": np.zeros((2, 3)), "y": np.zeros(1)})
    assert inspect(content)["arrays"] == {"x": [2, 3], "y": [1]}
    with pytest.raises(NotData, match="not a safetensors"):
        inspect(content[:-1])
    monkeypatch.setattr(files, "MAX_OBJECTS", 1)
    with pytest.raises(NotData, match="2 tensors"):
        inspect(content)


def test_the_shipped_files_can_be_read_by_everybody() -> None:
    assert all(inspect(Path(path).read_bytes())["obs"] for path in samples().values())
