"""`brenier up`: run the store, the workers and the gateway, and end them in the right order.

Every child has a process group of its own, so that Ctrl-C reaches this process alone; Linux ends
the children if this process is killed (the store and the gateway in order, the workers at once:
what they had in hand is taken up by the next worker, as after any other loss).
"""

import argparse
import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import ValidationError
from redis.exceptions import RedisError

from schemas.registry import ROUTINES
from schemas.settings import Settings
from workers.embedded import EmbeddedStore, StoreError, tethered
from workers.port import Ledger, Store

LOOK_S = 0.1
FIRST_DELAY_S, LONGEST_DELAY_S, HEALTHY_S = 0.5, 30.0, 60.0
GATEWAY_GRACE_S = 5
GRACE_S = 30.0
STORE_PATIENCE_S = 10.0
# Celery tells a superuser in eight lines a worker what `run` tells in one; uvicorn ends by its own
# signal and leaves the semaphores of its helper to the tracker, which cleans up and complains
QUIET = "ignore:You're running the worker with superuser privileges,ignore:resource_tracker"


def say(text: str) -> None:
    """Report one event on one line."""
    print(f"brenier: {text}", flush=True)


@dataclass
class Service:
    """A child process that is started again whenever it ends, later and later."""

    name: str
    command: Sequence[str]
    environment: dict[str, str]
    death: signal.Signals
    delay: float = FIRST_DELAY_S
    due: float = 0.0
    since: float = 0.0
    process: subprocess.Popen[bytes] | None = None

    def watch(self) -> None:
        """Start the process when it is due; notice when it ended."""
        now = time.monotonic()
        if self.process is None:
            if now >= self.due:
                self._start(now)
            return
        code = self.process.poll()
        if code is None:
            return
        if now - self.since >= HEALTHY_S:
            self.delay = FIRST_DELAY_S
        _signal_group(self.process, signal.SIGKILL)
        self.process, self.due = None, now + self.delay
        say(f"{self.name} ended ({_ending(code)}); it starts again in {self.delay:g} s")
        self.delay = min(2 * self.delay, LONGEST_DELAY_S)

    def _start(self, now: float) -> None:
        self.process = subprocess.Popen(
            tethered(self.command, self.death),
            env=self.environment,
            process_group=0,
            stdin=subprocess.DEVNULL,
        )
        self.since = now
        say(f"{self.name} started (pid {self.process.pid})")


