"""The life signs of one job: its lease, its progress, its deadline, the wish to cancel it."""

import math
import os
import signal
import threading
import time
from typing import Any

from redis.exceptions import RedisError

from schemas.jobs import Progress
from schemas.settings import Settings
from workers.port import Claim, Ledger, Store


class Pulse:
    """Keep a claim alive from a thread, and answer the routine's question "may I go on?".

    The instance is the `watch` of the algorithms: called with iteration and residual, it reports
    progress and reads the flags at most every `watch_every_s`, and once it has said no it keeps
    saying no. `reason` then tells why: `cancelled`, `deadline` or `lost`.

    A routine that does not ask for `cancel_grace_s` after its owner cancelled it is beyond
    persuasion: the thread ends the job as cancelled and kills this process; the pool replaces it.
    """

    def __init__(self, settings: Settings, store: Store, claim: Claim) -> None:
        """Start beating at once; use as a context manager."""
        self.reason: str | None = None
        self._settings, self._store, self._claim = settings, store, claim
        self._ledger = Ledger(settings)
        self._deadline = math.inf
        self._next = time.monotonic() + settings.watch_every_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "Pulse":
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()

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
            self._heartbeat(Progress(iteration=iteration, residual=finite))
        return self.reason is None

    def _heartbeat(self, progress: Progress | None = None) -> None:
        try:
            verdict = self._store.do(self._ledger.heartbeat(self._claim, progress))
        except RedisError:
            return  # the store is away: the lease decides, and finishing is tried for longer
        if verdict == "cancel":
            self.reason = "cancelled"
        elif verdict == "lost":
            self.reason = "lost"

    def _beat(self) -> None:
        period = min(self._settings.lease_s / 4, max(self._settings.watch_every_s, 0.25))
        grace = None
        while not self._over.wait(period):
            self._heartbeat()
            if self.reason != "cancelled":
                continue
            grace = grace or time.monotonic() + self._settings.cancel_grace_s
            if time.monotonic() >= grace and not self._over.is_set():
                self._store.do(self._ledger.finish(self._claim, "cancelled"))
                os.kill(os.getpid(), signal.SIGKILL)
