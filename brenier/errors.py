"""What goes wrong between a client and the service.

BrenierError
  ProblemError    the service answered, and the answer is a problem
  Unreachable     no service answered
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

SHOWN = 3  # errors of a problem that its text lists


class BrenierError(Exception):
    """The base of every error that the client raises on purpose."""


class Unreachable(BrenierError):
    """No service answered at the address, or the connection broke."""


@dataclass(frozen=True)
class FieldProblem:
    """One thing wrong with one place of a question."""

    pointer: str
    """RFC 6901 pointer into the question, as in `#/geometry/x/3/2`."""
    code: str
    message: str


class ProblemError(BrenierError):
    """The service refused a question, or has no answer to it (RFC 9457)."""

    def __init__(
        self,
        code: str,
        status: int,
        detail: str,
        *,
        errors: Sequence[FieldProblem] = (),
        retry: bool = False,
        retry_after: float | None = None,
        incident: str | None = None,
        instance: str | None = None,
    ) -> None:
        """Keep what the problem says, for programs; `str()` of it is for people."""
        super().__init__(code, status, detail)
        self.code = code
        self.status = status
        self.detail = detail
        self.errors = tuple(errors)
        self.retry = retry
        self.retry_after = retry_after
        self.incident = incident
        self.instance = instance

    def __str__(self) -> str:
        """Say what is wrong and where, on one or two lines."""
        first = f"{self.code} ({self.status}): {self.detail}"
        if self.incident:
            first += f" (incident {self.incident})"
        places = [f"{e.pointer}: {e.message}" for e in self.errors if e.message not in self.detail]
        more = f"; and {len(places) - SHOWN} more" if len(places) > SHOWN else ""
        return first + (f"\n{'; '.join(places[:SHOWN])}{more}" if places else "")


def problem_in(body: Any, *, status: int = 0, retry_after: float | None = None) -> ProblemError:
    """Read a problem: an `application/problem+json` body, or the failure kept with a job."""
    body = body if isinstance(body, dict) else {}
    kind = body.get("code") or str(body.get("type") or "").rsplit("/", 1)[-1]
    return ProblemError(
        kind or "unknown",
        int(body.get("status") or status),
        str(body.get("detail") or body.get("title") or "the service gave no reason"),
        errors=[
            FieldProblem(str(e.get("pointer")), str(e.get("code")), str(e.get("message")))
            for e in body.get("errors") or ()
        ],
        retry=bool(body.get("retry")),
        retry_after=retry_after,
        incident=body.get("incident"),
        instance=body.get("instance"),
    )


def problem_of(response: httpx.Response) -> ProblemError:
    """Read the problem that a response with an error status carries."""
    after = response.headers.get("Retry-After", "")
    wait = float(after) if after.isdigit() else None
    try:
        body = response.json()
    except ValueError:
        body = {"detail": response.text[:200].strip() or response.reason_phrase}
    return problem_in(body, status=response.status_code, retry_after=wait)
