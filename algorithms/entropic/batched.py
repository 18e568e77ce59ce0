r"""Many small balanced entropic problems at once: what a call costs, it costs once.

Problems of one shape are stacked, each with its own epsilon, tolerance and budget. Compiled loops
take them one after the other, each from its start to its end: some sweeps, then Newton's method.
Where those do not run, all are swept together in one tensor, over-relaxed, which those that have
converged, or will not here, leave. What needs more than one kernel is not for here.
"""

import math
from dataclasses import dataclass
from typing import no_type_check

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from algorithms.entropic import compiled
from algorithms.entropic.compiled import Array, scale_kernel
from algorithms.entropic.semidual import STEPS, solve_one
from algorithms.iterate import Watch, unwatched

# Sweeps between two looks at the errors, and sweeps after which a problem is said to crawl.
CHECK_EVERY, CRAWLS = 10, 2000
# Compiled sweeps before the first Newton step.
FIRST = 20
# Widest exponents of one kernel, and farthest scalings of it, that need no absorption.
RANGE, REACH = 600.0, 1e40
# Entries of all problems in one tensor, some megabytes; and of those between two looks at `watch`.
ROOM, UNWATCHED = 1 << 21, 1 << 16
# Relaxation, as in `scaling`: from this error on, after so many plain checks, never nearer to 2,
# given up where the error grows by RUNAWAY.
NEARLY_LINEAR, PLAIN_CHECKS, MOST_RELAXED, WORTH, RUNAWAY = 0.5, 3, 1.98, 0.1, 30.0


@dataclass(frozen=True)
class Small:
    """Problems of one shape, in float64: positive weights of one mass, finite costs."""

    C: Float[Tensor, "B n m"]
    a: Float[Tensor, "B n"]
    b: Float[Tensor, "B m"]
    mass: Float[Tensor, "B"]
    epsilon: Float[Tensor, "B"]
    tol: Float[Tensor, "B"]
    max_iter: Int[Tensor, "B"]

    def pick(self, these: Bool[Tensor, "B"] | Int[Tensor, "k"] | slice) -> "Small":
        """Keep some of them."""
        return Small(**{name: value[these] for name, value in vars(self).items()})


@dataclass(frozen=True)
class Potentials:
    """Converged potentials of weights of mass one (gauge `<f, a> = 0`), their plans, the sweeps.

    `index` says which of the problems they solve; the others were left unsolved.
    """

    index: Int[Tensor, "k"]
    f: Float[Tensor, "k n"]
    g: Float[Tensor, "k m"]
    plan: Float[Tensor, "k n m"]
    sweeps: Int[Tensor, "k"]


@dataclass
class Together:
    """Problems of one shape that are being swept; `K_ij = a_i b_j exp((f_i + g_j - C_ij)/eps)`.

    `s = K v` and `t = K^T u`, as in `scaling`. Rewritten in place: it never leaves this file.
    """

    index: Int[Tensor, "B"]
    C: Float[Tensor, "B n m"]
    a: Float[Tensor, "B n"]
    b: Float[Tensor, "B m"]
    epsilon: Float[Tensor, "B"]
    tol: Float[Tensor, "B"]
    max_iter: Int[Tensor, "B"]
    f: Float[Tensor, "B n"]
    g: Float[Tensor, "B m"]
    K: Float[Tensor, "B n m"]
    u: Float[Tensor, "B n"]
    v: Float[Tensor, "B m"]
    s: Float[Tensor, "B n"]
    t: Float[Tensor, "B m"]
    sweeps: Int[Tensor, "B"]
    w: Float[Tensor, "B"]
    before: Float[Tensor, "B"]
    least: Float[Tensor, "B"]
    checks: Int[Tensor, "B"]

    def pick(self, these: Bool[Tensor, "B"]) -> "Together":
        """Take some of them."""
        return Together(**{name: value[these] for name, value in vars(self).items()})

    def errors(self) -> Float[Tensor, "B"]:
        """Add the L1 errors of both marginals."""
        rows = (self.u * self.s - self.a).abs().sum(1)
        return rows + (self.v * self.t - self.b).abs().sum(1)

    def sweep(self) -> None:
        """Scale columns, then rows."""
        w = self.w[:, None]
        self.v = self.v * (self.b / (self.v * self.t)) ** w
        self.s = torch.bmm(self.K, self.v[:, :, None])[:, :, 0]
        self.u = self.u * (self.a / (self.u * self.s)) ** w
        self.t = torch.bmm(self.u[:, None], self.K)[:, 0]


def solve_small(problems: Small, *, watch: Watch = unwatched) -> Potentials:
    """Solve what converges by sweeps within its budget; leave out what does not, or not here."""
    batch = _begun(problems)
    if compiled.runs_on(problems.C):
        return _gathered([_potentials(_one_by_one(batch, watch))], problems)
    return _gathered(_all_together(batch, watch), problems)


