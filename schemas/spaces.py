"""Costs within one space, given as a matrix or as points: what is checked before any is opened."""

from pydantic_core import PydanticCustomError

from schemas.arrays import ArrayRef


def check_one(points_field: str, x: ArrayRef | None, costs_field: str, C: ArrayRef | None) -> None:
    """Refuse a space that is described twice, or not at all."""
    if (x is None) == (C is None):
        raise PydanticCustomError(
            "validation",
            "give {points} or {costs}, one of the two",
            {"field": costs_field, "points": points_field, "costs": costs_field},
        )
