r"""Entropic potentials for any pair of marginals, by relaxed scaling of a stabilised kernel.

Minimise `<P, C> + D_a(P 1 | a) + D_b(P^T 1 | b) + eps KL(P | a b^T)`. Costs may be infinite: no
mass goes there. All weights are positive, and every point has a pair that is not forbidden.
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.entropic.aprox import conjugate, hard, penalty, ratios, relaxed
from algorithms.entropic.scaling import Solved
from algorithms.entropic.translation import shift
from algorithms.iterate import Stop, Watch, iterate, quietly, unwatched
from algorithms.marginals import TV, Balanced, Free, Marginal

# Sweeps between two looks at the error.
CHECK_EVERY = 10
# Scalings beyond this are absorbed: entries that underflow in the kernel would begin to matter.
REACH = {torch.float64: 1e40, torch.float32: 1e10}
# Sums of the kernel below this share of their weight have lost entries to the range of the type.
UNSEEN = {torch.float64: 1e-250, torch.float32: 1e-25}
# exp of less than this is (nearly) subnormal, slow to multiply, and as good as zero.
LOWEST = {torch.float64: -690.0, torch.float32: -80.0}
# Entries in one block of the kernel: half a megabyte stays in a CPU's cache; a GPU wants few calls.
BLOCK = {"cpu": 1 << 16}
BLOCK_ELSEWHERE = 1 << 26
# From the widest kernel exp(-RANGE) that sweeps cross quickly, epsilon goes down by COOLING after
# at most COOLING_SWEEPS.
RANGE, COOLING, COOLING_SWEEPS = {torch.float64: 1e3, torch.float32: 60.0}, 4.0, 20
# Checks at a constant relaxation before the rate is believed; relaxation waits for this error.
PLAIN_CHECKS, NEARLY_LINEAR = 3, 0.1
# Relaxation never comes nearer to 2; a step of this share of 2 - w is worth a new estimate; growth
# of the error that ends it.
MOST_RELAXED, WORTH, RUNAWAY = 1.98, 0.1, 10.0
# Checks without a new best error before the loop gives up.
PATIENCE = 100


@dataclass(frozen=True)
class Problem:
    """Entropic transport with penalised marginals: positive weights in float64, C in its type."""

    C: Float[Tensor, "n m"]
    a: Float[Tensor, "n"]
    b: Float[Tensor, "m"]
    epsilon: float
    marginal_a: Marginal
    marginal_b: Marginal


@dataclass(frozen=True)
class Kernel:
    """`K_ij = a_i b_j exp((f_i + g_j - C_ij)/eps)` for potentials near those that are sought."""

    f: Float[Tensor, "n"]
    g: Float[Tensor, "m"]
    K: Float[Tensor, "n m"]


@dataclass(frozen=True)
class Sweeping:
    """Potentials, a kernel near them, and softmins `s = s_f(g)`, `z = s_g(f)` that belong to them.

    Attributes:
        relaxation: the exponent w of a sweep; 1 is Sinkhorn's.
        errors: errors at the checks since the relaxation was last chosen.
    """

    kernel: Kernel
    f: Float[Tensor, "n"]
    g: Float[Tensor, "m"]
    s: Float[Tensor, "n"]
    z: Float[Tensor, "m"]
    relaxation: float = 1.0
    sweeps: int = 0
    errors: tuple[float, ...] = ()


def solve(
    p: Problem,
    *,
    f: Float[Tensor, "n"] | None = None,
    tol: float,
    max_iter: int,
    watch: Watch = unwatched,
) -> Solved:
    r"""Find f, g whose plan is optimal within `tol`, starting from f, or say why not.

    The error is `optimality`, recomputed at the end from the potentials that are returned.
    """
    state = _started(p, f, tol, max_iter, watch)
    state, stop = _climb(p, state, tol, max_iter, watch)
    last = _settled(p, state)
    dtype = p.C.dtype
    f, g = last.f.to(dtype).double(), last.g.to(dtype).double()
    plan = kernel(p, f, g, last.kernel.K).K
    rows, columns = plan.sum(1, dtype=torch.float64), plan.sum(0, dtype=torch.float64)
    error = float(optimality(p, f, g, rows, columns))
    if not (math.isfinite(error) and bool(f.isfinite().all()) and bool(g.isfinite().all())):
        stop, error = Stop("diverged", stop.iterations, stop.residual), stop.residual
    status = "stagnated" if stop.status == "converged" else stop.status
    status = "converged" if error <= tol and status != "diverged" else status
    return Solved(f, g, plan, rows, columns, Stop(status, state.sweeps, error))


def optimality(
    p: Problem,
    f: Float[Tensor, "n"],
    g: Float[Tensor, "m"],
    mu: Float[Tensor, "n"],
    nu: Float[Tensor, "m"],
) -> Tensor:
    r"""Measure how far (f, g) is from optimal, as a share of the mass that travels.

    The larger of two numbers. First `sum_i dist(mu_i, a_i r(f_i))` over both sides, r(f) the ratios
    that are optimal for f: the gradient of the dual in L1, the marginal error when balanced, and to
    first order the mass by which one more sweep would move the marginals. Second the gap
    `sum_i a_i (phi(mu_i/a_i) + phi*(-f_i)) + mu_i f_i` over both sides (hard ones left to the
    first), as a share of the mass times the largest of epsilon, |f| and |g|.
    """
    mass = mu.sum().clamp_min(torch.finfo(mu.dtype).tiny)
    apart = distance(p.marginal_a, p.a, f, mu) + distance(p.marginal_b, p.b, g, nu)
    gap = fenchel_gap(p.marginal_a, p.a, f, mu) + fenchel_gap(p.marginal_b, p.b, g, nu)
    scale = torch.stack([f.abs().amax(), g.abs().amax()]).amax().clamp_min(p.epsilon)
    return torch.maximum(apart / mass, gap / scale / mass)


def distance(
    marginal: Marginal, a: Float[Tensor, "n"], f: Float[Tensor, "n"], mu: Float[Tensor, "n"]
) -> Tensor:
    """Add up how far each entry of mu is from those that are optimal for f."""
    low, high = ratios(marginal, f)
    return torch.maximum(a * low - mu, mu - a * high).clamp_min(0).sum()


def fenchel_gap(
    marginal: Marginal, a: Float[Tensor, "n"], f: Float[Tensor, "n"], mu: Float[Tensor, "n"]
) -> Tensor:
    """Add up what Fenchel's inequality leaves between penalty and conjugate; hard sides nothing."""
    if hard(marginal):
        return torch.zeros_like(mu.sum())
    return (a * (penalty(marginal, mu / a) + conjugate(marginal, -f)) + mu * f).sum().clamp_min(0)


