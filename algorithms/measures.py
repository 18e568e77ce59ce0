"""What every transport routine asks: that weights are measures and costs are numbers."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.errors import Caution, IllPosed
from algorithms.geometry import CostMatrix, Geometry

# Masses that differ by less, relatively, are the same mass after rounding: float32 sums reach 1e-6.
SAME_MASS = 1e-5
# Gap and infeasibility above this share of max|C| mean that a plan was not proved optimal.
PROVED = {torch.float64: 1e-9, torch.float32: 1e-5}


@dataclass(frozen=True)
class Extent:
    """The least and the largest entry of a matrix; both are NaN where one entry is."""

    low: float
    high: float

    @property
    def finite(self) -> bool:
        """Tell whether all entries are finite."""
        return math.isfinite(self.low) and math.isfinite(self.high)


def extent(z: Float[Tensor, "*shape"]) -> Extent:
    """Find both ends in one pass and without copies, which `isfinite` makes."""
    low, high = z.detach().aminmax()
    return Extent(float(low), float(high))


def all_finite(z: Float[Tensor, "*shape"]) -> bool:
    """Tell whether all entries are finite."""
    return extent(z).finite


def costs(geometry: Geometry) -> Float[Tensor, "n m"]:
    """Evaluate the cost matrix, or say which input kept it from being finite."""
    return costs_within(geometry)[0]


def costs_within(geometry: Geometry) -> tuple[Float[Tensor, "n m"], Extent]:
    """Evaluate the cost matrix and its extent, or say which input kept it from being finite.

    Only a cost that forbids pairs by its nature is infinite there, and never everywhere.
    """
    if isinstance(geometry, CostMatrix):
        return geometry.C, _ends("geometry.C", geometry.C)
    check_finite(geometry)
    C = geometry.matrix()
    forbids = geometry.cost == "wfr"
    ends = extent(C)
    if math.isnan(ends.low) or not (forbids or ends.finite):
        raise IllPosed("geometry", f"costs overflow {str(C.dtype)[6:]}; rescale the points")
    if not math.isfinite(ends.low):
        raise IllPosed("geometry.delta", "every pair is forbidden: all are pi delta apart or more")
    return C, ends


def check_finite(geometry: Geometry) -> None:
    """Refuse inputs that are empty, not finite, or of unequal dimension."""
    if isinstance(geometry, CostMatrix):
        inputs = {"C": geometry.C}
    else:
        inputs = {"x": geometry.x, "y": geometry.y}
        d, e = geometry.x.shape[1], geometry.y.shape[1]
        if d != e:
            raise IllPosed("geometry.y", f"has {e} coordinates a point; expected {d}, as x has")
        if geometry.cost == "cosine":
            inputs_at_zero = [n for n, z in inputs.items() if bool((z == 0).all(1).any())]
            if inputs_at_zero:
                raise IllPosed(f"geometry.{inputs_at_zero[0]}", "has a zero row: it has no angle")
    for name, values in inputs.items():
        _ends(f"geometry.{name}", values)


def _ends(field: str, z: Float[Tensor, "n k"]) -> Extent:
    """Return the extent of an input; refuse what is empty or not finite."""
    if not z.numel():
        raise IllPosed(field, f"is empty, of shape {tuple(z.shape)}")
    ends = extent(z)
    if not ends.finite:
        raise IllPosed(field, "holds NaN or infinity; every entry must be finite")
    return ends


def weights(
    field: str, w: Float[Tensor, "k"] | None, points: int, like: Tensor
) -> Float[Tensor, "k"]:
    """Return `w` in the type of `like`, or uniform weights of mass one; refuse non-measures."""
    if w is None:
        return torch.full((points,), 1 / points, dtype=like.dtype, device=like.device)
    if w.shape != (points,):
        raise IllPosed(field, f"has {w.shape[0]} weights for {points} points")
    if not bool(w.isfinite().all()) or bool((w < 0).any()):
        raise IllPosed(field, "has negative or non-finite weights; all must be finite and >= 0")
    if not bool((w > 0).any()):
        raise IllPosed(field, "has no mass; at least one weight must be positive")
    return w.to(like)


def same_mass(
    a: Float[Tensor, "n"], b: Float[Tensor, "m"]
) -> tuple[Float[Tensor, "m"], tuple[Caution, ...]]:
    """Rescale b to the mass of a where they differ by rounding; refuse where by more."""
    mass_a, mass_b = (
        float(a.detach().sum(dtype=torch.float64)),
        float(b.detach().sum(dtype=torch.float64)),
    )
    apart = abs(mass_a - mass_b) / max(mass_a, mass_b)
    if apart > SAME_MASS:
        raise IllPosed(
            "b",
            f"has mass {mass_b:.9g} and a has {mass_a:.9g}; balanced transport needs equal masses:"
            " normalise both, or ask for an unbalanced problem",
        )
    if apart <= (len(a) + len(b)) ** 0.5 * torch.finfo(a.dtype).eps:
        return b * (mass_a / mass_b), ()
    caution = Caution(
        "mass_rescaled",
        f"b had mass {mass_b:.9g} and was rescaled to the mass of a, {mass_a:.9g}",
        f"relative difference {apart:.1e}; normalise the weights in float64 before sending them",
    )
    return b * (mass_a / mass_b), (caution,)
