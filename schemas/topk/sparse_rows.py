"""Rows with few non-zero entries."""

from typing import Annotated

from pydantic import Field

from schemas.arrays import ArrayRef, Dims, Strict


class SparseRows(Strict):
    """Rows by their non-zero entries: row i holds those from `offsets[i]` to `offsets[i + 1]`."""

    offsets: Annotated[ArrayRef, Dims("bounds")] = Field(description="B + 1 ends, from 0.")
    columns: Annotated[ArrayRef, Dims("nnz")] = Field(description="Column of each entry, from 0.")
    values: Annotated[ArrayRef, Dims("nnz")] = Field(description="The entries.")
