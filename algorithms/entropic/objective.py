r"""The objective of an entropic plan, from below and from above, and what makes a plan feasible.

As `eps log(P_ij / a_i b_j) = f_i + g_j - C_ij`, the entropic part `<P, C> + eps KL(P | a b^T)` of
the objective is `<P 1, f> + <P^T 1, g> - eps (m(P) - m(a) m(b))`: no pass over the matrix.
"""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.entropic.aprox import conjugate, hard, masses, penalty
from algorithms.entropic.rounding import round_plan
from algorithms.entropic.unbalanced import Problem
from algorithms.errors import IllPosed
from algorithms.marginals import Balanced, Marginal, Range
from algorithms.measures import SAME_MASS


def check_masses(
    marginal_a: Marginal, marginal_b: Marginal, a: Float[Tensor, "n"], b: Float[Tensor, "m"]
) -> None:
    """Refuse measures for which no plan has an admissible mass: the iteration would diverge."""
    mass_a, mass_b = float(a.detach().double().sum()), float(b.detach().double().sum())
    (low_a, high_a), (low_b, high_b) = masses(marginal_a, mass_a), masses(marginal_b, mass_b)
    room = 1 + SAME_MASS
    if not (low_a <= high_b * room and low_b <= high_a * room):
        raise IllPosed(
            "b",
            f"no plan suits both marginals: marginal_a asks for a mass in [{low_a:.9g},"
            f" {high_a:.9g}], marginal_b for one in [{low_b:.9g}, {high_b:.9g}]; rescale the"
            " weights or widen a range",
        )


def soft_penalties(p: Problem, mu: Float[Tensor, "n"], nu: Float[Tensor, "m"]) -> Tensor:
    """Add the penalties of the sides that have a price; hard sides have none."""
    total = mu.new_zeros(())
    for marginal, w, have in ((p.marginal_a, p.a, mu), (p.marginal_b, p.b, nu)):
        if not hard(marginal):
            total = total + (w * penalty(marginal, have / w)).sum()
    return total


def objective(
    p: Problem,
    f: Float[Tensor, "n"],
    g: Float[Tensor, "m"],
    mu: Float[Tensor, "n"],
    nu: Float[Tensor, "m"],
) -> Tensor:
    """Return the objective of the plan of f, g with these marginals."""
    excess = p.epsilon * (mu.sum() - p.a.sum() * p.b.sum())
    return mu @ f + nu @ g - excess + soft_penalties(p, mu, nu)


def dual_value(
    p: Problem, f: Float[Tensor, "n"], g: Float[Tensor, "m"], mass: Float[Tensor, ""]
) -> Tensor:
    """Return the value of the dual: a lower bound of the optimum."""
    excess = p.epsilon * (mass - p.a.sum() * p.b.sum())
    return -(p.a @ conjugate(p.marginal_a, -f)) - p.b @ conjugate(p.marginal_b, -g) - excess


@runtime_checkable
class Products(Protocol):
    """A plan and its cost by what they do to vectors: neither need be there as a matrix."""

    def rows(self, v: Float[Tensor, "m"]) -> Float[Tensor, "n"]:
        """Return `P v`."""
        ...

    def columns(self, u: Float[Tensor, "n"]) -> Float[Tensor, "m"]:
        """Return `P^T u`."""
        ...

    def cost(self, u: Float[Tensor, "n"], v: Float[Tensor, "m"]) -> Tensor:
        """Return `u^T C v`, infinite where some cost is."""
        ...


@dataclass(frozen=True)
class Matrices:
    """A plan and its cost as they are, in their own type."""

    P: Float[Tensor, "n m"]
    C: Float[Tensor, "n m"]

    def rows(self, v: Float[Tensor, "m"]) -> Float[Tensor, "n"]:
        """Return `P v`."""
        return (self.P @ v.to(self.P.dtype)).double()

    def columns(self, u: Float[Tensor, "n"]) -> Float[Tensor, "m"]:
        """Return `P^T u`."""
        return (u.to(self.P.dtype) @ self.P).double()

    def cost(self, u: Float[Tensor, "n"], v: Float[Tensor, "m"]) -> Tensor:
        """Return `u^T C v`, infinite where some cost is: mass would cross a forbidden pair."""
        found = u @ (self.C @ v.to(self.C.dtype)).double()
        return found if bool(found.isfinite()) else u.new_tensor(math.inf)  # 0 inf is NaN


def upper_bound(
    p: Problem,
    f: Float[Tensor, "n"],
    g: Float[Tensor, "m"],
    mu: Float[Tensor, "n"],
    nu: Float[Tensor, "m"],
    plan: Products,
) -> Tensor:
    """Bound the optimum from above by a feasible plan near P; infinite where none was made.

    Products with 1 - x, which is small, keep float32 plans accurate.
    """
    hard_a, hard_b = hard(p.marginal_a), hard(p.marginal_b)
    if hard_a and hard_b:
        return _rounded_bound(p, f, g, mu, nu, plan)
    x, y = torch.ones_like(mu), torch.ones_like(nu)
    if hard_a:
        x = _share(_clipped(p.marginal_a, p.a, mu), mu)
        mu, nu = x * mu, nu + plan.columns(x - 1)
    elif hard_b:
        y = _share(_clipped(p.marginal_b, p.b, nu), nu)
        mu, nu = mu + plan.rows(y - 1), y * nu
    return objective(p, f + p.epsilon * x.log(), g + p.epsilon * y.log(), mu, nu)


