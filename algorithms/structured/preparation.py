"""What happens to points before they are matched, and to new ones after: so that both agree."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.errors import IllPosed

Standardize = Literal["none", "zscore", "l2rows"]
Shared = Literal["sqeuclidean", "inner"]
Scaling = Literal["unit", "gw_ip", "gw_se"]
# A feature that varies by less than this share of its size is constant.
CONSTANT = 1e-12
# Sizes of points whose fourth powers are still numbers, also multiplied by those of the others.
SMALLEST, LARGEST = 1e-70, 1e70


@dataclass(frozen=True)
class Prepared:
    """Points as they are matched, and how they came about: `(x - center) / scale`."""

    points: Float[Tensor, "n d"]
    center: Float[Tensor, "d"]
    scale: Float[Tensor, "d"]
    constant: int


def prepared(
    field: str,
    x: Float[Tensor, "n d"],
    a: Float[Tensor, "n"],
    standardize: Standardize,
    *,
    center: bool,
) -> Prepared:
    """Bring rows to length one or features to variance one, and the mean to the origin."""
    if not bool(x.isfinite().all()):
        raise IllPosed(field, "holds NaN or infinity; every entry must be finite")
    z = rows_of(x, standardize)
    mean = a @ z
    size = float(z.abs().amax())
    spread = (a @ (z - mean).square()).sqrt()
    flat = spread <= CONSTANT * (z.abs().amax(0) + torch.finfo(z.dtype).tiny)
    scale = torch.ones_like(mean)
    if standardize == "zscore":
        scale = torch.where(flat, 1.0, spread)
    shift = mean if center else torch.zeros_like(mean)
    points = torch.where(flat & center, 0.0, (z - shift) / scale)
    if not bool((points.abs().amax() > 0) & (~flat | (not center)).any()):
        raise IllPosed(field, "has no variance: its points coincide, and there is nothing to match")
    extent = float(points.abs().amax())
    if not (SMALLEST < extent < LARGEST and math.isfinite(size)):
        raise IllPosed(field, f"has a size of {extent:.3g}; rescale it into [1e-70, 1e70]")
    return Prepared(points, shift, scale, int(flat.sum()))


def rows_of(x: Float[Tensor, "n d"], standardize: Standardize) -> Float[Tensor, "n d"]:
    """Divide rows by their length, where that was asked for; zero rows stay."""
    if standardize != "l2rows":
        return x
    size = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / torch.where(size > 0, size, 1.0)


def unit_of(z: Float[Tensor, "n d"]) -> float:
    """Return the power of two just above the largest coordinate."""
    return 2.0 ** math.frexp(float(z.abs().amax()))[1]


def fixed_factors(
    x: Float[Tensor, "n d"],
    y: Float[Tensor, "m e"],
    scaling: Scaling,
    shared: tuple[Float[Tensor, "n q"], Float[Tensor, "m q"]] | None,
    shared_cost: Shared,
) -> tuple[Float[Tensor, "n k"], Float[Tensor, "m k"]]:
    """Factor what a pair costs apart from the map: shared features, and squared norms for gw_se."""
    left, right = [x[:, :0]], [y[:, :0]]
    if scaling == "gw_se":
        left.append(-4 * x.square().sum(1, keepdim=True))
        right.append(y.square().sum(1, keepdim=True))
    if shared is not None:
        s, t = shared
        if shared_cost == "inner":
            left.append(-s)
            right.append(t)
        else:
            one = [torch.ones_like(z[:, :1]) for z in (s, t)]
            square = [z.square().sum(1, keepdim=True) for z in (s, t)]
            left += [square[0], one[0], -2 * s]
            right += [one[1], square[1], t]
    return torch.cat(left, 1), torch.cat(right, 1)


def shares(
    C: Float[Tensor, "k m"],
    g: Float[Tensor, "m"],
    b: Float[Tensor, "m"],
    epsilon: float,
) -> Float[Tensor, "k m"]:
    r"""Say to which targets a point of these costs goes: `b_j exp((g_j - C_j)/eps)`, normalised.

    For epsilon 0 all of it to the target of largest `g_j - C_j`, of equal ones the first: constant
    in C almost everywhere, with derivative 0.
    """
    if epsilon > 0:
        return ((g - C) / epsilon + b.log()).softmax(1)
    best = torch.where(b > 0, g - C, -torch.inf).argmax(1)
    return torch.nn.functional.one_hot(best, C.shape[1]).to(C) + 0 * C
