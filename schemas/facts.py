"""Arrays by the digest of their bytes, and what is known of each without opening it."""

import hashlib
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

DTYPES = ("float64", "float32", "float16", "int64", "int32", "uint8", "bool")
MAX_DEPTH = 32
NAMES = {np.dtype(name): name for name in DTYPES}  # dtype.name takes 6 us to be made
DIGEST = r"^sha256:[0-9a-f]{64}$"


class Facts(BaseModel):
    """What the store knows of an array: everything a schema needs to refuse it unopened."""

    model_config = ConfigDict(frozen=True)

    dtype: str = Field(description="numpy name of the element type")
    shape: list[int]
    finite: bool = Field(description="no NaN and no infinity")
    low: float | None = Field(description="smallest finite entry; null for an empty array")
    high: float | None = Field(description="largest finite entry; null for an empty array")
    total: float | None = Field(description="sum of the finite entries")


@dataclass(frozen=True)
class Stored:
    """An array on its way to or from the store: its name, its facts, its entries."""

    digest: str
    facts: Facts
    array: NDArray[Any]


def stored(array: NDArray[Any]) -> Stored:
    """Name an array: C order, little-endian, one of `DTYPES`."""
    array = np.asarray(array, order="C")
    if array.dtype not in NAMES and array.dtype.newbyteorder("=") not in NAMES:
        raise PydanticCustomError(
            "validation", "element type {got} is not one of {known}",
            {"got": str(array.dtype), "known": ", ".join(DTYPES)},
        )  # fmt: skip
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    return Stored(digest_of(array), facts_of(array), array)


def stored_each(together: NDArray[Any]) -> list[Stored]:
    """Name the arrays of a stack: measuring them costs its calls once for all."""
    together = np.ascontiguousarray(together)
    if len(together) < 2 or together.size == 0 or together.dtype not in NAMES:
        return [stored(array) for array in together]
    flat = together.reshape(len(together), -1)
    with np.errstate(invalid="ignore", over="ignore"):
        measured = flat.sum(1, dtype=np.float64), flat.min(1), flat.max(1)
    dtype, shape, found = NAMES[together.dtype], list(together.shape[1:]), list[Stored]()
    totals, lows, highs = (z.astype(np.float64).tolist() for z in measured)
    beginning = _named(dtype, tuple(shape))
    for array, total, low, high in zip(together, totals, lows, highs, strict=True):
        if not math.isfinite(total):
            found.append(stored(array))
            continue
        name = beginning.copy()
        name.update(array.data)
        facts = Facts(dtype=dtype, shape=shape, finite=True, low=low, high=high, total=total)
        found.append(Stored("sha256:" + name.hexdigest(), facts, array))
    return found


def digest_of(array: NDArray[Any]) -> str:
    """Hash element type, shape and bytes, so that equal arrays have equal names."""
    name = _named(NAMES[array.dtype], array.shape)
    name.update(array.reshape(-1).data)  # no copy of what may be large
    return "sha256:" + name.hexdigest()


def _named(dtype: str, shape: tuple[int, ...]) -> Any:
    """Begin to hash an array: with what it is, before its entries."""
    return hashlib.sha256(f"{dtype}{shape}".encode())


def facts_of(array: NDArray[Any]) -> Facts:
    """Measure an array once, when it is stored."""
    facts: dict[str, Any] = {"dtype": NAMES[array.dtype], "shape": list(array.shape)}
    if array.size == 0:
        return Facts(**facts, finite=True, low=None, high=None, total=0.0)
    with np.errstate(invalid="ignore", over="ignore"):
        total = float(np.add.reduce(array, axis=None, dtype=np.float64))
    if not math.isfinite(total):  # a NaN, an infinity, or finite entries whose sum overflows
        finite = np.isfinite(array)
        kept = array[finite].astype(np.float64)
        if kept.size == 0:
            return Facts(**facts, finite=False, low=None, high=None, total=0.0)
        with np.errstate(over="ignore"):
            total = float(np.clip(kept.sum(), -1.7e308, 1.7e308))
        clean = bool(finite.all())
        return Facts(
            **facts, finite=clean, low=float(kept.min()), high=float(kept.max()), total=total
        )
    low, high = (
        float(np.minimum.reduce(array, axis=None)),
        float(np.maximum.reduce(array, axis=None)),
    )
    return Facts(**facts, finite=True, low=low, high=high, total=total)


def nested_array(value: Any) -> NDArray[Any]:
    """Read a number or nested lists of numbers; refuse booleans, text, nulls and ragged rows.

    Raises:
        PydanticCustomError: with `at`, the index of the first entry at fault, in its context.
    """
    shape: list[int] = []
    flat: Sequence[Any] = [value]
    while flat and isinstance(flat[0], list):
        if len(shape) == MAX_DEPTH:
            raise PydanticCustomError(
                "validation", "more than {limit} nested lists", {"limit": MAX_DEPTH}
            )
        flat = _descend(flat, shape)
    kinds = set(map(type, flat))
    if not kinds <= {float, int}:
        at = next(i for i, entry in enumerate(flat) if type(entry) not in (float, int))
        raise PydanticCustomError(
            _code(flat[at]), "expected a number, received {got}",
            {"got": _json_name(flat[at]), "at": _index(at, shape)},
        )  # fmt: skip
    dtype = np.int64 if kinds == {int} and all(abs(i) < 2**63 for i in flat) else np.float64
    array = np.fromiter(_floats(flat) if dtype is np.float64 else flat, dtype, len(flat))
    return array.reshape(shape)


def _descend(flat: Sequence[Any], shape: list[int]) -> list[Any]:
    width = len(flat[0])
    for index, row in enumerate(flat):
        if not isinstance(row, list) or len(row) != width:
            got = f"{len(row)} entries" if isinstance(row, list) else _json_name(row)
            at = _index(index, shape)
            raise PydanticCustomError(
                "shape-mismatch", "expected a list of {want} entries, received {got}",
                {"want": width, "got": got, "at": at},
            )  # fmt: skip
    shape.append(width)
    return list(itertools.chain.from_iterable(flat))


def _index(flat: int, shape: list[int]) -> list[int]:
    return [int(i) for i in np.unravel_index(flat, shape)] if shape else []


def _floats(flat: Sequence[Any]) -> Iterator[float]:
    for entry in flat:
        try:
            yield float(entry)
        except OverflowError:
            yield float("inf")


def _code(value: Any) -> Literal["shape-mismatch", "validation"]:
    return "shape-mismatch" if isinstance(value, list) else "validation"


def _json_name(value: Any) -> str:
    names = {bool: "a boolean", str: "text", type(None): "null", dict: "an object", list: "a list"}
    return names.get(type(value), type(value).__name__)
