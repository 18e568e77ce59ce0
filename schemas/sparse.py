"""Couplings written by their non-zero entries."""

from typing import Annotated

from pydantic import Field

from schemas.arrays import ArrayRef, Dims, Strict, Whole


class SparsePlan(Strict):
    """A coupling by its non-zero entries: `mass[t]` travels from `rows[t]` to `cols[t]`."""

    rows: Annotated[ArrayRef, Dims("nnz"), Whole()] = Field(description="Source indices, from 0.")
    cols: Annotated[ArrayRef, Dims("nnz"), Whole()] = Field(description="Target indices, from 0.")
    mass: Annotated[ArrayRef, Dims("nnz")] = Field(description="Mass that travels, > 0.")
