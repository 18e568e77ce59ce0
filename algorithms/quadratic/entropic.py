"""Entropic Gromov-Wasserstein by mirror descent, and without entropy by proximal points."""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.entropic.rounding import round_plan
from algorithms.iterate import Watch, iterate, unwatched
from algorithms.quadratic.objective import Found, Pair, Plan
from algorithms.quadratic.quantised import part
from algorithms.sparse import SparsePlan

# Inner marginals are met to this share of the last move of the plan, between these bounds.
INNER_SHARE, LOOSEST = 0.05, 1e-3
INNER_BELOW = 0.1  # and to this share of the outer tolerance at last
SWEEPS, CHECK_EVERY = 1000, 10
REACH = 1e100  # scalings beyond this move into the potentials
# An entry of a plan counts as at least this share of a_i b_j where its logarithm is taken: an
# entry that had all but vanished could not come back in the steps that there are.
SMALLEST = 1e-12
FARTHEST = 2.0  # no two plans of mass one differ by more in L1


@dataclass(frozen=True)
class Smooth:
    """A feasible plan, its local cost, its objective, and the potentials of its last step.

    Attributes:
        entropy: the part of the objective that `epsilon KL` makes, but for a constant.
        moved: how far the step went in L1, as a share of the mass, before it was damped.
        inner: the error that the marginals of the next step may have before it is rounded.
    """

    P: Float[Tensor, "n m"]
    L: Float[Tensor, "n m"]
    f: Float[Tensor, "n"]
    value: float
    entropy: float
    moved: float = FARTHEST
    inner: float = LOOSEST


def solve_entropic(
    pair: Pair,
    *,
    epsilon: float,
    proximal: bool = False,
    plan0: Plan | None = None,
    tol: float = 1e-6,
    max_iter: int = 500,
    watch: Watch = unwatched,
) -> Found:
    r"""Find a stationary plan of `objective(P) + epsilon KL(P | a b^T)` over U(a, b).

    Each step is `P' = argmin_Q <gradient(P), Q> + epsilon KL(Q | R)`, one problem of
    entropic transport with warm potentials. R is a b^T, and fixed points are stationary for the
    entropic objective, which no step raises; or, proximal, R = P, and they are stationary
    for the objective without entropy. Where a full step would raise the objective
    (it cannot where the costs are conditionally negative definite, as squared distances are) it is
    shortened, to the best point of a quadratic bound. Every plan is rounded to U(a, b) before its
    objective is taken.

    Returns:
        The plan, feasible, with its objective (entropy not included). The residual that `tol` is
        compared with is the L1 length of a full step as a share of the mass.
    """
    alive = [w.nonzero()[:, 0] for w in (pair.a, pair.b)]
    whole = all(len(i) == len(w) for i, w in zip(alive, (pair.a, pair.b), strict=True))
    core = pair if whole else _restricted(pair, *alive)
    first = _begun(pair, plan0)
    first = first if whole else first[alive[0]][:, alive[1]]
    first = round_plan(first, core.a, core.b)
    entropy = 0.0 if proximal else epsilon
    begun = _valued(core, first, core.local_cost(first), torch.zeros_like(core.a), entropy)
    state, stop = iterate(
        lambda state: _step(core, state, epsilon, proximal, tol),
        lambda state: state.moved,
        begun,
        tol=tol,
        max_iter=max_iter,
        watch=watch,
    )
    plan = state.P
    if not whole:
        plan = torch.zeros(pair.shape, dtype=plan.dtype, device=plan.device)
        plan[alive[0][:, None], alive[1]] = state.P
    value = float(pair.objective(plan))
    start = "proximal" if proximal else "entropic"
    return Found(plan, value, start, stop.iterations, stop.status, residual=stop.residual)


