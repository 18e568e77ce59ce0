"""Exact optimal transport between two measures of equal mass."""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from algorithms.entropic.implicit import Envelope
from algorithms.errors import Caution, IllPosed
from algorithms.geometry import CostMatrix, Geometry, PointClouds
from algorithms.iterate import Stop, Watch, iterate, quietly, unwatched
from algorithms.linear.basis import Basis, corner, rigid
from algorithms.linear.columns import by_columns
from algorithms.linear.forbidden import bounded
from algorithms.linear.pricing import Pairs, proved
from algorithms.linear.seeds import alike
from algorithms.linear.staircase import NO_MASS, staircase
from algorithms.measures import PROVED, check_finite, costs, same_mass, weights
from algorithms.simplex import NotOptimal, network_simplex
from algorithms.sparse import SparsePlan

Method = Literal["auto", "simplex", "assignment", "line", "sparse"]

# Uniform clouds in more dimensions than this are matched by shortest augmenting paths: measured
# with potentials 1.3 to 2.2 times faster than network simplex at d = 20, 50 (n = 1000, 2000), and
# 4 times slower at d = 2 (n = 1000).
LOW_DIMENSION = 10
# Pairs from which arcs beat the whole matrix: measured level at n = m = 1000 in the plane and
# twice as fast at 2000, level at 1500 in 50 dimensions. schemas/transport/exact.py says the same.
SPARSE_FROM = 1_500_000
ON_LINE = ("sqeuclidean", "euclidean", "lp")  # convex functions of x - y
ON_ARCS = ("sqeuclidean", "euclidean")


@dataclass(frozen=True)
class Certificate:
    """What proves the plan optimal, recomputed from plan and potentials.

    Attributes:
        marginal_error_a: `|P 1 - a|_1`.
        marginal_error_b: `|P^T 1 - b|_1`.
        dual_infeasibility: `max(f_i + g_j - C_ij, 0)`.
        duality_gap: `<P, C> - <a, f> - <b, g>`; rounding may make it slightly negative.
    """

    marginal_error_a: float
    marginal_error_b: float
    dual_infeasibility: float
    duality_gap: float


@dataclass(frozen=True)
class ExactPlan:
    """An optimal coupling with at most n + m - 1 entries, its potentials, and their proof."""

    plan: SparsePlan
    f: Float[Tensor, "n"]
    g: Float[Tensor, "m"]
    value: Float[Tensor, ""]
    transport_cost: Float[Tensor, ""]
    method: str
    dual_unique: bool
    certificate: Certificate
    stop: Stop
    cautions: tuple[Caution, ...]


