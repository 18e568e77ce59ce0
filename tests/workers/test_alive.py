"""The health check of a worker asks the store, not the process table."""

import socket

import pytest

from tests.workers.conftest import Queue
from workers import alive


def test_a_worker_of_this_host_signs(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alive, "Settings", lambda: queue.settings)
    assert alive.main() == 1
    queue.do(queue.ledger.alive("worker@elsewhere", warm=True))
    assert alive.main() == 1
    queue.do(queue.ledger.alive(f"worker@{socket.gethostname()}", warm=True))
    assert alive.main() == 0


def test_no_store_is_no_health(
    queue: Queue, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    away = queue.settings.model_copy(update={"redis_url": f"unix://{queue.settings.data_dir}/no"})
    monkeypatch.setattr(alive, "Settings", lambda: away)
    assert alive.main() == 1
    assert "does not answer" in capsys.readouterr().out
