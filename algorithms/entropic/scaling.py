"""Balanced entropic potentials by over-relaxed scaling of a stabilised kernel."""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.entropic import compiled
from algorithms.entropic.conjugate import conjugate_gradients
from algorithms.iterate import Stop, Watch, iterate, quietly, unwatched

# Sweeps between two looks at the error; the first ten are watched one by one: a start moves far.
CHECK_EVERY = 10
# Scalings beyond this are absorbed into the potentials, before entries that were clamped matter.
# By the type of the kernel, and whether the scalings are as wide: then clamped entries, of 2e-35,
# weigh 2e-15 at most.
REACH = {torch.float64: 1e40, torch.float32: 1e4}
REACH_WIDE = {torch.float64: 1e40, torch.float32: 1e10}
# A kernel stored in float32 moves the marginals by less: its rounding errors, 6e-8 of an entry at
# most, average out in a sum. To this error compiled loops read half the bytes, for the same answer.
SINGLE = 1e-7
# Weights whose smallest product is less do not leave float32 enough room for their plan.
SINGLE_ROOM = 1e-20
# exp of less than this is (nearly) subnormal, slow to compute and slow to multiply.
LOWEST = {torch.float64: -690.0, torch.float32: -80.0}
# Sums below this share of their weight come from clamped entries alone.
UNSEEN = {torch.float64: 1e-250, torch.float32: 1e-25}
# Checks before the first estimate of the rate: until then fast modes hide the slow one.
PLAIN_CHECKS = 3
# Share of 1/(2 - w), the memory of a relaxed sweep, over which its rate is measured, and the
# number of such spans after which a relaxation that was not raised is tried lower.
MEMORY, SPANS = 0.5, 4
# Relaxation never comes nearer to 2, where the spectral radius w - 1 of a relaxed sweep is 1.
MOST_RELAXED = 1.98
# Growth of the error that ends a relaxation. Smaller growth is its way: a sweep is not normal.
RUNAWAY = 30.0
# A step of this share of 2 - w is worth a new estimate.
WORTH = 0.1
# Every so many sweeps, Newton's method has a try if the error is in its basin, and another if it
# brought the error down by this factor.
SWEEPS_BEFORE_NEWTON, NEWTON_BASIN, NEWTON_WORTH = 200, 1e-2, 0.1
NEWTON_STEPS, NEWTON_PATIENCE = 30, 5
# The linear systems are solved to this share of the square root of the error: superlinear.
NEWTON_SHARE = 0.1
# Largest change of a log-scaling in one step; halvings of a step; share of slope that is growth.
NEWTON_REACH, HALVINGS, ARMIJO = 20.0, 12, 1e-4
# Checks without a new best error before the loop gives up: relaxed errors rise for a while.
PATIENCE = 100
# Relaxation waits for this error: before, the sweep is too far from linear and scalings run away.
NEARLY_LINEAR = 0.5
# From the widest kernel exp(-RANGE) that plain sweeps cross quickly, epsilon goes down by COOLING
# after at most COOLING_SWEEPS: measured on clouds of 500 and 2000 points, 1.5 to 2 times fewer
# sweeps in two dimensions, 0.9 to 1.3 times in fifty.
RANGE, COOLING, COOLING_SWEEPS = 1e3, 4.0, 20
# Entries in one block of the kernel: half a megabyte stays in a CPU's cache; a GPU wants few calls.
BLOCK = {"cpu": 1 << 16}
BLOCK_ELSEWHERE = 1 << 26


@dataclass(frozen=True)
class Problem:
    """Balanced entropic transport: positive weights of mass one in float64, C in its own type."""

    C: Float[Tensor, "n m"]
    a: Float[Tensor, "n"]
    b: Float[Tensor, "m"]
    epsilon: float


@dataclass(frozen=True)
class Scaled:
    """Potentials, their kernel `K_ij = a_i b_j exp((f_i + g_j - C_ij)/eps)`, and scalings of it.

    `s = K v` and `t = K^T u` are carried along: with them both marginal errors cost O(n + m).
    The buffer of K is shared by successive states and rewritten when scalings are absorbed; the
    potentials of an older state stay right, being made of f, g, u, v and t only.

    Attributes:
        relaxation: the exponent w of a sweep; 1 is Sinkhorn's.
        errors: marginal errors at the checks since the relaxation was last chosen.
        careful: look at the scalings after every sweep.
    """

    f: Float[Tensor, "n"]
    g: Float[Tensor, "m"]
    K: Float[Tensor, "n m"]
    u: Float[Tensor, "n"]
    v: Float[Tensor, "m"]
    s: Float[Tensor, "n"]
    t: Float[Tensor, "m"]
    relaxation: float = 1.0
    sweeps: int = 0
    errors: tuple[float, ...] = ()
    careful: bool = False


