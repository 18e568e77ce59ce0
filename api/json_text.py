"""JSON as the service reads it: UTF-8, no duplicate keys where that is cheap to see, bounded depth.

Small bodies go through the standard library, which can refuse duplicate keys; large ones through
orjson, four times as fast. NaN, Infinity and 1e400 are let through here (orjson refuses them, then
the standard library reads them), so that validation can say where they are.

This module is also loaded by the helper process of api/aside.py and imports nothing of the gateway.
"""

import json
from typing import Any

import orjson
from pydantic_core import PydanticCustomError

from schemas.facts import MAX_DEPTH, nested_array

SMALL = 64 << 10
MANY = 256  # numbers in nested lists from which on an array is made of them here


class NotJson(ValueError):
    """The text is not JSON; the message is for the sender."""


def parse(raw: bytes) -> Any:
    """Read a body."""
    if len(raw) > SMALL:
        try:
            return orjson.loads(raw)
        except orjson.JSONDecodeError:
            return _standard(raw)
    return _standard(raw, _no_duplicates)


def parse_large(raw: bytes) -> Any:
    """Read a large body, and make arrays of its nested lists of numbers."""
    return with_arrays(parse(raw))


def with_arrays(value: Any, depth: int = 0) -> Any:
    """Replace large nested lists of numbers; what is no array stays for validation to refuse."""
    if depth > MAX_DEPTH:
        raise NotJson(f"nested more than {MAX_DEPTH} deep")
    if isinstance(value, dict):
        return {k: with_arrays(v, depth + 1) for k, v in value.items()}
    if not isinstance(value, list) or not value:
        return value
    if not _numeric(value):
        return [with_arrays(v, depth + 1) for v in value]
    try:
        return nested_array(value)
    except PydanticCustomError:
        return value


def _numeric(value: Any) -> bool:
    """Tell lists that may be large arrays, by their first entries and their sizes."""
    size = 1
    while isinstance(value, list) and value:
        size *= len(value)
        value = value[0]
    return type(value) in (int, float) and size >= MANY


def _standard(raw: bytes, hook: Any = None) -> Any:
    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=hook)
    except UnicodeDecodeError as error:
        raise NotJson(f"not UTF-8 text: byte {error.start} cannot be read") from None
    except RecursionError:
        raise NotJson(f"nested more than {MAX_DEPTH} deep") from None
    except ValueError as error:  # also numbers of too many digits
        raise NotJson(str(error)) from None


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(k for k, _ in pairs if k in seen or seen.add(k))
        raise NotJson(f"the key {twice[:100]!r} occurs twice in one object")
    return found
