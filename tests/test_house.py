"""The house rules that tools can check, so that one command checks everything."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
OURS = ("api", "workers", "algorithms", "schemas", "brenier")
CEILING = 600  # lines of one file
NAMELESS = {"utils", "util", "common", "misc", "base", "manager", "helpers"}

CHECKS = {
    "lint": ("ruff", "check", "."),
    "format": ("ruff", "format", "--check", "."),
    "imports": ("lint-imports",),
    "types": ("pyright",),
}


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.slow
def test_tool_has_nothing_to_say(name: str) -> None:
    tool, *options = CHECKS[name]
    done = subprocess.run(
        [BIN / tool, *options], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-2000:]}"


@pytest.mark.parametrize("package", OURS)
def test_files_are_short_and_named_after_what_they_hold(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert [f.name for f in files if f.stem in NAMELESS] == []
    lengths = {str(f.relative_to(ROOT)): f.read_text().count("\n") for f in files}
    assert {name: n for name, n in lengths.items() if n > CEILING} == {}


def test_the_environment_is_pinned_and_names_no_place() -> None:
    pins = [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if not line.startswith("#")
    ]
    assert [
        pin for pin in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", pin)
    ] == []
    assert any(pin.startswith("torch==") for pin in pins)


def test_what_runs_here_is_what_is_pinned() -> None:
    from importlib.metadata import PackageNotFoundError, version

    for line in (ROOT / "constraints.txt").read_text().splitlines():
        name, _, wanted = line.partition("==")
        if not wanted:
            continue
        try:
            found = version(name)
        except PackageNotFoundError:
            continue  # of another platform or another extra
        assert found.partition("+")[0] == wanted, name


def test_every_target_of_the_makefile_is_explained() -> None:
    text = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^([a-z]+):", text, re.MULTILINE)
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert re.findall(r"^make ([a-z]+) +\S", listed.stdout, re.MULTILINE) == targets
    assert {"demo", "test", "fast", "lint", "serve", "bench", "clean"} <= set(targets)
