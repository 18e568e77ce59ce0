"""A job as its owner sees it."""

from typing import Literal

from pydantic import Field

from schemas.arrays import Strict, Warning
from schemas.problems import Failure

State = Literal["queued", "running", "succeeded", "failed", "cancelled", "expired"]
Kind = Literal["solve", "batch", "vjp", "render"]
LIVE: tuple[State, ...] = ("queued", "running")


class Progress(Strict):
    """How far a running job has come."""

    fraction: float | None = Field(
        default=None, ge=0, le=1, description="null when it cannot be known"
    )
    iteration: int = Field(ge=0)
    residual: float | None = None


class Links(Strict):
    """Where to go from a job."""

    self: str
    result: str
    events: str


class JobRecord(Strict):
    """The record of one job; times are RFC 3339 UTC, durations carry their unit."""

    id: str
    routine: str
    routine_version: str
    kind: Kind
    status: State
    created_at: str
    started_at: str | None = None
    finished_at: str | None = None
    expires_at: str | None = Field(default=None, description="when the result will be dropped")
    attempt: int = Field(description="how often a worker has taken the job")
    max_attempts: int
    cancel_requested: bool = False
    progress: Progress | None = None
    warnings: list[Warning] = []
    error: Failure | None = None
    request_digest: str
    request_id: str | None = None
    links: Links


class JobList(Strict):
    """A page of jobs, newest first."""

    jobs: list[JobRecord]
    next: str | None = Field(default=None, description="cursor of the next page")
