"""How right a match is, where the truth is known: pairs, or labels. Nothing is tuned on them."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from algorithms.sparse import SparsePlan

# A label below zero means that there is none.
UNLABELLED = -1
# Distances are formed for so many entries at a time: 32 MiB of float64.
BLOCK = 1 << 22
# Neighbours that vote; others take max(10, 1 % of the cells).
NEIGHBOURS = 5


def foscttm(images: Float[Tensor, "n e"], y: Float[Tensor, "n e"]) -> float:
    """Average the fraction of points that are closer to a point than its true match.

    Row i of `images` is the image of a point whose true match is row i of y. For each image: the
    share of the other n - 1 rows of y strictly closer than y_i; for each y_i likewise among the
    images; the mean of all. 0 is perfect, 0.5 is random; ties count as not closer. One pair alone
    has no others, and scores 0.
    """
    n = len(y)
    if n < 2:
        return 0.0
    images, y = images.double(), y.double()
    closer = 0.0
    for one, other in ((images, y), (y, images)):
        for rows in _blocks(n, n):
            apart = _distances(one[rows], other)
            # taken from the same table, so that the match itself is never closer than itself
            own = apart.gather(1, torch.arange(n, device=y.device)[rows, None])
            closer += float((apart < own).sum())
    return closer / (2 * n * (n - 1))


def label_transfer_accuracy(
    images: Float[Tensor, "n e"],
    labels: Int[Tensor, "n"],
    y: Float[Tensor, "m e"],
    target_labels: Int[Tensor, "m"],
    k: int = NEIGHBOURS,
) -> float | None:
    """Predict the label of each image from its k nearest target points; the share that is right.

    The most frequent label wins, of equally frequent ones the smallest. Points without a label
    (below 0) neither vote nor count; None where that leaves no point on a side.
    """
    asked, known = labels >= 0, target_labels >= 0
    images, y = images[asked].double(), y[known].double()
    truth, votes = labels[asked], target_labels[known]
    if not len(images) or not len(y):
        return None
    right = 0
    for rows in _blocks(len(images), len(y)):
        nearest = _distances(images[rows], y).topk(min(k, len(y)), largest=False).indices
        # the mode of torch is the smallest of the most frequent values
        predicted = votes[nearest].mode(1).values  # (rows, k) -> (rows,)
        right += int((predicted == truth[rows]).sum())
    return right / len(images)


def plan_label_accuracy(
    plan: Float[Tensor, "n m"] | SparsePlan,
    labels: Int[Tensor, "n"],
    target_labels: Int[Tensor, "m"],
) -> float | None:
    """Sum the mass between equal labels, as a share of the mass between labelled points.

    None where no mass joins two labelled points (labels below 0 mean none).
    """
    if isinstance(plan, SparsePlan):
        one, other, mass = labels[plan.rows], target_labels[plan.cols], plan.mass.double()
    else:
        one, other, mass = labels[:, None], target_labels[None], plan.double()
    mass = mass * ((one >= 0) & (other >= 0))
    total = float(mass.sum())
    return float((mass * (one == other)).sum()) / total if total > 0 else None


def _blocks(n: int, m: int) -> Iterator[slice]:
    """Cut n rows of m distances into blocks."""
    size = max(1, BLOCK // max(m, 1))
    return (slice(k, min(k + size, n)) for k in range(0, n, size))


def _distances(x: Float[Tensor, "n e"], y: Float[Tensor, "m e"]) -> Float[Tensor, "n m"]:
    """Compute distances by differences: equal rows are at 0, and ties are ties."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
