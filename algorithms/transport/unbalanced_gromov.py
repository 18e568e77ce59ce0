"""Unbalanced Gromov-Wasserstein, plain and fused."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.errors import Caution, IllPosed
from algorithms.iterate import Stop, Watch, unwatched
from algorithms.measures import same_mass, weights
from algorithms.quadratic.objective import Pair
from algorithms.quadratic.penalties import Parts, Strengths, mass_bound, parts, total
from algorithms.quadratic.two_plans import (
    SMALLEST,
    SWEEPS,
    Question,
    Search,
    multipliers,
    searched,
    second_plan,
    slope,
)
from algorithms.spaces import Cloud, Relations, Space, space

# Below this mass, in units of sqrt(m(a) m(b)), nothing is left.
DESTROYED = 1e-6
# The certificate's own inner problem gets so many times the sweeps of a step.
THOROUGH = 10

# The squared product of two masses is still a number.
LARGEST_MASS = 1e75


@dataclass(frozen=True)
class Certificate:
    """What shows how nearly stationary the plan is, in float64, from the plan that is returned.

    Attributes:
        tightness: `|m(Q) - m(P)| / m(P)`, Q the best second plan for the first plan P.
        fixed_point_residual: `|Q - P|_1 / m(P)`.
        stationarity: `sum P |slope|`, in units of `value`: the objective's slope in each entry of
            the plan. Changing every entry by at most a share s changes `value` by no more than
            s times this, to first order.
        marginal_gap_a: `|P 1 - a|_1`; a measure of error where rho_a is None.
        marginal_gap_b: `|P^T 1 - b|_1`, likewise.
        quadratic_kl_a: `KL(P1 (x) P1 | a (x) a)`.
        quadratic_kl_b: `KL(P^T 1 (x) P^T 1 | b (x) b)`.
        quadratic_kl_plan: `KL(P (x) P | (a b^T) (x) (a b^T))`.
        lower_bound: what every plan costs at least, from masses alone; None where C has negative
            entries.
    """

    tightness: float
    fixed_point_residual: float
    stationarity: float
    marginal_gap_a: float
    marginal_gap_b: float
    quadratic_kl_a: float
    quadratic_kl_b: float
    quadratic_kl_plan: float
    lower_bound: float | None


@dataclass(frozen=True)
class UnbalancedMatch:
    """The plan, its objective and its parts, and how far to trust them."""

    plan: Float[Tensor, "n m"]
    rows: Float[Tensor, "n"]
    columns: Float[Tensor, "m"]
    mass: Float[Tensor, ""]
    value: Float[Tensor, ""]
    gw: Float[Tensor, ""]
    transport_cost: Float[Tensor, ""]
    penalty_a: Float[Tensor, ""]
    penalty_b: Float[Tensor, ""]
    entropy: Float[Tensor, ""]
    certificate: Certificate
    stop: Stop
    cautions: tuple[Caution, ...]


def unbalanced_gromov(
    x: Float[Tensor, "n d"] | None = None,
    y: Float[Tensor, "m e"] | None = None,
    Cx: Float[Tensor, "n n"] | None = None,
    Cy: Float[Tensor, "m m"] | None = None,
    a: Float[Tensor, "n"] | None = None,
    b: Float[Tensor, "m"] | None = None,
    C: Float[Tensor, "n m"] | None = None,
    *,
    alpha: float = 1.0,
    rho_a: float | None,
    rho_b: float | None,
    epsilon: float,
    tol: float = 1e-6,
    max_iter: int = 1000,
    plan0: Float[Tensor, "n m"] | None = None,
    watch: Watch = unwatched,
) -> UnbalancedMatch:
    r"""Minimise the unbalanced, possibly fused, Gromov-Wasserstein objective over plans P >= 0.

    With `KL2(p|q) = KL(p (x) p | q (x) q)` the objective is

        alpha sum_ijkl (Cx_ik - Cy_jl)^2 P_ij P_kl + (1 - alpha) <C, P>
            + rho_a KL2(P1|a) + rho_b KL2(P^T 1|b) + epsilon KL2(P|a b^T).

    Cx (n, n) and Cy (m, m) are the costs within both spaces, or squared distances between the
    points x or y, which then serve through factors only. Two plans are updated in turn: for P given
    the best Q solves entropic unbalanced transport, with the local cost of P; both share the mass,
    and Q replaces P. A step that raised the objective is halved.

    Shapes: x (n, d) or Cx (n, n); y (m, e) or Cy (m, m); a (n,), b (m,), C and plan0 (n, m).

    Args:
        x: source points; exactly one of x and Cx is given, and one of y and Cy.
        Cx: costs within the source; may be asymmetric.
        a: source weights of any mass; None is uniform with mass one. A zero means absent.
        b: target weights, likewise.
        C: linear cost, needed where alpha < 1.
        alpha: weight of the quadratic part, 1 - alpha of the linear one.
        rho_a: strength of the source marginal in units of the quadratic cost; None asks for
            `P 1 = a`. With None on both sides the masses must agree, and the problem is entropic
            Gromov-Wasserstein, with epsilon multiplied by twice the mass.
        rho_b: the same for the target.
        epsilon: entropic strength, in units of the quadratic cost.
        tol: stop when Q and P differ by less: L1 distance of the shapes plus that of log-masses.
        max_iter: updates of the plan, each with at most 200 sweeps inside.
        plan0: where to start, rescaled to its best mass; None is the product of the weights.
        watch: asked before every update.

    Returns:
        An `UnbalancedMatch`: `plan`, its `rows` and `columns` sums and its `mass`; `value`, the
        objective, and its parts: `gw`, the fourfold sum; `transport_cost`, `<C, P>`; `penalty_a`,
        `penalty_b`, `entropy`, with their strengths in; a `Certificate`; the `Stop`, with the last
        change as residual; cautions.

    Notes:
        The answer is a stationary point; others, better ones too, may exist: try several plan0.
        Shape and mass are kept apart. The shape does not depend on the masses of a and b if
        alpha = 1; the mass of a given shape is known in closed form. Fused problems with C > 0
        have a local minimum at P = 0.
        Time a step O(n m d) for clouds, O(n m (n + m)) for matrices, and O(n m) a sweep; memory
        6 n m; float64 inside.
        Gradients: of `value`, by the envelope theorem at the fixed point (P is stationary): the
        explicit derivatives of the objective, P held fixed, in x, y, Cx, Cy, C, a and b, plus the
        potential of an exact marginal. Where both are exact, right along changes of a and b that
        keep their masses equal. The derivative in an absent weight is taken as zero.

    References:
        Sejourne, Vialard, Peyre 2021, arXiv:2009.04266, section 3 and algorithm 1; Thual et al.
        2022, arXiv:2206.09398, equation 4 (fused; the same alpha); Sejourne, Vialard, Peyre 2022,
        arXiv:2201.00730, section 3 (the shift).
    """
    X, Y = space("x", x, "Cx", Cx), space("y", y, "Cy", Cy)
    by = Strengths(epsilon, rho_a, rho_b)
    _check(by, alpha, tol, C)
    a, b = weights("a", a, X.size, X.like), weights("b", b, Y.size, X.like)
    for field, w in (("a", a), ("b", b)):
        if float(w.detach().double().sum()) > LARGEST_MASS:
            raise IllPosed(field, f"has a mass above {LARGEST_MASS:.0e}; rescale the weights")
    cautions: tuple[Caution, ...] = ()
    if rho_a is None and rho_b is None:
        b, cautions = same_mass(a, b)
    rows, columns = a.detach().nonzero()[:, 0], b.detach().nonzero()[:, 0]
    pair = _double(_kept(Pair(X, Y, a, b, C, alpha), rows, columns))
    fixed = _detached(pair)
    with torch.no_grad():
        asked = _question(fixed, by)
        found, stop = searched(asked, _initial(plan0, rows, columns), tol, max_iter, watch)
        P = (found.shape.R * math.exp(found.log_mass)).to(a.dtype).double()
        seen = parts(fixed, P)
        certificate, lams = _certificate(asked, P, fixed, seen, found, tol)
    seen = parts(pair, P)  # again, for the derivatives of the inputs
    value = total(seen, alpha, by)
    for w, lam in ((pair.a, lams[0]), (pair.b, lams[1])):
        value = value + lam @ (w - w.detach())  # nothing, with the multiplier as derivative
    strengths = (rho_a or 0.0, rho_b or 0.0, epsilon)
    kls = (seen.kl_a, seen.kl_b, seen.kl_plan)
    penalties = [w * kl for w, kl in zip(strengths, kls, strict=True)]
    plan = a.new_zeros(X.size, Y.size).index_put((rows[:, None], columns), P.to(a.dtype))
    value, gw, linear, *penalties = (
        t.to(a.dtype) for t in (value, seen.gw, seen.transport_cost, *penalties)
    )
    cautions += _cautions(asked, float(P.sum()), stop, found.inner, tol)
    return UnbalancedMatch(
        plan=plan,
        rows=plan.sum(1),
        columns=plan.sum(0),
        mass=plan.sum(),
        value=value,
        gw=gw,
        transport_cost=linear,
        penalty_a=penalties[0],
        penalty_b=penalties[1],
        entropy=penalties[2],
        certificate=certificate,
        stop=stop,
        cautions=cautions,
    )


def _check(by: Strengths, alpha: float, tol: float, C: Tensor | None) -> None:
    for field, value in (("epsilon", by.epsilon), ("rho_a", by.rho_a), ("rho_b", by.rho_b)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise IllPosed(field, f"is {value}; it must be positive and finite")
    if not 0 <= alpha <= 1:
        raise IllPosed("alpha", f"is {alpha}; it must be between 0 and 1")
    if not tol > 0:
        raise IllPosed("tol", f"is {tol}; it must be positive")
    if C is None and alpha < 1:
        raise IllPosed("C", f"is missing; alpha is {alpha:.4g}, below 1: give the linear cost")
    if C is not None and not bool(C.isfinite().all()):
        raise IllPosed("C", "holds NaN or infinity; every entry must be finite")


def _kept(pair: Pair, rows: Tensor, columns: Tensor) -> Pair:
    """Drop the points that have no mass."""
    n, m = pair.shape
    if len(rows) == n and len(columns) == m:
        return pair
    M = None if pair.M is None else pair.M[rows][:, columns]
    X, Y = _part(pair.X, rows), _part(pair.Y, columns)
    return Pair(X, Y, pair.a[rows], pair.b[columns], M, pair.alpha)


def _part(Z: Space, at: Tensor) -> Space:
    return Cloud(Z.x[at]) if isinstance(Z, Cloud) else Relations(Z.C[at][:, at])


def _double(pair: Pair) -> Pair:
    M = None if pair.M is None else pair.M.double()
    X, Y = (
        Cloud(Z.x.double()) if isinstance(Z, Cloud) else Relations(Z.C.double())
        for Z in (pair.X, pair.Y)
    )
    return Pair(X, Y, pair.a.double(), pair.b.double(), M, pair.alpha)


def _detached(pair: Pair) -> Pair:
    M = None if pair.M is None else pair.M.detach()
    X, Y = (
        Cloud(Z.x.detach()) if isinstance(Z, Cloud) else Relations(Z.C.detach())
        for Z in (pair.X, pair.Y)
    )
    return Pair(X, Y, pair.a.detach(), pair.b.detach(), M, pair.alpha)


def _question(pair: Pair, by: Strengths) -> Question:
    mass_a, mass_b = pair.a.sum(), pair.b.sum()
    unit = Pair(pair.X, pair.Y, pair.a / mass_a, pair.b / mass_b, pair.M, pair.alpha)
    return Question(unit, by, float(mass_a), float(mass_b))


def _initial(plan0: Tensor | None, rows: Tensor, columns: Tensor) -> Float[Tensor, "k l"] | None:
    """Take the start of the points that have mass; refuse what is no plan."""
    if plan0 is None:
        return None
    if not bool(plan0.isfinite().all()) or bool((plan0 < 0).any()):
        raise IllPosed("plan0", "has negative or non-finite entries; all must be finite and >= 0")
    start = plan0[rows][:, columns].detach().double()
    if not float(start.sum()) > 0:
        raise IllPosed("plan0", "has no mass between points that have some")
    return start


def _certificate(
    asked: Question, P: Float[Tensor, "n m"], pair: Pair, seen: Parts, found: Search, tol: float
) -> tuple[Certificate, tuple[Tensor, Tensor]]:
    """Measure the plan; return the multipliers of exact marginals too."""
    m = float(P.sum())
    best = second_plan(asked, found, found.shape, tol / THOROUGH, THOROUGH * SWEEPS)
    Q = best.shape.R * math.exp(best.log_mass)
    off = slope(asked, pair, P)
    lam_a, lam_b = multipliers(asked.by, P, off)
    off = off - lam_a[:, None] - lam_b
    negative = pair.M is not None and pair.alpha < 1 and bool((pair.M < 0).any())
    return Certificate(
        tightness=abs(float(Q.sum()) - m) / max(m, SMALLEST),
        fixed_point_residual=float((Q - P).abs().sum()) / max(m, SMALLEST),
        stationarity=float((P * off.abs()).sum()),
        marginal_gap_a=float((P.sum(1) - pair.a).abs().sum()),
        marginal_gap_b=float((P.sum(0) - pair.b).abs().sum()),
        quadratic_kl_a=float(seen.kl_a),
        quadratic_kl_b=float(seen.kl_b),
        quadratic_kl_plan=float(seen.kl_plan),
        lower_bound=None if negative else mass_bound(asked.mass_a, asked.mass_b, asked.by),
    ), (lam_a, lam_b)


def _cautions(
    asked: Question, mass: float, stop: Stop, inner: float, tol: float
) -> tuple[Caution, ...]:
    found: list[Caution] = []
    by, largest = asked.by, math.sqrt(asked.mass_a * asked.mass_b)
    if mass < DESTROYED * largest:
        found.append(
            Caution(
                "everything_destroyed",
                f"the plan has mass {mass:.3g} between measures of mass {asked.mass_a:.4g} and"
                f" {asked.mass_b:.4g}",
                f"rho_a + rho_b + epsilon is {by.total:.3g}, too little for these costs: raise rho",
            )
        )
    if stop.status in ("max_iter", "stagnated"):
        found.append(
            Caution(
                "not_converged",
                f"the plan still changed by {stop.residual:.1e} of its mass, above tol {tol:.1e},"
                f" after {stop.iterations} updates",
                f"the inner error was {inner:.1e}; raise max_iter or epsilon, now {by.epsilon:.3g}",
            )
        )
    return tuple(found)
