"""Conjugate gradients for the singular systems of a transport plan."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.iterate import Stop, Watch, iterate, unwatched

# Steps without progress: at the floor of rounding the residual wanders.
PATIENCE = 100


def conjugate_gradients(
    apply: Callable[[Tensor], Tensor],
    right: Float[Tensor, "n"],
    diagonal: Float[Tensor, "n"],
    *,
    tol: float,
    max_iter: int,
    singular: bool = True,
    watch: Watch = unwatched,
) -> tuple[Float[Tensor, "n"], Stop]:
    r"""Solve `A y = right` with `A = diag(mu) - P diag(1/nu) P^T`, singular along 1 only.

    Conjugate gradients preconditioned by `diagonal` = mu; `right` is first moved into the range of
    A, unless A is not singular. Unknowns whose `diagonal` is zero stay zero. The condition number
    is 1 / (1 - theta), theta the rate of Sinkhorn's iteration. The residual is relative, in the
    norm of the preconditioner.

    References: Hestenes, Stiefel 1952, doi:10.6028/jres.049.044; Kaasschieter 1988,
    doi:10.1016/0377-0427(88)90358-5 (singular systems).
    """
    inverse = torch.where(diagonal > 0, 1 / diagonal, 0.0)
    if singular:
        right = right - diagonal * (right.sum() / diagonal.sum())

    def step(state: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        y, r, d, rho = state
        image = apply(d)
        alpha = rho / (d @ image)
        y, r = y + alpha * d, r - alpha * image
        s = inverse * r
        new = r @ s
        return y, r, s + (new / rho) * d, new

    first = inverse * right
    rho = right @ first
    if not float(rho) > 0:
        return torch.zeros_like(right), Stop("converged", 0, 0.0)
    (y, *_), stop = iterate(
        step,
        lambda state: (state[3] / rho).abs().sqrt(),
        (torch.zeros_like(right), right, first, rho),
        tol=tol,
        max_iter=max_iter,
        check_every=1,  # past the solution a step would divide zero by zero
        patience=PATIENCE,
        watch=watch,
    )
    return y, stop
