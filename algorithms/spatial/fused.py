r"""The fused Gromov-Wasserstein objective and its conditional gradient descent.

    F(P) = (1 - alpha) <M, P> + alpha sum_{i,i',j,j'} (D1_ii' - D2_jj')^2 P_ij P_i'j'

over U(a, b). With P feasible the quadratic term is c - 2 <D1 P D2, P>, where
c = a.(D1^2 a) + b.(D2^2 b), squares elementwise. Everything below carries K = D1 P D2 along.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.iterate import Stop, Watch, iterate, unwatched
from algorithms.simplex import Vertex, network_simplex

# A change of the objective is measured against F, or this share of F(a b^T) where F is nearly 0.
NEARLY_ZERO = 1e-6


@dataclass(frozen=True)
class Fused:
    """A fused problem: linear cost M, symmetric distances D1 and D2, masses a and b, weight."""

    M: Float[Tensor, "n m"]
    D1: Float[Tensor, "n n"]
    D2: Float[Tensor, "m m"]
    a: Float[Tensor, "n"]
    b: Float[Tensor, "m"]
    alpha: float

    @cached_property
    def row_offset(self) -> Float[Tensor, "n"]:
        """D1^2 a, squares elementwise."""
        return self.D1.square() @ self.a

    @cached_property
    def column_offset(self) -> Float[Tensor, "m"]:
        """D2^2 b, squares elementwise."""
        return self.D2.square() @ self.b

    @cached_property
    def offset(self) -> Float[Tensor, ""]:
        """The part of the quadratic term that every feasible plan shares."""
        return self.a @ self.row_offset + self.b @ self.column_offset

    @cached_property
    def size(self) -> float:
        """F(a b^T): the magnitude of the objective, for relative changes near 0."""
        return float(product(self).value)


@dataclass(frozen=True, eq=False)
class Descent:
    """A feasible plan on its way down, with what one step needs of the past.

    Attributes:
        P: the plan.
        K: D1 P D2.
        transport_cost: <M, P>.
        cross: <K, P>.
        value: F(P).
        duals: potentials of the last linear problem, to start the next one.
        change: fall of F in the last step, relative; 1 before the first.
    """

    P: Float[Tensor, "n m"]
    K: Float[Tensor, "n m"]
    transport_cost: Float[Tensor, ""]
    cross: Float[Tensor, ""]
    value: Float[Tensor, ""]
    duals: tuple[Tensor, Tensor] | None = None
    change: float = 1.0


def terms(problem: Fused, P: Float[Tensor, "n m"]) -> tuple[Tensor, Tensor, Tensor]:
    """Compute value, <M, P> and the quadratic term from the plan alone, with P's own marginals."""
    p, q = P.sum(1), P.sum(0)
    transport_cost = (problem.M * P).sum()
    distortion = (
        p @ problem.D1.square() @ p
        + q @ problem.D2.square() @ q
        - 2 * (problem.D1 @ P @ problem.D2 * P).sum()
    )
    value = (1 - problem.alpha) * transport_cost + problem.alpha * distortion
    return value, transport_cost, distortion


