"""Entropic transport of a given mass under caps on both marginals."""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from algorithms.iterate import Stop, Watch, iterate, quietly

# Potentials that moved by more, in units of epsilon, are put into a kernel made anew: below, no
# sum that matters leaves the range of float64.
DRIFT = 50.0
# Sweeps without a smaller miss: forbidden pairs leave no plan of the mass, or rounding is reached.
PATIENCE = 200
# From costs of WIDTH epsilons, which few sweeps cross, epsilon goes down by COOLING, with at most
# COOLING_SWEEPS on the way, each until the miss is HALFWAY.
WIDTH, COOLING, COOLING_SWEEPS, HALFWAY = 200.0, 4.0, 50, 1e-2
# A Newton step costs as much as one sweep per so many points of the smaller side.
POINTS_A_SWEEP = 20
# Shares of a Newton step that are tried.
SHARES = (1.0, 0.25, 0.0625)
# Added to a unit diagonal until it can be factored, then grown by SAFER.
RIDGE, SAFER, LARGEST_RIDGE = 1e-15, 100.0, 1e-3


@dataclass(frozen=True)
class Capped:
    """Potentials f, g <= 0 and the price of mass of `P_ij = a_i b_j exp((f_i+g_j+lam-C_ij)/eps)`.

    Attributes:
        miss: how far the row sums are from those that f and the caps ask for, as a share of the
            mass.
    """

    f: Float[Tensor, "n"]
    g: Float[Tensor, "m"]
    lam: float
    miss: float


@dataclass(frozen=True)
class Level:
    """A problem at one epsilon, by which its costs are divided; all weights are positive."""

    C: Float[Tensor, "n m"]
    a: Float[Tensor, "n"]
    b: Float[Tensor, "m"]
    mass: float


@dataclass(frozen=True)
class Kernel:
    """`K_ij = a_i b_j exp(f_i + g_j + lam - C_ij)` at some f, g, lam."""

    K: Float[Tensor, "n m"]
    f: Float[Tensor, "n"]
    g: Float[Tensor, "m"]
    lam: float


@dataclass(frozen=True)
class Climbing:
    """Potentials over epsilon, after a sweep.

    Attributes:
        sums: logarithms of the row sums of the plan of g alone, where f = lam = 0.
    """

    f: Float[Tensor, "n"]
    g: Float[Tensor, "m"]
    lam: float
    sums: Float[Tensor, "n"]
    kernel: Kernel
    miss: float
    sweeps: int


def capped(
    C: Float[Tensor, "n m"],
    a: Float[Tensor, "n"],
    b: Float[Tensor, "m"],
    mass: float,
    epsilon: float,
    *,
    tol: float,
    max_iter: int,
    watch: Watch,
) -> tuple[Capped, Float[Tensor, "n m"], Stop]:
    r"""Maximise `<a,f> + <b,g> + lam mass - epsilon sum a_i b_j exp((f_i+g_j+lam-C_ij)/epsilon)`.

    Over f, g <= 0: the dual of entropic partial transport. By turns over (f, lam) and (g, lam),
    each exactly: with the others held, rows fill up to their caps as lam rises, until the mass is
    right. Dykstra's projections take the three constraints one at a time, and more sweeps. Between
    sweeps, Newton's method on the caps that are reached, kept where the dual rises; before, the
    same at larger epsilons. The last step is on (g, lam): columns respect their caps, and the mass
    is exact.

    Shapes: C (n, m), a (n,), b (m,), all float64; infinite costs forbid a pair.
    """
    rows, columns = _reached(C, a, b)
    cost, p, q = C[rows][:, columns], a[rows], b[columns]
    finite = cost[cost.isfinite()]
    spread = float(finite.amax() - finite.amin()) / epsilon
    levels = math.ceil(math.log(max(spread / WIDTH, 1.0), COOLING))
    g, done = torch.zeros_like(q), 0
    for k in range(levels, 0, -1):
        hot = epsilon * COOLING**k
        begun = _begun(Level(cost / hot, p, q, mass), g / hot, done)
        budget = min(COOLING_SWEEPS, max_iter - done)
        state, _ = _climb(Level(cost / hot, p, q, mass), begun, HALFWAY, budget, quietly(watch))
        g, done = hot * state.g, state.sweeps
    level = Level(cost / epsilon, p, q, mass)
    begun = _begun(level, g / epsilon, done)
    onward: Watch = lambda k, miss: watch(k if k < 0 else done + k, miss)
    state, stop = _climb(level, begun, tol, max_iter - done, onward)
    f, g, P = torch.zeros_like(a), torch.zeros_like(b), torch.zeros_like(C)
    f[rows], g[columns] = epsilon * state.f, epsilon * state.g
    P[rows[:, None] & columns] = _plan(level, state.f, state.g, state.lam).flatten()
    found = Capped(f, g, epsilon * state.lam, state.miss)
    return found, P, replace(stop, iterations=done + stop.iterations)


