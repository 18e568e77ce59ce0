"""Python values written as the JSON of a question, along the fields of its model."""

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import numpy as np
from pydantic import BaseModel

from brenier.results import RemoteArray
from brenier.uploads import Dataset, Uploads, WritesItself, as_array
from schemas.arrays import ArrayRef
from schemas.datasets import Selection

INLINE_BYTES = 32 << 10  # arrays up to here travel inside the question
ROOM_BYTES = 4 << 20  # of all such arrays of one question together


@dataclass
class Writer:
    """Write one question; arrays and files that are large are sent ahead of it."""

    uploads: Uploads
    room: int = ROOM_BYTES

    def fields(self, model: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
        """Write the fields of a model; names that it lacks are left for the service to refuse."""
        known = model.model_fields
        return {
            name: self.value(value, known[name].annotation if name in known else Any)
            for name, value in values.items()
        }

    def value(self, value: Any, annotation: Any) -> Any:
        """Write one value where the model expects `annotation`."""
        kinds = list(_alternatives(annotation))
        models = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
        if ArrayRef in models:
            return self._array(value)
        if any(issubclass(model, Selection) for model in models):
            return self._selection(value, models[0])
        if isinstance(value, BaseModel):
            value = value.model_dump(mode="json", exclude_unset=True)
        if isinstance(value, Mapping):
            return self._mapping(value, models, kinds)
        if isinstance(value, list | tuple):
            inner = next((get_args(k)[0] for k in kinds if get_origin(k) is list), Any)
            return [self.value(item, inner) for item in value]
        return value

    def _mapping(
        self, value: Mapping[str, Any], models: list[type[BaseModel]], kinds: list[Any]
    ) -> dict[str, Any]:
        if not models:
            inner = next((get_args(k)[1] for k in kinds if get_origin(k) is dict), Any)
            return {name: self.value(item, inner) for name, item in value.items()}
        model = _closest(models, value)
        kind = model.model_fields.get("kind")
        if len(models) > 1 and kind is not None and "kind" not in value:
            value = {"kind": kind.default, **value}
        return self.fields(model, value)

    def _selection(self, value: Any, model: type[BaseModel]) -> Any:
        if isinstance(value, Dataset):
            value = {"dataset": value.source, **value.keys}
        if isinstance(value, str | Path | WritesItself):
            value = {"dataset": value}
        if not isinstance(value, Mapping):
            return value
        source = value.get("dataset")
        written = self.fields(model, {k: v for k, v in value.items() if k != "dataset"})
        if isinstance(source, str | Path | WritesItself):
            source = self.uploads.dataset(source)
        return {**({"dataset": source} if "dataset" in value else {}), **written}

    def _array(self, value: Any) -> Any:
        if isinstance(value, RemoteArray):
            return value.digest
        if value is None or isinstance(value, str | bool | int | float):
            return value
        if isinstance(value, Mapping):
            return dict(value)
        nested = isinstance(value, list | tuple)
        try:
            array = as_array(value)
        except (TypeError, ValueError):
            if nested:
                return value  # ragged rows, text among the numbers: the service says where
            raise
        if array.nbytes > min(INLINE_BYTES, self.room):
            return self.uploads.array(array)
        self.room -= array.nbytes
        if nested and np.all(np.isfinite(array)):
            return array.tolist()
        data = base64.b64encode(array.tobytes()).decode()
        return {"dtype": array.dtype.name, "shape": list(array.shape), "data": data}


def _alternatives(annotation: Any) -> Iterator[Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _alternatives(get_args(annotation)[0])
    elif origin in (Union, UnionType):
        for inner in get_args(annotation):
            yield from _alternatives(inner)
    else:
        yield annotation


def _closest(models: list[type[BaseModel]], value: Mapping[str, Any]) -> type[BaseModel]:
    """Choose the model that a mapping is meant for: by its kind, else by the fields it shares."""

    def likeness(model: type[BaseModel]) -> tuple[bool, int]:
        kind = model.model_fields.get("kind")
        return (
            kind is not None and kind.default == value.get("kind"),
            len(set(model.model_fields) & set(value)),
        )

    return max(models, key=likeness)
