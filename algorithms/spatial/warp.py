"""One slice bent onto another: a rigid motion, and a smooth displacement that a plan asks for."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.errors import Caution, IllPosed
from algorithms.iterate import Stop, Watch, unwatched
from algorithms.sparse import SparsePlan
from algorithms.spatial.align import AS_COUNTS, align
from algorithms.spatial.bending import (
    Jacobian,
    gaussian_field,
    hull_area,
    jacobian_of_triangles,
    jacobian_on_grid,
    spline_field,
)
from algorithms.spatial.expression import Expression
from algorithms.spatial.frames import pitch
from algorithms.spatial.motions import matched_motion, moved
from algorithms.spatial.pairs import carried
from algorithms.spatial.setting import ARRAY_PITCH
from algorithms.spatial.slice import Slice
from algorithms.spatial.validity import check_slices

Method = Literal["thin_plate", "gaussian", "barycentric"]
# The spline solves a system of this many equations at most: 1 GB of float64 and its factors.
SPLINE_SPOTS = 6000
# A hull below this share of the moved slice's is told.
SHRUNK = 0.9


@dataclass(frozen=True)
class Certificate:
    """What can be recomputed from the answer, in pitches of the moved slice.

    Attributes:
        folds: places where the map turns the plane over; 0 for a map without folds.
        places: places that were looked at.
        lowest_jacobian: smallest determinant there, relative to that of the motion.
        rigid_error: root mean square distance of the barycentres from the moved spots.
        warp_error: the same from the warped spots.
        equation_error: largest error of the spline's equations.
    """

    folds: int
    places: int
    lowest_jacobian: float | None
    rigid_error: float
    warp_error: float
    equation_error: float | None


@dataclass(frozen=True)
class Warp:
    """Every source spot in the target's frame, moved and bent; rows as in the file."""

    ids: tuple[str, ...]
    warped: Float[Tensor, "n 2"]
    aligned: Float[Tensor, "n 2"]
    displacement: Float[Tensor, "n 2"]
    transform: Float[Tensor, "3 3"]
    mass: Float[Tensor, "n"]
    interpolated: int
    pitch: float
    hull_ratio: float | None
    barycentric_hull_ratio: float | None
    plan: SparsePlan
    certificate: Certificate
    stop: Stop
    cautions: tuple[Caution, ...]


def warp(
    source: Slice,
    target: Slice,
    *,
    plan: SparsePlan | None = None,
    method: Literal["thin_plate", "gaussian", "barycentric"] = "thin_plate",
    lam: float = 1.0,
    bandwidth: float = 3.0,
    alpha: float = 0.1,
    expression: Expression = AS_COUNTS,
    scale: Literal["auto", "pitch", "none"] = "auto",
    allow_reflection: bool = False,
    watch: Watch = unwatched,
) -> Warp:
    r"""Send spot i of the source to  T z_i + u(T z_i).

    T minimises sum_ij P_ij |T z_i - y_j|^2 over motions (lengths change by the ratio of the
    pitches where `scale` says so). With p = P 1 and the barycentres y'_i = sum_j P_ij y_j / p_i,
    u is fitted to y'_i - T z_i with weights p_i, in pitches of the moved slice:

        thin_plate:   minimises sum_i w_i |u(x_i) - u_i|^2 + lam bandwidth^4 int |D^2 u|^2;
        gaussian:     sum_i w_i k_i u_i / (sum_i w_i k_i + lam), k_i Gaussian of `bandwidth`,
                      w = p / mean p;
        barycentric:  y'_i itself; spots without mass take the Gaussian field.

    Shapes: coordinates (n, 2) and (m, 2); the plan indexes the n and m rows.

    Args:
        plan: a plan between the rows; None aligns the slices (`spatial.align`) first.
        method, lam, bandwidth: see above.
        alpha, expression: of that alignment.
        scale: `pitch` scales T by the ratio of the pitches, `none` keeps lengths, `auto` is
            `none` where both pitches lie in [0.5, 2].
        allow_reflection: let T turn the source over.

    Returns:
        ids, warped, aligned, displacement: names, T z + u, T z, and u.
        transform: T, a 3 x 3 matrix.
        mass, interpolated: p, and how many of its entries are 0.
        pitch: spacing of the moved slice, in the target's unit.
        hull_ratio, barycentric_hull_ratio: areas of convex hulls against that of T z.
        plan: the plan that was followed.
        certificate: folds, errors (`Certificate`).
        stop: how the alignment ended; `converged` after 0 iterations where the plan was given.
        cautions: folds, shrunk_hull, rows_without_mass, and those of the alignment.

    Notes:
        Time O(n^3) and memory O(n^2) for the spline (at most 6000 spots with mass), else linear
        in the entries of the plan and O(n) a place of the grid. No gradient.

    References:
        Bookstein 1989, doi:10.1109/34.24792; Wahba 1990, doi:10.1137/1.9781611970128 (smoothing
        splines); Klein et al. 2025, doi:10.1038/s41586-024-08453-2 (barycentric warps).
    """
    stop, told = Stop("converged", 0, 0.0), tuple[Caution, ...]()
    if plan is None:
        options: dict[str, Any] = {
            "alpha": alpha, "expression": expression, "scale": scale,
            "allow_reflection": allow_reflection, "solver": "dense",
        }  # fmt: skip
        answer = align(source, target, **options, watch=watch)
        plan, stop, told = answer.plan, answer.stop, answer.cautions
    check_slices(source, target, expression)
    _check(plan, len(source.ids), len(target.ids))
    z, y = source.coordinates.double(), target.coordinates.double()
    pitches = pitch(z), pitch(y)
    ratio = _ratio(pitches, scale)
    mass = plan.mass.double() / plan.mass.double().sum()
    transform = matched_motion(
        z[plan.rows], y[plan.cols], mass, scale=ratio, allow_reflection=allow_reflection
    )
    goal, p = carried(SparsePlan(plan.rows, plan.cols, mass), y, len(z))
    bent = _bent(moved(transform, z), goal, p, pitches[0] * ratio, method, lam, bandwidth)
    return _written(source, plan, transform, goal, p, bent, stop, told)


