"""Arrays and data files on their way to the service, by the digest of what they hold."""

import hashlib
import io
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from brenier.wire import NPY, Wire
from schemas.facts import DTYPES, digest_of

H5AD = "application/x-hdf5"
MEDIA = {
    ".h5ad": H5AD,
    ".npz": "application/x-npz",
    ".csv": "text/csv",
    ".gz": "application/gzip",
    ".safetensors": "application/vnd.safetensors",
}


@runtime_checkable
class WritesItself(Protocol):
    """What can write itself as an .h5ad file: an AnnData, or a simulated section."""

    def write_h5ad(self, path: Path) -> None:
        """Write the file."""
        ...


class Dataset:
    """A data file and the keys to read in it, where a question asks for a selection.

    `Dataset("a.h5ad", label_key="cluster")`; the source is a path, an AnnData or the digest of a
    file that the service has. `facts` is what the service found in the file, when it came from
    `Client.dataset`.
    """

    def __init__(self, source: str | Path | WritesItself, **keys: Any) -> None:
        """Take the keys as keyword arguments, so that they read like fields."""
        self.source = source
        self.keys = keys
        self.facts: dict[str, Any] = {}

    def __repr__(self) -> str:
        """Show source and keys as they would be written."""
        shown = [repr(self.source) if isinstance(self.source, str | Path) else "..."]
        shown += [f"{name}={key!r}" for name, key in self.keys.items()]
        return f"Dataset({', '.join(shown)})"


@dataclass(frozen=True)
class Uploads:
    """Send what the service does not have yet."""

    wire: Wire

    def array(self, array: NDArray[Any]) -> str:
        """Send an array unless the service knows it; return its digest."""
        array = normal(array)
        digest = digest_of(array)
        if not self.wire.knows(f"/v1/arrays/{digest}"):
            file = io.BytesIO()
            np.save(file, array, allow_pickle=False)
            headers = {"Content-Type": NPY}
            answer = self.wire.send("POST", "/v1/arrays", content=file.getvalue(), headers=headers)
            return str(answer.json()["digest"])
        return digest

    def dataset(self, source: str | Path | WritesItself) -> str:
        """Send a data file unless the service knows it; return its digest."""
        if isinstance(source, str) and is_digest(source):
            return source
        raw, suffix = _bytes_of(source)
        digest = "sha256:" + hashlib.sha256(raw).hexdigest()
        if not self.wire.knows(f"/v1/datasets/{digest}"):
            headers = {"Content-Type": MEDIA.get(suffix, "application/octet-stream")}
            self.wire.send("POST", "/v1/datasets", content=raw, headers=headers)
        return digest


def is_digest(text: str) -> bool:
    """Tell the name of stored bytes from a path."""
    return text.startswith("sha256:")


def as_array(value: Any) -> NDArray[Any]:
    """Read an array of any make: numpy, torch, jax, pandas, lists; sparse ones become dense.

    Raises:
        ValueError, TypeError: it is none.
    """
    if hasattr(value, "detach"):  # a torch tensor, maybe on a GPU, maybe with a gradient
        value = value.detach().cpu().numpy()
    elif hasattr(value, "toarray"):  # scipy.sparse
        value = value.toarray()
    return normal(np.asarray(value))


def normal(array: NDArray[Any]) -> NDArray[Any]:
    """Bring an array into the form that travels: C order, little-endian, a known element type.

    Raises:
        TypeError: the element type is none that can be converted without loss.
    """
    if array.dtype.name not in DTYPES:
        kinds = (np.int64, np.float64)
        wider = next((k for k in kinds if np.can_cast(array.dtype, k, "safe")), None)
        if wider is None or array.dtype.kind not in "iuf":
            raise TypeError(f"element type {array.dtype} is not one of {', '.join(DTYPES)}")
        array = array.astype(wider)
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    return np.asarray(array, order="C")


def _bytes_of(source: str | Path | WritesItself) -> tuple[bytes, str]:
    if isinstance(source, str | Path):
        path = Path(source).expanduser()
        return path.read_bytes(), path.suffix
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "data.h5ad")
        source.write_h5ad(path)
        return path.read_bytes(), path.suffix
