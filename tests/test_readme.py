"""The README does what it says: every command runs, every number is the one that comes back."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from schemas.registry import ROUTINES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
WRITTEN = "http://127.0.0.1:8000"
PRINTED = 1e-6  # the README shows six digits
LONGEST = 150


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Every command of the README; one that ends within quotes goes on in the next line."""
    found: list[str] = []
    for line in "".join(blocks("bash")).splitlines(keepends=True):
        if found and found[-1].count("'") % 2:
            found[-1] += line
        else:
            found.append(line)
    return [command.strip() for command in found]


def routine_table() -> str:
    rows = ["| routine | answers | gradients of |", "| --- | --- | --- |"]
    for routine in ROUTINES.values():
        outputs = ", ".join(f"`{name}`" for name in routine.outputs) or "none"
        rows.append(f"| `{routine.name}` | {routine.summary} | {outputs} |")
    return "\n".join(rows)


def test_it_is_short() -> None:
    assert README.count("\n") < LONGEST


def test_the_table_lists_every_routine() -> None:
    shown = README.split("<!-- routines -->")[1].split("<!-- /routines -->")[0].strip()
    assert shown == routine_table(), "run `make docs`"


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("make ")])
def test_make_knows_its_target(command: str) -> None:
    done = subprocess.run(
        [*shlex.split(command), "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_curl_command_gives_the_answer_shown(service: httpx.Client) -> None:
    if shutil.which("curl") is None:
        pytest.skip("no curl here")
    [command] = [c for c in commands() if c.startswith("curl ")]
    done = subprocess.run(
        shlex.split(command.replace(WRITTEN, str(service.base_url))),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    [shown] = blocks("json")
    assert_within(json.loads(shown), json.loads(done.stdout))


def assert_within(shown: Any, answer: Any) -> None:
    """Check that everything shown is in the answer, numbers to the digits shown."""
    if isinstance(shown, dict):
        for name, value in shown.items():
            assert_within(value, answer[name])
    elif isinstance(shown, list):
        for one, other in zip(shown, answer, strict=True):
            assert_within(one, other)
    else:
        assert answer == (pytest.approx(shown, abs=PRINTED) if isinstance(shown, float) else shown)


def test_the_python_example_runs(service: httpx.Client) -> None:
    example = blocks("python")[0].replace(WRITTEN, str(service.base_url))
    done = subprocess.run(
        [sys.executable, "-c", example], capture_output=True, text=True, check=True
    )
    value, mass, gap = map(float, done.stdout.split())
    assert value == pytest.approx(0.671207, abs=PRINTED)
    assert mass == pytest.approx(1, abs=PRINTED)
    assert gap == pytest.approx(0, abs=PRINTED)


def test_the_brenier_commands_run(service: httpx.Client, tmp_path: Path) -> None:
    for command in (c for c in commands() if c.startswith("brenier ")):
        words = shlex.split(command.removeprefix("brenier "))
        out = tmp_path / words.pop() if ">" in words else None
        done = subprocess.run(
            [sys.executable, "-c", "from brenier.cli import main; main()",
             "--url", str(service.base_url), *(word for word in words if word != ">")],
            cwd=tmp_path, capture_output=True, text=True, check=True,
        )  # fmt: skip
        if out is not None:
            out.write_text(done.stdout)
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_no_command_is_left_untried() -> None:
    tried = ("make ", "curl ", "brenier ")
    assert [c for c in commands() if not c.startswith(tried)] == []


def test_the_line_that_announces_a_routine_is_one_of_the_registry() -> None:
    line = blocks("text")[0].strip()
    known = (ROOT / "schemas" / "registry.py").read_text()
    shape = re.compile(r'Routine\(\s*"[a-z_.]+",\s*[\w.]+,\s*[\w.]+,\s*[\w.]+,?\s*\),')
    assert shape.fullmatch(line)
    assert shape.search(known)


if __name__ == "__main__":
    before, rest = README.split("<!-- routines -->")
    after = rest.split("<!-- /routines -->")[1]
    table = f"<!-- routines -->\n{routine_table()}\n<!-- /routines -->"
    (ROOT / "README.md").write_text(before + table + after)
