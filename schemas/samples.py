"""Small data files that ship with the service, so that every example runs."""

import hashlib
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "sample"


@cache
def samples() -> dict[str, Path]:
    """Map the digest of each shipped file to its path."""
    return {_digest(path): path for path in sorted(FOLDER.iterdir()) if path.suffix == ".h5ad"}


def sample(name: str) -> str:
    """Return the digest of one shipped file."""
    return _digest(FOLDER / name)


def _digest(path: Path) -> str:
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
