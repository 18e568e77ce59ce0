"""`python -m workers.alive`: exit 0 when a worker of this host takes jobs, for health checks.

A worker signs in the store from the loop that takes jobs, so that one which hangs, or has lost the
store, is told from one that is merely there.
"""

import socket
import sys
from contextlib import closing

from redis.exceptions import RedisError

from schemas.settings import Settings
from workers.port import Ledger, Store


def main() -> int:
    """Look for a sign that is younger than three leases (older ones are forgotten)."""
    settings = Settings()
    with closing(Store(settings)) as store:
        try:
            signed = store.do(Ledger(settings).health()).workers
        except RedisError as error:
            print(f"brenier: the store does not answer: {error}")
            return 1
    host = f"@{socket.gethostname()}"
    return 0 if any(name.endswith(host) for name in signed) else 1


if __name__ == "__main__":
    sys.exit(main())
