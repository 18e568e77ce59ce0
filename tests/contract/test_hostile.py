"""Inputs at the ends of their range: every routine answers in finite numbers, or says why not.

In the types' own words: validation refuses, or the function raises `IllPosed`, or the answer passes
its model. Anything else would be a fault to whoever asked.
"""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from algorithms.errors import IllPosed
from schemas.arrays import Shelf
from schemas.datasets import Selection
from schemas.registry import ROUTINES
from schemas.samples import samples
from tests.contract.test_mirror import provenance, shelf
from workers.bind import Binder, Encoder, NotFinite, call
from workers.load import LOADERS
from workers.place import Place

LOOKS = 8  # how often a routine may ask whether to go on before it is told no
PLACES = [Place(torch.device("cpu"), dtype) for dtype in (torch.float64, torch.float32)]
ARRAYS = {
    "zero": lambda x: x * 0.0,
    "equal": lambda x: x * 0.0 + x.flat[0],
    "huge": lambda x: x * 1e150,
    "large": lambda x: x * 1e30,
    "tiny": lambda x: x * 1e-150,
    "opposite": lambda x: -x,
    "first": lambda x: x[:1],
    "twice": lambda x: np.concatenate([x, x]),
    "far": lambda x: x + 1e9,
    "sparse": lambda x: x * (np.arange(x.size).reshape(x.shape) % 2),
}
NUMBERS = (1e-12, 1e-3, 1e6, 1e100)
# What fields that an example leaves out are given: most of it is refused, the rest answered.
STRAYS = (
    [], [[]], [0.5], [[0.5]], [[0.5], [0.25]], [[0.5, 0.25, 1.0]] * 2, [[[1.0]]], ["a"], "no", {},
    True, 0, -1, 3, 0.5, 1e308,
)  # fmt: skip
ENDS = {"refused", "problem", "converged", "max_iter", "stagnated", "interrupted"}


def is_array(value: Any) -> bool:
    return isinstance(value, list) and not any(isinstance(v, dict | str) for v in value)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Walk the leaves of an example: arrays and numbers."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from places(inner, (*path, name))
    elif isinstance(value, list) and not is_array(value):
        for index, inner in enumerate(value):
            yield from places(inner, (*path, index))
    else:
        yield path, value


def hostile(value: Any) -> Iterator[tuple[str, Any]]:
    if is_array(value):
        for name, change in ARRAYS.items():
            yield name, change(np.array(value, dtype=float)).tolist()
    elif isinstance(value, float):
        yield from ((str(number), number) for number in NUMBERS)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield from ((str(number), number) for number in (1, 300))


def replaced(example: Any, path: tuple[Any, ...], value: Any) -> Any:
    body = json.loads(json.dumps(example))
    inner = body
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    return body


def outcome(routine: Any, body: Any, place: Place) -> str:
    """Ask as the service does; return how it ended."""
    at_hand = shelf()
    try:
        request = routine.request.model_validate(body, context={"shelf": at_hand})
    except ValidationError:
        return "refused"

    def load(selection: Selection, path: str) -> Any:
        raw = samples()[selection.dataset].read_bytes()
        return LOADERS[type(selection)](selection, raw, path)

    looks = 0

    def watch(iteration: int, residual: float) -> bool:
        nonlocal looks
        looks += 1
        return looks < LOOKS

    try:
        arguments = Binder(at_hand.staged, place, load).arguments(request)
        found = call(routine, arguments, seed=0, place=place, watch=watch)
    except IllPosed:
        return "problem"
    encoder = Encoder(inline_limit=64)
    try:
        body = encoder.answer(found) | {"provenance": provenance(routine)}
    except NotFinite:
        if place.dtype == torch.float64:
            raise
        return "problem"  # numbers beyond the range of float32, and told so
    staged = {digest: item.facts for digest, item in encoder.arrays.items()}
    routine.result.model_validate(body, context={"shelf": Shelf(known=staged)})
    return body["status"]


QUESTIONS = [
    pytest.param(routine, replaced(routine.example, path, value), place,
                 id=f"{routine.name}-{'.'.join(map(str, path))}-{name}-{str(place.dtype)[6:]}")
    for routine in ROUTINES.values()
    for path, leaf in places(routine.example)
    for name, value in hostile(leaf)
    for place in PLACES
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("routine", "body", "place"), QUESTIONS)
def test_the_ends_of_the_range_are_answered_or_refused(
    routine: Any, body: Any, place: Place
) -> None:
    assert outcome(routine, body, place) in ENDS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("routine", "field"),
    [
        pytest.param(routine, field, id=f"{routine.name}-{field}")
        for routine in ROUTINES.values()
        for field in routine.request.model_fields
        if field not in routine.example
    ],
)
def test_fields_that_examples_leave_out_are_answered_or_refused(routine: Any, field: str) -> None:
    for stray in STRAYS:
        body = {**routine.example, field: stray}
        assert outcome(routine, body, PLACES[0]) in ENDS, stray
