"""Agreement of labellings: against counting pairs, and values known by hand."""

import itertools
import math

import numpy as np
import pytest
import torch

from algorithms.clusterings import adjusted_rand, mutual_information

# A few dozen float64 additions.
ROUNDING = 1e-12


def rand_by_pairs(one, other):
    pairs = list(itertools.combinations(range(len(one)), 2))
    same = [[int(own[i] == own[j]) for i, j in pairs] for own in (one, other)]
    both = sum(p * q for p, q in zip(*same, strict=True))
    expected = sum(same[0]) * sum(same[1]) / len(pairs)
    return (both - expected) / ((sum(same[0]) + sum(same[1])) / 2 - expected)


@pytest.mark.parametrize("seed", range(4))
def test_adjusted_rand_counts_pairs(seed):
    rng = np.random.default_rng(seed)
    one, other = (torch.from_numpy(rng.integers(0, 3, 14)) for _ in range(2))
    assert abs(adjusted_rand(one, other) - rand_by_pairs(one.tolist(), other.tolist())) < ROUNDING
    assert abs(adjusted_rand(one, other) - adjusted_rand(other, one)) < ROUNDING


def test_equal_labellings_agree_whatever_they_are_called():
    one = torch.tensor([0, 0, 1, 2, 2])
    renamed = torch.tensor([2, 2, 0, 1, 1])
    assert abs(adjusted_rand(one, renamed) - 1) < ROUNDING
    assert abs(mutual_information(one, renamed) - 1) < ROUNDING
    constant = torch.zeros(5, dtype=torch.long)
    assert adjusted_rand(constant, constant) == mutual_information(constant, constant) == 1
    assert mutual_information(constant, one) == 0


def test_independent_labellings_share_nothing():
    one, other = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    assert abs(mutual_information(one, other)) < ROUNDING
    assert abs(adjusted_rand(one, other) + 0.5) < ROUNDING


def test_information_by_hand():
    one, other = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 0, 1])
    mutual = math.log(2) - 3 / 4 * (-(2 / 3) * math.log(2 / 3) - (1 / 3) * math.log(1 / 3))
    others = -(3 / 4) * math.log(3 / 4) - (1 / 4) * math.log(1 / 4)
    assert abs(mutual_information(one, other) - 2 * mutual / (math.log(2) + others)) < ROUNDING
