"""The life signs of one job: its lease, its progress, its deadline, the wish to cancel it."""

import math
import os
import signal
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress

from redis.exceptions import RedisError

from schemas.jobs import Progress, State
from schemas.problems import Failure
from schemas.settings import Settings
from workers.port import Claim, Ledger, Store

LATE = Failure(
    code="deadline-exceeded",
    detail="the routine did not come to an end within timeout_s, nor soon after it; "
    "allow more time or ask a smaller question",
)


class Pulse:
    """Keep a claim alive, and answer the routine's question "may I go on?".

    The instance is the `watch` of the algorithms: called with iteration and residual, it reports
    progress and reads the flags at most every `watch_every_s`, and once it has said no it keeps
    saying no. `reason` then tells why: `cancelled`, `deadline` or `lost`.
    """

    def __init__(self, settings: Settings, store: Store, claim: Claim) -> None:
        """Set no deadline yet."""
        self.reason: str | None = None
        self._settings, self._store, self._claim = settings, store, claim
        self._ledger = Ledger(settings)
        self._deadline = math.inf
        self._cancelled_at = math.inf
        self._next = time.monotonic() + settings.watch_every_s

    @property
    def period(self) -> float:
        """Return the seconds between two beats: well within the lease, soon after a flag."""
        return min(self._settings.lease_s / 4, max(self._settings.watch_every_s, 0.25))

    def limit(self, seconds: float | None) -> None:
        """Set the deadline, counted from now; one that has passed is forgotten."""
        if self.reason == "deadline":
            self.reason = None
        self._deadline = math.inf if seconds is None else time.monotonic() + seconds

    def __call__(self, iteration: int, residual: float) -> bool:
        """Answer whether the computation may go on."""
        now = time.monotonic()
        if self.reason is None and now >= self._deadline:
            self.reason = "deadline"
        if self.reason is None and iteration >= 0 and now >= self._next:
            self._next = now + self._settings.watch_every_s
            finite = residual if math.isfinite(residual) else None
            self.beat(Progress(iteration=iteration, residual=finite))
        return self.reason is None

    def beat(self, progress: Progress | None = None) -> None:
        """Extend the lease, and hear whether the owner has cancelled."""
        try:
            verdict = self._store.do(self._ledger.heartbeat(self._claim, progress))
        except RedisError:
            return  # the store is away: the lease decides, and finishing is tried for longer
        if verdict == "cancel":
            self.reason = "cancelled"
            self._cancelled_at = min(self._cancelled_at, time.monotonic())
        elif verdict == "lost":
            self.reason = "lost"

    def beyond_persuasion(self) -> State | None:
        """Tell how a routine ends that has not stopped although it was asked `grace` ago."""
        since = time.monotonic() - self._settings.cancel_grace_s
        if since >= self._cancelled_at:
            return "cancelled"
        return "failed" if since >= self._deadline else None

    def give_up(self, status: State) -> None:
        """End the job from outside and this process with it; the pool replaces it."""
        failure = LATE if status == "failed" else None
        with suppress(RedisError):
            self._store.do(self._ledger.finish(self._claim, status, failure=failure))
        os.kill(os.getpid(), signal.SIGKILL)


class Heart:
    """One thread of this process that beats for the job at hand."""

    def __init__(self) -> None:
        """Start no thread yet."""
        self._pulse: Pulse | None = None
        self._rest = threading.Event()
        self._thread: threading.Thread | None = None

    @contextmanager
    def beating(self, pulse: Pulse) -> Generator[Pulse]:
        """Beat for a job while its attempt lasts."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        self._pulse = pulse
        try:
            yield pulse
        finally:
            self._pulse = None

    def _run(self) -> None:
        seen: Pulse | None = None
        while not self._rest.wait(seen.period if seen else 0.25):
            pulse = self._pulse
            if pulse is None or pulse is not seen:
                seen = pulse  # too young to need a beat
                continue
            pulse.beat()
            status = pulse.beyond_persuasion()
            if status is not None and self._pulse is pulse:
                pulse.give_up(status)
