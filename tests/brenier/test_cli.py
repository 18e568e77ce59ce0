"""The command, as a user types it: what it prints, what it writes, how it ends."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner, Result

from brenier.cli import main, masked
from brenier.demo import is_free
from schemas.registry import ROUTINES
from schemas.samples import FOLDER
from schemas.transport import exact, sinkhorn

COMMAND = (sys.executable, "-c", "from brenier.cli import main; main()")


def brenier(
    *arguments: str, text: str = "", environment: Mapping[str, str] | None = None
) -> Result:
    """Run the command in this process, as the terminal would."""
    return CliRunner().invoke(main, list(arguments), input=text, env=environment)


def test_help_shows_every_verb() -> None:
    done = brenier("--help")
    assert done.exit_code == 0
    for verb in ("up", "demo", "run", "routines", "jobs", "config"):
        assert f"\n  {verb} " in done.stdout


def test_routines_are_listed_and_explained() -> None:
    done = brenier("routines")
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(ROUTINES)
    assert ROUTINES["transport.exact"].summary in done.stdout
    explained = brenier("routines", "transport.exact").stdout
    for field in exact.ExactRequest.model_fields:
        assert field in explained
    example = brenier("routines", "transport.exact", "--example").stdout
    assert json.loads(example) == exact.EXAMPLE


def test_up_hands_its_options_to_the_supervisor() -> None:
    shown, wrong = (
        subprocess.run(
            [*COMMAND, "up", *options], capture_output=True, text=True, timeout=60, check=False
        )
        for options in (["--help"], ["--host", "192.0.2.1", "--port", "0"])
    )
    assert shown.returncode == 0
    assert "usage: brenier up" in shown.stdout
    assert wrong.returncode == 2, "not without keys beyond loopback"


def test_run_asks_a_file_and_writes_answer_and_picture(
    service: httpx.Client, tmp_path: Path
) -> None:
    question, answer, picture = (tmp_path / n for n in ("q.json", "a.json", "a.png"))
    question.write_text(json.dumps(exact.EXAMPLE))
    done = brenier(
        "--url", str(service.base_url), "run", "transport.exact", str(question),
        "--out", str(answer), "--png", str(picture),
    )  # fmt: skip
    assert (done.exit_code, done.output) == (0, "")
    assert json.loads(answer.read_text())["status"] == "converged"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_run_reads_stdin_and_prints(service: httpx.Client) -> None:
    url = ("--url", str(service.base_url))
    done = brenier(*url, "run", "transport.sinkhorn", "-", text=json.dumps(sinkhorn.EXAMPLE))
    assert done.exit_code == 0
    assert json.loads(done.stdout)["provenance"]["routine"] == "transport.sinkhorn"
    listed = brenier(*url, "jobs", "--limit", "1")
    assert listed.exit_code == 0
    assert "transport.sinkhorn" in listed.stdout
    assert len(listed.stdout.splitlines()) == 2


@pytest.mark.slow
def test_run_uploads_the_files_that_a_question_names(service: httpx.Client, tmp_path: Path) -> None:
    slices = {
        side: {"dataset": str(FOLDER / f"section_{number}.h5ad")}
        for number, side in enumerate(("source", "target"), start=1)
    }
    written = tmp_path / "aligned.h5ad"
    done = brenier(
        "--url", str(service.base_url), "run", "spatial.align", "-", "--h5ad", str(written),
        text=json.dumps({**slices, "effort": "fast"}),
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert written.read_bytes().startswith(b"\x89HDF")


def test_problems_are_told_in_two_lines_at_most(service: httpx.Client) -> None:
    url = ("--url", str(service.base_url))
    text = json.dumps({**sinkhorn.EXAMPLE, "epsilon": -1})
    done = brenier(*url, "run", "transport.sinkhorn", "-", text=text)
    assert done.exit_code == 1
    assert done.stderr.startswith("brenier: validation (422): ")
    assert "#/epsilon" in done.stderr
    assert len(done.stderr.splitlines()) <= 2


def test_no_service_and_no_file_are_problems_too() -> None:
    port = next(p for p in range(9200, 9300) if is_free(p))
    done = brenier("--url", f"http://127.0.0.1:{port}", "jobs")
    assert done.exit_code == 1
    assert "brenier up" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    missing = json.dumps({"source": "nowhere.h5ad", "target": "nowhere.h5ad"})
    done = brenier("run", "spatial.align", "-", text=missing)
    assert done.exit_code == 1
    assert "nowhere.h5ad" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "transport.sinkhron", "-"),
        ("run", "transport.sinkhorn", "nowhere.json"),
        ("run", "transport.sinkhorn", "-"),  # stdin is empty, so not JSON
        ("--url", "localhost:8000", "jobs"),
        ("--key", "@nowhere", "jobs"),
        ("demo", __file__),
        ("solve",),
    ],
)
def test_wrong_usage_ends_with_2(arguments: tuple[str, ...]) -> None:
    done = brenier(*arguments)
    assert done.exit_code == 2
    assert "Traceback" not in done.stderr


def test_config_prints_the_effective_settings_without_secrets() -> None:
    secret = "0" * 64
    done = brenier(
        "config",
        environment={"BRENIER_PORT": "9001", "BRENIER_API_KEYS": json.dumps({"me": secret}),
                     "BRENIER_REDIS_URL": "redis://user:hunter2@store:6379/0"},
    )  # fmt: skip
    assert done.exit_code == 0
    assert "BRENIER_PORT=9001\n" in done.stdout
    assert "BRENIER_INSECURE=false\n" in done.stdout
    assert 'BRENIER_API_KEYS={"me": "***"}' in done.stdout
    assert "BRENIER_REDIS_URL=redis://user:***@store:6379/0" in done.stdout
    assert secret not in done.stdout
    assert "hunter2" not in done.stdout


def test_config_names_settings_that_do_not_exist() -> None:
    done = brenier("config", environment={"BRENIER_PROT": "9001"})
    assert done.exit_code == 1
    assert "BRENIER_PROT" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_passwords_with_signs_are_masked() -> None:
    assert masked("redis_url", "redis://:p%40ss@h/0") == "redis://:***@h/0"
    assert masked("redis_url", "redis://h/0") == "redis://h/0"
