"""Tensors of a network by name, as the mathematics sees them."""

from dataclasses import dataclass

from jaxtyping import Float, Shaped
from torch import Tensor


@dataclass(frozen=True)
class StateDict:
    """The tensors that a question is about, and those of the same file that it leaves alone.

    Attributes:
        chosen: real numbers, finite, in the order of their names.
        rest: everything else, of any element type.
        widened: names whose element type no answer can have; they are held in a wider one.
    """

    chosen: dict[str, Float[Tensor, "..."]]
    rest: dict[str, Shaped[Tensor, "..."]]
    widened: tuple[str, ...] = ()