def softmin(p: Problem, g: Float[Tensor, "m"], rows: Tensor | None = None) -> Float[Tensor, "n"]:
    r"""Compute `s_f(g)_i = -eps LSE_j(log b_j + (g_j - C_ij)/eps)`, of some rows or of all."""
    right = g / p.epsilon + p.b.log()
    C = p.C if rows is None else p.C[rows]
    step = max(1, BLOCK.get(C.device.type, BLOCK_ELSEWHERE) // C.shape[1])
    parts = [(right - part.double() / p.epsilon).logsumexp(1) for part in C.split(step)]
    return -p.epsilon * torch.cat(parts)


def turned(p: Problem) -> Problem:
    """Exchange source and target."""
    return Problem(p.C.T, p.b, p.a, p.epsilon, p.marginal_b, p.marginal_a)


def kernel(
    p: Problem, f: Float[Tensor, "n"], g: Float[Tensor, "m"], out: Float[Tensor, "n m"]
) -> Kernel:
    """Build the kernel of f, g in `out` by row blocks, exponents in float64."""
    left, right = f / p.epsilon + p.a.log(), g / p.epsilon + p.b.log()
    step = max(1, BLOCK.get(p.C.device.type, BLOCK_ELSEWHERE) // p.C.shape[1])
    lowest = LOWEST[out.dtype]
    for i in range(0, p.C.shape[0], step):
        z = left[i : i + step, None] + right  # (step, m)
        z.sub_(p.C[i : i + step], alpha=1 / p.epsilon)
        out[i : i + step] = z.masked_fill_(z < lowest, -math.inf)
        out[i : i + step].exp_()
    return Kernel(f, g, out)


def stabilised(p: Problem, f: Float[Tensor, "n"], out: Float[Tensor, "n m"]) -> Kernel:
    """Build a kernel near f whose rows are exact and whose columns all keep some mass.

    Its own potentials are those of two balanced half steps, so no row or column is lost to the
    range of the type, also where hardly any mass will travel.
    """
    g = softmin(turned(p), f)
    return kernel(p, softmin(p, g), g, out)


def sweep(p: Problem, state: Sweeping) -> Sweeping:
    """Improve f for a given g, then g for a given f, then both by a common shift."""
    w = state.relaxation
    f = _moved(p.marginal_a, state.f, relaxed(p.marginal_a, state.s, p.epsilon), w)
    z = _softmin_of_columns(p, state.kernel, f)
    g = _moved(p.marginal_b, state.g, relaxed(p.marginal_b, z, p.epsilon), w)
    t = shift(p.marginal_a, p.marginal_b, p.a, p.b, f, g)
    k = state.kernel
    if t is not None:
        f, g, z = f + t, g - t, z - t
        k = Kernel(k.f + t, k.g - t, k.K)  # the kernel does not see a shift, however long
    s = _softmin_of_rows(p, k, g)
    state = replace(state, kernel=k, f=f, g=g, s=s, z=z, sweeps=state.sweeps + 1)
    if state.sweeps % CHECK_EVERY and state.sweeps > CHECK_EVERY:
        return state
    state = _absorbed(p, state)
    return state if state.sweeps % CHECK_EVERY else _paced(p, state)


def _moved(
    marginal: Marginal, f: Float[Tensor, "n"], best: Float[Tensor, "n"], w: float
) -> Float[Tensor, "n"]:
    """Go beyond the best potential by w - 1 of the way to it; stay in the domain of phi*."""
    if w == 1 or isinstance(marginal, Free):
        return best
    # a kink of phi* holds potentials: one that is at its best stays there
    further = torch.where(best == f, best, f + w * (best - f))
    return further.clamp(-marginal.rho, marginal.rho) if isinstance(marginal, TV) else further


def _softmin_of_rows(p: Problem, k: Kernel, g: Float[Tensor, "m"]) -> Float[Tensor, "n"]:
    v = ((g - k.g) / p.epsilon).exp()
    share = (k.K @ v.to(k.K.dtype)).double() / p.a  # (n, m), (m,) -> (n,)
    s = k.f - p.epsilon * share.log()
    lost = share < UNSEEN[k.K.dtype]
    if bool(lost.any()):
        s[lost] = softmin(p, g, lost.nonzero()[:, 0])
    return s


def _softmin_of_columns(p: Problem, k: Kernel, f: Float[Tensor, "n"]) -> Float[Tensor, "m"]:
    return _softmin_of_rows(turned(p), Kernel(k.g, k.f, k.K.T), f)


def _absorbed(p: Problem, state: Sweeping) -> Sweeping:
    """Rebuild the kernel where potentials have gone far above its own."""
    f, g, k = state.f, state.g, state.kernel
    far = torch.stack([(f - k.f).amax(), (g - k.g).amax()]).amax()
    if not float(far) > p.epsilon * math.log(REACH[k.K.dtype]):
        return state
    fresh = stabilised(p, f, k.K)
    return replace(state, kernel=fresh, s=_softmin_of_rows(p, fresh, g))


def _marginals(p: Problem, state: Sweeping) -> tuple[Float[Tensor, "n"], Float[Tensor, "m"]]:
    """Return the marginals of the plan of f, g; z belongs to f and s to g."""
    mu = p.a * ((state.f - state.s) / p.epsilon).exp()
    return mu, p.b * ((state.g - state.z) / p.epsilon).exp()


def _error(p: Problem, state: Sweeping) -> Tensor:
    return optimality(p, state.f, state.g, *_marginals(p, state))


def _paced(p: Problem, state: Sweeping) -> Sweeping:
    r"""Choose the relaxation from the rate of the errors, as in successive over-relaxation.

    As in the balanced case: a sweep with exponent w whose error falls by lam has
    `(lam + w - 1)^2 = lam w^2 theta`, theta the rate of plain sweeps, and `2 / (1 + sqrt(1-theta))`
    is best for theta (Young 1971, section 5.2). Errors that grow end the relaxation.
    """
    w, errors = state.relaxation, (*state.errors, float(_error(p, state)))
    state = replace(state, errors=errors)
    if errors[-1] > NEARLY_LINEAR or (w > 1 and errors[-1] > RUNAWAY * min(errors)):
        return replace(state, relaxation=1.0, errors=errors[-1:])
    span = 1 if w == 1 else max(2, math.ceil(0.5 / (2 - w) / CHECK_EVERY))
    enough = PLAIN_CHECKS if w == 1 else 1 + span
    if len(errors) < enough or not 0 < errors[-1] < errors[-1 - span]:
        return state
    rate = (errors[-1] / errors[-1 - span]) ** (1 / (span * CHECK_EVERY))
    theta = min((rate + w - 1) ** 2 / (rate * w * w), 1.0)
    best = min(MOST_RELAXED, 2 / (1 + math.sqrt(1 - theta)))
    if rate > w - 1 and (w == 1 or best > w + WORTH * (2 - w)):
        return replace(state, relaxation=best, errors=errors[-1:])
    if w > 1 and len(errors) > 4 * span and rate <= w - 1 + WORTH * (2 - w):
        return replace(state, relaxation=1 + (w - 1) ** 2, errors=errors[-1:])
    return state


def _started(
    p: Problem, f: Float[Tensor, "n"] | None, tol: float, max_iter: int, watch: Watch
) -> Sweeping:
    """Anneal: some sweeps at each of `eps 4^k, ..., eps 4`, then the kernel of eps itself.

    Given potentials are near already: they start at eps.
    """
    finite = p.C[p.C.isfinite()]
    spread = float(finite.amax() - finite.amin()) / p.epsilon
    reach = spread / RANGE[p.C.dtype] if f is None else 1.0
    levels = math.ceil(math.log(max(reach, 1.0), COOLING))
    f = torch.zeros_like(p.a) if f is None else f.double()
    out, sweeps = torch.empty_like(p.C, memory_format=torch.contiguous_format), 0
    for level in range(levels, 0, -1):
        hot = replace(p, epsilon=p.epsilon * COOLING**level)
        state = replace(_fresh(hot, f, out), sweeps=sweeps)
        budget = min(sweeps + COOLING_SWEEPS, max_iter)
        state, _ = _climb(hot, state, tol, budget, quietly(watch))
        f, sweeps = state.f, state.sweeps
    return replace(_fresh(p, f, out), sweeps=sweeps)


def _fresh(p: Problem, f: Float[Tensor, "n"], out: Float[Tensor, "n m"]) -> Sweeping:
    k = stabilised(p, f, out)
    z = _softmin_of_columns(p, k, f)
    g = relaxed(p.marginal_b, z, p.epsilon)
    return Sweeping(k, f, g, _softmin_of_rows(p, k, g), z)


def _settled(p: Problem, state: Sweeping) -> Sweeping:
    """Take a plain sweep that ends on a hard side, which it makes exact."""
    k = state.kernel
    f = relaxed(p.marginal_a, state.s, p.epsilon)
    z = _softmin_of_columns(p, k, f)
    g = relaxed(p.marginal_b, z, p.epsilon)
    if hard(p.marginal_a) and not hard(p.marginal_b):
        f = relaxed(p.marginal_a, _softmin_of_rows(p, k, g), p.epsilon)
    if isinstance(p.marginal_a, Balanced) and isinstance(p.marginal_b, Balanced):
        centre = (p.a @ f) / p.a.sum()
        f, g = f - centre, g + centre
    return replace(state, f=f, g=g)


def _climb(
    p: Problem, state: Sweeping, tol: float, max_iter: int, watch: Watch
) -> tuple[Sweeping, Stop]:
    return iterate(
        lambda state: sweep(p, state),
        lambda state: _error(p, state),
        state,
        tol=tol,
        max_iter=max(0, max_iter - state.sweeps),
        check_every=CHECK_EVERY,
        patience=PATIENCE,
        watch=_onward(state, watch),
    )


def _onward(state: Sweeping, watch: Watch) -> Watch:
    """Count on from the sweeps already made; a negative iteration stays: it reports nothing."""
    return lambda iteration, residual: watch(
        iteration if iteration < 0 else state.sweeps + iteration, residual
    )
