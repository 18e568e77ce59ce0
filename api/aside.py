"""Work that would hold the interpreter lock, or reads untrusted files: done in a process aside.

The process is spawned at start-up, imports numpy, orjson and schemas.facts, ignores Ctrl-C, and
ends with its parent. When an input kills it, it is replaced and the input is refused.
"""

import asyncio
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from api.json_text import parse_large
from api.problems import Refusal
from api.settle import settle

Answer = TypeVar("Answer")
PATIENCE_S = 60.0


class Aside:
    """One helper process."""

    def __init__(self) -> None:
        """Start nothing yet."""
        self._pool: ProcessPoolExecutor | None = None

    def warm(self) -> None:
        """Start the process in the background."""
        self._running().submit(parse_large, b"{}")

    async def run(self, work: Callable[[bytes], Answer], raw: bytes) -> Answer:
        """Have a function of bytes computed there; its exceptions arrive here.

        Raises:
            Refusal: when the process died of the input or did not come to an end.
        """
        loop = asyncio.get_running_loop()
        try:
            return await asyncio.wait_for(
                loop.run_in_executor(self._running(), work, raw), PATIENCE_S
            )
        except (BrokenProcessPool, TimeoutError):
            self.close()
            raise Refusal("validation", "reading this input took too much time or memory") from None

    def close(self) -> None:
        """End the process, whatever it does."""
        pool, self._pool = self._pool, None
        if pool is not None:
            processes = list((pool._processes or {}).values())
            pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.kill()

    def _running(self) -> ProcessPoolExecutor:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(1, context, initializer=settle)
        return self._pool
