"""Answers as pictures and data files, by the optional mirrors `workers.figures` and `workers.h5ad`.

`workers/figures/F/R.py` has `draw(question, answer) -> Figure`, `workers/h5ad/F/R.py` has
`annotate(question, answer) -> AnnData`; both get the bound arguments of the routine and its answer
with arrays in place of references.
"""

import io
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import orjson
import torch

from schemas.facts import Stored
from schemas.problems import Failure
from schemas.registry import ROUTINES
from workers.desk import Desk, Outcome
from workers.load import write_h5ad
from workers.place import Place
from workers.port import Claim
from workers.pulse import Pulse

FORMATS = {"image/png": "png", "image/svg+xml": "svg"}


def render(desk: Desk, claim: Claim, pulse: Pulse) -> Outcome:
    """Draw the answer of another job, or write it as a data file; the result is raw bytes."""
    parent, media = str(claim.request["job"]), str(claim.request["media"])
    question = desk.store.do(desk.ledger.request(claim.tenant, parent))
    _, key = desk.store.do(desk.ledger.result(claim.tenant, parent))
    raw = desk.store.do(desk.ledger.blob(key)) if key else None
    if question is None or raw is None:
        return Outcome("failed", failure=Failure(code="result-expired", detail="nothing to draw"))
    routine, answer = ROUTINES[claim.routine], orjson.loads(raw)
    materials = desk.fetch(question, answer)
    request = routine.request.model_validate(question, context={"shelf": materials.shelf})
    place = Place(torch.device("cpu"), torch.float64)
    arguments = desk.binder(materials, place).arguments(request)
    data = _with_arrays(answer, materials.arrays)
    if media in FORMATS:
        figure = import_module(f"workers.figures.{routine.name}").draw(arguments, data)
        return Outcome("succeeded", _picture(figure, FORMATS[media]))
    annotated = import_module(f"workers.h5ad.{routine.name}").annotate(arguments, data)
    return Outcome("succeeded", write_h5ad(annotated))


def _picture(figure: Any, kind: str) -> bytes:
    file = io.BytesIO()
    undated = {"Date": None} if kind == "svg" else {}
    figure.savefig(file, format=kind, dpi=120, metadata=undated)
    return file.getvalue()


def _with_arrays(value: Any, arrays: Mapping[str, Stored]) -> Any:
    if isinstance(value, dict):
        if value.get("digest") in arrays:
            return arrays[value["digest"]].array
        return {k: _with_arrays(v, arrays) for k, v in value.items()}
    if isinstance(value, list):
        return [_with_arrays(v, arrays) for v in value]
    return value
