"""Binary questions: one safetensors file, or multipart with .npy parts, as JSON values with arrays.

Both give the same value as the JSON body would, so that errors point to the same places.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from safetensors import SafetensorError
from safetensors.numpy import load

from api import npy
from api.json_text import parse

MAX_PARTS = 64


class Unreadable(ValueError):
    """The body is not what its Content-Type says; the message is for the sender."""

    def __init__(self, text: str, code: str = "validation") -> None:
        """Take the message and the kind of problem."""
        super().__init__(text)
        self.code = code


def from_safetensors(raw: bytes) -> Any:
    """Read a question from one safetensors file."""
    tensors, metadata = tensors_in(raw)
    value = parse(metadata.get("options", "{}").encode("utf-8", "surrogatepass"))
    if not isinstance(value, dict):
        raise Unreadable("the metadata entry `options` must be a JSON object")
    for name, tensor in tensors.items():
        _put(value, name, tensor)
    return value


def tensors_in(raw: bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read the tensors and the metadata of a safetensors file."""
    try:
        tensors = load(raw)
    except KeyError as error:
        raise Unreadable(
            f"element type {str(error)[:40]} is not read; send float32 or float64",
            "unsupported-media-type",
        ) from None
    except (SafetensorError, ValueError, TypeError, AttributeError) as error:
        raise Unreadable(f"not a safetensors file: {str(error)[:200]}") from None
    size = int.from_bytes(raw[:8], "little")
    header = parse(raw[8 : 8 + size])
    return tensors, header.get("__metadata__") or {}


def _put(value: dict[str, Any], path: str, tensor: np.ndarray) -> None:
    *parents, name = path.split(".")
    here = value
    for parent in parents:
        step = here.setdefault(parent, {})
        if not isinstance(step, dict):
            raise Unreadable(f"tensor {path[:100]} and `options` disagree about {parent[:100]}")
        here = step
    if name in here:
        raise Unreadable(f"{path[:100]} is given as a tensor and in `options`")
    here[name] = tensor


@dataclass
class _Collector:
    """Gathers the parts that the multipart parser announces."""

    parts: dict[str, bytes] = field(default_factory=dict[str, bytes])
    _name: bytes = b""
    _value: bytes = b""
    _headers: dict[bytes, bytes] = field(default_factory=dict[bytes, bytes])
    _data: list[bytes] = field(default_factory=list[bytes])

    def callbacks(self) -> Any:
        """Return the hooks of python_multipart."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._on_name,
            "on_header_value": self._on_value,
            "on_header_end": self._header,
            "on_part_data": lambda data, start, end: self._data.append(data[start:end]),
            "on_part_end": self._end,
        }

    def _begin(self) -> None:
        self._headers, self._data = {}, []

    def _on_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name = self._value = b""

    def _end(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name in self.parts or len(self.parts) == MAX_PARTS:
            raise Unreadable(f"the part {name[:100]!r} occurs twice, or there are too many parts")
        self.parts[name] = b"".join(self._data)


def from_multipart(raw: bytes, options: Mapping[bytes, bytes]) -> Any:
    """Read a question from a part `request` and the .npy parts that it names."""
    boundary = options.get(b"boundary")
    if not boundary:
        raise Unreadable("Content-Type names no boundary")
    collector = _Collector()
    try:
        parser = MultipartParser(boundary, collector.callbacks())
        parser.write(raw)
        parser.finalize()
    except MultipartParseError as error:
        raise Unreadable(f"not multipart: {error}") from None
    parts = collector.parts
    if "request" not in parts:
        raise Unreadable("there is no part named `request`")
    return _resolve(parse(parts.pop("request")), parts)


def _resolve(value: Any, parts: dict[str, bytes]) -> Any:
    if isinstance(value, list):
        return [_resolve(v, parts) for v in value] if _may_name(value) else value
    if not isinstance(value, dict):
        return value
    if set(value) == {"$tensor"}:
        return _tensor(str(value["$tensor"]), parts)
    return {k: _resolve(v, parts) for k, v in value.items()}


def _may_name(value: list[Any]) -> bool:
    return bool(value) and isinstance(value[0], dict | list)


def _tensor(name: str, parts: dict[str, bytes]) -> np.ndarray:
    if name not in parts:
        raise Unreadable(f"no part named {name[:100]!r}; there are {', '.join(parts)[:200]}")
    try:
        return npy.parse(parts[name])
    except npy.NotNpy as error:
        raise Unreadable(f"part {name[:100]!r}: {error}") from None