def transported(
    C: Float[Tensor, "n m"],
    a: Float[Tensor, "n"],
    b: Float[Tensor, "m"],
    epsilon: float,
    f: Float[Tensor, "n"],
    tol: float,
) -> tuple[Float[Tensor, "n m"], Float[Tensor, "n"]]:
    """Solve entropic transport of mass one from potentials f of a nearby problem.

    Two half steps in the log domain, after which rows are exact and no column is lost to the range
    of the type (column j keeps b_j min(a)), then plain scaling. The L1 error of the
    marginals is at most tol unless the sweeps run out.
    """
    sweeps = 0
    while True:
        z = (f / epsilon + a.log())[:, None] - C / epsilon
        g = -epsilon * z.logsumexp(0)  # (n, m) -> (m,)
        z = torch.sub(g / epsilon + b.log(), C, alpha=1 / epsilon)
        top = z.amax(1, keepdim=True)
        K = z.sub_(top).exp_()  # (n, m), largest entry of a row 1
        rows = K.sum(1)
        f = -epsilon * (top[:, 0] + rows.log())
        K.mul_((a / rows)[:, None])
        u, v = torch.ones_like(a), torch.ones_like(b)
        error, far = math.inf, False
        while sweeps < SWEEPS and error > tol and not far:
            for _ in range(CHECK_EVERY):
                t = K.T @ u  # (n, m), (n,) -> (m,)
                v = b / t
                s = K @ v
                u = a / s
            sweeps += CHECK_EVERY
            error = float((v * (K.T @ u) - b).abs().sum())
            far = not max(float(u.aminmax().max), 1 / float(u.aminmax().min)) < REACH
        if far and sweeps < SWEEPS:
            f = torch.where(u.isfinite() & (u > 0), f + epsilon * u.log(), f)
            continue
        return K * u[:, None] * v, f + epsilon * u.log()


def _step(pair: Pair, state: Smooth, epsilon: float, proximal: bool, tol: float) -> Smooth:
    mass = pair.a.sum()
    slope = 2 * pair.alpha * state.L
    if pair.M is not None:
        slope.add_(pair.M, alpha=1 - pair.alpha)
    a, b = pair.a / mass, pair.b / mass
    inner = max(INNER_BELOW * tol, state.inner)
    if proximal:
        nearness = (state.P / (pair.a[:, None] * b)).clamp_min_(SMALLEST).log_()
        prox = slope - epsilon * nearness
        plan, f = transported(prox, a, b, epsilon, torch.zeros_like(a), inner)
    else:
        plan, f = transported(slope, a, b, epsilon, state.f, inner)
    P = round_plan(plan * mass, pair.a, pair.b)
    entropy = 0.0 if proximal else epsilon
    ahead = _valued(pair, P, pair.local_cost(P), f, entropy)
    E = P - state.P
    moved = float(E.abs().sum() / mass)
    # on the segment the quadratic part is known exactly, and entropy lies below its chord
    fall = -float((slope * E).sum()) - (ahead.entropy - state.entropy)
    curvature = pair.alpha * float(((ahead.L - state.L) * E).sum())
    inner = min(state.inner, LOOSEST, INNER_SHARE * moved)
    if ahead.value <= state.value:
        return replace(ahead, moved=moved, inner=inner)
    if fall <= 0:  # loose marginals hid what the step gains
        return replace(state, f=f, moved=moved, inner=inner * INNER_BELOW)
    t = fall / (2 * curvature)
    L = torch.lerp(state.L, ahead.L, t)
    new = _valued(pair, state.P.add(E, alpha=t), L, f, entropy)
    return replace(new, moved=moved, inner=inner)


def _valued(
    pair: Pair,
    P: Float[Tensor, "n m"],
    L: Float[Tensor, "n m"],
    f: Float[Tensor, "n"],
    epsilon: float,
) -> Smooth:
    value = float(pair.alpha * torch.vdot(L.ravel(), P.ravel()))
    value += (1 - pair.alpha) * float(pair.linear(P))
    if epsilon == 0:
        return Smooth(P, L, f, value, 0.0)
    near = torch.xlogy(P, P).sum() - P.sum(1) @ pair.a.log() - P.sum(0) @ pair.b.log()
    entropy = epsilon * float(near)
    return Smooth(P, L, f, value + entropy, entropy)


def _begun(pair: Pair, plan0: Plan | None) -> Float[Tensor, "n m"]:
    if plan0 is None:
        return pair.a[:, None] * (pair.b / pair.b.sum())
    return plan0.dense(*pair.shape) if isinstance(plan0, SparsePlan) else plan0


def _restricted(pair: Pair, rows: Tensor, cols: Tensor) -> Pair:
    """Leave out points without mass."""
    M = None if pair.M is None else pair.M[rows][:, cols]
    X, Y = part(pair.X, rows), part(pair.Y, cols)
    return Pair(X, Y, pair.a[rows], pair.b[cols], M, pair.alpha)
