"""Exact optimal transport between two measures of equal mass."""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from algorithms.errors import Caution, IllPosed
from algorithms.geometry import CostMatrix, Geometry, PointClouds
from algorithms.iterate import Status, Stop, Watch, iterate, quietly, unwatched
from algorithms.simplex import NotOptimal, network_simplex
from algorithms.sparse import SparsePlan
from algorithms.transport.forbidden import bounded
from algorithms.transport.implicit import Envelope
from algorithms.transport.measures import PROVED, check_finite, costs, same_mass, weights
from algorithms.transport.staircase import NO_MASS, staircase

# Uniform clouds in more dimensions than this are matched by shortest augmenting paths: measured
# with potentials 1.3 to 2.2 times faster than network simplex at d = 20, 50 (n = 1000, 2000), and
# 4 times slower at d = 2 (n = 1000).
LOW_DIMENSION = 10
# Reduced costs below this share of max|C| are zero: sums along a tree of potentials round so.
TIGHT = 1e-12
# Entries of the cost held at once where the whole matrix is not needed.
BLOCK = 1 << 20


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


@dataclass(frozen=True)
class Basis:
    """A plan by entries, potentials, and how they were found; all float64."""

    rows: Int[Tensor, "nnz"]
    cols: Int[Tensor, "nnz"]
    mass: Float[Tensor, "nnz"]
    f: Float[Tensor, "n"]
    g: Float[Tensor, "m"]
    method: str
    status: Status = "converged"
    spent: int = 0


def exact(
    geometry: Geometry,
    a: Float[Tensor, "n"] | None = None,
    b: Float[Tensor, "m"] | None = None,
    *,
    max_iter: int = 10_000_000,
    watch: Watch = unwatched,
) -> ExactPlan:
    r"""Solve `min_P <P, C>` over `P >= 0`, `P 1 = a`, `P^T 1 = b`.

    C (n, m) is the cost matrix of `geometry`, a and b the weights of source and target. Points on
    a line are matched in order; uniform clouds of equal size in more than ten dimensions by
    shortest augmenting paths; all else by network simplex. f and g solve the dual,
    `max <a, f> + <b, g>` over `f_i + g_j <= C_ij`.

    Shapes: geometry (n, m), a (n,), b (m,).

    Args:
        a: source weights, at least zero; None is uniform with mass one.
        b: target weights; rescaled to the mass of a where they differ by less than 1e-5 of it.
        max_iter: pivots of the network simplex. When they run out, the answer is a feasible plan
            far from optimal, with status `max_iter` and the gap in its certificate.
        watch: asked before the solve, and between passes of those methods that have some.

    Returns:
        An `ExactPlan`: the sparse `plan`; `f`, `g` in the gauge `<f, a> = 0`; `value` and
        `transport_cost`, both `<P, C>`; `method` (`line`, `assignment` or `simplex`);
        `dual_unique`, whether f, g are unique up to a shift on the points that have mass; a
        `Certificate`; the `Stop`, with the gap as residual (pivots of a solve that ends well are
        not counted: 0); cautions. Costs above 1e12 medians are never used.

    Notes:
        float64 on the CPU inside, whatever the inputs are; time about O(n m (n + m)), on a line
        O(n log n + m log m) and then O(n m) for the certificate, in blocks.
        Gradients: dV/dC = P, dV/da = f, dV/db = g, along changes that keep the masses equal;
        subgradients where `dual_unique` is false or the plan is not unique.

    References:
        Peyre, Cuturi 2019, arXiv:1803.00567, section 3; Crouse 2016, doi:10.1109/TAES.2016.140952
        (assignment); Santambrogio 2015, doi:10.1007/978-3-319-20828-2, section 2.2 (line).
    """
    check_finite(geometry)
    wide, like = geometry.wide(), geometry.like
    n, m = wide.shape
    a, b = weights("a", a, n, like), weights("b", b, m, like)
    b, cautions = same_mass(a, b)
    p, q = (w.detach().double().cpu() for w in (a, b))
    if _on_line(wide):
        if not math.isfinite(wide.bound()):
            raise IllPosed("geometry", "costs overflow float64; rescale the points")
        basis = _line(wide, p, q) if watch(0, math.inf) else _corner(wide, p, q, "interrupted")
        return _answer(geometry, wide, a, b, basis, cautions)
    C, forbidden, more = bounded(costs(wide))
    basis = _solved(wide, C, p, q, max_iter, watch)
    _refuse_forbidden(basis, forbidden)
    return _answer(geometry, CostMatrix(C), a, b, basis, cautions + more)


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
    centre = p @ basis.f / p.sum()
    basis = replace(basis, f=basis.f - centre, g=basis.g + centre)
    beyond, arcs = _tight(wide, basis.f, basis.g)
    unique = basis.status == "converged" and _rigid(basis, arcs, p > 0, q > 0)
    f, g, mass = (w.to(a) for w in (basis.f, basis.g, basis.mass))
    given = replace(basis, f=f.double().cpu(), g=g.double().cpu(), mass=mass.double().cpu())
    if a.dtype != torch.float64:
        beyond, _ = _tight(wide, given.f, given.g)
    certificate = _certificate(wide, given, p, q, beyond)
    stop = _judged(basis, certificate, PROVED[a.dtype], wide.bound(), float(p.sum()))
    rows, cols = basis.rows.to(a.device), basis.cols.to(a.device)
    prices = geometry.entries(rows, cols)  # (nnz,)
    value = (prices.detach().double() @ mass.double()).to(a)
    value = Envelope.apply(value, prices, a, b, mass, f, g)
    plan, method = SparsePlan(rows, cols, mass), basis.method
    return ExactPlan(plan, f, g, value, value, method, unique, certificate, stop, cautions)