def _reached(
    C: Float[Tensor, "n m"], a: Float[Tensor, "n"], b: Float[Tensor, "m"]
) -> tuple[Bool[Tensor, "n"], Bool[Tensor, "m"]]:
    """Find the points that have mass and a way to some mass on the other side."""
    ways = C.isfinite()
    return (a > 0) & ways[:, b > 0].any(1), (b > 0) & ways[a > 0].any(0)


def _plan(
    level: Level, f: Float[Tensor, "n"], g: Float[Tensor, "m"], lam: float
) -> Float[Tensor, "n m"]:
    return ((level.a.log() + f + lam)[:, None] + (level.b.log() + g) - level.C).exp()


def _row_sums(level: Level, g: Float[Tensor, "m"]) -> Float[Tensor, "n"]:
    return (level.b.log() + g - level.C).logsumexp(1) + level.a.log()  # (n, m) -> (n,)


def _column_sums(level: Level, f: Float[Tensor, "n"]) -> Float[Tensor, "m"]:
    return ((level.a.log() + f)[:, None] - level.C).logsumexp(0) + level.b.log()


def _begun(level: Level, g: Float[Tensor, "m"], sweeps: int) -> Climbing:
    """Take the first sweep in logarithms, and the kernel from there."""
    _, f = filled(_row_sums(level, g), level.a, level.mass)
    lam, g = filled(_column_sums(level, f), level.b, level.mass)
    return _measured(level, f, g, lam, None, sweeps)


def _swept(level: Level, state: Climbing, sums: Float[Tensor, "n"]) -> Climbing:
    """Improve (f, lam) for the g of these row sums, then (g, lam)."""
    k = state.kernel
    _, f = filled(sums, level.a, level.mass)
    if float((f - k.f).abs().amax()) > DRIFT:
        sums = _column_sums(level, f)
    else:
        # a sum that underflows is that of a column far below its cap
        sums = (k.K.T @ (f - k.f).exp()).log() - (k.g + k.lam)
    lam, g = filled(sums, level.b, level.mass)
    return _measured(level, f, g, lam, k, state.sweeps)


def _measured(
    level: Level,
    f: Float[Tensor, "n"],
    g: Float[Tensor, "m"],
    lam: float,
    k: Kernel | None,
    sweeps: int,
) -> Climbing:
    """Measure how far the row sums are from right, with a kernel that is near."""
    if k is None or _far(k, f, g, lam):
        k = Kernel(_plan(level, f, g, lam), f, g, lam)
    rows = k.K @ (g - k.g).exp()
    sums = rows.log() - (k.f + k.lam)
    if bool((sums.isinf() & (f < 0)).any()):
        sums = _row_sums(level, g)
    rows = (sums + f + lam).exp()
    # a row below its cap should have f = 0: it would fill up to its cap, or to that
    wanted = torch.minimum(level.a, (sums + lam).exp())
    miss = float((rows - wanted).abs().sum()) / level.mass
    return Climbing(f, g, lam, sums, k, miss, sweeps)


def _far(k: Kernel, f: Float[Tensor, "n"], g: Float[Tensor, "m"], lam: float) -> bool:
    moved = torch.cat([f - k.f, g - k.g]).abs().amax()
    return max(float(moved), abs(lam - k.lam)) > DRIFT


