"""Array fields inside questions: every accepted form, every refusal, axes that must agree."""

import base64
from typing import Annotated, Any

import numpy as np
import pytest
from pydantic import ValidationError

from schemas.arrays import ArrayRef, Dims, Request, Shelf, Strict, arrays_in
from schemas.facts import stored
from schemas.geometry import CostMatrix, Geometry, PointClouds, sizes


class Probe(Request):
    """A question with arrays of two kinds."""

    geometry: Geometry
    a: Annotated[ArrayRef, Dims("n")] | None = None


X = [[0.0, 1.0], [2.0, 3.0]]
POINTS = {"kind": "points", "x": X, "y": [[1.0, 1.0]]}


def parse(body: Any, shelf: Shelf | None = None) -> Probe:
    return Probe.model_validate(body, context={"shelf": shelf or Shelf()})


def errors(body: Any, shelf: Shelf | None = None) -> list[Any]:
    with pytest.raises(ValidationError) as caught:
        parse(body, shelf)
    return caught.value.errors()


def typed(array: np.ndarray) -> dict[str, Any]:
    data = base64.b64encode(array.tobytes()).decode()
    return {"dtype": array.dtype.name, "shape": list(array.shape), "data": data}


def test_every_form_names_the_same_array() -> None:
    item = stored(np.array(X))
    known = Shelf(known={item.digest: item.facts})
    for x in (
        X,
        np.array(X),
        typed(np.array(X)),
        item.digest,
        {"digest": item.digest},
        {"digest": item.digest, "dtype": "float32", "shape": [9, 9], "href": "lies"},
    ):
        geometry = parse({"geometry": POINTS | {"x": x}}, known).geometry
        assert isinstance(geometry, PointClouds)
        assert geometry.x.digest == item.digest
        assert geometry.x.shape == [2, 2]


def test_inline_arrays_are_staged_and_named() -> None:
    shelf = Shelf()
    probe = parse({"geometry": POINTS}, shelf)
    assert set(shelf.staged) == {ref.digest for _, ref, _ in arrays_in(probe)}
    dumped = probe.model_dump(context={"names_only": True})
    assert dumped["geometry"]["x"] in shelf.staged
    again = parse(dumped, Shelf(known={d: s.facts for d, s in shelf.staged.items()}))
    assert again == probe
    assert probe.model_dump()["geometry"]["x"]["shape"] == [2, 2]


@pytest.mark.parametrize(
    ("x", "code"),
    [
        ("sha256:" + "0" * 64, "no-such-array"),
        ("nonsense", "no-such-array"),
        ([[0.0, float("nan")]], "non-finite-number"),
        ([[0.0, 10**400]], "non-finite-number"),
        ([[0.0], [1.0, 2.0]], "shape-mismatch"),
        ({"dtype": "float64", "shape": [2, 2], "data": "AAAA"}, "shape-mismatch"),
        ({"dtype": "float64", "shape": [2**39, 2**39], "data": ""}, "shape-mismatch"),
        ({"dtype": "float64", "shape": [1, 1], "data": "not base64!"}, "validation"),
        ({"dtype": "complex64", "shape": [1, 1], "data": "AAAAAAAAAAA="}, "validation"),
        ({"dtype": "float64", "shape": [-1], "data": ""}, "validation"),
        ({"dtype": "float64", "shape": "2", "data": ""}, "validation"),
        ({"dtype": "float64"}, "validation"),
        (None, "validation"),
    ],
)
def test_refusals_have_names(x: Any, code: str) -> None:
    (error,) = errors({"geometry": POINTS | {"x": x}})
    assert error["type"] == code
    assert error["loc"][-1] == "x"


