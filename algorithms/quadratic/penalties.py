"""Quadratic Kullback-Leibler penalties, and the unbalanced Gromov-Wasserstein objective."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.quadratic.objective import Pair


def quadratic_kl(p: Float[Tensor, "*k"], q: Float[Tensor, "*k"]) -> Float[Tensor, ""]:
    r"""Compute `KL(p (x) p | q (x) q) = 2 m(p) sum p log(p/q) - m(p)^2 + m(q)^2`, all q > 0."""
    log = torch.xlogy(p, p) - torch.xlogy(p, q)
    return 2 * p.sum() * log.sum() - p.sum().square() + q.sum().square()


@dataclass(frozen=True)
class Parts:
    """What the objective of a plan is made of."""

    gw: Float[Tensor, ""]
    transport_cost: Float[Tensor, ""]
    kl_a: Float[Tensor, ""]
    kl_b: Float[Tensor, ""]
    kl_plan: Float[Tensor, ""]


@dataclass(frozen=True)
class Strengths:
    """How much marginals and entropy weigh; a rho of None asks for the exact marginal."""

    epsilon: float
    rho_a: float | None
    rho_b: float | None

    @property
    def total(self) -> float:
        """Add up what multiplies `m^2 log m^2` in the objective."""
        return self.epsilon + (self.rho_a or 0.0) + (self.rho_b or 0.0)

    @property
    def soft(self) -> bool:
        """Tell whether the mass of the plan is free."""
        return self.rho_a is not None and self.rho_b is not None


def parts(pair: Pair, P: Float[Tensor, "n m"]) -> Parts:
    """Evaluate every part of the objective at a plan, from the marginals that it has."""
    mu, nu = P.sum(1), P.sum(0)  # (n, m) -> (n,), (m,)
    # sum P log(P / (a b)) without the n x m matrix of the product
    m, mass_a, mass_b = P.sum(), pair.a.sum(), pair.b.sum()
    log = torch.xlogy(P, P).sum() - torch.xlogy(mu, pair.a).sum() - torch.xlogy(nu, pair.b).sum()
    kl_plan = 2 * m * log - m.square() + (mass_a * mass_b).square()
    gw, linear = pair.quadratic(P), pair.linear(P)
    return Parts(gw, linear, quadratic_kl(mu, pair.a), quadratic_kl(nu, pair.b), kl_plan)


def total(seen: Parts, alpha: float, by: Strengths) -> Float[Tensor, ""]:
    """Add the parts up; the penalty of an exact marginal is none."""
    value = alpha * seen.gw + (1 - alpha) * seen.transport_cost + by.epsilon * seen.kl_plan
    for rho, kl in ((by.rho_a, seen.kl_a), (by.rho_b, seen.kl_b)):
        value = value if rho is None else value + rho * kl
    return value


def mass_bound(mass_a: float, mass_b: float, by: Strengths) -> float:
    r"""Bound the objective of non-negative costs from below by what its total mass costs.

    With `t = m(P)^2` every quadratic KL is at least the KL of the masses, `t log(t/s) - t + s`
    with s the squared mass of its reference; the sum over the terms is least at their weighted
    geometric mean, and where a marginal is exact t is given.
    """
    squares = {mass_a**2: by.rho_a, mass_b**2: by.rho_b}
    given = [s for s, rho in squares.items() if rho is None]
    terms = [(mass_a**2, by.rho_a), (mass_b**2, by.rho_b), ((mass_a * mass_b) ** 2, by.epsilon)]
    free = [(s, w) for s, w in terms if w is not None]
    if given:
        t = given[0]
        return sum(w * (t * math.log(t / s) - t + s) for s, w in free)
    mean = math.exp(sum(w / by.total * math.log(s) for s, w in free))
    return max(0.0, sum(w * (s - mean) for s, w in free))
