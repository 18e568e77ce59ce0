"""Scores of a match: against their definitions, spelt out point by point."""

from collections import Counter

import numpy as np
import pytest
import torch

from algorithms import matching_scores
from algorithms.matching_scores import foscttm, label_transfer_accuracy, plan_label_accuracy
from algorithms.sparse import SparsePlan

# Shares of counts, divided once.
ROUNDING = 1e-12


def cloud(rng, n, e):
    return torch.from_numpy(rng.normal(size=(n, e)))


def foscttm_by_definition(images, y):
    n = len(y)
    found = []
    for one, other in ((images, y), (y, images)):
        for i in range(n):
            own = (one[i] - other[i]).norm()
            closer = sum(bool((one[i] - other[j]).norm() < own) for j in range(n) if j != i)
            found.append(closer / (n - 1))
    return np.mean(found)


@pytest.mark.parametrize("seed", range(4))
def test_foscttm_is_its_definition(seed):
    rng = np.random.default_rng(seed)
    images, y = cloud(rng, 23, 3), cloud(rng, 23, 3)
    assert abs(foscttm(images, y) - foscttm_by_definition(images, y)) < ROUNDING
    assert foscttm(images, y) == foscttm(y, images)
    assert foscttm(y, y) == 0


def test_foscttm_of_no_information_is_a_half():
    rng = np.random.default_rng(0)
    y = cloud(rng, 400, 2)
    # 400 ranks, uniform in expectation: their mean has standard deviation about 0.015
    assert abs(foscttm(y[torch.from_numpy(rng.permutation(400))], y) - 0.5) < 0.06


def test_foscttm_of_a_reversed_line():
    # images of 0, 1, 2 at 2, 1, 0: the ends have both others closer, the middle has none
    y = torch.tensor([[0.0], [1.0], [2.0]])
    assert abs(foscttm(y.flip(0), y) - 2 / 3) < ROUNDING


def test_ties_count_as_not_closer():
    assert foscttm(torch.zeros(5, 2), torch.zeros(5, 2)) == 0
    assert foscttm(torch.zeros(1, 2), torch.ones(1, 2)) == 0


def test_blocks_change_nothing(monkeypatch):
    rng = np.random.default_rng(1)
    images, y = cloud(rng, 17, 2), cloud(rng, 17, 2)
    labels = torch.from_numpy(rng.integers(0, 3, 17))
    whole = foscttm(images, y), label_transfer_accuracy(images, labels, y, labels)
    monkeypatch.setattr(matching_scores, "BLOCK", 40)
    assert (foscttm(images, y), label_transfer_accuracy(images, labels, y, labels)) == whole


@pytest.mark.parametrize("k", [1, 3, 5, 100])
def test_votes_are_counted_and_ties_go_to_the_smallest(k):
    rng = np.random.default_rng(k)
    images, y = cloud(rng, 30, 2), cloud(rng, 25, 2)
    labels, known = rng.integers(-1, 3, 30), rng.integers(-1, 3, 25)
    right = total = 0
    for i in range(30):
        if labels[i] < 0:
            continue
        order = sorted(
            (float((images[i] - y[j]).norm()), known[j]) for j in range(25) if known[j] >= 0
        )
        counted = Counter(int(label) for _, label in order[:k])
        predicted = min(counted, key=lambda label: (-counted[label], label))
        right, total = right + (predicted == labels[i]), total + 1
    found = label_transfer_accuracy(images, torch.from_numpy(labels), y, torch.from_numpy(known), k)
    assert abs(found - right / total) < ROUNDING


def test_without_labels_there_is_no_score():
    none = torch.full((3,), matching_scores.UNLABELLED)
    x = torch.zeros(3, 1)
    assert label_transfer_accuracy(x, none, x, torch.zeros(3, dtype=torch.long)) is None
    assert plan_label_accuracy(torch.ones(3, 3), none, none) is None


def test_plan_accuracy_by_entries_and_as_a_matrix():
    P = torch.tensor([[0.2, 0.1, 0.0], [0.0, 0.3, 0.4]])
    labels, known = torch.tensor([0, 1]), torch.tensor([0, 1, -1])
    sparse = SparsePlan(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 2]),
                        torch.tensor([0.2, 0.1, 0.3, 0.4]))  # fmt: skip
    # of 0.6 between labelled points, 0.2 + 0.3 is right; masses are float32
    assert abs(plan_label_accuracy(P, labels, known) - 5 / 6) < 1e-6
    assert abs(plan_label_accuracy(sparse, labels, known) - 5 / 6) < 1e-6
