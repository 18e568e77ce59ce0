"""The tensors of a network inside an uploaded .safetensors file."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Any

from pydantic import Field, PrivateAttr, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from schemas.arrays import shelf_of
from schemas.datasets import Selection

Shapes = dict[str, list[int]]
Pattern = Annotated[str, Field(min_length=1, max_length=500)]


class StateDict(Selection):
    """Tensors by name: the digest of a .safetensors file and which of its tensors are meant."""

    include: list[Pattern] = Field(
        default=["*"],
        min_length=1,
        max_length=100,
        description="Names of the tensors that are meant, as patterns: `*` is any text, `?` one "
        "character, `[ab]` a or b. Tensors that hold no real numbers are never meant.",
    )
    exclude: list[Pattern] = Field(
        default=[], max_length=100, description="Patterns of names to leave out again."
    )
    min_axes: int = Field(
        default=2,
        ge=0,
        le=32,
        description="Tensors of fewer axes are left out: 2 keeps biases and scales out, 0 lets "
        "every tensor in.",
    )

    _shapes: Shapes = PrivateAttr(default_factory=dict)

    @property
    def shapes(self) -> Shapes:
        """Return the shape of each tensor that is meant; empty where not yet known."""
        return self._shapes

    def means(self, name: str, axes: int, *, real: bool) -> bool:
        """Decide whether a tensor is meant."""
        return (
            real
            and axes >= self.min_axes
            and any(fnmatchcase(name, pattern) for pattern in self.include)
            and not any(fnmatchcase(name, pattern) for pattern in self.exclude)
        )

    @model_validator(mode="after")
    def _tensors_exist(self, info: ValidationInfo) -> "StateDict":
        facts = shelf_of(info).datasets.get(self.dataset)
        if facts is None:
            return self
        if facts["kind"] != "safetensors":
            raise PydanticCustomError(
                "validation", "tensors are read from .safetensors; this dataset is {kind}",
                {"field": "dataset", "kind": facts["kind"]},
            )  # fmt: skip
        self._shapes = self._meant(facts["arrays"], facts.get("dtypes", {}))
        if not self._shapes:
            names = ", ".join(list(facts["arrays"])[:20])
            raise PydanticCustomError(
                "validation",
                "no tensor of real numbers with {min_axes} axes or more has such a name; the file "
                "has {names}",
                {"field": "include", "min_axes": self.min_axes, "names": names or "none"},
            )
        return self

    def _meant(self, shapes: Mapping[str, Sequence[int]], dtypes: Mapping[str, Any]) -> Shapes:
        return {
            name: list(shape)
            for name, shape in shapes.items()
            if self.means(name, len(shape), real=is_real(str(dtypes.get(name, "F32"))))
            and 0 not in shape
        }


def is_real(dtype: str) -> bool:
    """Tell floating-point formats by their names in .safetensors: F64, F32, F16, BF16, F8_E4M3."""
    return dtype.startswith(("F", "BF"))
