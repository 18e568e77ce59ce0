"""Iterative Bregman projections: entropic barycenters on a fixed support, in the log domain."""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.entropic.kernels import Dense, Kernel
from algorithms.iterate import Stop, Watch, iterate, quietly

# Sweeps between two looks at the error.
CHECK_EVERY = 10
# A measure with itself: the averaged iteration halves its error each time.
SELF_SWEEPS, SELF_TOL = 500, 1e-13


@dataclass(frozen=True)
class Measures:
    """What is averaged, all float64: K measures by their logarithms, and mixture weights."""

    kernel: Kernel
    log_b: Float[Tensor, "K M"]
    lam: Float[Tensor, "K"]
    epsilon: float
    rho: float | None = None
    debiased: bool = False

    @property
    def share(self) -> float:
        """Return rho/(rho + epsilon), one where the marginals are exact."""
        return 1.0 if self.rho is None else self.rho / (self.rho + self.epsilon)


@dataclass(frozen=True)
class Scalings:
    """Log-scalings of the plans `P_k = diag(e^u_k) K diag(e^v_k)`, and what follows from them.

    Attributes:
        s: `log(K e^v)`.
        log_beta: the barycenter that s asks for.
        d: log-scaling of the debiasing, `e^d K e^d = beta` at the end; zero where unused.
        error: largest L1 distance of row sums from what beta asks for, over the mass.
    """

    u: Float[Tensor, "K N"]
    v: Float[Tensor, "K M"]
    s: Float[Tensor, "K N"]
    log_beta: Float[Tensor, "N"]
    d: Float[Tensor, "N"]
    error: Float[Tensor, ""]


def average(p: Measures, *, tol: float, max_iter: int, watch: Watch) -> tuple[Scalings, Stop]:
    """Sweep until the rows of every plan sum to the barycenter."""
    n = p.kernel.support
    u = p.log_b.new_full((len(p.lam), n), -math.log(n))
    zero = p.log_b.new_zeros(n)
    state = _swept(p, Scalings(u, p.log_b, u, zero, zero, u.new_ones(())))
    return iterate(
        lambda state: _swept(p, replace(state, u=_rows(p, state))),
        lambda state: state.error,
        state,
        tol=tol,
        max_iter=max_iter,
        check_every=CHECK_EVERY,
        watch=watch,
    )


def _swept(p: Measures, state: Scalings) -> Scalings:
    """Make columns right for u, then see which barycenter the rows ask for."""
    v = p.log_b - p.share * p.kernel.backward(state.u)
    s = p.kernel.forward(v)
    d, log_beta = state.d, _barycenter(p, s, state.d)
    extra = s.new_zeros(())
    if p.debiased:
        row = d + p.kernel.forward(d[None])[0]
        extra = (row.exp() - log_beta.exp()).abs().sum()
        d = (2 * d + log_beta - row) / 2
    moved = replace(state, v=v, s=s, log_beta=log_beta, d=d)
    off = ((state.u + s).exp() - (_rows(p, moved) + s).exp()).abs().sum(1)
    off = torch.where(p.lam > 0, off, 0.0).amax()
    return replace(moved, error=(off + extra) / log_beta.exp().sum())


