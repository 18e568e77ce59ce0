"""What the endpoints share: settings, the store, news of jobs, the helper process, metrics."""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TypeVar

from prometheus_client import CollectorRegistry
from redis.exceptions import RedisError
from starlette.requests import Request

from api.aside import Aside
from api.wakeups import Wakeups
from schemas.settings import Settings
from workers.port import AsyncStore, Call, Ledger

Answer = TypeVar("Answer")
log = logging.getLogger("brenier.gateway")
REAP_S = 1.0


class Gateway:
    """One gateway process; connections are opened by `serving`."""

    def __init__(self, settings: Settings) -> None:
        """Open nothing yet."""
        self.settings = settings
        self.ledger = Ledger(settings)
        self.store = AsyncStore(settings)
        self.wakeups = Wakeups(self.store, self.ledger)
        self.aside = Aside()
        self.registry = CollectorRegistry()

    async def do(self, call: Call[Answer]) -> Answer:
        """Run a call of the ledger."""
        return await self.store.do(call)

    @asynccontextmanager
    async def serving(self) -> AsyncGenerator[None]:
        """Listen for news and look after lost jobs while the gateway serves."""
        self.aside.warm()
        tasks = [asyncio.create_task(self.wakeups.run()), asyncio.create_task(self._reap())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.aside.close()
            await self.store.close()

    async def _reap(self) -> None:
        """Put lost jobs back into the queue; the store lets one process at a time do it."""
        name = secrets.token_hex(8)
        while True:
            with contextlib.suppress(RedisError, OSError):
                requeued, ended = await self.do(self.ledger.reap(name))
                if requeued > 0 or ended > 0:
                    log.warning("lost jobs: %d queued again, %d ended", requeued, ended)
            await asyncio.sleep(REAP_S)


def tenant_of(request: Request) -> str:
    """Return whose request this is (api/keys.py)."""
    return request.scope["state"]["tenant"]


def request_id_of(request: Request) -> str:
    """Return the id under which the log has this request (api/headers.py)."""
    return request.scope["state"]["request_id"]
