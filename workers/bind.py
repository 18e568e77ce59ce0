"""Wire to mathematics and back: the mirror between `schemas` and `algorithms`, carried out.

`schemas.F.R.Model` becomes `algorithms.F.R.Model`, field by field; arrays become tensors on the
chosen device; selections of uploaded files become what their loader builds. On the way back
dataclasses become JSON, tensors become stored arrays.
"""

import dataclasses
import inspect
import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel

from algorithms.iterate import Stop, Watch
from schemas.arrays import PLAIN, ArrayRef, Request, Whole, markers
from schemas.datasets import Selection
from schemas.facts import Facts, Stored, stored, stored_each
from schemas.routine import Routine
from workers.place import Place

Load = Callable[[Selection, str], Any]


class NotFinite(ArithmeticError):
    """A field of an answer holds NaN or infinity."""

    def __init__(self, field: str) -> None:
        super().__init__(field)
        self.field = field


def target(routine: Routine) -> Callable[..., Any]:
    """Find the function that a routine is named after."""
    name = routine.name.split(".")[-1]
    return getattr(import_module(f"algorithms.{routine.name}"), name)


def prepare(routine: Routine) -> None:
    """Let a routine's module do ahead, in its `prepare`, what its first question would wait for."""
    ahead = getattr(import_module(f"algorithms.{routine.name}"), "prepare", None)
    if ahead is not None:
        ahead()


def call(
    routine: Routine, arguments: Mapping[str, Any], *, seed: int, place: Place, watch: Watch
) -> Any:
    """Run a routine's function; one that draws gets a `generator` that the question's seed set."""
    function, drawn = target(routine), dict[str, Any]()
    if "generator" in inspect.signature(function).parameters:
        drawn["generator"] = torch.Generator(place.device).manual_seed(seed)
    return function(**arguments, **drawn, watch=watch)


def together(routine: Routine) -> Callable[..., list[Any]] | None:
    """Find the function `many` of a routine's module, which answers several questions at once.

    It takes the arguments of each question and a `watch`, and returns, in their order, an answer
    or the `IllPosed` that the routine itself would have raised.
    """
    return getattr(import_module(f"algorithms.{routine.name}"), "many", None)


@cache
def mirror(model: type[BaseModel]) -> type[Any]:
    """Find the dataclass that a nested model is the image of."""
    module = import_module(model.__module__.replace("schemas", "algorithms", 1))
    return getattr(module, model.__name__)


@cache
def _own(model: type[Request]) -> tuple[str, ...]:
    """List the fields of a question that are not every question's."""
    return tuple(name for name in model.model_fields if name not in Request.model_fields)


@cache
def _names(kind: type[Any]) -> tuple[str, ...]:
    """List the fields of a dataclass."""
    return tuple(field.name for field in dataclasses.fields(kind))


@cache
def _whole(model: type[BaseModel]) -> frozenset[str]:
    """List the fields of a model that hold whole numbers."""
    fields = model.model_fields.items()
    return frozenset(n for n, i in fields if markers(i.metadata, i.annotation, Whole))


def brought(arrays: Mapping[str, Stored], place: Place) -> dict[str, torch.Tensor]:
    """Bring many arrays to a device, those of one shape and element type in one piece."""
    alike = defaultdict[Hashable, list[Stored]](list)
    for item in arrays.values():
        alike[item.array.dtype, item.array.shape].append(item)
    found = dict[str, torch.Tensor]()
    for items in alike.values():
        stack = torch.tensor(np.stack([item.array for item in items]), device=place.device)
        names = (item.digest for item in items)
        found.update(zip(names, stack.to(place.dtype).unbind(), strict=True))
    return found


