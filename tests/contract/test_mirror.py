"""The two trees are mirror images: every rule of the mirror, for every routine."""

import dataclasses
import inspect
import json
import typing
from importlib.util import find_spec
from typing import Any, get_args

import pytest
import torch
from pydantic import BaseModel, ValidationError

from algorithms.iterate import unwatched
from schemas.arrays import ArrayRef, Dims, Request, Result, Shelf, markers
from schemas.datasets import Selection
from schemas.registry import ROUTINES
from schemas.samples import samples
from workers.answer import LIBRARIES
from workers.bind import Binder, Encoder, call, mirror, target
from workers.load import LOADERS
from workers.place import Place

CPU = Place(torch.device("cpu"), torch.float64)
SECTIONS = ("Shapes:", "Returns:", "Notes:", "References:")
every_routine = pytest.mark.parametrize("routine", ROUTINES.values(), ids=lambda r: r.name)
SAMPLE_FACTS = {
    "kind": "h5ad",
    "arrays": {"obsm/spatial": [80, 2], "obsm/tissue": [80, 2]},
    "obs_columns": ["domain"],
}


def shelf() -> Shelf:
    return Shelf(datasets=dict.fromkeys(samples(), SAMPLE_FACTS))


def own_fields(model: type[BaseModel], base: type[BaseModel]) -> dict[str, Any]:
    return {n: f for n, f in model.model_fields.items() if n not in base.model_fields}


def axes_of(annotation: Any) -> set[str]:
    """Collect the axes of every jaxtyping annotation inside a type, unions included."""
    if hasattr(annotation, "dim_str"):
        return {annotation.dim_str}
    return set().union(*(axes_of(inner) for inner in get_args(annotation)), set())


