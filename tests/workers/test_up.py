"""The supervisor: what it starts, in which order it stops, what it refuses."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from schemas.settings import Settings
from tests.end_to_end.conftest import House, close_house, ended, eventually, open_house, parent
from workers import up

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def members(supervisor: int) -> set[int]:
    """List every living descendant of a process."""
    found, rows = {supervisor}, []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and not ended(int(entry.name)):
            try:
                rows.append((int(entry.name), parent(int(entry.name))))
            except OSError:
                continue
    while more := {pid for pid, above in rows if above in found} - found:
        found |= more
    return found - {supervisor}


def run_up(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "workers.up", *options],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class TestRefusals:
    """Each with one line that says what to do, an exit code, and no traceback."""

    def check(self, ran: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
        assert (ran.returncode, ran.stderr) == (code, "")
        for word in words:
            assert word in ran.stdout
        assert len(ran.stdout.splitlines()) <= 5

    def test_a_directory_in_use(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        ran = run_up("--port", "0", "--data-dir", str(tmp_path / "file" / "below"))
        self.check(ran, 1, "cannot hold the store")

    def test_a_port_that_is_taken(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            ran = run_up("--port", str(taken.getsockname()[1]), BRENIER_DATA_DIR=str(tmp_path))
        self.check(ran, 1, "not free", "--port")
        assert not any(tmp_path.iterdir())

    def test_other_machines_without_keys(self) -> None:
        self.check(run_up("--host", "0.0.0.0"), 2, "BRENIER_API_KEYS", "--insecure")

    def test_nonsense(self) -> None:
        self.check(run_up("--workers", "none"), 2, "workers: ")
        self.check(run_up(BRENIER_WORKRES="2"), 2, "BRENIER_WORKRES")
        self.check(run_up("--port", "0", "--redis-url", "nowhere"), 2, "scheme")
        self.check(run_up("--workers-only"), 2, "--redis-url")

    def test_a_store_that_does_not_answer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(up, "STORE_PATIENCE_S", 0.1)
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        assert up.main(["--port", "0", "--redis-url", f"redis://:secret@127.0.0.1:{port}/0"]) == 1


class TestChoices:
    @pytest.mark.parametrize(
        ("host", "reachable"),
        [
            ("127.0.0.1", False),
            ("127.8.8.8", True),  # on the safe side
            ("::1", False),
            ("localhost", False),
            ("0.0.0.0", True),
            ("::", True),
            ("192.0.2.7", True),
            ("example.org", True),
            ("", True),
        ],
    )
    def test_what_can_be_reached_from_elsewhere(self, host: str, reachable: bool) -> None:
        assert up.exposed(host) is reachable

    def test_options_override_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("BRENIER_WORKERS", "3")
        monkeypatch.setenv("BRENIER_LEASE_S", "7")
        settings, grace, _ = up.configure(["--port", "0", "--workers", "2", "--grace", "4"])
        assert (settings.workers, settings.lease_s, grace) == (2, 7, 4)
        assert settings.port > 0
        passed = settings.environment()
        assert (passed["BRENIER_WORKERS"], passed["BRENIER_PORT"]) == ("2", str(settings.port))
        assert Path(passed["BRENIER_DATA_DIR"]).is_absolute()
        with monkeypatch.context() as patch:
            for name, value in passed.items():
                patch.setenv(name, value)
            assert Settings() == settings.model_copy(
                update={"data_dir": settings.data_dir.resolve()}
            )

    def test_workers_share_the_machine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(up, "_cores", lambda: 8)
        settings = Settings(workers=3)
        share = up._share(settings, {"CUDA_VISIBLE_DEVICES": "4,5"}, 3)
        assert (share["OMP_NUM_THREADS"], share["BRENIER_THREADS"]) == ("2", "2")
        assert share["CUDA_VISIBLE_DEVICES"] == "4"
        share = up._share(Settings(workers=64, device="cpu"), {"CUDA_VISIBLE_DEVICES": "4"}, 1)
        assert share["OMP_NUM_THREADS"] == "1"
        assert "CUDA_VISIBLE_DEVICES" not in share
        assert up._share(Settings(threads=5), {}, 1)["MKL_NUM_THREADS"] == "5"

    def test_the_curl_line_runs_as_it_stands(self) -> None:
        url, docs, line = up.welcome(Settings(port=8123, api_keys={"t": "0" * 64}))
        assert "http://127.0.0.1:8123" in url
        assert docs.endswith("/docs")
        assert "Bearer" in line
        assert "http://[::1]:1/docs" in up.welcome(Settings(host="::1", port=1))[1]


def test_a_process_that_keeps_ending_is_started_later_and_later(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(up, "FIRST_DELAY_S", 0.05)
    monkeypatch.setattr(up, "LONGEST_DELAY_S", 0.1)
    service = up.Service("thing", ["false"], dict(os.environ), signal.SIGTERM, delay=0.05)
    deadline = time.monotonic() + 10
    while capsys.readouterr().out.count("ended") < 1 or service.delay < 0.1:
        service.watch()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    monkeypatch.setattr(up, "HEALTHY_S", 0.0)
    while service.delay != 0.1 or service.process is None:  # healthy again: back to the shortest
        service.watch()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    service.process.wait()


def ready(house: House) -> str:
    """Wait until the supervisor says that all is there; return the gateway's address."""
    eventually(lambda: "brenier: try: curl" in house.log.read_text(), 60, house.log.read_text)
    return house.log.read_text().split("brenier: ready at ")[1].split()[0]


