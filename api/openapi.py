"""The OpenAPI document: what FastAPI sees of the routes, completed from the registry.

Endpoints take raw requests, so bodies and answers are described here, generated from the same
pydantic models that validate them. Problems are added to every operation by `document`.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from api.negotiate import H5AD, JSON, NPY, NPZ, RENDERS, SAFETENSORS
from api.problems import KINDS, MEDIA
from schemas.arrays import ArrayRef
from schemas.datasets import DatasetFacts
from schemas.jobs import JobList, JobRecord, Kind
from schemas.problems import Problem
from schemas.registry import ROUTINES
from schemas.routine import Routine, VjpResult

TEMPLATE = "#/components/schemas/{model}"
BYTES = {"type": "string", "format": "binary"}
ANY_JSON = {"type": "object"}
READS = (401, 404, 405, 406, 409, 410, 422, 429, 500, 503, 507)
WRITES = (400, 401, 404, 405, 406, 408, 409, 410, 411, 413, 415, 422, 429, 500, 503, 507)
LATER = (409, 429, 503)
ABOUT = """Optimal transport and differentiable optimisation as a service.

Ask a routine with POST: the answer is a job (202). Poll it, wait for it, listen to its events, and
fetch its result as JSON, safetensors, npz or npy. With `Prefer: wait=10` the answer is the result
itself when it comes in time.
"""
SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
Document = dict[str, Any]


def _header(text: str, kind: str = "string") -> Document:
    return {"description": text, "schema": {"type": kind}}


LOCATION = _header("Address of the job.")
RETRY_AFTER = _header("Seconds after which to ask again.", "integer")
ETAG = _header("Name of these bytes, for If-None-Match.")
PARAMETERS: list[Document] = [
    {
        "name": "Prefer",
        "in": "header",
        "description": "`wait=N`: answer with the result when it comes within N seconds.",
        "schema": {"type": "string", "examples": ["wait=10"]},
        "example": "wait=10",
    },
    {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "A name for this request: sent again, it is answered by the same job.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
    },
    {
        "name": "Cache-Control",
        "in": "header",
        "description": "`no-cache`: start a new job although one has answered this question.",
        "schema": {"type": "string"},
    },
]


@cache
def _schemas() -> tuple[Mapping[Any, Document], Document]:
    """Describe all models in one pass, so that equal names are told apart."""
    answers: list[type[BaseModel]] = [
        *(JobRecord, JobList, Problem, DatasetFacts, ArrayRef, VjpResult)
    ]
    questions: list[type[BaseModel]] = []
    for routine in ROUTINES.values():
        questions += [routine.request, routine.batch, *([routine.vjp] if routine.vjp else [])]
        answers += [routine.result, routine.batch_result]
    modes: list[tuple[type[BaseModel], JsonSchemaMode]] = [(q, "validation") for q in questions]
    modes.extend((a, "serialization") for a in answers)
    references, found = models_json_schema(modes, ref_template=TEMPLATE)
    return references, found.get("$defs", {})


# What addresses say of models until the document is asked for: describing all of them takes a
# third of the gateway's start.
_LATER: dict[str, tuple[type[BaseModel], JsonSchemaMode]] = {}


def _answered(model: type[BaseModel]) -> Document:
    return _later(model, "serialization")


def _asked(model: type[BaseModel]) -> Document:
    return _later(model, "validation")


def _later(model: type[BaseModel], mode: JsonSchemaMode) -> Document:
    name = f"#/later/{mode}/{model.__module__}.{model.__qualname__}"
    _LATER[name] = model, mode
    return {"$ref": name}


def _settled(part: Any) -> Any:
    """Put the descriptions of models into a part of the document."""
    if isinstance(part, dict):
        name = part.get("$ref")
        if name in _LATER:
            return _schemas()[0][_LATER[name]]
        return {key: _settled(inner) for key, inner in part.items()}
    return [_settled(inner) for inner in part] if isinstance(part, list) else part


def _content(schema: Document, media: str = JSON) -> Document:
    return {"content": {media: {"schema": schema}}}


def _binary(*media: str) -> Document:
    return {name: {"schema": BYTES} for name in media}


def asking(routine: Routine, kind: Kind) -> Document:
    """Describe one address of a routine, as arguments of `add_api_route`."""
    suffix, model, result, title, example = _form(routine, kind)
    about = (routine.request.__doc__ or "").strip()
    pictures = [RENDERS[name] for name in routine.result.renders] if kind == "solve" else []
    record, answer = _answered(JobRecord), _answered(result)
    links = {
        name.removeprefix("job_"): {"operationId": name, "parameters": {"id": "$response.body#/id"}}
        for name in ("job_get", "job_result", "job_delete")
    }
    at_once = {
        "description": "The result, when `Prefer: wait` was sent and it came in time; else the "
        "record of the job that answers the same question already.",
        "headers": {"Location": LOCATION},
        "content": {
            JSON: {"schema": {"anyOf": [answer, record]}},
            **_binary(SAFETENSORS, NPZ, *pictures),
        },
    }
    queued = {
        "description": "Queued: the record of the job.",
        "headers": {"Location": LOCATION, "Retry-After": RETRY_AFTER},
        "links": links,
        **_content(record),
    }
    body = {
        "required": True,
        "content": {
            JSON: {"schema": _asked(model), "examples": {"example": {"value": example}}},
            **_binary(SAFETENSORS),
            "multipart/form-data": {"schema": {
                "type": "object", "required": ["request"],
                "properties": {"request": {"type": "string", "contentMediaType": JSON}},
                "additionalProperties": BYTES,
            }},
        },
    }  # fmt: skip
    return {
        "operation_id": routine.operation_id + suffix,
        "summary": title,
        "description": about,
        "tags": [routine.family],
        "responses": {200: at_once, 202: queued},
        "openapi_extra": {"requestBody": body, "parameters": PARAMETERS},
    }


def _form(routine: Routine, kind: Kind) -> tuple[str, type[BaseModel], type[BaseModel], str, Any]:
    """Return suffix, models, title and example of one address of a routine."""
    if kind == "batch":
        title = f"Several at once: {routine.summary}"
        return "_batch", routine.batch, routine.batch_result, title, {"problems": [routine.example]}
    if kind == "vjp" and routine.vjp is not None:
        title = f"Gradients: {routine.summary}"
        return "_vjp", routine.vjp, VjpResult, title, vjp_example(routine)
    return "", routine.request, routine.result, routine.summary, routine.example


def vjp_example(routine: Routine) -> Document:
    """Ask for the gradient of the objective, or of the first output that is a number."""
    numbers = [n for n in routine.outputs if routine.result.model_fields[n].annotation is float]
    output = "value" if "value" in numbers else (numbers or routine.outputs)[0]
    present = [path for path in routine.inputs if _has(routine.example, path)]
    return {"request": routine.example, "cotangents": {output: 1.0}, "wrt": present[:1]}


def _has(value: Any, path: str) -> bool:
    for name in path.split("."):
        if not isinstance(value, dict) or name not in value:
            return False
        value = value[name]
    return True


def reading(name: str, summary: str, model: type[BaseModel]) -> Document:
    """Describe an address that answers with a model."""
    answer = {"description": summary, **_content(_answered(model))}
    return {"operation_id": name, "summary": summary, "responses": {200: answer}}


def plain(name: str, summary: str) -> Document:
    """Describe an address that answers with some JSON object."""
    answer = {"description": summary, **_content(ANY_JSON)}
    return {"operation_id": name, "summary": summary, "responses": {200: answer}}


_TAGGED = {"headers": {"ETag": ETAG}}
_SAME = {"description": "What you have is still right (If-None-Match)."}
METRICS: Document = {
    "operation_id": "metrics",
    "summary": "Numbers for Prometheus",
    "responses": {200: {"description": "Metrics.", **_content({"type": "string"}, "text/plain")}},
}
EVENTS: Document = {
    "operation_id": "job_events",
    "summary": "Follow a job as server-sent events: status, progress, done",
    "responses": {
        200: {"description": "Events.", **_content({}, "text/event-stream")},
        204: {"description": "The job has ended and Last-Event-ID has seen it."},
    },
    "openapi_extra": {"parameters": [{
        "name": "Last-Event-ID", "in": "header", "schema": {"type": "string"},
        "description": "Send only what is newer than this event.",
    }]},
}  # fmt: skip
RESULT: Document = {
    "operation_id": "job_result",
    "summary": "Fetch the result of a job, in the form that Accept asks for",
    "responses": {
        200: {"description": "The result.", **_TAGGED, "content": {
            JSON: {"schema": {}}, **_binary(SAFETENSORS, NPZ, *RENDERS.values()),
        }},
        202: {"description": "The picture is being drawn: ask again.",
              "headers": {"Location": LOCATION, "Retry-After": RETRY_AFTER}, **_content(ANY_JSON)},
        304: _SAME,
    },
}  # fmt: skip
FIELD: Document = {
    "operation_id": "job_result_field",
    "summary": "Fetch one field of a result, dotted as in `plan.rows`",
    "responses": {
        200: {"description": "The field; an array as .npy or JSON, several as one file.",
              **_TAGGED, "content": {**_binary(NPY, SAFETENSORS, NPZ), JSON: {"schema": {}}}},
        304: _SAME,
    },
}  # fmt: skip


def _delete() -> Document:
    cancelled = {"description": "Cancelled, or about to be.", **_content(_answered(JobRecord))}
    return {
        "operation_id": "job_delete",
        "summary": "Cancel a live job; forget one that has ended",
        "responses": {202: cancelled, 204: {"description": "Forgotten."}},
    }


def _upload(name: str, summary: str, model: type[BaseModel], content: Document) -> Document:
    schema = _content(_answered(model))
    headers = {"Location": _header("Address of what was stored.")}
    return {
        "operation_id": name,
        "summary": summary,
        "responses": {
            200: {"description": "Known already.", "headers": headers, **schema},
            201: {"description": "Stored.", "headers": headers, **schema},
        },
        "openapi_extra": {"requestBody": {"required": True, "content": content}},
    }


def _download(name: str, summary: str, content: Document) -> Document:
    return {
        "operation_id": name,
        "summary": summary,
        "responses": {
            200: {"description": "Found.", **_TAGGED, "content": content},
            304: _SAME,
        },
    }


DELETE = _delete()
UPLOAD_ARRAY = _upload(
    "array_upload", "Store an array; its name is the digest of its bytes", ArrayRef,
    {**_binary("application/octet-stream", NPY),
     JSON: {"schema": {}, "examples": {"example": {"value": [[0.0, 1.0], [2.0, 3.0]]}}}},
)  # fmt: skip
DOWNLOAD_ARRAY = _download(
    "array_download", "Fetch an array, as .npy or JSON",
    {**_binary(NPY), JSON: {"schema": _answered(ArrayRef)}},
)  # fmt: skip
UPLOAD_DATASET = _upload(
    "dataset_upload", "Store a data file: .h5ad, .npz, .csv, .csv.gz or .safetensors", DatasetFacts,
    _binary("application/octet-stream", H5AD, NPZ, "application/zip", "text/csv",
            "application/gzip", SAFETENSORS),
)  # fmt: skip
DESCRIBE_DATASET = _download(
    "dataset_get", "Tell what a data file holds, or fetch it",
    {JSON: {"schema": _answered(DatasetFacts)}, **_binary("application/octet-stream")},
)  # fmt: skip


def document(app: FastAPI, guarded: bool) -> Document:
    """Complete the document: models, problems, security."""
    found = get_openapi(
        title=app.title, version=app.version, openapi_version="3.1.0", description=ABOUT,
        routes=app.routes,
    )  # fmt: skip
    for path, item in found["paths"].items():
        for method, operation in item.items():
            _complete(path, method, operation, guarded)
    found["components"] = {
        "schemas": _schemas()[1],
        "responses": {f"Problem{status}": _problem(status) for status in WRITES},
        "securitySchemes": SECURITY,
    }
    return _settled(found)


def _complete(path: str, method: str, operation: Document, guarded: bool) -> None:
    statuses = WRITES if method == "post" else READS
    if not path.startswith("/v1"):
        statuses = (405, 500, 503)
    for status in statuses:
        reference = {"$ref": f"#/components/responses/Problem{status}"}
        operation["responses"][str(status)] = reference
    if path.startswith(("/v1", "/metrics")):
        keys = [{name: list[str]()} for name in SECURITY]
        operation["security"] = keys if guarded else [{}, *keys]


def _problem(status: int) -> Document:
    kinds = [f"`{code}`: {kind.title}." for code, kind in KINDS.items() if kind.status == status]
    answer: Document = {"description": "\n".join(kinds), **_content(_answered(Problem), MEDIA)}
    if status in LATER:
        answer["headers"] = {"Retry-After": RETRY_AFTER}
    if status == 401:
        answer["headers"] = {"WWW-Authenticate": _header("How to present a key.")}
    if status == 405:
        answer["headers"] = {"Allow": _header("The methods that are offered here.")}
    return answer