def _climb(
    level: Level, state: Climbing, tol: float, max_iter: int, watch: Watch
) -> tuple[Climbing, Stop]:
    pace = 1 + min(level.C.shape) // POINTS_A_SWEEP

    def step(state: Climbing) -> Climbing:
        swept = replace(_swept(level, state, state.sums), sweeps=state.sweeps + 1)
        return swept if swept.sweeps % pace else _leapt(level, swept)

    return iterate(
        step,
        lambda state: state.miss,
        state,
        tol=tol,
        max_iter=max(0, max_iter),
        patience=PATIENCE,
        watch=watch,
    )


def _leapt(level: Level, state: Climbing) -> Climbing:
    """Try shares of a Newton step, and a sweep from there; keep what raises the dual most."""
    toward = newton(level, state)
    for share in SHARES if toward is not None else ():
        g = torch.lerp(state.g, toward, share)
        far = bool(((g - state.kernel.g).abs() > DRIFT).any())
        k = state.kernel
        sums = _row_sums(level, g) if far else (k.K @ (g - k.g).exp()).log() - (k.f + k.lam)
        other = _swept(level, state, sums)
        if other.miss < state.miss or _dual(level, other) > _dual(level, state):
            return other
    return state


def _dual(level: Level, state: Climbing) -> float:
    """The dual less its exponential part: a sweep leaves the mass exact."""
    return float(level.a @ state.f + level.b @ state.g) + state.lam * level.mass


def newton(level: Level, state: Climbing) -> Float[Tensor, "m"] | None:
    """Solve for the g at which caps that are reached would be met, to first order.

    Reached: where a half step would leave the potential below zero; elsewhere it is zero. In units
    of the square roots of the sums, the equations are `x_a + N x_b = u`, `N^T x_a + M x_b = v`,
    with lam as one more column, and M the identity but for its border.
    """
    P = _plan(level, state.f, state.g, state.lam)
    mu, nu, mass = P.sum(1), P.sum(0), P.sum()
    A = state.f + level.a.log() - mu.log() < 0
    B = state.g + level.b.log() - nu.log() < 0
    r, c = mu[A].sqrt(), torch.cat([nu[B], mass[None]]).sqrt()
    N = torch.cat([P[A][:, B], mu[A][:, None]], 1) / r[:, None] / c
    u = (level.a[A] - mu[A]) / r
    v = torch.cat([level.b[B] - nu[B], (level.mass - mass)[None]]) / c
    M = torch.eye(len(c), dtype=c.dtype)
    M[-1, :-1] = M[:-1, -1] = c[:-1] / c[-1]
    x = _solved(M - N.T @ N, v - N.T @ u)
    if x is None:
        return None
    toward = torch.zeros_like(state.g)
    toward[B] = (state.g[B] + (x / c)[:-1]).clamp_max(0)
    return toward if bool(toward.isfinite().all()) else None


def _solved(S: Float[Tensor, "k k"], v: Float[Tensor, "k"]) -> Float[Tensor, "k"] | None:
    """Solve with a positive semidefinite matrix, made definite by as little as it takes."""
    ridge = RIDGE * len(v)
    while ridge < LARGEST_RIDGE:
        L, failed = torch.linalg.cholesky_ex(S + ridge * torch.eye(len(v), dtype=v.dtype))
        if not int(failed):
            return torch.cholesky_solve(v[:, None], L)[:, 0]
        ridge *= SAFER
    return None


def filled(
    sums: Float[Tensor, "k"], cap: Float[Tensor, "k"], mass: float
) -> tuple[float, Float[Tensor, "k"]]:
    """Find t with `sum_i min(cap_i, exp(t + sums_i)) = mass`, and `min(0, log cap_i - sums_i - t)`.

    As t rises rows reach their caps one after the other, at `t_i = log cap_i - sums_i`.
    """
    full = cap.log() - sums
    order = full.argsort(stable=True)
    at = full[order]
    below = torch.cat([cap.new_zeros(1), cap[order].cumsum(0)[:-1]])  # full before the k-th is
    rest = sums[order].flip(0).logcumsumexp(0).flip(0)  # log of the sums not yet full
    t = (mass - below).clamp_min(0).log() - rest
    fits = ((t <= at) & t.isfinite()).nonzero()[:, 0]
    finite = at[at.isfinite()]
    # where rounding lets none fit, the mass is that of all caps
    reached = float(t[fits[0]]) if len(fits) else float(finite.amax())
    return reached, (full - reached).clamp_max(0)
