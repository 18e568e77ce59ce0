"""A matching problem in its own units, beside what leads back to those of the caller."""

from dataclasses import dataclass, replace

from torch import Tensor

from algorithms.errors import IllPosed
from algorithms.structured.preparation import Prepared, Scaling
from algorithms.structured.problem import Problem
from algorithms.structured.regularizer import Regularizer

# Below this share of eps* sweeps are many and vertices are near: transport is exact there.
EXACT_BELOW = 1e-4


@dataclass(frozen=True)
class Question:
    """What is to be solved.

    Attributes:
        every: with all points; problem: with those that weigh something, at the indices `present`.
        unit: by which cross moments were divided, the product of the units of the clouds;
            price: by which costs were.
        shared: mean cost of shared features, in the problem's units.
        epsilon: in those units; `asked_epsilon` before it was set to 0.
    """

    every: Problem
    problem: Problem
    present: tuple[Tensor, Tensor]
    ready: tuple[Prepared, ...]
    unit: float
    units: tuple[float, float]
    price: float
    scaling: Scaling
    asked: Regularizer
    shared: float
    epsilon: float = 0.0
    asked_epsilon: float = 0.0
    streamed: bool = False

    def with_lam(self, lam: float) -> "Question":
        """Set the strength, in the problem's units."""
        return replace(
            self,
            every=replace(self.every, penalty=replace(self.every.penalty, lam=lam)),
            problem=replace(self.problem, penalty=replace(self.problem.penalty, lam=lam)),
        )

    @property
    def scale(self) -> float:
        """Return what relative strengths are relative to."""
        return self.problem.threshold() + self.shared


def resolved(
    q: Question, epsilon: float | None, relative: float, method: str, streamed_from: int
) -> Question:
    """Choose the entropic strength and how plans are found."""
    asked = relative * q.scale if epsilon is None else epsilon / q.price
    p, chosen = q.problem, asked
    if method == "auto" and p.balanced and asked < EXACT_BELOW * q.scale:
        chosen = 0.0
    if chosen == 0 and (not p.balanced or method == "streamed"):
        what = "streamed transport" if p.balanced else "unbalanced transport"
        raise IllPosed("epsilon", f"must be positive for {what}")
    large = len(p.a) * len(p.b) > streamed_from
    streamed = method == "streamed" or (method == "auto" and large and p.balanced and chosen > 0)
    if streamed and not p.balanced:
        raise IllPosed("method", "streamed is for balanced transport")
    return replace(q, epsilon=chosen, asked_epsilon=asked, streamed=streamed)
