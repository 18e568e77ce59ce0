"""Named tensors laid out in rows, one threshold a row, and back."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from algorithms.errors import IllPosed

Scope = Literal["per_tensor", "global", "n_m", "row"]
Tensors = Mapping[str, Float[Tensor, "..."]]


@dataclass(frozen=True)
class Amount:
    """How much is kept of each row: one of a share that is dropped, a share, or a count."""

    sparsity: float | None
    keep: float | None
    k: int | None

    @property
    def field(self) -> str:
        """Name what was given."""
        return next(name for name in ("sparsity", "keep", "k") if getattr(self, name) is not None)

    def of(self, size: int) -> int:
        """Count the entries to keep of so many."""
        if self.k is not None:
            return self.k
        keep = 1 - self.sparsity if self.sparsity is not None else self.keep
        assert keep is not None
        return min(size, round(keep * size))


@dataclass(frozen=True)
class Sheet:
    """Rows that each keep k entries, in float64, and the tensors that they were made of.

    Attributes:
        units: what the entries of each tensor were divided by.
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    units: tuple[float, ...]
    x: Float[Tensor, "B n"]
    k: int

    def parts(self, rows: Shaped[Tensor, "B n"]) -> dict[str, Tensor]:
        """Cut rows like these up into tensors again."""
        if len(self.names) == 1:
            return {self.names[0]: rows.reshape(self.shapes[0])}
        pieces = rows[0].split([shape.numel() for shape in self.shapes])
        shaped = (piece.reshape(to) for piece, to in zip(pieces, self.shapes, strict=True))
        return dict(zip(self.names, shaped, strict=True))

    def joined(self, tensors: Tensors) -> Float[Tensor, "B n"]:
        """Lay tensors of these names out like the rows; absent ones are 0."""
        like = self.parts(torch.zeros_like(self.x))
        found = [tensors[n].double() if n in tensors else like[n] for n in self.names]
        return torch.cat([t.reshape(-1) for t in found]).reshape(self.x.shape)


def sheets(
    tensors: Tensors, amount: Amount, scope: Scope, *, group: int | None, normalise: bool
) -> list[Sheet]:
    """Lay tensors out: one row a tensor, one row for all, or the rows or groups of each.

    Raises:
        IllPosed: an entry is not finite, a row has no group, or too few entries.
    """
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            at = (~tensor.isfinite()).nonzero()[0].tolist()
            raise IllPosed("tensors", f"{name} holds NaN or infinity at {at}, in {tensor.dtype}")
    if scope == "global":
        return [_together(tensors, amount, normalise)]
    return [_one(name, tensor, amount, scope, group) for name, tensor in tensors.items()]


def _one(name: str, tensor: Tensor, amount: Amount, scope: Scope, group: int | None) -> Sheet:
    n = tensor.numel()
    if scope != "per_tensor":
        n //= tensor.shape[0] if tensor.ndim > 1 else 1
    if scope == "n_m":
        n = _grouped(name, n, group)
    k = _checked(amount, n, name)
    return Sheet((name,), (tensor.shape,), (1.0,), tensor.double().reshape(-1, n), k)


def _together(tensors: Tensors, amount: Amount, normalise: bool) -> Sheet:
    units = tuple(scale(t) if normalise else 1.0 for t in tensors.values())
    flat = [t.double().reshape(-1) / u for t, u in zip(tensors.values(), units, strict=True)]
    x = torch.cat(flat)[None]  # (1, n)
    shapes = tuple(t.shape for t in tensors.values())
    return Sheet(tuple(tensors), shapes, units, x, _checked(amount, x.shape[1], "the network"))


def scale(tensor: Float[Tensor, "..."]) -> float:
    """Compute the root mean square of the entries, without overflow; 1 where all are 0."""
    magnitudes = tensor.detach().double().abs()
    high = float(magnitudes.amax())
    return high * math.sqrt(float((magnitudes / high).square().mean())) if high > 0 else 1.0


def _grouped(name: str, n: int, group: int | None) -> int:
    if group is None:
        raise IllPosed("group", "n_m needs the size of a group, as 4 in 2:4")
    if n % group:
        raise IllPosed("group", f"rows of {name} have {n} entries: no whole groups of {group}")
    return group


def _checked(amount: Amount, n: int, what: str) -> int:
    k = amount.of(n)
    if k > n:
        raise IllPosed(amount.field, f"keeps {k} entries of rows that have {n}, in {what}")
    return k
