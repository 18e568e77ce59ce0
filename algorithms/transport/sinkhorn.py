"""Entropic optimal transport between two measures of equal mass."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.errors import Caution, IllPosed
from algorithms.geometry import Geometry
from algorithms.iterate import Stop, Watch, unwatched
from algorithms.transport.implicit import Envelope, Optimum
from algorithms.transport.measures import costs, same_mass, weights
from algorithms.transport.rounding import round_plan, shrinking
from algorithms.transport.scaling import Problem, solve

# Half an ulp of a potential as large as max|C|, over epsilon, is an error of the plan's exponents.
# They average: L1 errors measured in float32 are 0.02 to 0.2 of it (n = 40 to 2000; d = 2, 50). A
# tol below this share of it is refused; only problems of a few points could have met it.
REACHABLE = 1 / 64


@dataclass(frozen=True)
class Certificate:
    """What shows how far the answer is from the optimum, recomputed in float64.

    Attributes:
        marginal_error_a: `|P 1 - a|_1` of the plan that is returned.
        marginal_error_b: `|P^T 1 - b|_1`, likewise.
        dual_value: value of the dual at (f, g), a lower bound of the optimum.
        duality_gap: an upper bound of the objective at the feasible rounding of the plan, minus
            `dual_value`: the optimum lies within this distance of `dual_value`.
    """

    marginal_error_a: float
    marginal_error_b: float
    dual_value: float
    duality_gap: float


@dataclass(frozen=True)
class EntropicPlan:
    """The coupling, its potentials (gauge `<f, a> = 0`), its costs, and how far to trust them."""

    plan: Float[Tensor, "n m"]
    f: Float[Tensor, "n"]
    g: Float[Tensor, "m"]
    value: Float[Tensor, ""]
    transport_cost: Float[Tensor, ""]
    certificate: Certificate
    stop: Stop
    cautions: tuple[Caution, ...]


def sinkhorn(
    geometry: Geometry,
    a: Float[Tensor, "n"] | None = None,
    b: Float[Tensor, "m"] | None = None,
    *,
    epsilon: float,
    tol: float = 1e-6,
    max_iter: int = 10_000,
    rounded: bool = False,
    watch: Watch = unwatched,
) -> EntropicPlan:
    r"""Solve `min_P <P, C> + epsilon KL(P | a b^T)` over `P >= 0`, `P 1 = a`, `P^T 1 = b`.

    C (n, m) is the cost matrix of `geometry`, a and b the weights of source and target,
    `KL(p|q) = sum p log(p/q) - p + q`. The optimum is
    `P_ij = a_i b_j exp((f_i + g_j - C_ij)/epsilon)`. Sinkhorn's alternating scaling of a stabilised
    kernel, over-relaxed once it is nearly linear, annealed when osc(C)/epsilon exceeds 1,000; the
    last half step is on g, so columns are exact.

    Shapes: geometry (n, m), a (n,), b (m,).

    Args:
        a: source weights, at least zero; None is uniform with mass one. A zero means absent: its
            row of the plan is zero and its potential the c-transform of g.
        b: target weights; rescaled to the mass of a where they differ by less than 1e-5 of it.
        epsilon: entropic strength, in units of C.
        tol: stop when the L1 errors of both marginals, together, are below this share of the mass.
        rounded: return the plan moved to exact marginals, at most `2 max(C) |error|_1` away in
            cost; `transport_cost` and `value` are then its own.
        watch: asked every ten sweeps whether to go on.

    Returns:
        An `EntropicPlan`: `plan`; `f`, `g` in the gauge `<f, a> = 0`; `value`, the whole objective
        at the plan; `transport_cost`, `<P, C>` alone; a `Certificate`; the `Stop`, with the error
        of the plan as residual; cautions. Potentials are rounded to the type of C before the plan
        is made of them: in float32 the error has a floor near 1e-8 max|C|/epsilon.

    Notes:
        Time O(n m) a sweep, about 1/epsilon sweeps; memory 2 n m besides C. float64 exponents.
        Gradients: `value` by the envelope theorem, dV/dC = P, dV/da = f, dV/db = g +
        2 epsilon (m - 1), m the mass: right along every change of a and b that keeps their masses
        equal. `plan`, `f`, `g`, `transport_cost` by the implicit function theorem, one linear
        system solved by conjugate gradients. Second derivatives of `value` are first ones of
        those. The plan's derivative with respect to an absent weight is taken as zero.

    References:
        Cuturi 2013, arXiv:1306.0895; Schmitzer 2019, arXiv:1610.06519, section 3 (stabilised
        kernel); Thibault, Chizat, Dossal, Papadakis 2021, arXiv:1711.01851 (over-relaxation);
        Altschuler, Weed, Rigollet 2017, arXiv:1705.09634, algorithm 2 (rounding).
    """
    C = costs(geometry)
    a, b = weights("a", a, C.shape[0], C), weights("b", b, C.shape[1], C)
    b, cautions = same_mass(a, b)
    _check(C.detach(), epsilon, tol)
    rows, columns = a.detach().nonzero()[:, 0], b.detach().nonzero()[:, 0]
    whole = len(rows) == len(a) and len(columns) == len(b)
    inner = (C, a, b) if whole else (C[rows][:, columns], a[rows], b[columns])
    f, g, plan, stop = _optimum(*inner, epsilon, tol=tol, max_iter=max_iter, watch=watch)
    with torch.no_grad():
        certificate, value = _measured(*inner, f, g, plan, epsilon)
    if rounded:
        with torch.no_grad():
            move = round_plan(plan, *inner[1:]) - plan
            certificate, value = _measured_again(certificate, *inner, plan + move, epsilon)
        plan = plan + move  # the optimum is feasible: rounding has no part in its derivatives
    if not whole:
        f, g, plan = _restored((C, a, b), f, g, plan, (rows, columns), epsilon)
    slope = 2 * epsilon * (a.detach().sum() - 1)
    value = Envelope.apply(value, C, a, b, plan, f, g + slope)
    cautions += _floor_caution(C.detach(), epsilon, stop, tol)
    return EntropicPlan(plan, f, g, value, (plan * C).sum(), certificate, stop, cautions)


def _check(C: Float[Tensor, "n m"], epsilon: float, tol: float) -> None:
    assert C.dtype in (torch.float32, torch.float64)
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise IllPosed("epsilon", f"is {epsilon}; it must be positive and finite")
    if not tol > 0:
        raise IllPosed("tol", f"is {tol}; it must be positive")
    floor = REACHABLE * _exponent_error(C, epsilon)
    if tol < floor:
        raise IllPosed(
            "tol",
            f"{tol:.1e} cannot be met in {str(C.dtype)[6:]}: max|C|/epsilon is"
            f" {float(C.abs().amax()) / epsilon:.1e} and rounding moves the marginals by more than"
            f" {floor:.1e}; ask for a larger tol or epsilon, for float64, or for transport.exact",
        )


def _exponent_error(C: Float[Tensor, "n m"], epsilon: float) -> float:
    return torch.finfo(C.dtype).eps / 2 * float(C.abs().amax()) / epsilon


def _floor_caution(
    C: Float[Tensor, "n m"], epsilon: float, stop: Stop, tol: float
) -> tuple[Caution, ...]:
    error = _exponent_error(C, epsilon)
    if stop.status != "stagnated" or stop.residual > error:
        return ()
    return (
        Caution(
            "rounding_floor",
            f"the error stays at {stop.residual:.1e}, above tol {tol:.1e}: potentials are rounded"
            f" to {str(C.dtype)[6:]}",
            f"ask for float64, or for tol above {error:.1e}",
        ),
    )


def _optimum(
    C: Float[Tensor, "n m"],
    a: Float[Tensor, "n"],
    b: Float[Tensor, "m"],
    epsilon: float,
    *,
    tol: float,
    max_iter: int,
    watch: Watch,
) -> tuple[Tensor, Tensor, Tensor, Stop]:
    """Solve for weights of mass one; return f, g and the plan of the true mass, with gradients."""
    with torch.no_grad():
        wide_a, wide_b = a.double(), b.double()
        mass = wide_a.sum()
        problem = Problem(C, wide_a / mass, wide_b / wide_b.sum(), epsilon)
        solved = solve(problem, tol=tol, max_iter=max_iter, watch=watch)
        g = solved.g - epsilon * mass.log()  # a b grows like mass^2, the plan like mass
        plan = solved.plan.mul_(mass.to(C.dtype))
    f, g, plan = Optimum.apply(C, a, b, (solved.f.to(C), g.to(C)), plan, epsilon)
    # <f, a> = 0 already: the difference is zero and carries the derivative of the gauge
    centre = (f @ a) / a.sum()
    centre = centre - centre.detach()
    return f - centre, g + centre, plan, solved.stop


def _measured(
    C: Float[Tensor, "n m"],
    a: Float[Tensor, "n"],
    b: Float[Tensor, "m"],
    f: Float[Tensor, "n"],
    g: Float[Tensor, "m"],
    P: Float[Tensor, "n m"],
    epsilon: float,
) -> tuple[Certificate, Float[Tensor, ""]]:
    r"""Compute the certificate, and the objective `<P, C> + eps KL(P | a b^T)`, in O(n + m).

    As `eps log(P/ab) = f + g - C`, the objective of P is `<P1, f> + <P^T 1, g> - eps (m(P) - m^2)`
    and the dual value `<a, f> + <b, g> - eps (m(P) - m^2)`. The rounding is Q + R with
    Q = diag(x) P diag(y) and R = da db^T / r of mass r, and by convexity of z log z
    `sum (Q + R) log((Q + R)/ab) <= sum Q log(Q/ab) + sum R log(R/ab) - q log(q/m) - r log(r/m)`,
    where the first sum is known like that of P and the second has a product form.
    """
    mu, nu = P.sum(1, dtype=torch.float64), P.sum(0, dtype=torch.float64)
    a, b, f, g = a.double(), b.double(), f.double(), g.double()
    mass = a.sum()
    excess = epsilon * (mu.sum() - mass**2)
    value, dual = mu @ f + nu @ g - excess, a @ f + b @ g - excess
    x, y, da, db = (z.double() for z in shrinking(P, a.to(P), b.to(P)))
    q_rows, q_columns = a - da, b - db
    r = da.sum()
    upper = q_rows @ (f + epsilon * x.log()) + q_columns @ (g + epsilon * y.log())
    upper -= epsilon * (torch.xlogy(mass - r, 1 - r / mass) + mass - mass**2)
    if float(r) > 0:
        product = torch.xlogy(da, da / a).sum() + torch.xlogy(db, db / b).sum()
        upper += da @ (C @ (db / r).to(C.dtype)).double()
        upper += epsilon * (product - torch.xlogy(r, r) - torch.xlogy(r, r / mass))
    # the true gap is not negative: rounding may say so by an ulp of the value
    gap = max(0.0, float(upper - dual))
    errors = float((mu - a).abs().sum()), float((nu - b).abs().sum())
    return Certificate(*errors, float(dual), gap), value.to(P.dtype)


def _measured_again(
    seen: Certificate,
    C: Float[Tensor, "n m"],
    a: Float[Tensor, "n"],
    b: Float[Tensor, "m"],
    P: Float[Tensor, "n m"],
    epsilon: float,
) -> tuple[Certificate, Float[Tensor, ""]]:
    """Replace marginal errors and objective by those of the rounded plan: its sums are a, b."""
    wide, a, b = P.double(), a.double(), b.double()
    errors = float((wide.sum(1) - a).abs().sum()), float((wide.sum(0) - b).abs().sum())
    entropy = torch.xlogy(wide, wide).sum() - torch.xlogy(a, a).sum() - torch.xlogy(b, b).sum()
    value = (wide * C).sum() + epsilon * (entropy - wide.sum() + a.sum() ** 2)
    return Certificate(*errors, seen.dual_value, seen.duality_gap), value.to(P.dtype)


def _restored(
    whole: tuple[Tensor, Tensor, Tensor],
    f: Float[Tensor, "k"],
    g: Float[Tensor, "l"],
    plan: Float[Tensor, "k l"],
    present: tuple[Tensor, Tensor],
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Put absent points back: no mass, and the potential that a vanishing mass there would have."""
    C, a, b = whole
    rows, columns = present
    no_row, no_column = (a == 0).nonzero()[:, 0], (b == 0).nonzero()[:, 0]
    z = b[columns].log() + (g - C[no_row][:, columns]) / epsilon
    f_absent = -epsilon * z.logsumexp(1)
    z = a[rows].log()[:, None] + (f[:, None] - C[rows][:, no_column]) / epsilon
    g_absent = -epsilon * z.logsumexp(0)
    f = torch.zeros_like(a).index_put((rows,), f).index_put((no_row,), f_absent)
    g = torch.zeros_like(b).index_put((columns,), g).index_put((no_column,), g_absent)
    return f, g, torch.zeros_like(C).index_put((rows[:, None], columns), plan)
