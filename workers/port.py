"""Both ends of the queue: what the gateway asks of the store and what a worker does (no torch).

`Ledger` turns every operation into a `Call`: commands to send in one round trip and a reader of
the replies. It does no input or output, so that the gateway (asynchronous) and the workers
(synchronous) share it. The job record in the store is the truth; the Celery message is a wake-up
that carries the job's id and nothing else, pushed by the same script that writes the record.
"""

import hashlib
import re
import secrets
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from typing import Any, Generic, TypeVar

import hiredis
import numpy as np
import orjson
import redis
import redis.asyncio
import redis.asyncio.retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import NoScriptError
from redis.retry import Retry

from schemas.facts import Facts, Stored
from schemas.jobs import JobRecord, Kind, Links, Progress, State
from schemas.problems import Failure
from schemas.settings import Settings

Answer = TypeVar("Answer")
Fields = dict[bytes, bytes]
JOB_ID = re.compile(r"^[0-9a-f]{32}$")
SCRIPTS = ("submit", "claim", "heartbeat", "finish", "cancel", "alive", "reap")
STALE_MS = 30_000
LARGE = 1 << 16


@dataclass(frozen=True)
class Call(Generic[Answer]):
    """Commands for one round trip, and how to read their replies."""

    commands: Sequence[tuple[Any, ...]]
    read: Callable[[list[Any]], Answer]


@dataclass(frozen=True)
class Question:
    """A validated request on its way into the queue."""

    routine: str
    version: str
    kind: Kind
    request: bytes
    digest: str
    arrays: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    request_id: str | None = None
    idempotency: tuple[str, str] | None = None
    fresh: bool = False


@dataclass(frozen=True)
class Submission:
    """What became of a question: created, known, replayed, conflict or full; and the job."""

    verdict: str
    job: str


@dataclass(frozen=True)
class Claim:
    """A job in a worker's hands for one attempt."""

    id: str
    token: str
    attempt: int
    routine: str
    kind: Kind
    request: dict[str, Any]
    queue_ms: float
    tenant: str


@dataclass(frozen=True)
class Health:
    """What can be read off the store about the queue and the workers."""

    queued: int
    running: int
    oldest_s: float
    workers: dict[str, float]
    counters: dict[str, int]
    memory: int


