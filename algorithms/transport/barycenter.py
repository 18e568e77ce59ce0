"""Wasserstein barycenters: on a fixed support, on a grid, or with points that move."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.entropic.bregman import Measures, average, measured, mixed_plan
from algorithms.entropic.kernels import Dense, Kernel, Separable
from algorithms.errors import Caution, IllPosed
from algorithms.geometry import squared_distances
from algorithms.iterate import Stop, Watch, unwatched
from algorithms.linear.free_support import Clouds, settle
from algorithms.measures import SAME_MASS, weights
from algorithms.spaces import symmetric

# Exponents max(C)/epsilon beyond this are rounded by more than 1e-6.
SHARPEST = 1e10
# Times epsilon: rounding drowns the penalty of stronger soft marginals.
STRONGEST = 1e9


@dataclass(frozen=True)
class FixedSupport:
    """Measures `weights` (K, m) on common points y, averaged on the points x, or by a cost C."""

    weights: Float[Tensor, "K m"]
    x: Float[Tensor, "n d"] | None = None
    y: Float[Tensor, "m d"] | None = None
    C: Float[Tensor, "n m"] | None = None


@dataclass(frozen=True)
class Images:
    """Histograms on a grid of h x w points; a line is a grid of h x 1."""

    histograms: Float[Tensor, "K h w"]
    spacing: float = 1.0


@dataclass(frozen=True)
class Volumes:
    """Histograms on a grid of h x w x l points."""

    histograms: Float[Tensor, "K h w l"]
    spacing: float = 1.0


@dataclass(frozen=True)
class WeightedCloud:
    """Points and their weights; None is uniform with mass one."""

    x: Float[Tensor, "m d"]
    w: Float[Tensor, "m"] | None = None


@dataclass(frozen=True)
class FreeSupport:
    """Clouds whose barycenter has `size` points of equal weight, wherever they are best."""

    clouds: tuple[WeightedCloud, ...]
    size: int
    start: Float[Tensor, "n d"] | None = None


Problem = FixedSupport | Images | Volumes | FreeSupport


@dataclass(frozen=True)
class Certificate:
    """What shows how far to trust the average, in float64, from what is returned.

    Attributes:
        marginal_error: `max_k |P_k 1 - beta|_1`; with rho, from the share of it that is asked for.
        marginal_error_inputs: `max_k |P_k^T 1 - b_k|_1`, likewise.
        dual_value: a lower bound of the optimum; None with rho, debiased, or free points.
        duality_gap: objective at the plans minus dual_value, which is a gap up to what the plans
            miss of their marginals; with free points the largest gap of one plan.
        mean_gap: distance of the barycenter's mean from the weighted mean of the inputs' means,
            which is none for squared distances and points that are free; None without points.
        last_move: the largest step of a free point in the last round, over the size of the
            clouds; None otherwise.
    """

    marginal_error: float
    marginal_error_inputs: float
    dual_value: float | None
    duality_gap: float | None
    mean_gap: float | None
    last_move: float | None


@dataclass(frozen=True)
class Average:
    """The barycenter: its weights on the support that was asked for, or its points."""

    weights: Float[Tensor, "*support"]
    points: Float[Tensor, "n d"] | None
    transport_costs: Float[Tensor, "K"]
    value: Float[Tensor, ""]
    certificate: Certificate
    stop: Stop
    cautions: tuple[Caution, ...]


def barycenter(
    problem: Problem,
    lam: Float[Tensor, "K"] | None = None,
    *,
    epsilon: float | None = None,
    rho: float | None = None,
    debiased: bool = False,
    tol: float = 1e-6,
    max_iter: int = 10_000,
    generator: torch.Generator | None = None,
    watch: Watch = unwatched,
) -> Average:
    r"""Minimise `sum_k lam_k OT(beta, b_k)` over measures beta.

    On a fixed support or grid of n points

        OT(beta, b) = min_P <C, P> + epsilon KL(P | u b^T),  P 1 = beta,  P^T 1 = b,

    u uniform of mass one on the support: iterative Bregman projections, in the log domain. With
    rho both constraints are penalties `rho KL(P1|beta) + rho KL(P^T 1|b)`. Debiased, OT is the
    Sinkhorn divergence, which takes away the blur of size sqrt(epsilon). Free points x of equal
    weight minimise the exact (or, with epsilon, entropic) transport cost: plans and the means
    `x_i = sum_k lam_k (P_k y_k)_i / (P_k 1)_i` in turn.

    Shapes: K measures; weights (K, m), C (n, m), histograms (K, h, w) or (K, h, w, l), lam (K,).

    Args:
        problem: a `FixedSupport` (by C, or squared distances from x to y; without y the inputs
            are on x too), `Images` or `Volumes` (squared distances on a grid; a product costs N
            times the sum of the sides), or a `FreeSupport`.
        lam: mixture weights, >= 0, scaled to sum one; None is uniform.
        epsilon: entropic strength, in units of the cost; needed but with free points, where None
            is exact transport.
        rho: strength of soft marginals, at most 1e9 epsilon; None is exact, and then all masses
            must agree.
        debiased: average by Sinkhorn divergences; needs inputs on the support itself.
        tol: stop when the L1 errors of rows are below this share of the mass; with free points,
            when no point moves by this share of the clouds' size.
        max_iter: sweeps, or rounds of free points.
        generator: draws the start of free points, among the points of the clouds.
        watch: asked every ten sweeps, or every round.

    Returns:
        An `Average`: `weights` in the shape of the support; `points` where they are free;
        `transport_costs`, `<P_k, C>` of each measure; `value`, the objective; a `Certificate`; the
        `Stop`; cautions. P_k^T 1 = b_k holds to rounding, P_k 1 = beta to the residual.

    Notes:
        Time O(K n m) a sweep, on grids O(K N (h + w)); memory n m, not K n m. Where max(C)/epsilon
        exceeds 200 sums are taken by logarithms, some 30 times slower. Free points find a local
        minimum, in rounds that each solve K transport problems.
        Gradients: of `value` by the envelope theorem, in the weights or histograms `lam_k g_k`, g
        the potential of the input (along changes that keep masses equal, where marginals are
        exact), and in C, x, y through `sum_k lam_k P_k`; none with free points.

    References:
        Benamou et al. 2015, arXiv:1412.5154, section 3 (projections); Chizat et al. 2018,
        arXiv:1607.05816, section 5 (soft marginals); Janati, Cuturi, Gramfort 2020,
        arXiv:2006.02575, algorithm 1 (debiased); Solomon et al. 2015, doi:10.1145/2766963 (grids);
        Cuturi, Doucet 2014, arXiv:1310.4375, algorithm 2 (free points).
    """
    _check(problem, epsilon, rho, debiased, tol)
    if isinstance(problem, FreeSupport):
        return _free(problem, lam, epsilon, (tol, max_iter), generator, watch)
    assert epsilon is not None
    B, C = _inputs(problem), _costs(problem)
    w = _mixture(lam, B)
    with torch.no_grad():
        unit, mass = _unit_mass(B.detach().double(), _field(problem), rho)
        kernel = _kernel(problem, C, epsilon, unit)
        asked = Measures(kernel, unit.reshape(len(unit), -1).log(), w, epsilon, rho, debiased)
        state, stop = average(asked, tol=tol, max_iter=max_iter, watch=watch)
        seen = measured(asked, state, watch)
    value = mass * seen.value
    value = value + (seen.slopes.reshape(B.shape) * (B.double() - B.detach().double())).sum()
    if C is not None and C.requires_grad:
        assert isinstance(kernel, Dense)
        value = value + mass * (mixed_plan(asked, kernel, state, seen) * (C - C.detach())).sum()
    beta = mass * seen.beta
    plain = rho is None and not debiased
    certificate = Certificate(
        marginal_error=mass * seen.row_error,
        marginal_error_inputs=mass * seen.column_error,
        dual_value=mass * seen.dual if plain else None,
        duality_gap=mass * (float(seen.value) - seen.dual) if plain else None,
        mean_gap=None if rho is not None else _mean_gap(problem, seen.beta, unit, w),
        last_move=None,
    )
    shape = (len(beta),) if isinstance(problem, FixedSupport) else B.shape[1:]
    return Average(
        weights=beta.reshape(shape).to(B.dtype),
        points=None,
        transport_costs=(mass * seen.costs).to(B.dtype),
        value=value.to(B.dtype),
        certificate=certificate,
        stop=stop,
        cautions=_cautions(stop, tol, f"epsilon is {epsilon:.3g}; raise it, max_iter or tol"),
    )


def _check(
    problem: Problem, epsilon: float | None, rho: float | None, debiased: bool, tol: float
) -> None:
    for field, value in (("epsilon", epsilon), ("rho", rho)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise IllPosed(field, f"is {value}; it must be positive and finite")
    if not tol > 0:
        raise IllPosed("tol", f"is {tol}; it must be positive")
    if isinstance(problem, FreeSupport):
        if rho is not None or debiased:
            field = "debiased" if debiased else "rho"
            raise IllPosed(field, "has no part where points are free: leave it out")
        return
    if epsilon is None:
        raise IllPosed("epsilon", "is missing: a barycenter on given points is an entropic one")
    if debiased and rho is not None:
        raise IllPosed("rho", "is for plain barycenters; debiased ones have exact marginals")
    if rho is not None and rho > STRONGEST * epsilon:
        raise IllPosed(
            "rho",
            f"is {rho:.3g}; beyond {STRONGEST:.0e} times epsilon, {epsilon:.3g}, rounding drowns "
            "the penalty: leave it out for exact marginals",
        )
    if isinstance(problem, FixedSupport):
        if (problem.x is None) == (problem.C is None):
            raise IllPosed("problem.C", "give x or C, one of the two")
        if problem.y is not None and problem.C is not None:
            raise IllPosed("problem.y", "has no part beside C: leave one out")
        if debiased and problem.y is not None:
            raise IllPosed("problem.y", "debiased, the inputs are on the support itself: leave out")
        if debiased and problem.C is not None and problem.C.shape[0] != problem.C.shape[1]:
            raise IllPosed("problem.C", "debiased, the support is that of the inputs: C is square")
        if debiased and problem.C is not None and not symmetric(problem.C):
            raise IllPosed("problem.C", "is not symmetric; a Sinkhorn divergence needs it to be")
    elif not (math.isfinite(problem.spacing) and problem.spacing > 0):
        raise IllPosed("problem.spacing", f"is {problem.spacing}; it must be positive")


def _field(problem: FixedSupport | Images | Volumes) -> str:
    return f"problem.{'weights' if isinstance(problem, FixedSupport) else 'histograms'}"


def _inputs(problem: FixedSupport | Images | Volumes) -> Float[Tensor, "K *m"]:
    B = problem.weights if isinstance(problem, FixedSupport) else problem.histograms
    if not bool(B.isfinite().all()) or bool((B < 0).any()):
        reason = "has negative or non-finite weights; all must be finite and >= 0"
        raise IllPosed(_field(problem), reason)
    return B


def _mixture(lam: Float[Tensor, "K"] | None, like: Tensor) -> Float[Tensor, "K"]:
    w = weights("lam", lam, len(like), like).detach().double()
    return w / w.sum()


def _unit_mass(
    B: Float[Tensor, "K *m"], field: str, rho: float | None
) -> tuple[Float[Tensor, "K *m"], float]:
    """Divide by the common mass, or by the largest where marginals are soft."""
    masses = B.reshape(len(B), -1).sum(1)
    low, high = float(masses.amin()), float(masses.amax())
    if not (low > 0 and math.isfinite(high)):
        raise IllPosed(field, f"has a measure of mass {low:.3g}; each must have some, and finite")
    if rho is not None:
        return B / high, high
    if high - low > SAME_MASS * high:
        raise IllPosed(
            field, f"has masses from {low:.9g} to {high:.9g}: normalise them, or give rho"
        )
    return B / masses.reshape(-1, *[1] * (B.ndim - 1)), float(masses.mean())


def _costs(problem: FixedSupport | Images | Volumes) -> Float[Tensor, "n m"] | None:
    if not isinstance(problem, FixedSupport):
        return None
    if problem.C is not None:
        given, field = problem.C, "problem.C"
    else:
        assert problem.x is not None
        y = problem.x if problem.y is None else problem.y
        if problem.x.shape[1] != y.shape[1]:
            raise IllPosed("problem.y", f"has {y.shape[1]} coordinates a point, unlike x")
        given, field = squared_distances(problem.x.double(), y.double()), "problem.x"
    points = problem.weights.shape[1]
    if given.shape[1] != points:
        raise IllPosed(field, f"prices {given.shape[1]} input points; there are {points} weights")
    if not bool(given.isfinite().all()):
        raise IllPosed(field, "has costs that are not finite; rescale, or leave infinities out")
    return given.double()


def _kernel(
    problem: FixedSupport | Images | Volumes, C: Tensor | None, epsilon: float, like: Tensor
) -> Kernel:
    if C is not None:
        kernel, largest = Dense(C.detach(), epsilon), float(C.detach().abs().amax())
    else:
        assert not isinstance(problem, FixedSupport)
        kernel = Separable(tuple(like.shape[1:]), problem.spacing, epsilon, like)
        largest = sum(float(c.amax()) for c in kernel.costs)
    if not largest <= SHARPEST * epsilon:
        raise IllPosed(
            "epsilon",
            f"is {epsilon:.3g} and costs reach {largest:.3g}: exponents beyond {SHARPEST:.0e} have"
            " no digits left; raise epsilon",
        )
    return kernel


def _mean_gap(
    problem: FixedSupport | Images | Volumes,
    beta: Float[Tensor, "n"],
    unit: Float[Tensor, "K *m"],
    lam: Float[Tensor, "K"],
) -> float | None:
    """Compare the mean of the barycenter with the mean of the inputs' means."""
    if isinstance(problem, FixedSupport):
        if problem.x is None:
            return None
        x = problem.x.detach().double()
        y = x if problem.y is None else problem.y.detach().double()
    else:
        lines = [torch.arange(s, device=beta.device, dtype=beta.dtype) for s in unit.shape[1:]]
        x = y = torch.cartesian_prod(*lines) * problem.spacing
    mixed = lam @ unit.reshape(len(unit), -1)
    return float(torch.linalg.vector_norm(beta @ x - mixed @ y))