def exact(
    geometry: Geometry,
    a: Float[Tensor, "n"] | None = None,
    b: Float[Tensor, "m"] | None = None,
    *,
    method: Method = "auto",
    max_iter: int = 10_000_000,
    generator: torch.Generator | None = None,
    watch: Watch = unwatched,
) -> ExactPlan:
    r"""Solve `min_P <P, C>` over `P >= 0`, `P 1 = a`, `P^T 1 = b`.

    C (n, m) is the cost matrix of `geometry`, a and b the weights of source and target. Points on
    a line are matched in order; clouds with 1.5 million pairs or more, under (squared) Euclidean
    costs, by column generation, which holds no matrix; smaller uniform ones of equal size in more
    than ten dimensions by shortest augmenting paths; all else by network simplex. f and g solve
    the dual, `max <a, f> + <b, g>` over `f_i + g_j <= C_ij`.

    Shapes: geometry (n, m), a (n,), b (m,).

    Args:
        a: source weights, at least zero; None is uniform with mass one.
        b: target weights; rescaled to the mass of a where they differ by less than 1e-5 of it.
        method: `auto` chooses by shape, cost and size; `simplex` serves always, the others where
            they apply: `line` in one dimension, `assignment` between equal numbers of equal
            weights, `sparse` for (squared) Euclidean costs of clouds.
        max_iter: pivots of one solve by network simplex. When they run out, the answer is a
            feasible plan far from optimal, with status `max_iter` and the gap in its certificate.
        generator: draws the directions and the subsample with which `sparse` begins, on which its
            time depends and its answer does not; None is one of seed 0.
        watch: asked before the solve, and between passes of those methods that have some.

    Returns:
        An `ExactPlan`: the sparse `plan`; `f`, `g` in the gauge `<f, a> = 0`; `value` and
        `transport_cost`, both `<P, C>`; the `method` taken; `dual_unique`, whether f, g are shown
        to be unique up to a shift on the points that have mass (of the more than 64 tight pairs a
        point that gridded clouds may have, not all are looked at); a `Certificate`; the `Stop`,
        with the gap as residual and, for `sparse`, the rounds of pricing after the first solve
        (pivots of a solve that ends well are not counted: 0); cautions. Where a matrix is held,
        costs above 1e12 medians, or infinite, are never used.

    Notes:
        float64 on the CPU inside, whatever the inputs are. Time about O(n m (n + m)), memory
        O(n m); on a line O(n log n + m log m) and then O(n m) for the certificate; `sparse` some
        passes over all pairs in float32, O(n m d), and simplex solves on a few tens of arcs a
        point, memory linear in the points. In a pass every pair is either proved to have a
        positive reduced cost or computed again in float64; the potentials of `sparse` are lowered
        by what is then found, and by the rounding of finding it, so that they are feasible.
        Gradients: dV/dC = P, dV/da = f, dV/db = g, along changes that keep the masses equal;
        subgradients where `dual_unique` is false or the plan is not unique.

    References:
        Peyre, Cuturi 2019, arXiv:1803.00567, section 3; Crouse 2016, doi:10.1109/TAES.2016.140952
        (assignment); Santambrogio 2015, doi:10.1007/978-3-319-20828-2, section 2.2 (line);
        Desaulniers, Desrosiers, Solomon 2005, doi:10.1007/b135457 (column generation).
    """
    check_finite(geometry)
    wide, like = geometry.wide(), geometry.like
    n, m = wide.shape
    a, b = weights("a", a, n, like), weights("b", b, m, like)
    b, cautions = same_mass(a, b)
    p, q = (w.detach().double().cpu() for w in (a, b))
    method = _chosen(method, wide, p, q)
    if method in ("line", "sparse"):
        if not math.isfinite(wide.bound()):
            raise IllPosed("geometry", "costs overflow float64; rescale the points")
        assert isinstance(wide, PointClouds)
        basis = _without_matrix(method, wide, p, q, max_iter, generator, watch)
        return _answer(geometry, wide, a, b, basis, cautions)
    C, forbidden, more = bounded(costs(wide))
    basis = _solved(method, C, p, q, max_iter, watch)
    _refuse_forbidden(basis, forbidden)
    return _answer(geometry, CostMatrix(C), a, b, basis, cautions + more)


def _chosen(method: Method, geometry: Geometry, p: Tensor, q: Tensor) -> Method:
    """Choose by shape, cost and size, or refuse a method that does not serve."""
    clouds = isinstance(geometry, PointClouds)
    line = clouds and geometry.x.shape[1] == 1 and geometry.cost in ON_LINE
    arcs = clouds and geometry.cost in ON_ARCS
    if method == "auto":
        if line:
            return "line"
        if arcs and len(p) * len(q) >= SPARSE_FROM:
            return "sparse"
        high = clouds and geometry.x.shape[1] > LOW_DIMENSION
        return "assignment" if high and alike(p, q) else "simplex"
    lacks = {
        "line": "" if line else "points in one dimension and a cost that grows with distance",
        "assignment": "" if alike(p, q) else "as many targets as sources, all of equal weight",
        "sparse": "" if arcs else "points, and the cost sqeuclidean or euclidean",
    }.get(method, "")
    if lacks:
        raise IllPosed("method", f"{method} needs {lacks}; auto chooses what serves")
    return method