@dataclass(frozen=True)
class Solved:
    """Potentials rounded to the type of C, their plan, its marginals in float64, and the stop."""

    f: Float[Tensor, "n"]
    g: Float[Tensor, "m"]
    plan: Float[Tensor, "n m"]
    rows: Float[Tensor, "n"]
    columns: Float[Tensor, "m"]
    stop: Stop


def solve(p: Problem, *, tol: float, max_iter: int, watch: Watch = unwatched) -> Solved:
    r"""Find f, g whose plan has both marginals within `tol` in L1 (together), or say why not.

    Exponents are float64 whatever the type of C. The error that is reported is recomputed from
    the potentials; when it belies the loop's, or the loop diverged, careful sweeps get a
    second chance.
    """
    state = start(p, tol, max_iter, watch)
    while True:
        single, careful = state.K.dtype != p.C.dtype, state.careful
        target = max(tol, SINGLE) if single else tol
        state, stop = _approach(p, state, target, max_iter, watch)
        state = _finished(p, state)
        error = float(marginal_error(p, state))
        # rounded potentials of a float32 answer may belie the loop: more sweeps would not help
        belied = stop.status == "converged" and p.C.dtype == torch.float64
        if error <= tol or careful or stop.status == "interrupted" or state.sweeps >= max_iter:
            break
        if not (single or belied or stop.status == "diverged"):
            break
        plain = not single and stop.status == "diverged"
        state = replace(
            state, careful=not single, relaxation=1.0 if plain else state.relaxation, errors=()
        )
    status = stop.status if stop.status != "converged" else "stagnated"
    stop = Stop("converged" if error <= tol else status, state.sweeps, error)
    rows, columns = state.s, state.t
    if rows.dtype != torch.float64:
        rows, columns = _sums(state.K, 1), _sums(state.K, 0)
    return Solved(state.f, state.g, state.K, rows, columns, stop)


def start(p: Problem, tol: float, max_iter: int, watch: Watch = unwatched) -> Scaled:
    """Anneal: some sweeps at each of `eps 4^k, ..., eps 4`, then the kernel of eps itself.

    At the first level g and f are the c-transforms of zero and of g: every row and every column of
    the kernel has an entry `a_i b_j`, and no exponent is positive.
    """
    f, g, spread = _transforms(p.C)
    reach = max(spread / p.epsilon / RANGE, 1.0)
    levels = math.ceil(math.log(reach, COOLING))
    hot = replace(p, epsilon=p.epsilon * COOLING**levels)
    state = seen(hot, f, g, _room(p))
    for level in range(levels - 1, -1, -1):
        level_end = min(state.sweeps + COOLING_SWEEPS, max_iter)
        warm, _ = _climb(hot, state, tol, level_end, quietly(watch))
        hot = replace(p, epsilon=p.epsilon * COOLING**level)
        state = replace(
            seen(hot, *_absorbing(warm, hot.epsilon * COOLING), warm.K), sweeps=warm.sweeps
        )
    return state


def _transforms(C: Float[Tensor, "n m"]) -> tuple[Float[Tensor, "n"], Float[Tensor, "m"], float]:
    """Return the c-transform of g, g, and the extent of C."""
    if compiled.runs_on(C):
        f, g, spread = compiled.transforms(C.contiguous().numpy())
        return torch.from_numpy(f), torch.from_numpy(g), float(spread)
    (low, high), g = C.aminmax(), C.amin(0)
    return (C - g).amin(1).double(), g.double(), float(high - low)


def _room(p: Problem) -> Float[Tensor, "n m"]:
    """Allocate the kernel, in float32 where compiled loops multiply it by float64."""
    thin = compiled.runs_on(p.C) and float(p.a.amin() * p.b.amin()) > SINGLE_ROOM
    return torch.empty_like(p.C, dtype=torch.float32 if thin else p.C.dtype)