def _free(
    problem: FreeSupport,
    lam: Float[Tensor, "K"] | None,
    epsilon: float | None,
    limits: tuple[float, int],
    generator: torch.Generator | None,
    watch: Watch,
) -> Average:
    like = problem.clouds[0].x
    lam = _mixture(lam, torch.zeros(len(problem.clouds), dtype=like.dtype, device=like.device))
    points, masses = _clouds(problem)
    pooled = torch.cat(points)
    centre, share = pooled.mean(0), torch.cat([w * t for w, t in zip(masses, lam, strict=True)])
    scale = float((pooled - centre).square().sum(1).mean().sqrt()) or 1.0
    if problem.start is None:
        # every time another of the points, where there are enough with some share
        again = problem.size > int((share > 0).sum())
        drawn = torch.multinomial(share, problem.size, replacement=again, generator=generator)
        start = pooled[drawn]
    else:
        start = problem.start.detach().double()
    mass = float(masses[0].sum())
    unit = [w / w.sum() for w in masses]
    asked = Clouds(points, unit, lam, epsilon, scale)
    with torch.no_grad():
        found, stop = settle(asked, start, tol=limits[0], max_iter=limits[1], watch=watch)
    mixed = sum(t * (w @ y) for t, w, y in zip(lam, unit, points, strict=True))
    gap = float(torch.linalg.vector_norm(found.x.mean(0) - mixed))
    certificate = Certificate(
        marginal_error=mass * found.row_error,
        marginal_error_inputs=mass * found.column_error,
        dual_value=None,
        duality_gap=mass * found.gap,
        mean_gap=gap,
        last_move=found.moved,
    )
    return Average(
        weights=torch.full_like(like[:1, 0].detach(), mass / len(start)).expand(len(start)),
        points=found.x.to(like.dtype),
        transport_costs=(mass * found.costs).to(like.dtype),
        value=(mass * lam.new_tensor(found.value)).to(like.dtype),
        certificate=certificate,
        stop=stop,
        cautions=_cautions(stop, limits[0], "points may drift between equal plans; raise max_iter"),
    )


