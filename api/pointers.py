"""Where in the body an error is: from pydantic's locations to RFC 6901 pointers.

Pydantic puts the tag of a union into its locations (`geometry.points.x`); a walk along the model
tells tags from fields. Errors across fields carry their place in `ctx["field"]` (dotted, relative
to the model that found them), errors inside an array its index in `ctx["at"]`. What was received
is never repeated: a body may be large, secret, or not even text.
"""

import difflib
from collections.abc import Iterator, Sequence
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin
from urllib.parse import quote

from pydantic import BaseModel, ValidationError

from schemas.problems import FieldError

MAX_ERRORS = 20
MAX_TEXT = 500
CODES = {
    name: name
    for name in (
        "non-finite-number",
        "shape-mismatch",
        "infeasible-problem",
        "no-such-array",
        "no-such-dataset",
    )
} | {"finite_number": "non-finite-number"}


def errors_of(
    error: ValidationError, model: type[BaseModel] | None, at: Sequence[str | int] = ()
) -> list[FieldError]:
    """List the first errors, each with a pointer into the body; `at` is where the model begins."""
    found = error.errors(include_url=False, include_input=False)
    return [_one(dict(e), model, at) for e in found[:MAX_ERRORS]]


def query_errors(found: Sequence[Any]) -> list[FieldError]:
    """List errors in query parameters: `?limit`."""
    return [
        FieldError(
            pointer="?" + quote(clean(str(e["loc"][-1]))),
            code=CODES.get(e["type"], "validation"),
            message=clean(f"{e['loc'][-1]}: {e['msg']}"),
        )
        for e in found[:MAX_ERRORS]
    ]


def pointer(parts: Sequence[str | int]) -> str:
    """Write an RFC 6901 pointer as a URI fragment."""
    return "#" + "".join("/" + _escape(str(part)) for part in parts)


def clean(text: str) -> str:
    """Make text safe to send: bounded, no lone surrogates, no control characters."""
    kept = text.encode("utf-8", "replace").decode()[:MAX_TEXT]
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in kept)


def _escape(part: str) -> str:
    part = part.encode("utf-8", "replace").decode()[:100]
    return quote(part.replace("~", "~0").replace("/", "~1"), safe="~!$&'()*+,;=:@?-._")


def _one(
    error: dict[str, Any], model: type[BaseModel] | None, at: Sequence[str | int]
) -> FieldError:
    context = error.get("ctx") or {}
    parts, parent = _strip(error["loc"], model)
    if isinstance(context.get("field"), str):
        parts += context["field"].split(".")
    if isinstance(context.get("at"), list):
        parts += context["at"]
    message = error["msg"]
    if error["type"] == "extra_forbidden":
        message = _unknown(str(error["loc"][-1]), parent)
    code = CODES.get(error["type"], "validation")
    return FieldError(pointer=pointer([*at, *parts]), code=code, message=clean(message))


def _unknown(name: str, parent: Any) -> str:
    known = list(parent.model_fields) if _is_model(parent) else []
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean `{near[0]}`?" if near else f"known fields are {', '.join(known)}"
    return f"unknown field `{name[:100]}`; {hint}"


def _strip(loc: Sequence[str | int], model: Any) -> tuple[list[str | int], Any]:
    """Drop what is not in the body; also return the type that the last part belongs to."""
    parts: list[str | int] = []
    kind: Any = model
    parent: Any = model
    for element in loc:
        members = list(_members(kind))
        if len(members) > 1:  # a union: pydantic names the member here
            kind = next((m for m in members if _names(m, element)), None)
            continue
        kind = parent = members[0] if members else None
        if element == "[key]":
            continue
        parts.append(element)
        kind = _inside(kind, element)
    return parts, parent


def _members(kind: Any) -> Iterator[Any]:
    """Look through Annotated and Optional; several members are a union."""
    if get_origin(kind) is Annotated:
        yield from _members(get_args(kind)[0])
    elif kind is None or kind is NoneType:
        return
    elif get_origin(kind) in (list, tuple, dict, Literal) or not get_args(kind) or _is_model(kind):
        yield kind
    else:
        for member in get_args(kind):
            yield from _members(member)


def _names(member: Any, tag: str | int) -> bool:
    if not _is_model(member):
        return getattr(member, "__name__", "") == tag
    literals = (get_args(f.annotation) for f in member.model_fields.values())
    return member.__name__ == tag or any(tag in found for found in literals)


def _inside(kind: Any, element: str | int) -> Any:
    if _is_model(kind):
        field = kind.model_fields.get(str(element))
        return None if field is None else field.annotation
    arguments = get_args(kind)
    return arguments[-1] if arguments and get_origin(kind) in (list, dict) else None


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
