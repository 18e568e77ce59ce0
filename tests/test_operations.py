"""The operator's page names every setting with its default."""

import json
import re
from pathlib import Path

from schemas.settings import Settings

PAGE = Path(__file__).parent.parent / "docs" / "operations.md"


def test_every_setting_is_in_the_table_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `(BRENIER_\w+)`[ *]*\| `?([^|`]*?)`? \|", PAGE.read_text(), re.M))
    wanted = {}
    for name, info in Settings.model_fields.items():
        value = info.default
        text = value if isinstance(value, str) else str(value) if name == "data_dir" else None
        wanted[f"BRENIER_{name.upper()}"] = json.dumps(value) if text is None else text or "empty"
    assert rows == wanted
