"""The client: families of routines as attributes, jobs, arrays and datasets."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from numpy.typing import NDArray

from brenier.calls import Call, Family
from brenier.jobs import Job
from brenier.results import fetcher
from brenier.uploads import Dataset, Uploads, WritesItself, as_array
from brenier.wire import Wire
from schemas.registry import ROUTINES


class Client:
    """A service, by its address.

    `client.transport.sinkhorn(geometry={"x": x, "y": y}, epsilon=0.1)` asks and waits; the
    families and routines are those of the registry. Safe to share between threads.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        key: str | None = None,
        *,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Connect to nothing yet.

        Args:
            url: where the service listens.
            key: what it asks for, when it has keys.
            transport: how requests travel, if not over the network.
        """
        self._wire = Wire(url, key, transport)

    def __enter__(self) -> "Client":
        """Use the client as a context manager that closes its connections."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the connections."""
        self.close()

    def __getattr__(self, name: str) -> Family:
        """Return a family of routines."""
        if name not in _families():
            raise AttributeError(f"no family {name}; there are {', '.join(_families())}")
        return Family(name, self._wire)

    def __dir__(self) -> list[str]:
        """Offer the families for completion."""
        return [*super().__dir__(), *_families()]

    def __repr__(self) -> str:
        """Show the address, never the key."""
        return f"Client({self.url!r})"

    @property
    def url(self) -> str:
        """Return where the service listens."""
        return self._wire.url

    def close(self) -> None:
        """Close the connections."""
        self._wire.close()

    def routine(self, name: str) -> Call:
        """Return a routine by its full name.

        Raises:
            KeyError: there is none of this name.
        """
        if name not in ROUTINES:
            raise KeyError(f"no routine {name}; there are {', '.join(ROUTINES)}")
        return Call(ROUTINES[name], self._wire)

    def routines(self) -> dict[str, str]:
        """Return what can be asked: names, and what each does in one line."""
        return {name: routine.summary for name, routine in ROUTINES.items()}

    def job(self, job_id: str) -> Job:
        """Return a job by its id."""
        return Job(self._wire, job_id)

    def jobs(self, *, status: str | None = None, routine: str | None = None) -> Iterator[Job]:
        """Walk your own jobs, newest first."""
        wanted = {"status": status, "routine": routine}
        params = {name: value for name, value in wanted.items() if value}
        while True:
            page = self._wire.send("GET", "/v1/jobs", params=params).json()
            for record in page["jobs"]:
                yield Job(self._wire, record["id"], record)
            if not page.get("next"):
                return
            params["cursor"] = page["next"]

    def upload(self, array: Any) -> str:
        """Send an array of any make; the digest that is returned stands for it in questions."""
        return Uploads(self._wire).array(as_array(array))

    def array(self, digest: str) -> NDArray[Any]:
        """Fetch an array by its digest."""
        return fetcher(self._wire)(digest)

    def dataset(self, source: str | Path | WritesItself, **keys: Any) -> Dataset:
        """Send a data file or an AnnData; the answer's `facts` list the keys found in it."""
        digest = Uploads(self._wire).dataset(source)
        sent = Dataset(digest, **keys)
        sent.facts = self._wire.send("GET", f"/v1/datasets/{digest}").json()
        return sent


def _families() -> list[str]:
    return list(dict.fromkeys(routine.family for routine in ROUTINES.values()))