def feasible_plan(p: Problem, P: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
    """Move P to marginals that the hard sides allow; a side with a price allows all."""
    mu, nu = P.sum(1, dtype=torch.float64), P.sum(0, dtype=torch.float64)
    hard_a, hard_b = hard(p.marginal_a), hard(p.marginal_b)
    if hard_a and hard_b:
        wanted_a, wanted_b = targets(p, mu, nu)
        return round_plan(P, wanted_a.to(P), wanted_b.to(P))
    if hard_a:
        return P * _share(_clipped(p.marginal_a, p.a, mu), mu).to(P)[:, None]
    return P * _share(_clipped(p.marginal_b, p.b, nu), nu).to(P) if hard_b else P


def whole_objective(
    p: Problem, P: Float[Tensor, "n m"], mu: Float[Tensor, "n"], nu: Float[Tensor, "m"]
) -> Tensor:
    """Return the objective of any plan, by a pass over the matrix."""
    wide = P.double()
    entropy = torch.xlogy(wide, wide).sum() - mu @ p.a.log() - nu @ p.b.log()
    costs = torch.where(P > 0, p.C, 0.0)  # a forbidden pair costs nothing to a plan without it
    excess = mu.sum() - p.a.sum() * p.b.sum()
    return (wide * costs).sum() + p.epsilon * (entropy - excess) + soft_penalties(p, mu, nu)


def missed(marginal: Marginal, a: Float[Tensor, "n"], mu: Float[Tensor, "n"]) -> float:
    """Add up by how much a hard side is violated; the marginal error of a balanced one."""
    if not hard(marginal):
        return 0.0
    return float((mu - _clipped(marginal, a, mu)).abs().sum())


def targets(
    p: Problem, mu: Float[Tensor, "n"], nu: Float[Tensor, "m"]
) -> tuple[Float[Tensor, "n"], Float[Tensor, "m"]]:
    """Find marginals of equal mass, near mu and nu, that two hard sides allow."""
    wanted_a, wanted_b = _clipped(p.marginal_a, p.a, mu), _clipped(p.marginal_b, p.b, nu)
    if isinstance(p.marginal_a, Balanced):
        return wanted_a, _with_mass(p.marginal_b, p.b, wanted_b, wanted_a.sum())
    if isinstance(p.marginal_b, Balanced):
        return _with_mass(p.marginal_a, p.a, wanted_a, wanted_b.sum()), wanted_b
    mass_a, mass_b = float(p.a.sum()), float(p.b.sum())
    bounds = masses(p.marginal_a, mass_a), masses(p.marginal_b, mass_b)
    low, high = max(bound[0] for bound in bounds), min(bound[1] for bound in bounds)
    mass = ((wanted_a.sum() + wanted_b.sum()) / 2).clamp(low, max(low, high))
    wanted_a = _with_mass(p.marginal_a, p.a, wanted_a, mass)
    return wanted_a, _with_mass(p.marginal_b, p.b, wanted_b, wanted_a.sum())


def _with_mass(
    marginal: Marginal, a: Float[Tensor, "n"], mu: Float[Tensor, "n"], mass: Tensor
) -> Float[Tensor, "n"]:
    """Move mu within what is allowed, by one share of the room that each entry has."""
    if isinstance(marginal, Balanced):
        return mu * (mass / mu.sum())
    assert isinstance(marginal, Range)
    lack = mass - mu.sum()
    room = marginal.high * a - mu if float(lack) > 0 else mu - marginal.low * a
    total = room.clamp_min(0).sum()
    return mu + room.clamp_min(0) * (lack / total) if float(total) > 0 else mu


def _clipped(
    marginal: Marginal, a: Float[Tensor, "n"], mu: Float[Tensor, "n"]
) -> Float[Tensor, "n"]:
    match marginal:
        case Range(low, high):
            return torch.maximum(torch.minimum(mu, high * a), low * a)
        case _:
            return a


def _share(wanted: Float[Tensor, "n"], have: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    return torch.where(have > 0, wanted / have, 1.0)


def _rounded_bound(
    p: Problem,
    f: Float[Tensor, "n"],
    g: Float[Tensor, "m"],
    mu: Float[Tensor, "n"],
    nu: Float[Tensor, "m"],
    plan: Products,
) -> Tensor:
    r"""Bound the objective of the rounding of P (`rounding.round_plan`), in four products.

    The rounding is Q + R with Q = diag(x) P diag(y) and R = da db^T / r of mass r, and by convexity
    of z log z, with q the mass of Q and q + r = m,
    `sum (Q + R) log((Q + R)/ab) <= sum Q log(Q/ab) + sum R log(R/ab) - q log(q/m) - r log(r/m)`,
    where the first sum is known like that of P and the second has a product form.
    """
    wanted_a, wanted_b = targets(p, mu, nu)
    epsilon, mass = p.epsilon, wanted_a.sum()
    x = torch.where(mu > wanted_a, wanted_a / mu, 1.0)
    nu = nu - plan.columns(1 - x)
    y = torch.where(nu > wanted_b, wanted_b / nu, 1.0)
    da = (wanted_a - x * (mu - plan.rows(1 - y))).clamp_min(0)
    db = (wanted_b - y * nu).clamp_min(0)
    r = da.sum()
    upper = (wanted_a - da) @ (f + epsilon * x.log()) + (wanted_b - db) @ (g + epsilon * y.log())
    upper = upper - epsilon * (torch.xlogy(mass - r, 1 - r / mass) + mass - p.a.sum() * p.b.sum())
    if float(r) > 0:
        product = torch.xlogy(da, da / p.a).sum() + torch.xlogy(db, db / p.b).sum()
        upper = upper + plan.cost(da, db / r)
        upper = upper + epsilon * (product - torch.xlogy(r, r) - torch.xlogy(r, r / mass))
    return upper
