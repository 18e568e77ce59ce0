"""Sliced transport whose directions share one pair of marginals that give way (USOT)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.iterate import Stop, Watch, iterate
from algorithms.linear.slices import (
    Sorted,
    chunks,
    in_order,
    nearest,
    potentials,
    projected,
)

# Halvings of the interval of a step.
SEARCH = 40
# The gap is read relative to the value, or to this share of what destroying everything costs.
NEGLIGIBLE = 1e-6


@dataclass(frozen=True)
class Slicing:
    """Clouds, positive weights, penalties (infinite: exact), directions; float64."""

    x: Float[Tensor, "n d"]
    y: Float[Tensor, "m d"]
    a: Float[Tensor, "n"]
    b: Float[Tensor, "m"]
    rho_a: float
    rho_b: float
    p: float
    theta: Float[Tensor, "L d"]
    cells: int

    def parts(self) -> Iterator[tuple[slice, Sorted]]:
        """Project by chunks of directions."""
        for i, j in chunks(len(self.theta), len(self.a) + len(self.b), self.cells):
            yield slice(i, j), projected(self.x, self.y, self.theta[i:j])

    @property
    def roof(self) -> float:
        """Price the destruction of everything that may be destroyed."""
        sides = ((self.a, self.rho_a), (self.b, self.rho_b))
        return sum(rho * float(w.sum()) for w, rho in sides if rho < math.inf)


@dataclass(frozen=True)
class Marginals:
    """What leaves and what arrives, what each direction costs, and the objective."""

    mu: Float[Tensor, "n"]
    nu: Float[Tensor, "m"]
    costs: Float[Tensor, "L"]
    value: float


@dataclass(frozen=True)
class Shared:
    """Mean potentials, the marginals that they keep, where these point, and the best seen."""

    f: Float[Tensor, "n"]
    g: Float[Tensor, "m"]
    kept: Marginals
    toward: tuple[Tensor, Tensor]
    dual: float
    best: Marginals


def solve_shared(q: Slicing, *, tol: float, max_iter: int, watch: Watch) -> tuple[Shared, Stop]:
    r"""Minimise `mean_l W(mu, nu; l) + rho_a KL(mu | a) + rho_b KL(nu | b)` over mu and nu.

    The dual has potentials for every direction, but sees their means only: Frank-Wolfe at the best
    shift, whose linear step solves the balanced problem of the kept marginals in all directions.

    References: Sejourne, Bonet, Fatras, Nadjahi, Courty 2023, arXiv:2306.07176, section 4.
    """
    f, g = torch.zeros_like(q.a), torch.zeros_like(q.b)
    share = 1.0 if q.rho_a == math.inf else q.rho_a / (q.rho_a + q.rho_b)
    for _, s in q.parts():
        near_x, near_y = nearest(s, q.p)
        f += share * near_x.sum(0) / len(q.theta)
        g += (1 - share) * near_y.sum(0) / len(q.theta)
    return iterate(
        lambda state: _moved(q, state),
        lambda state: gap_of(q, state),
        _seen(q, f, g),
        tol=tol,
        max_iter=max_iter,
        watch=watch,
    )


def gap_of(q: Slicing, state: Shared) -> float:
    """Compute the relative duality gap."""
    value = state.best.value
    return (value - state.dual) / max(abs(value), NEGLIGIBLE * q.roof)


def _seen(q: Slicing, f: Tensor, g: Tensor) -> Shared:
    """Shift the potentials, keep marginals of equal mass, and solve for these in all directions."""
    logs = [_log_mass(w, z, rho) for w, z, rho in ((q.a, f, q.rho_a), (q.b, g, q.rho_b))]
    t = (logs[0] - logs[1]) / (1 / q.rho_a + 1 / q.rho_b)
    f, g = f + t, g - t
    mu, nu = (q.a * (-f / q.rho_a).exp(), q.b * (-g / q.rho_b).exp())
    if q.rho_b == math.inf:
        mu = mu * (nu.sum() / mu.sum())
    else:
        nu = nu * (mu.sum() / nu.sum())
    to_f, to_g, costs = torch.zeros_like(f), torch.zeros_like(g), f.new_zeros(len(q.theta))
    for at, s in q.parts():
        plans = in_order(s, mu, nu, q.p)
        r, t_ = potentials(s, plans)
        to_f += r.sum(0) / len(q.theta)
        to_g += t_.sum(0) / len(q.theta)
        costs[at] = plans.costs()
    value, dual = float(costs.mean()), 0.0
    for w, part, z, rho in ((q.a, mu, f, q.rho_a), (q.b, nu, g, q.rho_b)):
        if rho == math.inf:
            dual += float(w @ z)
        else:
            value += rho * float((torch.special.xlogy(part, part / w) - part + w).sum())
            dual -= rho * float(w @ torch.expm1(-z / rho))
    kept = Marginals(mu, nu, costs, value)
    return Shared(f, g, kept, (to_f, to_g), dual, kept)


def _log_mass(w: Tensor, z: Tensor, rho: float) -> float:
    return float((w.log() - z / rho).logsumexp(0))


def _moved(q: Slicing, state: Shared) -> Shared:
    """Go to the best point between the potentials and those of the kept marginals."""
    steps = state.toward[0] - state.f, state.toward[1] - state.g
    low, high = 0.0, 1.0
    for _ in range(SEARCH):
        t = (low + high) / 2
        slope = 0.0
        for w, d, rho in zip(
            (state.kept.mu, state.kept.nu), steps, (q.rho_a, q.rho_b), strict=True
        ):
            slope += float(torch.softmax(w.log() - t * d / rho, 0) @ d)
        low, high = (t, high) if slope > 0 else (low, t)
    after = _seen(q, state.f + low * steps[0], state.g + low * steps[1])
    # potentials improve at every step; the marginals that they keep need not
    return after if after.best.value < state.best.value else replace(after, best=state.best)
