"""Clouds to be compared by Gromov-Wasserstein, with the best values that are known for them.

Drawn by NumPy's `default_rng(3)`; both clouds are centred and divided by sqrt(s), s the larger of
their mean squared distances.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]
Draw = np.random.Generator


def _mixture(draw: Draw, n: int, centres: int, d: int, spread: float = 0.4) -> Array:
    c = 2 * draw.normal(size=(centres, d)) if spread != 1 else draw.normal(size=(centres, d))
    label = draw.integers(centres, size=n)
    return (c if spread != 1 else 2 * c)[label] + spread * draw.normal(size=(n, d))


def _spirals(draw: Draw, n: int) -> tuple[Array, Array]:
    t = 4 * np.pi * np.sort(draw.random(n))
    x = np.stack([t * np.cos(t), t * np.sin(t)], 1) / 10 + 0.02 * draw.normal(size=(n, 2))
    t = 4 * np.pi * np.sort(draw.random(n))
    u = draw.random(n)
    y = np.stack([t * np.cos(t), t * np.sin(t), u], 1) / 10
    return x, y + 0.02 * draw.normal(size=(n, 3))


def _mixtures(draw: Draw, n: int) -> tuple[Array, Array]:
    return _mixture(draw, n, 6, 3), _mixture(draw, n, 5, 5)


def _rotated(draw: Draw, n: int) -> tuple[Array, Array]:
    x = _mixture(draw, n, 6, 3)
    Q = np.linalg.qr(draw.normal(size=(3, 3)))[0]
    y = x @ Q.T + 0.05 * draw.normal(size=(n, 3))
    return x, y[draw.permutation(n)] + 5


def _isotropic(draw: Draw, n: int) -> tuple[Array, Array]:
    return draw.normal(size=(n, 3)), draw.normal(size=(n, 3))


def _high(draw: Draw, n: int) -> tuple[Array, Array]:
    return _mixture(draw, n, 8, 20, 1.0), _mixture(draw, n, 8, 30, 1.0)


CLOUDS: dict[str, Callable[[Draw, int], tuple[Array, Array]]] = {
    "spirals": _spirals,
    "mixtures": _mixtures,
    "rotated": _rotated,
    "isotropic": _isotropic,
    "20-D/30-D": _high,
}


def clouds(name: str, n: int) -> tuple[Tensor, Tensor]:
    """Draw two clouds, centred, by one common factor scaled to mean squared distances of one."""
    x, y = (z - z.mean(0) for z in CLOUDS[name](np.random.default_rng(3), n))
    s = max(2 * (z**2).sum(1).mean() for z in (x, y))
    return torch.from_numpy(x / s**0.5), torch.from_numpy(y / s**0.5)
