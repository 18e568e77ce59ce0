"""Entropic transport with soft marginals, by damped scaling of a stabilised kernel; warm starts."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.iterate import Stop, Watch, iterate, quietly, unwatched

# Sweeps between two looks at the error.
CHECK_EVERY = 5
# Log-scalings beyond this are absorbed into the potentials: products with them keep their digits.
REACH = 90.0
# exp of less than this is (nearly) subnormal, slow to compute and slow to multiply.
LOWEST = -690.0
TINY = 1e-300


@dataclass(frozen=True)
class Soft:
    r"""Minimise `<P, C> + rho_a KL(P1|a) + rho_b KL(P^T 1|b) + epsilon KL(P|a b^T)` over P >= 0.

    a and b are positive, of mass one; all is float64. A rho of None makes that marginal exact.
    """

    C: Float[Tensor, "n m"]
    a: Float[Tensor, "n"]
    b: Float[Tensor, "m"]
    epsilon: float
    rho_a: float | None
    rho_b: float | None


@dataclass(frozen=True)
class Softened:
    """The optimal plan, its potentials, and why the sweeps ended."""

    f: Float[Tensor, "n"]
    g: Float[Tensor, "m"]
    plan: Float[Tensor, "n m"]
    stop: Stop


@dataclass(frozen=True)
class Scaled:
    """Potentials, their kernel, log-scalings of it, and the log-sums `log K v`, `log K^T u`."""

    f: Float[Tensor, "n"]
    g: Float[Tensor, "m"]
    K: Float[Tensor, "n m"]
    u: Float[Tensor, "n"]
    v: Float[Tensor, "m"]
    s: Float[Tensor, "n"]
    t: Float[Tensor, "m"]


def soften(
    p: Soft,
    f: Float[Tensor, "n"],
    g: Float[Tensor, "m"],
    *,
    tol: float,
    max_iter: int,
    watch: Watch = unwatched,
) -> Softened:
    r"""Sweep from f, g until the plan's marginals are those of its potentials, within `tol`.

    At the optimum `P1 = a exp(-f/rho_a)` and `P^T 1 = b exp(-g/rho_b)`, with rho = None `P1 = a`;
    the L1 distances from it, over the mass, are the residual. Each sweep ends with the best shift
    `(f + t, g - t)`, in closed form: without it, sweeps crawl where epsilon << rho.
    """
    state, stop = iterate(
        lambda state: _sweep(p, state),
        lambda state: _error(p, state),
        _kernel(p, f, g),
        tol=tol,
        max_iter=max_iter,
        check_every=CHECK_EVERY,
        watch=quietly(watch),
    )
    f, g = _potentials(p, state)
    plan = state.K * state.u.exp()[:, None] * state.v.exp()
    return Softened(f, g, plan, stop)


def _kernel(p: Soft, f: Float[Tensor, "n"], g: Float[Tensor, "m"]) -> Scaled:
    """Take the best g for f in the log domain, and build their kernel by the same exponentials."""
    left = f / p.epsilon + p.a.log()
    z = torch.add(left[:, None], p.C, alpha=-1 / p.epsilon)  # (n, m)
    top = z.amax(0)  # (n, m) -> (m,)
    K = z.sub_(top).clamp_(min=LOWEST).exp_()
    total = top + K.sum(0).log()  # log sum_i a_i exp((f_i - C_ij)/eps)
    g = -_share(p.rho_b, p.epsilon) * p.epsilon * total
    K.mul_((g / p.epsilon + p.b.log() + top).clamp(LOWEST, -LOWEST).exp())
    zero_f, zero_g = torch.zeros_like(f), torch.zeros_like(g)
    state = Scaled(f, g, K, zero_f, zero_g, zero_f, g / p.epsilon + p.b.log() + total)
    return replace(state, s=_log_product(K, zero_g))


def _sweep(p: Soft, state: Scaled) -> Scaled:
    """Update f, then g, then shift both."""
    eps = p.epsilon
    share = _share(p.rho_a, eps)
    u = -(1 - share) * state.f / eps - share * (state.s - p.a.log())
    t = _log_product(state.K.T, u)
    share = _share(p.rho_b, eps)
    v = -(1 - share) * state.g / eps - share * (t - p.b.log())
    if p.rho_a is not None or p.rho_b is not None:
        shift = _shift(p, state.f + eps * u, state.g + eps * v) / eps
        u, v, t = u + shift, v - shift, t + shift
    if float(torch.stack([u.abs().amax(), v.abs().amax()]).amax()) > REACH:
        return _kernel(p, state.f + eps * u, state.g + eps * v)
    return replace(state, u=u, v=v, t=t, s=_log_product(state.K, v))


def _shift(p: Soft, f: Float[Tensor, "n"], g: Float[Tensor, "m"]) -> Float[Tensor, ""]:
    """Maximise the dual over `(f + t, g - t)`: both potentials then stand for the same mass.

    The mass of an exact marginal is one, whatever its potential.
    """
    of_a = f.new_zeros(()) if p.rho_a is None else (p.a.log() - f / p.rho_a).logsumexp(0)
    of_b = g.new_zeros(()) if p.rho_b is None else (p.b.log() - g / p.rho_b).logsumexp(0)
    stiffness = sum(1 / rho for rho in (p.rho_a, p.rho_b) if rho is not None)
    return (of_a - of_b) / stiffness


def _error(p: Soft, state: Scaled) -> Float[Tensor, ""]:
    f, g = _potentials(p, state)
    rows, columns = (state.u + state.s).exp(), (state.v + state.t).exp()
    off = (rows - p.a * _ratio(p.rho_a, f)).abs().sum()
    off = off + (columns - p.b * _ratio(p.rho_b, g)).abs().sum()
    return off / rows.sum()


def _ratio(rho: float | None, f: Float[Tensor, "k"]) -> Tensor | float:
    return 1.0 if rho is None else (-f / rho).exp()


def _share(rho: float | None, epsilon: float) -> float:
    return 1.0 if rho is None else rho / (rho + epsilon)


def _potentials(p: Soft, state: Scaled) -> tuple[Float[Tensor, "n"], Float[Tensor, "m"]]:
    return state.f + p.epsilon * state.u, state.g + p.epsilon * state.v


def _log_product(K: Float[Tensor, "n m"], v: Float[Tensor, "m"]) -> Float[Tensor, "n"]:
    """Compute `log(K exp(v))` without overflow."""
    top = v.amax()
    return (K @ (v - top).exp()).clamp_min(TINY).log() + top
