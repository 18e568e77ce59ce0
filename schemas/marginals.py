"""What a plan owes to a measure: the penalties `D(mu | a)` between its marginal and the weights."""

import math
from typing import Annotated, Literal

from pydantic import Field
from pydantic_core import PydanticCustomError

from schemas.arrays import ArrayRef, Strict
from schemas.measures import MASS_TOLERANCE


class Balanced(Strict):
    """`mu = a`: everything travels."""

    kind: Literal["balanced"] = "balanced"


class KL(Strict):
    """`rho KL(mu | a)`: mass may grow or shrink at every point, at a price."""

    kind: Literal["kl"] = "kl"
    rho: float = Field(
        gt=0,
        description="Strength in units of the cost: what costs much more than it does not travel; "
        "to infinity it is `balanced`.",
    )


class TV(Strict):
    """`rho |mu - a|_1`: a unit of mass travels, or stays at a price."""

    kind: Literal["tv"] = "tv"
    rho: float = Field(
        gt=0, description="Price of a unit of mass that stays, or that comes from nowhere."
    )


class Range(Strict):
    """`low a <= mu <= high a`, free of charge within."""

    kind: Literal["range"] = "range"
    low: float = Field(ge=0, le=1, description="Smallest share of its weight that a point gives.")
    high: float = Field(ge=1, le=1e150, description="Largest share of its weight, at least 1.")


class Free(Strict):
    """No penalty: the marginal is whatever suits the other side."""

    kind: Literal["free"] = "free"


class Berg(Strict):
    """`rho sum_i (mu_i - a_i - a_i log(mu_i/a_i))`: no point may be left without mass."""

    kind: Literal["berg"] = "berg"
    rho: float = Field(gt=0, description="Strength in units of the cost.")


Marginal = Annotated[Balanced | KL | TV | Range | Free | Berg, Field(discriminator="kind")]
AnyMarginal = Balanced | KL | TV | Range | Free | Berg


def masses(marginal: AnyMarginal, mass: float) -> tuple[float, float]:
    """Bound the mass of a plan whose marginal on one side answers to weights of this mass."""
    match marginal:
        case Balanced():
            return mass, mass
        case Range():
            return marginal.low * mass, marginal.high * mass
        case _:
            return 0.0, math.inf


def check_masses_meet(
    a: ArrayRef | None, b: ArrayRef | None, marginal_a: AnyMarginal, marginal_b: AnyMarginal
) -> None:
    """Refuse a question for which no plan has an admissible mass; absent weights have mass 1."""
    mass_a, mass_b = (1.0 if w is None else w.facts.total or 0.0 for w in (a, b))
    low_a, high_a = masses(marginal_a, mass_a)
    low_b, high_b = masses(marginal_b, mass_b)
    room = 1 + MASS_TOLERANCE
    if low_a <= high_b * room and low_b <= high_a * room:
        return
    field = "b" if b is not None else "a"
    if isinstance(marginal_a, Balanced) and isinstance(marginal_b, Balanced):
        raise PydanticCustomError(
            "infeasible-problem",
            "balanced transport needs equal masses; a has {mass_a}, b has {mass_b}; normalise "
            "both, or relax marginal_a or marginal_b",
            {"field": field, "mass_a": mass_a, "mass_b": mass_b},
        )
    raise PydanticCustomError(
        "infeasible-problem",
        "no plan suits both marginals: marginal_a asks for a mass in [{low_a}, {high_a}], "
        "marginal_b for one in [{low_b}, {high_b}]; rescale the weights or widen a range",
        {
            "field": field,
            "mass_a": mass_a,
            "mass_b": mass_b,
            **{"low_a": low_a, "high_a": _finite(high_a)},
            **{"low_b": low_b, "high_b": _finite(high_b)},
        },
    )


def _finite(bound: float) -> float | str:
    """JSON has no infinity."""
    return bound if math.isfinite(bound) else "infinity"
