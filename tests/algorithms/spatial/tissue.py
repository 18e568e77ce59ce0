"""Tissue made up for tests, and what uploads do to it: turned, shifted, mirrored, reordered."""

import numpy as np
import torch
from scipy.sparse import csr_matrix

from algorithms.spatial.procrustes import rotation
from algorithms.spatial.slice import Slice


def tissue(seed=0, *, spots=80, genes=120, depth=2000.0, reading=None):
    """Draw an irregular outline with smooth expression: spots, their landmarks, four labels.

    `reading` draws a serial section: other counts, jittered spots, a twentieth of them missing.
    Spots keep their order and their landmarks.
    """
    rng = np.random.default_rng(seed)
    side = int(np.ceil(np.sqrt(spots * 2.5)))
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2)
    z = grid - grid.mean(0) + rng.normal(0, 0.08, grid.shape)
    angle = np.arctan2(z[:, 1], z[:, 0])
    outline = 1 + 0.25 * np.cos(angle + 0.4) + 0.2 * np.cos(2 * angle) + 0.1 * np.sin(3 * angle)
    z = z[np.argsort(np.hypot(*z.T) / outline)[:spots]]
    waves = rng.normal(0, 0.25, (6, 2))
    fields = np.cos(z @ waves.T + rng.uniform(0, 6, 6))
    logits = fields @ rng.normal(0, 0.7, (6, genes)) + rng.normal(0, 1, genes)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    own = np.random.default_rng([seed, reading or 0])
    counts = own.poisson(depth * p).astype(np.float64)
    seen = z if reading is None else z + own.normal(0, 0.25, z.shape)
    labels = (fields[:, 0] > 0) + 2 * (fields[:, 1] > 0)
    whole = Slice(
        csr_matrix(counts),
        torch.from_numpy(seen),
        tuple(f"Gene{k}" for k in range(genes)),
        tuple(f"spot{k}" for k in range(spots)),
        tuple(str(label) for label in labels),
        torch.from_numpy(z),
    )
    if reading is None:
        return whole
    return reordered(whole, np.sort(own.permutation(spots)[: spots - spots // 20]))


def moved(tissue_, degrees=0.0, shift=(0.0, 0.0), *, mirrored=False, unit=1.0):
    """Put a slice into other coordinates: mirrored (x, y) -> (x, -y), turned, scaled, shifted."""
    z = tissue_.coordinates * torch.tensor([1.0, -1.0 if mirrored else 1.0])
    z = unit * z @ rotation(degrees, z).T + torch.tensor(shift, dtype=z.dtype)
    return changed(tissue_, coordinates=z)


def reordered(tissue_, order):
    """Take the rows of a slice in another order (or only some of them)."""
    order = np.asarray(order)
    pick = lambda items: None if items is None else tuple(items[k] for k in order)
    rows = torch.from_numpy(order)
    return Slice(
        tissue_.counts[order],
        tissue_.coordinates[rows],
        tissue_.genes,
        tuple(tissue_.ids[k] for k in order),
        pick(tissue_.labels),
        None if tissue_.landmarks is None else tissue_.landmarks[rows],
    )


def changed(tissue_, **fields):
    """Copy a slice with some fields replaced."""
    return Slice(**{**vars(tissue_), **fields})
