"""What a question to spatial.map_cells may not be, seen before anything is computed."""

from typing import Any

import pytest
from pydantic import ValidationError

from schemas.arrays import Shelf
from schemas.samples import samples
from schemas.spatial.map_cells import EXAMPLE, MapCellsRequest

FACTS = {
    "kind": "h5ad",
    "arrays": {"X": [80, 60], "obsm/spatial": [80, 3], "obsm/X_pca": [80, 10], "layers/raw": []},
    "obs": 80,
    "var": 60,
    "obs_columns": ["domain"],
}


def asked(facts: dict[str, Any] = FACTS, **more: Any) -> MapCellsRequest:
    shelf = Shelf(datasets=dict.fromkeys(samples(), facts))
    return MapCellsRequest.model_validate({**EXAMPLE, **more}, context={"shelf": shelf})


def cells(**keys: Any) -> dict[str, Any]:
    return {"cells": EXAMPLE["cells"] | keys}


def atlas(**keys: Any) -> dict[str, Any]:
    return {"atlas": EXAMPLE["atlas"] | keys}


@pytest.mark.parametrize(
    ("field", "more"),
    [
        ("embedding_key", cells(embedding_key="X_umap")),
        ("layer", cells(layer="logs")),
        ("label_key", cells(label_key="kind")),
        ("batch", cells(batch="one")),
        ("batch_key", cells(batch="one", batch_key="slice")),
        ("spatial_key", atlas(spatial_key="places")),
        ("landmark_key", atlas(landmark_key="places")),
        ("spatial_axes", atlas(spatial_axes=[0, 3])),
        ("spatial_axes", atlas(spatial_axes=[1, 1])),
        ("spatial_axes", atlas(spatial_axes=[-1, 1])),
        ("spatial_axes", atlas(spatial_axes=[0, 1, 2])),
        ("markers.names", {"markers": {"names": ["a", "a"]}}),
        ("markers.names", {"markers": {"names": []}}),
        ("markers.dissimilarity", {"markers": {"names": ["a"], "dissimilarity": "correlation"}}),
        ("genes", {"genes": ["a", "a"]}),
        ("genes", {"genes": []}),
        ("graphs.components", cells(embedding_key="X_pca")),
    ],
)
def test_what_cannot_be_is_refused_by_name(field: str, more: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        asked(**more)
    named = [e.get("ctx", {}).get("field") or str(e["loc"][-1]) for e in caught.value.errors()]
    assert field in named


def test_another_kind_of_file_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"counts are read from \.h5ad"):
        asked(FACTS | {"kind": "csv"})


def test_keys_that_exist_are_accepted() -> None:
    found = asked(**cells(embedding_key="X_pca", layer="raw", label_key="domain"),
                  **atlas(spatial_axes=[0, 2]), graphs={})  # fmt: skip
    assert found.atlas.spatial_axes == [0, 2]
    assert asked(markers={"names": []}, alpha=1.0).markers.names == []


def test_memory_grows_with_the_files() -> None:
    small, large = asked(), asked(FACTS | {"obs": 8000, "var": 6000})
    assert small.footprint() > 8 * 5 * 2 * 80**2
    assert large.footprint() > 8 * 20 * 8000**2
    every = asked(FACTS | {"obs": 8000, "var": 6000}, genes=None)
    assert every.footprint() - large.footprint() == 8 * 8000 * (6000 - 5)
