"""Two serial sections of one simulated tissue, for demonstrations and tests without real data."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from math import ceil, pi, sqrt
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Lattice = Literal["square", "hexagonal"]
Reals = NDArray[np.float64]

DOMAINS = 6
GRADIENTS = 4
WAVES = 48  # cosines that make up one random field
DOMAIN_LENGTH, GRADIENT_LENGTH, WARP_LENGTH = 0.45, 0.8, 0.7  # in mean radii of the tissue
OUTLINE = np.array([0.18, 0.12, 0.08, 0.05])  # deviations of the harmonics of the radius
BLEED, NEIGHBOURS = 0.15, 6
BLOCK = 512  # spots whose neighbours are sought at once
STRIP = 3.0  # pitches on either side of a block where they are sought first


@dataclass(frozen=True, eq=False)
class Section:
    """One section as an instrument would deliver it, and the truth about it.

    Shapes: counts (n, genes); coordinates, tissue (n, 2); domain, ids of length n.
    """

    counts: NDArray[np.int32]
    coordinates: Reals
    """Where the spots lie in this section's own frame, in pitches."""
    tissue: Reals
    """Where the spots truly lie in the frame shared by both sections, in pitches."""
    domain: list[str]
    genes: list[str]
    ids: list[str]
    truth: Mapping[str, Any]
    """Of the pair: `rotation_degrees` (counter-clockwise, first to second section), `mirrored`,
    `transform` (3 x 3, coordinates of the first to those of the second section, up to the warp),
    `tear`, `crop`."""

    def to_anndata(self) -> Any:
        """Return an AnnData: raw counts in `X` (CSR), the truth in `obs`, `obsm` and `uns`."""
        anndata: Any = import_module("anndata")  # untyped, and heavier than the client should be
        pd: Any = import_module("pandas")
        frame = pd.DataFrame(self.counts).astype(pd.SparseDtype(np.float32, 0))
        return anndata.AnnData(
            X=frame.sparse.to_coo().tocsr(),
            obs=pd.DataFrame({"domain": pd.Categorical(self.domain)}, index=pd.Index(self.ids)),
            var=pd.DataFrame(index=pd.Index(self.genes)),
            obsm={"spatial": self.coordinates, "tissue": self.tissue},
            uns={"truth": dict(self.truth)},
        )

    def write_h5ad(self, path: str | Path) -> None:
        """Write the section to a compressed .h5ad file."""
        self.to_anndata().write_h5ad(path, compression="gzip")


