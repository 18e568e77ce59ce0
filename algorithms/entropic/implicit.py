"""Derivatives of entropic transport: envelope theorem, implicit function theorem."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.entropic.conjugate import conjugate_gradients

# Relative residual of the linear solve: well below what differences in float64 can see.
SOLVE_TOL = 1e-13
# Conjugate gradients end in n steps in exact arithmetic; rounding asks for a few times as many.
SOLVE_STEPS_PER_POINT, SOLVE_STEPS = 4, 100


@dataclass(frozen=True)
class Give:
    """How the two marginals give way when potentials move: what adds to the diagonal of H.

    The optimal `P 1 = a r(f)` has the derivative `-a r'(f)` in f, times epsilon; zero for a hard
    marginal, infinity for a potential that does not move at all.
    """

    rows: Float[Tensor, "n"]
    columns: Float[Tensor, "m"]


class Optimum(torch.autograd.Function):
    r"""Attach the derivatives of f, g and the plan with respect to C, a, b, epsilon held fixed.

    With `P_ij = a_i b_j exp((f_i + g_j - C_ij)/eps)`, `P 1 = a r(f)` and likewise for columns,
    `H (df, dg) = ((P * dC) 1 - eps P (db/b), (P * dC)^T 1 - eps P^T (da/a))`,
    `H = [[diag(P1 + give), P], [P^T, diag(P^T 1 + give)]]`: for hard marginals nothing gives, and
    H is singular along (1, -1) only. A cotangent (wf, wg, W) comes back through
    `H z = (wf + (W*P) 1 / eps, wg + (W*P)^T 1 / eps)`:
    `dl/dC = P * (z_i + z_j) - W * P / eps`, `dl/da = (W*P) 1 / a - eps P z_g / a`, and so for b.
    """

    @staticmethod
    def forward(
        ctx: Any,
        C: Float[Tensor, "n m"],
        a: Float[Tensor, "n"],
        b: Float[Tensor, "m"],
        potentials: tuple[Float[Tensor, "n"], Float[Tensor, "m"]],
        plan: Float[Tensor, "n m"],
        epsilon: float,
        give: Give | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return f, g and the plan as they were found."""
        f, g, P = potentials[0].clone(), potentials[1].clone(), plan.detach()
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(a, b, P)
        ctx.epsilon, ctx.give = epsilon, give
        return f, g, P

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        """Solve with H once, whichever outputs were used."""
        wf, wg, W = cotangents
        if wf is None and wg is None and W is None:
            return (None,) * 7
        (a, b, P), epsilon = ctx.saved_tensors, ctx.epsilon
        with torch.no_grad():
            WP = torch.zeros_like(P) if W is None else W * P
            rows, columns = WP.sum(1), WP.sum(0)  # (n, m) -> (n,), (m,)
            zf, zg = solve_coupled(
                P,
                rows / epsilon if wf is None else rows / epsilon + wf,
                columns / epsilon if wg is None else columns / epsilon + wg,
                ctx.give,
            )
            to_C = P * (zf[:, None] + zg) - WP / epsilon
            to_a, to_b = (rows - epsilon * (P @ zg)) / a, (columns - epsilon * (P.T @ zf)) / b
        return *(Last.apply(out, P, *cotangents) for out in (to_C, to_a, to_b)), *(None,) * 4


class Last(torch.autograd.Function):
    """Refuse one more derivative: without this it would silently be taken as zero."""

    @staticmethod
    def forward(ctx: Any, derivative: Tensor, *made_of: Tensor | None) -> Tensor:
        """Return the derivative, in a graph that leads to what it was made of."""
        return derivative.view_as(derivative)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        """Say what there is instead."""
        raise NotImplementedError(
            "second derivatives of an entropic plan and its potentials; those of its value exist"
        )


class Envelope(torch.autograd.Function):
    """Attach to the value its derivatives: the plan for C, and the potentials for a and b.

    The derivatives are made of f, g and the plan as they stand in the graph, so a second
    derivative of the value is the first derivative of these, through `Optimum`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        value: Float[Tensor, ""],
        C: Float[Tensor, "*pairs"],
        a: Float[Tensor, "n"],
        b: Float[Tensor, "m"],
        derivatives: Float[Tensor, "*pairs"],
        along_a: Float[Tensor, "n"],
        along_b: Float[Tensor, "m"],
    ) -> Float[Tensor, ""]:
        """Return the value as it was found."""
        ctx.save_for_backward(derivatives, along_a, along_b)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        """Multiply the plan and the potentials by the cotangent of the value."""
        (w,), (P, f, g) = cotangents, ctx.saved_tensors
        return None, w * P, w * f, w * g, None, None, None


def solve_coupled(
    P: Float[Tensor, "n m"],
    p: Float[Tensor, "n"],
    q: Float[Tensor, "m"],
    give: Give | None = None,
) -> tuple[Float[Tensor, "n"], Float[Tensor, "m"]]:
    r"""Solve `[[diag D, P], [P^T, diag E]] (y, z) = (p, q)`, `D = P1 + give`, `E = P^T 1 + give`.

    Conjugate gradients in float64 on `(diag D - P diag(1/E) P^T) y = p - P (q / E)`. Without give,
    the answer is one up to `y + t, z - t`; where it is infinite, the unknown is zero.
    """
    dtype, plan = P.dtype, P.double()
    mu, nu = plan.sum(1), plan.sum(0)  # (n, m) -> (n,), (m,)
    singular = give is None or not bool(give.rows.any() or give.columns.any())
    if give is not None:
        mu, nu = mu + give.rows.double(), nu + give.columns.double()
    # a vanished column has no equation of its own; its unknown is left at zero, as a fixed one is
    inverse = torch.where(nu > 0, 1 / nu, 0.0)
    mu = torch.where(mu.isfinite(), mu, 0.0)
    p, q = p.double(), q.double()
    y, _ = conjugate_gradients(
        lambda d: mu * d - plan @ (inverse * (plan.T @ d)),
        p - plan @ (q * inverse),
        mu,
        tol=SOLVE_TOL,
        max_iter=SOLVE_STEPS_PER_POINT * plan.shape[0] + SOLVE_STEPS,
        singular=singular,
    )
    return y.to(dtype), (inverse * (q - plan.T @ y)).to(dtype)