def seen(
    p: Problem, f: Float[Tensor, "n"], g: Float[Tensor, "m"], out: Float[Tensor, "n m"]
) -> Scaled:
    """Build the kernel of f, g; of a half step on each side where a row or column is empty.

    After g = s_g(f) columns are exact; after f = s_f(g) rows are, and column j keeps at least
    b_j min(a): no sum can be lost to the range of the type.
    """
    state = scaled(p, f, g, out)
    ends = [(state.s / p.a).aminmax(), (state.t / p.b).aminmax()]
    low, high = min(float(e.min) for e in ends), max(float(e.max) for e in ends)
    if low > UNSEEN[out.dtype] and math.isfinite(high):
        return state
    g = half_step(p.C.T, f, p.a, p.epsilon)
    return scaled(p, half_step(p.C, g, p.b, p.epsilon), g, out)


def half_step(
    C: Float[Tensor, "n m"], g: Float[Tensor, "m"], b: Float[Tensor, "m"], epsilon: float
) -> Float[Tensor, "n"]:
    r"""Compute `s_f(g)_i = -eps LSE_j(log b_j + (g_j - C_ij)/eps)`, the best f for a given g."""
    z = (g / epsilon + b.log()).to(C.dtype) - C / epsilon  # (n, m)
    top = z.amax(1)  # (n, m) -> (n,)
    total = _sums(z.sub_(top[:, None]).clamp_(min=LOWEST[C.dtype]).exp_(), 1)
    return -epsilon * (top + total.log())