def _clouds(problem: FreeSupport) -> tuple[list[Tensor], list[Tensor]]:
    """Check the clouds and return their points and weights in float64."""
    points: list[Tensor] = []
    masses: list[Tensor] = []
    d = problem.clouds[0].x.shape[1]
    for k, cloud in enumerate(problem.clouds):
        place = f"problem.clouds.{k}"
        if cloud.x.shape[1] != d:
            raise IllPosed(f"{place}.x", f"has {cloud.x.shape[1]} coordinates; the first has {d}")
        if not bool(cloud.x.isfinite().all()) or not math.isfinite(
            float(cloud.x.detach().double().square().sum())
        ):
            raise IllPosed(f"{place}.x", "holds NaN or infinity, or squares that overflow")
        w = weights(f"{place}.w", cloud.w, len(cloud.x), cloud.x).detach().double()
        points.append(cloud.x.detach().double())
        masses.append(w)
        one, other = float(w.sum()), float(masses[0].sum())
        if abs(one - other) > SAME_MASS * max(one, other):
            reason = f"has mass {one:.9g}, the first has {other:.9g}; normalise both"
            raise IllPosed(f"{place}.w", reason)
    start = problem.start
    if start is not None:
        if start.shape != (problem.size, d):
            wanted = f"expected {(problem.size, d)}"
            raise IllPosed("problem.start", f"has shape {tuple(start.shape)}; {wanted}")
        if not bool(start.isfinite().all()):
            raise IllPosed("problem.start", "holds NaN or infinity; every entry must be finite")
    return points, masses


def _cautions(stop: Stop, tol: float, hint: str) -> tuple[Caution, ...]:
    if stop.status not in ("max_iter", "stagnated"):
        return ()
    seen = f"residual {stop.residual:.1e}, above tol {tol:.1e}, after {stop.iterations} iterations"
    return (Caution("not_converged", seen, hint),)
