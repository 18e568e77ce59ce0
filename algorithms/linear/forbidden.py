"""Pairs that no plan may use: costs that are infinite, or would drown all others as numbers."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from algorithms.errors import Caution

# Costs above this many medians are forbidden arcs: as numbers they would drown all the others.
FORBIDDEN = 1e12


def bounded(
    C: Float[Tensor, "n m"],
) -> tuple[Float[Tensor, "n m"], Bool[Tensor, "n m"] | None, tuple[Caution, ...]]:
    """Replace forbidden costs, infinite ones among them, by one that no optimal plan pays.

    Unless every plan pays it: callers look.
    """
    size = C.abs()
    finite = size.isfinite()
    some = size[finite & (size > 0)]
    limit = FORBIDDEN * float(some.median()) if len(some) else math.inf
    forbidden = C.gt(limit) | ~finite
    if not bool(forbidden.any()):
        return C, None, ()
    low, high = C[~forbidden].aminmax()
    # leaving one forbidden arc moves mass along a cycle of at most min(n, m) allowed ones
    lift = high + min(C.shape) * (high - low) + high.abs().clamp_min(1.0)
    caution = Caution(
        "forbidden_arcs",
        f"{int(forbidden.sum())} costs exceed 1e12 medians ({limit:.1e}) and are never used",
        "give such pairs a large cost in the scale of the others, or leave them so",
    )
    return torch.where(forbidden, torch.minimum(C, lift), C), forbidden, (caution,)
