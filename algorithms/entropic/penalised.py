"""Entropic transport with any marginals, solved, measured and differentiable."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.entropic import unbalanced
from algorithms.entropic.aprox import (
    conjugate,
    hard,
    needs_mass,
    penalty,
    pinned,
    relaxed,
    stiffness,
)
from algorithms.entropic.implicit import Envelope, Give, Optimum
from algorithms.entropic.objective import (
    Matrices,
    Products,
    check_masses,
    dual_value,
    feasible_plan,
    missed,
    objective,
    upper_bound,
    whole_objective,
)
from algorithms.entropic.potentials import balanced_optimum, check_reachable, restored
from algorithms.entropic.unbalanced import Problem, distance, softmin
from algorithms.errors import Caution, IllPosed
from algorithms.iterate import Stop, Watch
from algorithms.marginals import KL, Balanced, Marginal, Range
from algorithms.measures import Extent, all_finite, extent, same_mass

BALANCED = Balanced()


@dataclass(frozen=True)
class Certificate:
    """What shows how far the answer is from the optimum, recomputed in float64.

    Attributes:
        marginal_error_a: `|P 1 - a|_1` of the plan that is returned when a is balanced, the
            distance to what is allowed when it has a range, 0 when any marginal is allowed.
        marginal_error_b: the same of `P^T 1` and b.
        optimality_error: by how much the marginals miss those that are optimal for (f, g), in L1,
            both sides together: the gradient of the dual.
        mass_identity: with KL on both sides, how far `<a, exp(-f/rho_a)>` and `<b, exp(-g/rho_b)>`
            are from the mass of the plan, at most; both are equal to it at the optimum. Else None.
        dual_value: value of the dual at (f, g), a lower bound of the optimum.
        duality_gap: an upper bound of the objective at a feasible plan, minus `dual_value`: the
            optimum lies within this distance of `dual_value`. None where forbidden pairs kept the
            plan from being made feasible.
    """

    marginal_error_a: float
    marginal_error_b: float
    optimality_error: float
    mass_identity: float | None
    dual_value: float
    duality_gap: float | None


@dataclass(frozen=True)
class Ask:
    """How a problem is to be solved: what the arrays do not say."""

    epsilon: float
    marginal_a: Marginal
    marginal_b: Marginal
    tol: float
    max_iter: int
    watch: Watch
    rounded: bool = False

    @property
    def balanced(self) -> bool:
        """Tell whether both marginals are given."""
        return isinstance(self.marginal_a, Balanced) and isinstance(self.marginal_b, Balanced)

    @property
    def hard(self) -> bool:
        """Tell whether both sides forbid some marginals."""
        return hard(self.marginal_a) and hard(self.marginal_b)

    def problem(self, C: Tensor, a: Tensor, b: Tensor) -> Problem:
        """Return the problem for these arrays, out of any graph."""
        a, b = a.detach().double(), b.detach().double()
        return Problem(C.detach(), a, b, self.epsilon, self.marginal_a, self.marginal_b)


@dataclass(frozen=True)
class Found:
    """A solved problem: potentials, plan and value with gradients, and what was measured."""

    f: Float[Tensor, "n"]
    g: Float[Tensor, "m"]
    plan: Float[Tensor, "n m"]
    rows: Float[Tensor, "n"]
    columns: Float[Tensor, "m"]
    value: Float[Tensor, ""]
    certificate: Certificate
    stop: Stop


def simplified(marginal: Marginal) -> Marginal:
    """Call a range without width what it is."""
    return BALANCED if marginal == Range(1.0, 1.0) else marginal


def checked(
    largest: float, a: Float[Tensor, "n"], b: Float[Tensor, "m"], ask: Ask
) -> tuple[Float[Tensor, "m"], tuple[Caution, ...]]:
    """Refuse what has no answer; return b, of the mass of a where both must travel."""
    cautions: tuple[Caution, ...] = ()
    if ask.balanced:
        b, cautions = same_mass(a, b)
    check_masses(ask.marginal_a, ask.marginal_b, a, b)
    check_reachable(largest, a.dtype, ask.epsilon, ask.tol)
    return b, cautions


def entropic(
    C: Float[Tensor, "n m"],
    a: Float[Tensor, "n"],
    b: Float[Tensor, "m"],
    ask: Ask,
    *,
    f0: Float[Tensor, "n"] | None = None,
    g0: Float[Tensor, "m"] | None = None,
    within: Extent | None = None,
) -> Found:
    """Solve, measure, put back the points that no mass can reach, attach all derivatives.

    `within` is the extent of C, if that is known.
    """
    finite = (within or extent(C)).finite
    rows, columns = _served(C.detach(), a.detach(), b.detach(), ask, finite)
    whole = len(rows) == len(a) and len(columns) == len(b)
    inner = (C, a, b) if whole else (C[rows][:, columns], a[rows], b[columns])
    p = ask.problem(*inner)
    begun = _begun(p, None if f0 is None else f0[rows], None if g0 is None else g0[columns])
    if ask.balanced and begun is None and (finite or all_finite(p.C)):
        f, g, plan, stop, sums = balanced_optimum(
            *inner, ask.epsilon, tol=ask.tol, max_iter=ask.max_iter, watch=ask.watch
        )
    else:
        f, g, plan, stop, sums = _optimum(p, inner, begun, ask)
    with torch.no_grad():
        certificate, value = measured(p, f, g, plan, sums)
    if ask.rounded:
        with torch.no_grad():
            move = feasible_plan(p, plan) - plan
            certificate, value = _measured_again(certificate, p, plan + move)
        plan = plan + move  # the optimum is feasible: rounding has no part in its derivatives
    if not whole:
        lost = _lost(ask, a, b, rows, columns)
        value = value + lost
        certificate = replace(certificate, dual_value=certificate.dual_value + lost)
        marginals = ask.marginal_a, ask.marginal_b
        f, g, plan = restored((C, a, b), f, g, plan, (rows, columns), ask.epsilon, marginals)
    value = with_derivatives(value, (C, a, b), (f, g, plan), ask)
    if ask.rounded or not whole or plan.requires_grad:
        sums = plan.sum(1), plan.sum(0)
    mu, nu = (z.to(plan) for z in sums)
    return Found(f, g, plan, mu, nu, value, certificate, stop)


def measured(
    p: Problem,
    f: Float[Tensor, "n"],
    g: Float[Tensor, "m"],
    P: Float[Tensor, "n m"],
    sums: tuple[Float[Tensor, "n"], Float[Tensor, "m"]] | None = None,
) -> tuple[Certificate, Float[Tensor, ""]]:
    """Compute the certificate and the objective of the plan of f, g; its marginals are `sums`."""
    wide = torch.float64
    mu, nu = sums or (P.sum(1, dtype=wide), P.sum(0, dtype=wide))
    f, g = f.double(), g.double()
    certificate = certified(p, f, g, mu, nu, Matrices(P, p.C))
    return certificate, objective(p, f, g, mu, nu).to(P.dtype)


def certified(
    p: Problem,
    f: Float[Tensor, "n"],
    g: Float[Tensor, "m"],
    mu: Float[Tensor, "n"],
    nu: Float[Tensor, "m"],
    plan: Products,
) -> Certificate:
    """Compute the certificate of potentials and the marginals of their plan."""
    mass = mu.sum()
    dual = dual_value(p, f, g, mass)
    # the true gap is not negative: rounding may say so by an ulp of the value
    gap = (upper_bound(p, f, g, mu, nu, plan) - dual).clamp_min(0)
    apart = distance(p.marginal_a, p.a, f, mu) + distance(p.marginal_b, p.b, g, nu)
    identity = None
    if isinstance(p.marginal_a, KL) and isinstance(p.marginal_b, KL):
        masses = p.a @ (-f / p.marginal_a.rho).exp(), p.b @ (-g / p.marginal_b.rho).exp()
        identity = float(max((masses[0] - mass).abs(), (masses[1] - mass).abs()))
    return Certificate(
        missed(p.marginal_a, p.a, mu),
        missed(p.marginal_b, p.b, nu),
        float(apart),
        identity,
        float(dual),
        float(gap) if bool(gap.isfinite()) else None,
    )


def _measured_again(
    seen: Certificate, p: Problem, P: Float[Tensor, "n m"]
) -> tuple[Certificate, Float[Tensor, ""]]:
    """Replace marginal errors and objective by those of the rounded plan."""
    mu, nu = P.sum(1, dtype=torch.float64), P.sum(0, dtype=torch.float64)
    errors = missed(p.marginal_a, p.a, mu), missed(p.marginal_b, p.b, nu)
    seen = replace(seen, marginal_error_a=errors[0], marginal_error_b=errors[1])
    return seen, whole_objective(p, P, mu, nu).to(P.dtype)


def _served(C: Tensor, a: Tensor, b: Tensor, ask: Ask, finite: bool) -> tuple[Tensor, Tensor]:
    """Index the points with weight that some allowed pair serves; refuse what cannot do without."""
    here, there = a > 0, b > 0
    if finite:
        return here.nonzero()[:, 0], there.nonzero()[:, 0]
    allowed = C.isfinite() & here[:, None] & there
    served = allowed.any(1), allowed.any(0)
    sides = ("a", here, served[0], ask.marginal_a), ("b", there, served[1], ask.marginal_b)
    for field, present, reached, marginal in sides:
        left = (present & ~reached).nonzero()[:, 0]
        if len(left) and needs_mass(marginal):
            raise IllPosed(
                "geometry",
                f"every pair of {len(left)} points of {field} is forbidden, the first is"
                f" {int(left[0])}, and marginal_{field} leaves no point without mass; drop these"
                " points, relax the marginal, or widen delta",
            )
    if not bool(served[0].any()):
        raise IllPosed("geometry", "every pair of points that carry weight is forbidden")
    return served[0].nonzero()[:, 0], served[1].nonzero()[:, 0]


def _begun(
    p: Problem, f0: Float[Tensor, "n"] | None, g0: Float[Tensor, "m"] | None
) -> Float[Tensor, "n"] | None:
    """Return the source potential to start from."""
    if f0 is not None or g0 is None:
        return None if f0 is None else f0.detach().double()
    return relaxed(p.marginal_a, softmin(p, g0.detach().double()), p.epsilon)


def _optimum(
    p: Problem, inner: tuple[Tensor, Tensor, Tensor], begun: Tensor | None, ask: Ask
) -> tuple[Tensor, Tensor, Tensor, Stop, tuple[Tensor, Tensor]]:
    """Solve by penalised sweeps; return f, g and the plan with gradients, and its marginals."""
    C, a, b = inner
    with torch.no_grad():
        solved = unbalanced.solve(p, f=begun, tol=ask.tol, max_iter=ask.max_iter, watch=ask.watch)
        give = Give(
            _give(ask.marginal_a, p.a, solved.f, p.epsilon),
            _give(ask.marginal_b, p.b, solved.g, p.epsilon),
        )
    potentials = solved.f.to(C), solved.g.to(C)
    f, g, plan = Optimum.apply(C, a, b, potentials, solved.plan, p.epsilon, give)
    if ask.balanced:
        centre = (f @ a) / a.sum()
        centre = centre - centre.detach()
        f, g = f - centre, g + centre
    return f, g, plan, solved.stop, (solved.rows, solved.columns)


def _give(
    marginal: Marginal, a: Float[Tensor, "n"], f: Float[Tensor, "n"], epsilon: float
) -> Float[Tensor, "n"]:
    return torch.where(pinned(marginal, f), torch.inf, epsilon * a * stiffness(marginal, f))


def _lost(ask: Ask, a: Tensor, b: Tensor, rows: Tensor, columns: Tensor) -> float:
    """Add up what unserved points cost: their penalties, and their part of `eps m(a) m(b)`."""
    whole, lost = [], 0.0
    for w, kept, marginal in ((a, rows, ask.marginal_a), (b, columns, ask.marginal_b)):
        total = float(w.detach().double().sum())
        served = float(w.detach().double()[kept].sum())
        none = torch.zeros((), dtype=torch.float64)
        # a mere absence of weight costs nothing, and its marginal may not do without mass
        if not needs_mass(marginal):
            lost += (total - served) * float(penalty(marginal, none))
        whole.append((total, served))
    (total_a, served_a), (total_b, served_b) = whole
    return lost + ask.epsilon * (total_a * total_b - served_a * served_b)


def with_derivatives(
    value: Tensor,
    inputs: tuple[Tensor, Tensor, Tensor],
    found: tuple[Tensor, Tensor, Tensor],
    ask: Ask,
) -> Tensor:
    r"""Attach dV/dC = P and `dV/da = -phi*(-f) - eps (P 1 / a - m(b))`, and so for b.

    Balanced potentials are known up to a constant, and f for a, g + 2 eps (m - 1) for b is right
    along every change that keeps the masses equal.
    """
    (C, a, b), (f, g, plan) = inputs, found
    if ask.balanced:
        slope = 2 * ask.epsilon * (a.detach().sum() - 1)
        return Envelope.apply(value, C, a, b, plan, f, g + slope)
    ratio_a = _ratio(plan, a, (f, g, C, b), ask.epsilon)
    ratio_b = _ratio(plan.T, b, (g, f, C.T, a), ask.epsilon)
    along_a, along_b = slopes(ask, (a, b), (f, g), (ratio_a, ratio_b))
    return Envelope.apply(value, C, a, b, plan, along_a, along_b)


def slopes(
    ask: Ask,
    weights: tuple[Tensor, Tensor],
    potentials: tuple[Tensor, Tensor],
    ratios: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """Return dV/da and dV/db of a problem that is not balanced."""
    (a, b), (f, g) = weights, potentials
    along_a = -conjugate(ask.marginal_a, -f) - ask.epsilon * (ratios[0] - b.sum())
    return along_a, -conjugate(ask.marginal_b, -g) - ask.epsilon * (ratios[1] - a.sum())


def _ratio(
    P: Float[Tensor, "n m"],
    a: Float[Tensor, "n"],
    rest: tuple[Tensor, Tensor, Tensor, Tensor],
    epsilon: float,
) -> Float[Tensor, "n"]:
    """Divide the marginal by the weights; where there is no weight, by a vanishing one."""
    absent = (a == 0).nonzero()[:, 0]
    ratio = P.sum(1) / torch.where(a > 0, a, 1.0)
    if not len(absent):
        return ratio
    f, g, C, b = rest
    there = (b > 0).nonzero()[:, 0]
    z = b[there].log() + (f[absent][:, None] + g[there] - C[absent][:, there]) / epsilon
    return ratio.index_put((absent,), z.exp().sum(1))