@dataclass
class Supervisor:
    """Store, workers and gateway of one machine."""

    settings: Settings
    grace_s: float = GRACE_S
    workers_only: bool = False
    link: Store = field(init=False)
    requests: int = 0
    code: int = 0
    ready: bool = False
    store: EmbeddedStore | None = None
    workers: list[Service] = field(default_factory=list)
    gateway: Service | None = None

    def __post_init__(self) -> None:
        self.link = Store(self.settings)

    def run(self) -> int:
        """Keep everything running until a signal asks to stop; return the exit code."""
        handled = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {signum: signal.signal(signum, self._asked) for signum in handled}
        try:
            if os.geteuid() == 0:
                say("running as root; a user without privileges is enough")
            self._start_store()
            self._plan()
            while not self.requests:
                self._look()
                time.sleep(LOOK_S)
        except StoreError as error:
            say(str(error))
            self.code = 1
        finally:
            self._stop()
            self.link.close()
            for signum, handler in before.items():
                signal.signal(signum, handler)
        return self.code

    def _asked(self, signum: int, frame: object) -> None:
        self.requests += 1

    def _start_store(self) -> None:
        if self.settings.redis_url:
            _await_store(self.settings, self.link, lambda: self.requests > 0)
            return
        self.store = EmbeddedStore(self.settings)
        self.store.start()
        say(f"store started (pid {self.store.pid}), files in {self.store.home}")

    def _plan(self) -> None:
        environment, queue = self.settings.environment(), Ledger(self.settings).queue
        said = environment.get("PYTHONWARNINGS")
        environment["PYTHONWARNINGS"] = f"{said},{QUIET}" if said else QUIET
        for number in range(1, self.settings.workers + 1):
            self.workers.append(
                Service(
                    f"worker {number}",
                    _worker_command(f"worker{number}-{os.getpid()}", queue),
                    {**environment, **_share(self.settings, environment, number)},
                    signal.SIGKILL,
                )
            )
        if not self.workers_only:
            command = _gateway_command(self.settings)
            self.gateway = Service("gateway", command, environment, signal.SIGTERM)

    def _look(self) -> None:
        if self.store is not None and self.store.pid is None:
            say("store ended; it starts again")
            self.store.start()
        for service in self.workers:
            service.watch()
        if self.gateway is not None:
            self.gateway.watch()
        if not self.ready and self._served() and self._worker_alive():
            self.ready = True
            for line in ["ready"] if self.workers_only else welcome(self.settings):
                say(line)

    def _served(self) -> bool:
        return self.workers_only or _answers(self.settings)

    def _worker_alive(self) -> bool:
        """Tell whether one of these workers, not another machine's, has signed in."""
        host = socket.gethostname()
        ours = {f"{w.process.pid}@{host}" for w in self.workers if w.process is not None}
        try:
            return not ours.isdisjoint(self.link.do(Ledger(self.settings).health()).workers)
        except RedisError:
            return False

    def _stop(self) -> None:
        say("stopping")
        if self.gateway is not None:
            self._end([self.gateway], GATEWAY_GRACE_S + 3)
        if self.workers:
            say("workers finish the jobs they have; ask again to stop at once")
            self._end(self.workers, self.grace_s)
        if self.store is not None:
            self.store.stop()
        say("stopped")

    def _end(self, services: Sequence[Service], grace_s: float) -> None:
        asked, deadline = self.requests, time.monotonic() + grace_s
        running = [(s.name, s.process) for s in services if s.process is not None]
        for _, process in running:
            process.terminate()
        while time.monotonic() < deadline and self.requests == asked:
            if all(process.poll() is not None for _, process in running):
                break
            time.sleep(LOOK_S / 4)
        for name, process in running:
            if process.poll() is None:
                say(f"{name} does not end; killed")
            _signal_group(process, signal.SIGKILL)
            process.wait()


def _worker_command(name: str, queue: str) -> list[str]:
    return [
        *(sys.executable, "-m", "celery", "--quiet", "-A", "workers.app", "worker"),
        *("-P", "prefork", "-c", "1", "-n", f"{name}@%h", "-Q", queue),
        *("--without-gossip", "--without-mingle", "--loglevel", "WARNING"),
    ]


def _gateway_command(settings: Settings) -> list[str]:
    return [
        *(sys.executable, "-m", "uvicorn", "api.main:app", "--factory"),
        *("--host", settings.host, "--port", str(settings.port)),
        *("--loop", "uvloop", "--http", "httptools", "--no-server-header", "--no-access-log"),
        *("--log-level", "warning", "--timeout-graceful-shutdown", str(GATEWAY_GRACE_S)),
    ]


