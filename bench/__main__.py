"""Every benchmark, one after the other: `python -m bench [spatial transport latency ...]`."""

import subprocess
import sys

BENCHES = (
    "spatial", "spatial_peers", "spatial_slices", "map_cells", "multiomics",
    "structured", "transport", "topk", "topk_learning", "topk_prune", "latency", "batch", "codecs",
)  # fmt: skip


def main() -> int:
    """Run the benchmarks that are named, or all; each in a process of its own."""
    asked = sys.argv[1:] or list(BENCHES)
    unknown = [name for name in asked if name not in BENCHES]
    if unknown:
        print(f"no benchmark {', '.join(unknown)}; there are {', '.join(BENCHES)}")
        return 2
    codes = [subprocess.run([sys.executable, "-m", f"bench.{name}"]).returncode for name in asked]
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
