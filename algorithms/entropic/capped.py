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
PATIENCE = 60
# From costs of WIDTH epsilons, which few sweeps cross, epsilon goes down by COOLING, with at most
# COOLING_SWEEPS on the way, each until the miss is HALFWAY.
WIDTH, COOLING, COOLING_SWEEPS, HALFWAY = 200.0, 4.0, 50, 1e-2
# A Newton step costs as much as one sweep per so many points of the smaller side.
POINTS_A_SWEEP = 60
# A Newton step that does not raise the dual is tried again so much shorter, so often, and then with
# the next of RIDGES on its unit diagonal: flat directions, which a quadratic model follows too far,
# go first. Where rounding leaves no factors, the ridge grows by SAFER.
SHORTER, TRIES = 4.0, 3
RIDGES = (1e-15, 1e-11, 1e-9, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3)
SAFER, LARGEST_RIDGE = 100.0, 1.0
# Solves of a Newton step: potentials that would rise above zero are held there in the next.
RELEASES = 8
# Of the dual, as a share of it.
ROUNDING = 1e-14


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
    """A problem at one epsilon, by which its costs are divided; all weights are positive.

    Attributes:
        spread: how far apart finite costs are: further, potentials need not go.
    """

    C: Float[Tensor, "n m"]
    a: Float[Tensor, "n"]
    b: Float[Tensor, "m"]
    mass: float
    spread: float


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
    right. Dykstra's projections take the three constraints one at a time, and more sweeps. Now and
    then a Newton step comes between, on the caps that are reached, and is kept where the dual
    rises; potentials of larger epsilons are the start. The last step is on (g, lam): columns
    respect their caps, and the mass is exact.

    Shapes: C (n, m), a (n,), b (m,), all float64; infinite costs forbid a pair.
    """
    rows, columns = _reached(C, a, b)
    cost, p, q = C[rows][:, columns], a[rows], b[columns]
    finite = cost[cost.isfinite()]
    spread = float(finite.amax() - finite.amin())
    levels = math.ceil(math.log(max(spread / epsilon / WIDTH, 1.0), COOLING))
    g, done = torch.zeros_like(q), 0
    for k in range(levels, 0, -1):
        hot = epsilon * COOLING**k
        level = Level(cost / hot, p, q, mass, spread / hot)
        budget = min(COOLING_SWEEPS, max_iter - done)
        begun = _begun(level, g / hot, done)
        state, _ = _climb(level, begun, HALFWAY, budget, quietly(watch))
        g, done = hot * state.g, state.sweeps
    level = Level(cost / epsilon, p, q, mass, spread / epsilon)
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
    """Try a Newton step, then shares of it, then damped ones; keep the first that rises."""
    k, height = state.kernel, _dual(level, state)
    for ridge in RIDGES:
        toward = newton(level, state, ridge)
        if toward is None:
            continue
        length = float((toward - state.g).abs().amax())
        share = min(1.0, level.spread / max(length, 1.0))
        for _ in range(TRIES):
            g = torch.lerp(state.g, toward, share)
            far = bool(((g - k.g).abs() > DRIFT).any())
            sums = _row_sums(level, g) if far else (k.K @ (g - k.g).exp()).log() - (k.f + k.lam)
            other = _swept(level, state, sums)
            rise, noise = _dual(level, other) - height, ROUNDING * abs(height)
            if rise > noise or (rise >= -noise and other.miss < state.miss):
                return other
            share /= SHORTER
    return state


def _dual(level: Level, state: Climbing) -> float:
    """Return the dual less its exponential part, which a sweep leaves as it is: the mass."""
    return float(level.a @ state.f + level.b @ state.g) + state.lam * level.mass


def newton(level: Level, state: Climbing, ridge: float) -> Float[Tensor, "m"] | None:
    """Find the g of a damped Newton step, or None where rounding leaves none."""
    plan = _plan(level, state.f, state.g, state.lam)
    sides = [(state.f, level.a, plan.sum(1)), (state.g, level.b, plan.sum(0))]
    turned = len(level.a) < len(level.b)  # the smaller side is solved for
    if turned:
        plan, sides = plan.T, sides[::-1]
    (f, due_a), (g, due_b) = ((h, cap - at) for h, cap, at in sides)
    f_held, g_held = (h + cap.log() - at.log() >= 0 for h, cap, at in sides)
    best = None
    for _ in range(RELEASES):
        best = _stationary(plan, f, g, due_a, due_b, level.mass, f_held, g_held, ridge)
        if best is None or not bool((best[0] > 0).any() | (best[1] > 0).any()):
            break
        f_held, g_held = f_held | (best[0] > 0), g_held | (best[1] > 0)
    if best is None or not bool(best[0].isfinite().all() & best[1].isfinite().all()):
        return None
    return best[0 if turned else 1].clamp_max(0)


def _stationary(
    P: Float[Tensor, "n m"],
    f: Float[Tensor, "n"],
    g: Float[Tensor, "m"],
    due_a: Float[Tensor, "n"],
    due_b: Float[Tensor, "m"],
    mass: float,
    f_held: Bool[Tensor, "n"],
    g_held: Bool[Tensor, "m"],
    ridge: float,
) -> tuple[Float[Tensor, "n"], Float[Tensor, "m"]] | None:
    """Return the f, g that meet the caps to first order, with zeros where they are held.

    In units of the square roots of the sums, the equations are `x + N y = u`, `N^T x + M y = v`,
    with lam as one more column, and M the identity but for its border.
    """
    A, B = ~f_held, ~g_held
    mu, nu, total = P.sum(1), P.sum(0), P.sum()
    df, dg = torch.where(f_held, -f, 0.0), torch.where(g_held, -g, 0.0)
    r, c = mu[A].sqrt(), torch.cat([nu[B], total[None]]).sqrt()
    N = torch.cat([P[A][:, B], mu[A][:, None]], 1) / r[:, None] / c
    u = (due_a - P @ dg)[A] / r
    rest = mass - total - mu @ df - nu @ dg
    v = torch.cat([(due_b - P.T @ df)[B], rest[None]]) / c
    M = torch.eye(len(c), dtype=c.dtype)
    M[-1, :-1] = M[:-1, -1] = c[:-1] / c[-1]
    y = _solved(M - N.T @ N, v - N.T @ u, ridge)
    if y is None:
        return None
    df[A], dg[B] = (u - N @ y) / r, (y / c)[:-1]
    return f + df, g + dg


def _solved(
    S: Float[Tensor, "k k"], v: Float[Tensor, "k"], ridge: float
) -> Float[Tensor, "k"] | None:
    """Solve with a positive semidefinite matrix, made definite by the ridge or what it takes."""
    ridge *= len(v)
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
