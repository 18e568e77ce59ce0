"""Array fields, their axes, and the models that every question and answer extends."""

import base64
import binascii
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    SerializationInfo,
    ValidationInfo,
    model_serializer,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError

from schemas.facts import DIGEST, DTYPES, Facts, Stored, nested_array, stored


class Strict(BaseModel):
    """No coercion, no unknown fields, no infinities; instances do not change."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, frozen=True, str_max_length=100_000
    )


ANY_SHAPE = "..."  # axes of a field that takes arrays of any shape


@dataclass(frozen=True)
class Dims:
    """The axes of an array field, as in `Dims("n m")`: equal names must have equal sizes.

    A number is the size itself, as in `Dims("p 2")`; `Dims("...")` takes any shape.
    """

    axes: str

    def __get_pydantic_json_schema__(
        self, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Tell the axes in JSON Schema as well."""
        return {**handler(core_schema), "x-axes": self.axes}


@dataclass(frozen=True)
class Differentiable:
    """Mark a field as one that gradients come from (answers) or go to (questions)."""


@dataclass(frozen=True)
class Whole:
    """Mark an array of whole numbers in a nested question: it reaches the mathematics as int64."""


@dataclass(frozen=True)
class Shelf:
    """What is at hand while one request is validated: what the store knows and what just came.

    It is passed as validation context `{"shelf": shelf}`; arrays that arrive within the body are
    staged in it and stored together with the job.
    """

    known: Mapping[str, Facts] = field(default_factory=dict)
    datasets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    staged: dict[str, Stored] = field(default_factory=dict)

    def stage(self, array: Stored) -> Facts:
        """Keep an array that came with the request."""
        self.staged[array.digest] = array
        return array.facts

    def facts(self, digest: str) -> Facts | None:
        """Look an array up; None when nobody knows it."""
        if digest in self.staged:
            return self.staged[digest].facts
        return self.known.get(digest)


def shelf_of(info: ValidationInfo | SerializationInfo) -> Shelf:
    """Take the shelf out of the validation context; an empty one when there is none."""
    return (info.context or {}).get("shelf") or Shelf()


class ArrayRef(Strict):
    """An array, by the digest of its bytes; small ones may be written as nested lists.

    Accepted: nested lists of numbers, `{"dtype", "shape", "data"}` with base64 of the row-major
    little-endian bytes, a digest from `POST /v1/arrays`, or a reference from an answer (of which
    only the digest is believed).
    """

    digest: str = Field(pattern=DIGEST, description="name of the array: GET /v1/arrays/{digest}")
    dtype: str = Field(description="numpy name of the element type")
    shape: list[int]
    facts: Facts = Field(exclude=True, repr=False)

    @model_validator(mode="before")
    @classmethod
    def _name(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, ArrayRef):
            return value
        shelf = shelf_of(info)
        digest = _digest_in(value)
        if digest is not None:
            facts = shelf.facts(digest)
            if facts is None:
                raise PydanticCustomError("no-such-array", "no array {digest}", {"digest": digest})
        else:
            array = stored(value if isinstance(value, np.ndarray) else _decode(value))
            digest, facts = array.digest, shelf.stage(array)
            if not facts.finite:
                at = np.argwhere(~np.isfinite(array.array))[0].tolist()
                raise PydanticCustomError(
                    "non-finite-number", "expected finite numbers", {"at": at}
                )
        if not facts.finite:
            raise PydanticCustomError("non-finite-number", "the array holds NaN or infinity")
        return {"digest": digest, "dtype": facts.dtype, "shape": facts.shape, "facts": facts}

    @model_serializer
    def _write(self, info: SerializationInfo) -> Any:
        if info.context and info.context.get("names_only"):
            return self.digest
        return {"digest": self.digest, "dtype": self.dtype, "shape": self.shape}

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return _ASKED if handler.mode == "validation" else _ANSWERED


def _digest_in(value: Any) -> str | None:
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and isinstance(value.get("digest"), str):
        return value["digest"]
    return None


