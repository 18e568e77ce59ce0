"""Sinkhorn divergence between two measures of equal mass."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.errors import Caution
from algorithms.geometry import CostMatrix, PointClouds
from algorithms.iterate import Status, Stop, Watch, iterate, quietly, unwatched
from algorithms.transport.entropic import check_reachable, restored
from algorithms.transport.implicit import Envelope, Optimum
from algorithms.transport.measures import costs, same_mass, weights
from algorithms.transport.penalised import Ask, measured
from algorithms.transport.sinkhorn import BALANCED, sinkhorn

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
    tol: float = 1e-6,
    max_iter: int = 10_000,
    watch: Watch = unwatched,
) -> Divergence:
    r"""Compute `S(a, b) = V(a, b) - V(a, a)/2 - V(b, b)/2`, the debiased entropic cost.

    `V(a, b) = min_P <P, C> + epsilon KL(P | a b^T)` over `P >= 0`, `P 1 = a`, `P^T 1 = b`, with
    `KL(p|q) = sum p log(p/q) - p + q` and C the cost between the points that carry a and b. S is at
    least zero, and zero only for equal measures; it grows from an optimal transport cost (epsilon
    to 0) to a squared kernel distance (epsilon to infinity). V(a, b) by `transport.sinkhorn`,
    V(a, a) and V(b, b) by the averaged sweep `f <- (f + s(f))/2`, s the softmin of the cost minus
    f; all three to the same tolerance.

    Shapes: geometry x (n, d), y (m, d), a (n,), b (m,).

    Args:
        a: source weights, at least zero; None is uniform with mass one. A zero means absent.
        b: target weights; rescaled to the mass of a where they differ by less than 1e-5 of it.
        epsilon: entropic strength, in units of the cost.
        tol: each term stops when the L1 errors of both its marginals, together, are below this
            share of the mass.
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
        inputs are: the terms cancel.
        Gradients: envelope theorem. dS/da = f - f_aa, dS/db = g - g_bb up to constants, right along
        every change of a and b that keeps their masses equal; dS/dx and dS/dy through the costs,
        weighted by the three plans. Second derivatives by the implicit function theorem.

    References:
        Genevay, Peyre, Cuturi 2018, arXiv:1706.00292 (the divergence); Feydy, Sejourne, Vialard,
        Amari, Trouve, Peyre 2019, arXiv:1810.08278, theorem 1 (positivity) and section 3 (averaged
        sweep).
    """
    dtype = geometry.x.dtype
    x, y = geometry.x.double(), geometry.y.double()
    across, within_x, within_y = (
        costs(PointClouds(*pair, geometry.cost)) for pair in ((x, y), (x, x), (y, y))
    )
    a, b = weights("a", a, len(x), x), weights("b", b, len(y), y)
    b, cautions = same_mass(a, b)
    for C in (across, within_x, within_y):
        check_reachable(C.detach(), epsilon, tol)
    ab = _between(across, a, b, epsilon, tol, max_iter, watch)
    aa = _alone(within_x, a, epsilon, tol, max_iter, quietly(watch))
    bb = _alone(within_y, b, epsilon, tol, max_iter, quietly(watch))
    value = ab.value - aa.value / 2 - bb.value / 2
    largest = max(float(C.detach().amax()) for C in (across, within_x, within_y))
    certificate = _bounds(float(value.detach()), ab, aa, bb, largest * float(a.detach().sum()))
    tensors = (value, ab.value, aa.value, bb.value, ab.f, ab.g, aa.f, bb.g)
    return Divergence(
        *(t.to(dtype) for t in tensors),
        certificate=certificate,
        stop=_worst(ab.stop, aa.stop, bb.stop),
        cautions=cautions + _zero_caution(float(value.detach()), certificate, tol),
    )


def _between(
    C: Float[Tensor, "n m"],
    a: Float[Tensor, "n"],
    b: Float[Tensor, "m"],
    epsilon: float,
    tol: float,
    max_iter: int,
    watch: Watch,
) -> Term:
    """Solve for two measures; the number is the dual value, its derivatives those of the value."""
    solved = sinkhorn(CostMatrix(C), a, b, epsilon=epsilon, tol=tol, max_iter=max_iter, watch=watch)
    seen = solved.certificate
    value = solved.value + (seen.dual_value - solved.value.detach())
    errors = seen.marginal_error_a, seen.marginal_error_b
    return Term(value, solved.f, solved.g, seen.duality_gap or 0.0, errors, solved.stop)


def _alone(
    C: Float[Tensor, "n n"],
    a: Float[Tensor, "n"],
    epsilon: float,
    tol: float,
    max_iter: int,
    watch: Watch,
) -> Term:
    r"""Solve between a measure and itself: one potential, `P_ij = a_i a_j exp((f_i+f_j-C_ij)/eps)`.

    The mean of the two potentials from `Optimum` is free of their gauge, and so are its gradients.
    """
    present = a.detach().nonzero()[:, 0]
    whole = len(present) == len(a)
    inner = (C, a) if whole else (C[present][:, present], a[present])
    f, stop = _averaged(inner[0].detach(), inner[1].detach(), epsilon, tol, max_iter, watch)
    with torch.no_grad():
        logs = inner[1].log() + f / epsilon
        plan = torch.exp(logs[:, None] + logs - inner[0] / epsilon)
        ask = Ask(epsilon, BALANCED, BALANCED, tol, max_iter, watch)
        seen, _ = measured(ask.problem(inner[0], inner[1], inner[1]), f, f, plan)
    left, right, plan = Optimum.apply(inner[0], inner[1], inner[1], (f, f), plan, epsilon)
    f = (left + right) / 2
    if not whole:
        f, _, plan = restored((C, a, a), f, f, plan, (present, present), epsilon)
    value = torch.tensor(seen.dual_value, dtype=C.dtype, device=C.device)
    slope = epsilon * (a.detach().sum() - 1)
    value = Envelope.apply(value, C, a, a, plan, f + slope, f + slope)
    errors = seen.marginal_error_a, seen.marginal_error_b
    return Term(value, f, f, seen.duality_gap or 0.0, errors, stop)


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
