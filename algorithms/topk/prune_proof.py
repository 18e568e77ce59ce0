"""Pruned rows, what is told of them, and what proves them: conditions that hold at the optimum."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from algorithms.topk.magnitude import shrink
from algorithms.topk.sheets import Sheet


@dataclass(frozen=True)
class Pruned:
    """What became of one tensor.

    Attributes:
        k: entries that the hard answer keeps.
        nnz: soft values that are not 0.
        extra: nnz - k.
        soft: soft values between 0 and the magnitudes that are kept whole.
    """

    name: str
    size: int
    rows: int
    k: int
    nnz: int
    extra: int
    soft: int


@dataclass(frozen=True)
class Pooled:
    """Rows of one sheet, pruned: all in float64 and in the units of the sheet.

    Attributes:
        z: the soft values, biased or not.
        theta: the threshold of each row: what is not larger is 0.
        first, second: the k-th magnitude of each row and the next one; 0 where there is none.
        chosen: the k entries that the hard answer keeps.
        hard: rows whose soft values keep k entries as well.
    """

    sheet: Sheet
    z: Float[Tensor, "B n"]
    theta: Float[Tensor, "B"]
    lam: Float[Tensor, "B"]
    first: Float[Tensor, "B"]
    second: Float[Tensor, "B"]
    chosen: Bool[Tensor, "B n"]
    hard: Bool[Tensor, "B"]
    iterations: int
    regime: str


def optimality(
    rows: Pooled, z: Float[Tensor, "B n"], p: float, *, debias: bool
) -> tuple[float, float]:
    r"""Measure by how much rows z miss the conditions that hold at the answer alone.

    With y the shrunk values (y = z, or `y + lam y^(p-1) = |z|` where z was de-biased):
    `sum_i min(y_i, theta) = k theta`, as a share of `k theta`; and for each entry
    `s_i = y_i + lam y_i^(p-1)` where `y_i >= theta`, `s_i = theta + lam y_i^(p-1)` where
    `0 < y_i < theta`, `s_i <= theta` where y_i is 0, as a share of the row's largest s_i.
    """
    s, theta, lam = rows.sheet.x.abs(), rows.theta[:, None], rows.lam
    y = shrink(z.abs(), lam, p) if debias else z.abs()
    owed = rows.sheet.k * rows.theta
    missing = (torch.minimum(y, theta).sum(1) - owed).abs()
    lift = lam[:, None] * y.pow(p - 1)
    off = (s - torch.maximum(y, theta) - lift).abs()
    off = torch.where(y == 0, (s - theta).clamp(min=0), off)
    return _worst(missing, owed), _worst(off.amax(1), s.amax(1))


def choice(rows: Pooled) -> tuple[int, float]:
    """Check the hard answer: rows that do not keep k, and how far one kept is below one dropped.

    The second is a share of the row's largest magnitude; 0 when the k largest are kept.
    """
    s = rows.sheet.x.abs()
    miscounted = int((rows.chosen.sum(1) != rows.sheet.k).sum())
    dropped = s.masked_fill(rows.chosen, 0.0).amax(1)
    kept = s.masked_fill(~rows.chosen, torch.inf).amin(1)
    return miscounted, _worst((dropped - kept).clamp(min=0), s.amax(1))


def _worst(miss: Float[Tensor, "B"], size: Float[Tensor, "B"]) -> float:
    """Find the largest share; what should be 0 is measured as it is."""
    return float((miss / torch.where(size > 0, size, 1.0)).amax())
