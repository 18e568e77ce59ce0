"""What routines of entropic transport share: what can be met, balanced potentials, lost points."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.entropic.aprox import relaxed
from algorithms.entropic.implicit import Optimum
from algorithms.entropic.scaling import Problem, solve
from algorithms.errors import Caution, IllPosed
from algorithms.iterate import Stop, Watch
from algorithms.marginals import KL, TV, Balanced, Berg, Marginal
from algorithms.measures import Extent, extent

# Half an ulp of a potential as large as max|C|, over epsilon, is an error of the plan's exponents.
# They average: L1 errors measured in float32 are 0.02 to 0.2 of it (n = 40 to 2000; d = 2, 50). A
# tol below this share of it is refused; only problems of a few points could have met it.
REACHABLE = 1 / 64
# KL potentials of a point without mass are infinite; from so many rho on, exp(-f/rho) is rounding.
UNSERVED = 40.0
# A mass that differs from one by so many roundings of the plan's type is one.
SAME = 4.0


def check_reachable(largest: float, dtype: torch.dtype, epsilon: float, tol: float) -> None:
    """Refuse numbers that are none, and a tolerance that rounding puts out of reach.

    Args:
        largest: the largest finite cost, in absolute value.
        dtype: the type of the potentials that are returned.
    """
    assert dtype in (torch.float32, torch.float64)
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise IllPosed("epsilon", f"is {epsilon}; it must be positive and finite")
    if not tol > 0:
        raise IllPosed("tol", f"is {tol}; it must be positive")
    floor = REACHABLE * _exponent_error(largest, dtype, epsilon)
    if tol < floor:
        raise IllPosed(
            "tol",
            f"{tol:.1e} cannot be met in {str(dtype)[6:]}: max|C|/epsilon is"
            f" {largest / epsilon:.1e} and rounding moves the marginals by more than"
            f" {floor:.1e}; ask for a larger tol or epsilon, for float64, or for transport.exact",
        )


def largest_cost(C: Float[Tensor, "n m"], within: Extent | None = None) -> float:
    """Return the largest absolute cost that is finite; from the extent of C if that is known."""
    ends = within or extent(C)
    if ends.finite:
        return max(abs(ends.low), abs(ends.high))
    size = C.detach().abs()
    return float(torch.where(size.isfinite(), size, 0.0).amax())


def _exponent_error(largest: float, dtype: torch.dtype, epsilon: float) -> float:
    return torch.finfo(dtype).eps / 2 * largest / epsilon


def floor_caution(
    largest: float, dtype: torch.dtype, epsilon: float, stop: Stop, tol: float
) -> tuple[Caution, ...]:
    """Say so when rounding kept the error above the tolerance."""
    error = _exponent_error(largest, dtype, epsilon)
    if stop.status != "stagnated" or stop.residual > error:
        return ()
    return (
        Caution(
            "rounding_floor",
            f"the error stays at {stop.residual:.1e}, above tol {tol:.1e}: potentials are rounded"
            f" to {str(dtype)[6:]}",
            f"ask for float64, or for tol above {error:.1e}",
        ),
    )


def balanced_optimum(
    C: Float[Tensor, "n m"],
    a: Float[Tensor, "n"],
    b: Float[Tensor, "m"],
    epsilon: float,
    *,
    tol: float,
    max_iter: int,
    watch: Watch,
) -> tuple[Tensor, Tensor, Tensor, Stop, tuple[Tensor, Tensor]]:
    """Solve for weights of mass one; return f, g and the plan of the true mass, with gradients.

    Last come the marginals of the plan in float64, as they were summed when it was made.
    """
    with torch.no_grad():
        wide_a, wide_b = a.double(), b.double()
        mass = wide_a.sum()
        problem = Problem(C, wide_a / mass, wide_b / wide_b.sum(), epsilon)
        solved = solve(problem, tol=tol, max_iter=max_iter, watch=watch)
        f = solved.f
        g = solved.g - epsilon * mass.log()  # a b grows like mass^2, the plan like mass
        plan, marginals = solved.plan, (mass * solved.rows, mass * solved.columns)
        if abs(float(mass) - 1) > SAME * torch.finfo(C.dtype).eps:
            plan = plan.mul_(mass.to(C.dtype))
    f, g, plan = Optimum.apply(C, a, b, (f.to(C), g.to(C)), plan, epsilon)
    # <f, a> = 0 already: the difference is zero and carries the derivative of the gauge
    centre = (f @ a) / a.sum()
    centre = centre - centre.detach()
    return f - centre, g + centre, plan, solved.stop, marginals


def restored(
    whole: tuple[Tensor, Tensor, Tensor],
    f: Float[Tensor, "k"],
    g: Float[Tensor, "l"],
    plan: Float[Tensor, "k l"],
    present: tuple[Tensor, Tensor],
    epsilon: float,
    marginals: tuple[Marginal, Marginal] = (Balanced(), Balanced()),
) -> tuple[Tensor, Tensor, Tensor]:
    """Put absent points back: no mass, and the potential that a vanishing mass there would have.

    A point that only forbidden pairs could serve has the softmin of `UNSERVED` instead of infinity.
    """
    C, a, b = whole
    rows, columns = present
    no_row, no_column = (_others(k, of) for k, of in zip(present, (a, b), strict=True))
    z = b[columns].log() + (g - C[no_row][:, columns]) / epsilon
    f_absent = _potential(marginals[0], z, epsilon)
    z = a[rows].log() + (f - C[rows][:, no_column].T) / epsilon
    g_absent = _potential(marginals[1], z, epsilon)
    f = torch.zeros_like(a).index_put((rows,), f).index_put((no_row,), f_absent)
    g = torch.zeros_like(b).index_put((columns,), g).index_put((no_column,), g_absent)
    return f, g, torch.zeros_like(C).index_put((rows[:, None], columns), plan)


def _others(kept: Tensor, of: Tensor) -> Tensor:
    absent = torch.ones_like(of, dtype=torch.bool)
    absent[kept] = False
    return absent.nonzero()[:, 0]


def _potential(marginal: Marginal, z: Float[Tensor, "k l"], epsilon: float) -> Float[Tensor, "k"]:
    """Relax the softmin of the exponents z; one of a point that nothing serves is infinite."""
    served = z.isfinite().any(1)
    # without this, derivatives of the softmin of nothing would be NaN
    s = -epsilon * torch.where(served[:, None], z, 0.0).logsumexp(1)  # (k, l) -> (k,)
    f = relaxed(marginal, s, epsilon)
    if isinstance(marginal, KL | Berg):
        return torch.where(served, f, UNSERVED * marginal.rho)
    return torch.where(served, f, marginal.rho if isinstance(marginal, TV) else 0.0)
