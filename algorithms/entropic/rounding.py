"""Plans moved to exact marginals."""

import torch
from jaxtyping import Float
from torch import Tensor


def round_plan(
    P: Float[Tensor, "n m"], a: Float[Tensor, "n"], b: Float[Tensor, "m"]
) -> Float[Tensor, "n m"]:
    r"""Move P to exact marginals a, b: shrink rows, then columns, then add a rank-one remainder.

    Altschuler, Weed, Rigollet 2017, arXiv:1705.09634, algorithm 2: the move is at most twice the
    L1 error of the marginals of P.
    """
    x, y, da, db = shrinking(P, a, b)
    left = da.sum().clamp_min(torch.finfo(P.dtype).tiny)
    return P * x[:, None] * y + da[:, None] * (db / left)  # (n, m)


def shrinking(
    P: Float[Tensor, "n m"], a: Float[Tensor, "n"], b: Float[Tensor, "m"]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Factors x, y <= 1 that bring `diag(x) P diag(y)` below a and b, and what then lacks of each.

    Products with 1 - x and 1 - y, which are small, keep float32 plans accurate.
    """
    wide = torch.float64
    mu, nu = P.sum(1, dtype=wide), P.sum(0, dtype=wide)  # (n, m) -> (n,), (m,)
    x = torch.where(mu > a, a / mu, 1.0)
    nu = nu - (P.T @ (1 - x).to(P.dtype)).to(wide)
    y = torch.where(nu > b, b / nu, 1.0)
    da = a - x * (mu - (P @ (1 - y).to(P.dtype)).to(wide))
    x, y, da, db = (z.to(P.dtype) for z in (x, y, da.clamp_min(0), (b - y * nu).clamp_min(0)))
    return x, y, da, db
