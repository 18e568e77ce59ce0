"""What labels and landmarks say of a plan. Scores describe; nothing is tuned on them."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from algorithms.sparse import SparsePlan
from algorithms.spatial.frames import pitch
from algorithms.spatial.slice import Slice

# A spot's landmark error counts when at least this share of its mass has a known place to go.
KNOWN_SHARE = 0.5


@dataclass(frozen=True)
class Scores:
    """Agreement with labels and landmarks, where the slices carry them (else None).

    Attributes:
        label_accuracy: mass that joins equal labels, as a share of the mass that joins two
            labelled spots.
        label_accuracy_best_possible: sum over labels of the smaller share: what composition allows.
        label_accuracy_random: the accuracy of a b^T.
        landmark_error_median: distance from a source spot's landmark to the barycentre of the
            landmarks its mass goes to, in pitches of the source's landmarks.
        landmark_error_mean: the mean of the same distances.
        landmark_spots: spots that these two are taken over.
    """

    label_accuracy: float | None = None
    label_accuracy_best_possible: float | None = None
    label_accuracy_random: float | None = None
    landmark_error_median: float | None = None
    landmark_error_mean: float | None = None
    landmark_spots: int = 0


def scores(
    plan: SparsePlan,
    source: Slice,
    target: Slice,
    matched: Bool[Tensor, "n"] | None = None,
) -> Scores:
    """Score a plan between all rows of two slices; rows without mass take no part.

    Landmark errors are those of the source spots that count as `matched`; None counts them all.
    """
    labels = _label_scores(plan, source, target)
    if matched is not None:
        own = matched[plan.rows]
        plan = SparsePlan(plan.rows[own], plan.cols[own], plan.mass[own])
    landmarks = _landmark_scores(plan, source, target)
    return Scores(*labels, *landmarks)


def _label_scores(
    plan: SparsePlan, source: Slice, target: Slice
) -> tuple[float | None, float | None, float | None]:
    if source.labels is None or target.labels is None:
        return None, None, None
    names = sorted({label for label in (*source.labels, *target.labels) if label is not None})
    code = {name: k for k, name in enumerate(names)}
    first, second = _coded(source.labels, code)[plan.rows], _coded(target.labels, code)[plan.cols]
    both = (first >= 0) & (second >= 0)
    joined = plan.mass[both].sum()
    if joined <= 0:
        return None, None, None
    shares1, shares2 = (_shares(own, plan.mass, len(code)) for own in (first, second))
    accuracy = plan.mass[both & (first == second)].sum() / joined
    return float(accuracy), float(torch.minimum(shares1, shares2).sum()), float(shares1 @ shares2)


def _coded(labels: tuple[str | None, ...], code: dict[str, int]) -> Int[Tensor, "n"]:
    """Number the labels; -1 stands for none."""
    return torch.tensor([-1 if label is None else code[label] for label in labels])


def _shares(
    codes: Int[Tensor, "nnz"], mass: Float[Tensor, "nnz"], count: int
) -> Float[Tensor, "l"]:
    """Add up the mass of each label, as shares of what is labelled."""
    known = codes >= 0
    total = torch.zeros(count, dtype=mass.dtype).index_add(0, codes[known], mass[known])
    return total / total.sum()


def _landmark_scores(
    plan: SparsePlan, source: Slice, target: Slice
) -> tuple[float | None, float | None, int]:
    w1, w2 = source.landmarks, target.landmarks
    if w1 is None or w2 is None:
        return None, None, 0
    mass = plan.mass
    w1, w2 = w1.to(mass.dtype), w2.to(mass.dtype)
    known1, known2 = w1.isfinite().all(1), w2.isfinite().all(1)
    there = known2[plan.cols]
    rows, sent = plan.rows[there], mass[there]
    total = torch.zeros(len(w1), dtype=mass.dtype).index_add(0, plan.rows, mass)
    reached = torch.zeros(len(w1), dtype=mass.dtype).index_add(0, rows, sent)
    scored = known1 & (reached > 0) & (reached >= KNOWN_SHARE * total)
    if int(known1.sum()) < 2 or not bool(scored.any()):
        return None, None, 0
    goal = torch.zeros_like(w1).index_add(0, rows, sent[:, None] * w2[plan.cols[there]])
    error = (goal[scored] / reached[scored, None] - w1[scored]).norm(dim=1) / pitch(w1[known1])
    return float(error.quantile(0.5)), float(error.mean()), int(scored.sum())
