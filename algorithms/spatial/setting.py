"""What is kept of two slices, and the unit in which distances are compared."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from algorithms.errors import IllPosed
from algorithms.spatial.expression import Counts
from algorithms.spatial.frames import pitch
from algorithms.spatial.slice import Slice

# Array units (legacy ST) have pitch about 1; coordinates are then used as they are.
ARRAY_PITCH = 0.5, 2.0


@dataclass(frozen=True)
class Setting:
    """What was kept of two slices, and the units that their coordinates are divided by."""

    counts: Counts
    scale: Literal["pitch", "none"]
    pitches: tuple[float, float]
    units: tuple[float, float]


def setting_of(
    source: Slice, target: Slice, counts: Counts, scale: Literal["auto", "pitch", "none"]
) -> Setting:
    """Choose the units: array units stay, others are divided by the pitch of each slice."""
    kept = source.coordinates[counts.kept_source], target.coordinates[counts.kept_target]
    pitches = pitch(kept[0].double()), pitch(kept[1].double())
    if scale == "auto":
        low, high = ARRAY_PITCH
        scale = "none" if all(low <= own <= high for own in pitches) else "pitch"
    return Setting(counts, scale, pitches, pitches if scale == "pitch" else (1.0, 1.0))


def paired(
    source: Slice, target: Slice, units: tuple[float, float], pairs: Float[Tensor, "p 2"]
) -> tuple[Float[Tensor, "p 2"], Float[Tensor, "p 2"]]:
    """Look up the places that pairs of rows say are the same, in units."""
    if bool((pairs != pairs.round()).any()):
        raise IllPosed("pairs", "rows are whole numbers, counted from 0")
    rows, cols = pairs.long().unbind(1)
    for field, k, size in (("source", rows, len(source.ids)), ("target", cols, len(target.ids))):
        if int(k.min()) < 0 or int(k.max()) >= size:
            raise IllPosed("pairs", f"{field} rows lie in [{k.min()}, {k.max()}] of {size} rows")
    z = source.coordinates[rows].double() / units[0]
    y = target.coordinates[cols].double() / units[1]
    if len(z) < 2 or bool((z == z[0]).all()) or bool((y == y[0]).all()):
        raise IllPosed("pairs", "a motion needs pairs at two different places at least")
    return z, y