def test_stored_arrays_with_nan_are_refused() -> None:
    item = stored(np.array([[np.nan, 1.0]]))
    (error,) = errors({"geometry": POINTS | {"x": item.digest}}, Shelf({item.digest: item.facts}))
    assert error["type"] == "non-finite-number"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"a": [1.0]}, "a"),
        ({"a": [[1.0, 2.0]]}, "a"),
        ({"geometry": POINTS | {"y": [[1.0]]}}, "geometry.y"),
        ({"geometry": POINTS | {"x": [1.0]}}, "geometry.x"),
        ({"geometry": POINTS | {"x": []}}, "geometry.x"),
        ({"a": []}, "a"),
        ({"geometry": {"kind": "cost", "C": [[]]}}, "geometry.C"),
    ],
)
def test_axes_must_agree(change: Any, field: str) -> None:
    (error,) = errors({"geometry": POINTS} | change)
    assert error["type"] == "shape-mismatch"
    assert error["ctx"]["field"] == field


def test_sizes_and_footprint() -> None:
    probe = parse({"geometry": POINTS, "a": [0.5, 0.5]})
    assert probe.footprint() == 8 * (4 + 2 + 2)
    assert sizes(probe.geometry) == (2, 1)
    cost = parse({"geometry": {"kind": "cost", "C": [[1.0, 2.0, 3.0]]}}).geometry
    assert isinstance(cost, CostMatrix)
    assert sizes(cost) == (1, 3)


def test_schemas_differ_by_direction() -> None:
    asked = ArrayRef.model_json_schema(mode="validation")
    answered = ArrayRef.model_json_schema(mode="serialization")
    assert "anyOf" in asked
    assert answered["required"] == ["digest", "dtype", "shape", "href"]


class Several(Request):
    """Clouds, each with its own number of points."""

    clouds: list[PointClouds]


def several(*clouds: dict[str, Any]) -> Several:
    return Several.model_validate({"clouds": list(clouds)}, context={"shelf": Shelf()})


class Flat(Request):
    """A question with an axis of a given size, alone and in a list."""

    pairs: Annotated[ArrayRef, Dims("p 2")]
    more: list["Item"] = []


class Item(Strict):
    """An item with such an axis."""

    pairs: Annotated[ArrayRef, Dims("p 2")]


@pytest.mark.parametrize("wrong", [[[1.0]], [[1.0, 2.0, 3.0]]])
def test_an_axis_may_have_a_given_size(wrong: Any) -> None:
    right = [[0.0, 1.0]]
    several = [{"pairs": right}, {"pairs": right * 3}]
    asked = {"pairs": right, "more": several}
    assert Flat.model_validate(asked, context={"shelf": Shelf()})
    for spoilt, field in (
        ({**asked, "pairs": wrong}, "pairs"),
        ({**asked, "more": [*several, {"pairs": wrong}]}, "more.2.pairs"),
    ):
        with pytest.raises(ValidationError) as refused:
            Flat.model_validate(spoilt, context={"shelf": Shelf()})
        (error,) = refused.value.errors()
        assert (error["type"], error["ctx"]["field"]) == ("shape-mismatch", field)
        assert error["ctx"]["want"] == 2


def test_items_of_a_list_have_axes_of_their_own() -> None:
    asked = several(POINTS, {"kind": "points", "x": [[1.0]], "y": [[2.0], [3.0]]})
    paths = [path for path, _, _ in arrays_in(asked)]
    assert paths == ["clouds.0.x", "clouds.0.y", "clouds.1.x", "clouds.1.y"]
    assert asked.footprint() == 8 * sum(
        ref.shape[0] * ref.shape[1] for _, ref, _ in arrays_in(asked)
    )


def test_axes_within_an_item_of_a_list_must_agree() -> None:
    with pytest.raises(ValidationError) as refused:
        several(POINTS, {"kind": "points", "x": [[1.0]], "y": [[2.0, 3.0]]})
    (error,) = refused.value.errors()
    assert error["ctx"]["field"] == "clouds.1.y"
    assert error["ctx"]["first"] == "clouds.1.x"
