"""The Celery application: one task a routine, each with a job id for its only argument.

This module is imported by the parent process of the pool as well, so it never imports torch; the
pool's children do, when they start.
"""

import contextlib
import functools
import gc
import os
import socket
from typing import Any

from celery import Celery, bootsteps
from celery.signals import worker_process_init
from redis.exceptions import RedisError

from schemas.registry import ROUTINES
from schemas.settings import Settings
from workers.port import JOB_ID, Ledger, Store

RARELY = 50_000, 20, 20  # of the objects of one batch none is garbage until it is answered

settings = Settings()
ledger = Ledger(settings)


def broker_url(url: str) -> str:
    """Write a store URL as Celery wants it: unix sockets have a scheme of their own there."""
    if url.startswith("unix://"):
        path, _, query = url.removeprefix("unix://").partition("?")
        number = query.removeprefix("db=") or "0"
        return f"redis+socket://{path}?virtual_host={number}"
    return url


app = Celery("brenier", broker=broker_url(settings.store_url))
app.conf.update(
    task_default_queue=ledger.queue,
    task_acks_late=True,
    task_reject_on_worker_lost=False,  # the reaper puts lost jobs back, and counts
    task_acks_on_failure_or_timeout=True,
    worker_prefetch_multiplier=1,
    worker_disable_rate_limits=True,
    task_ignore_result=True,
    task_serializer="json",
    accept_content=["json"],
    enable_utc=True,
    worker_pool="prefork",
    worker_pool_start_method="spawn",  # torch and CUDA do not survive a fork
    worker_concurrency=1,
    worker_proc_alive_timeout=120,
    worker_enable_remote_control=False,
    worker_send_task_events=False,
    worker_hijack_root_logger=False,
    worker_cancel_long_running_tasks_on_connection_loss=False,
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    broker_transport_options={
        "visibility_timeout": 86_400,
        "unacked_restore_interval": 10,
        "unacked_restore_throttle": 1,
        "unacked_key": f"{ledger.prefix}unacked",
        "unacked_index_key": f"{ledger.prefix}unacked_index",
        "unacked_mutex_key": f"{ledger.prefix}unacked_mutex",
        "socket_timeout": 30,
        "socket_connect_timeout": 2,
        "health_check_interval": 10,
    },
)


def name_of(pid: int) -> str:
    """Name a process of this host, as the store knows it."""
    return f"{pid}@{socket.gethostname()}"


@functools.cache
def desk() -> Any:
    """Open this process's desk: the first call imports torch and connects to the store."""
    from workers.desk import Desk
    from workers.place import prepare

    prepare(settings)
    return Desk(settings, Store(settings), name_of(os.getpid()))


@worker_process_init.connect
def warm_up(**_: Any) -> None:
    """Import everything before the first job arrives; then sign the worker in."""
    from workers.bind import prepare, target
    from workers.perform import KINDS

    desk()
    assert KINDS, "importing it is the point: what a job needs is there before the first arrives"
    for routine in ROUTINES.values():
        target(routine)
    gc.freeze()  # what is there now stays: collections need not look at it
    gc.set_threshold(*RARELY)
    with contextlib.suppress(RedisError):  # the next child signs, or the store comes back
        desk().store.do(ledger.alive(name_of(os.getppid()), warm=True))
    for routine in ROUTINES.values():  # last: what it starts would slow the imports down
        prepare(routine)


def _register(name: str) -> None:
    def perform(job: str) -> None:
        from workers.perform import perform as attempt

        if JOB_ID.match(job):
            attempt(desk(), job)

    app.task(name=name)(perform)


for _name in ROUTINES:
    _register(_name)


class LifeSigns(bootsteps.StartStopStep):
    """Tell the store that this worker consumes, and put lost jobs back, from the consuming loop."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, parent: Any) -> None:
        """Begin when the consumer is ready."""
        store, name, warm = Store(settings), name_of(os.getpid()), False

        def sign() -> None:
            nonlocal warm
            with contextlib.suppress(RedisError):  # the store is away; the next sign will tell
                warm = store.do(ledger.alive(name, warm=warm))
                store.do(ledger.reap(name))

        sign()
        parent.timer.call_repeatedly(1.0, sign)


steps: Any = app.steps
steps["consumer"].add(LifeSigns)
