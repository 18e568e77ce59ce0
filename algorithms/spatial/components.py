"""Joint principal components of two slices, without a dense matrix of spots and genes."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, diags, vstack
from torch import Tensor

from algorithms.spatial.expression import LIBRARY, Counts

Reals = NDArray[np.float64]
# Every so many genes one is held out of the components that are matched, and judges them.
HELD_OUT_EVERY = 5
# Fewer held-out genes than this judge nothing.
FEW_JUDGES = 10
# Directions beyond those wanted, and rounds of powers, of the randomised range finder.
SPARE, POWERS = 10, 4
# The range finder starts from the same directions for every question.
START = 0


@dataclass(frozen=True)
class Components:
    """Scores of both slices: of the genes that are matched, and of those held out (or None)."""

    source: Float[Tensor, "n c"]
    target: Float[Tensor, "m c"]
    judges: tuple[Float[Tensor, "n h"], Float[Tensor, "m h"]] | None
    held_out: int


def components(counts: Counts, count: int) -> Components:
    """Reduce both slices to `count` joint components of log1p(1e4 proportions).

    Every fifth common gene is held out where that leaves enough to judge by.
    """
    logs = _logs(counts)
    n, genes = counts.source.get_shape()[0], logs.get_shape()[1]
    held = np.arange(genes) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    if held.sum() < FEW_JUDGES:
        source, target = _split(_scores(logs, count), n)
        return Components(source, target, None, 0)
    source, target = _split(_scores(csr_matrix(logs[:, ~held]), count), n)
    judges = _split(_scores(csr_matrix(logs[:, held]), count), n)
    return Components(source, target, judges, int(held.sum()))


def _logs(counts: Counts) -> csr_matrix:
    X = csr_matrix(vstack([counts.source, counts.target]), dtype=np.float64)
    total = np.maximum(np.asarray(X.sum(1)).ravel(), 1e-300)  # spots without counts stay at 0
    logs = csr_matrix(diags(LIBRARY / total) @ X)
    logs.data = np.log1p(logs.data)
    return logs


def _scores(X: csr_matrix, count: int) -> Reals:
    r"""Compute the leading scores of the rows of X - 1 mean^T by a randomised range finder.

    Products with the centred matrix are products with X and a correction of rank one. (Halko,
    Martinsson, Tropp 2011, arXiv:0909.4061, algorithms 4.4 and 5.1.)
    """
    rows, genes = X.get_shape()
    count = min(count, rows - 1, genes)
    mean = np.asarray(X.mean(0)).ravel()
    start = np.random.default_rng(START).standard_normal((genes, min(count + SPARE, genes)))
    basis = _across(X, mean, start)
    for _ in range(POWERS):
        back, _ = np.linalg.qr(_down(X, mean, np.linalg.qr(basis)[0]))
        basis = _across(X, mean, back)
    basis, _ = np.linalg.qr(basis)
    small = _down(X, mean, basis)  # (genes, r): transposed, the matrix seen from the basis
    _, values, Vt = np.linalg.svd(small, full_matrices=False)
    return np.asarray((basis @ Vt.T)[:, :count] * values[:count], dtype=np.float64)


def _across(X: csr_matrix, mean: Reals, V: Reals) -> Reals:
    return np.asarray(X @ V) - mean @ V


def _down(X: csr_matrix, mean: Reals, U: Reals) -> Reals:
    return np.asarray(X.T @ U, dtype=np.float64) - mean[:, None] * U.sum(0)


def _split(scores: Reals, n: int) -> tuple[Tensor, Tensor]:
    whole = torch.from_numpy(np.ascontiguousarray(scores))
    return whole[:n], whole[n:]
