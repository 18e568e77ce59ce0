"""What an attempt at a job works with: the store, the arrays and files of a question."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from algorithms.errors import IllPosed
from schemas.arrays import Shelf
from schemas.datasets import Selection
from schemas.facts import Stored
from schemas.jobs import State
from schemas.problems import Failure
from schemas.settings import Settings
from workers.bind import Binder, brought
from workers.load import LOADERS
from workers.place import Place
from workers.port import Claim, Ledger, Store
from workers.pulse import Heart, Pulse


@dataclass(frozen=True)
class Outcome:
    """What an attempt came to."""

    status: State
    result: bytes | None = None
    arrays: tuple[Stored, ...] = ()
    failure: Failure | None = None
    warnings: list[dict[str, str]] = field(default_factory=list[dict[str, str]])


@dataclass(frozen=True)
class Materials:
    """The arrays that a question or an answer names, and what is known of its files."""

    arrays: Mapping[str, Stored]
    shelf: Shelf


@dataclass(frozen=True)
class Desk:
    """A worker process at work: its settings, its store, its name."""

    settings: Settings
    store: Store
    worker: str
    heart: Heart = field(default_factory=Heart)

    @property
    def ledger(self) -> Ledger:
        """Return the operations on the store."""
        return Ledger(self.settings)

    def fetch(self, *values: Mapping[str, Any]) -> Materials:
        """Fetch everything that JSON values name by digest."""
        digests = sorted(set().union(*(digests_in(value) for value in values)))
        arrays = self.store.do(self.ledger.get(digests))
        rest = [digest for digest in digests if digest not in arrays]
        datasets = self.store.do(self.ledger.datasets(rest))
        known = {digest: item.facts for digest, item in arrays.items()}
        return Materials(arrays, Shelf(known=known, datasets=datasets))

    def binder(self, materials: Materials, place: Place, *, many: bool = False) -> Binder:
        """Return what turns questions into arguments, reading uploaded files as needed.

        One for `many` questions brings all arrays to the device at once; they share them.
        """

        def load(selection: Selection, path: str) -> Any:
            raw = self.store.do(self.ledger.get_dataset(selection.dataset))
            if raw is None:
                raise IllPosed(f"{path}.dataset", "the dataset has expired; upload it again")
            return LOADERS[type(selection)](selection, raw, path)

        ready = brought(materials.arrays, place) if many else {}
        return Binder(materials.arrays, place, load, ready)


Attempt = Callable[[Desk, Claim, Pulse], Outcome]


def digests_in(value: Any) -> set[str]:
    """Collect every digest in a JSON value."""
    found, waiting = set[str](), [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            if value.startswith("sha256:"):
                found.add(value)
        elif isinstance(value, dict):
            waiting += [v for v in value.values() if isinstance(v, str | dict | list)]
        elif isinstance(value, list):
            waiting += [v for v in value if isinstance(v, str | dict | list)]
    return found
