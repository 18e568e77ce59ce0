r"""Many small balanced entropic problems at once, in one tensor: sweeps cost calls, not entries.

Problems of one shape are swept together, each with its own epsilon, tolerance and budget. Those
that have converged, or will not here, leave the tensor; nobody waits for them. What needs more than
plain or over-relaxed sweeps of one kernel (annealing, absorption, Newton's method) is not for here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from algorithms.iterate import Watch, unwatched

# Sweeps between two looks at the errors, and sweeps after which a problem is said to crawl: it
# needs Newton's method.
CHECK_EVERY, CRAWLS = 10, 2000
# Widest exponents of one kernel, and farthest scalings of it, that need no absorption.
RANGE, REACH = 600.0, 1e40
# Entries of all problems in one tensor: some megabytes.
ROOM = 1 << 21
# Relaxation, as in `scaling`: from this error on, after so many plain checks, never nearer to 2,
# given up where the error grows by RUNAWAY.
NEARLY_LINEAR, PLAIN_CHECKS, MOST_RELAXED, WORTH, RUNAWAY = 0.5, 3, 1.98, 0.1, 30.0


@dataclass(frozen=True)
class Small:
    """One problem, in float64: positive weights of one mass, a finite cost."""

    C: Float[Tensor, "n m"]
    a: Float[Tensor, "n"]
    b: Float[Tensor, "m"]
    mass: float
    epsilon: float
    tol: float
    max_iter: int


@dataclass(frozen=True)
class Potentials:
    """Converged potentials of weights of mass one (gauge `<f, a> = 0`), their plan, the sweeps."""

    f: Float[Tensor, "n"]
    g: Float[Tensor, "m"]
    plan: Float[Tensor, "n m"]
    sweeps: int


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
    w: Float[Tensor, "B"]
    before: Float[Tensor, "B"]
    least: Float[Tensor, "B"]
    checks: Int[Tensor, "B"]

    def keep(self, these: Bool[Tensor, "B"]) -> None:
        """Let the others go."""
        for name, value in vars(self).items():
            setattr(self, name, value[these])

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


def solve_small(problems: Sequence[Small], *, watch: Watch = unwatched) -> list[Potentials | None]:
    """Solve what converges by sweeps within its budget; None for what does not, or not here."""
    shapes = dict[tuple[int, ...], list[int]]()
    for i, p in enumerate(problems):
        shapes.setdefault(tuple(p.C.shape), []).append(i)
    found: list[Potentials | None] = [None] * len(problems)
    for (n, m), members in shapes.items():
        step = max(1, ROOM // (n * m))
        for first in range(0, len(members), step):
            _solve_alike(problems, members[first : first + step], found, watch)
    return found


def _solve_alike(
    problems: Sequence[Small],
    members: list[int],
    found: list[Potentials | None],
    watch: Watch,
) -> None:
    batch, done = _begun([problems[i] for i in members], members), 0
    while True:
        errors = batch.errors()
        ended = errors <= batch.tol
        if bool(ended.any()):
            _leave(batch, ended, done, found)
        far = torch.maximum(batch.u.log().abs().amax(1), batch.v.log().abs().amax(1))
        going = ~ended & (far < math.log(REACH)) & (batch.max_iter >= done + CHECK_EVERY)
        batch.keep(going)
        if not len(batch.index) or done >= CRAWLS or not watch(done, float(errors[going].amax())):
            return
        _pace(batch, errors[going])
        for _ in range(CHECK_EVERY):
            batch.sweep()
        done += CHECK_EVERY


def _begun(problems: list[Small], members: list[int]) -> Together:
    """Stack them and build their kernels, of c-transforms of zero; drop the too sharp ones."""
    C, a, b = (torch.stack([getattr(p, name) for p in problems]) for name in ("C", "a", "b"))
    a, b = (w / w.sum(1, keepdim=True) for w in (a, b))
    more = [(p.epsilon, p.tol, float(p.max_iter)) for p in problems]
    epsilon, tol, max_iter = torch.tensor(more, dtype=C.dtype, device=C.device).T
    g = C.amin(1)
    f = (C - g[:, None]).amin(2)
    z = (f[:, :, None] + g[:, None] - C) / epsilon[:, None, None]
    K = a[:, :, None] * b[:, None] * z.exp()
    s, t, one = K.sum(2), K.sum(1), torch.ones_like(epsilon)
    index = torch.tensor(members, device=C.device)
    batch = Together(
        *(
            index,
            C,
            a,
            b,
            epsilon,
            tol,
            max_iter.long(),
            f,
            g,
            K,
            torch.ones_like(s),
            torch.ones_like(t),
        ),
        *(s, t, one, one * math.inf, one * math.inf, torch.zeros_like(index)),
    )
    batch.keep(-z.amin((1, 2)) < RANGE)
    return batch


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


def _leave(
    batch: Together, ended: Bool[Tensor, "B"], done: int, found: list[Potentials | None]
) -> None:
    """Take a plain half step on g, centre f, and build the plans, if they are as good as said."""
    epsilon, a, b, C = batch.epsilon[ended, None], batch.a[ended], batch.b[ended], batch.C[ended]
    f = batch.f[ended] + epsilon * batch.u[ended].log()
    g = batch.g[ended] + epsilon * (b / batch.t[ended]).log()
    centre = (a * f).sum(1, keepdim=True)
    f, g = f - centre, g + centre
    P = ((f[:, :, None] + g[:, None] - C) / epsilon[:, None]).exp() * a[:, :, None] * b[:, None]
    errors = (P.sum(2) - a).abs().sum(1) + (P.sum(1) - b).abs().sum(1)
    kept = (errors <= batch.tol[ended]).tolist()
    for k, i in enumerate(batch.index[ended].tolist()):
        if kept[k]:
            found[i] = Potentials(f[k], g[k], P[k], done)
