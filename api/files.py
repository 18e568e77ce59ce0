"""Look into uploaded data files without trusting them: what they hold, nothing that runs or grows.

Runs in the helper process of api/aside.py. Sizes are summed before anything is inflated, archives
are read through counted windows, HDF5 links out of the file are refused: a later reader must be
able to open the file blindly.
"""

import csv
import gzip
import io
import math
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

from api import npy

INFLATED = 1 << 30
MAX_MEMBERS = 64
MAX_OBJECTS = 10_000
MAX_COLUMNS = 20_000
WINDOW = 1 << 20
MAX_NAME = 500


class NotData(ValueError):
    """The file is none that we read; the message is for the sender."""


def inspect(raw: bytes) -> dict[str, Any]:
    """Tell what kind of file this is and what it holds; its bytes decide, not its name."""
    if raw.startswith(b"\x89HDF\r\n\x1a\n"):
        return _h5ad(raw)
    if raw.startswith(b"PK\x03\x04"):
        return _npz(raw)
    if raw.startswith(b"\x1f\x8b"):
        return _csv(_gunzipped(raw))
    if len(raw) > 8 and raw[8:9] == b"{":
        return _safetensors(raw)
    return _csv(io.BytesIO(raw))


# .npz


def _npz(raw: bytes) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            members = archive.infolist()
            _check_members(members)
            return {"kind": "npz", "arrays": dict(_member(archive, m) for m in members)}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise NotData(f"not an .npz file: {str(error)[:100]}") from None
    except npy.NotNpy as error:
        raise NotData(f"an .npz file with a member that is no plain array: {error}") from None


def _check_members(members: list[zipfile.ZipInfo]) -> None:
    if len(members) > MAX_MEMBERS:
        raise NotData(f"{len(members)} members; at most {MAX_MEMBERS} are read")
    if sum(m.file_size for m in members) > INFLATED:
        raise NotData(f"the archive inflates to more than {INFLATED} bytes")
    for member in members:
        if not member.filename.endswith(".npy") or "/" in member.filename:
            raise NotData(f"member {member.filename[:100]!r} is not an array at top level")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise NotData(f"member {member.filename[:100]!r} is packed in an unusual way")
        if member.flag_bits & 1:
            raise NotData("the archive is encrypted")


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> tuple[str, list[int]]:
    with archive.open(member) as file:
        first = file.read(npy.MAX_HEADER + 16)
        dtype, shape, _, start = npy.head(first)
        size = len(first)
        while chunk := file.read(WINDOW):
            size += len(chunk)
    if size != start + math.prod(shape) * dtype.itemsize:
        raise npy.NotNpy("its header and its size disagree")
    return member.filename.removesuffix(".npy"), list(shape)


# .csv and .csv.gz


def _gunzipped(raw: bytes) -> io.BytesIO:
    found, size = list[bytes](), 0
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(raw)) as file:
            while chunk := file.read(WINDOW):
                found.append(chunk)
                size += len(chunk)
                if size > INFLATED:
                    raise NotData(f"the file inflates to more than {INFLATED} bytes")
    except (OSError, EOFError, zlib.error) as error:
        raise NotData(f"not a gzip file: {str(error)[:100]}") from None
    return io.BytesIO(b"".join(found))


def _csv(file: io.BytesIO) -> dict[str, Any]:
    try:
        rows = csv.reader(io.TextIOWrapper(file, "utf-8-sig", newline=""), strict=True)
        return _table(rows)
    except (UnicodeDecodeError, csv.Error) as error:
        raise NotData(
            f"none of .h5ad, .npz, .safetensors, .csv, .csv.gz: as CSV, {str(error)[:100]}"
        ) from None


def _table(rows: Iterable[list[str]]) -> dict[str, Any]:
    width, count, names = 0, 0, list[str]()
    for index, row in enumerate(rows):
        if index == 0:
            width = len(row)
            names = row if not all(map(_is_number, row)) else []
            if not 0 < width <= MAX_COLUMNS:
                raise NotData(f"a CSV file has 1 to {MAX_COLUMNS} columns; this has {width}")
        elif len(row) != width:
            raise NotData(f"line {index + 1} has {len(row)} cells, the first has {width}")
        count += 1
    count -= bool(names)
    if count < 1:
        raise NotData("a CSV file needs at least one row of data")
    return {
        "kind": "csv",
        "arrays": {"table": [count, width]},
        "obs": count,
        "obs_columns": [name[:MAX_NAME] for name in names],
    }


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


