"""Pruning of named tensors."""

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from schemas.arrays import ArrayRef, Dims, Request, Result, Strict
from schemas.named import AskedNamed, Named
from schemas.state_dict import Shapes, StateDict

Amount = Literal["sparsity", "keep", "k"]


class LamSchedule(Strict):
    """Strengths that fall by one factor from step to step, for training."""

    steps: int = Field(ge=2, le=100_000, description="Number of strengths; the first is `lam`.")
    last: float = Field(
        gt=0, lt=1e100, description="The last of them, in the units of `lam`; less than lam."
    )


class PruneRequest(Request):
    """Prune tensors to a sparsity: softly, so that it can be trained through, and exactly.

    Keeps of each row the k entries of largest magnitude. The soft answer shares what is kept among
    entries near the k-th, and follows them continuously; the hard answer keeps exactly k.
    """

    smaller = "scopes other than global need less: they hold one tensor at a time"

    tensors: AskedNamed | None = Field(
        None, description="Tensors by name, of any shapes; or give a state."
    )
    state: StateDict | None = Field(
        None,
        description="Tensors of a .safetensors file. The answer has all tensors of the file, with "
        "their names, shapes and element types; those that are not meant come back unchanged.",
    )
    sparsity: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Share of each row that is dropped: of n entries `round((1 - sparsity) n)` are "
        "kept. 0 keeps all.",
    )
    keep: float | None = Field(
        None, gt=0, le=1, description="Share of each row that is kept, instead of sparsity."
    )
    k: int | None = Field(
        None, ge=1, description="Number of entries kept of each row, instead: the N of N:M."
    )
    scope: Literal["per_tensor", "global", "n_m", "row"] = Field(
        "per_tensor",
        description="What is a row: each tensor; all tensors together, which lets some keep more "
        "than others; the entries that feed one output, all axes but the first; or a group of "
        "neighbours in such a row.",
    )
    group: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="Entries in a group of `n_m`: the M of N:M. Null in other scopes.",
    )
    normalise: bool = Field(
        False,
        description="In scope global, compare entries divided by the root mean square of their "
        "tensor: else tensors of small entries are emptied.",
    )
    p: float = Field(
        2.0,
        gt=1,
        le=8,
        description="Norm exponent of the regulariser: 2 is piecewise linear, values near 1 are "
        "closer to hard; gradients are bounded up to 2 only.",
    )
    lam: Annotated[float, Field(gt=0, lt=1e100)] | Literal["auto"] = Field(
        "auto",
        description="Strength of the regulariser, in units of magnitude to the power 2 - p (a pure "
        "number for p = 2). Small is hard; near 1, a network learns which entries to keep; much "
        "larger, nearly all entries stay. auto pools about a tenth of k on either side of the "
        "k-th magnitude, and is returned as a relative strength.",
    )
    lam_relative: bool = Field(
        False,
        description="Measure lam in units of the k-th magnitude of each row to the power 2 - p: "
        "tensors of different scales are then treated alike. Makes no difference for p = 2.",
    )
    debias: bool = Field(
        True,
        description="Return clear winners whole; false returns the raw operator, which shrinks "
        "them by about `lam |x|^(p - 1)`.",
    )
    lam_schedule: LamSchedule | None = Field(
        None,
        description="Also return the strengths of a training run, from lam down to nearly hard; "
        "ask again with each of them, and deploy the last hard answer.",
    )
    cotangent: AskedNamed | None = Field(
        None,
        description="Derivatives of a loss by the soft values, by name and in the tensors' shapes; "
        "the answer then has its derivatives by the tensors. Names left out count as 0.",
    )

    @model_validator(mode="after")
    def _what_and_how_much(self) -> "PruneRequest":
        if (self.tensors is None) == (self.state is None):
            raise PydanticCustomError(
                "validation", "give tensors or state, one of the two", {"field": "tensors"}
            )
        given = [n for n in ("sparsity", "keep", "k") if getattr(self, n) is not None]
        if len(given) != 1:
            raise PydanticCustomError(
                "validation", "give sparsity, keep or k, one of the three; received {given}",
                {"field": given[-1] if given else "sparsity", "given": ", ".join(given) or "none"},
            )  # fmt: skip
        if (self.group is None) == (self.scope == "n_m"):
            text = "scope {scope} has no groups" if self.group else "n_m needs group: 4 for 2:4"
            raise PydanticCustomError("validation", text, {"field": "group", "scope": self.scope})
        if self.normalise and self.scope != "global":
            raise PydanticCustomError(
                "validation", "tensors are compared in scope global, not in {scope}",
                {"field": "normalise", "scope": self.scope},
            )  # fmt: skip
        return self

    @model_validator(mode="after")
    def _rows_are_long_enough(self) -> "PruneRequest":
        for name, n in self._lengths().items():
            if self.group is not None and n % self.group:
                raise PydanticCustomError(
                    "infeasible-problem", "rows of {name} have {n} entries: no groups of {group}",
                    {"field": "group", "name": name, "n": n, "group": self.group},
                )  # fmt: skip
            n = self.group or n
            if self.k is not None and self.k > n:
                raise PydanticCustomError(
                    "infeasible-problem", "rows of {name} have {n} entries, {k} cannot be kept",
                    {"field": "k", "name": name, "n": n, "k": self.k},
                )  # fmt: skip
        return self

    @model_validator(mode="after")
    def _cotangent_fits(self) -> "PruneRequest":
        shapes = self.shapes()
        for name, array in (self.cotangent or {}).items():
            if shapes and name not in shapes:
                raise PydanticCustomError(
                    "validation", "{name} is not pruned here; there are {known}",
                    {"field": "cotangent", "name": name, "known": ", ".join(list(shapes)[:20])},
                )  # fmt: skip
            if shapes and array.shape != shapes[name]:
                raise PydanticCustomError(
                    "shape-mismatch", "{name} has shape {want}, its cotangent {got}",
                    {"field": "cotangent", "name": name, "want": str(shapes[name]),
                     "got": str(array.shape)},
                )  # fmt: skip
        return self

    @model_validator(mode="after")
    def _strengths_fall(self) -> "PruneRequest":
        asked = self.lam_schedule
        if asked is not None and self.lam != "auto" and asked.last >= self.lam:
            raise PydanticCustomError(
                "infeasible-problem", "the last strength {last} is not below lam = {lam}",
                {"field": "lam_schedule.last", "last": asked.last, "lam": self.lam},
            )  # fmt: skip
        return self

    def shapes(self) -> Shapes:
        """List the shapes of the tensors to be pruned; empty where a file is not yet known."""
        if self.tensors is not None:
            return {name: array.shape for name, array in self.tensors.items()}
        return self.state.shapes if self.state is not None else {}

    def _lengths(self) -> dict[str, int]:
        """Count the entries of a row of each tensor, before it is cut into groups."""
        sizes = {name: math.prod(shape) for name, shape in self.shapes().items()}
        if self.scope == "per_tensor":
            return sizes
        if self.scope == "global":
            return {"all tensors": sum(sizes.values())} if sizes else {}
        first = {n: shape[0] if len(shape) > 1 else 1 for n, shape in self.shapes().items()}
        return {name: size // first[name] for name, size in sizes.items()}

    def footprint(self) -> int:
        """Count what is laid out and returned of all tensors, and the work on one of them."""
        sizes = [math.prod(shape) for shape in self.shapes().values()]
        together = self.scope == "global"
        largest = sum(sizes) if together else max(sizes, default=0)
        return 8 * (6 * sum(sizes) + 24 * largest)


class Pruned(Strict):
    """What became of one tensor."""

    name: str
    size: int = Field(description="entries")
    rows: int = Field(description="rows with a threshold each; 1 in the scopes of whole tensors")
    k: int = Field(description="entries that the hard answer keeps")
    nnz: int = Field(description="soft values that are not 0")
    extra: int = Field(description="`nnz - k`: what smoothing adds")
    soft: int = Field(description="soft values in the block: between 0 and those kept whole")


class Certificate(Strict):
    """What proves both answers, recomputed in float64 from what is returned.

    The first two show the rounding of the tensors' element type: about 1e-7 in float32.
    """

    sum_residual: float = Field(
        description="largest `|sum_i min(y_i, theta) - k theta|` of a row, as a share of "
        "`k theta`; y are the raw values"
    )
    stationarity: float = Field(
        description="largest `|s_i - max(y_i, theta) - lam y_i^(p-1)|` of an entry kept, or "
        "`s_i - theta` of one dropped, as a share of the row's largest magnitude s"
    )
    miscounted_rows: int = Field(description="rows whose hard answer does not keep exactly k")
    hard_gap: float = Field(
        description="by how much a dropped magnitude exceeds a kept one in the hard answer, as "
        "such a share: 0"
    )


class PruneResult(Result):
    """Soft and hard values of all tensors under their names.

    `GET /v1/jobs/{id}/result/hard` as .safetensors is a file like the one that was sent, pruned;
    `result/values` likewise.
    """

    renders = ("png", "svg")

    values: Named = Field(description="Soft values; tensors that were not meant are unchanged.")
    hard: Named = Field(
        description="Exactly k entries of each row, of equal magnitudes the first; the others are "
        "0. This is what to deploy."
    )
    kept: Named = Field(description="True where the soft value is not 0.")
    hard_kept: Named = Field(description="True at the k entries that `hard` keeps.")
    theta: Named = Field(
        description="Threshold of each row, in the units of the tensor: soft values are 0 up to it."
    )
    gradients: Named | None = Field(
        description="Derivatives by the tensors, at fixed strengths; null without a cotangent."
    )
    pruned: list[Pruned] = Field(description="What became of each tensor, in the order asked.")
    unchanged: list[str] = Field(description="Tensors of the file that were not meant.")
    k: int = Field(description="Entries that the hard answer keeps, of all tensors.")
    nnz: int = Field(description="Soft values that are not 0, of all tensors.")
    extra: int = Field(description="`nnz - k`.")
    soft_share: float = Field(description="Share of the non-zero soft values that is in the block.")
    lam: float = Field(description="The strength that was used.")
    lam_relative: bool = Field(
        description="Whether it was in units of the k-th magnitude of each row, to the power 2 - p."
    )
    lam_schedule: Annotated[ArrayRef, Dims("T")] | None = Field(
        description="The strength of each step, in the same units; null unless asked for."
    )
    debias: bool = Field(description="Whether clear winners were returned whole.")
    regime: str = Field(description="Which code found the thresholds.")
    certificate: Certificate


EXAMPLE = {
    "tensors": {
        "fc1.weight": [[3.0, -2.0, 1.8], [-1.5, 0.2, 0.1]],
        "fc2.weight": [[0.9, -0.1, 0.6, -0.5]],
    },
    "sparsity": 0.5,
    "lam": 0.5,
    "lam_schedule": {"steps": 5, "last": 0.01},
    "cotangent": {"fc2.weight": [[1.0, -1.0, 0.5, 0.0]]},
}
