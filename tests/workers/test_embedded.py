"""The store of our own: its files, its lock, its socket, its end."""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis

from schemas.settings import Settings
from tests.workers.conftest import eventually
from workers import embedded
from workers.embedded import EmbeddedStore, StoreError, binary, tethered

HOLD = """
import os, signal, sys
from schemas.settings import Settings
from workers.embedded import EmbeddedStore
store = EmbeddedStore(Settings(data_dir=sys.argv[1]))
store.start()
print(store.pid, flush=True)
signal.pause()
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data")


def client(settings: Settings) -> redis.Redis:
    return redis.Redis.from_url(settings.store_url, decode_responses=True)


def holder(settings: Settings) -> tuple[subprocess.Popen[str], int]:
    """Start a store from another process; return the process and the server's id."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(settings.data_dir)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def gone(pid: int) -> bool:
    """Tell whether a process has ended (one that nobody waits for stays as a zombie)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_it_listens_on_a_private_socket_only_and_keeps_a_file(settings: Settings) -> None:
    with EmbeddedStore(settings) as store, client(settings) as link:
        wanted = {
            "port": "0",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory": str(settings.store_memory),
            "maxmemory-policy": "noeviction",
            "dir": str(store.home),
        }
        assert link.config_get(*wanted) == wanted
        assert store.socket.stat().st_mode & 0o777 == 0o700
        assert store.home.stat().st_mode & 0o777 == 0o700
        assert os.getpgid(store.pid or 0) == store.pid


def test_what_was_written_is_there_again(settings: Settings) -> None:
    with EmbeddedStore(settings), client(settings) as link:
        link.set("kept", "yes")
    assert not settings.socket.exists()
    with EmbeddedStore(settings), client(settings) as link:
        assert link.get("kept") == "yes"


def test_killed_and_started_again_it_has_lost_nothing(settings: Settings) -> None:
    with EmbeddedStore(settings) as store:
        with client(settings) as link:
            link.set("kept", "yes")
        os.kill(store.pid or 0, signal.SIGKILL)
        eventually(lambda: store.pid is None)
        store.start()
        with client(settings) as link:
            assert link.get("kept") == "yes"


def fill(link: redis.Redis) -> None:
    for number in itertools.count():
        link.set(f"key{number}", b"x" * (1 << 20))


def test_when_it_is_full_it_refuses_and_forgets_nothing(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, store_memory=1 << 24)
    with EmbeddedStore(settings), client(settings) as link:
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            fill(link)
        kept = link.dbsize()
        assert kept > 5
        assert link.exists(*(f"key{number}" for number in range(kept))) == kept


def test_starting_and_stopping_twice_is_harmless(settings: Settings) -> None:
    store = EmbeddedStore(settings)
    store.start()
    pid = store.pid
    store.start()
    assert store.pid == pid
    store.stop()
    store.stop()
    assert store.pid is None


def test_a_directory_in_use_is_refused_and_its_holder_named(settings: Settings) -> None:
    process, _ = holder(settings)
    try:
        with pytest.raises(
            StoreError, match=f"in use by process {process.pid}: .*BRENIER_DATA_DIR"
        ):
            EmbeddedStore(settings).start()
    finally:
        process.kill()
        process.communicate()


def test_a_holder_on_another_machine_is_left_alone(settings: Settings) -> None:
    with EmbeddedStore(settings) as store:
        (store.home / "lock").write_text("1 elsewhere")
        with pytest.raises(StoreError, match="in use by process 1 on elsewhere"):
            EmbeddedStore(settings).start()


@pytest.mark.skipif(sys.platform != "linux", reason="parent-death signals are Linux's")
def test_the_server_ends_with_a_killed_starter_and_the_next_one_waits_for_it(
    settings: Settings,
) -> None:
    process, server = holder(settings)
    with client(settings) as link:
        link.set("kept", "yes")
    process.kill()
    process.communicate()
    with EmbeddedStore(settings), client(settings) as link:
        assert gone(server)
        assert link.get("kept") == "yes"


def test_an_orphaned_server_is_taken_over(settings: Settings) -> None:
    """As on macOS, where nothing ends the server when its starter is killed."""
    started = subprocess.run(
        [
            *(sys.executable, "-c"),
            "import workers.embedded as e\ne.tethered = lambda command, death: command\n"
            + HOLD.replace("signal.pause()", "os.kill(os.getpid(), signal.SIGKILL)"),
            str(settings.data_dir),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    server = int(started.stdout)
    with client(settings) as link:
        link.set("kept", "yes")
    with EmbeddedStore(settings), client(settings) as link:
        assert gone(server)
        assert link.get("kept") == "yes"


@pytest.mark.parametrize("name", ["long" * 40, "with space", "per%cent", "que?ry"])
def test_paths_that_no_socket_or_url_can_hold(tmp_path: Path, name: str) -> None:
    settings = Settings(data_dir=tmp_path / name)
    assert settings.socket == Settings(data_dir=tmp_path / name).socket
    assert len(os.fsencode(settings.socket)) <= 103
    assert settings.socket != Settings(data_dir=tmp_path / f"{name}2").socket
    with EmbeddedStore(settings) as store, client(settings) as link:
        assert link.config_get("dir") == {"dir": str(store.home)}
        assert settings.socket.parent.stat().st_mode & 0o077 == 0


def test_a_socket_directory_that_others_can_enter_is_refused(tmp_path: Path) -> None:
    open_to_all = tmp_path / "shared"
    open_to_all.mkdir(mode=0o755)
    store = EmbeddedStore(Settings(data_dir=tmp_path / "data"))
    store.socket = open_to_all / "v.sock"
    with pytest.raises(StoreError, match="not private"):
        store.start()


def test_a_server_that_cannot_start_says_why(settings: Settings) -> None:
    log = settings.data_dir / "appendonlydir"
    log.mkdir(parents=True)
    (log / "appendonly.aof.manifest").write_text("nonsense")
    store = EmbeddedStore(settings)
    with pytest.raises(StoreError, match=r"does not start: .*valkey\.log"):
        store.start()
    (log / "appendonly.aof.manifest").unlink()
    with store:  # the lock was given back
        assert store.pid


def test_a_place_that_cannot_hold_files(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot hold the store"):
        EmbeddedStore(Settings(data_dir=tmp_path / "file" / "data")).start()


def test_a_deaf_server_is_ended_with_signals(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "PATIENCE_S", 0.4)
    store = EmbeddedStore(settings)
    store.start()
    pid = store.pid or 0
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    store.stop()
    assert gone(pid)
    assert time.monotonic() - began < 5


def test_no_server_at_all_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    assert os.access(binary(), os.X_OK)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("shutil.which", lambda name: "/opt/" + name)
    assert binary() == Path("/opt/valkey-server")
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(StoreError, match=r"brenier\[local\].*BRENIER_REDIS_URL"):
        binary()


def test_a_tether_whose_parent_is_gone_already_starts_nothing() -> None:
    command = tethered(["true"], signal.SIGTERM)
    command[5] = "1"  # as if this process had ended meanwhile
    assert subprocess.run(command, check=False).returncode == 1
    assert subprocess.run(tethered(["true"], signal.SIGTERM), check=False).returncode == 0
