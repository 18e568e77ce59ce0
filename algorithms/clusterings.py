"""How far two labellings of the same points agree, whatever the labels are called."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def contingency(one: Int[Tensor, "n"], other: Int[Tensor, "n"]) -> Float[Tensor, "k l"]:
    """Count the points by both labels, which are numbers from 0."""
    k, width = int(one.max()) + 1, int(other.max()) + 1
    table = torch.zeros(k * width, dtype=torch.float64)
    ones = torch.ones(len(one), dtype=torch.float64)
    return table.index_add(0, one * width + other, ones).view(k, width)


def adjusted_rand(one: Int[Tensor, "n"], other: Int[Tensor, "n"]) -> float:
    """Share of agreeing pairs, 0 for independent labels of the same sizes and 1 for equal ones.

    References: Hubert and Arabie 1985, doi:10.1007/BF01908075, equation 5.
    """
    table = contingency(one, other)
    together, rows, cols = (float(_pairs(t).sum()) for t in (table, table.sum(1), table.sum(0)))
    everything = float(_pairs(table.sum()))
    expected = rows * cols / everything if everything > 0 else 0.0
    largest = (rows + cols) / 2
    return 1.0 if largest == expected else (together - expected) / (largest - expected)


def mutual_information(one: Int[Tensor, "n"], other: Int[Tensor, "n"]) -> float:
    """Mutual information over the mean of both entropies: 0 independent, 1 equal.

    Two constant labellings are equal.
    """
    joint = contingency(one, other) / len(one)
    rows, cols = joint.sum(1), joint.sum(0)
    own, others, both = (float(-torch.xlogy(p, p).sum()) for p in (rows, cols, joint))
    mean = (own + others) / 2
    return 1.0 if mean <= 0 else max(0.0, (own + others - both) / mean)


def _pairs(counts: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    return counts * (counts - 1) / 2