def simulate_sections(
    *,
    spots: int = 300,
    genes: int = 1000,
    depth: float = 2000.0,
    warp: float = 0.3,
    gap: float = 0.7,
    tear: float = 0.0,
    crop: float = 0.0,
    mirrored: bool = False,
    lattice: Lattice = "square",
    seed: int = 0,
) -> tuple[Section, Section]:
    """Simulate two serial sections of one tissue, each seen through its own grid of spots.

    The tissue is a smooth outline of mean radius 1 with six domains and four gradients, all of
    them random fields of position. A gene's proportion at a spot is a softmax of its base level
    and of loadings on those fields; a count is negative binomial. The first section keeps the
    frame of the tissue; the second is warped, rotated by a random angle, mirrored if asked, and
    moved. The rows of both are shuffled.

    Args:
        spots: Expected number in a whole section; at least 20.
        genes: Number of genes.
        depth: Median number of counts per spot.
        warp: Size of the smooth displacement of the second section, in pitches; 2 is severe.
        gap: Distance between the sections, in pitches; larger gaps move the domains more.
        tear: Fraction of the second section that is lost beyond a line of random direction.
        crop: Fraction of the first section that is lost on its left.
        mirrored: Whether the second section is turned over.
        lattice: Grid of the spots. The number of spots is the same for both grids.
        seed: Equal seeds give equal sections.

    Notes:
        300 spots and 1,000 genes take a fraction of a second; memory is a few times that of the
        dense counts.
    """
    if spots < 20 or genes < 2 or not depth > 0:
        raise ValueError("spots must be at least 20, genes at least 2, depth positive")
    if not (0 <= tear < 1 and 0 <= crop < 1):
        raise ValueError("tear and crop are fractions in [0, 1)")
    if lattice not in ("square", "hexagonal"):
        raise ValueError("lattice must be 'square' or 'hexagonal'")
    rng = np.random.default_rng(seed)
    tissue = _grow(rng, spots, genes, lattice)
    pitch = tissue.pitch
    first = _spots(rng, tissue, 0.0, lattice)
    first = first[_remaining(first, pi, crop)]
    seen = _spots(rng, tissue, warp, lattice)
    second = _warped(tissue, seen, warp)
    kept = _remaining(second, rng.uniform(0, 2 * pi), tear)
    seen, second = seen[kept], second[kept]
    if min(len(first), len(second)) <= NEIGHBOURS:
        raise ValueError("too few spots remain; ask for more spots or for less damage")

    angle = rng.uniform(-pi, pi)
    flip = -1.0 if mirrored else 1.0
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, -flip * sin], [sin, flip * cos]])
    shift = rng.uniform(-10, 10, size=2)
    transform = np.eye(3)
    transform[:2, :2], transform[:2, 2] = turn, shift
    truth = {
        "rotation_degrees": float(np.degrees(angle)),
        "mirrored": mirrored,
        "transform": transform,
        "tear": float(tear),
        "crop": float(crop),
    }
    uploaded = seen / pitch @ turn.T + shift
    return (
        _measure(rng, tissue, "section_1", first, 0.0, first / pitch, depth, truth),
        _measure(rng, tissue, "section_2", second, gap * pitch, uploaded, depth, truth),
    )


class _Fields(NamedTuple):
    """Smooth random functions of position: unit variance, each a sum of cosines."""

    frequencies: Reals  # (fields, waves, d)
    phases: Reals
    amplitudes: Reals

    def at(self, points: Reals) -> Reals:
        """Values (n, fields) at points (n, d)."""
        parts = zip(self.frequencies, self.phases, self.amplitudes, strict=True)
        return np.stack([np.cos(points @ w.T + phase) @ c for w, phase, c in parts], axis=1)


class _Tissue(NamedTuple):
    amplitudes: Reals
    phases: Reals
    pitch: float
    domains: _Fields
    gradients: _Fields
    displacement: _Fields
    base: Reals
    loadings: Reals

    def radius(self, angles: Reals) -> Reals:
        waves = np.cos(np.arange(1, 5) * angles[..., None] + self.phases)
        return 1 + waves @ self.amplitudes


def _fields(rng: Generator, count: int, dimension: int, length: float) -> _Fields:
    return _Fields(
        rng.standard_normal((count, WAVES, dimension)) / length,
        rng.uniform(0, 2 * pi, (count, WAVES)),
        rng.normal(0, sqrt(2 / WAVES), (count, WAVES)),
    )


def _grow(rng: Generator, spots: int, genes: int, lattice: Lattice) -> _Tissue:
    amplitudes = OUTLINE * rng.standard_normal(4)
    loadings = rng.standard_normal((DOMAINS + GRADIENTS, genes))
    loadings *= rng.random(loadings.shape) < 0.12
    loadings *= np.repeat([1.1, 0.5], [DOMAINS, GRADIENTS])[:, None]
    # integral of radius^2 / 2 over the circle, exact for a trigonometric polynomial
    area = pi * (1 + float(amplitudes @ amplitudes) / 2)
    cell = 1.0 if lattice == "square" else sqrt(3) / 2  # area of a spot, in squared pitches
    return _Tissue(
        amplitudes,
        phases=rng.uniform(0, 2 * pi, 4),
        pitch=sqrt(area / (spots * cell)),
        domains=_fields(rng, DOMAINS, 3, DOMAIN_LENGTH),
        gradients=_fields(rng, GRADIENTS, 3, GRADIENT_LENGTH),
        displacement=_fields(rng, 2, 2, WARP_LENGTH),
        base=rng.normal(0, 1.3, genes),
        loadings=loadings,
    )


