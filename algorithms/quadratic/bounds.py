"""Lower bounds of Gromov-Wasserstein: what no plan between the two spaces can go below."""

from jaxtyping import Float
from torch import Tensor

from algorithms.linear.staircase import staircase
from algorithms.quadratic.centred import centred
from algorithms.quadratic.objective import Pair
from algorithms.spaces import Cloud


def first_lower_bound(pair: Pair) -> float:
    r"""Compare eccentricities: `min_P sum_ij (e_i - h_j)^2 P_ij`, `e_i = (sum_k Cx_ik^2 a_k)^1/2`.

    Minkowski's inequality for the inner sum of the objective; Memoli 2011,
    doi:10.1007/s10208-011-9093-5, section 6.
    """
    a, b, mass = _normalised(pair)
    e, h = (Z.squared(w).clamp_min(0).sqrt() for Z, w in ((pair.X, a), (pair.Y, b)))
    return mass**2 * _on_line(e, a, h, b)


def second_lower_bound(pair: Pair) -> float:
    """Compare the distributions of all costs within each space, in O(n^2 log n + m^2 log m)."""
    a, b, mass = _normalised(pair)
    within = (pair.X.matrix().reshape(-1), (a[:, None] * a).reshape(-1))
    within_y = (pair.Y.matrix().reshape(-1), (b[:, None] * b).reshape(-1))
    return mass**2 * _on_line(*within, *within_y)


def moment_bound(pair: Pair) -> float | None:
    r"""Bound both terms that a plan of two clouds can gain by; None for other spaces.

    `GW(P) = K - 4 <s t^T, P> - 8 |X^T P Y|_F^2` (see `centred`): the first is largest where s and
    t are coupled in order; the second is at most `8 sum_k lambda_k lambda'_k`, sorted eigenvalues
    of both covariances, since `X^T P Y = Sx^1/2 W Sy^1/2` with W of norm at most one.
    """
    if not (isinstance(pair.X, Cloud) and isinstance(pair.Y, Cloud)):
        return None
    level = centred(pair)
    s, t = level.norms
    across = _coupled(s, level.a, t, level.b)
    gained = float((across[2] * across[0] * across[1]).sum())
    x, y = (v.sort(descending=True).values for v in level.spreads)
    r = min(len(x), len(y))
    bound = level.constant - 4 * gained - 8 * float(x[:r] @ y[:r])
    return float(pair.a.sum()) ** 2 * bound


def _normalised(pair: Pair) -> tuple[Tensor, Tensor, float]:
    return pair.a / pair.a.sum(), pair.b / pair.b.sum(), float(pair.a.sum())


def _on_line(
    x: Float[Tensor, "n"], a: Float[Tensor, "n"], y: Float[Tensor, "m"], b: Float[Tensor, "m"]
) -> float:
    """Compute W_2^2 between measures of mass one on the line."""
    left, right, mass = _coupled(x, a, y, b)
    return float(mass @ (left - right).square())


def _coupled(
    x: Float[Tensor, "n"], a: Float[Tensor, "n"], y: Float[Tensor, "m"], b: Float[Tensor, "m"]
) -> tuple[Float[Tensor, "k"], Float[Tensor, "k"], Float[Tensor, "k"]]:
    """Couple two measures on the line in order: places on either side, and the mass of each."""
    (x, by_x), (y, by_y) = x.sort(), y.sort()
    rows, cols, mass = staircase(a[by_x], b[by_y])
    return x[rows], y[cols], mass