def _without_matrix(
    method: Method,
    clouds: PointClouds,
    p: Float[Tensor, "n"],
    q: Float[Tensor, "m"],
    max_iter: int,
    generator: torch.Generator | None,
    watch: Watch,
) -> Basis:
    if method == "line":
        go_on = watch(0, math.inf)
        return _line(clouds, p, q) if go_on else corner(clouds, p, q, "line", "interrupted")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    return by_columns(clouds, p, q, max_iter=max_iter, generator=generator, watch=watch)


def _answer(
    geometry: Geometry,
    wide: Geometry,
    a: Float[Tensor, "n"],
    b: Float[Tensor, "m"],
    basis: Basis,
    cautions: tuple[Caution, ...],
) -> ExactPlan:
    """Round to the type of the inputs, certify what is then returned, attach the gradients."""
    p, q = (w.detach().double().cpu() for w in (a, b))
    basis, beyond, arcs = _priced(wide, _centred(basis, p), p)
    unique = basis.status == "converged" and rigid(basis, arcs, p > 0, q > 0)
    f, g, mass = (w.to(a) for w in (basis.f, basis.g, basis.mass))
    given = replace(basis, f=f.double().cpu(), g=g.double().cpu(), mass=mass.double().cpu())
    if a.dtype != torch.float64:
        beyond = float(proved(wide, given.f, given.g).deficit.amax())
    certificate = _certificate(wide, given, p, q, beyond)
    stop = _judged(basis, certificate, PROVED[a.dtype], wide.bound(), float(p.sum()))
    rows, cols = basis.rows.to(a.device), basis.cols.to(a.device)
    prices = geometry.entries(rows, cols)  # (nnz,)
    # a plan cut short may still use pairs of infinite cost: those have a finite one in its stead
    prices = torch.where(prices.isfinite(), prices, wide.entries(basis.rows, basis.cols).to(a))
    value = (prices.detach().double() @ mass.double()).to(a)
    value = Envelope.apply(value, prices, a, b, mass, f, g)
    plan, method = SparsePlan(rows, cols, mass), basis.method
    return ExactPlan(plan, f, g, value, value, method, unique, certificate, stop, cautions)


def _centred(basis: Basis, p: Float[Tensor, "n"]) -> Basis:
    centre = p @ basis.f / p.sum()
    return replace(basis, f=basis.f - centre, g=basis.g + centre)


def _priced(geometry: Geometry, basis: Basis, p: Tensor) -> tuple[Basis, float, Pairs]:
    """Pass over all pairs: how far the potentials are from feasible, and the tight pairs.

    Those of column generation, which never saw most pairs, are made feasible: f is lowered by what
    each row lacks, and by a bound of the rounding with which that was computed.
    """
    proof = proved(geometry, basis.f, basis.g)
    if basis.method != "sparse":
        return basis, float(proof.deficit.amax()), proof.arcs
    assert isinstance(geometry, PointClouds)
    steps = (geometry.x.shape[1] + 6) * torch.finfo(torch.float64).eps
    rounding = steps * (geometry.bound() + basis.f.abs() + basis.g.abs().amax())
    lowered = replace(basis, f=basis.f - proof.deficit - rounding)
    return _centred(lowered, p), 0.0, proof.arcs


def _refuse_forbidden(basis: Basis, forbidden: Bool[Tensor, "n m"] | None) -> None:
    if forbidden is None or basis.status != "converged":
        return
    used = forbidden[basis.rows, basis.cols] & basis.mass.gt(NO_MASS * basis.mass.sum())
    if bool(used.any()):
        raise IllPosed(
            "geometry", "no plan avoids costs above 1e12 medians; such pairs count as forbidden"
        )