def _spots(rng: Generator, tissue: _Tissue, warp: float, lattice: Lattice) -> Reals:
    """Grid points, turned and shifted at random, that see the inside of the outline."""
    pitch = tissue.pitch
    reach = (1 + float(np.abs(tissue.amplitudes).sum())) / pitch + 4 * warp
    half = ceil(1.2 * reach) + 1  # rows of a hexagonal grid are closer than a pitch
    steps = np.arange(-half, half + 1, dtype=np.float64)
    row, column = np.repeat(steps, len(steps)), np.tile(steps, len(steps))
    if lattice == "hexagonal":
        column, row = column + row % 2 / 2, row * (sqrt(3) / 2)
    angle = rng.uniform(0, 2 * pi)
    cos, sin = np.cos(angle), np.sin(angle)
    points = np.stack([column, row], axis=1) + rng.uniform(-0.5, 0.5, size=2)
    points = pitch * points @ np.array([[cos, sin], [-sin, cos]])
    u = _warped(tissue, points, warp)
    inside = np.hypot(u[:, 0], u[:, 1]) <= tissue.radius(np.arctan2(u[:, 1], u[:, 0]))
    return points[inside]


def _warped(tissue: _Tissue, points: Reals, warp: float) -> Reals:
    return points + warp * tissue.pitch * tissue.displacement.at(points)


def _remaining(points: Reals, direction: float, fraction: float) -> NDArray[np.bool_]:
    """Mark the points that stay when the given fraction is lost beyond a straight line."""
    along = points @ np.array([np.cos(direction), np.sin(direction)])
    return along <= np.quantile(along, 1 - fraction)


def _measure(
    rng: Generator,
    tissue: _Tissue,
    name: str,
    u: Reals,
    depth_in_tissue: float,
    coordinates: Reals,
    depth: float,
    truth: Mapping[str, Any],
) -> Section:
    q = np.column_stack([u, np.full(len(u), depth_in_tissue)])
    membership = _softmax(3 * tissue.domains.at(q))
    features = np.hstack([membership - 1 / DOMAINS, tissue.gradients.at(q) / 2])
    p = _softmax(tissue.base + features @ tissue.loadings)
    near = _nearest(coordinates)
    p = (1 - BLEED) * p + BLEED / NEIGHBOURS * sum(p[near[:, k]] for k in range(NEIGHBOURS))
    p *= depth * np.exp(rng.normal(0, 0.45, (len(u), 1)))
    p *= rng.standard_gamma(4, p.shape) / 4
    counts = rng.poisson(p).astype(np.int32)
    order = rng.permutation(len(u))
    return Section(
        counts=counts[order],
        coordinates=coordinates[order],
        tissue=u[order] / tissue.pitch,
        domain=[f"domain_{k + 1}" for k in membership.argmax(axis=1)[order]],
        genes=[f"gene_{k + 1:04d}" for k in range(counts.shape[1])],
        ids=[f"{name}_{k}" for k in order],
        truth=truth,
    )


def _softmax(scores: Reals) -> Reals:
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def _nearest(points: Reals) -> NDArray[np.intp]:
    """Rows of the six nearest other points, sought by blocks inside a strip around each block."""
    near = np.empty((len(points), NEIGHBOURS), np.intp)
    x = points[:, 0]
    # a grid is full of ties: a slight stretch and a slighter lean decide them, not rounding
    plane = (1 + 1e-6) * x + 1j * points[:, 1]
    for block in np.array_split(np.argsort(x), ceil(len(x) / BLOCK)):
        width, farthest = STRIP / 2, np.inf
        while farthest > width:  # a neighbour may hide beyond the strip
            width *= 2
            others = np.flatnonzero((x >= x[block].min() - width) & (x <= x[block].max() + width))
            away = plane[block, None] - plane[others]
            apart = np.abs(away) + 1e-9 * away.real
            apart[block[:, None] == others] = np.inf
            best = np.argpartition(apart, NEIGHBOURS - 1, axis=1)[:, :NEIGHBOURS]
            farthest = np.take_along_axis(apart, best, axis=1).max()
            near[block] = others[best]
    return near