@dataclass(frozen=True)
class Ledger:
    """Every operation on jobs, arrays and datasets, as calls to be run by a store."""

    settings: Settings

    @property
    def prefix(self) -> str:
        """Return what every key starts with."""
        return f"{self.settings.namespace}:"

    @property
    def queue(self) -> str:
        """Return the key of the list that Celery consumes."""
        return f"{self.prefix}jobs"

    def channel(self, job: str = "*") -> str:
        """Return the pub/sub channel of one job, or the pattern of all."""
        return f"{self.prefix}job:{job}"

    # arrays and datasets

    def put(self, arrays: Iterable[Stored]) -> Call[None]:
        """Store arrays under their digests."""
        commands: list[tuple[Any, ...]] = []
        for item in arrays:
            key = self._array_key(item.digest)
            commands += [self._put(item), ("EXPIRE", key, self.settings.retention_s)]
        return Call(commands, lambda replies: None)

    def _put(self, item: Stored) -> tuple[Any, ...]:
        """Write an array; submit and finish set its expiry, so that it costs no command more."""
        facts = item.facts.model_dump_json()
        return ("HSET", self._array_key(item.digest), "facts", facts, "data", item.array.tobytes())

    def _array_key(self, digest: str) -> str:
        return f"{self.prefix}array:{digest}"

    def facts(self, digests: Sequence[str]) -> Call[dict[str, Facts]]:
        """Look up what is known of arrays; unknown digests are left out."""
        commands = [("HGET", self._array_key(d), "facts") for d in digests]
        return Call(
            commands,
            lambda replies: {
                d: Facts.model_validate_json(r) for d, r in zip(digests, replies, strict=True) if r
            },
        )

    def get(self, digests: Sequence[str]) -> Call[dict[str, Stored]]:
        """Fetch arrays with their facts; unknown digests are left out."""
        commands = [("HMGET", self._array_key(d), "facts", "data") for d in digests]
        return Call(
            commands,
            lambda replies: {
                d: _array(d, r) for d, r in zip(digests, replies, strict=True) if r[0] is not None
            },
        )

    def put_dataset(self, digest: str, facts: bytes, data: bytes) -> Call[None]:
        """Store a file under its digest."""
        key = f"{self.prefix}dataset:{digest}"
        return Call(
            [
                ("HSET", key, "facts", facts, "data", data),
                ("EXPIRE", key, self.settings.retention_s),
            ],
            lambda replies: None,
        )

    def datasets(self, digests: Sequence[str]) -> Call[dict[str, dict[str, Any]]]:
        """Look up what is known of files; unknown digests are left out."""
        commands = [("HGET", f"{self.prefix}dataset:{d}", "facts") for d in digests]
        return Call(
            commands,
            lambda replies: {
                d: orjson.loads(r) for d, r in zip(digests, replies, strict=True) if r is not None
            },
        )

    def get_dataset(self, digest: str) -> Call[bytes | None]:
        """Fetch a file."""
        return Call([("HGET", f"{self.prefix}dataset:{digest}", "data")], lambda r: r[0])

    # the gateway's end

    def submit(
        self, tenant: str, question: Question, staged: Iterable[Stored] = ()
    ) -> Call[Submission]:
        """Store what came with a question and queue it, unless a job already answers it."""
        s, job = self.settings, uuid.uuid4().hex
        key, fingerprint = question.idempotency or ("", "")
        stores = [(item.digest, self._put(item)) for item in staged]
        digests = dict.fromkeys([*question.arrays, *(digest for digest, _ in stores)])
        touched = [self._array_key(digest) for digest in digests]
        touched += [f"{self.prefix}dataset:{d}" for d in question.datasets]
        fields: dict[str, Any] = {
            "routine": question.routine,
            "version": question.version,
            "kind": question.kind,
            "request": question.request,
            "digest": question.digest,
            "request_id": question.request_id or "",
            "max_attempts": s.max_attempts,
            "message": message(question.routine, job, self.queue),
        }
        script = self._script(
            "submit", job, tenant, question.digest, int(question.fresh), key, fingerprint,
            s.queue_limit, s.retention_s, s.tombstone_s, self.queue, len(touched), *touched,
            *(part for pair in fields.items() for part in pair),
        )  # fmt: skip
        commands = [*(store for _, store in stores), script]
        return Call(commands, lambda replies: Submission(*map(_text, replies[-1])))

    def job(self, tenant: str, job: str) -> Call[JobRecord | None]:
        """Read a record; None when there is none for this tenant."""
        return Call(
            [("HGETALL", f"{self.prefix}job:{job}")],
            lambda replies: record(job, tenant, replies[0]),
        )

    def result(self, tenant: str, job: str) -> Call[tuple[JobRecord | None, str]]:
        """Read a record and the key of its result ("" when there is none)."""

        def read(replies: list[Any]) -> tuple[JobRecord | None, str]:
            fields = replies[0]
            return record(job, tenant, fields), _text(fields.get(b"out", b""))

        return Call([("HGETALL", f"{self.prefix}job:{job}")], read)

    def blob(self, key: str) -> Call[bytes | None]:
        """Fetch a result by its key."""
        return Call([("GET", key)], lambda replies: replies[0])

    def request(self, tenant: str, job: str) -> Call[dict[str, Any] | None]:
        """Read the question of a job, with arrays by digest."""

        def read(replies: list[Any]) -> dict[str, Any] | None:
            owner, request = replies[0]
            return orjson.loads(request) if owner and _text(owner) == tenant else None

        return Call([("HMGET", f"{self.prefix}job:{job}", "tenant", "request")], read)

    def jobs(self, tenant: str, before: str, limit: int) -> Call[list[tuple[str, float]]]:
        """List the tenant's job ids, newest first, with their scores; `before` is exclusive."""
        key = f"{self.prefix}idx:tenant:{tenant}"
        upper = f"({before}" if before else "+inf"
        return Call(
            [("ZREVRANGEBYSCORE", key, upper, "-inf", "WITHSCORES", "LIMIT", 0, limit)],
            lambda replies: _scored(replies[0]),
        )

    def records(self, tenant: str, ids: Sequence[str]) -> Call[list[JobRecord]]:
        """Read several records; missing ones are left out."""
        commands = [("HGETALL", f"{self.prefix}job:{i}") for i in ids]

        def read(replies: list[Any]) -> list[JobRecord]:
            found = (record(i, tenant, r) for i, r in zip(ids, replies, strict=True))
            return [r for r in found if r is not None]

        return Call(commands, read)

    def cancel(self, tenant: str, job: str) -> Call[str]:
        """Cancel a live job or forget an ended one: gone, cancelled, cancelling, forgotten."""
        return Call([self._script("cancel", job, tenant)], lambda replies: _text(replies[0]))

    # the worker's end

    def claim(self, job: str, worker: str) -> Call[Claim | None]:
        """Take a job for one attempt; None when it is another's, ended or gone."""
        token = secrets.token_hex(16)

        def read(replies: list[Any]) -> Claim | None:
            verdict, *rest = replies[0]
            if _text(verdict) != "claimed":
                return None
            attempt, (routine, kind, request, created, started, tenant) = rest
            return Claim(
                id=job,
                token=token,
                attempt=attempt,
                routine=_text(routine),
                kind=_text(kind),  # pyright: ignore[reportArgumentType] - written by submit
                request=orjson.loads(request),
                queue_ms=float(started) - float(created),
                tenant=_text(tenant),
            )

        return Call([self._script("claim", job, token, self._lease_ms, worker)], read)

    def heartbeat(self, claim: Claim, progress: Progress | None = None) -> Call[str]:
        """Extend a lease: ok, cancel (asked for by the owner) or lost."""
        text = progress.model_dump_json() if progress else ""
        script = self._script("heartbeat", claim.id, claim.token, self._lease_ms, text)
        return Call([script], lambda replies: _text(replies[0]))

    def finish(
        self,
        claim: Claim,
        status: State,
        *,
        result: bytes | None = None,
        arrays: Iterable[Stored] = (),
        failure: Failure | None = None,
        warnings: bytes = b"[]",
    ) -> Call[bool]:
        """End an attempt with its result or failure; False when the lease was lost meanwhile."""
        out = f"{self.prefix}out:{claim.id}:{claim.attempt}" if result is not None else ""
        items = list(arrays)
        commands = [self._put(item) for item in items]
        if result is not None:
            commands.append(("SET", out, result, "EX", self.settings.retention_s))
        fields: list[Any] = ["warnings", warnings]
        if failure is not None:
            fields += ["error", failure.model_dump_json()]
        keys = [self._array_key(item.digest) for item in items]
        script = self._script(
            "finish", claim.id, claim.token, status, out, self.settings.retention_s, len(keys),
            *keys, *fields,
        )  # fmt: skip
        return Call([*commands, script], lambda replies: replies[-1] == 1)

    def alive(self, worker: str, *, warm: bool) -> Call[bool]:
        """Say that a worker takes jobs; forgotten after three silent leases.

        Only a warm one (torch imported, routines found) signs in; False until one has.
        """
        script = self._script("alive", worker, int(warm), 3 * self._lease_ms)
        return Call([script], lambda replies: replies[0] == 1)

    # housekeeping

    def reap(self, who: str) -> Call[tuple[int, int]]:
        """Put lost jobs back into the queue; (-1, 0) when another process just did."""
        script = self._script("reap", who, 900, STALE_MS)
        return Call([script], lambda replies: (replies[0][0], replies[0][1]))

    def health(self) -> Call[Health]:
        """Measure the queue, and how long ago each worker gave a sign of life."""
        p = self.prefix
        commands: list[tuple[Any, ...]] = [
            ("TIME",),
            ("ZCARD", f"{p}idx:queued"),
            ("ZCARD", f"{p}idx:running"),
            ("ZRANGE", f"{p}idx:queued", 0, 0, "WITHSCORES"),
            ("ZRANGE", f"{p}idx:workers", 0, -1, "WITHSCORES"),
            ("HGETALL", f"{p}counters"),
            ("INFO", "memory"),
        ]

        def read(replies: list[Any]) -> Health:
            clock, queued, running, oldest, workers, counters, memory = replies
            now = float(clock[0]) + float(clock[1]) / 1e6
            silent = 3 * self.settings.lease_s
            ages = {name: max(0.0, now - score / 1000) for name, score in _scored(workers)}
            scores = _scored(oldest)
            return Health(
                queued=queued,
                running=running,
                oldest_s=max(0.0, now - scores[0][1] / 1000) if scores else 0.0,
                workers={name: age for name, age in ages.items() if age < silent},
                counters={_text(k): int(v) for k, v in counters.items()},
                memory=int(memory.get("used_memory", 0)),
            )

        return Call(commands, read)

    @property
    def _lease_ms(self) -> int:
        return int(self.settings.lease_s * 1000)

    def _script(self, name: str, *args: Any) -> tuple[Any, ...]:
        return ("EVALSHA", _sha(name), 0, self.prefix, *args)


