"""What labels and landmarks say of a plan. Scores describe; nothing is tuned on them."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

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
    P: Float[Tensor, "n m"],
    source: Slice,
    target: Slice,
    matched: Bool[Tensor, "n"] | None = None,
) -> Scores:
    """Score a plan between all rows of two slices; rows without mass take no part.

    Landmark errors are those of the source spots that count as `matched`; None counts them all.
    """
    labels = _label_scores(P, source, target)
    told = P if matched is None else P * matched[:, None]
    landmarks = _landmark_scores(told, source, target)
    return Scores(*labels, *landmarks)


def _label_scores(
    P: Tensor, source: Slice, target: Slice
) -> tuple[float | None, float | None, float | None]:
    if source.labels is None or target.labels is None:
        return None, None, None
    names = sorted({label for label in (*source.labels, *target.labels) if label is not None})
    code = {name: k for k, name in enumerate(names)}
    L1, L2 = _one_hot(source.labels, code, P), _one_hot(target.labels, code, P)
    joined = L1.T @ P @ L2  # (l, n) (n, m) (m, l) -> (l, l)
    shares1, shares2 = P.sum(1) @ L1, P.sum(0) @ L2
    if joined.sum() <= 0:
        return None, None, None
    shares1, shares2 = shares1 / shares1.sum(), shares2 / shares2.sum()
    accuracy = joined.diagonal().sum() / joined.sum()
    return float(accuracy), float(torch.minimum(shares1, shares2).sum()), float(shares1 @ shares2)


def _one_hot(labels: tuple[str | None, ...], code: dict[str, int], like: Tensor) -> Tensor:
    known = [(row, code[label]) for row, label in enumerate(labels) if label is not None]
    hot = torch.zeros(len(labels), len(code), dtype=like.dtype)
    if known:
        rows, cols = zip(*known, strict=True)
        hot[list(rows), list(cols)] = 1.0
    return hot


def _landmark_scores(
    P: Tensor, source: Slice, target: Slice
) -> tuple[float | None, float | None, int]:
    w1, w2 = source.landmarks, target.landmarks
    if w1 is None or w2 is None:
        return None, None, 0
    w1, w2 = w1.to(P.dtype), w2.to(P.dtype)
    known1, known2 = w1.isfinite().all(1), w2.isfinite().all(1)
    reached = P[:, known2].sum(1)  # (n, m) -> (n,)
    scored = known1 & (reached > 0) & (reached >= KNOWN_SHARE * P.sum(1))
    if int(known1.sum()) < 2 or not bool(scored.any()):
        return None, None, 0
    goal = P[:, known2] @ w2[known2] / reached[:, None]
    error = (goal - w1)[scored].norm(dim=1) / pitch(w1[known1])
    return float(error.quantile(0.5)), float(error.mean()), int(scored.sum())
