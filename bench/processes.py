"""The service under measurement, in processes of its own, and the CPU time that each has used."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from schemas.settings import Settings

PATIENCE_S = 60.0
ROLES = {"valkey-server": "store", "uvicorn": "gateway", "celery": "worker"}


@dataclass(frozen=True)
class Service:
    """A running service: its address and the processes below its supervisor."""

    url: str
    supervisor: int

    def cpu_ms(self) -> dict[str, float]:
        """Sum the CPU time by role; `helper` is what the gateway and the workers have spawned."""
        found = dict.fromkeys(("gateway", "helper", "worker", "store"), 0.0)
        for pid in descendants(self.supervisor):
            found[role(pid)] += cpu_ms(pid)
        return found


def role(pid: int) -> str:
    """Tell what a process is by its command line and its parent's."""
    command = _command(pid)
    for word, name in ROLES.items():
        if word in command:
            return name
    return "worker" if "celery" in _command(_parent(pid)) else "helper"


def cpu_ms(pid: int) -> float:
    """Read the CPU time of a process, all threads, in steps of a clock tick (10 ms)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK")


def descendants(pid: int) -> Iterator[int]:
    """Walk the processes below one."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
    except FileNotFoundError:
        return
    for task in tasks:
        for child in (task / "children").read_text().split():
            yield int(child)
            yield from descendants(int(child))


@contextmanager
def service(**settings: object) -> Generator[Service]:
    """Run store, worker and gateway as `brenier up` does."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        environment = Settings(data_dir=home / "data", **settings).environment()  # pyright: ignore
        with (home / "log").open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "workers.up", "--port", "0"],
                env=environment, stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip
        try:
            url = awaited(home / "log", process, r"ready at (\S+)")
            yield Service(url, process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE_S)


def awaited(log: Path, process: subprocess.Popen[bytes], pattern: str) -> str:
    """Wait until a process has written a line, and return what was asked of it."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and process.poll() is None:
        found = re.search(pattern, log.read_text())
        if found:
            return found[1]
        time.sleep(0.05)
    raise RuntimeError(f"it did not start: {log.read_text()[-4000:]}")


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
