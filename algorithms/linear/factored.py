"""Plans of low rank: their cost, their blocks as small entropic problems, and mirror descent."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.entropic.rounding import round_plan

# Entropic strengths of the blocks, in units of the independent cost, and rounds at each: on clouds
# of 1000 points in 20 dimensions, rank 50, 1.3 % cheaper than five at 0.1, 0.03, 0.01, 0.003.
STRENGTHS, ROUNDS_EACH = (0.05, 0.03, 0.02, 0.01, 0.003), 8
# Sweeps of one block, and the marginal error (share of the mass) that ends them: rounding
# corrects the rest.
SWEEPS, CHECK_EVERY, NEAR = 60, 10, 1e-6
# Share of the product that a start is mixed with: zeros would never leave.
MIXED = 0.1
# Scalings beyond e^50 are absorbed into the potential.
FAR = 50.0
# Length of a mirror step over the largest gradient, sweeps of its projection, least group mass.
STEP, PROJECTIONS, LEAST = 10.0, 100, 1e-10


@dataclass(frozen=True)
class Costs:
    """A cost `C = A B^T` by its factors, and the weights, all in float64."""

    A: Float[Tensor, "n k"]
    B: Float[Tensor, "m k"]
    a: Float[Tensor, "n"]
    b: Float[Tensor, "m"]

    def independent(self) -> float:
        """Price the plan `a b^T`."""
        return float((self.a @ self.A) @ (self.b @ self.B) / self.a.sum())


@dataclass(frozen=True)
class Factors:
    """The plan `Q diag(1/g) R^T`; exact marginals once rounded."""

    Q: Float[Tensor, "n r"]
    R: Float[Tensor, "m r"]
    g: Float[Tensor, "r"]

    def cost(self, c: Costs) -> float:
        """Compute `<C, P>` in O((n + m) r k)."""
        return float((((c.A.T @ self.Q) * (c.B.T @ self.R)).sum(0) / self.g).sum())

    def rounded(self, c: Costs) -> "Factors":
        """Move both blocks to their exact marginals; groups without mass are left out."""
        g = self.g * (c.a.sum() / self.g.sum())
        return Factors(round_plan(self.Q, c.a, g), round_plan(self.R, c.b, g), g)

    def mixed(self, c: Costs) -> "Factors":
        """Add some of the independent plan, so that no entry is zero."""
        share, total = MIXED, self.g.sum()
        Q = (1 - share) * self.Q + share * c.a[:, None] * self.g / total
        R = (1 - share) * self.R + share * c.b[:, None] * self.g / total
        return Factors(Q, R, self.g)


@dataclass(frozen=True)
class Search:
    """Where a search is: current blocks with their potentials, best rounded plan, its history."""

    now: Factors
    best: Factors
    costs: tuple[float, ...]
    v: Float[Tensor, "r"]
    w: Float[Tensor, "r"]
    steps: int = 0


def begun(c: Costs, start: Factors) -> Search:
    """Begin at a start, which is rounded and remembered as it is."""
    best = start.rounded(c)
    zero = torch.zeros_like(start.g)
    return Search(start.mixed(c), best, (best.cost(c),), zero, zero)


def alternated(c: Costs, search: Search, scale: float) -> Search:
    r"""Solve for Q, then for R, with g fixed: `Q = Sinkhorn(A (B^T R)/g, a, g, eps)`, and so R.

    eps falls by the schedule; column potentials are kept warm.
    """
    level = min(search.steps // ROUNDS_EACH, len(STRENGTHS) - 1)
    epsilon, now = STRENGTHS[level] * scale, search.now
    Q, v = block(c.A @ ((c.B.T @ now.R) / now.g), c.a, now.g, epsilon, search.v)
    R, w = block(c.B @ ((c.A.T @ Q) / now.g), c.b, now.g, epsilon, search.w)
    return _remembered(c, replace(search, v=v, w=w), Factors(Q, R, now.g))


def _remembered(c: Costs, search: Search, now: Factors) -> Search:
    rounded = now.rounded(c)
    cost = rounded.cost(c)
    best = rounded if cost < search.costs[-1] else search.best
    costs = (*search.costs, min(cost, search.costs[-1]))
    return replace(search, now=now, best=best, costs=costs, steps=search.steps + 1)


def block(
    G: Float[Tensor, "n r"],
    a: Float[Tensor, "n"],
    g: Float[Tensor, "r"],
    epsilon: float,
    v: Float[Tensor, "r"],
) -> tuple[Float[Tensor, "n r"], Float[Tensor, "r"]]:
    """Solve `min <G, Q> + epsilon KL(Q | 1)` over `Q 1 = a`, `Q^T 1 = g`, from potential v."""
    tiny = torch.finfo(G.dtype).tiny
    kernel, s = _kernel(G, v, epsilon), torch.ones_like(v)
    u = a / kernel.sum(1)
    for sweep in range(1, SWEEPS + 1):
        s = g / (kernel.T @ u).clamp_min(tiny)
        u = a / (kernel @ s).clamp_min(tiny)
        if sweep % CHECK_EVERY == 0:
            off = float((s * (kernel.T @ u) - g).abs().sum())
            if float(s.log().abs().amax()) > FAR:
                v = v + epsilon * s.log()
                kernel, s = _kernel(G, v, epsilon), torch.ones_like(v)
                u = a / kernel.sum(1)
            elif off <= NEAR * float(g.sum()):
                break
    return u[:, None] * kernel * s, v + epsilon * s.log()


def _kernel(G: Float[Tensor, "n r"], v: Float[Tensor, "r"], epsilon: float) -> Tensor:
    """Scale rows so that their largest entry is one."""
    z = (v - G) / epsilon
    return (z - z.amax(1, keepdim=True)).exp()


def descended(c: Costs, search: Search) -> Search:
    r"""Take one step of mirror descent on Q, R and g together.

    `Q exp(-t A (B^T R)/g)`, R likewise and `g exp(t diag((A^T Q)^T (B^T R))/g^2)`, t over the
    largest gradient, then the projection on `Q 1 = a`, `R 1 = b`, `Q^T 1 = R^T 1 = g >= 1e-10` by
    Dykstra's algorithm in logarithms.
    """
    Q, R, g = search.now.Q, search.now.R, search.now.g
    AQ, BR = c.A.T @ Q, c.B.T @ R  # (k, r)
    to_Q, to_R, to_g = c.A @ (BR / g), c.B @ (AQ / g), -(AQ * BR).sum(0) / g**2
    # a constant along rows changes nothing of the projection, but the length of the step
    to_Q, to_R = (z - z.mean(1, keepdim=True) for z in (to_Q, to_R))
    t = STEP / max(float(z.abs().amax()) for z in (to_Q, to_R, to_g))
    logs = Q.log() - t * to_Q, R.log() - t * to_R, g.log() - t * to_g
    return _remembered(c, search, _projected(c, *logs))


def _projected(
    c: Costs, K1: Float[Tensor, "n r"], K2: Float[Tensor, "m r"], h: Float[Tensor, "r"]
) -> Factors:
    """Alternate rows and groups; v, w scale columns, the rest are Dykstra's corrections."""
    mass = c.a.sum()
    least = (LEAST * mass).log()
    v1 = v2 = q = p1 = p2 = e = torch.zeros_like(h)
    log_a, log_b = c.a.log(), c.b.log()
    u1, u2 = torch.zeros_like(log_a), torch.zeros_like(log_b)
    for _ in range(PROJECTIONS):
        u1, u2 = log_a - (K1 + v1).logsumexp(1), log_b - (K2 + v2).logsumexp(1)
        lifted = torch.maximum(least, h + q)
        q, h = q + h - lifted, lifted
        t1, t2 = (K1 + u1[:, None]).logsumexp(0), (K2 + u2[:, None]).logsumexp(0)
        common = ((h + e) + (v1 + p1 + t1) + (v2 + p2 + t2)) / 3
        w1, w2 = common - t1, common - t2
        p1, p2, e = p1 + v1 - w1, p2 + v2 - w2, e + h - common
        done = float((w1 - v1).abs().amax() + (w2 - v2).abs().amax()) < NEAR
        v1, v2, h = w1, w2, common
        if done:
            break
    Q, R = (K1 + u1[:, None] + v1).exp(), (K2 + u2[:, None] + v2).exp()
    return Factors(Q, R, h.exp())
