"""Routines as attributes of a client, derived from the registry: no code for any single one."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from brenier.errors import ProblemError, problem_in
from brenier.jobs import Job
from brenier.questions import Writer
from brenier.results import Result, fetcher
from brenier.uploads import Uploads
from brenier.wire import JSON, Wire, as_json
from schemas.arrays import Request
from schemas.arrays import Result as Answer
from schemas.registry import ROUTINES
from schemas.routine import Routine

PATIENCE_S = 10  # what a call leaves to the service before it starts polling


@dataclass(frozen=True)
class Family:
    """The routines of one family, as attributes."""

    name: str
    wire: Wire

    def __getattr__(self, name: str) -> "Call":
        """Return a routine of the family."""
        routine = ROUTINES.get(f"{self.name}.{name}")
        if routine is None:
            raise AttributeError(f"no routine {name} in {self.name}; there are {self._known()}")
        return Call(routine, self.wire)

    def __dir__(self) -> list[str]:
        """Offer the routines for completion."""
        return self._known()

    def __repr__(self) -> str:
        """List the routines."""
        return f"{self.name}: {', '.join(self._known())}"

    def _known(self) -> list[str]:
        return [n.split(".")[1] for n, r in ROUTINES.items() if r.family == self.name]


class Call:
    """One routine: call it to ask and wait, or `submit`, `batch` and `vjp`."""

    def __init__(self, routine: Routine, wire: Wire) -> None:
        """Take documentation and signature from the model of the question."""
        self.routine = routine
        self._wire = wire
        self.__name__ = routine.name
        self.__doc__ = document(routine)
        self.__signature__ = signature(routine.request)

    def __repr__(self) -> str:
        """Show how to call it."""
        return f"{self.routine.name}{self.__signature__}"

    def __call__(self, **fields: Any) -> Result:
        """Ask and wait for the answer.

        Raises:
            ProblemError: the question is refused or has no answer.
        """
        return self._finish(self._ask(self.routine.path, self._question(fields), PATIENCE_S))

    def submit(self, *, fresh: bool = False, **fields: Any) -> Job:
        """Ask without waiting; `fresh` computes again what was answered before."""
        return self._ask(self.routine.path, self._question(fields), fresh=fresh)[0]

    def batch(self, problems: Iterable[Mapping[str, Any]]) -> "list[Result | ProblemError]":
        """Ask many small questions in one job; each gives its answer or its own error."""
        writer = Writer(Uploads(self._wire))
        body = writer.fields(self.routine.batch, {"problems": list(problems)})
        answer = self._ask(f"{self.routine.path}/batch", body)[0].result()
        return [
            problem_in(item["error"])
            if item.get("result") is None
            else Result(item["result"], answer.fetch)
            for item in answer.to_dict()["items"]
        ]

    def vjp(
        self, request: Mapping[str, Any], *, cotangents: Mapping[str, Any], wrt: Sequence[str]
    ) -> Result:
        """Pull cotangents of outputs back to inputs: `answer.gradients["geometry.C"]`."""
        if self.routine.vjp is None:
            raise ValueError(f"{self.routine.name} has no differentiable outputs")
        fields = {"request": request, "cotangents": cotangents, "wrt": list(wrt)}
        body = Writer(Uploads(self._wire)).fields(self.routine.vjp, fields)
        return self._finish(self._ask(f"{self.routine.path}/vjp", body, PATIENCE_S))

    def _question(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        return Writer(Uploads(self._wire)).fields(self.routine.request, fields)

    def _ask(
        self, path: str, body: Any, wait_s: int = 0, *, fresh: bool = False
    ) -> tuple[Job, Any]:
        headers = {"Content-Type": JSON, "Accept": JSON}
        if wait_s:
            headers["Prefer"] = f"wait={wait_s}"
        if fresh:
            headers["Cache-Control"] = "no-cache"
        answer = self._wire.send(
            "POST", f"/v1{path}", content=as_json(body), headers=headers, wait_s=wait_s
        )
        where = answer.headers.get("Content-Location", "")
        if where.endswith("/result"):
            return Job(self._wire, where.split("/")[-2]), answer.json()
        record = answer.json()
        return Job(self._wire, record["id"], record), None

    def _finish(self, asked: tuple[Job, Any]) -> Result:
        job, body = asked
        return job.result() if body is None else Result(body, fetcher(self._wire), job)


def signature(model: type[BaseModel]) -> inspect.Signature:
    """Write the fields of a question as keyword parameters, those of every question last."""
    parameters = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.is_required() else field.get_default(),
            annotation=field.annotation,
        )
        for name, field in _own_first(model)
    ]
    return inspect.Signature(parameters, return_annotation=Result)


def document(routine: Routine) -> str:
    """Write the documentation of a routine: its question, field by field, and its answer."""
    lines = [inspect.getdoc(routine.request) or routine.name, "", "Args:"]
    lines += [f"    {line}" for line in field_lines(routine.request)]
    lines += ["", "Returns:"]
    lines += [f"    {line}" for line in field_lines(routine.result)]
    return "\n".join(lines)


def field_lines(model: type[BaseModel]) -> list[str]:
    """Describe each field on one line."""
    lines: list[str] = []
    for name, field in _own_first(model):
        default = "" if field.is_required() else f" (default {_default(field.get_default())})"
        lines.append(f"{name}{default}: {field.description or ''}".rstrip(": "))
    return lines


def _own_first(model: type[BaseModel]) -> list[tuple[str, FieldInfo]]:
    inherited = {*Request.model_fields, *Answer.model_fields}
    return sorted(model.model_fields.items(), key=lambda item: item[0] in inherited)


def _default(value: Any) -> str:
    return "its own" if value is PydanticUndefined or isinstance(value, BaseModel) else repr(value)
