"""What is asked of rows: their entries, how many to keep, how smoothly; refused where it cannot be.

Also the strengths that suit rows when nobody names one.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from algorithms.errors import IllPosed

Number = int | float | Tensor
# Infinite entries are put so many lam, and such a share of the extremes, beyond the finite ones.
BEYOND, SHARE = 1e5, 1e-3
# A smaller lam acts like this one: its inverse is finite.
LEAST = 1e-300


@dataclass(frozen=True)
class Question:
    """Rows of finite numbers, and for each of them k and lam in float64.

    Attributes:
        x: entries, float32 or float64; infinite ones are replaced by finite ones far enough off.
        none, every: rows that keep nothing, or all.
        inner_k: k where it lies strictly between; a half where not, for the solvers to chew on.
        dtype: the type that was asked in.
    """

    x: Float[Tensor, "B n"]
    k: Float[Tensor, "B"]
    lam: Float[Tensor, "B"]
    none: Bool[Tensor, "B"]
    every: Bool[Tensor, "B"]
    inner_k: Float[Tensor, "B"]
    dtype: torch.dtype


def prepared(x: Float[Tensor, "B n"], k: Number, lam: Number, *, whole: bool = False) -> Question:
    """Check a question and bring it into the form that solvers take.

    `whole` questions, of magnitudes, have whole k and no infinite entries.

    Raises:
        IllPosed: naming the row, and the entry where one is at fault.
    """
    n = x.shape[1]
    if n == 0:
        raise IllPosed("x", "rows are empty; expected at least one entry")
    dtype = x.dtype
    if dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    kept = _of_rows("k", k, x)
    strength = _of_rows("lam", lam, x)
    _refuse("k", kept, ~((kept >= 0) & (kept <= n)), f"expected 0 <= k <= {n}, the row's length")
    _refuse("lam", strength, ~((strength > 0) & (strength < torch.inf)), "expected lam > 0, finite")
    if whole:
        _refuse("k", kept, kept != kept.round(), "expected a whole number")
    if not bool(x.sum().isfinite()):  # one pass; a sum that overflows is looked at closely
        x = _without_infinities(x, kept, strength, whole)
    strength = strength.clamp(min=LEAST)
    none, every = kept == 0, kept == n
    inner = torch.where(none | every, 0.5, kept)
    return Question(x, kept, strength, none, every, inner, dtype)


def amounts(field: str, one: int | float | None, of_rows: Tensor | None) -> Number:
    """Take a number for all rows, or one of each; exactly one of them is given."""
    if (one is None) == (of_rows is None):
        got = "neither" if one is None else "both"
        raise IllPosed(field, f"{got} of {field} and {field}_rows; expected one", code="validation")
    return one if of_rows is None else of_rows  # pyright: ignore[reportReturnType] -- one is given


def whole_amounts(k: Number, x: Float[Tensor, "B n"]) -> Float[Tensor, "B"]:
    """Give each row its k, a whole number."""
    found = _of_rows("k", k.detach() if isinstance(k, Tensor) else k, x)
    _refuse("k", found, found != found.round(), "expected a whole number")
    return found


def _of_rows(field: str, value: Number, x: Tensor) -> Float[Tensor, "B"]:
    """Give each row its number."""
    B = x.shape[0]
    found = torch.as_tensor(value, dtype=torch.float64, device=x.device)
    if found.ndim > 1 or (found.ndim == 1 and found.shape[0] != B):
        raise IllPosed(
            field, f"shape {tuple(found.shape)}; expected a number, or one of each of {B} rows",
            code="shape-mismatch",
        )  # fmt: skip
    return found.expand(B)


def _refuse(field: str, values: Tensor, bad: Tensor, expected: str) -> None:
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise IllPosed(field, f"row {row}: {float(values[row]):g}; {expected}")


def _without_infinities(x: Tensor, k: Tensor, lam: Tensor, whole: bool) -> Tensor:
    """Replace entries that are kept or absent whatever the others are, in float64."""
    unknown = x.isnan()
    if bool(unknown.any()):
        row, entry = unknown.nonzero()[0].tolist()
        count = int(unknown.sum())
        raise IllPosed("x", f"row {row}, entry {entry} is NaN, one of {count}; expected numbers")
    above, below = x == torch.inf, x == -torch.inf
    if not bool((above | below).any()):
        return x
    if whole:
        row, entry = (above | below).nonzero()[0].tolist()
        raise IllPosed("x", f"row {row}, entry {entry} is infinite; expected finite numbers")
    x, n = x.double(), x.shape[1]
    forced, left = above.sum(1), n - below.sum(1)
    if bool((forced > k).any()):
        row = int((forced > k).nonzero()[0])
        raise IllPosed("x", f"row {row}: {int(forced[row])} entries are +inf, and k is {k[row]:g}")
    if bool((left < k).any()):
        row = int((left < k).nonzero()[0])
        raise IllPosed(
            "x", f"row {row}: {int(left[row])} entries are above -inf, and k is {k[row]:g}"
        )
    finite = x.isfinite()
    high = torch.where(finite, x, -torch.inf).amax(1)
    low = torch.where(finite, x, torch.inf).amin(1)
    high = torch.where(high.isfinite(), high, 0.0)
    low = torch.where(low.isfinite(), low, 0.0)
    off = BEYOND * lam + SHARE * torch.maximum(high.abs(), low.abs())
    x = torch.where(above, (high + off)[:, None], x)
    return torch.where(below, (low - off)[:, None], x)


def auto_lam(x: Float[Tensor, "B n"], k: Number) -> float:
    """Choose a strength: the median over rows of `x_(k-j) - x_(k+j)`, j a tenth of k or 1.

    Never below the spacing of the floats around the k-th entries, so that it always smooths.
    """
    kept = _of_rows("k", k, x).ceil()
    eps, n = torch.finfo(x.dtype).eps, x.shape[1]
    x = x.detach().double()
    j = (kept / 10).floor().clamp(min=1)
    order = x.sort(1, descending=True).values
    ranks = torch.stack([kept - j, kept + j, kept], 1).clamp(1, n).long() - 1
    upper, lower, at = order.gather(1, ranks).unbind(1)
    spans, at = upper - lower, at[at.isfinite()]
    spans = spans[spans.isfinite()]  # rows that are padded have no entry to end at
    spacing = float(4 * eps * at.abs().max()) if at.numel() else 0.0
    chosen = max(float(spans.median()) if spans.numel() else 0.0, spacing)
    return chosen if 0 < chosen < torch.inf else 1.0
