"""Weights of measures: what is checked before any array is opened."""

from pydantic_core import PydanticCustomError

from schemas.arrays import ArrayRef

LARGEST_MASS = 1e150  # its square is still a number
MASS_TOLERANCE = 1e-5  # relative: what float32 sums of a million weights may differ by


def check_weights(field: str, weights: ArrayRef | None) -> None:
    """Refuse negative weights and measures without mass."""
    if weights is None:
        return
    facts = weights.facts
    if facts.low is not None and facts.low < 0:
        raise PydanticCustomError(
            "infeasible-problem", "weights must not be negative; the smallest is {low}",
            {"field": field, "low": facts.low},
        )  # fmt: skip
    if facts.total is not None and facts.total > LARGEST_MASS:
        raise PydanticCustomError(
            "infeasible-problem", "the weights sum to {mass}, more than {limit}; rescale them",
            {"field": field, "mass": facts.total, "limit": LARGEST_MASS},
        )  # fmt: skip
    if not facts.total:
        raise PydanticCustomError(
            "infeasible-problem", "the weights sum to 0: a measure needs mass", {"field": field}
        )


def check_equal_masses(a: ArrayRef | None, b: ArrayRef | None) -> None:
    """Refuse balanced transport between measures of different mass; absent weights have mass 1."""
    mass_a = 1.0 if a is None else a.facts.total or 0.0
    mass_b = 1.0 if b is None else b.facts.total or 0.0
    if abs(mass_a - mass_b) > MASS_TOLERANCE * max(mass_a, mass_b):
        raise PydanticCustomError(
            "infeasible-problem",
            "balanced transport needs equal masses; a has {mass_a}, b has {mass_b}",
            {"field": "b" if b is not None else "a", "mass_a": mass_a, "mass_b": mass_b},
        )
