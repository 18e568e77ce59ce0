"""The walk-through of CONTRIBUTING.md, done to a copy of the project: two files and one line."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
COPIED = ("api", "workers", "algorithms", "schemas", "brenier", "tests", "docs")

ROUNDING = 1e-13  # a few hundred roundings of float64 numbers of order one

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Follow the text in a copy of the project."""
    home = tmp_path_factory.mktemp("copy")
    for name in COPIED:
        shutil.copytree(ROOT / name, home / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, home)
    schema, mathematics = re.findall(r"^```python\n(.*?)^```", TEXT, re.M | re.S)
    [line] = re.findall(r"^```text\n(.*?)^```", TEXT, re.M | re.S)
    for tree, text in (("schemas", schema), ("algorithms", mathematics)):
        folder = home / tree / "simplex"
        folder.mkdir()
        (folder / "__init__.py").write_text('"""Simplices."""\n')
        (folder / "project.py").write_text(text)
    registry = home / "schemas" / "registry.py"
    known = registry.read_text()
    known = known.replace("ROUTINES: ", "from schemas.simplex import project\n\nROUTINES: ", 1)
    registry.write_text(known.replace("for routine in (\n", f"for routine in (\n{line}", 1))
    return home


def run(copy: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, *words], cwd=copy, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def test_the_mirror_rules_hold(copy: Path) -> None:
    out = run(copy, "-m", "pytest", "-q", "tests/contract/test_mirror.py", "-k", "simplex")
    assert re.search(r"\d+ passed", out)


def test_route_client_and_command_follow(copy: Path) -> None:
    document = json.loads(run(copy, "-m", "api"))
    assert "/v1/simplex/project" in document["paths"]
    assert "/v1/simplex/project/vjp" in document["paths"]
    assert "simplex.project" in run(copy, "-c", "from brenier.cli import main; main()", "routines")
    script = "import brenier; print(brenier.Client().simplex.project)"
    assert "mass: float = 1.0" in run(copy, "-c", script)


def test_the_projection_is_right(copy: Path) -> None:
    script = """if True:
        import torch
        from algorithms.simplex.project import project
        torch.manual_seed(0)
        x = torch.randn(50, 7, dtype=torch.float64, requires_grad=True)
        found = project(x, 2.0)
        proof = found.certificate
        print(proof.mass_error, proof.kkt_residual, float(found.p.min()))
        print(torch.autograd.gradcheck(lambda x: project(x, 2.0).p, x))
    """
    numbers, smooth = run(copy, "-c", script).splitlines()
    mass_error, kkt_residual, smallest = map(float, numbers.split())
    assert mass_error < ROUNDING
    assert kkt_residual < ROUNDING
    assert smallest >= 0
    assert smooth == "True"


def test_the_texts_that_follow_are_written(copy: Path) -> None:
    run(copy, "docs/routines.py")
    assert (copy / "docs" / "routines" / "simplex.project.md").exists()
    run(copy, "-m", "tests.test_readme")
    assert "| `simplex.project` | Project each row" in (copy / "README.md").read_text()
