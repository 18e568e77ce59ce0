"""What a plan owes to a measure: the penalties `D(mu | a)` between its marginal and the weights."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Balanced:
    """`mu = a`: everything travels."""


@dataclass(frozen=True)
class KL:
    """`rho KL(mu | a)`, with `KL(p | q) = sum p log(p/q) - p + q`."""

    rho: float


@dataclass(frozen=True)
class TV:
    """`rho |mu - a|_1`: a unit that stays costs rho."""

    rho: float


@dataclass(frozen=True)
class Range:
    """`low a <= mu <= high a`, free of charge within; `low <= 1 <= high`."""

    low: float
    high: float


@dataclass(frozen=True)
class Free:
    """No penalty: the marginal is whatever suits the other side."""


@dataclass(frozen=True)
class Berg:
    """`rho sum_i (mu_i - a_i - a_i log(mu_i/a_i))`: no point may be left without mass."""

    rho: float


Marginal = Balanced | KL | TV | Range | Free | Berg