def scaled(
    p: Problem, f: Float[Tensor, "n"], g: Float[Tensor, "m"], out: Float[Tensor, "n m"]
) -> Scaled:
    """Build the kernel of f, g in `out` by row blocks, exponents in float64, with u = v = 1."""
    left, right = f / p.epsilon + p.a.log(), g / p.epsilon + p.b.log()
    if compiled.runs_on(p.C):
        s, t = compiled.filled(p.C, left, right, 1 / p.epsilon, LOWEST[out.dtype], out)
        return Scaled(f, g, out, torch.ones_like(s), torch.ones_like(t), s, t)
    rows = max(1, BLOCK.get(p.C.device.type, BLOCK_ELSEWHERE) // p.C.shape[1])
    for i in range(0, p.C.shape[0], rows):
        z = left[i : i + rows, None] + right  # (rows, m)
        z.sub_(p.C[i : i + rows], alpha=1 / p.epsilon)
        out[i : i + rows] = z.clamp_(min=LOWEST[out.dtype])
        out[i : i + rows].exp_()
    s, t = _sums(out, 1).to(out.dtype), _sums(out, 0).to(out.dtype)
    return Scaled(f, g, out, torch.ones_like(s), torch.ones_like(t), s, t)


def sweep(p: Problem, state: Scaled) -> Scaled:
    """Scale columns, then rows: `v <- v (b / (v K^T u))^w`, `u <- u (a / (u K v))^w`."""
    w, a, b = state.relaxation, p.a.to(state.u), p.b.to(state.v)
    v = b / state.t if w == 1 else state.v * (b / (state.v * state.t)) ** w
    s = _times(state.K, v)
    u = a / s if w == 1 else state.u * (a / (state.u * s)) ** w
    return replace(state, u=u, v=v, s=s, t=_across(state.K, u), sweeps=state.sweeps + 1)


def sweeps(p: Problem, state: Scaled, count: int, tol: float) -> Scaled:
    """Sweep `count` times, or until the error is below `tol` or a scaling far where that is seen.

    It is seen after every sweep by compiled loops; by tensors when it costs little: after the
    first ten, in float32, and where care was asked for.
    """
    if compiled.runs_on(state.K):
        rows, columns = torch.stack([p.a, state.u, state.s]), torch.stack([p.b, state.v, state.t])
        reach = REACH_WIDE[state.K.dtype]
        done = compiled.scale_kernel(
            state.K.numpy(), rows.numpy(), columns.numpy(), state.relaxation, count, tol, reach
        )
        (_, u, s), (_, v, t) = rows, columns
        return replace(state, u=u, v=v, s=s, t=t, sweeps=state.sweeps + done)
    wary = state.careful or state.u.dtype == torch.float32 or state.sweeps < CHECK_EVERY
    for _ in range(1 if wary else count):
        state = sweep(p, state)
    return state


def marching(p: Problem, state: Scaled, end: int, tol: float) -> Scaled:
    """Sweep to the next check, absorbing scalings that went far; there choose the relaxation."""
    end = min(end, state.sweeps - state.sweeps % CHECK_EVERY + CHECK_EVERY)
    while state.sweeps < end:
        before = state.sweeps
        state = _absorbed(p, sweeps(p, state, end - before, tol))
        if state.sweeps == before:
            return state
    return state if state.sweeps % CHECK_EVERY else _relaxed(p, state)


def marginal_error(p: Problem, state: Scaled) -> Tensor:
    """Add the L1 errors of both marginals of `diag(u) K diag(v)`."""
    rows = (state.u * state.s - p.a).abs().sum()
    return rows + (state.v * state.t - p.b).abs().sum()


def _absorbed(p: Problem, state: Scaled) -> Scaled:
    """Move scalings that went far into the potentials and rebuild the kernel."""
    far = torch.stack([state.u.log().abs().amax(), state.v.log().abs().amax()]).amax()
    wide = state.u.dtype == torch.float64
    if float(far) <= math.log((REACH_WIDE if wide else REACH)[state.K.dtype]):
        return state
    fresh = scaled(p, *_absorbing(state, p.epsilon), state.K)
    return replace(
        fresh,
        relaxation=state.relaxation,
        sweeps=state.sweeps,
        errors=state.errors,
        careful=state.careful,
    )


def _absorbing(state: Scaled, epsilon: float) -> tuple[Float[Tensor, "n"], Float[Tensor, "m"]]:
    f = state.f + epsilon * state.u.double().log()
    return f, state.g + epsilon * state.v.double().log()


def _relaxed(p: Problem, state: Scaled) -> Scaled:
    r"""Choose the relaxation from the rate of the errors, as in successive over-relaxation.

    A sweep with exponent w whose error falls by lam has `(lam + w - 1)^2 = lam w^2 theta`, theta
    the rate of plain sweeps (Young 1971, section 5.2); the best exponent for theta is
    `2 / (1 + sqrt(1 - theta))`. Early estimates of theta are low: the exponent is raised again
    while lam exceeds w - 1, the rate at and beyond the best exponent, and tried lower when lam
    has been w - 1 for long.
    """
    w, errors = state.relaxation, (*state.errors, float(marginal_error(p, state)))
    state = replace(state, errors=errors)
    if errors[-1] > NEARLY_LINEAR:
        return replace(state, relaxation=1.0)
    if w > 1 and errors[-1] > RUNAWAY * min(errors):
        return replace(state, relaxation=1.0, errors=errors[-1:])
    span = 1 if w == 1 else max(2, math.ceil(MEMORY / (2 - w) / CHECK_EVERY))
    enough = PLAIN_CHECKS if w == 1 else 1 + span
    if len(errors) < enough or not 0 < errors[-1] < errors[-1 - span]:
        return state
    rate = (errors[-1] / errors[-1 - span]) ** (1 / (span * CHECK_EVERY))
    theta = min((rate + w - 1) ** 2 / (rate * w * w), 1.0)
    best = min(MOST_RELAXED, 2 / (1 + math.sqrt(1 - theta)))
    if rate > w - 1 and (w == 1 or best > w + WORTH * (2 - w)):
        return replace(state, relaxation=best, errors=errors[-1:])
    if w > 1 and len(errors) > SPANS * span and rate <= w - 1 + WORTH * (2 - w):
        return replace(state, relaxation=1 + (w - 1) ** 2, errors=errors[-1:])
    return state


def polished(p: Problem, state: Scaled, *, tol: float, max_iter: int, watch: Watch) -> Scaled:
    """Take Newton steps on the dual, for plans so nearly determined that sweeps crawl.

    One step of conjugate gradients costs two products with the kernel, and counts, like a sweep.
    """
    target = state.sweeps + max_iter
    state, _ = iterate(
        lambda state: _newton(p, state, target - state.sweeps, quietly(watch)),
        lambda state: marginal_error(p, state),
        _columns_exact(p, state, state.u),
        tol=tol,
        max_iter=NEWTON_STEPS,
        patience=NEWTON_PATIENCE,
        watch=watch,
    )
    return state


def _newton(p: Problem, state: Scaled, left: int, watch: Watch) -> Scaled:
    r"""Solve `(diag(P1) - P diag(1/b) P^T) y = a - P1`, `f <- f + eps tau y`, `g = s_g(f)`.

    tau is halved until the dual `<a, f> + <b, g>` grows by a share of its slope (Armijo).
    """
    mu, v, K = state.u * state.s, state.v, state.K
    a, b = p.a.to(mu), p.b.to(mu)
    y, stop = conjugate_gradients(
        lambda d: mu * d - state.u * _times(K, v * v / b * _across(K, state.u * d)),
        a - mu,
        mu,
        tol=NEWTON_SHARE * math.sqrt(min(1.0, float(marginal_error(p, state)))),
        max_iter=max(0, left),
        watch=watch,
    )
    slope = float((a - mu) @ y)
    tau = min(1.0, NEWTON_REACH / max(float(y.abs().amax()), NEWTON_REACH))
    moved = _columns_exact(p, state, state.u * (tau * y).exp())
    for _ in range(HALVINGS):
        gain = float(tau * (a @ y) + b @ (moved.v / state.v).log())
        if gain >= ARMIJO * tau * slope - torch.finfo(state.K.dtype).eps:
            break
        tau /= 2
        moved = _columns_exact(p, state, state.u * (tau * y).exp())
    return _absorbed(p, replace(moved, sweeps=state.sweeps + stop.iterations + 1))


def _columns_exact(p: Problem, state: Scaled, u: Float[Tensor, "n"]) -> Scaled:
    t = _across(state.K, u)
    v = p.b.to(t) / t
    return replace(state, u=u, v=v, s=_times(state.K, v), t=t)


def _approach(
    p: Problem, state: Scaled, tol: float, max_iter: int, watch: Watch
) -> tuple[Scaled, Stop]:
    """Sweep; where that crawls near the optimum, polish; where polishing fails, sweep on."""
    trying = True
    while trying:
        end = min(state.sweeps + SWEEPS_BEFORE_NEWTON, max_iter)
        state, stop = _climb(p, state, tol, end, watch)
        if stop.status != "max_iter" or state.sweeps >= max_iter:
            return state, stop
        if stop.residual < NEWTON_BASIN:
            left = max_iter - state.sweeps
            state = polished(p, state, tol=tol, max_iter=left, watch=_onward(state, watch))
            trying = float(marginal_error(p, state)) < NEWTON_WORTH * stop.residual
    return _climb(p, state, tol, max_iter, watch)


def _climb(
    p: Problem, state: Scaled, tol: float, max_iter: int, watch: Watch
) -> tuple[Scaled, Stop]:
    checks = _onward(state, watch)
    return iterate(
        lambda state: marching(p, state, max_iter, tol),
        lambda state: marginal_error(p, state),
        state,
        tol=tol,
        max_iter=math.ceil(max(0, max_iter - state.sweeps) / CHECK_EVERY),
        patience=PATIENCE,
        watch=lambda check, error: checks(check * CHECK_EVERY, error),
    )


def _onward(state: Scaled, watch: Watch) -> Watch:
    """Count on from the sweeps already made; a negative iteration stays: it reports nothing."""
    return lambda iteration, residual: watch(
        iteration if iteration < 0 else state.sweeps + iteration, residual
    )


def _finished(p: Problem, state: Scaled) -> Scaled:
    """Take a plain half step on g (columns become exact), centre f, round, and rebuild.

    The half step adds to the row error at most what it removes from the column error.
    """
    f = state.f + p.epsilon * state.u.double().log()
    g = state.g + p.epsilon * (p.b.log() - state.t.double().log())
    centre = p.a @ f
    f, g = (h.to(p.C.dtype).double() for h in (f - centre, g + centre))
    if state.K.dtype == p.C.dtype:
        done = scaled(p, f, g, state.K)
    else:  # sums of the rounded kernel were not those of this one: its columns are made exact
        done = scaled(p, f, g, torch.empty_like(p.C))
        v = p.b / done.t
        s, t = compiled.columns_scaled(done.K.numpy(), v.numpy())
        g = g + p.epsilon * v.log()
        done = replace(done, g=g, s=torch.from_numpy(s), t=torch.from_numpy(t))
    return replace(done, relaxation=state.relaxation, sweeps=state.sweeps)


def _times(K: Float[Tensor, "n m"], v: Float[Tensor, "m"]) -> Float[Tensor, "n"]:
    if K.dtype == v.dtype:
        return K @ v
    return torch.from_numpy(compiled.multiply(K.numpy(), v.numpy()))


def _across(K: Float[Tensor, "n m"], u: Float[Tensor, "n"]) -> Float[Tensor, "m"]:
    if K.dtype == u.dtype:
        return K.T @ u
    return torch.from_numpy(compiled.multiply_transposed(K.numpy(), u.numpy()))


def _sums(K: Float[Tensor, "n m"], axis: int) -> Float[Tensor, "k"]:
    return K.sum(axis, dtype=torch.float64)
