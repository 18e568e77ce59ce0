"""Couplings written by their non-zero entries."""

from typing import Annotated

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from schemas.arrays import ArrayRef, Dims, Strict, Whole

INTEGERS = ("int64", "int32", "uint8")


class SparsePlan(Strict):
    """A coupling by its non-zero entries: `mass[t]` travels from `rows[t]` to `cols[t]`."""

    rows: Annotated[ArrayRef, Dims("nnz"), Whole()] = Field(description="Source indices, from 0.")
    cols: Annotated[ArrayRef, Dims("nnz"), Whole()] = Field(description="Target indices, from 0.")
    mass: Annotated[ArrayRef, Dims("nnz")] = Field(description="Mass that travels, > 0.")

    @model_validator(mode="after")
    def _indices(self) -> "SparsePlan":
        for name, at in (("rows", self.rows), ("cols", self.cols)):
            if at.dtype not in INTEGERS or (at.facts.low or 0) < 0:
                raise PydanticCustomError(
                    "validation", "indices are whole numbers from 0, received {dtype} from {low}",
                    {"field": name, "dtype": at.dtype, "low": at.facts.low},
                )  # fmt: skip
        return self
