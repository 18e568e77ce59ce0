"""Send new points through a map that was learnt, and bring annotations of the targets back."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from algorithms.errors import Caution, IllPosed
from algorithms.iterate import Stop, Watch, unwatched
from algorithms.measures import weights
from algorithms.structured.preparation import (
    Scaling,
    Shared,
    Standardize,
    fixed_factors,
    rows_of,
    shares,
)

# Weights of so many pairs are held at once.
ROOM = 1 << 22
# A point that spreads over more than this share of the targets, effectively, went nowhere.
VAGUE = 0.5
# Among few targets that is no wonder.
MANY = 20


@dataclass(frozen=True)
class Certificate:
    """What shows how sharply points were placed; see the schema."""

    normalisation_error: float
    effective_targets: float
    largest_share: float


@dataclass(frozen=True)
class Transformed:
    """Where points went, and what was carried over to them."""

    images: Float[Tensor, "k e"]
    annotations: Float[Tensor, "k c"] | None
    labels: Int[Tensor, "k"] | None
    confidence: Float[Tensor, "k"] | None
    spread: Float[Tensor, "k"]
    certificate: Certificate
    stop: Stop
    cautions: tuple[Caution, ...]


def transform(
    points: Float[Tensor, "k d"],
    y: Float[Tensor, "m e"],
    map: Float[Tensor, "e d"],
    g: Float[Tensor, "m"],
    *,
    epsilon: float,
    b: Float[Tensor, "m"] | None = None,
    center_x: Float[Tensor, "d"] | None = None,
    center_y: Float[Tensor, "e"] | None = None,
    scale_x: Float[Tensor, "d"] | None = None,
    scale_y: Float[Tensor, "e"] | None = None,
    standardize: Standardize = "none",
    scaling: Scaling = "unit",
    points_shared: Float[Tensor, "k q"] | None = None,
    y_shared: Float[Tensor, "m q"] | None = None,
    shared_cost: Shared = "sqeuclidean",
    alpha: float = 1.0,
    annotations: Float[Tensor, "m c"] | None = None,
    labels: Float[Tensor, "m"] | None = None,
    watch: Watch = unwatched,
) -> Transformed:
    r"""Place points at `T(x) = sum_j w_j(x) y_j`, `w_j ~ b_j exp((g_j - c(x, y_j))/epsilon)`.

    `c(x, y) = -alpha <M x, y> + (1 - alpha) C` is the cost of `structured.match`, between points
    prepared as there; g is its target potential. At the points of the match the weights are the
    rows of its plan, divided by their sums. For epsilon 0 all weight is at the largest
    `g_j - c(x, y_j)`; the points of an exact match lie where several are equally large, and its own
    `images` say where they go. Any annotation of the targets is averaged with the same weights.

    Shapes: points (k, d), y (m, e), map (e, d), g (m,), b (m,), center_x and scale_x (d,),
    center_y and scale_y (e,), points_shared (k, q), y_shared (m, q), annotations (m, c),
    labels (m,).

    Args:
        points: in the units of the x of the match, as y is in those of its y.
        labels: integers, below 0 for none.
        watch: asked before each block of points.

    Returns:
        `images` in the units of y; `annotations`, averaged; the `labels` of most weight, of equal
        ones the smallest (-1 where no labelled target has weight), and its `confidence`, a share
        of the labelled weight; `spread`, how many targets a point effectively goes to (the
        exponential of the entropy of its weights); a `Certificate`; the `Stop`; cautions.

    Notes:
        Time O(k m min(d, e)), memory a block of rows. For the way back exchange the sides: points
        are targets, y the sources, the map transposed, g the source potential.
        Gradients: of `images` with respect to points, by the softmax; 0 for epsilon 0.

    References:
        Pooladian, Niles-Weed 2021, arXiv:2109.12004, section 2 (entropic map);
        Sebbouh, Cuturi, Peyre 2024, arXiv:2311.05788, section 4.
    """
    for name, z in (("points", points), ("y", y), ("map", map), ("g", g)):
        if not bool(z.detach().isfinite().all()):
            raise IllPosed(name, "holds NaN or infinity")
    if (points_shared is None) != (y_shared is None) or (y_shared is None) != (alpha == 1):
        raise IllPosed("alpha", "alpha < 1 goes with points_shared and y_shared")
    wide = torch.float64
    own = weights("b", b, len(y), y).to(wide)
    z = _prepared("scale_x", points, standardize, center_x, scale_x)
    known = _prepared("scale_y", y, standardize, center_y, scale_y)
    left, right = fixed_factors(z, known, scaling, None, shared_cost)
    ends = [-alpha * (z @ map.to(wide).T), left], [known, right]
    if points_shared is not None and y_shared is not None:
        both = points_shared.to(wide), y_shared.to(wide)
        s, t = fixed_factors(z, known, "unit", both, shared_cost)
        ends[0].append((1 - alpha) * s)
        ends[1].append(t)
    classes, votes = _votes(labels, y)
    brought = y.to(wide), None if annotations is None else annotations.to(wide), votes
    carried = torch.cat([w for w in brought if w is not None], 1)
    placed = _placed(torch.cat(ends[0], 1), torch.cat(ends[1], 1), g.to(wide), own / own.sum(),
                     epsilon, carried, watch)  # fmt: skip
    return _answer(placed, points, brought, classes)


@dataclass(frozen=True)
class Placed:
    """What every point carries, how far it spreads, and how its weights add up."""

    carried: Float[Tensor, "k c"]
    spread: Float[Tensor, "k"]
    error: float
    largest: float
    interrupted: bool


def _prepared(
    field: str,
    x: Float[Tensor, "k d"],
    standardize: Standardize,
    center: Tensor | None,
    scale: Tensor | None,
) -> Float[Tensor, "k d"]:
    """Do to points what the match did."""
    z = rows_of(x.double(), standardize)
    if scale is not None and not bool((scale > 0).all()):
        raise IllPosed(field, "has entries that are not positive")
    z = z if center is None else z - center.double()
    return z if scale is None else z / scale.double()


def _votes(
    labels: Float[Tensor, "m"] | None, like: Tensor
) -> tuple[Int[Tensor, "c"] | None, Float[Tensor, "m c"] | None]:
    """List the labels there are, and say which target has which."""
    if labels is None:
        return None, None
    names = labels.long()
    classes = names[names >= 0].unique()
    return classes, (names[:, None] == classes).to(like.device, torch.float64)


def _placed(
    u: Float[Tensor, "k r"],
    v: Float[Tensor, "m r"],
    g: Float[Tensor, "m"],
    b: Float[Tensor, "m"],
    epsilon: float,
    carried: Float[Tensor, "m c"],
    watch: Watch,
) -> Placed:
    """Weigh the targets for one block of points after the other; stopped ones carry nothing."""
    found, spread, error, largest = list[Tensor](), list[Tensor](), 0.0, 0.0
    size, interrupted = max(1, ROOM // len(v)), False
    for first in range(0, len(u), size):
        some = u[first : first + size]
        interrupted = interrupted or not watch(first, 0.0)
        if interrupted:
            found.append(carried.new_zeros(len(some), carried.shape[1]))
            spread.append(carried.new_zeros(len(some)))
            continue
        C = some @ v.T
        if not bool(C.detach().isfinite().all()):
            raise IllPosed("points", "overflow with this map; rescale them")
        w = shares(C, g, b, epsilon)
        found.append(w @ carried)
        seen = w.detach()
        spread.append((-torch.xlogy(seen, seen).sum(1)).exp())
        error = max(error, float((seen.sum(1) - 1).abs().amax()))
        largest += float(seen.amax(1).sum()) / len(u)
    return Placed(torch.cat(found), torch.cat(spread), error, largest, interrupted)


def _answer(
    placed: Placed,
    like: Tensor,
    brought: tuple[Tensor, Tensor | None, Tensor | None],
    classes: Int[Tensor, "c"] | None,
) -> Transformed:
    """Cut what was carried into images, annotations and labels."""
    widths = [0 if w is None else w.shape[1] for w in brought]
    images, notes, votes = placed.carried.split(widths, 1)
    labels = confidence = None
    if classes is not None:
        total = votes.detach().sum(1)
        if len(classes):
            best = votes.detach().max(1)
            labels = torch.where(total > 0, classes[best.indices], -1)
            confidence = (best.values / torch.where(total > 0, total, 1.0)).clamp(0, 1).to(like)
        else:
            labels, confidence = torch.full_like(total, -1).long(), total.to(like)
    m, vague = len(brought[0]), int((placed.spread > VAGUE * len(brought[0])).sum())
    cautions: tuple[Caution, ...] = ()
    if m > MANY and vague:
        cautions = (Caution(
            "vague", f"{vague} of {len(like)} points spread over more than half of the targets",
            "their images are near the mean of y; match with a smaller epsilon",
        ),)  # fmt: skip
    seen = Certificate(placed.error, float(placed.spread.mean()), placed.largest)
    status = "interrupted" if placed.interrupted else "converged"
    return Transformed(
        images.to(like),
        None if brought[1] is None else notes.to(like),
        labels,
        confidence,
        placed.spread.to(like),
        seen,
        Stop(status, 0, placed.error),
        cautions,
    )
