"""Jobs: questions that were asked, and what has become of them."""

import io
import json
import tempfile
import time
import zipfile
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from brenier.errors import ProblemError, problem_in
from brenier.results import Result, fetcher, references
from brenier.uploads import H5AD
from brenier.wire import JSON, NPZ, Wire
from schemas.jobs import LIVE

POLL_S = 20  # one long poll; the service may answer sooner
GLANCE_S = 0.25  # between two looks when somebody watches
PICTURES = {"png": "image/png", "svg": "image/svg+xml"}


class Job:
    """One job of the service."""

    def __init__(self, wire: Wire, job_id: str, record: dict[str, Any] | None = None) -> None:
        """Ask the service for nothing yet."""
        self._wire = wire
        self._record = record
        self.id = job_id

    def __repr__(self) -> str:
        """Show what was last heard, without asking."""
        status = self._record["status"] if self._record else "not looked at"
        return f"Job({self.id!r}, {status})"

    @property
    def record(self) -> dict[str, Any]:
        """Return the record as it is now; one that has ended is not asked for again."""
        if self._record is None or self._record["status"] in LIVE:
            self._look()
        return self._record or {}

    @property
    def status(self) -> str:
        """Return queued, running, succeeded, failed, cancelled or expired."""
        return str(self.record["status"])

    @property
    def routine(self) -> str:
        """Return the name of the routine that was asked."""
        return str((self._record or self.record)["routine"])

    @property
    def error(self) -> ProblemError | None:
        """Return why a failed job has no answer."""
        failure = self.record.get("error")
        return problem_in(failure) if failure else None

    def wait(self, *, progress: bool = False, timeout_s: float | None = None) -> "Job":
        """Wait until the job has ended, whichever way.

        Args:
            progress: show iteration and residual on the terminal.
            timeout_s: give up waiting after so many seconds; the job goes on.

        Raises:
            TimeoutError: it has not ended in time.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with _shown(self, progress) as show:
            while self.status in LIVE:
                if show is not None:
                    show(self._record or {})
                left = POLL_S if deadline is None else deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"job {self.id} has not ended after {timeout_s} s")
                if show is not None:
                    time.sleep(min(GLANCE_S, left))
                else:
                    self._look(min(POLL_S, left))
        return self

    def result(self, *, progress: bool = False, timeout_s: float | None = None) -> Result:
        """Wait for the answer and return it.

        Raises:
            ProblemError: there is none: the job failed, was cancelled or its result has expired.
            TimeoutError: it is not there in time.
        """
        self.wait(progress=progress, timeout_s=timeout_s)
        try:
            answer = self._wire.send("GET", self._path("/result"), headers={"Accept": JSON})
        except ProblemError as problem:
            if problem.code != "not-acceptable":
                raise
            return self._packed()
        return Result(answer.json(), fetcher(self._wire), self)

    def cancel(self) -> None:
        """Ask that a live job be stopped; nothing happens when it has ended."""
        if self.status in LIVE:
            self._wire.send("DELETE", self._path())

    def forget(self) -> None:
        """Remove a job that has ended, and its result."""
        self.wait()
        self._wire.send("DELETE", self._path())

    def picture(self, kind: str = "png") -> bytes:
        """Draw the answer, as `png` or `svg`."""
        if kind not in PICTURES:
            raise ValueError(f"a picture is {' or '.join(PICTURES)}, not {kind}")
        return self._rendered(PICTURES[kind])

    def h5ad(self) -> bytes:
        """Return the answer as an .h5ad file."""
        return self._rendered(H5AD)

    def anndata(self) -> Any:
        """Return the answer as an AnnData (which must be installed)."""
        anndata: Any = import_module("anndata")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "answer.h5ad")
            path.write_bytes(self.h5ad())
            return anndata.read_h5ad(path)

    def _packed(self) -> Result:
        """Fetch an answer that is too large for JSON, all its arrays with it."""
        answer = self._wire.send("GET", self._path("/result"), headers={"Accept": NPZ})
        with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
            body = json.loads(archive.read("result.json"))
            files = {f.removesuffix(".npy"): archive.read(f) for f in archive.namelist()}
        digests = dict(references(body))
        arrays = {
            digest: np.load(io.BytesIO(files[path]), allow_pickle=False)
            for path, digest in digests.items()
        }
        return Result(body, arrays.__getitem__, self)

    def _rendered(self, media: str) -> bytes:
        self.wait()
        while True:
            headers = {"Accept": media}
            answer = self._wire.send("GET", self._path("/result"), headers=headers, wait_s=POLL_S)
            if answer.status_code == 200:
                return answer.content
            time.sleep(GLANCE_S)  # 202: it is still being drawn

    def _look(self, wait_s: float = 0.0) -> None:
        params = {"wait": f"{wait_s:g}"} if wait_s else None
        answer = self._wire.send("GET", self._path(), params=params, wait_s=wait_s)
        self._record = answer.json()

    def _path(self, tail: str = "") -> str:
        return f"/v1/jobs/{self.id}{tail}"


def _shown(job: Job, progress: bool) -> Any:
    if not progress:
        return nullcontext()
    from brenier.progress import bar  # only watchers pay for rich

    return bar(job.routine)