# .safetensors


def _safetensors(raw: bytes) -> dict[str, Any]:
    from safetensors import SafetensorError, deserialize

    try:
        tensors = deserialize(raw)
    except SafetensorError as error:
        raise NotData(f"not a safetensors file: {str(error)[:100]}") from None
    if len(tensors) > MAX_OBJECTS:
        raise NotData(f"{len(tensors)} tensors; at most {MAX_OBJECTS} are read")
    arrays = {name[:MAX_NAME]: list(about["shape"]) for name, about in tensors}
    dtypes = {name[:MAX_NAME]: str(about["dtype"]) for name, about in tensors}
    return {"kind": "safetensors", "arrays": arrays, "dtypes": dtypes}


# .h5ad


def _h5ad(raw: bytes) -> dict[str, Any]:
    import h5py

    try:
        with h5py.File(io.BytesIO(raw), "r") as file:
            size = sum(_safe(item) for item in _objects(file))
            if size > INFLATED * 8:
                raise NotData(f"the file inflates to {size} bytes")
            return _annotated(file)
    except (OSError, KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        if isinstance(error, NotData):
            raise
        raise NotData(f"not an .h5ad file that can be read: {str(error)[:100]}") from None


def _objects(group: Any) -> Iterator[Any]:
    """Walk everything in an HDF5 file once, following no link out of it."""
    import h5py

    waiting, count = [group], 0
    while waiting:
        here = waiting.pop()
        for name in here:
            if isinstance(here.get(name, getlink=True), h5py.ExternalLink | h5py.SoftLink):
                raise NotData("links to other places are not followed; copy the data in")
            count += 1
            if count > MAX_OBJECTS:
                raise NotData(f"more than {MAX_OBJECTS} groups and arrays")
            item = here[name]
            yield item
            if isinstance(item, h5py.Group):
                waiting.append(item)


def _safe(item: Any) -> int:
    """Count the bytes of an array; refuse those that are elsewhere."""
    if not hasattr(item, "shape"):
        return 0
    if item.external or item.is_virtual:
        raise NotData("arrays stored in other files are not read; copy the data in")
    return math.prod(item.shape or ()) * item.dtype.itemsize


def _annotated(file: Any) -> dict[str, Any]:
    arrays: dict[str, list[int]] = {}
    if "X" in file:
        arrays["X"] = _shape(file["X"])
    for folder in ("layers", "obsm", "varm", "obsp", "varp"):
        for name in file.get(folder, ()):
            arrays[f"{folder}/{name[:MAX_NAME]}"] = _shape(file[folder][name])
    obs, obs_columns = _frame(file, "obs")
    var, var_columns = _frame(file, "var")
    return {
        "kind": "h5ad",
        "arrays": arrays,
        "obs": obs,
        "var": var,
        "obs_columns": obs_columns,
        "var_columns": var_columns,
    }


def _shape(item: Any) -> list[int]:
    """Read the shape of a dense array, or of a sparse one from its attributes."""
    shape = item.shape if hasattr(item, "shape") else item.attrs.get("shape", ())
    return [int(size) for size in shape]


def _frame(file: Any, name: str) -> tuple[int, list[str]]:
    """Read length and columns of a data frame, as groups of columns or as one compound array."""
    frame = file[name]
    if hasattr(frame, "shape"):
        return int(frame.shape[0]), [n[:MAX_NAME] for n in frame.dtype.names or ()][1:]
    columns = [_name(n)[:MAX_NAME] for n in frame.attrs.get("column-order", ())]
    index = frame[_name(frame.attrs.get("_index", "_index"))]
    return int(index.shape[0]), columns[:MAX_COLUMNS]


def _name(text: Any) -> str:
    return text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
