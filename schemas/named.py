"""Arrays by name: several of any shapes in one field of a question or an answer."""

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from schemas.arrays import ANY_SHAPE, ArrayRef, Dims

# Keys that tell an array written as an object; as the name of an array they would mislead readers.
WORDS = frozenset({"digest", "data"})
MOST = 10_000


def flattened(value: Any) -> Any:
    """Join the names of nested objects by dots: `{"fc": {"weight": x}}` is `{"fc.weight": x}`.

    Binary questions arrive nested, because there dots separate the names of fields.
    """
    if not isinstance(value, dict):
        return value
    found, waiting = dict[Any, Any](), list(reversed(value.items()))
    while waiting:
        name, inner = waiting.pop()
        if isinstance(inner, dict) and inner and not WORDS & set(inner):
            waiting += [(f"{name}.{deeper}", item) for deeper, item in reversed(inner.items())]
        elif name in found:
            raise PydanticCustomError("validation", "{name} is given twice", {"name": str(name)})
        else:
            found[name] = inner
    return found


def allowed(name: str) -> str:
    """Refuse names that a reader of the JSON would take for something else."""
    if name in WORDS:
        raise PydanticCustomError(
            "validation", "an array cannot be called {name}; rename it", {"name": name}
        )
    return name


def _not_empty(array: ArrayRef) -> ArrayRef:
    if 0 in array.shape:
        raise PydanticCustomError(
            "shape-mismatch", "an array of shape {shape} holds nothing; leave it out",
            {"shape": str(array.shape)},
        )  # fmt: skip
    return array


Name = Annotated[str, Field(min_length=1, max_length=500), AfterValidator(allowed)]
Named = dict[str, Annotated[ArrayRef, Dims(ANY_SHAPE)]]
AskedNamed = Annotated[
    dict[Name, Annotated[ArrayRef, Dims(ANY_SHAPE), AfterValidator(_not_empty)]],
    BeforeValidator(flattened),
    Field(min_length=1, max_length=MOST),
]