def _barycenter(p: Measures, s: Float[Tensor, "K N"], d: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
    r"""Combine `s = log(K v)`: geometric mean, times d; with soft marginals a power mean.

    `beta = (sum_k lam_k (K v_k / n)^r)^(1/r)`, `r = eps/(rho + eps)`.
    """
    if p.rho is None:
        product = d + p.lam @ s
        return product - product.logsumexp(0)  # its mass is known: this only moves u against v
    r, z = p.epsilon / (p.rho + p.epsilon), s - math.log(p.kernel.support)
    high = torch.where(p.lam[:, None] > 0, z, -torch.inf).amax(0)
    level = torch.where(high.isfinite(), high, 0.0)
    # powers of small r differ little from one: by how much is what counts
    return level + torch.log1p(p.lam @ torch.expm1(r * (z - level))) / r


def _rows(p: Measures, state: Scalings) -> Float[Tensor, "K N"]:
    """Scale rows to the barycenter, or part of the way from the uniform reference."""
    uniform = -math.log(p.kernel.support)
    return uniform + p.share * (state.log_beta - state.s - uniform)


def with_itself(kernel: Kernel, log_b: Float[Tensor, "K N"], watch: Watch) -> Float[Tensor, "K N"]:
    """Find the log-scalings q of symmetric plans, `e^q K e^q = b`; absent points get -inf."""
    present = log_b.isfinite()

    def step(state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        q = state[0]
        row = q + kernel.forward(q)
        moved = torch.where(present, (log_b - row) / 2, 0.0)
        return torch.where(present, q + moved, -math.inf), moved.abs().amax()

    start = log_b / 2, log_b.new_ones(())
    (q, _), _ = iterate(
        step,
        lambda state: state[1],
        start,
        tol=SELF_TOL,
        max_iter=SELF_SWEEPS,
        check_every=CHECK_EVERY,
        watch=quietly(watch),
    )
    return q


@dataclass(frozen=True)
class Seen:
    """What is recomputed from scalings, for measures of the mass that `log_b` has.

    Attributes:
        slopes: derivative of the value in every entry of the measures.
        dual: a lower bound of the optimum, where marginals are exact and nothing is debiased.
        itself: log-scalings of every measure with itself, where debiased.
    """

    beta: Float[Tensor, "N"]
    costs: Float[Tensor, "K"]
    value: Float[Tensor, ""]
    slopes: Float[Tensor, "K M"]
    dual: float
    row_error: float
    column_error: float
    itself: Float[Tensor, "K M"] | None = None


def measured(p: Measures, state: Scalings, watch: Watch) -> Seen:
    r"""Compute objective, derivatives and errors at the plans of the scalings.

    With `f = eps (u + log n)`, `g = eps (v - log b)` and `eps log(P/(u b)) = f + g - C` the
    objective of an exact problem is `<P1, f> + <P^T 1, g> - eps (m(P) - m(b))`. The dual is
    `sum_k lam_k (<b_k, g_k> - eps (m(P_k) - m(b_k))) + min_i sum_k lam_k f_ki`: at the optimum that
    sum is the same for every i.
    """
    eps, uniform = p.epsilon, -math.log(p.kernel.support)
    log_t = p.kernel.backward(state.u)
    mu, nu, b = (state.u + state.s).exp(), (state.v + log_t).exp(), p.log_b.exp()
    f, g = eps * (state.u - uniform), -eps * p.share * log_t
    beta = state.log_beta.exp()
    costs = p.kernel.spent(state.u, state.v)
    moved = mu.sum(1) - b.sum(1)
    plain = (mu * f).sum(1) + (nu * g).sum(1) - eps * moved
    used = p.lam > 0
    if p.rho is None:
        beta = beta / beta.sum()
        rows, columns = beta.expand_as(mu), b
    else:
        rows, columns = beta * (-f / p.rho).exp(), b * (-g / p.rho).exp()
    row_error = float((mu - rows).abs().sum(1)[used].amax())
    column_error = float((nu - columns).abs().sum(1)[used].amax())
    if p.debiased:
        q = with_itself(p.kernel, p.log_b, watch)
        slopes = g + eps * p.kernel.forward(q)
        value = p.lam @ (eps * ((state.u - state.d) @ beta) + (b * slopes).sum(1))
        slopes = p.lam[:, None] * slopes
        return Seen(beta, costs, value, slopes, 0.0, row_error, column_error, q)
    if p.rho is None:
        dual = float(p.lam @ ((b * g).sum(1) - eps * moved) + (p.lam @ f).amin())
        slopes, value = p.lam[:, None] * g, p.lam @ plain
        return Seen(beta, costs, value, slopes, dual, row_error, column_error)
    soft = _kl(mu, beta.expand_as(mu)) + _kl(nu, b)
    slopes = p.lam[:, None] * -torch.expm1(-g / p.rho) * (p.rho + eps)
    value = p.lam @ (plain + p.rho * soft)
    return Seen(beta, costs, value, slopes, 0.0, row_error, column_error)


def mixed_plan(p: Measures, kernel: Dense, state: Scalings, seen: Seen) -> Float[Tensor, "N M"]:
    """Mix the plans: the derivative of the value in the cost."""
    mixed = torch.zeros_like(kernel.C)
    for k, weight in enumerate(p.lam.tolist()):
        if weight > 0:
            mixed.add_(kernel.plan(state.u[k], state.v[k]), alpha=weight)
            if seen.itself is not None:
                mixed.sub_(kernel.plan(seen.itself[k], seen.itself[k]), alpha=weight / 2)
    return mixed.sub_(kernel.plan(state.d, state.d), alpha=0.5) if p.debiased else mixed


def _kl(p: Float[Tensor, "K M"], q: Float[Tensor, "K M"]) -> Float[Tensor, "K"]:
    return (torch.xlogy(p, p) - torch.xlogy(p, q) - p + q).sum(1)