def _decode(value: Any) -> np.ndarray:
    if not isinstance(value, dict):
        return nested_array(value)
    if set(value) != {"dtype", "shape", "data"} or not isinstance(value["data"], str):
        raise PydanticCustomError(
            "validation", "an array object has the keys dtype, shape, data (base64), or digest"
        )
    dtype, shape = value["dtype"], value["shape"]
    if dtype not in DTYPES:
        raise PydanticCustomError("validation", f"dtype is one of {', '.join(DTYPES)}")
    if not isinstance(shape, list) or not all(type(s) is int and 0 <= s < 2**40 for s in shape):
        raise PydanticCustomError("validation", "shape is a list of sizes")
    try:
        data = base64.b64decode(value["data"], validate=True)
    except (binascii.Error, ValueError):
        raise PydanticCustomError("validation", "data is not base64") from None
    wanted = int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize
    if wanted != len(data):
        raise PydanticCustomError(
            "shape-mismatch", "{want} bytes announced by dtype and shape, {got} received",
            {"want": str(wanted), "got": len(data)},
        )  # fmt: skip
    return np.frombuffer(data, dtype=dtype).reshape(shape)


_NESTED: dict[str, Any] = {"anyOf": [{"type": "number"}, {"type": "array", "items": {}}]}
_ASKED: dict[str, Any] = {
    "title": "Array",
    "description": "Nested lists of numbers, base64 bytes with dtype and shape, or a digest.",
    "anyOf": [
        *_NESTED["anyOf"],
        {"type": "string", "pattern": DIGEST},
        {
            "type": "object",
            "required": ["dtype", "shape", "data"],
            "additionalProperties": False,
            "properties": {
                "dtype": {"enum": list(DTYPES)},
                "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
                "data": {"type": "string", "contentEncoding": "base64"},
            },
        },
        {
            "type": "object",
            "required": ["digest"],
            "properties": {"digest": {"type": "string", "pattern": DIGEST}},
        },
    ],
}
_ANSWERED: dict[str, Any] = {
    "title": "ArrayRef",
    "description": "A stored array; `values` only when it is small.",
    "type": "object",
    "required": ["digest", "dtype", "shape", "href"],
    "additionalProperties": False,
    "properties": {
        "digest": {"type": "string", "pattern": DIGEST},
        "dtype": {"enum": list(DTYPES)},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        "href": {"type": "string"},
        "values": _NESTED,
    },
}


class Request(Strict):
    """What every question may carry besides its own fields."""

    smaller: ClassVar[str] = ""  # what to ask instead of a question that needs too much memory

    seed: int = Field(default=0, ge=0, lt=2**63, description="Seed of everything random.")
    precision: Literal["auto", "float64", "float32"] = Field(
        default="auto",
        description="Floating-point format of the computation; auto is float64 on CPU.",
    )
    timeout_s: float | None = Field(default=None, gt=0, le=86_400,
        description="Seconds of running time after which the best answer so far is returned, "
        "with status `interrupted`; null sets no limit.",
    )  # fmt: skip

    @model_validator(mode="after")
    def _axes_agree(self) -> "Request":
        sizes: dict[str, tuple[int, str]] = {}
        for path, ref, dims in arrays_in(self):
            if dims == ANY_SHAPE:
                continue
            axes = dims.split()
            if len(axes) != len(ref.shape):
                raise PydanticCustomError(
                    "shape-mismatch", "expected {want} axes ({dims}), received shape {shape}",
                    {"field": path, "want": len(axes), "dims": dims, "shape": str(ref.shape)},
                )  # fmt: skip
            for axis, size in zip(axes, ref.shape, strict=True):
                fixed = (int(axis), f"its axes ({dims})") if axis.isdigit() else None
                want, first = fixed or sizes.setdefault(axis, (size, path))
                if size != want or size == 0:
                    text = "axis {axis} has size {size}" + (
                        ", but {want} in {first}" if size else "; it must not be empty"
                    )
                    raise PydanticCustomError(
                        "shape-mismatch", text,
                        {"field": path, "axis": axis, "size": size, "want": want, "first": first},
                    )  # fmt: skip
        return self

    def footprint(self) -> int:
        """Estimate the bytes of working memory that the computation needs."""
        return sum(_bytes(ref) for _, ref, _ in arrays_in(self))


