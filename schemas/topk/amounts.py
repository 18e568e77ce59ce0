"""What questions of this family share: how many entries a row keeps, how smoothly, and how."""

from pydantic_core import PydanticCustomError

from schemas.arrays import ArrayRef


def check_amounts(k: float | None, k_rows: ArrayRef | None, n: int) -> None:
    """Refuse a question that does not say how many of n entries to keep, or says what cannot be."""
    if (k is None) == (k_rows is None):
        raise PydanticCustomError(
            "validation", "{got} of k and k_rows received; expected one",
            {"field": "k", "got": "neither" if k is None else "both"},
        )  # fmt: skip
    if k is not None and k > n:
        raise PydanticCustomError(
            "infeasible-problem", "k is {k}; a row of {n} entries keeps at most {n}",
            {"field": "k", "k": k, "n": n},
        )  # fmt: skip
    if k_rows is None:
        return
    low, high = k_rows.facts.low or 0.0, k_rows.facts.high or 0.0
    if low < 0 or high > n:
        raise PydanticCustomError(
            "infeasible-problem", "entries lie from {low} to {high}; expected 0 to {n}, the "
            "entries of a row", {"field": "k_rows", "low": low, "high": high, "n": n},
        )  # fmt: skip


def check_strengths(lam_rows: ArrayRef | None) -> None:
    """Refuse strengths that are not above 0."""
    if lam_rows is not None and not (lam_rows.facts.low or 0.0) > 0:
        raise PydanticCustomError(
            "validation", "the least entry is {low}; expected all > 0",
            {"field": "lam_rows", "low": lam_rows.facts.low or 0.0},
        )  # fmt: skip


def check_method(method: str, p: float) -> None:
    """Refuse alternating projections where they do not project."""
    if method == "dykstra" and p != 2:
        raise PydanticCustomError(
            "validation", "dykstra is for p = 2, received p = {p}; expected newton, sort or pav",
            {"field": "method", "p": p},
        )  # fmt: skip
