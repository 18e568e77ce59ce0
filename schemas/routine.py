"""A routine: its name, its two models, its example; everything else is derived from these."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar, get_args

from pydantic import BaseModel, Field, model_validator
from pydantic_core import PydanticCustomError

from schemas.arrays import (
    ArrayRef,
    Differentiable,
    Provenance,
    Request,
    Result,
    Strict,
    Warning,
    markers,
)
from schemas.problems import Failure

Question = TypeVar("Question", bound=Request)
Answer = TypeVar("Answer", bound=Result)
MAX_BATCH = 10_000


class Batch(Strict, Generic[Question]):
    """Several questions to one routine, answered by one job."""

    problems: list[Question] = Field(min_length=1, max_length=MAX_BATCH)


class BatchItem(Strict, Generic[Answer]):
    """The answer to one question of a batch, or why there is none."""

    result: Answer | None = None
    error: Failure | None = None


class BatchResult(Strict, Generic[Answer]):
    """Answers in the order of the questions; an item that failed does not touch the others."""

    items: list[BatchItem[Answer]]
    provenance: Provenance


class Vjp(Strict, Generic[Question]):
    """Cotangents of outputs in, gradients with respect to inputs out."""

    request: Question
    cotangents: dict[str, ArrayRef] = Field(
        min_length=1, description="output field -> array of its shape; a scalar output takes 1.0"
    )
    wrt: list[str] = Field(
        min_length=1, description="inputs to differentiate for, dotted, as in `geometry.C`"
    )

    @model_validator(mode="after")
    def _inputs_exist(self) -> "Vjp[Question]":
        asked = self.request
        known = [p for p in differentiable(type(asked)) if _present(asked, p)]
        for index, path in enumerate(self.wrt):
            if path not in known:
                raise PydanticCustomError(
                    "validation", "no gradient with respect to {path} here; choose among {known}",
                    {"field": f"wrt.{index}", "path": path, "known": ", ".join(known)},
                )  # fmt: skip
        return self


class VjpResult(Strict):
    """Gradients by input path, and how well the underlying problem was solved."""

    gradients: dict[str, ArrayRef]
    status: str = Field(description="status of the forward computation")
    residual: float
    warnings: list[Warning]
    provenance: Provenance


@dataclass(frozen=True)
class Routine:
    """One line of the registry; `schemas.F.R` and `algorithms.F.R.R` are found by its name."""

    name: str
    request: type[Request]
    result: type[Result]
    example: dict[str, Any]
    version: str = "1"

    @property
    def family(self) -> str:
        """Return the part of the name before the dot."""
        return self.name.split(".")[0]

    @property
    def path(self) -> str:
        """Return the route below `/v1`."""
        return "/" + self.name.replace(".", "/")

    @property
    def operation_id(self) -> str:
        """Return the stable name of the operation in OpenAPI."""
        return self.name.replace(".", "_")

    @property
    def summary(self) -> str:
        """Return the first line of the request's docstring."""
        return (self.request.__doc__ or self.name).strip().splitlines()[0]

    @cached_property
    def outputs(self) -> list[str]:
        """List the answer's fields that gradients can come from."""
        return list(differentiable(self.result))

    @cached_property
    def inputs(self) -> list[str]:
        """List the question's fields that gradients can go to, dotted."""
        return list(differentiable(self.request))

    @cached_property
    def batch(self) -> type[Batch[Any]]:
        """Return the model of a batch of questions."""
        return Batch[self.request]

    @cached_property
    def batch_result(self) -> type[BatchResult[Any]]:
        """Return the model of a batch of answers."""
        return BatchResult[self.result]

    @cached_property
    def vjp(self) -> type[Vjp[Any]] | None:
        """Return the model of a gradient question, or None when no output has gradients."""
        return Vjp[self.request] if self.outputs else None


def differentiable(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Walk the fields marked `Differentiable`, nested models and unions included."""
    seen: set[str] = set()
    for name, info in model.model_fields.items():
        path = f"{prefix}{name}"
        if markers(info.metadata, info.annotation, Differentiable):
            yield path
            continue
        for inner in _models(info.annotation):
            for found in differentiable(inner, f"{path}."):
                if found not in seen:
                    seen.add(found)
                    yield found


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [] if annotation is ArrayRef else [annotation]
    return [model for inner in get_args(annotation) for model in _models(inner)]


def _present(model: BaseModel, path: str) -> bool:
    value: Any = model
    for name in path.split("."):
        value = getattr(value, name, None)
    return isinstance(value, ArrayRef)
