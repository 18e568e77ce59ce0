"""The pages say what the code says, and their links lead somewhere."""

import re
from pathlib import Path
from runpy import run_path

import pytest

from schemas.registry import ROUTINES

ROOT = Path(__file__).parent.parent
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(#[^)]*)?\)")


@pytest.mark.parametrize("routine", ROUTINES.values(), ids=lambda r: r.name)
def test_routine_pages_are_generated_anew(routine: object) -> None:
    made = run_path(str(ROOT / "docs" / "routines.py"))["page"](routine)
    kept = ROOT / "docs" / "routines" / f"{routine.name}.md"
    assert kept.read_text() == made, "run: python docs/routines.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = [found.group(1) for found in LINK.finditer(page.read_text())]
    inside = [link for link in links if "://" not in link and not link.startswith("mailto:")]
    assert [link for link in inside if not (page.parent / link).exists()] == []