@linux
@pytest.mark.slow
def test_ctrl_c_twice_does_not_wait_and_once_ends_everything_in_order(tmp_path: Path) -> None:
    house = open_house(tmp_path, workers=1)
    try:
        ready(house)
        job = house.submit(timeout_s=5)
        house.until(job, "running", 60)
        house.process.send_signal(signal.SIGINT)
        eventually(lambda: "workers finish" in house.log.read_text(), 10)
        began = time.monotonic()
        house.process.send_signal(signal.SIGINT)
        assert house.process.wait(10) == 0
        assert time.monotonic() - began < 3
    finally:
        close_house(house)
    house.log.unlink()
    again = open_house(tmp_path, workers=1)
    try:
        url = ready(again)
        assert httpx.get(f"{url}/readyz", timeout=10).status_code == 200
        again.until(job, "succeeded", 60)
        assert again.record(job).attempt == 2
        check_order(again)
    finally:
        close_house(again)


def check_order(house: House) -> None:
    lines = house.log.read_text()
    order = [lines.index(f"brenier: {name}") for name in ("store", "worker 1", "gateway", "ready")]
    assert order == sorted(order)
    children = members(house.process.pid)
    [gateway], [worker], [store] = (house.pids(n) for n in ("gateway", "worker 1", "store"))
    for child in (gateway, worker, store):
        assert os.getpgid(child) == child  # Ctrl-C in a terminal reaches the supervisor alone
    job = house.submit(timeout_s=1.5)
    house.until(job, "running", 10)
    house.process.send_signal(signal.SIGINT)
    eventually(lambda: ended(gateway), 10)
    assert not ended(worker)  # it finishes its job, and the store waits for it
    house.until(job, "succeeded", 10)
    assert house.process.wait(30) == 0
    assert all(ended(child) for child in children)
    assert house.log.read_text().rstrip().endswith("brenier: stopped")


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """Open a house for the tests below; the last of them kills it."""
    house = open_house(tmp_path_factory.mktemp("opened"), workers=1)
    try:
        yield house
    finally:
        close_house(house)


@linux
@pytest.mark.slow
def test_workers_of_another_machine_join_the_same_store(opened: House, tmp_path: Path) -> None:
    ready(opened)
    refused = run_up("--port", "0", "--data-dir", str(opened.settings.data_dir))
    assert refused.returncode == 1
    assert f"in use by process {opened.process.pid}" in refused.stdout
    other, log = tmp_path / "other", tmp_path / "other.log"
    with log.open("wb") as out:
        more = subprocess.Popen(
            [sys.executable, "-m", "workers.up", "--workers-only", "--data-dir", str(other)],
            env={**opened.settings.environment(), "BRENIER_REDIS_URL": opened.settings.store_url},
            stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        eventually(lambda: "brenier: ready" in log.read_text(), 60, log.read_text)
        opened.warm(2)
    finally:
        more.send_signal(signal.SIGTERM)
        assert more.wait(30) == 0
    assert "gateway" not in log.read_text()
    assert not other.exists()
    opened.until(opened.submit(), "succeeded", 10)  # the others go on


@linux
@pytest.mark.slow
def test_a_crashed_worker_and_a_crashed_gateway_are_started_again(opened: House) -> None:
    url = ready(opened)
    for name in ("worker 1", "gateway"):
        os.kill(opened.pids(name)[0], signal.SIGKILL)
        eventually(lambda name=name: len(opened.pids(name)) == 2, 10)
        assert f"brenier: {name} ended (SIGKILL); it starts again in 0.5 s" in (
            opened.log.read_text()
        )

    def answers() -> bool:
        try:
            return httpx.get(f"{url}/healthz", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    eventually(answers, 30)
    opened.until(opened.submit(), "succeeded", 60)


@linux
@pytest.mark.slow
def test_a_killed_supervisor_leaves_no_orphans(opened: House) -> None:
    ready(opened)
    job = opened.submit(timeout_s=30)
    opened.until(job, "running", 60)
    children = members(opened.process.pid)
    assert opened.owner(job) in children
    opened.process.kill()
    opened.process.wait()
    eventually(lambda: all(ended(child) for child in children), 8)
