"""What an alignment of two slices answers, by either solver."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Bool, Float, Int
from torch import Tensor

from algorithms.errors import Caution
from algorithms.iterate import Stop
from algorithms.sparse import SparsePlan
from algorithms.spatial.partial import Share
from algorithms.spatial.scores import Scores
from algorithms.spatial.starts import Start


@dataclass(frozen=True)
class Refinement:
    """One level of the hierarchical solver, from coarse to fine.

    Attributes:
        spots_source, spots_target: superspots, or spots at the last level.
        unit: side of a cell, or spacing of the spots, in pitches of the target.
        rounds: matchings made.
        change: by how much the last round asked to move the motion, in units (rms).
        settled: it asked for less than 0.01.
        rotation_degrees: angle of the motion.
        expression_cost: mean cost of what was matched; 2 is what random pairs have.
    """

    spots_source: int
    spots_target: int
    unit: float
    rounds: int
    change: float
    settled: bool
    rotation_degrees: float
    expression_cost: float


@dataclass(frozen=True)
class Hierarchy:
    """What the hierarchical solver knows beyond the plan.

    Attributes:
        rigid: 3 x 3 matrix of the rigid motion nearest to `transform`, which is affine.
        residual: smooth displacement; aligned + residual is the bent slice.
        residual_ratio: mean square by which local means of held-out genes differ between a spot
            and its place, with the residual over without. Below 1 the residual is real. None
            where there were too few genes to hold any out.
        genes_held_out: how many that were.
        outside_source, outside_target: share of the spots kept without a spot of the other slice
            near.
        levels: how each level went.
        sinkhorn_residual: of the last matching: the larger of what one more sweep would move and
            the duality gap, as shares of the mass.
        distortion_error: standard error of `distortion`, which is sampled.
    """

    rigid: Float[Tensor, "3 3"]
    residual: Float[Tensor, "n 2"]
    residual_ratio: float | None
    genes_held_out: int
    outside_source: float
    outside_target: float
    levels: tuple[Refinement, ...]
    sinkhorn_residual: float
    distortion_error: float


@dataclass(frozen=True)
class Certificate:
    """Numbers that anyone can recompute from the plan, and what each proves.

    Attributes:
        marginal_error_a: |P 1 - a|_1, of a partial plan the excess |(P 1 - a)_+|_1. Rounding: the
            plan is feasible, no spot is lost or doubled.
        marginal_error_b: |P^T 1 - b|_1, the same for the target.
        mass_error: |sum P - mass|, rounding; None of the hierarchical solver, which finds the mass.
        frank_wolfe_gap: <grad F(P), P - V> for the best vertex V, by one more exact transport
            problem. Never negative but for rounding; 0 proves that no direction inside the
            polytope of plans descends: P is stationary. None where the run was interrupted.
        value_difference: the value carried along the descent minus the value recomputed from the
            plan alone. Rounding proves that the incremental terms did not drift. None of the
            hierarchical solver, which carries none.
        reflection_margin: F(mirrored) / F(proper) - 1 between the best plans of either
            orientation; 0.03 and more says that the tissue lies the right way up. None where
            only one orientation was reached.
        mirrored_value: F at the best mirrored plan.
        singular_ratio: S2 / S1 of the rigid fit; above 0.99 the outline is round and does not
            determine the angle.
        rigid_strength: share of both spreads that the rigid fit explains, in [0, 1].
    """

    marginal_error_a: float
    marginal_error_b: float
    mass_error: float | None
    frank_wolfe_gap: float | None
    value_difference: float | None
    reflection_margin: float | None
    mirrored_value: float | None
    singular_ratio: float
    rigid_strength: float


@dataclass(frozen=True)
class Alignment:
    """Two slices in one frame. `rows` and `cols` of the plan count rows of the files."""

    plan: SparsePlan
    aligned: Float[Tensor, "n 2"]
    transform: Float[Tensor, "3 3"]
    value: Float[Tensor, ""]
    transport_cost: Float[Tensor, ""]
    distortion: Float[Tensor, ""]
    mass_moved: float
    curve: tuple[Share, ...]
    unmatched_source: Bool[Tensor, "n"]
    unmatched_target: Bool[Tensor, "m"]
    kept_source: Int[Tensor, "k"]
    kept_target: Int[Tensor, "l"]
    genes: int
    scale_used: str
    pitch_source: float
    pitch_target: float
    reflected: bool
    rotation_degrees: float
    starts: tuple[Start, ...]
    solver: Literal["dense", "hierarchical"]
    hierarchy: Hierarchy | None
    scores: Scores
    certificate: Certificate
    stop: Stop
    cautions: tuple[Caution, ...]
