"""Entropic transport of a given mass under caps on both marginals."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.iterate import Stop, Watch, iterate

# Potentials that moved by more, in units of epsilon, are put into a kernel made anew: below, no
# sum that matters leaves the range of float64.
DRIFT = 50.0
# Sweeps without a smaller miss: forbidden pairs leave no plan of the mass, or rounding is reached.
PATIENCE = 500


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
class Kernel:
    """`K_ij = a_i b_j exp((f_i + g_j + lam - C_ij)/epsilon)` at some f, g, lam."""

    K: Float[Tensor, "n m"]
    f: Float[Tensor, "n"]
    g: Float[Tensor, "m"]
    lam: float

    def near(self, found: Capped, epsilon: float) -> bool:
        """Tell whether potentials are so near that sums with this kernel are accurate."""
        moved = torch.cat([found.f - self.f, found.g - self.g]).abs().amax()
        return max(float(moved), abs(found.lam - self.lam)) <= DRIFT * epsilon


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
    right. Dykstra's projections take the three constraints one at a time, and more sweeps. The last
    step is on (g, lam): columns respect their caps, and the mass is exact.

    Shapes: C (n, m), a (n,), b (m,), all float64; infinite costs forbid a pair.
    """
    log_a, log_b = a.log(), b.log()
    scaled = C / epsilon

    def logs(f: Tensor, g: Tensor, lam: float) -> Tensor:
        return (log_a + (f + lam) / epsilon)[:, None] + (log_b + g / epsilon) - scaled

    def made(found: Capped) -> Kernel:
        K = logs(found.f, found.g, found.lam).exp()
        return Kernel(K, found.f, found.g, found.lam)

    def begun() -> Capped:
        zeros = torch.zeros_like(a)
        sums = (log_b - scaled).logsumexp(1) + log_a  # (n, m) -> (n,)
        t, f = filled(sums, log_a, a, mass)
        sums = logs(epsilon * f, torch.zeros_like(b), 0.0).logsumexp(0)
        t, g = filled(sums, log_b, b, mass)
        return Capped(zeros + epsilon * f, epsilon * g, epsilon * t, math.inf)

    def step(state: tuple[Capped, Kernel]) -> tuple[Capped, Kernel]:
        found, kernel = state
        if not kernel.near(found, epsilon):
            kernel = made(found)
        v = ((found.g - kernel.g) / epsilon).exp()
        # sums of rows at f = lam = 0; a sum that underflows is that of a row far below its cap
        sums = (kernel.K @ v).log() - (kernel.f + kernel.lam) / epsilon
        _, f = filled(sums, log_a, a, mass)
        f = epsilon * f
        u = ((f - kernel.f) / epsilon).exp()
        sums = (kernel.K.T @ u).log() - (kernel.g + kernel.lam) / epsilon
        t, g = filled(sums, log_b, b, mass)
        return measured(Capped(f, epsilon * g, epsilon * t, math.inf), kernel)

    def measured(found: Capped, kernel: Kernel) -> tuple[Capped, Kernel]:
        if not kernel.near(found, epsilon):
            kernel = made(found)
        lift = (found.f - kernel.f + found.lam - kernel.lam) / epsilon
        rows = lift.exp() * (kernel.K @ ((found.g - kernel.g) / epsilon).exp())
        # a row below its cap should have f = 0: it would fill up to its cap, or to that
        wanted = torch.minimum(a, rows * (-found.f / epsilon).exp())
        miss = float((rows - wanted).abs().sum()) / mass
        return Capped(found.f, found.g, found.lam, miss), kernel

    start = begun()
    (found, _), stop = iterate(
        step,
        lambda state: state[0].miss,
        measured(start, made(start)),
        tol=tol,
        max_iter=max_iter,
        patience=PATIENCE,
        watch=watch,
    )
    return found, logs(found.f, found.g, found.lam).exp(), stop


def filled(
    sums: Float[Tensor, "k"], log_cap: Float[Tensor, "k"], cap: Float[Tensor, "k"], mass: float
) -> tuple[float, Float[Tensor, "k"]]:
    """Find t with `sum_i min(cap_i, exp(t) s_i) = mass`, and `min(0, log cap_i - log s_i - t)`.

    As t rises rows reach their caps one after the other, at `t_i = log cap_i - log s_i`.
    """
    full = torch.where(cap > 0, log_cap - sums, math.inf)
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
