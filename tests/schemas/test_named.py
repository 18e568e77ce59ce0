"""Arrays by name: how they are written, and what is refused."""

import numpy as np
import pytest
from pydantic import ValidationError

from schemas.arrays import ArrayRef, Request, Shelf, arrays_in
from schemas.named import AskedNamed


class Asked(Request):
    """A question with arrays by name."""

    tensors: AskedNamed | None = None


def asked(tensors, shelf=None):
    return Asked.model_validate({"tensors": tensors}, context={"shelf": shelf or Shelf()})


def test_any_shapes_side_by_side():
    found = asked({"a.w": [[1.0, 2.0]], "b": 3.0, "c": [[[1.0], [2.0]]]})
    paths = {path: (ref.shape, axes) for path, ref, axes in arrays_in(found)}
    assert paths == {
        "tensors.a.w": ([1, 2], "..."),
        "tensors.b": ([], "..."),
        "tensors.c": ([1, 2, 1], "..."),
    }
    assert found.footprint() == 8 * 5


def test_nested_objects_are_names_with_dots():
    shelf = Shelf()
    bytes_of = {"dtype": "float64", "shape": [1], "data": "AAAAAAAA8D8="}
    nested = {"fc": {"weight": np.ones((2, 2)), "bias": bytes_of}, "head": [1.0]}
    assert list(asked(nested, shelf).tensors) == ["fc.weight", "fc.bias", "head"]
    digest = next(iter(shelf.staged))
    assert asked({"x": {"y": {"digest": digest}}}, shelf).tensors["x.y"].shape == [2, 2]
    assert isinstance(asked({"x": digest}, shelf).tensors["x"], ArrayRef)


@pytest.mark.parametrize(
    ("tensors", "place", "text"),
    [
        ({}, ("tensors",), "at least 1"),
        (3.0, ("tensors",), "dictionary"),
        ({"a": [1.0, "x"]}, ("tensors", "a"), "expected a number"),
        ({"a": []}, ("tensors", "a"), "holds nothing"),
        ({"a": {}}, ("tensors", "a"), "keys dtype"),
        ({"": [1.0]}, ("tensors", "", "[key]"), "at least 1"),
        ({"digest": [1.0]}, ("tensors", "digest", "[key]"), "cannot be called"),
        ({"a.b": [1.0], "a": {"b": [1.0]}}, ("tensors",), "twice"),
        ({"a": "sha256:" + "0" * 64}, ("tensors", "a"), "no array"),
    ],
)
def test_refused(tensors, place, text):
    with pytest.raises(ValidationError, match=text) as caught:
        asked(tensors)
    assert caught.value.errors()[0]["loc"] == place
