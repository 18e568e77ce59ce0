"""Simulated sections: what the recipe promises, and the files made from it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
from click.testing import CliRunner
from scipy.sparse import isspmatrix_csr
from scipy.spatial import KDTree

from bench.make_samples import main, sections
from brenier.simulate import DOMAINS, Section, _nearest, simulate_sections
from schemas.samples import FOLDER

ROUNDING = 1e-9  # positions are at most some tens of pitches, in float64


def small(**options: Any) -> tuple[Section, Section]:
    chosen: dict[str, Any] = {"spots": 120, "genes": 40, "seed": 3} | options
    return simulate_sections(**chosen)


def assert_equal(one: Section, other: Section):
    assert (one.ids, one.genes, one.domain) == (other.ids, other.genes, other.domain)
    np.testing.assert_array_equal(one.counts, other.counts)
    np.testing.assert_allclose(one.coordinates, other.coordinates, rtol=0, atol=ROUNDING)
    np.testing.assert_allclose(one.tissue, other.tissue, rtol=0, atol=ROUNDING)


def undo(section: Section) -> np.ndarray:
    """Return coordinates of a second section carried back to the frame of the first."""
    transform = section.truth["transform"]
    return (section.coordinates - transform[:2, 2]) @ np.linalg.inv(transform[:2, :2]).T


def neighbours(points: np.ndarray, among: np.ndarray, k: int = 1) -> tuple[Any, Any]:
    """Return distances and rows of the nearest points."""
    distances, rows = KDTree(among).query(points, k=k)
    return distances, rows


def spacing(points: np.ndarray) -> float:
    return float(np.median(neighbours(points, points, k=2)[0][:, 1]))


def test_equal_seeds_give_equal_sections():
    for one, other in zip(small(), small(), strict=True):
        assert_equal(one, other)
    assert not np.array_equal(small()[0].coordinates, small(seed=4)[0].coordinates)


@pytest.mark.parametrize("lattice", ["square", "hexagonal"])
def test_shapes_names_and_kinds(lattice: str):
    first, second = small(lattice=lattice)
    assert first.genes == second.genes
    assert first.genes[0] == "gene_0001"
    for number, section in enumerate((first, second), start=1):
        n = len(section.ids)
        assert abs(n - 120) < 15  # the outline cuts about 40 spots of the grid, at random
        assert section.counts.shape == (n, 40)
        assert section.coordinates.shape == section.tissue.shape == (n, 2)
        assert len(section.domain) == n
        assert set(section.domain) <= {f"domain_{k + 1}" for k in range(DOMAINS)}
        assert len(set(section.domain)) > 1
        assert len(set(section.ids)) == n
        assert all(name.startswith(f"section_{number}_") for name in section.ids)
        assert section.counts.dtype == np.int32
        assert section.counts.min() >= 0
        assert np.isfinite(section.coordinates).all()
        assert spacing(section.coordinates) == pytest.approx(1, abs=ROUNDING)


def test_median_depth_is_the_one_asked_for():
    for depth in (500.0, 2000.0):
        for section in small(spots=600, depth=depth):
            # median of 600 log-normal depths of deviation 0.45: standard error 2.3 %
            assert np.median(section.counts.sum(axis=1)) == pytest.approx(depth, rel=0.1)


def test_genes_tell_domains_apart():
    """A domain's mean profile correlates best with that of the same domain next door."""
    sections = small(spots=600, genes=300)
    counts = [{d: s.domain.count(d) for d in set(s.domain)} for s in sections]
    large = sorted(d for d in counts[0] if min(c.get(d, 0) for c in counts) >= 30)
    assert len(large) >= 3
    profiles = np.stack(
        [[np.log1p(s.counts[np.equal(s.domain, d)].sum(0)) for d in large] for s in sections]
    )
    first, second = profiles - profiles.mean(axis=1, keepdims=True)  # what all domains share
    likeness = np.corrcoef(first, second)[: len(large), len(large) :]
    np.testing.assert_array_equal(likeness.argmax(axis=1), np.arange(len(large)))
    assert np.diag(likeness).min() > 0.8


@pytest.mark.parametrize("mirrored", [False, True])
def test_truth_carries_the_second_section_back_to_the_tissue(mirrored: bool):
    first, second = small(mirrored=mirrored, warp=0.0)
    np.testing.assert_allclose(first.coordinates, first.tissue, rtol=0, atol=ROUNDING)
    np.testing.assert_allclose(undo(second), second.tissue, rtol=0, atol=ROUNDING)
    for truth in (first.truth, second.truth):
        turn = truth["transform"][:2, :2]
        angle = np.degrees(np.arctan2(turn[1, 0], turn[0, 0]))
        assert truth["rotation_degrees"] == pytest.approx(angle, abs=ROUNDING)
        assert truth["mirrored"] is mirrored
        assert np.linalg.det(turn) == pytest.approx(-1 if mirrored else 1)


def test_warp_is_a_smooth_displacement_of_the_size_asked_for():
    _, second = small(spots=600, warp=0.3)
    displacement = second.tissue - undo(second)
    assert 0.1 < np.sqrt(np.square(displacement).mean()) < 0.7  # 0.3, one draw of two fields
    near = neighbours(second.tissue, second.tissue, k=2)[1][:, 1]
    assert np.abs(displacement - displacement[near]).max() < 0.15  # it hardly changes in a pitch


