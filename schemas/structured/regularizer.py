"""What is known of the map: the penalty R, by name."""

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from schemas.arrays import ArrayRef, Dims, Strict

SPARSE = frozenset({"l1", "l12_source", "l12_target", "nuclear"})
BOUNDED = frozenset({"stiefel", "fro_ball", "nuclear_ball", "spectral_ball"})
ENTRYWISE = frozenset({"frobenius", "l1", "l12_source", "l12_target", "fro_ball"})


class Regularizer(Strict):
    """The penalty on the map: `(q/2) |M - M0|^2 + lam r(M)`, or 0 on a bounded set of maps."""

    name: Literal[
        "frobenius", "l1", "l12_source", "l12_target", "nuclear", "rank", "stiefel", "fro_ball",
        "nuclear_ball", "spectral_ball",
    ] = Field(default="frobenius",
        description="`frobenius`: the squared norm alone (Gromov-Wasserstein with inner products). "
        "With it: `l1` few entries, `l12_source` few source features (columns), `l12_target` few "
        "target features (rows), `nuclear` few directions, `rank` at most so many. Instead of it: "
        "`stiefel` orthogonal maps (Procrustes), and balls of the Frobenius, nuclear and spectral "
        "norm.",
    )  # fmt: skip
    lam: float | None = Field(default=None, ge=0,
        description="Strength of l1, l12_source, l12_target, nuclear, in units of `G(P)`, that is, "
        "of x times y; 0 leaves frobenius. These names take exactly one of lam and lam_relative.",
    )  # fmt: skip
    lam_relative: float | None = Field(default=None, ge=0, lt=1,
        description="The same as a share of the least strength that annihilates the map, at the "
        "solution for lam 0; near 1 nearly nothing is left.",
    )  # fmt: skip
    rank: int | None = Field(
        default=None, ge=1, description="Largest rank of the map, for `rank`; at most min(d, e)."
    )
    radius: float | None = Field(
        default=None,
        gt=0,
        description="Radius of a ball; null is 1. Other names take none.",
    )
    nonnegative: bool = Field(
        default=False,
        description="Allow entries >= 0 alone: for frobenius, l1, l12_*, fro_ball.",
    )
    mask: Annotated[ArrayRef, Dims("e d")] | None = Field(
        default=None,
        description="Entries of the map that may differ from 0 are not 0 here; same names.",
    )
    prior: Annotated[ArrayRef, Dims("e d")] | None = Field(
        default=None,
        description="M0, the map that the squared norm pulls to, on prepared points; null is 0. "
        "Not for maps on a bounded set.",
    )

    @model_validator(mode="after")
    def _suits(self) -> "Regularizer":
        name = self.name
        if (self.lam is not None) + (self.lam_relative is not None) != (name in SPARSE):
            field = "lam_relative" if self.lam is None or name in SPARSE else "lam"
            many = "exactly one of lam and lam_relative" if name in SPARSE else "no strength"
            raise _refused(field, f"{name} takes {many}")
        for field, given, suits in (
            ("rank", self.rank is not None, name == "rank"),
            ("radius", self.radius is not None, name in BOUNDED - {"stiefel"}),
            ("mask", self.mask is not None, name in ENTRYWISE),
            ("nonnegative", self.nonnegative, name in ENTRYWISE),
            ("prior", self.prior is not None, name not in BOUNDED),
        ):
            if given and not suits:
                raise _refused(field, f"{name} takes no {field}")
        if name == "rank" and self.rank is None:
            raise _refused("rank", "rank needs a rank, at least 1")
        return self


def _refused(field: str, text: str) -> PydanticCustomError:
    return PydanticCustomError(
        "validation", "{text}", {"field": f"regularizer.{field}", "text": text}
    )