def _share(settings: Settings, environment: dict[str, str], number: int) -> dict[str, str]:
    """Give one worker its part of the machine: so many threads, and one GPU where there are any."""
    threads = str(settings.threads or max(1, _cores() // settings.workers))
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
    share: dict[str, str] = dict.fromkeys((*names, "BRENIER_THREADS"), threads)
    devices = _devices(environment.get("CUDA_VISIBLE_DEVICES"))
    if devices and settings.device in ("auto", "cuda"):
        share["CUDA_VISIBLE_DEVICES"] = devices[(number - 1) % len(devices)]
    return share


def _cores() -> int:
    """Count the cores that this process may use; a container's limit may be below the machine's."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _devices(visible: str | None) -> list[str]:
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip()]
    return [str(i) for i, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]


def _await_store(settings: Settings, link: Store, given_up: Callable[[], bool]) -> None:
    """Wait for the operator's own store."""
    where = urlsplit(settings.redis_url)
    name = f"{where.scheme}://{where.hostname or where.path}"
    name += f":{where.port}" if where.port else ""
    deadline = time.monotonic() + STORE_PATIENCE_S
    while not given_up():
        try:
            link.do(Ledger(settings).health())
        except RedisError as error:
            if time.monotonic() > deadline:
                raise StoreError(f"no store answers at {name}: {error}") from None
            time.sleep(LOOK_S)
        else:
            say(f"store found at {name}")
            return


def _answers(settings: Settings) -> bool:
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    try:
        socket.create_connection((host, settings.port), 1.0).close()
    except OSError:
        return False
    return True


def _signal_group(process: subprocess.Popen[bytes], signum: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signum)


def _ending(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


def welcome(settings: Settings) -> list[str]:
    """Write the lines that tell what is there and how to try it."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"http://{host}:{settings.port}"
    asked = min(ROUTINES.values(), key=lambda routine: len(json.dumps(routine.example)))
    key = " -H 'Authorization: Bearer KEY'" if settings.api_keys else ""
    body = shlex.quote(json.dumps(asked.example))
    return [
        f"ready at {url}",
        f"docs at {url}/docs",
        f"try: curl -s {url}/v1{asked.path} -H 'Prefer: wait=10'{key} --json {body}",
    ]


def reserve_port(host: str, port: int) -> int:
    """Check that the address is free, and choose a port when 0 was asked for.

    Raises:
        OSError: it is taken, or not an address of this machine.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
        return int(probe.getsockname()[1])


def exposed(host: str) -> bool:
    """Tell whether an address can be reached from other machines; the gateway asks the same."""
    return host not in ("127.0.0.1", "::1", "localhost")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="brenier up",
        description="Run the store, the workers and the gateway. Options override BRENIER_*.",
        argument_default=argparse.SUPPRESS,
    )
    fields = Settings.model_fields
    for name in ("workers", "threads", "device", "host", "port", "data_dir", "redis_url"):
        parser.add_argument(f"--{name.replace('_', '-')}", help=fields[name].description)
    parser.add_argument(
        "--workers-only",
        action="store_true",
        default=False,
        help="No gateway: add this machine's workers to the store at --redis-url.",
    )
    parser.add_argument("--insecure", action="store_true", help=fields["insecure"].description)
    parser.add_argument(
        "--grace", type=float, default=GRACE_S, help="Seconds that a job may take when stopping."
    )
    return parser


def configure(arguments: Sequence[str] | None) -> tuple[Settings, float, bool]:
    """Read options and environment, and choose the port.

    Raises:
        ValueError: they contradict themselves, each other or safety.
        OSError: the address is not free.
    """
    options = vars(_parser().parse_args(arguments))
    grace, workers_only = options.pop("grace"), options.pop("workers_only")
    settings = Settings(**options)
    if workers_only:
        if not settings.redis_url:
            raise ValueError("--workers-only needs the store of the others: set --redis-url")
        return settings, grace, True
    if exposed(settings.host) and not settings.api_keys and not settings.insecure:
        raise ValueError(
            f"{settings.host} can be reached from other machines and no key is set: set "
            "BRENIER_API_KEYS, or say --insecure"
        )
    port = reserve_port(settings.host, settings.port)
    return settings.model_copy(update={"port": port}), grace, False


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until Ctrl-C or SIGTERM.

    Returns:
        0 after a stop that was asked for, 1 when the store or the address is not to be had, 2 when
        the settings make no sense.
    """
    try:
        supervisor = Supervisor(*configure(arguments))
    except ValidationError as error:
        for problem in error.errors():
            place = ".".join(map(str, problem["loc"]))
            say(f"{place + ': ' if place else ''}{problem['msg']}")
        return 2
    except ValueError as error:
        say(str(error))
        return 2
    except OSError as error:
        say(f"the address is not free: {error.strerror}; choose another with --host and --port")
        return 1
    return supervisor.run()


if __name__ == "__main__":
    sys.exit(main())
