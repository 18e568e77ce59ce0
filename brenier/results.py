"""Answers with attribute access; arrays are fetched when they are looked at."""

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from brenier.wire import NPY, Wire

if TYPE_CHECKING:
    from brenier.jobs import Job

Fetch = Callable[[str], NDArray[Any]]


@dataclass(frozen=True)
class RemoteArray:
    """An array that the service holds; pass it on in another question without fetching it."""

    digest: str
    dtype: str
    shape: tuple[int, ...]


def fetcher(wire: Wire) -> Fetch:
    """Return what fetches an array by its digest."""

    def fetch(digest: str) -> NDArray[Any]:
        answer = wire.send("GET", f"/v1/arrays/{digest}", headers={"Accept": NPY})
        return np.load(io.BytesIO(answer.content), allow_pickle=False)

    return fetch


class Record:
    """A JSON object of an answer: fields by attribute or key, arrays as numpy."""

    def __init__(self, body: Mapping[str, Any], fetch: Fetch) -> None:
        """Fetch nothing yet."""
        self._body = body
        self.fetch = fetch
        self._seen: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        """Return a field; an array that did not come with the answer is fetched now."""
        if name.startswith("_"):
            raise AttributeError(name)
        if name not in self._body:
            known = ", ".join(self._body)
            raise AttributeError(f"no field {name}; there are {known}")
        return self[name]

    def __getitem__(self, name: str) -> Any:
        """Return a field whose name may not be an identifier, as in gradients."""
        if name not in self._seen:
            self._seen[name] = _read(self._body[name], self.fetch)
        return self._seen[name]

    def __contains__(self, name: object) -> bool:
        """Tell whether there is a field of this name."""
        return name in self._body

    def __iter__(self) -> Iterator[str]:
        """Walk the names of the fields."""
        return iter(self._body)

    def __dir__(self) -> list[str]:
        """Offer the fields for completion."""
        return [*super().__dir__(), *self._body]

    def __repr__(self) -> str:
        """Show scalars, and the shapes of arrays."""
        shown = ", ".join(f"{k}={_short(v)}" for k, v in self._body.items())
        return f"{type(self).__name__}({shown})"

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON as it came: arrays as references, small ones with `values`."""
        return dict(self._body)

    def remote(self, name: str) -> RemoteArray:
        """Return a reference to an array field, to be used in another question."""
        value = self._body[name]
        return RemoteArray(value["digest"], value["dtype"], tuple(value["shape"]))


class Result(Record):
    """The answer to a question; the fields are those of the routine's answer.

    `status` says how the computation ended, `certificate` by which numbers it can be trusted,
    `warnings` what to be careful about, `provenance` where it comes from.
    """

    def __init__(self, body: Mapping[str, Any], fetch: Fetch, job: "Job | None" = None) -> None:
        """Remember the job, for pictures and files of the answer."""
        super().__init__(body, fetch)
        self._job = job

    @property
    def job(self) -> "Job":
        """Return the job that this is the result of.

        Raises:
            ValueError: it is one answer of a batch, which has no job of its own.
        """
        if self._job is None:
            raise ValueError("an answer within a batch has no job of its own")
        return self._job

    def picture(self, kind: str = "png") -> bytes:
        """Draw the answer, as `png` or `svg`."""
        return self.job.picture(kind)

    def h5ad(self) -> bytes:
        """Return the answer as an .h5ad file."""
        return self.job.h5ad()

    def anndata(self) -> Any:
        """Return the answer as an AnnData."""
        return self.job.anndata()


def references(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Walk the arrays of an answer: dotted path, digest."""
    if isinstance(value, dict) and _is_array(value):
        yield path, str(value["digest"])
        return
    inner = value.items() if isinstance(value, dict) else ()
    inner = enumerate(value) if isinstance(value, list) else inner
    for name, item in inner:
        yield from references(item, f"{path}.{name}" if path else str(name))


def _read(value: Any, fetch: Fetch) -> Any:
    if isinstance(value, dict):
        if not _is_array(value):
            return Record(value, fetch)
        if "values" in value:
            return np.array(value["values"], dtype=value["dtype"]).reshape(value["shape"])
        return fetch(value["digest"])
    if isinstance(value, list):
        return [_read(item, fetch) for item in value]
    return value


def _is_array(value: Mapping[str, Any]) -> bool:
    return {"digest", "dtype", "shape"} <= set(value)


def _short(value: Any) -> str:
    if isinstance(value, dict):
        if not _is_array(value):
            return "{...}"
        return f"{value['dtype']}{value['shape']}"
    if isinstance(value, list):
        return f"[{len(value)} items]" if value else "[]"
    return f"{value:.6g}" if isinstance(value, float) else repr(value)