def test_sections_overlap_in_the_tissue():
    first, second = small()
    distance = neighbours(first.tissue, second.tissue)[0]
    assert np.mean(distance < 1) > 0.9
    nearest = neighbours(first.tissue, second.tissue)[1]
    agree = np.array(first.domain) == np.array(second.domain)[nearest]
    assert agree.mean() > 0.7  # the rest lies at the boundaries


def test_tear_takes_a_fraction_of_the_second_section_beyond_a_line():
    whole, torn = small(warp=0.0)[1], small(warp=0.0, tear=0.3)[1]
    assert len(torn.ids) == pytest.approx(0.7 * len(whole.ids), abs=1)
    assert torn.truth["tear"] == 0.3
    distance = neighbours(whole.tissue, torn.tissue)[0]
    left, lost = whole.tissue[distance < ROUNDING], whole.tissue[distance >= ROUNDING]
    assert len(left) == len(torn.ids)
    directions = np.radians(np.arange(360))
    normals = np.stack([np.cos(directions), np.sin(directions)])
    assert ((lost @ normals).min(axis=0) > (left @ normals).max(axis=0) - 0.1).any()


def test_crop_takes_the_left_of_the_first_section():
    (whole, beside), (cropped, untouched) = small(), small(crop=0.25)
    assert len(cropped.ids) == pytest.approx(0.75 * len(whole.ids), abs=1)
    assert cropped.tissue[:, 0].min() >= np.quantile(whole.tissue[:, 0], 0.25) - ROUNDING
    assert len(untouched.ids) == len(beside.ids)
    assert cropped.truth["crop"] == untouched.truth["crop"] == 0.25


def test_rows_are_shuffled():
    for section in small():
        numbers = [int(name.rsplit("_", 1)[1]) for name in section.ids]
        assert numbers != sorted(numbers)


def test_neighbours_are_found_beyond_the_strip():
    """An island of three spots far away still has six neighbours, and they are the nearest."""
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.uniform(0, 40, (1500, 2)), [[90.0, 1], [91, 1], [92, 3]]])
    expected = np.sort(neighbours(points, points, k=7)[1][:, 1:], axis=1)
    np.testing.assert_array_equal(np.sort(_nearest(points), axis=1), expected)


@pytest.mark.parametrize(
    "options",
    [
        {"spots": 19}, {"genes": 1}, {"depth": 0.0}, {"tear": 1.0}, {"crop": -0.1},
        {"lattice": "round"}, {"spots": 20, "crop": 0.9},
    ],
    ids=str,
)  # fmt: skip
def test_impossible_options_are_refused(options: dict[str, Any]):
    with pytest.raises(ValueError, match=r"at least|fractions|lattice|too few"):
        small(**options)


def test_h5ad_keeps_order_and_truth(tmp_path: Path):
    section = small(mirrored=True, tear=0.2)[1]
    section.write_h5ad(tmp_path / "section.h5ad")
    read: Any = anndata.read_h5ad(tmp_path / "section.h5ad")
    assert list(read.obs_names) == section.ids
    assert list(read.var_names) == section.genes
    assert isspmatrix_csr(read.X)
    assert read.X.dtype == np.float32
    np.testing.assert_array_equal(read.X.toarray(), section.counts)
    np.testing.assert_array_equal(read.obsm["spatial"], section.coordinates)
    np.testing.assert_array_equal(read.obsm["tissue"], section.tissue)
    assert read.obs["domain"].dtype == "category"
    assert list(read.obs["domain"]) == section.domain
    assert set(read.uns["truth"]) == set(section.truth)
    for key, value in section.truth.items():
        np.testing.assert_array_equal(read.uns["truth"][key], value)


def test_shipped_sections_are_small_and_equal_to_the_simulation():
    for number, section in enumerate(sections(), start=1):
        path = FOLDER / f"section_{number}.h5ad"
        assert path.stat().st_size < 120_000
        read: Any = anndata.read_h5ad(path)
        shipped = Section(
            counts=read.X.toarray().astype(np.int32),
            coordinates=read.obsm["spatial"],
            tissue=read.obsm["tissue"],
            domain=list(read.obs["domain"]),
            genes=list(read.var_names),
            ids=list(read.obs_names),
            truth=read.uns["truth"],
        )
        assert_equal(shipped, section)
        assert section.counts.sum(axis=1).min() >= 100
        assert section.counts.sum(axis=0).min() >= 15


def test_samples_are_made_into_a_new_folder(tmp_path: Path):
    answer = CliRunner().invoke(main, [str(tmp_path / "new")])
    assert answer.exit_code == 0, answer.output
    for number, section in enumerate(sections(), start=1):
        path = tmp_path / "new" / f"section_{number}.h5ad"
        assert list(anndata.read_h5ad(path).obs_names) == section.ids


def test_simulating_needs_no_more_than_the_client():
    code = (
        "import sys; from brenier.simulate import simulate_sections; simulate_sections(spots=30); "
        "sys.exit(bool({'scipy', 'pandas', 'anndata', 'torch'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
