"""Sinkhorn divergence between two measures."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.entropic.implicit import Envelope, Optimum
from algorithms.entropic.penalised import BALANCED, Ask, checked, entropic, measured, simplified
from algorithms.entropic.penalised import Certificate as Entropic
from algorithms.entropic.potentials import largest_cost, restored
from algorithms.errors import Caution, IllPosed
from algorithms.geometry import PointClouds
from algorithms.iterate import Status, Stop, Watch, iterate, quietly, unwatched
from algorithms.marginals import Balanced, Free, Marginal, Range
from algorithms.measures import costs, weights

# Entries of the cost that one pass of softmins holds at once.
BLOCK = 1 << 22
# Sums of plan times cost are rounded by a few units in the last place of the largest cost.
ROUNDING = 16 * torch.finfo(torch.float64).eps
# Averaged sweeps halve the error or better, whatever epsilon; twenty without progress mean that
# rounding is all there is.
PATIENCE = 20
_BEST_FIRST: tuple[Status, ...] = (
    "converged",
    "stagnated",
    "max_iter",
    "interrupted",
    "diverged",
)


@dataclass(frozen=True)
class Certificate:
    """What shows how far the answer is from the divergence, recomputed in float64.

    Attributes:
        gap_ab: duality gap of `value_ab`: the optimum lies within this distance above it.
        gap_aa: likewise for `value_aa`.
        gap_bb: likewise for `value_bb`.
        marginal_error_a: `|P 1 - a|_1` of the plan between a and b.
        marginal_error_b: `|P^T 1 - b|_1`, likewise.
        marginal_error_aa: `|P 1 - a|_1` of the plan between a and itself.
        marginal_error_bb: `|P 1 - b|_1` of the plan between b and itself.
        lower: the divergence is not below; follows from the gaps, with room for rounding.
        upper: the divergence is not above, likewise.
    """

    gap_ab: float
    gap_aa: float
    gap_bb: float
    marginal_error_a: float
    marginal_error_b: float
    marginal_error_aa: float
    marginal_error_bb: float
    lower: float
    upper: float


@dataclass(frozen=True)
class Divergence:
    """The divergence, its three terms, their potentials, and how far to trust them."""

    divergence: Float[Tensor, ""]
    value_ab: Float[Tensor, ""]
    value_aa: Float[Tensor, ""]
    value_bb: Float[Tensor, ""]
    f: Float[Tensor, "n"]
    g: Float[Tensor, "m"]
    f_aa: Float[Tensor, "n"]
    g_bb: Float[Tensor, "m"]
    certificate: Certificate
    stop: Stop
    cautions: tuple[Caution, ...]


@dataclass(frozen=True)
class Term:
    """One entropic problem, solved: its dual value with gradients, potentials, gap and errors."""

    value: Float[Tensor, ""]
    f: Float[Tensor, "k"]
    g: Float[Tensor, "l"]
    gap: float
    errors: tuple[float, float]
    stop: Stop


def divergence(
    geometry: PointClouds,
    a: Float[Tensor, "n"] | None = None,
    b: Float[Tensor, "m"] | None = None,
    *,
    epsilon: float,
    marginal: Marginal = BALANCED,
    tol: float = 1e-6,
    max_iter: int = 10_000,
    watch: Watch = unwatched,
) -> Divergence:
    r"""Compute `V(a, b) - V(a, a)/2 - V(b, b)/2 + epsilon (m(a) - m(b))^2 / 2`, debiased.

    `V(a, b) = min_P <P, C> + D(P 1 | a) + D(P^T 1 | b) + epsilon KL(P | a b^T)` over `P >= 0`, with
    `KL(p|q) = sum p log(p/q) - p + q`, C the cost between the points that carry a and b, m the
    mass, and D the penalty of `marginal`: balanced, `P 1 = a` and `P^T 1 = b`. The divergence is at
    least zero, and zero only for equal measures; balanced, it grows from an optimal transport cost
    (epsilon to 0) to a squared kernel distance (epsilon to infinity). V(a, b) by
    `transport.sinkhorn`; balanced V(a, a) and V(b, b) by the averaged sweep `f <- (f + s(f))/2`, s
    the softmin of the cost minus f; all three to the same tolerance.

    Shapes: geometry x (n, d), y (m, d), a (n,), b (m,).

    Args:
        a: source weights, at least zero; None is uniform with mass one. A zero means absent.
        b: target weights; balanced rescaled to the mass of a where they differ by less than 1e-5
            of it.
        epsilon: entropic strength, in units of the cost.
        marginal: what both marginals of each term owe to their weights.
        tol: each term stops when its marginals miss those that are optimal for its potentials by
            less than this share of the mass, in L1 and both together.
        max_iter: sweeps for each term.
        watch: asked during all three solves whether to go on; told the progress of the first.

    Returns:
        A `Divergence`: `divergence`, made of the dual values `value_ab`, `value_aa`, `value_bb`
        of the three terms, whose errors are of second order in those of the marginals; potentials
        `f`, `g` of the first in the gauge `<f, a> = 0`, and `f_aa`, `g_bb`, where both potentials
        of a term are equal; a `Certificate` with bounds; the `Stop`, with the worst status, all
        iterations and the largest residual; cautions. A negative divergence is never clipped: it
        is within rounding or the gaps, and the caution `zero_within_error` says so.

    Notes:
        Time O(n m + n^2 + m^2) a sweep; memory likewise. Averaged sweeps halve the error at every
        epsilon, as kernels exp(-C/epsilon) of both costs are positive. float64 inside, whatever the
        inputs are: the terms cancel. A marginal that is not balanced takes `transport.sinkhorn`'s
        sweeps for all three terms; `free` costs nothing but the entropic term.
        Gradients: envelope theorem. dS/da = f - f_aa, dS/db = g - g_bb up to constants, right along
        every change of a and b that keeps their masses equal (else as in `transport.sinkhorn`);
        dS/dx and dS/dy through the costs, weighted by the three plans. Second derivatives by the
        implicit function theorem.

    References:
        Genevay, Peyre, Cuturi 2018, arXiv:1706.00292 (the divergence); Feydy, Sejourne, Vialard,
        Amari, Trouve, Peyre 2019, arXiv:1810.08278, theorem 1 (positivity) and section 3 (averaged
        sweep); Sejourne, Feydy, Vialard, Trouve, Peyre 2019, arXiv:1910.12958 (unbalanced).
    """
    dtype = geometry.x.dtype
    x, y = geometry.x.double(), geometry.y.double()
    pairs = (x, y), (x, x), (y, y)
    across, within_x, within_y = (costs(replace(geometry, x=p, y=q)) for p, q in pairs)
    a, b = weights("a", a, len(x), x), weights("b", b, len(y), y)
    marginal = simplified(marginal)
    ask = Ask(epsilon, marginal, marginal, tol, max_iter, watch)
    largest = max(largest_cost(C) for C in (across, within_x, within_y))
    b, cautions = checked(largest, a, b, ask)
    ab = _between(across, a, b, ask)
    silent, alone = replace(ask, watch=quietly(watch)), _alone if ask.balanced else _itself
    aa, bb = alone(within_x, a, silent), alone(within_y, b, silent)
    value = ab.value - aa.value / 2 - bb.value / 2
    if not ask.balanced:
        value = value + epsilon / 2 * (a.sum() - b.sum()).square()
    mass = float(torch.maximum(a.detach().sum(), b.detach().sum()))
    certificate = _bounds(float(value.detach()), ab, aa, bb, _scale(largest, ask, mass))
    tensors = (value, ab.value, aa.value, bb.value, ab.f, ab.g, aa.f, bb.g)
    return Divergence(
        *(t.to(dtype) for t in tensors),
        certificate=certificate,
        stop=_worst(ab.stop, aa.stop, bb.stop),
        cautions=cautions + _zero_caution(float(value.detach()), certificate, tol),
    )


def _scale(largest: float, ask: Ask, mass: float) -> float:
    """Bound the numbers that cancel in the divergence."""
    strength = 0.0 if isinstance(ask.marginal_a, Balanced | Range | Free) else ask.marginal_a.rho
    return mass * (largest + 2 * strength) + (0 if ask.balanced else ask.epsilon * mass * mass)


def _between(
    C: Float[Tensor, "n m"], a: Float[Tensor, "n"], b: Float[Tensor, "m"], ask: Ask
) -> Term:
    """Solve for two measures; the number is the dual value, its derivatives those of the value."""
    solved = entropic(C, a, b, ask)
    seen = solved.certificate
    value = solved.value + (seen.dual_value - solved.value.detach())
    errors = seen.marginal_error_a, seen.marginal_error_b
    return Term(value, solved.f, solved.g, _gap(seen), errors, solved.stop)


def _itself(C: Float[Tensor, "n n"], a: Float[Tensor, "n"], ask: Ask) -> Term:
    """Solve between a measure and itself, where a kink keeps averaged sweeps from ending."""
    term = _between(C, a, a, ask)
    f = (term.f + term.g) / 2
    return replace(term, f=f, g=f)


def _gap(seen: Entropic) -> float:
    if seen.duality_gap is None:
        raise IllPosed(
            "marginal",
            "must all travel although the cost forbids pairs: then no bounds are known; relax the"
            " marginal, as with kl, or take another cost",
        )
    return seen.duality_gap


def _alone(C: Float[Tensor, "n n"], a: Float[Tensor, "n"], ask: Ask) -> Term:
    r"""Solve between a measure and itself: one potential, `P_ij = a_i a_j exp((f_i+f_j-C_ij)/eps)`.

    The mean of the two potentials from `Optimum` is free of their gauge, and so are its gradients.
    """
    epsilon = ask.epsilon
    present = a.detach().nonzero()[:, 0]
    whole = len(present) == len(a)
    inner = (C, a) if whole else (C[present][:, present], a[present])
    f, stop = _averaged(
        inner[0].detach(), inner[1].detach(), epsilon, ask.tol, ask.max_iter, ask.watch
    )
    with torch.no_grad():
        logs = inner[1].log() + f / epsilon
        plan = torch.exp(logs[:, None] + logs - inner[0] / epsilon)
        seen, _ = measured(ask.problem(inner[0], inner[1], inner[1]), f, f, plan)
    left, right, plan = Optimum.apply(inner[0], inner[1], inner[1], (f, f), plan, epsilon)
    f = (left + right) / 2
    if not whole:
        f, _, plan = restored((C, a, a), f, f, plan, (present, present), epsilon)
    value = torch.tensor(seen.dual_value, dtype=C.dtype, device=C.device)
    slope = epsilon * (a.detach().sum() - 1)
    value = Envelope.apply(value, C, a, a, plan, f + slope, f + slope)
    errors = seen.marginal_error_a, seen.marginal_error_b
    return Term(value, f, f, _gap(seen), errors, stop)


def _averaged(
    C: Float[Tensor, "n n"],
    a: Float[Tensor, "n"],
    epsilon: float,
    tol: float,
    max_iter: int,
    watch: Watch,
) -> tuple[Float[Tensor, "n"], Stop]:
    """Iterate `f <- (f + s(f))/2` for weights of mass one; return f for the true mass."""
    mass = a.sum()
    p = a / mass
    log_p = p.log()
    rows = max(1, BLOCK // len(p))

    def softmin(f: Tensor) -> Tensor:
        z = log_p + f / epsilon
        parts = [torch.logsumexp(z - part / epsilon, 1) for part in C.split(rows)]  # (rows,)
        return -epsilon * torch.cat(parts)

    def step(state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        f = (state[0] + state[1]) / 2
        return f, softmin(f)

    def residual(state: tuple[Tensor, Tensor]) -> Tensor:
        f, s = state  # row sums of the plan are p exp((f - s)/epsilon), and so are column sums
        return 2 * (p * torch.expm1((f - s) / epsilon).abs()).sum()

    zero = torch.zeros_like(p)
    (f, _), stop = iterate(
        step,
        residual,
        (zero, softmin(zero)),
        tol=tol,
        max_iter=max_iter,
        patience=PATIENCE,
        watch=watch,
    )
    return f - epsilon / 2 * mass.log(), stop  # a a^T grows like mass^2, the plan like mass


def _bounds(value: float, ab: Term, aa: Term, bb: Term, scale: float) -> Certificate:
    """Each optimum lies between its dual value and its gap above."""
    room = ROUNDING * scale
    return Certificate(
        *(ab.gap, aa.gap, bb.gap),
        *ab.errors,
        aa.errors[0],
        bb.errors[0],
        lower=value - (aa.gap + bb.gap) / 2 - room,
        upper=value + ab.gap + room,
    )


def _worst(*stops: Stop) -> Stop:
    return Stop(
        max(stops, key=lambda stop: _BEST_FIRST.index(stop.status)).status,
        sum(stop.iterations for stop in stops),
        max(stop.residual for stop in stops),
    )


def _zero_caution(value: float, seen: Certificate, tol: float) -> tuple[Caution, ...]:
    if seen.lower > 0:
        return ()
    return (
        Caution(
            "zero_within_error",
            f"the divergence, {value:.3e}, cannot be told from zero: it lies between"
            f" {seen.lower:.1e} and {seen.upper:.1e}",
            f"the measures are equal or nearly so; a tol below {tol:.1e} narrows the bounds",
        ),
    )
