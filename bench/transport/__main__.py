"""Every benchmark of transport, or those named: `python -m bench.transport [entropic exact]`."""

import subprocess
import sys
from pathlib import Path

TABLES = sorted(p.stem for p in Path(__file__).parent.glob("*.py") if not p.stem.startswith("_"))


def main() -> int:
    """Run each in a process of its own."""
    asked = sys.argv[1:] or TABLES
    unknown = [name for name in asked if name not in TABLES]
    if unknown:
        print(f"no table {', '.join(unknown)}; there are {', '.join(TABLES)}")
        return 2
    codes = [
        subprocess.run([sys.executable, "-m", f"bench.transport.{name}"]).returncode
        for name in asked
    ]
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