class Store:
    """Run calls from a worker: one round trip each, scripts loaded when the store lacks them."""

    def __init__(self, settings: Settings) -> None:
        """Open no connection yet."""
        retry = Retry(ExponentialBackoff(cap=0.5, base=0.05), 3)
        self._redis = redis.Redis.from_url(settings.store_url, retry=retry)

    def do(self, call: Call[Answer]) -> Answer:
        """Send the commands and read the replies."""
        if not call.commands:
            return call.read([])
        try:
            return call.read(self._send(call.commands))
        except NoScriptError:
            for name in SCRIPTS:
                self._redis.script_load(_source(name))
            return call.read(self._send(call.commands))

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    def _send(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        if len(commands) == 1:
            return [self._redis.execute_command(*commands[0])]
        pipe = self._redis.pipeline(transaction=False)
        for command in commands:
            pipe.execute_command(*command)
        return pipe.execute()


class _Packed:
    """Pack commands in C, as redis-py's synchronous client does; leave large values uncopied."""

    def pack_command(self, *args: Any) -> list[bytes]:
        if any(isinstance(arg, bytes) and len(arg) > LARGE for arg in args):
            return super().pack_command(*args)  # pyright: ignore - the connection it is mixed into
        first, *rest = args  # redis-py writes commands of two words as one
        return [hiredis.pack_command((*first.split(" "), *rest))]

    def pack_commands(self, commands: Iterable[tuple[Any, ...]]) -> list[bytes]:
        return [piece for command in commands for piece in self.pack_command(*command)]


class AsyncStore:
    """Run calls from the gateway: as `Store`, without blocking the event loop."""

    def __init__(self, settings: Settings) -> None:
        """Open no connection yet."""
        retry = redis.asyncio.retry.Retry(ExponentialBackoff(cap=0.2, base=0.05), 2)
        self.redis = redis.asyncio.Redis.from_url(settings.store_url, retry=retry)
        pool = self.redis.connection_pool
        pool.connection_class = type("Packed", (_Packed, pool.connection_class), {})

    async def do(self, call: Call[Answer]) -> Answer:
        """Send the commands and read the replies."""
        if not call.commands:
            return call.read([])
        try:
            return call.read(await self._send(call.commands))
        except NoScriptError:
            for name in SCRIPTS:
                await self.redis.script_load(_source(name))
            return call.read(await self._send(call.commands))

    async def _send(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        if len(commands) == 1:
            return [await self.redis.execute_command(*commands[0])]
        pipe = self.redis.pipeline(transaction=False)
        for command in commands:
            pipe.execute_command(*command)
        return await pipe.execute()

    async def close(self) -> None:
        """Close the connections."""
        await self.redis.aclose()


def message(routine: str, job: str, queue: str) -> str:
    """Write the wake-up in Celery's message protocol, version 2, as kombu's Redis transport has it.

    References:
        https://docs.celeryq.dev/en/stable/internals/protocol.html
    """
    body = orjson.dumps(
        [[job], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
    ).decode()
    return orjson.dumps(
        {
            "body": body,
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": {
                "lang": "py", "task": routine, "id": job, "root_id": job, "parent_id": None,
                "group": None, "shadow": None, "eta": None, "expires": None, "retries": 0,
                "timelimit": [None, None], "argsrepr": f"('{job}',)", "kwargsrepr": "{}",
                "ignore_result": True,
            },
            "properties": {
                "correlation_id": job, "reply_to": "", "delivery_mode": 2, "priority": 0,
                "delivery_info": {"exchange": "", "routing_key": queue},
                "delivery_tag": uuid.uuid4().hex,
            },
        }
    ).decode()  # fmt: skip


def record(job: str, tenant: str, fields: Fields) -> JobRecord | None:
    """Read a job's hash as its owner sees it; None for another tenant's and for no job at all."""
    if not fields or _text(fields[b"tenant"]) != tenant:
        return None
    get: Callable[[bytes], str] = lambda name: _text(fields.get(name, b""))
    status, expires = get(b"status"), get(b"expires")
    if expires and float(expires) < time.time() * 1000:
        status = "expired"
    progress, error = get(b"progress"), get(b"error")
    home = f"/v1/jobs/{job}"
    return JobRecord(
        id=job,
        routine=get(b"routine"),
        routine_version=get(b"version"),
        kind=get(b"kind"),  # pyright: ignore[reportArgumentType] - validated by the model
        status=status,  # pyright: ignore[reportArgumentType] - validated by the model
        created_at=_when(get(b"created")) or "",
        started_at=_when(get(b"started")),
        finished_at=_when(get(b"finished")),
        expires_at=_when(expires),
        attempt=int(get(b"attempt")),
        max_attempts=int(get(b"max_attempts")),
        cancel_requested=get(b"cancel") == "1",
        progress=Progress.model_validate_json(progress) if progress else None,
        warnings=orjson.loads(fields.get(b"warnings", b"[]")),
        error=Failure.model_validate_json(error) if error else None,
        request_digest=get(b"digest"),
        request_id=get(b"request_id") or None,
        links=Links(self=home, result=f"{home}/result", events=f"{home}/events"),
    )


def _array(digest: str, reply: list[bytes]) -> Stored:
    facts = Facts.model_validate_json(reply[0])
    return Stored(digest, facts, np.frombuffer(reply[1], dtype=facts.dtype).reshape(facts.shape))


def _when(ms: str) -> str | None:
    if not ms:
        return None
    stamp = datetime.fromtimestamp(float(ms) / 1000, UTC)
    return stamp.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _scored(reply: Any) -> list[tuple[str, float]]:
    if reply and isinstance(reply[0], tuple | list):  # the client's parser paired them already
        return [(_text(name), float(score)) for name, score in reply]
    return [
        (_text(name), float(score)) for name, score in zip(reply[::2], reply[1::2], strict=True)
    ]


def _text(raw: Any) -> str:
    return raw.decode() if isinstance(raw, bytes) else str(raw)


@cache
def _source(name: str) -> str:
    return files("workers").joinpath("lua", f"{name}.lua").read_text()


@cache
def _sha(name: str) -> str:
    return hashlib.sha1(_source(name).encode()).hexdigest()
