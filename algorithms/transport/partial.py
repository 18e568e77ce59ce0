"""Partial optimal transport, exact or entropic: the cheapest way to move a given mass."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from algorithms.entropic.implicit import Envelope
from algorithms.entropic.partial_entropic import EntropicPart, entropic_part
from algorithms.errors import Caution, IllPosed
from algorithms.geometry import Geometry
from algorithms.iterate import Status, Stop, Watch, unwatched
from algorithms.linear.forbidden import bounded
from algorithms.linear.staircase import NO_MASS, staircase
from algorithms.measures import PROVED, SAME_MASS, check_finite, costs, weights
from algorithms.simplex import NotOptimal, network_simplex
from algorithms.sparse import SparsePlan

PIVOTS, SWEEPS = 10_000_000, 10_000


@dataclass(frozen=True)
class Certificate:
    """What proves the plan optimal, recomputed from plan, potentials and price.

    Attributes:
        excess_a: `sum max(P 1 - a, 0)`, mass beyond the source weights.
        excess_b: `sum max(P^T 1 - b, 0)`, likewise.
        mass_error: `|sum P - mass|`.
        dual_infeasibility: `max(f_i + g_j + lam - C_ij, f_i, g_j, 0)`; of the entropic form, whose
            potentials need not stay below the cost, `max(f_i, g_j, 0)`.
        duality_gap: `<P, C> - <a, f> - <b, g> - lam mass`, or value less dual value of the entropic
            form; rounding, or an excess, may make it slightly negative.
    """

    excess_a: float
    excess_b: float
    mass_error: float
    dual_infeasibility: float
    duality_gap: float


@dataclass(frozen=True)
class PartialPlan:
    """The plan of the given mass, what it leaves, its potentials and price, and their proof."""

    plan: SparsePlan | None
    dense: Float[Tensor, "n m"] | None
    unmatched_a: Float[Tensor, "n"]
    unmatched_b: Float[Tensor, "m"]
    f: Float[Tensor, "n"]
    g: Float[Tensor, "m"]
    lam: Float[Tensor, ""]
    value: Float[Tensor, ""]
    transport_cost: Float[Tensor, ""]
    certificate: Certificate
    stop: Stop
    cautions: tuple[Caution, ...]


@dataclass(frozen=True)
class Basis:
    """A plan by entries, what it leaves, potentials and price, how they were found; float64."""

    rows: Int[Tensor, "nnz"]
    cols: Int[Tensor, "nnz"]
    moved: Float[Tensor, "nnz"]
    left_a: Float[Tensor, "n"]
    left_b: Float[Tensor, "m"]
    f: Float[Tensor, "n"]
    g: Float[Tensor, "m"]
    lam: float
    status: Status = "converged"
    spent: int = 0


def partial(
    geometry: Geometry,
    a: Float[Tensor, "n"] | None = None,
    b: Float[Tensor, "m"] | None = None,
    *,
    mass: float,
    epsilon: float | None = None,
    tol: float = 1e-6,
    max_iter: int | None = None,
    watch: Watch = unwatched,
) -> PartialPlan:
    r"""Solve `min_P <P, C>` over `P >= 0`, `P 1 <= a`, `P^T 1 <= b`, `sum P = mass`.

    C (n, m) is the cost matrix of `geometry`, a and b cap what leaves and arrives. One dummy point
    on each side, free to reach, takes what is not moved: a balanced problem, solved by network
    simplex. The dual is `max <a, f> + <b, g> + lam mass` over `f_i + g_j + lam <= C_ij`,
    `f <= 0`, `g <= 0`; lam is the price of one more unit of mass. Given `epsilon`, the objective is
    `<P, C> + epsilon KL(P | a b^T)`, and the optimum `a_i b_j exp((f_i+g_j+lam-C_ij)/epsilon)` with
    the same signs: found by exact ascent of the dual, over (f, lam) and (g, lam) by turns, which is
    Dykstra's iteration with two of its projections taken together, with Newton steps in between.

    Shapes: geometry (n, m), a (n,), b (m,).

    Args:
        a: source weights, at least zero; None is uniform with mass one.
        b: target weights, likewise; of any total.
        mass: what travels, positive and at most the smaller total; beyond it by less than 1e-5
            of it counts as equal.
        epsilon: entropic strength in units of C; None is the exact form, without entropy.
        tol: of the entropic form: stop when the row sums miss those that f and the caps ask for by
            less than this share of the mass, in L1.
        max_iter: pivots of the network simplex, or sweeps of the entropic form; None is 10,000,000
            or 10,000. When pivots run out, the answer is a feasible plan far from optimal, with
            status `max_iter` and the gap in its certificate.
        watch: asked before the solve, and at every sweep.

    Returns:
        A `PartialPlan`: `plan`, sparse, of the exact form, or `dense` of the entropic one, and None
        for the other; `unmatched_a`, `unmatched_b`, the mass that stays at
        each point; `f`, `g` (zero where some mass stays) and `lam`; `value`, the objective,
        and `transport_cost`, `<P, C>`; a `Certificate`; the `Stop`, with the gap, or what `tol`
        bounds, as residual; cautions. Costs above 1e12 medians are never used.

    Notes:
        float64 on the CPU inside, whatever the inputs are; time about O(n m (n + m)), memory
        O(n m). The value is convex in `mass` with slope lam, and the plan also solves
        `min_P <P, C> + rho_a |a - P 1|_1 + rho_b |b - P^T 1|_1` when rho_a + rho_b = lam. At the
        largest mass lam and one of f, g are determined up to a shift only.
        Gradients: envelope theorem, dV/dC = P, dV/da = f, dV/db = g; subgradients where plan or
        potentials are not unique, one-sided where a change would make the mass infeasible. In the
        entropic form dV/da = f + epsilon (m(b) - P 1 / a), and likewise for b; its
        `transport_cost` has no gradient.

    References:
        Caffarelli, McCann 2010, doi:10.4007/annals.2010.171.673 (the problem, its Lagrangian);
        Chapel, Alaya, Gasso 2020, arXiv:2002.08276, proposition 1 (dummy points); Benamou,
        Carlier, Cuturi, Nenna, Peyre 2015, arXiv:1412.5154, section 5 (entropic form).
    """
    check_finite(geometry)
    wide, like = geometry.wide(), geometry.like
    C, forbidden, cautions = bounded(costs(wide))
    a, b = weights("a", a, C.shape[0], like), weights("b", b, C.shape[1], like)
    p, q = (w.detach().double().cpu() for w in (a, b))
    mass = _movable(mass, float(p.sum()), float(q.sum()))
    if epsilon is not None:
        sweeps = SWEEPS if max_iter is None else max_iter
        allowed = geometry.matrix() if forbidden is None else _barred(geometry.matrix(), forbidden)
        part = entropic_part(allowed, a, b, mass, epsilon, tol=tol, max_iter=sweeps, watch=watch)
        return _entropic(part, a, b, cautions)
    if watch(0, math.inf):
        basis = _solved(C, p, q, mass, PIVOTS if max_iter is None else max_iter)
    else:
        basis = _shared(C, p, q, mass, "interrupted")
    if forbidden is not None and basis.status == "converged":
        used = forbidden[basis.rows, basis.cols] & basis.moved.gt(NO_MASS * mass)
        if bool(used.any()):
            raise IllPosed("geometry", "no plan of this mass avoids costs above 1e12 medians")
    left_a, left_b, f, g = (t.to(a) for t in (basis.left_a, basis.left_b, basis.f, basis.g))
    moved, lam = basis.moved.to(a), torch.tensor(basis.lam, dtype=a.dtype, device=a.device)
    plan = SparsePlan(basis.rows.to(a.device), basis.cols.to(a.device), moved)
    certificate = _certificate(C, p, q, mass, plan, (f, g, lam))
    prices = geometry.entries(plan.rows, plan.cols)  # (nnz,)
    value = (prices.detach().double() @ moved.double()).to(a)
    value = Envelope.apply(value, prices, a, b, moved, f, g)
    stop = _judged(basis, certificate, PROVED[a.dtype], float(C.abs().amax()), mass)
    return PartialPlan(
        plan, None, left_a, left_b, f, g, lam, value, value, certificate, stop, cautions
    )  # fmt: skip


def _barred(C: Float[Tensor, "n m"], forbidden: Bool[Tensor, "n m"]) -> Float[Tensor, "n m"]:
    """Make costs of forbidden pairs infinite: their entries of an entropic plan are zero."""
    return torch.where(forbidden.to(C.device), math.inf, C)


def _entropic(
    part: EntropicPart, a: Tensor, b: Tensor, cautions: tuple[Caution, ...]
) -> PartialPlan:
    left_a, left_b = (
        (w.detach() - part.plan.sum(axis)).clamp_min(0) for w, axis in ((a, 1), (b, 0))
    )
    certificate = Certificate(*part.off, part.beyond, part.gap)
    return PartialPlan(
        None, part.plan, left_a, left_b, part.f, part.g, part.lam, part.value,
        part.transport_cost, certificate, part.stop, cautions,
    )  # fmt: skip


def _movable(mass: float, mass_a: float, mass_b: float) -> float:
    """Return the mass that travels: at most the smaller total, which it may exceed by rounding."""
    least = min(mass_a, mass_b)
    if not (math.isfinite(mass) and 0 < mass <= least * (1 + SAME_MASS)):
        raise IllPosed(
            "mass",
            f"is {mass:.9g}; a has mass {mass_a:.9g} and b has {mass_b:.9g}: at most the smaller"
            " can travel, and more than none",
        )
    return min(mass, least)


def _solved(
    C: Float[Tensor, "n m"],
    p: Float[Tensor, "n"],
    q: Float[Tensor, "m"],
    mass: float,
    max_iter: int,
) -> Basis:
    """Solve the balanced problem with one dummy a side, then take its potentials apart.

    With F, G the extended potentials and 0 the dummies: f = F + G_0 and g = G + F_0 are at most the
    cost 0 of a dummy, and f_i + g_j - F_0 - G_0 = F_i + G_j is at most the cost.
    """
    n, m = C.shape
    total = max(float(p.sum()), float(q.sum()))
    spare = [float(w.sum()) - mass for w in (q, p)]
    low = C.amin()
    wide = C.new_zeros(n + 1, m + 1)
    wide[:n, :m] = C - low
    # dear enough that no mass goes from dummy to dummy: that would save at most one arc
    wide[n, m] = 2 * wide.amax() + 1 if float(wide.amax()) == 0 else 2.5 * wide.amax()
    sources, targets = (
        torch.cat([w, w.new_tensor([s if s > NO_MASS * total else 0.0])])
        for w, s in zip((p, q), spare, strict=True)
    )
    try:
        vertex = network_simplex(sources, targets, wide, max_iter=max_iter)
    except NotOptimal:
        return _shared(C, p, q, mass, "max_iter", max_iter)
    stays, comes = vertex.cols == m, vertex.rows == n
    true = ~(stays | comes)
    left_a, left_b = torch.zeros_like(p), torch.zeros_like(q)
    left_a[vertex.rows[stays & ~comes]] = vertex.mass[stays & ~comes]
    left_b[vertex.cols[comes & ~stays]] = vertex.mass[comes & ~stays]
    from_a, from_b = vertex.f[n], vertex.g[m]
    return Basis(
        vertex.rows[true],
        vertex.cols[true],
        vertex.mass[true],
        left_a,
        left_b,
        (vertex.f[:n] + from_b).clamp_max(0),
        (vertex.g[:m] + from_a).clamp_max(0),
        float(low - from_a - from_b),
    )


def _shared(
    C: Float[Tensor, "n m"],
    p: Float[Tensor, "n"],
    q: Float[Tensor, "m"],
    mass: float,
    status: Status,
    spent: int = 0,
) -> Basis:
    """Answer with a feasible plan, in which all weights take the same share, and a bound."""
    u, v = p * (mass / p.sum()), q * (mass / q.sum())
    rows, cols, moved = staircase(u, v)
    some = moved > 0
    zeros = torch.zeros_like(p), torch.zeros_like(q)
    return Basis(
        rows[some], cols[some], moved[some], (p - u).clamp_min(0), (q - v).clamp_min(0), *zeros,
        float(C.amin()), status, spent,
    )  # fmt: skip


def _certificate(
    C: Float[Tensor, "n m"],
    p: Float[Tensor, "n"],
    q: Float[Tensor, "m"],
    mass: float,
    plan: SparsePlan,
    duals: tuple[Tensor, Tensor, Tensor],
) -> Certificate:
    """Recompute every constraint, primal and dual, from what is returned."""
    f, g, lam = (t.double().cpu() for t in duals)
    rows, cols, moved = plan.rows.cpu(), plan.cols.cpu(), plan.mass.double().cpu()
    mu = torch.zeros_like(p).index_add(0, rows, moved)
    nu = torch.zeros_like(q).index_add(0, cols, moved)
    beyond = torch.stack([(f[:, None] + g + lam - C).amax(), f.amax(), g.amax()]).amax()
    gap = moved @ C[rows, cols] - p @ f - q @ g - lam * mass
    return Certificate(
        float((mu - p).clamp_min(0).sum()),
        float((nu - q).clamp_min(0).sum()),
        float((moved.sum() - mass).abs()),
        max(0.0, float(beyond)),
        float(gap),
    )


def _judged(basis: Basis, seen: Certificate, share: float, scale: float, mass: float) -> Stop:
    """Call an answer converged only where its certificate proves it, up to rounding."""
    off = max(seen.excess_a, seen.excess_b, seen.mass_error)
    proved = off <= share * mass and seen.dual_infeasibility <= share * scale
    proved = proved and seen.duality_gap <= share * scale * mass
    lost = basis.status == "converged" and not proved
    return Stop("stagnated" if lost else basis.status, basis.spent, seen.duality_gap)
