"""News of jobs: one subscription of this process, many waiters.

The store publishes each change of a job on a channel of its own; publications are not durable, so
they only wake: whoever waits reads the record again, and does so every few seconds anyway.
Listening begins before the first reading, or news between the two would be lost.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from redis.exceptions import RedisError

from workers.port import AsyncStore, Ledger

log = logging.getLogger("brenier.gateway")
RECHECK_S = 3.0
RETRY_S = 0.5
REMEMBERED = 4096
ENDS = frozenset((b"succeeded", b"failed", b"cancelled"))


class Bell:
    """Rings when there is news of one job."""

    def __init__(self, ends_only: bool) -> None:
        """Ring for every change, or for the end alone."""
        self.ends_only = ends_only
        self._event = asyncio.Event()

    def ring(self) -> None:
        """Wake whoever waits, now or next."""
        self._event.set()

    async def wait(self, seconds: float) -> None:
        """Return at the next ring, or when the time is over."""
        try:
            async with asyncio.timeout(seconds):
                await self._event.wait()
        except TimeoutError:
            return
        self._event.clear()


class Wakeups:
    """The subscription, and who is to be woken."""

    def __init__(self, store: AsyncStore, ledger: Ledger) -> None:
        """Open no connection yet."""
        self._store, self._pattern = store, ledger.channel("*")
        self._prefix = len(ledger.channel(""))
        self._bells: dict[str, set[Bell]] = {}
        self._ended: OrderedDict[str, None] = OrderedDict()

    @contextmanager
    def listen(self, job: str, *, ends_only: bool = False) -> Generator[Bell]:
        """Have a bell for one job; it has rung already when the job is known to have ended."""
        bell = Bell(ends_only)
        self._bells.setdefault(job, set()).add(bell)
        if job in self._ended:
            bell.ring()
        try:
            yield bell
        finally:
            self._bells[job].discard(bell)
            if not self._bells[job]:
                del self._bells[job]

    async def run(self) -> None:
        """Listen until cancelled; come back after the store was away."""
        while True:
            try:
                await self._follow()
            except (RedisError, OSError) as error:
                log.warning("no news from the store: %s", error)
                await asyncio.sleep(RETRY_S)

    async def _follow(self) -> None:
        async with self._store.redis.pubsub(ignore_subscribe_messages=True) as channel:
            await channel.psubscribe(self._pattern)
            self._ring_all()  # what happened while nobody listened
            async for message in channel.listen():
                self._hear(message)

    def _hear(self, message: Any) -> None:
        job = message["channel"].decode()[self._prefix :]
        end = message["data"] in ENDS
        if end:
            self._ended[job] = None
            if len(self._ended) > REMEMBERED:
                self._ended.popitem(last=False)
        for bell in self._bells.get(job, ()):
            if end or not bell.ends_only:
                bell.ring()

    def _ring_all(self) -> None:
        for bells in self._bells.values():
            for bell in bells:
                bell.ring()
