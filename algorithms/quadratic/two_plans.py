"""Two plans updated in turn: the search for stationary unbalanced Gromov-Wasserstein plans."""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.entropic.damped import Soft, soften
from algorithms.entropic.implicit import solve_coupled
from algorithms.entropic.rounding import round_plan
from algorithms.errors import IllPosed
from algorithms.iterate import Stop, Watch, iterate
from algorithms.quadratic.objective import Pair
from algorithms.quadratic.penalties import Strengths
from algorithms.spaces import Cloud

# Sweeps of one inner problem: it starts where the last one ended, and the next one goes on.
SWEEPS = 200
# The inner error asked for, as a share of the last change of the plan; never looser than LOOSE.
INNER_SHARE, LOOSE = 0.1, 1e-3
# A share that led to no descent is tightened by this factor.
TIGHTER = 0.1
# Extrapolation from so many past updates; weights that add up to more than WILD are not used.
DEPTH, WILD, RIDGE = 4, 20.0, 1e-12
# Before the change is this small, extrapolation may lead into another, worse, basin.
NEAR = 0.3
# Halvings of a step that raised the objective, and the rise, relative to it, that is rounding.
HALVINGS, RISE = 12, 1e-11
# Steps without a smaller change before the loop gives up.
PATIENCE = 100
# Exponents, local cost over epsilon, beyond this are rounded by more than 1e-4.
SHARPEST = 1e12
# Log-masses stay within: the squares of their exponentials are numbers.
LARGEST_LOG_MASS = 300.0
# Logarithms of plans start here: what is less counts for nothing once multiplied by the plan.
SMALLEST = 1e-300


@dataclass(frozen=True)
class Question:
    """Two spaces of points that have mass, weights scaled to mass one, and the true masses."""

    pair: Pair
    by: Strengths
    mass_a: float
    mass_b: float

    def log_ratios(self, R: Float[Tensor, "n m"], entropy: float | None = None) -> float:
        r"""Compute `rho_a sum mu log(mu/a) + rho_b ... + eps sum R log(R/(a b))`, true masses.

        R has mass one; terms of exact marginals are left out. `entropy` is the last sum for the
        scaled weights, where it is known.
        """
        a, b, by, log = self.pair.a, self.pair.b, self.by, torch.xlogy
        mu, nu = R.sum(1), R.sum(0)  # (n, m) -> (n,), (m,)
        if entropy is None:
            entropy = float(log(R, R).sum() - log(mu, a).sum() - log(nu, b).sum())
        at_a, at_b = math.log(self.mass_a), math.log(self.mass_b)
        terms = [
            (by.rho_a, float((log(mu, mu) - log(mu, a)).sum()) - at_a),
            (by.rho_b, float((log(nu, nu) - log(nu, b)).sum()) - at_b),
            (by.epsilon, entropy - at_a - at_b),
        ]
        return sum(w * kl for w, kl in terms if w is not None)

    def at_no_mass(self) -> float:
        """Compute the objective of the plan zero, exact marginals not counted."""
        ends = (self.by.rho_a or 0.0) * self.mass_a**2 + (self.by.rho_b or 0.0) * self.mass_b**2
        return ends + self.by.epsilon * (self.mass_a * self.mass_b) ** 2


@dataclass(frozen=True)
class Shape:
    """A plan R of mass one, its local cost `L(R)`, and `Question.log_ratios` of it."""

    R: Float[Tensor, "n m"]
    local: Float[Tensor, "n m"]
    ratios: float


@dataclass(frozen=True)
class Past:
    """One update: the best second plan that was found, and its distance from the first plan."""

    shape: Shape
    error: Float[Tensor, "n m"]


@dataclass(frozen=True)
class Search:
    """The plan `exp(log_mass) R`, and how the search came there.

    Attributes:
        value: the objective.
        change: how far the best second plan was from the plan that it was sought for.
        inner: error of the inner problem that led here.
        share: the part of `change` that the next inner error may be.
        history: the last updates, all of which lowered the objective.
    """

    shape: Shape
    log_mass: float
    value: float
    f: Float[Tensor, "n"]
    g: Float[Tensor, "m"]
    change: float
    inner: float = math.inf
    share: float = INNER_SHARE
    history: tuple[Past, ...] = ()


@dataclass(frozen=True)
class Second:
    """The best second plan for a first one: shape, log-mass, potentials, inner error."""

    shape: Shape
    log_mass: float
    f: Float[Tensor, "n"]
    g: Float[Tensor, "m"]
    error: float


def searched(
    asked: Question, plan0: Float[Tensor, "n m"] | None, tol: float, max_iter: int, watch: Watch
) -> tuple[Search, Stop]:
    """Update the plan until the best second plan is the plan itself."""
    return iterate(
        lambda state: _updated(asked, state, tol),
        lambda state: max(state.change, state.inner) if math.isfinite(state.inner) else 2.0,
        _start(asked, plan0),
        tol=tol,
        max_iter=max_iter,
        patience=PATIENCE,
        watch=watch,
    )


