r"""The relaxed top-k of rows: the core that every routine of this family is built on.

`solve_mask` and `solve_values` answer without derivatives, `soft_mask` and `soft_values` with:
both pull cotangents back from the threshold alone, without a second solve.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.errors import IllPosed
from algorithms.iterate import Watch, unwatched
from algorithms.topk.answers import Rows, compiled_mask, compiled_values, masked, valued
from algorithms.topk.derivatives import Mask, Values
from algorithms.topk.magnitude import solve_magnitudes
from algorithms.topk.methods import Method, mask_by, values_by
from algorithms.topk.questions import Number, auto_lam, prepared
from algorithms.topk.response import Regularizer, Response, exponent, response
from algorithms.topk.rows import runs_on
from algorithms.topk.windows import solve_windows

__all__ = [
    "Rows",
    "auto_lam",
    "regularised_value",
    "soft_mask",
    "soft_values",
    "solve_mask",
    "solve_values",
    "suggest_lam",
]

# Halvings of the interval of lam: to 1e-9 of its logarithm.
HALVINGS = 40


def solve_mask(
    x: Float[Tensor, "B n"],
    k: Number,
    lam: Number,
    *,
    p: float = 2.0,
    regularizer: Regularizer = "power",
    method: Method = "newton",
    compiled: bool = True,
    watch: Watch = unwatched,
) -> Rows:
    """Find the masks `rho((x - tau) / lam)` with sums k; no derivatives.

    k and lam are numbers or one of each row. Entries of -inf are absent and get 0; those of +inf
    get 1. `method` chooses among ways to the answer of the power regularizer; newton runs in
    compiled loops where there are some for x, unless `compiled` forbids it.

    Raises:
        IllPosed: where there is no mask, naming row and entry.
    """
    rho, asked = response(p, regularizer), prepared(x, k, lam)
    if method != "newton":
        if regularizer != "power":
            raise IllPosed("method", f"{method} is for the power regularizer", code="validation")
        found = mask_by(method, asked.x, asked.inner_k, asked.lam, rho, watch=watch)
        return masked(asked, rho, found)
    if compiled and regularizer == "power" and runs_on(asked.x):
        return compiled_mask(asked, exponent(p))
    return masked(asked, rho, solve_windows(asked.x, asked.inner_k, asked.lam, rho, watch=watch))


def solve_values(
    x: Float[Tensor, "B n"],
    k: Number,
    lam: Number,
    *,
    p: float = 2.0,
    debias: bool = True,
    method: Method = "newton",
    compiled: bool = True,
    watch: Watch = unwatched,
) -> Rows:
    """Keep the k entries of largest magnitude, relaxed; no derivatives.

    Raises:
        IllPosed: where there is no answer, naming row and entry.
    """
    response(p, "power")  # refuses the exponent where it is no good
    asked = prepared(x, k, lam, whole=True)
    if method != "newton":
        solved = values_by(method, asked.x, asked.inner_k, asked.lam, p, watch=watch)
    elif compiled and runs_on(asked.x):
        found = compiled_values(asked, p, debias=debias)
        if found is not None:
            return found
        solved = solve_magnitudes(asked.x, asked.inner_k, asked.lam, p, watch=watch)
    else:
        solved = solve_magnitudes(asked.x, asked.inner_k, asked.lam, p, watch=watch)
    return valued(asked, solved, p, debias=debias)


def soft_mask(
    x: Float[Tensor, "B n"],
    k: Number,
    lam: Number,
    *,
    p: float = 2.0,
    regularizer: Regularizer = "power",
) -> Float[Tensor, "B n"]:
    """Compute the masks of `solve_mask`, differentiable with respect to x, k and lam."""
    return differentiable_mask(x, k, lam, p=p, regularizer=regularizer)[0]


def differentiable_mask(
    x: Float[Tensor, "B n"],
    k: Number,
    lam: Number,
    *,
    p: float = 2.0,
    regularizer: Regularizer = "power",
    method: Method = "newton",
    watch: Watch = unwatched,
) -> tuple[Float[Tensor, "B n"], Rows]:
    """Compute the masks with derivatives, and what else is known of them."""
    plain = still(k), still(lam)
    rows = solve_mask(x.detach(), *plain, p=p, regularizer=regularizer, method=method, watch=watch)
    rho = response(p, regularizer)
    y = Mask.apply(x, _as_tensor(k, x), _as_tensor(lam, x), rows.y, rows.solved, rho)
    return y, rows


def _as_tensor(value: Number, x: Tensor) -> Tensor:
    if isinstance(value, Tensor):
        return value
    return torch.tensor(value, dtype=torch.float64, device=x.device)


def soft_values(
    x: Float[Tensor, "B n"],
    k: Number,
    lam: Number,
    *,
    p: float = 2.0,
    debias: bool = True,
) -> Float[Tensor, "B n"]:
    """Compute the values of `solve_values`, differentiable with respect to x and lam."""
    return differentiable_values(x, k, lam, p=p, debias=debias)[0]


def differentiable_values(
    x: Float[Tensor, "B n"],
    k: Number,
    lam: Number,
    *,
    p: float = 2.0,
    debias: bool = True,
    method: Method = "newton",
    watch: Watch = unwatched,
) -> tuple[Float[Tensor, "B n"], Rows]:
    """Compute the values with derivatives, and what else is known of them."""
    k, plain = still(k), still(lam)
    rows = solve_values(x.detach(), k, plain, p=p, debias=debias, method=method, watch=watch)
    kept = _as_tensor(k, x).double().expand(x.shape[0])
    y = Values.apply(x, _as_tensor(lam, x), kept, rows.y, rows.solved, p, debias)
    return y, rows


def regularised_value(
    x: Float[Tensor, "B n"], k: Number, lam: Number, *, p: float = 2.0
) -> Float[Tensor, "B"]:
    """Compute `f_R(x) = max <x, y> - (lam/p) sum y^p` over the masks with sum k.

    Its gradients are the mask, tau (for k) and `-(1/p) sum y^p` (for lam): envelope theorem.
    """
    rows = solve_mask(x.detach(), still(k), still(lam), p=p)
    return value_of(x, k, lam, rows, response(p, "power"))


def still(value: Number) -> Number:
    """Leave out the gradient of what may be a tensor."""
    return value.detach() if isinstance(value, Tensor) else value


def value_of(
    x: Float[Tensor, "B n"], k: Number, lam: Number, rows: Rows, rho: Response
) -> Float[Tensor, "B"]:
    """Compute the value that masks maximise, with the gradients of the envelope theorem."""
    y = rows.y.double()
    met = torch.where(y > 0, x.double(), 0.0)  # absent entries weigh nothing
    gained = (met * y).sum(1) - lam * rho.price(y)
    if isinstance(k, Tensor) and k.requires_grad:
        gained = gained + rows.tau * (k - k.detach())
    return gained.to(x.dtype)


def suggest_lam(
    x: Float[Tensor, "B n"], k: Number, target_interior: int, *, p: float = 2.0
) -> Float[Tensor, "B"]:
    """Find for each row about the least lam with so many interior entries; more where tied.

    The count is a step function that grows with lam; it is halved on a scale of logarithms,
    between the gap at the k-th entry and a strength that makes every entry interior.
    """
    x = x.detach().double()
    n = x.shape[1]
    kept = torch.as_tensor(k, dtype=torch.float64, device=x.device).expand(x.shape[0])
    high = (x.amax(1) - x.amin(1)).clamp(min=torch.finfo(x.dtype).tiny) * 2 * n
    low, target = high * 2.0**-HALVINGS, min(target_interior, n)
    for _ in range(HALVINGS):
        mid = (low * high).sqrt()
        enough = solve_mask(x, kept, mid, p=p).interior >= target
        low, high = torch.where(enough, low, mid), torch.where(enough, mid, high)
    return high