def gradient(problem: Fused, K: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
    """Compute dF/dP on U(a, b) from K = D1 P D2."""
    quadratic = problem.row_offset[:, None] + problem.column_offset - 2 * K
    return (1 - problem.alpha) * problem.M + 2 * problem.alpha * quadratic


def from_plan(problem: Fused, P: Float[Tensor, "n m"]) -> Descent:
    """Stand at a feasible plan."""
    K = problem.D1 @ P @ problem.D2
    return _stand(problem, P, K, (problem.M * P).sum(), (K * P).sum())


def product(problem: Fused) -> Descent:
    """Stand at a b^T, whose K has rank one."""
    P = torch.outer(problem.a, problem.b)
    K = torch.outer(problem.D1 @ problem.a, problem.D2 @ problem.b)
    return _stand(problem, P, K, (problem.M * P).sum(), (K * P).sum())


def from_vertex(problem: Fused, vertex: Vertex) -> Descent:
    """Stand at a vertex; its few entries make every term cheap."""
    P = torch.zeros_like(problem.M)
    P[vertex.rows, vertex.cols] = vertex.mass
    K = _sandwich(problem, vertex)
    return _stand(problem, P, K, _inner(problem.M, vertex), _inner(K, vertex))


def descend(
    problem: Fused,
    start: Descent,
    *,
    tol: float,
    max_iter: int,
    watch: Watch = unwatched,
) -> tuple[Descent, Stop]:
    r"""Minimise F over U(a, b) from `start` by conditional gradient with exact line search.

    Each step moves towards the vertex V that minimises <grad F(P), V>, by the best fraction of
    the way: F is a quadratic along the segment. F never rises. The residual is the relative fall
    of F in one step. (Titouan et al. 2019, arXiv:1805.09114, algorithms 1 and 2.)
    """
    return iterate(
        lambda state: _step(problem, state),
        lambda state: state.change,
        start,
        tol=tol,
        max_iter=max_iter,
        watch=watch,
    )


def frank_wolfe_gap(problem: Fused, state: Descent) -> float:
    """Compute <grad F(P), P - V> for the best vertex V: 0 exactly at stationary plans."""
    G = gradient(problem, state.K)
    vertex = network_simplex(problem.a, problem.b, G, warm=state.duals)
    return float((G * state.P).sum() - vertex.transport_cost)


def _step(problem: Fused, state: Descent) -> Descent:
    alpha = problem.alpha
    # the row and column offsets of the gradient only shift the duals: left out
    cost = (1 - alpha) * problem.M - 4 * alpha * state.K
    vertex = network_simplex(problem.a, problem.b, cost, warm=state.duals)
    K = _sandwich(problem, vertex)
    # D1 and D2 are symmetric, so <D1 V D2, P> = <K, V>: all inner products touch V's entries only
    mixed, own = _inner(state.K, vertex), _inner(K, vertex)
    cheaper = _inner(problem.M, vertex) - state.transport_cost
    slope = (1 - alpha) * cheaper - 4 * alpha * (mixed - state.cross)
    bend = -2 * alpha * (own - 2 * mixed + state.cross)
    t = _best_fraction(float(slope), float(bend))
    P = (1 - t) * state.P
    P[vertex.rows, vertex.cols] += t * vertex.mass
    cross = state.cross + 2 * t * (mixed - state.cross) + t * t * (own - 2 * mixed + state.cross)
    fall = -t * float(slope) - t * t * float(bend)
    value = state.value - fall
    return Descent(
        P,
        torch.lerp(state.K, K, t),
        state.transport_cost + t * cheaper,
        cross,
        value,
        (vertex.f, vertex.g),
        fall / max(abs(float(value)), NEARLY_ZERO * problem.size),
    )


def _best_fraction(slope: float, bend: float) -> float:
    """Minimise slope t + bend t^2 over [0, 1], never going up."""
    if slope >= 0:
        return 0.0  # the gap is 0 up to rounding
    if bend > 0:
        return min(1.0, -slope / (2 * bend))
    return 1.0


def _stand(problem: Fused, P: Tensor, K: Tensor, transport_cost: Tensor, cross: Tensor) -> Descent:
    value = (1 - problem.alpha) * transport_cost + problem.alpha * (problem.offset - 2 * cross)
    return Descent(P, K, transport_cost, cross, value)


def blurred(problem: Fused, state: Descent) -> Descent:
    """Stand half way between a plan and a b^T: leaves the basin's small dents, keeps its side."""
    flat = product(problem)
    P, K = (state.P + flat.P) / 2, (state.K + flat.K) / 2
    both = (state.transport_cost + flat.transport_cost) / 2
    return replace(_stand(problem, P, K, both, (K * P).sum()), duals=state.duals)


def _sandwich(problem: Fused, vertex: Vertex) -> Float[Tensor, "n m"]:
    """Compute D1 V D2 by one dense product: V D2 gathers a row of D2 an entry of V."""
    VD2 = torch.zeros_like(problem.M)
    VD2.index_add_(0, vertex.rows, vertex.mass[:, None] * problem.D2[vertex.cols])
    return problem.D1 @ VD2


def _inner(X: Float[Tensor, "n m"], vertex: Vertex) -> Float[Tensor, ""]:
    return X[vertex.rows, vertex.cols] @ vertex.mass
