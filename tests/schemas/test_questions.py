"""Cross-field rules of questions: masses, datasets, gradients, batches."""

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from schemas.arrays import Shelf
from schemas.registry import ROUTINES
from schemas.samples import sample

SINKHORN, ALIGN = ROUTINES["transport.sinkhorn"], ROUTINES["spatial.align"]
FACTS = {
    "kind": "h5ad",
    "arrays": {"X": [9, 9], "obsm/spatial": [9, 2], "layers/counts": [9, 9]},
    "obs_columns": ["cluster"],
}
SHELF = Shelf(
    datasets={sample("section_1.h5ad"): FACTS, sample("section_2.h5ad"): FACTS | {"kind": "npz"}}
)
SECTION = {"dataset": sample("section_1.h5ad")}


def error(model: type[BaseModel], body: Any) -> Any:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(body, context={"shelf": SHELF})
    (only,) = caught.value.errors()
    return only


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"a": [0.5, -0.25, 0.75]}, "a"),
        ({"a": [0.0, 0.0, 0.0]}, "a"),
        ({"a": [1e308, 1e308, 1e308]}, "a"),
        ({"b": [0.5, 0.6]}, "b"),
        ({"b": None, "a": [1.0, 1.0, 1.0]}, "a"),
    ],
)
@pytest.mark.parametrize("name", ["transport.sinkhorn", "transport.exact"])
def test_masses(name: str, change: Any, field: str) -> None:
    found = error(ROUTINES[name].request, ROUTINES[name].example | change)
    assert found["type"] == "infeasible-problem"
    assert found["ctx"]["field"] == field


@pytest.mark.parametrize("name", ["transport.sinkhorn", "transport.exact"])
def test_absent_weights_are_uniform(name: str) -> None:
    body = ROUTINES[name].example | {"a": None, "b": None}
    request = ROUTINES[name].request.model_validate(body, context={"shelf": SHELF})
    assert request.footprint() > 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"spatial_key": "X_space"}, ["obsm key", "X_space", "spatial"]),
        ({"layer": "raw"}, ["layer", "counts"]),
        ({"label_key": "pathology"}, ["obs column", "cluster"]),
        ({"landmark_key": "pixel"}, ["obsm key", "spatial"]),
        ({"batch_key": "cluster"}, ["batch"]),
        ({"batch_key": "slice", "batch": "1"}, ["obs column", "cluster"]),
        ({"dataset": sample("section_2.h5ad")}, ["npz"]),
        ({"dataset": "sha256:" + "0" * 64}, ["no dataset"]),
    ],
)
def test_missing_keys_are_listed(change: Any, words: list[str]) -> None:
    found = error(ALIGN.request, {"source": SECTION | change, "target": SECTION})
    assert found["loc"][0] == "source"
    assert all(word in found["msg"] for word in words)


def test_slices_are_selected() -> None:
    body = {"source": SECTION | {"label_key": "cluster", "layer": "counts"}, "target": SECTION}
    request: Any = ALIGN.request.model_validate(body, context={"shelf": SHELF})
    assert request.source.label_key == "cluster"


def test_without_a_shelf_datasets_are_believed() -> None:
    ALIGN.request.model_validate({"source": SECTION, "target": SECTION})


def test_gradients_are_asked_for_by_path() -> None:
    assert SINKHORN.inputs == ["geometry.C", "geometry.x", "geometry.y", "a", "b"]
    assert SINKHORN.outputs == [
        "plan", "map", "f", "g", "value", "transport_cost", "mass", "rows", "columns"
    ]  # fmt: skip
    assert SINKHORN.vjp is not None
    body = {"request": SINKHORN.example, "cotangents": {"value": 1.0}, "wrt": ["a", "geometry.C"]}
    found = error(SINKHORN.vjp, body)
    assert found["ctx"]["field"] == "wrt.1"
    assert ALIGN.vjp is None


def test_a_batch_is_not_empty() -> None:
    assert error(SINKHORN.batch, {"problems": []})["loc"] == ("problems",)


def test_derived_names() -> None:
    assert SINKHORN.family == "transport"
    assert (
        SINKHORN.summary == "Entropic optimal transport between two measures, of equal mass or not."
    )
    assert SINKHORN.batch_result.model_json_schema()


def test_masses_that_overflow_are_refused_where_they_need_not_be_equal() -> None:
    partial = ROUTINES["transport.partial"]
    found = error(partial.request, partial.example | {"a": [1e308, 1e308, 1e308]})
    assert (found["type"], found["ctx"]["field"]) == ("infeasible-problem", "a")