def _one_by_one(batch: Together, watch: Watch) -> Together:
    """Take each from its start to its end; return those that have converged."""
    K = batch.K.numpy()
    rows = torch.stack([batch.a, batch.u, batch.s], 1)  # (B, 3, n)
    columns = torch.stack([batch.b, batch.v, batch.t], 1)  # (B, 3, m)
    tol, budget = batch.tol.numpy(), batch.max_iter.numpy()
    sweeps = np.full(len(K), -1)
    step = max(1, UNWATCHED // (K.shape[1] * K.shape[2]))
    for first in range(0, len(K), step):
        if not watch(first, 0.0):
            break
        some = slice(first, first + step)
        scale_each(K[some], rows[some].numpy(), columns[some].numpy(), tol[some], budget[some],
                   sweeps[some])  # fmt: skip
    (_, batch.u, batch.s), (_, batch.v, batch.t) = rows.unbind(1), columns.unbind(1)
    batch.sweeps = torch.from_numpy(sweeps)
    return batch.pick(batch.sweeps >= 0)


@compiled.compiled()
@no_type_check
def scale_each(
    K: Array, rows: Array, columns: Array, tol: Array, budget: Array, sweeps: Array
) -> None:
    """Scale one kernel after the other; write the sweeps it took, -1 where it did not converge."""
    for k in range(K.shape[0]):
        sweeps[k] = scale_one(K[k], rows[k], columns[k], tol[k], budget[k])


@compiled.compiled()
@no_type_check
def scale_one(K: Array, rows: Array, columns: Array, tol: float, budget: int) -> int:
    """Sweep a little, then take Newton steps: each counts as the sweeps that it costs."""
    done = scale_kernel(K, rows, columns, 1.0, min(FIRST, budget), tol, np.inf)
    price = min(K.shape)
    made = solve_one(K, rows, columns, tol, min(STEPS, (budget - done) // price), REACH)
    return made if made < 0 else done + made * price


def _all_together(batch: Together, watch: Watch) -> list[Potentials]:
    """Sweep all in one tensor; who has converged, or will not here, leaves it."""
    found, done = list[Potentials](), 0
    while True:
        errors = batch.errors()
        ended = errors <= batch.tol
        batch.sweeps.fill_(done)
        if bool(ended.any()):
            found.append(_potentials(batch.pick(ended)))
        far = torch.maximum(batch.u.log().abs().amax(1), batch.v.log().abs().amax(1))
        going = ~ended & (far < math.log(REACH)) & (batch.max_iter >= done + CHECK_EVERY)
        batch = batch.pick(going)
        if not len(batch.index) or done >= CRAWLS or not watch(done, float(errors[going].amax())):
            return found
        _pace(batch, errors[going])
        for _ in range(CHECK_EVERY):
            batch.sweep()
        done += CHECK_EVERY


def _begun(p: Small) -> Together:
    """Build the kernels, of c-transforms of zero; leave out the too sharp ones."""
    a, b = (w / w.sum(1, keepdim=True) for w in (p.a, p.b))
    g = p.C.amin(1)
    f = (p.C - g[:, None]).amin(2)
    z = (f[:, :, None] + g[:, None] - p.C) / p.epsilon[:, None, None]
    narrow = -z.amin((1, 2)) < RANGE
    K = a[:, :, None] * b[:, None] * z.exp()
    s, t, one = K.sum(2), K.sum(1), torch.ones_like(p.epsilon)
    index = torch.arange(len(a), device=p.C.device)
    none = torch.zeros_like(index)
    return Together(
        *(index, p.C, a, b, p.epsilon, p.tol, p.max_iter, f, g, K, torch.ones_like(s)),
        *(torch.ones_like(t), s, t, none, one, one * math.inf, one * math.inf, none),
    ).pick(narrow)


def _pace(batch: Together, errors: Float[Tensor, "B"]) -> None:
    """Choose each relaxation from the rate of its errors, as `scaling` does for one."""
    w = batch.w
    rate = (errors / batch.before).clamp(1e-300, 1) ** (1 / CHECK_EVERY)
    theta = ((rate + w - 1).square() / (rate * w * w)).clamp_max(1)
    best = (2 / (1 + (1 - theta).sqrt())).clamp_max(MOST_RELAXED)
    patient = torch.where(w == 1, PLAIN_CHECKS, 2 + (0.5 / (2 - w) / CHECK_EVERY).ceil())
    ready = (batch.checks >= patient) & (errors < batch.before) & (errors < NEARLY_LINEAR)
    raised = ready & (rate > w - 1) & ((w == 1) | (best > w + WORTH * (2 - w)))
    lowered = ready & ~raised & (w > 1) & (batch.checks > 4 * patient)
    lowered &= rate <= w - 1 + WORTH * (2 - w)
    wild = (w > 1) & (errors > RUNAWAY * batch.least)
    w = torch.where(raised, best, torch.where(lowered, 1 + (w - 1).square(), w))
    batch.w = torch.where(wild, 1.0, w)
    anew = raised | lowered | wild
    batch.checks = torch.where(anew, 0, batch.checks + 1)
    batch.least = torch.where(anew, errors, torch.minimum(batch.least, errors))
    batch.before = errors


def _potentials(batch: Together) -> Potentials:
    """Take a plain half step on g, centre f, and build the plans, if they are as good as said."""
    epsilon, a, b = batch.epsilon[:, None], batch.a, batch.b
    f = batch.f + epsilon * batch.u.log()
    g = batch.g + epsilon * (b / batch.t).log()
    centre = (a * f).sum(1, keepdim=True)
    f, g = f - centre, g + centre
    density = ((f[:, :, None] + g[:, None] - batch.C) / epsilon[:, None]).exp()
    P = density * a[:, :, None] * b[:, None]
    errors = (P.sum(2) - a).abs().sum(1) + (P.sum(1) - b).abs().sum(1)
    kept = errors <= batch.tol
    return Potentials(batch.index[kept], f[kept], g[kept], P[kept], batch.sweeps[kept])


def _gathered(parts: list[Potentials], p: Small) -> Potentials:
    """Join what left at several times."""
    none = torch.zeros(0, dtype=torch.int64, device=p.C.device)
    empty = Potentials(none, p.a[:0], p.b[:0], p.C[:0], none)
    joined = {name: torch.cat([vars(q)[name] for q in (empty, *parts)]) for name in vars(empty)}
    order = joined["index"].argsort()
    return Potentials(**{name: value[order] for name, value in joined.items()})
