"""Maps to start from: the answer depends on them."""

from dataclasses import dataclass
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.structured.problem import Problem

# All signs of so many principal axes are tried.
AXES = 3


@dataclass(frozen=True)
class Starts:
    """Maps and their names."""

    names: tuple[str, ...]
    maps: Float[Tensor, "S e d"]

    def __add__(self, other: "Starts") -> "Starts":
        """Put others behind."""
        return Starts(self.names + other.names, torch.cat([self.maps, other.maps.to(self.maps)]))


def designed(p: Problem) -> Starts:
    """Propose constant entries, the identity, and the principal axes with all patterns of signs.

    The axes are the answer for Gaussian clouds, up to signs. Sizes are those of cross moments.
    """
    Sx, Sy = ((Z * w[:, None]).T @ Z for Z, w in ((p.X, p.a), (p.Y, p.b)))
    lx, Vx = torch.linalg.eigh(Sx)
    ly, Vy = torch.linalg.eigh(Sy)
    (lx, Vx), (ly, Vy) = ((v.flip(0).clamp_min(0), V.flip(1)) for v, V in ((lx, Vx), (ly, Vy)))
    r = min(len(lx), len(ly))
    sizes = (lx[:r] * ly[:r]).sqrt()
    e, d = len(ly), len(lx)
    # eigenvectors have no sign of their own: their mean cube decides, so that runs agree
    Vx, Vy = (V * torch.where((w @ (Z @ V).pow(3)) < 0, -1.0, 1.0)
              for V, Z, w in ((Vx, p.X, p.a), (Vy, p.Y, p.b)))  # fmt: skip
    names, maps = ["ones", "identity"], [
        torch.full((e, d), 1 / max(d, e)).to(Sx) * sizes[0],
        torch.eye(e, d).to(Sx) * sizes[0] / r**0.5,
    ]  # fmt: skip
    free = min(r, AXES)
    for signs in product((1.0, -1.0), repeat=free):
        turned = torch.ones_like(sizes)
        turned[:free] = torch.tensor(signs, dtype=sizes.dtype)
        maps.append((Vy[:, :r] * (turned * sizes)) @ Vx[:, :r].T)
        names.append("axes " + "".join("+" if s > 0 else "-" for s in signs))
    return Starts(tuple(names), torch.stack(maps))


def drawn(p: Problem, count: int, generator: torch.Generator, name: str = "random") -> Starts:
    """Draw Gaussian maps of the size of cross moments."""
    e, d = p.Y.shape[1], p.X.shape[1]
    noise = torch.randn(count, e, d, generator=generator, dtype=p.X.dtype, device=generator.device)
    maps = noise.to(p.X.device) * p.spread() ** 0.5
    return Starts(tuple(f"{name} {k}" for k in range(count)), maps)
