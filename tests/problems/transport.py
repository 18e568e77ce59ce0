"""Transport problems with known answers."""

from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch
from torch import Tensor

from algorithms.geometry import CostMatrix, Geometry, PointClouds


@dataclass(frozen=True)
class Known:
    """A problem and what is known of its answer; `value` is the objective that was asked for."""

    geometry: Geometry
    a: Tensor
    b: Tensor
    value: float
    plan: Tensor | None = None
    epsilon: float = 0.0


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def uniform(n: int) -> Tensor:
    return torch.full((n,), 1 / n, dtype=torch.float64)


def random_weights(n: int, seed: int, mass: float = 1.0) -> Tensor:
    w = 0.1 + torch.rand(n, generator=generator(seed), dtype=torch.float64)
    return w * (mass / w.sum())


def random_cost(n: int, m: int, seed: int) -> Tensor:
    return torch.rand(n, m, generator=generator(seed), dtype=torch.float64)


def cloud(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=generator(seed), dtype=torch.float64)


def dirac(m: int, seed: int, mass: float = 1.0) -> Known:
    """One source: the plan is b, whatever epsilon; for mass one its divergence is zero."""
    x, y, b = cloud(1, 2, seed), cloud(m, 2, seed + 1), random_weights(m, seed, mass)
    a = torch.tensor([mass], dtype=torch.float64)
    value = float(b @ (x - y).square().sum(1))
    return Known(PointClouds(x, y), a, b, value, b[None])


def shifted(n: int, d: int, seed: int) -> Known:
    """A cloud, shuffled and moved by t: the optimal map is the translation, of cost |t|^2."""
    x, order = cloud(n, d, seed), torch.randperm(n, generator=generator(seed))
    t = torch.linspace(0.5, 1.0, d, dtype=torch.float64)
    plan = torch.zeros(n, n, dtype=torch.float64)
    plan[order, torch.arange(n)] = 1 / n
    geometry = PointClouds(x, x[order] + t)
    return Known(geometry, uniform(n), uniform(n), float(t.square().sum()), plan)


def sorted_line(n: int, seed: int, cost: str = "sqeuclidean") -> Known:
    """Points on a line with equal weights: both clouds sorted (Villani 2003, remark 2.19)."""
    x, y = cloud(n, 1, seed), cloud(n, 1, seed + 1)
    power = 2 if cost == "sqeuclidean" else 1
    value = (x[:, 0].sort().values - y[:, 0].sort().values).abs().pow(power).mean()
    return Known(PointClouds(x, y, cost), uniform(n), uniform(n), float(value))  # type: ignore[arg-type]


def weighted_line(n: int, m: int, seed: int) -> Known:
    """Points on a line with weights: `int_0^1 |F_a^-1 - F_b^-1|^2`, one interval at a time."""
    x, y = cloud(n, 1, seed), cloud(m, 1, seed + 1)
    a, b = random_weights(n, seed), random_weights(m, seed + 1)
    (p, q), (ends_a, ends_b) = zip(*(_quantiles(z, w) for z, w in ((x, a), (y, b))), strict=True)
    cuts = np.unique(np.concatenate([[0.0], ends_a, ends_b]).clip(0, 1))
    middle = (cuts[1:] + cuts[:-1]) / 2
    i = np.searchsorted(ends_a, middle).clip(0, n - 1)
    j = np.searchsorted(ends_b, middle).clip(0, m - 1)
    value = float(((p[i] - q[j]) ** 2 * np.diff(cuts)).sum())
    return Known(PointClouds(x, y), a, b, value)


def _quantiles(z: Tensor, w: Tensor) -> tuple[np.ndarray, np.ndarray]:
    points = z[:, 0].numpy()
    order = np.argsort(points)
    return points[order], np.cumsum(w.numpy()[order])


def brute_force(n: int, seed: int) -> Known:
    """Equal weights and a random cost: the best of all n! permutations (Birkhoff)."""
    C = random_cost(n, n, seed)
    best = min(permutations(range(n)), key=lambda s: float(C[torch.arange(n), list(s)].sum()))
    plan = torch.zeros_like(C)
    plan[torch.arange(n), list(best)] = 1 / n
    return Known(CostMatrix(C), uniform(n), uniform(n), float((plan * C).sum()), plan)


def two_by_two(c: float, epsilon: float) -> Known:
    """Two points a side, cost c off the diagonal: f + g is constant, so one row decides all."""
    C = torch.tensor([[0.0, c], [c, 0.0]], dtype=torch.float64)
    off = 0.5 / (1 + np.exp(c / epsilon))
    plan = torch.tensor([[0.5 - off, off], [off, 0.5 - off]], dtype=torch.float64)
    value = float(epsilon * np.log(2 / (1 + np.exp(-c / epsilon))))
    return Known(CostMatrix(C), uniform(2), uniform(2), value, plan, epsilon)


def gaussians(points: int, epsilon: float) -> Known:
    """Two Gaussians on a fine grid of the line, entropic (Janati et al. 2020, arXiv:2006.02572).

    With s = epsilon/2 and D = sqrt(4 v w + s^2): value `(mean difference)^2 + v + w - D +
    s (1 - log 2s) + s log(D + s)`, reference product, cost |x - y|^2.
    """
    (m1, v), (m2, w) = (0.0, 1.0), (0.5, 0.49)
    x = torch.linspace(-6.0, 6.0, points, dtype=torch.float64)
    a = torch.exp(-((x - m1) ** 2) / (2 * v))
    b = torch.exp(-((x - m2) ** 2) / (2 * w))
    s = epsilon / 2
    D = np.sqrt(4 * v * w + s * s)
    value = (m1 - m2) ** 2 + v + w - D + s * (1 - np.log(2 * s)) + s * np.log(D + s)
    geometry = PointClouds(x[:, None], x[:, None])
    return Known(geometry, a / a.sum(), b / b.sum(), float(value), epsilon=epsilon)
