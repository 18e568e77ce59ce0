"""The answer of `transport.sinkhorn`, with or without a matrix."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from algorithms.entropic.penalised import Certificate
from algorithms.errors import Caution
from algorithms.iterate import Stop
from algorithms.sparse import SparsePlan


@dataclass(frozen=True)
class EntropicPlan:
    """The coupling in the form asked for, its potentials and costs, and how far to trust them."""

    plan: Float[Tensor, "n m"] | None
    entries: SparsePlan | None
    dropped: Float[Tensor, ""]
    map: Float[Tensor, "n d"] | None
    f: Float[Tensor, "n"]
    g: Float[Tensor, "m"]
    epsilon: float
    value: Float[Tensor, ""]
    transport_cost: Float[Tensor, ""]
    mass: Float[Tensor, ""]
    rows: Float[Tensor, "n"]
    columns: Float[Tensor, "m"]
    certificate: Certificate
    stop: Stop
    cautions: tuple[Caution, ...]
