"""Arrays by digest: what is read from JSON, what is refused, what is known of each."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydantic_core import PydanticCustomError

from schemas.facts import MAX_DEPTH, digest_of, facts_of, nested_array, stored, stored_each

finite = st.floats(allow_nan=False, allow_infinity=False, width=64)
boxes = hnp.arrays(np.float64, hnp.array_shapes(max_dims=4, max_side=5), elements=finite)


@given(boxes)
def test_nested_lists_read_back_as_the_array(array: Any) -> None:
    np.testing.assert_array_equal(nested_array(array.tolist()), array)


@given(boxes)
def test_equal_arrays_have_equal_names(array: Any) -> None:
    assert digest_of(array) == stored(np.asfortranarray(array)).digest
    assert digest_of(array) != digest_of(array.reshape(-1, 1)) or array.ndim == 2


def test_names_tell_types_apart() -> None:
    one = np.ones(3)
    assert digest_of(one) != digest_of(one.astype(np.float32))
    assert digest_of(np.zeros(3)) != digest_of(np.zeros(3, np.int64))


def test_big_endian_is_turned_round() -> None:
    item = stored(np.arange(3, dtype=">f8"))
    assert item.digest == digest_of(np.arange(3, dtype="<f8"))


@pytest.mark.parametrize("dtype", ["complex128", "U3", "M8[s]", "int8"])
def test_other_element_types_are_refused(dtype: str) -> None:
    with pytest.raises(PydanticCustomError, match="element type"):
        stored(np.zeros(2, dtype))


@pytest.mark.parametrize(
    ("value", "at"),
    [
        ([[1.0, 2.0], [3.0, "4"]], [1, 1]),
        ([1.0, True], [1]),
        ([[1.0], [None]], [1, 0]),
        ([1.0, [2.0]], [1]),
        ([[1.0, 2.0], [3.0]], [1]),
        ([[1.0, 2.0], 3.0], [1]),
        ([[[1.0], [2.0]], [[3.0], [4.0, 5.0]]], [1, 1]),
        ({"a": 1}, []),
        ("1.5", []),
        (True, []),
    ],
)
def test_the_first_entry_at_fault_is_named(value: Any, at: list[int]) -> None:
    with pytest.raises(PydanticCustomError) as caught:
        nested_array(value)
    assert (caught.value.context or {})["at"] == at


def test_ragged_rows_are_a_shape_mismatch() -> None:
    with pytest.raises(PydanticCustomError) as caught:
        nested_array([[1.0, 2.0], [3.0]])
    assert caught.value.type == "shape-mismatch"


def test_deep_nesting_is_refused() -> None:
    value: Any = 1.0
    for _ in range(MAX_DEPTH + 1):
        value = [value]
    with pytest.raises(PydanticCustomError, match="nested lists"):
        nested_array(value)


def test_integers_stay_integers_until_they_do_not_fit() -> None:
    assert nested_array([1, 2]).dtype == np.int64
    assert nested_array([1, 2**63]).dtype == np.float64
    assert nested_array([1, 2.5]).dtype == np.float64
    assert np.isinf(nested_array([10**400, 1.0])[0])


def test_a_number_is_an_array_without_axes() -> None:
    assert nested_array(2.5).shape == ()
    assert nested_array([]).shape == (0,)


@pytest.mark.parametrize(
    ("array", "finite", "low", "high"),
    [
        (np.array([1.0, 3.0]), True, 1.0, 3.0),
        (np.array([1.0, np.nan, 3.0]), False, 1.0, 3.0),
        (np.array([np.inf, 2.0]), False, 2.0, 2.0),
        (np.array([np.nan]), False, None, None),
        (np.array([1e308, 1e308]), True, 1e308, 1e308),
        (np.zeros(0), True, None, None),
        (np.array([True, False]), True, 0.0, 1.0),
    ],
)
def test_facts(array: Any, finite: bool, low: float | None, high: float | None) -> None:
    facts = facts_of(array)
    assert (facts.finite, facts.low, facts.high) == (finite, low, high)
    assert facts.total is not None
    assert np.isfinite(facts.total)


@pytest.mark.parametrize("dtype", ["float64", "float32", "int64", "bool", ">f8"])
@pytest.mark.parametrize("shape", [(0, 2), (1, 2), (3, 0), (3,), (4, 2, 3)])
def test_a_stack_is_named_as_its_members_are(dtype: str, shape: tuple[int, ...]) -> None:
    stack = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    for one, alone in zip(stored_each(stack), [stored(z) for z in stack], strict=True):
        assert one.digest == alone.digest
        assert one.facts == alone.facts
        assert one.array.tolist() == alone.array.tolist()


def test_one_array_that_is_not_finite_says_so_in_a_stack() -> None:
    stack = np.array([[1.0, 2.0], [np.nan, 1.0], [np.inf, 3.0], [1e308, 1e308]])
    found = stored_each(stack)
    assert [item.facts for item in found] == [facts_of(row) for row in stack]
    assert [item.facts.finite for item in found] == [True, False, False, True]
    assert [item.digest for item in found] == [digest_of(row) for row in stack]