@dataclasses.dataclass(frozen=True)
class Binder:
    """Turn one validated question into the arguments of its function."""

    arrays: Mapping[str, Stored]
    place: Place
    load: Load
    ready: Mapping[str, torch.Tensor] = dataclasses.field(default_factory=dict[str, torch.Tensor])

    def arguments(self, request: Request) -> dict[str, Any]:
        """Bind every field of the question that is its own."""
        return {name: self._value(getattr(request, name), name) for name in _own(type(request))}

    def tensor(self, ref: ArrayRef) -> torch.Tensor:
        """Bring an array to the device; numbers take the chosen floating-point format."""
        if ref.digest in self.ready:
            return self.ready[ref.digest]
        array = self.arrays[ref.digest].array
        return torch.tensor(array, device=self.place.device).to(self.place.dtype)

    def _value(self, value: Any, path: str) -> Any:
        if type(value) in PLAIN:
            return value
        if isinstance(value, ArrayRef):
            return self.tensor(value)
        if isinstance(value, Selection):
            return self.load(value, path)
        if isinstance(value, BaseModel):
            kind = mirror(type(value))
            bound = {n: self._value(getattr(value, n), f"{path}.{n}") for n in _names(kind)}
            for name in _whole(type(value)):
                array = self.arrays[getattr(value, name).digest].array
                bound[name] = torch.tensor(array, device=self.place.device).long()
            return kind(**bound)
        if isinstance(value, list):
            return tuple(self._value(item, f"{path}.{i}") for i, item in enumerate(value))
        if isinstance(value, dict):
            return {name: self._value(item, f"{path}.{name}") for name, item in value.items()}
        return value


class Encoder:
    """Turn an answer into JSON with references, collecting the arrays to be stored."""

    def __init__(self, inline_limit: int) -> None:
        """Arrays of at most `inline_limit` entries also travel inside the JSON."""
        self.arrays: dict[str, Stored] = {}
        self.facts: dict[str, Facts] = {}
        self._limit = inline_limit
        self._ready: dict[int, Stored] = {}

    def expect(self, answers: Sequence[Any]) -> None:
        """Name the arrays of answers that are about to be written, one shape at a time."""
        alike = defaultdict[Hashable, list[torch.Tensor]](list)
        for answer in answers:
            for name in _names(type(answer)):
                value = getattr(answer, name)
                if isinstance(value, torch.Tensor) and value.ndim > 0:
                    alike[value.dtype, value.shape, value.device].append(value)
        self._ready.clear()
        for tensors in alike.values():
            items = stored_each(torch.stack(tensors).detach().cpu().numpy())
            self._ready.update(zip(map(id, tensors), items, strict=True))

    def answer(self, answer: Any) -> dict[str, Any]:
        """Write a routine's dataclass: its stop is spread out, its cautions are the warnings.

        Raises:
            NotFinite: when a number or an array entry is NaN or infinite.
        """
        fields = {name: getattr(answer, name) for name in _names(type(answer))}
        stop: Stop = fields.pop("stop")
        cautions = fields.pop("cautions", ())
        return {
            **{name: self.value(value, name) for name, value in fields.items()},
            **self.value(stop, "stop"),
            "warnings": [self.value(c, "cautions") for c in cautions],
        }

    def value(self, value: Any, path: str) -> Any:
        """Write one value, whatever it is made of."""
        if type(value) in PLAIN:
            if type(value) is float and not math.isfinite(value):
                raise NotFinite(path)
            return value
        if isinstance(value, torch.Tensor):
            return self.value(value.item(), path) if value.ndim == 0 else self.array(value, path)
        if dataclasses.is_dataclass(value):
            names = _names(type(value))
            return {n: self.value(getattr(value, n), f"{path}.{n}") for n in names}
        if isinstance(value, tuple | list):
            return [self.value(item, f"{path}.{i}") for i, item in enumerate(value)]
        if isinstance(value, dict):
            return {k: self._named(v, f"{path}.{k}") for k, v in value.items()}
        if isinstance(value, float) and not math.isfinite(value):
            raise NotFinite(path)
        return value

    def _named(self, value: Any, path: str) -> Any:
        """Write what has a name; a tensor is stored under it whatever its shape."""
        return (self.array if isinstance(value, torch.Tensor) else self.value)(value, path)

    def array(self, tensor: torch.Tensor, path: str) -> dict[str, Any]:
        """Store a tensor and refer to it; `values` only when it is small."""
        item = self._ready.pop(id(tensor), None)
        if item is None:
            item = stored(tensor.detach().contiguous().cpu().numpy())
        if not item.facts.finite:
            raise NotFinite(path)
        self.arrays[item.digest], self.facts[item.digest] = item, item.facts
        reference: dict[str, Any] = {
            "digest": item.digest,
            "dtype": item.facts.dtype,
            "shape": item.facts.shape,
            "href": f"/v1/arrays/{item.digest}",
        }
        if item.array.size <= self._limit:
            reference["values"] = item.array if item.array.ndim else item.array.item()
        return reference
