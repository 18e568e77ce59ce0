"""What a caller may want of a plan instead of all its entries."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.sparse import SparsePlan

PlanForm = Literal["dense", "sparse", "top", "none"]
# A sparse plan leaves out entries below this share of the mean of their row: less than a
# thousandth of the mass.
NEGLIGIBLE = 1e-3


def entries_of(plan: Float[Tensor, "n m"], form: PlanForm, top: int) -> SparsePlan | None:
    """List the entries that matter, or the largest `top` of each row, by rows."""
    P = plan.detach()
    if form == "top":
        mass, cols = P.topk(min(top, P.shape[1]), 1)  # (n, m) -> (n, top)
        rows = torch.arange(len(P), device=P.device)[:, None].expand_as(cols)
        some = mass > 0
        return SparsePlan(rows[some], cols[some], mass[some])
    if form == "sparse":
        rows, cols = (NEGLIGIBLE * P.mean(1, keepdim=True) < P).nonzero(as_tuple=True)
        return SparsePlan(rows, cols, P[rows, cols])
    return None


def barycentric_map(
    P: Float[Tensor, "n m"], x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], like: Tensor
) -> Float[Tensor, "n d"]:
    r"""Send each point to the mean of where its mass goes, `sum_j P_ij y_j / mu_i`.

    `like` (n, m) holds logarithms of P up to a constant for each row: rows whose mass vanishes, or
    underflows, go where a trace of mass would; a point that may go nowhere stays where it is.
    """
    mu = P.sum(1)
    known = mu > torch.finfo(P.dtype).tiny * len(y) / torch.finfo(P.dtype).eps
    image = (P @ y) / torch.where(known, mu, 1.0)[:, None]  # (n, m), (m, d) -> (n, d)
    for i in (~known).nonzero()[:, 0].tolist():
        served = bool(like[i].isfinite().any())
        image = image.index_put(
            (torch.tensor([i], device=y.device),),
            (like[i].softmax(0) @ y if served else x[i])[None],
        )
    return image
