"""The demonstration, whole: start, align, tell, write, stop."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import h5py
import pytest

from brenier.demo import choose, is_free
from brenier.simulate import Section
from schemas.samples import FOLDER

COMMAND = (sys.executable, "-c", "from brenier.cli import main; main()", "demo")
PATIENCE_S = 180

pytestmark = pytest.mark.slow


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=folder,
        env={**os.environ, "COLUMNS": "100"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def service_pids(output: str) -> list[int]:
    return [
        int(line.split("(pid ")[1].split(")")[0]) for line in output.splitlines() if "(pid " in line
    ]


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def test_it_aligns_simulated_sections_and_stops(tmp_path: Path) -> None:
    process = start(tmp_path, "--once", "--port", "0")
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, output
    assert "two simulated sections" in output
    words = ("label accuracy best possible", "landmark error median", "rotation",
             "reflection margin", "Swagger UI is at http://127.0.0.1:")  # fmt: skip
    assert [word for word in words if word not in output] == []
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    with h5py.File(tmp_path / "demo.h5ad") as file:
        assert "obsm" in file
    pids = service_pids(output)
    assert len(pids) == 3, "store, worker, gateway"
    assert not any(map(alive, pids))


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_it_stays_up_with_given_slices_until_asked_to_stop(
    tmp_path: Path, signum: signal.Signals
) -> None:
    slices = [str(FOLDER / f"section_{n}.h5ad") for n in (1, 2)]
    process = start(tmp_path, *slices, "--port", "0")
    alarm = threading.Timer(PATIENCE_S, process.kill)
    alarm.start()
    lines: list[str] = []
    with process:
        for line in process.stdout or ():
            lines.append(line)
            if "until Ctrl-C" in line:
                process.send_signal(signum)
    alarm.cancel()
    output = "".join(lines)
    assert process.returncode == 0, output
    assert "section_1.h5ad to section_2.h5ad" in output
    assert "label accuracy" not in output, "no keys were given, so nothing is scored"
    assert output.rstrip().endswith("Everything is stopped.")
    assert not any(map(alive, service_pids(output)))


def test_a_port_that_is_taken_is_left_alone(tmp_path: Path) -> None:
    from socket import socket

    with socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert not is_free(port)
        process = start(tmp_path, "--once", "--port", str(port))
        output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, output
    assert f"127.0.0.1:{port}/docs" not in output


def test_real_slices_are_taken_when_they_are_at_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.chdir(project)
    source, _, words = choose((), {})
    assert isinstance(source.source, Section)
    assert source.keys == {"label_key": "domain", "landmark_key": "tissue"}
    assert "simulated" in words
    data = tmp_path / "shared" / "data" / "spatial"
    data.mkdir(parents=True)
    for name in ("B1", "B2"):
        (data / f"her2_{name}.h5ad").touch()
    source, target, words = choose((), {})
    assert source.keys == target.keys == {"label_key": "cluster", "landmark_key": "warped_pixel"}
    assert "real" in words
    given = Path("a.h5ad"), Path("b.h5ad")
    source, target, _ = choose(given, {"label_key": "cluster"})
    assert (source.source, target.source) == given
    assert target.keys == {"label_key": "cluster"}
