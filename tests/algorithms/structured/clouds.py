"""Pairs of clouds for tests: random ones, turned ones, Gaussian ones on a line."""

import itertools

import numpy as np
import torch

from algorithms.structured.match import match
from algorithms.structured.regularizer import Regularizer


def cloud(seed, n, d, skew=0.0):
    """Draw a cloud; `skew` gives it third moments, which tell an axis from its mirror image."""
    z = np.random.default_rng(seed).normal(size=(n, d))
    return torch.from_numpy(z + skew * (z**2 - 1))


def plan(seed, n, m):
    """Draw weights and a plan between them."""
    rng = np.random.default_rng(seed)
    P = torch.from_numpy(rng.uniform(size=(n, m)) ** 3)
    P = P / P.sum()
    return P, P.sum(1), P.sum(0)


def matched(x, y, seed=0, **options):
    """Ask with a seed, as the worker does."""
    return match(x, y, generator=torch.Generator().manual_seed(seed), **options)


def asked(name, **options):
    return Regularizer(name, **options)


def permutations(n):
    return torch.tensor(list(itertools.permutations(range(n))))


def dense(answer, n, m):
    return answer.plan.dense(n, m) if answer.dense_plan is None else answer.dense_plan