def _on_line(geometry: Geometry) -> bool:
    return isinstance(geometry, PointClouds) and geometry.x.shape[1] == 1


def _refuse_forbidden(basis: Basis, forbidden: Bool[Tensor, "n m"] | None) -> None:
    if forbidden is None or basis.status != "converged":
        return
    used = forbidden[basis.rows, basis.cols] & basis.mass.gt(NO_MASS * basis.mass.sum())
    if bool(used.any()):
        raise IllPosed(
            "geometry", "no plan avoids costs above 1e12 medians; such pairs count as forbidden"
        )


def _solved(
    geometry: Geometry,
    C: Float[Tensor, "n m"],
    p: Float[Tensor, "n"],
    q: Float[Tensor, "m"],
    max_iter: int,
    watch: Watch,
) -> Basis:
    """Choose between assignment and network simplex by shape."""
    if not watch(0, math.inf):
        return _corner(CostMatrix(C), p, q, "interrupted")
    high = isinstance(geometry, PointClouds) and geometry.x.shape[1] > LOW_DIMENSION
    alike = len(p) == len(q) and bool((torch.cat([p, q]) / p[0] - 1).abs().amax() < NO_MASS * 100)
    if high and alike:
        return _assignment(C, p, watch)
    try:
        vertex = network_simplex(p, q, C, max_iter=max_iter)
    except NotOptimal:
        return _corner(CostMatrix(C), p, q, "max_iter", max_iter)
    return Basis(vertex.rows, vertex.cols, vertex.mass, vertex.f, vertex.g, "simplex")


def _corner(geometry: Geometry, p: Tensor, q: Tensor, status: Status, spent: int = 0) -> Basis:
    """Answer with a feasible plan, the north-west corner's, and with feasible potentials."""
    rows, cols, mass = staircase(p, q)
    C = geometry.matrix()
    f = C.amin(1)  # (n, m) -> (n,)
    some = mass > 0
    g = (C - f[:, None]).amin(0)  # (n, m) -> (m,)
    method = "line" if _on_line(geometry) else "simplex"
    return Basis(rows[some], cols[some], mass[some], f, g, method, status, spent)


def _line(geometry: Geometry, p: Float[Tensor, "n"], q: Float[Tensor, "m"]) -> Basis:
    """Match in order; potentials make every cell of the staircase tight.

    Both costs are convex functions of x - y: sorted, C is Monge, and along any staircase of a Monge
    matrix such potentials are feasible everywhere.
    """
    assert isinstance(geometry, PointClouds)
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


def _tight(
    geometry: Geometry, f: Float[Tensor, "n"], g: Float[Tensor, "m"]
) -> tuple[float, tuple[Tensor, Tensor]]:
    """Pass over `f_i + g_j - C_ij` by blocks: its largest positive value, and where it is zero."""
    n, m = geometry.shape
    zero = -TIGHT * geometry.bound()
    beyond, arcs = 0.0, []
    rows = max(1, BLOCK // m)
    for i in range(0, n, rows):
        excess = f[i : i + rows, None] + g - geometry.band(i, i + rows).matrix()  # (rows, m)
        beyond = max(beyond, float(excess.amax()))
        near, col = excess.ge(zero).nonzero(as_tuple=True)
        arcs.append((near + i, col))
    row, col = (torch.cat(ends) for ends in zip(*arcs, strict=True))
    return beyond, (row, col)


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


def _rigid(
    basis: Basis, arcs: tuple[Tensor, Tensor], in_a: Bool[Tensor, "n"], in_b: Bool[Tensor, "m"]
) -> bool:
    """Decide whether the potentials of points with mass are unique up to one shift.

    Parts of the support that no entry joins may shift against each other by t, up for rows and
    down for columns, as long as no tight arc from a part to another forbids it: they are rigid
    exactly when the graph of tight arcs (row to column) and entries (both ways) is strongly
    connected.
    """
    rows, cols = (torch.cat(ends) for ends in zip(arcs, (basis.rows, basis.cols), strict=True))
    here = in_a[rows] & in_b[cols]
    n, size = len(in_a), len(in_a) + len(in_b)
    tail = torch.cat([rows[here], basis.cols + n])
    head = torch.cat([cols[here] + n, basis.rows])
    ones = torch.ones(len(tail)).numpy()
    graph = coo_array((ones, (tail.numpy(), head.numpy())), shape=(size, size)).tocsr()
    _, part = connected_components(graph, directed=True, connection="strong")
    return len(torch.from_numpy(part)[torch.cat([in_a, in_b])].unique()) == 1