def _start(asked: Question, plan0: Float[Tensor, "n m"] | None) -> Search:
    a, b = asked.pair.a, asked.pair.b
    R = a[:, None] * b if plan0 is None else plan0 / plan0.sum()
    shape = _shape(asked, _exact(asked, R))
    largest, epsilon = asked.pair.alpha * float(shape.local.amax()), asked.by.epsilon
    if largest > SHARPEST * epsilon:
        raise IllPosed(
            "epsilon",
            f"is {epsilon:.3g} and squared costs reach {largest:.3g}: in exponents beyond"
            f" {SHARPEST:.0e} rounding decides; raise epsilon, or rescale both spaces alike",
        )
    sides = ((asked.mass_a, asked.by.rho_a), (asked.mass_b, asked.by.rho_b))
    exact = [mass for mass, rho in sides if rho is None]  # a marginal that is exact gives the mass
    masses = exact or [asked.mass_a, asked.mass_b]
    log_mass = sum(math.log(mass) for mass in masses) / len(masses)
    value, log_mass = _valued(asked, shape, log_mass)
    if not math.isfinite(value):
        raise IllPosed("a", "the objective overflows float64; rescale weights, costs or strengths")
    f, g = torch.zeros_like(a), torch.zeros_like(b)
    return Search(shape, log_mass, value, f, g, 2.0)


def _shape(asked: Question, R: Float[Tensor, "n m"], entropy: float | None = None) -> Shape:
    ratios = asked.log_ratios(R, entropy)
    if asked.pair.alpha == 0:
        return Shape(R, torch.zeros_like(R), ratios)
    local = asked.pair.local_cost(R)
    if not bool(local.isfinite().all()):
        field = "x" if isinstance(asked.pair.X, Cloud) else "Cx"
        raise IllPosed(field, "squares of the costs overflow float64; rescale both spaces alike")
    return Shape(R, local, ratios)