def _ratio(pitches: tuple[float, float], scale: str) -> float:
    low, high = ARRAY_PITCH
    if scale == "auto":
        scale = "none" if all(low <= own <= high for own in pitches) else "pitch"
    return pitches[1] / pitches[0] if scale == "pitch" else 1.0


def _check(plan: SparsePlan, n: int, m: int) -> None:
    for name, at, count in (("rows", plan.rows, n), ("cols", plan.cols, m)):
        if len(at) != len(plan.mass):
            raise IllPosed(f"plan.{name}", f"{len(at)} entries for {len(plan.mass)} masses")
        if len(at) and (int(at.min()) < 0 or int(at.max()) >= count):
            spots = f"the slice has rows 0 to {count - 1}"
            raise IllPosed(f"plan.{name}", f"from {int(at.min())} to {int(at.max())}; {spots}")
    mass = plan.mass
    if not bool(mass.isfinite().all()) or bool((mass < 0).any()) or not float(mass.sum()) > 0:
        raise IllPosed("plan.mass", "masses must be finite, not negative, and not all 0")


@dataclass(frozen=True)
class _Bent:
    """Moved and warped places in the target's unit, and what the map does to areas."""

    aligned: Float[Tensor, "n 2"]
    warped: Float[Tensor, "n 2"]
    unit: float
    areas: Jacobian
    equation_error: float | None


def _bent(
    x: Float[Tensor, "n 2"],
    goal: Float[Tensor, "n 2"],
    p: Float[Tensor, "n"],
    unit: float,
    method: Method,
    lam: float,
    bandwidth: float,
) -> _Bent:
    """Fit the displacement to the spots with mass, in pitches about their middle; apply it."""
    has = p > 0
    middle = x.mean(0)
    places, error = (x - middle) / unit, None
    u = (goal - x)[has] / unit
    w = p[has] / p[has].mean()
    if method == "thin_plate":
        if int(has.sum()) > SPLINE_SPOTS:
            raise IllPosed(
                "method", f"thin_plate takes at most {SPLINE_SPOTS} spots with mass; there are "
                f"{int(has.sum())}: use gaussian",
            )  # fmt: skip
        field, error = spline_field(places[has], u, w, lam, bandwidth)
    else:
        field = gaussian_field(places[has], u, w, lam, bandwidth)
    shift = torch.cat([field(part) for part in places.split(512)])
    if method == "barycentric":
        shift = shift.masked_scatter(has[:, None], u)
        areas = jacobian_of_triangles(places, places + shift)
    else:
        areas = jacobian_on_grid(field, places)
    return _Bent(x, x + unit * shift, unit, areas, error)


def _written(
    source: Slice,
    plan: SparsePlan,
    transform: Tensor,
    goal: Tensor,
    p: Tensor,
    bent: _Bent,
    stop: Stop,
    told: tuple[Caution, ...],
) -> Warp:
    has, rms = p > 0, lambda x: float((p[has] @ (x - goal)[has].square().sum(1)).sqrt() / bent.unit)
    area = hull_area(bent.aligned[has])
    flat = area <= 1e-9 * bent.unit**2
    shares = [None if flat else hull_area(x[has]) / area for x in (bent.warped, goal)]
    certificate = Certificate(
        folds=bent.areas.folds,
        places=bent.areas.places,
        lowest_jacobian=bent.areas.lowest,
        rigid_error=rms(bent.aligned),
        warp_error=rms(bent.warped),
        equation_error=bent.equation_error,
    )
    empty = int((~has).sum())
    return Warp(
        ids=source.ids,
        warped=bent.warped,
        aligned=bent.aligned,
        displacement=bent.warped - bent.aligned,
        transform=transform,
        mass=p,
        interpolated=empty,
        pitch=bent.unit,
        hull_ratio=shares[0],
        barycentric_hull_ratio=shares[1],
        plan=plan,
        certificate=certificate,
        stop=stop,
        cautions=(*told, *_cautions(certificate, shares[0], empty, len(p))),
    )


def _cautions(
    certificate: Certificate, share: float | None, empty: int, count: int
) -> list[Caution]:
    told = []
    if certificate.folds:
        told.append(
            Caution(
                "folds",
                f"the map turns the plane over at {certificate.folds} of {certificate.places} "
                f"places; the lowest determinant is {certificate.lowest_jacobian:.3g}",
                "raise lam or bandwidth, or use method='thin_plate'",
            )
        )
    if share is not None and share < SHRUNK:
        told.append(
            Caution(
                "shrunk_hull",
                f"the warped tissue covers {share:.3f} of the area of the moved one",
                "a diffuse plan pulls spots inwards: use an exact plan, or a larger lam",
            )
        )
    if empty:
        told.append(
            Caution(
                "rows_without_mass",
                f"{empty} of {count} source spots have no mass in the plan; their places are "
                "interpolated",
                "leave them out where the answer must rest on matches (mass is 0 there)",
            )
        )
    return told
