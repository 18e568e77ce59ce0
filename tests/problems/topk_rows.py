"""Rows whose relaxed top-k is known, from closed forms or to fifty digits."""

from itertools import product

import torch
from mpmath import mp, mpf
from torch import Tensor

DIGITS, HALVINGS = 50, 220  # halvings: from widths of 1e13 lam to beyond fifty digits
PAIR = [1.0, 0.8, 0.5, 0.1, -0.4]
SIGNS = [3.0, -2.0, 1.8, -1.5, 0.2]
FOUR_THIRDS = 4 / 3
# k = 2, lam = 0.5 on PAIR, by (regularizer, p): mask, threshold
MASKS: dict[tuple[str, float], tuple[list[float], float]] = {
    ("power", 2.0): ([1, 0.8, 0.2, 0, 0], 0.4),
    ("power", FOUR_THIRDS): ([1, 0.944612701002, 0.055387298998, 0, 0], 0.3094070933562235),
    ("power", 1.5): ([1, 0.884187454246, 0.115812545754, 0, 0], 0.3298437881283576),
    ("power", 3.0): ([1, 0.8, 0.2, 0, 0], 0.48),
    ("two_sided", FOUR_THIRDS): (
        [0.9783151311, 0.7777199679, 0.2439649010, 0, 0],
        0.6430703882958865,
    ),
}
COTANGENT = [1.0, -2.0, 0.5, 3.0, 0.0]
PULLED = {2.0: 2.5, FOUR_THIRDS: 1.8937228275, 1.5: 2.4987801902}  # [0, -v, v, 0, 0]
# k = 2, lam = 0.5 on SIGNS, by (p, debias): values
VALUES: dict[tuple[float, bool], list[float]] = {
    (2.0, False): [2, -0.96, 0.56, 0, 0],
    (2.0, True): [3, -1.44, 0.84, 0, 0],
    (FOUR_THIRDS, True): [3, -1.714502208496, 0.614456917569, -0.029355739883, 0],
    (FOUR_THIRDS, False): [2.336521857161, -1.185344775523, 0.285299484595, -0.000198306909, 0],
    (1.5, True): [3, -1.59320804421, 0.723813489972, -0.019721658615, 0],
}
THETAS = {2.0: 1.52, FOUR_THIRDS: 1.470842567026277, 1.5: 1.4816284036014558}


def halved(excess, low, high):
    """Find where a falling function crosses zero."""
    for _ in range(HALVINGS):
        mid = (low + high) / 2
        low, high = (mid, high) if excess(mid) >= 0 else (low, mid)
    return (low + high) / 2


def exact_mask(x: Tensor, k: float, lam: float, p: float) -> Tensor:
    """Compute the mask of one row to fifty digits, from the row as it is rounded."""
    mp.dps = DIGITS
    row, strength = [mpf(float(v)) for v in x], mpf(lam)
    r = 1 / (mpf(p_exact(p)) - 1)

    def y(tau):
        return [min(max((v - tau) / strength, mpf(0)), mpf(1)) ** r for v in row]

    tau = halved(lambda t: sum(y(t)) - mpf(k), min(row) - strength, max(row))
    return torch.tensor([float(v) for v in y(tau)], dtype=torch.float64)


def p_exact(p: float):
    """Take 4/3 for what it means."""
    return mpf(4) / 3 if p == FOUR_THIRDS else mpf(p)


def exact_values(x: Tensor, k: int, lam: float, p: float) -> Tensor:
    """Compute debiased values of one row to fifty digits; lam is that of the row."""
    mp.dps = DIGITS
    row, strength = [abs(mpf(float(v))) for v in x], mpf(lam)
    e = p_exact(p) - 1

    def shares(theta):
        raw = [(max(s - theta, mpf(0)) / strength) ** (1 / e) for s in row]
        return [min(v, theta) for v in raw]

    low, high = mpf(0), max(row)
    theta = halved(lambda t: sum(shares(t)) - k * t, low, high)
    out = []
    for s, v in zip(row, shares(theta), strict=True):
        out.append(s if v >= theta else v + strength * v**e)
    return torch.tensor([float(v) for v in out], dtype=torch.float64) * x.double().sign()


def rows(n: int, seed: int) -> dict[str, Tensor]:
    """Draw rows of many kinds, float64: (1, n) each."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(1, n, generator=generator, dtype=torch.float64)
    uniform = torch.rand(1, n, generator=generator, dtype=torch.float64)
    return {
        "normal": normal,
        "uniform": uniform,
        "tied": (3 * normal).round(),
        "cauchy": torch.tan(torch.pi * (uniform - 0.5)),
        "constant": torch.full_like(normal, 0.7),
        "offset": 1000 + 0.001 * normal,
        "sorted": normal.sort(1).values,
    }


def grid(n: int):
    """List k and lam of the accuracy tests."""
    return product((1, max(1, n // 20), n // 2, n - 1), (1e-4, 0.1, 20.0))