def _exact(asked: Question, R: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
    """Move R to the marginals that are asked for: only feasible plans have comparable values."""
    a, b, by = asked.pair.a, asked.pair.b, asked.by
    if by.rho_a is None and by.rho_b is None:
        return round_plan(R, a, b)
    if by.rho_a is None:
        return R * (a / R.sum(1).clamp_min(SMALLEST))[:, None]
    return R * (b / R.sum(0).clamp_min(SMALLEST)) if by.rho_b is None else R


def _valued(asked: Question, shape: Shape, log_mass: float) -> tuple[float, float]:
    r"""Compute the objective of `m R` and log m, which is the best one where that is known.

    It is `m^2 (A + W (2 log m - 1)) + (1 - alpha) m <M, R> + const`, W the sum of the strengths
    and `A = alpha <L(R), R> + 2 log_ratios(R)`; without M it is least at `log m = -A/(2 W)`.
    """
    alpha, M, by = asked.pair.alpha, asked.pair.M, asked.by
    # a sum of squares, whatever rounding makes of it
    A = alpha * max(0.0, _dot(shape.local, shape.R)) + 2 * shape.ratios
    if by.soft and (M is None or alpha == 1):
        log_mass = _held(-A / (2 * by.total))
    linear = 0.0 if M is None or alpha == 1 else (1 - alpha) * _dot(M, shape.R)
    mass = math.exp(log_mass)
    value = mass * (mass * (A + by.total * (2 * log_mass - 1)) + linear)
    return value + asked.at_no_mass(), log_mass


def _held(log_mass: float) -> float:
    return min(max(log_mass, -LARGEST_LOG_MASS), LARGEST_LOG_MASS)


def _dot(A: Float[Tensor, "n m"], B: Float[Tensor, "n m"]) -> float:
    return float(A.reshape(-1) @ B.reshape(-1))


def second_plan(
    asked: Question, state: Search, first: Shape, tol: float, sweeps: int = SWEEPS
) -> Second:
    r"""Find the best Q for a first plan: entropic transport with its local cost.

    All is divided by m(P). A constant in the cost changes the mass of Q and not its shape, so the
    costs are shifted to be positive, and the mass comes in closed form: `log m(Q) = -G/W`,
    `G = <cost, R_Q> + log_ratios(R_Q) + log_ratios(R) + W log m(P)`. Potentials and mass start
    from those of `state`.
    """
    alpha, M, by = asked.pair.alpha, asked.pair.M, asked.by
    cost = alpha * first.local
    if M is not None and alpha < 1:
        cost.add_(M, alpha=(1 - alpha) / (2 * math.exp(state.log_mass)))
    low = float(cost.amin())
    problem = Soft(
        cost.sub_(low), asked.pair.a, asked.pair.b, by.epsilon, by.rho_a, by.rho_b
    )  # fmt: skip
    inner = soften(problem, state.f, state.g, tol=tol, max_iter=sweeps)
    q, entropy = inner.plan.sum(), None
    R = _exact(asked, inner.plan.div_(q))
    if by.soft:
        # R = a b exp((f + g - cost)/eps) / q: its entropy without one logarithm an entry
        paid = R.sum(1) @ inner.f + R.sum(0) @ inner.g
        entropy = (float(paid) - _dot(cost, R)) / by.epsilon - float(q.log())
    found, log_mass = _shape(asked, R, entropy), state.log_mass
    if by.soft:
        G = _dot(cost, R) + low + found.ratios + first.ratios
        log_mass = _held(-(G / by.total + state.log_mass))
    return Second(found, log_mass, inner.f, inner.g, inner.stop.residual)


def _updated(asked: Question, state: Search, tol: float) -> Search:
    """Replace P by the best Q for a plan extrapolated from P; less boldly where that is no descent.

    P and Q are scaled to share their mass.
    """
    goal = max(INNER_SHARE * tol, min(LOOSE, state.share * state.change))
    first = _extrapolated(state)
    found = second_plan(asked, state, first, goal)
    shared = (state.log_mass + found.log_mass) / 2
    value, log_mass = _valued(asked, found.shape, shared)
    rose = value > state.value + RISE * (abs(state.value) + asked.at_no_mass())
    if rose and first is not state.shape:
        return _updated(asked, replace(state, f=found.f, g=found.g, history=()), tol)
    error = found.shape.R - first.R
    change = float(error.abs().sum()) + abs(shared - state.log_mass)
    state = replace(state, f=found.f, g=found.g, change=change, inner=found.error)
    if rose:
        return _shortened(asked, state, found)
    history = (*state.history[1 - DEPTH :], Past(found.shape, error))
    return replace(state, shape=found.shape, log_mass=log_mass, value=value, history=history)


def _extrapolated(state: Search) -> Shape:
    r"""Combine past second plans so that their errors cancel best (Anderson 1965, type II).

    The combination has mass one and its entries may be negative; its local cost is that of a plan.
    """
    k = len(state.history)
    if k < 2 or state.change > NEAR:
        return state.shape
    gram = torch.tensor(
        [[_dot(one.error, other.error) for one in state.history] for other in state.history],
        dtype=torch.float64,
    )
    gram += RIDGE * gram.trace() * torch.eye(k, dtype=torch.float64)
    w, singular = torch.linalg.solve_ex(gram, torch.ones(k, 1, dtype=torch.float64))
    w = (w / w.sum())[:, 0].tolist()
    if int(singular) or not sum(map(abs, w)) <= WILD:
        return state.shape
    R, local, ratios = torch.zeros_like(state.shape.R), torch.zeros_like(state.shape.R), 0.0
    for share, past in zip(w, state.history, strict=True):
        R.add_(past.shape.R, alpha=share)
        local.add_(past.shape.local, alpha=share)
        ratios += share * past.shape.ratios
    return Shape(R, local, ratios)


def _shortened(asked: Question, state: Search, found: Second) -> Search:
    """Go t of the way from P to Q, t halved until the objective falls: convex in Q, it must."""
    old, new = state.shape, found.shape
    weight, t = math.exp(min(found.log_mass - state.log_mass, LARGEST_LOG_MASS)), 0.5
    for _ in range(HALVINGS):
        part = t * weight / (1 - t + t * weight)
        R = torch.lerp(old.R, new.R, part)
        shape = Shape(R, torch.lerp(old.local, new.local, part), asked.log_ratios(R))
        heavier = state.log_mass + math.log(1 - t + t * weight)
        value, log_mass = _valued(asked, shape, heavier)
        if value < state.value:
            return replace(state, shape=shape, log_mass=log_mass, value=value, history=())
        t /= 2
    return replace(state, share=state.share * TIGHTER, history=())


def slope(asked: Question, pair: Pair, P: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
    """Compute the derivative of the objective in each entry of P that is not zero."""
    by, m, mu, nu = asked.by, P.sum(), P.sum(1), P.sum(0)
    logs = (P.clamp_min(SMALLEST).log() - pair.a.log()[:, None]).sub_(pair.b.log())
    mean = (P * logs).sum()
    slopes = logs.mul_(m).add_(mean).mul_(2 * by.epsilon)
    if pair.alpha > 0:
        slopes.add_(pair.gradient(P))
    elif pair.M is not None:
        slopes.add_(pair.M)
    if by.rho_a is not None:
        rows = mu.clamp_min(SMALLEST).log() - pair.a.log()
        slopes.add_((m * rows + mu @ rows)[:, None], alpha=2 * by.rho_a)
    if by.rho_b is not None:
        columns = nu.clamp_min(SMALLEST).log() - pair.b.log()
        slopes.add_(m * columns + nu @ columns, alpha=2 * by.rho_b)
    return slopes


def multipliers(
    by: Strengths, P: Float[Tensor, "n m"], D: Float[Tensor, "n m"]
) -> tuple[Float[Tensor, "n"], Float[Tensor, "m"]]:
    """Fit `D_ij = lam_a_i + lam_b_j`, weighted by P, where the marginals are exact; zero else."""
    PD = P * D
    rows, columns = PD.sum(1), PD.sum(0)  # (n, m) -> (n,), (m,)
    if by.rho_a is None and by.rho_b is None:
        return solve_coupled(P, rows, columns)
    lam_a = rows / P.sum(1) if by.rho_a is None else torch.zeros_like(rows)
    lam_b = columns / P.sum(0) if by.rho_b is None else torch.zeros_like(columns)
    return lam_a, lam_b