def nested(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [] if annotation is ArrayRef else [annotation]
    return [model for inner in get_args(annotation) for model in nested(inner)]


def dims_of(info: Any) -> set[str]:
    return {m.axes for m in markers(info.metadata, info.annotation, Dims)}


def bound(routine: Any) -> dict[str, Any]:
    at_hand = shelf()
    request = routine.request.model_validate(routine.example, context={"shelf": at_hand})

    def load(selection: Selection, path: str) -> Any:
        raw = samples()[selection.dataset].read_bytes()
        return LOADERS[type(selection)](selection, raw, path)

    return Binder(at_hand.staged, CPU, load).arguments(request)


def answered(routine: Any, arguments: dict[str, Any]) -> Any:
    return call(routine, arguments, seed=0, place=CPU, watch=unwatched)


def provenance(routine: Any) -> dict[str, Any]:
    timings = dict.fromkeys(("queue_ms", "load_ms", "compute_ms", "encode_ms"), 0.0)
    return {
        "routine": routine.name, "version": routine.version, "device": "cpu", "dtype": "float64",
        "seed": 0, "deterministic": True, "timings": timings, "libraries": LIBRARIES,
    }  # fmt: skip


@every_routine
def test_parameters_are_the_fields_of_the_request(routine: Any) -> None:
    parameters = dict(inspect.signature(target(routine)).parameters)
    for known_to_the_worker in ("watch", "generator"):
        parameters.pop(known_to_the_worker, None)
    fields = own_fields(routine.request, Request)
    assert list(parameters) == list(fields)
    for name, parameter in parameters.items():
        if fields[name].is_required():
            assert parameter.default is parameter.empty, name
        else:
            default = fields[name].get_default(call_default_factory=True)
            assert same_default(default, parameter.default), name


def same_default(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, BaseModel):
        return ours.model_dump(exclude={"kind"}) == dataclasses.asdict(theirs)
    return ours == theirs


@every_routine
def test_axes_agree_on_both_sides(routine: Any) -> None:
    hints = typing.get_type_hints(target(routine))
    for name, info in own_fields(routine.request, Request).items():
        assert dims_of(info) == axes_of(hints[name]), name
    answer = hints["return"]
    of_answer = typing.get_type_hints(answer)
    for name, info in own_fields(routine.result, Result).items():
        if name != "certificate" and dims_of(info):
            assert dims_of(info) == axes_of(of_answer[name]), name


@every_routine
def test_nested_questions_mirror_dataclasses(routine: Any) -> None:
    for model in nested_in(own_fields(routine.request, Request)):
        if issubclass(model, Selection):
            assert model in LOADERS
        else:
            same_fields(model, mirror(model))


@every_routine
def test_nested_answers_mirror_dataclasses(routine: Any) -> None:
    answer = typing.get_type_hints(target(routine))["return"]
    hints = typing.get_type_hints(answer)
    for name, info in own_fields(routine.result, Result).items():
        for model in nested(info.annotation):
            classes = [hints[name], *get_args(hints[name])]
            same_fields(model, next(c for c in classes if dataclasses.is_dataclass(c)))


def nested_in(fields: dict[str, Any]) -> list[type[BaseModel]]:
    return [model for info in fields.values() for model in nested(info.annotation)]


def same_fields(ours: type[BaseModel], theirs: Any) -> None:
    assert ours.__name__ == theirs.__name__
    names = {name for name in ours.model_fields if name != "kind"}
    assert names == {field.name for field in dataclasses.fields(theirs)}
    hints = typing.get_type_hints(theirs)
    for name, info in ours.model_fields.items():
        if dims_of(info):
            assert dims_of(info) == axes_of(hints[name]), (ours, name)


@every_routine
def test_answer_fields_are_the_fields_of_the_result(routine: Any) -> None:
    answer = typing.get_type_hints(target(routine))["return"]
    names = {field.name for field in dataclasses.fields(answer)}
    assert {"stop", "cautions"} <= names
    assert names - {"stop", "cautions"} == set(own_fields(routine.result, Result))
    assert "certificate" in names, "a routine without a certificate is not finished"


@every_routine
def test_docstrings_say_what_is_solved(routine: Any) -> None:
    text = inspect.getdoc(target(routine)) or ""
    missing = [section for section in SECTIONS if section not in text]
    assert not missing
    assert text.index("Shapes:") < text.index("References:")
    for name, info in own_fields(routine.request, Request).items():
        assert info.description or nested(info.annotation), name
    assert routine.request.__doc__
    assert routine.result.__doc__


@every_routine
def test_example_runs_and_converges(routine: Any) -> None:
    encoder = Encoder(inline_limit=64)
    body = encoder.answer(answered(routine, bound(routine)))
    assert body["status"] == "converged"
    body["provenance"] = provenance(routine)
    known = {digest: item.facts for digest, item in encoder.arrays.items()}
    routine.result.model_validate(body, context={"shelf": Shelf(known=known)})


@every_routine
def test_declared_outputs_have_gradients(routine: Any) -> None:
    arguments = bound(routine)
    leaves = []
    for path in routine.inputs:
        value: Any = arguments
        for name in path.split("."):
            value = value[name] if isinstance(value, dict) else getattr(value, name, None)
        if isinstance(value, torch.Tensor):
            leaves.append(value.requires_grad_())
    if not routine.outputs:
        assert routine.vjp is None
        return
    answer = answered(routine, arguments)
    for name in routine.outputs:
        output = getattr(answer, name)
        pulled = torch.autograd.grad(output.sum(), leaves, retain_graph=True, allow_unused=True)
        assert any(g is not None for g in pulled), name


@every_routine
def test_declared_renderings_exist(routine: Any) -> None:
    draws = find_spec_or_none(f"workers.figures.{routine.name}") is not None
    writes = find_spec_or_none(f"workers.h5ad.{routine.name}") is not None
    assert ("png" in routine.result.renders) == draws
    assert ("svg" in routine.result.renders) == draws
    assert ("h5ad" in routine.result.renders) == writes


def find_spec_or_none(name: str) -> Any:
    try:
        return find_spec(name)
    except ModuleNotFoundError:
        return None


def nearest_bad_values(info: Any) -> list[Any]:
    """Make, from each bound of a field, the nearest value beyond it."""
    bad: list[Any] = []
    for mark in info.metadata:
        if getattr(mark, "gt", None) is not None:
            bad.append(mark.gt)
        if getattr(mark, "ge", None) is not None:
            bad.append(mark.ge - 1)
        if getattr(mark, "lt", None) is not None:
            bad.append(mark.lt)
        if getattr(mark, "le", None) is not None:
            bad.append(mark.le + 1)
    kinds = {*get_args(info.annotation), info.annotation}
    if kinds & {float, int}:
        bad += ["1.5", True, float("nan"), [1.0]]
    if bool in kinds:
        bad += [1, "true"]
    return bad


def bad_requests(
    model: type[BaseModel], example: dict[str, Any], prefix: tuple[str, ...] = ()
) -> list[tuple[tuple[str, ...], Any]]:
    found = [
        ((*prefix, name), value)
        for name, info in model.model_fields.items()
        for value in nearest_bad_values(info)
    ]
    for name, info in model.model_fields.items():
        inner = [m for m in nested(info.annotation) if not issubclass(m, Selection)]
        if len(inner) == 1:
            found += bad_requests(inner[0], example.get(name, {}), (*prefix, name))
    return found


BAD = [
    pytest.param(routine, path, value, id=f"{routine.name}-{'.'.join(path)}-{value!r}")
    for routine in ROUTINES.values()
    for path, value in bad_requests(routine.request, routine.example)
]


@pytest.mark.parametrize(("routine", "path", "value"), BAD)
def test_nearest_invalid_value_is_refused_by_name(
    routine: Any, path: tuple[str, ...], value: Any
) -> None:
    body = json.loads(json.dumps(routine.example))
    place = body
    for name in path[:-1]:
        place = place.setdefault(name, {})
    place[path[-1]] = value
    with pytest.raises(ValidationError) as caught:
        routine.request.model_validate(body, context={"shelf": shelf()})
    assert any(set(path) <= set(error["loc"]) for error in caught.value.errors())


@every_routine
def test_names_derive_from_one_name(routine: Any) -> None:
    family, name = routine.name.split(".")
    assert routine.path == f"/{family}/{name}"
    assert routine.operation_id == f"{family}_{name}"
    assert routine.request.__module__ == f"schemas.{routine.name}"
    assert routine.result.__module__ == f"schemas.{routine.name}"