def _bytes(ref: ArrayRef) -> int:
    return 8 * int(np.prod(ref.shape, dtype=object))


class Warning(Strict):
    """A word of caution about an answer that was given."""

    code: str = Field(description="stable name of the caution")
    message: str = Field(description="what was seen")
    hint: str = Field(description="what to try next, with numbers")


class Timings(Strict):
    """Milliseconds spent in each stage of the job."""

    queue_ms: float
    load_ms: float
    compute_ms: float
    encode_ms: float


class Provenance(Strict):
    """Where an answer comes from."""

    routine: str
    version: str = Field(description="grows when the same question may get another answer")
    device: str
    dtype: str
    seed: int
    deterministic: bool = Field(description="same bits again on the same kind of device")
    timings: Timings
    libraries: dict[str, str] = Field(description="versions that took part")


class Result(Strict):
    """What every answer carries besides its own fields."""

    renders: ClassVar[tuple[str, ...]] = ()  # of "png", "svg", "h5ad"

    status: Literal["converged", "max_iter", "diverged", "stagnated", "interrupted"] = Field(
        description="why the computation ended; only `converged` met its tolerance"
    )
    iterations: int = Field(ge=0)
    residual: float = Field(description="the quantity that is compared with `tol`, as last read")
    warnings: list[Warning]
    provenance: Provenance


PLAIN = frozenset({type(None), bool, int, float, str})


def arrays_in(model: BaseModel, prefix: str = "") -> Iterator[tuple[str, ArrayRef, str]]:
    """Walk the array fields of a question, nested models included: path, reference, axes.

    The models of a list do not share axes: those of the item `spaces.1` are named `spaces.1.n`.
    Of a field that holds arrays by name, `tensors`, the paths end in the names: `tensors.w`.
    """
    for name, dims in _axes(type(model)).items():
        value = getattr(model, name)
        if type(value) in PLAIN:  # told at once: pydantic's own isinstance is slow
            continue
        yield from _arrays_of(value, f"{prefix}{name}", dims)


def _arrays_of(value: Any, path: str, dims: str | None) -> Iterable[tuple[str, ArrayRef, str]]:
    if isinstance(value, ArrayRef):
        return ((path, value, dims),) if dims is not None else ()
    if isinstance(value, BaseModel):
        return arrays_in(value, f"{path}.")
    if isinstance(value, list):
        return _arrays_of_items(value, f"{path}.")
    if isinstance(value, dict) and dims is not None:
        return ((f"{path}.{name}", ref, dims) for name, ref in value.items())
    return ()


def _arrays_of_items(items: list[Any], prefix: str) -> Iterator[tuple[str, ArrayRef, str]]:
    for index, item in enumerate(items):
        place = f"{prefix}{index}."
        for path, ref, axes in arrays_in(item, place) if isinstance(item, BaseModel) else ():
            own = " ".join(a if a.isdigit() else f"{place}{a}" for a in axes.split())
            yield path, ref, axes if axes == ANY_SHAPE else own


@cache
def _axes(model: type[BaseModel]) -> dict[str, str | None]:
    """List the fields of a model with the axes of those that are arrays."""
    found = {n: markers(i.metadata, i.annotation, Dims) for n, i in model.model_fields.items()}
    return {name: marks[0].axes if marks else None for name, marks in found.items()}


def markers(metadata: list[Any], annotation: Any, kind: type[Any]) -> list[Any]:
    """Find the markers of one kind on a field, also inside `Annotated[...] | None`."""
    found = [m for m in metadata if isinstance(m, kind)]
    for inner in get_args(annotation):
        if hasattr(inner, "__metadata__"):
            found += markers(list(inner.__metadata__), None, kind)
        found += markers([], inner, kind) if get_args(inner) and not found else []
    return found