def _solved(
    method: Method,
    C: Float[Tensor, "n m"],
    p: Float[Tensor, "n"],
    q: Float[Tensor, "m"],
    max_iter: int,
    watch: Watch,
) -> Basis:
    """Solve with the matrix at hand, by assignment or network simplex."""
    if not watch(0, math.inf):
        return corner(CostMatrix(C), p, q, method, "interrupted")
    if method == "assignment":
        return _assignment(C, p, watch)
    try:
        vertex = network_simplex(p, q, C, max_iter=max_iter)
    except NotOptimal:
        return corner(CostMatrix(C), p, q, "simplex", "max_iter", max_iter)
    return Basis(vertex.rows, vertex.cols, vertex.mass, vertex.f, vertex.g, "simplex")


def _line(geometry: PointClouds, p: Float[Tensor, "n"], q: Float[Tensor, "m"]) -> Basis:
    """Match in order; potentials make every cell of the staircase tight.

    The costs are convex functions of x - y: sorted, C is Monge, and along any staircase of a Monge
    matrix such potentials are feasible everywhere.
    """
    by_x, by_y = geometry.x[:, 0].argsort(stable=True), geometry.y[:, 0].argsort(stable=True)
    rows, cols, mass = staircase(p[by_x], q[by_y])
    price = geometry.entries(by_x[rows], by_y[cols])
    rise, down = price.diff(), rows.diff() > 0
    f, g = torch.zeros_like(p), torch.zeros_like(q)
    f[by_x[1:]] = rise[down].cumsum(0)
    g[by_y] = torch.cat([price[:1], price[0] + rise[~down].cumsum(0)])
    some = mass > 0
    return Basis(by_x[rows[some]], by_y[cols[some]], mass[some], f, g, "line")


def _assignment(C: Float[Tensor, "n n"], p: Float[Tensor, "n"], watch: Watch) -> Basis:
    r"""Match by shortest augmenting paths, then find potentials by shortest paths.

    With sigma optimal, f solves `f_i <= f_k + R_i,sigma(k) - R_k,sigma(k)` for all i, k: a system
    without negative cycles, solved by Bellman and Ford's passes over the points that changed.
    """
    # the compiled routine starts from zero duals: constants of rows and columns slow it down
    least = C.amin(1)  # (n, n) -> (n,)
    R = C - least[:, None]
    R.sub_(R.amin(0))
    match = torch.from_numpy(linear_sum_assignment(R.numpy())[1])
    W = R.T[match]  # W[k, i] = R_i,sigma(k)
    W.sub_(W.diagonal()[:, None].clone())
    slack = NO_MASS * float(C.abs().amax())

    def step(state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        f, changed = state
        shorter = (W[changed] + f[changed, None]).amin(0)
        return torch.minimum(f, shorter), (shorter < f - slack).nonzero()[:, 0]

    start = torch.zeros_like(p), torch.arange(len(p))
    (f, _), stop = iterate(
        step,
        lambda state: float(len(state[1])),
        start,
        tol=0.5,
        max_iter=len(p),
        watch=quietly(watch),
    )
    f = f + least
    g = (C - f[:, None]).amin(0)
    return Basis(torch.arange(len(p)), match, p, f, g, "assignment", stop.status, stop.iterations)


def _certificate(
    geometry: Geometry, basis: Basis, p: Float[Tensor, "n"], q: Float[Tensor, "m"], beyond: float
) -> Certificate:
    rows, cols, mass = basis.rows, basis.cols, basis.mass
    off_a = torch.zeros_like(p).index_add(0, rows, mass) - p
    off_b = torch.zeros_like(q).index_add(0, cols, mass) - q
    gap = geometry.entries(rows, cols) @ mass - p @ basis.f - q @ basis.g
    return Certificate(float(off_a.abs().sum()), float(off_b.abs().sum()), beyond, float(gap))


def _judged(basis: Basis, seen: Certificate, share: float, scale: float, total: float) -> Stop:
    """Call an answer converged only where its certificate proves it, up to rounding."""
    proved = seen.duality_gap <= share * scale * total and seen.dual_infeasibility <= share * scale
    proved = proved and max(seen.marginal_error_a, seen.marginal_error_b) <= share * total
    lost = basis.status == "converged" and not proved
    return Stop("stagnated" if lost else basis.status, basis.spent, seen.duality_gap)
