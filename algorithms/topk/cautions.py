"""What to know of an answer before using it, in words that name rows and numbers."""

import torch
from torch import Tensor

from algorithms.errors import Caution
from algorithms.topk.answers import Rows
from algorithms.topk.questions import Number
from algorithms.topk.response import Response
from algorithms.topk.selection import around

# lam of so few spacings of the floats around the k-th entry only breaks ties, or shares them.
SPACINGS = 4
# A share of entries between from which a mask is called wide, in rows that are not short.
WIDE, SHORT = 0.5, 16
LEAST = 1e-300  # magnitudes are at least this where they are divided by


def mask_cautions(
    x: Tensor, k: Number, lam: Tensor, rows: Rows, rho: Response, method: str
) -> tuple[Caution, ...]:
    """Say where masks are hard, or too fine, or too wide, or not there yet."""
    kept = torch.as_tensor(k, dtype=torch.float64, device=x.device).expand(x.shape[0])
    inner = (kept > 0) & (kept < x.shape[1])
    found = [unconverged(rows, method), *steep(rho)]
    if bool(inner.any()):
        a, b = _around(x, kept, inner)
        found += [fine(x, a, lam[inner], inner), hard(rows, a - b, lam, rho, inner)]
        found.append(wide(rows, lam, x.shape[1]))
    return tuple(caution for caution in found if caution is not None)


def _around(x: Tensor, k: Tensor, inner: Tensor) -> tuple[Tensor, Tensor]:
    x = x[inner].double().clamp(torch.finfo(torch.float64).min, torch.finfo(torch.float64).max)
    return around(x, k[inner])


def value_cautions(
    s: Tensor, lam: Tensor, k: Tensor, rows: Rows, rho: Response, method: str
) -> tuple[Caution, ...]:
    """Say the same of values kept by magnitude s; and where more than k are kept."""
    inner = (k > 0) & (k < s.shape[1])
    found = [unconverged(rows, method), *steep(rho)]
    if bool(inner.any()):
        a, b = _around(s, k, inner)
        strength, e = lam[inner], rho.p - 1
        gap = torch.where(b > 0, (a - b) / b.clamp(min=LEAST).pow(e), torch.inf)
        # in units of lam times the power of a magnitude, lam has the units of the magnitudes
        found += [fine(s, a, strength * a.clamp(min=LEAST).pow(e), inner)]
        found += [flat(rows, gap, lam, inner), more(rows, k)]
    return tuple(caution for caution in found if caution is not None)


def flat(rows: Rows, gap: Tensor, lam: Tensor, inner: Tensor) -> Caution | None:
    """Say that no row pools entries, and which lam makes the first one do so."""
    if not bool(rows.hard[inner].all()) or not bool(gap.isfinite().any()):
        return None
    first = int((gap / lam[inner]).argmin())
    row = int(inner.nonzero()[first])
    return Caution(
        "no_pooling",
        f"row {row}: the gap behind its k-th magnitude is too large for lam {float(lam[row]):.4g}: "
        f"exactly k entries are kept, as in all {rows.hard.shape[0]} rows, and the others have no "
        "gradient",
        f"increase lam above {float(gap[first]):.4g} to get one",
    )


def more(rows: Rows, k: Tensor) -> Caution | None:
    """Say that the price of smoothness is a few more entries."""
    extra = rows.support - k
    row = int(extra.argmax())
    if float(extra[row]) <= 0:
        return None
    return Caution(
        "more_than_k",
        f"row {row}: {int(rows.support[row])} entries are kept for k = {int(k[row])}; in all rows "
        f"{int(extra.clamp(min=0).sum())} more than k",
        "those in the soft block share the last places; a smaller lam keeps fewer",
    )


def unconverged(rows: Rows, method: str) -> Caution | None:
    """Say that a method gave up, and what its sums miss."""
    if rows.stop.status == "converged":
        return None
    row = int(rows.residual.argmax())
    return Caution(
        "unconverged",
        f"{method} ended as {rows.stop.status} after {rows.stop.iterations} sweeps: row {row} "
        f"misses k by {float(rows.residual[row]):.3g}, pairs are out of order by "
        f"{rows.stop.residual:.3g}",
        "ask for method newton, which is exact; dykstra needs about as many sweeps as the square "
        f"of the entries that it pools, here {int(rows.interior.max())}",
    )


def steep(rho: Response) -> list[Caution]:
    """Say that slopes are unbounded."""
    if rho.p <= 2 or rho.low < 0:
        return []
    return [
        Caution(
            "unbounded_gradient",
            f"p is {rho.p:g}: above 2 the slope grows without bound where entries reach 0",
            "p = 2 has slopes of at most 1/lam, p = 4/3 of at most 3/lam, falling to 0",
        )
    ]


def fine(x: Tensor, a: Tensor, lam: Tensor, inner: Tensor) -> Caution | None:
    """Say that lam is lost in the spacing of floats."""
    spacing = torch.finfo(x.dtype).eps * a.abs()
    lost = lam < SPACINGS * spacing
    if not bool(lost.any()):
        return None
    first = int(lost.nonzero()[0])
    row = int(inner.nonzero()[first])
    finer = "" if x.dtype == torch.float64 else " ask for precision float64,"
    return Caution(
        "lam_below_resolution",
        f"row {row}: lam {float(lam[first]):.3g} is below {SPACINGS} spacings "
        f"({float(spacing[first]):.3g}) of the numbers around its k-th entry {float(a[first]):.6g}",
        f"the answer is hard, or shares ties; subtract a constant from the row,{finer} or take "
        f"lam above {float(SPACINGS * spacing[first]):.3g}",
    )


def hard(rows: Rows, gap: Tensor, lam: Tensor, rho: Response, inner: Tensor) -> Caution | None:
    """Say that no row has a gradient, and which lam gives the first one."""
    if not bool(rows.hard[inner].all()):
        return None
    needed = gap / (rho.high - rho.low)  # a row is hard from this lam downwards
    first = int((needed / lam[inner]).argmin())
    row = int(inner.nonzero()[first])
    return Caution(
        "no_gradient",
        f"row {row}: gap {float(gap[first]):.4g} behind its k-th entry is too large for lam "
        f"{float(lam[row]):.4g}: the mask is exactly hard and its gradient is zero, as in all "
        f"{rows.hard.shape[0]} rows",
        f"increase lam above {float(needed[first]):.4g} to get a gradient",
    )


def wide(rows: Rows, lam: Tensor, n: int) -> Caution | None:
    """Say that most entries are fractional."""
    row = int(rows.interior.argmax())
    most = int(rows.interior[row])
    if n <= SHORT or most <= WIDE * n or torch.isinf(lam[row]):
        return None
    return Caution(
        "wide_window",
        f"row {row}: {most} of {n} entries are fractional at lam {float(lam[row]):.4g}",
        "the mask is far from a choice; a smaller lam, as lam auto, makes it sparse",
    )
