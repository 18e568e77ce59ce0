"""Alignment of made-up tissue: what must hold for any pair of slices."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from algorithms.errors import IllPosed
from algorithms.simplex import network_simplex
from algorithms.spatial.align import align
from algorithms.spatial.expression import Expression, common_counts, dissimilarity
from tests.algorithms.spatial.tissue import changed, moved, reordered, tissue

pytestmark = pytest.mark.slow

# The answer of a moved copy differs by rounding of coordinates of size 100.
SAME = 1e-9
# F of an exact copy: sums of squares of rounded distances.
ZERO = 1e-12
LOOSE = Expression(min_spot_counts=1.0, min_gene_counts=1.0)
SOURCE = tissue(0)
TARGET = moved(tissue(0, reading=1), 137.0, (40.0, -7.0))


def codes(answer):
    return {caution.code for caution in answer.cautions}


@pytest.fixture(scope="module")
def plain():
    return align(SOURCE, TARGET)


def test_recomputes_what_it_reports(plain):
    P = plain.plan.dense(80, 76)
    M = dissimilarity(common_counts(SOURCE, TARGET, Expression()), Expression())
    D1 = torch.cdist(SOURCE.coordinates, SOURCE.coordinates)
    D2 = torch.cdist(TARGET.coordinates, TARGET.coordinates)
    squared = (D1[:, :, None, None] - D2[None, None]) ** 2  # (n, n, m, m)
    distortion = torch.einsum("ikjl,ij,kl->", squared, P, P)
    assert abs(plain.transport_cost - (M * P).sum()) < SAME
    assert abs(plain.distortion - distortion) < SAME
    assert abs(plain.value - (0.9 * (M * P).sum() + 0.1 * distortion)) < SAME
    certificate = plain.certificate
    assert certificate.marginal_error_a < ZERO
    assert certificate.marginal_error_b < ZERO
    assert abs(certificate.frank_wolfe_gap) < SAME
    assert abs(certificate.value_difference) < 1e-10 * abs(float(plain.value))


def test_finds_the_motion_and_the_cells(plain):
    assert plain.stop.status == "converged"
    assert abs(plain.rotation_degrees - 137) < 3
    truth = moved(SOURCE, 137.0, (40.0, -7.0)).coordinates
    assert (plain.aligned - truth).norm(dim=1).median() < 0.5
    assert plain.certificate.reflection_margin > 0.01
    assert plain.scores.label_accuracy > 0.9 > plain.scores.label_accuracy_random
    assert plain.scores.label_accuracy <= plain.scores.label_accuracy_best_possible
    assert plain.scores.landmark_error_median < 1
    assert codes(plain) == set()


def test_transform_reproduces_aligned(plain):
    ones = torch.ones(80, 1, dtype=torch.float64)
    homogeneous = torch.cat([SOURCE.coordinates, ones], 1)
    assert (
        homogeneous @ plain.transform.T - torch.cat([plain.aligned, ones], 1)
    ).abs().max() < ZERO
    assert abs(torch.linalg.det(plain.transform) - 1) < ZERO


def test_table_of_starts_is_whole(plain):
    names = [start.name for start in plain.starts]
    assert len(set(names)) == len(names)
    assert sum(name.startswith("sweep") and name.count(" ") < 3 for name in names) >= 24
    assert {"product", "expression", "icp"} <= {name.split(" ")[0] for name in names}
    assert plain.starts[0].stage == "winner"
    assert plain.starts[0].value <= min(s.value for s in plain.starts if s.determinant > 0) + SAME
    assert {s.determinant for s in plain.starts} == {-1, 1}


@pytest.mark.parametrize("seed", range(3))
def test_turning_shifting_and_reordering_changes_rounding_only(plain, seed):
    rng = np.random.default_rng(seed)
    order = rng.permutation(80)
    other = align(
        reordered(moved(SOURCE, rng.uniform(-180, 180), rng.normal(0, 50, 2)), order), TARGET
    )
    assert abs(other.value - plain.value) < SAME
    assert (other.aligned - plain.aligned[torch.from_numpy(order)]).abs().max() < SAME
    mine, theirs = plain.plan.dense(80, 76), other.plan.dense(80, 76)
    assert (theirs - mine[torch.from_numpy(order)]).abs().max() < SAME


def test_the_answer_does_not_depend_on_threads(plain):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = align(SOURCE, TARGET)
    finally:
        torch.set_num_threads(threads)
    assert [start.name for start in alone.starts] == [start.name for start in plain.starts]
    assert abs(alone.value - plain.value) < ZERO
    assert (alone.aligned - plain.aligned).abs().max() < SAME


def test_rigid_copy_is_found_exactly():
    order = np.random.default_rng(0).permutation(80)
    copy = reordered(moved(SOURCE, 137.0, (31.0, 8.0)), order)
    answer = align(SOURCE, copy)
    inverse = np.argsort(order)
    assert abs(answer.value) < ZERO
    assert answer.plan.rows.tolist() == list(range(80))
    assert answer.plan.cols.tolist() == inverse.tolist()
    assert (answer.plan.mass - 1 / 80).abs().max() < ZERO
    assert abs(answer.rotation_degrees - 137) < 1e-6
    assert (answer.aligned - copy.coordinates[torch.from_numpy(inverse)]).abs().max() < 1e-11
    assert codes(answer) == set()


def test_mirrored_copy_is_flagged_and_returned_when_allowed():
    copy = moved(SOURCE, 20.0, (5.0, 5.0), mirrored=True)
    answer = align(SOURCE, copy)
    assert not answer.reflected
    assert "reflected" in codes(answer)
    assert abs(answer.certificate.mirrored_value) < ZERO
    assert answer.certificate.reflection_margin == pytest.approx(-1)
    assert torch.linalg.det(answer.transform) > 0
    allowed = align(SOURCE, copy, allow_reflection=True)
    assert allowed.reflected
    assert abs(allowed.value) < ZERO
    assert abs(allowed.rotation_degrees - 20) < 1e-6
    assert (allowed.aligned - copy.coordinates).abs().max() < 1e-11


def test_unit_of_the_coordinates_is_divided_out():
    in_pixels = moved(TARGET, unit=140.0)
    by_pitch = align(SOURCE, TARGET, scale="pitch")
    scaled = align(SOURCE, in_pixels)
    assert scaled.scale_used == "pitch"
    assert abs(scaled.value - by_pitch.value) < SAME
    assert torch.equal(scaled.plan.cols, by_pitch.plan.cols)
    assert scaled.pitch_target == pytest.approx(140 * by_pitch.pitch_target)
    assert (scaled.aligned / 140 - by_pitch.aligned).abs().max() < SAME
    assert {"unit_mismatch"} == codes(scaled)
    raw = align(SOURCE, in_pixels, scale="none", effort="fast")
    assert raw.scale_used == "none"
    assert "unbalanced_terms" in codes(raw)
    assert not torch.equal(raw.plan.dense(80, 76), scaled.plan.dense(80, 76))


def test_alpha_zero_is_transport_of_expression():
    answer = align(SOURCE, TARGET, alpha=0.0)
    M = dissimilarity(common_counts(SOURCE, TARGET, Expression()), Expression())
    a, b = np.full(80, 1 / 80), np.full(76, 1 / 76)
    assert abs(answer.value - network_simplex(a, b, M).transport_cost) < SAME


def test_alpha_one_is_gromov_wasserstein():
    answer = align(SOURCE, TARGET, alpha=1.0, effort="fast")
    assert abs(answer.value - answer.distortion) < ZERO
    copy = align(SOURCE, moved(SOURCE, 50.0), alpha=1.0, effort="fast")
    assert abs(copy.value) < ZERO
    flat = changed(SOURCE, counts=csr_matrix(np.full((80, 120), 5.0)))
    blind = align(flat, TARGET, alpha=1.0, effort="fast")
    assert abs(blind.value - answer.value) < ZERO


def test_dropped_spots_carry_no_mass_and_are_moved_along(plain):
    counts = SOURCE.counts.tolil()
    counts[[3, 17]] = 0
    poor = changed(SOURCE, counts=csr_matrix(counts))
    answer = align(poor, TARGET)
    assert 3 not in answer.kept_source
    assert len(answer.kept_source) == 78
    assert not set(answer.plan.rows.tolist()) & {3, 17}
    assert len(answer.aligned) == 80
    assert (answer.aligned[3] - plain.aligned[3]).norm() < 1


@pytest.mark.parametrize("name", ["jeffreys", "pca"])
def test_other_dissimilarities(name):
    answer = align(SOURCE, TARGET, expression=Expression(name), effort="fast")
    assert abs(answer.rotation_degrees - 137) < 3


def test_product_start_is_one_descent():
    answer = align(SOURCE, TARGET, init="product")
    assert [start.name for start in answer.starts] == ["product"]
    assert answer.certificate.reflection_margin is None or answer.certificate.mirrored_value is None


def test_superspots_lead_to_the_same_plan(monkeypatch, plain):
    monkeypatch.setattr("algorithms.spatial.align.LARGE", 50)
    monkeypatch.setattr("algorithms.spatial.coarse.SUPERSPOTS", 40)
    large = align(SOURCE, TARGET)
    assert float(large.value) <= float(plain.value) * (1 + 1e-3)
    assert abs(large.certificate.reflection_margin) > 0.01


@pytest.mark.parametrize("allowed", [0, 1, 5, 40, 200])
def test_interruption_returns_the_best_so_far(allowed):
    asked = 0

    def watch(iteration, residual):
        nonlocal asked
        asked += 1
        return asked <= allowed

    answer = align(SOURCE, TARGET, watch=watch)
    assert answer.stop.status == "interrupted" or asked <= allowed
    assert asked <= allowed + 1  # once refused, nobody asks again
    assert np.isfinite(float(answer.value))
    assert answer.certificate.marginal_error_a < ZERO
    if answer.stop.status == "interrupted":
        assert "interrupted" in codes(answer)
        assert answer.certificate.frank_wolfe_gap is None


def test_interruption_is_prompt():
    source, target = tissue(1, spots=300, genes=300), tissue(1, spots=300, genes=300, reading=1)
    begun = time.monotonic()
    answer = align(source, target, watch=lambda k, r: time.monotonic() - begun < 0.3)
    assert answer.stop.status == "interrupted"
    assert time.monotonic() - begun < 1.3


def test_few_iterations_are_told():
    answer = align(SOURCE, TARGET, max_iter=1)
    assert answer.stop.status == "max_iter"
    assert answer.stop.iterations == 1
    assert "max_iter" in codes(answer)


def test_cautions_about_the_input():
    doubled = changed(
        SOURCE,
        coordinates=SOURCE.coordinates.index_put((torch.tensor([0]),), SOURCE.coordinates[1]),
    )
    assert "duplicated_coordinates" in codes(align(doubled, TARGET, effort="fast"))
    logged = changed(SOURCE, counts=csr_matrix(SOURCE.counts.log1p()))
    assert "log_transformed_with_kl" in codes(align(logged, TARGET, effort="fast"))
    pca = replace(LOOSE, dissimilarity="pca")
    assert "log_transformed_with_kl" not in codes(
        align(logged, TARGET, effort="fast", expression=pca)
    )
    few = [k for k in range(80) if k % 4 == 0]
    small = reordered(SOURCE, few)
    told = codes(
        align(
            changed(small, genes=tuple(f"x{k}" if k > 30 else f"Gene{k}" for k in range(120))),
            TARGET,
            effort="fast",
        )
    )
    assert {"few_spots", "few_genes"} <= told


def test_round_tissue_has_no_frame_and_an_open_angle():
    angles = torch.arange(36).double() * torch.pi / 18
    ring = torch.stack([angles.cos(), angles.sin()], 1) * 6
    blank = csr_matrix(np.full((36, 120), 5.0))
    round_ = changed(reordered(SOURCE, range(36)), coordinates=ring, counts=blank)
    told = codes(align(round_, round_, effort="fast"))
    assert {"no_canonical_frame", "rotation_ambiguous", "orientation_ambiguous"} <= told


def nan_at(tissue_):
    z = tissue_.coordinates.clone()
    z[2, 1] = float("nan")
    return z


@pytest.mark.parametrize(
    ("field", "change", "said"),
    [
        ("coordinates", lambda s: {"coordinates": nan_at(s)}, "1 of .. spots have a NaN"),
        ("coordinates", lambda s: {"coordinates": 0 * s.coordinates + 3}, "all lie at one place"),
        ("genes", lambda s: {"genes": s.genes[:5]}, "5 names for 120"),
        ("counts", lambda s: {"counts": s.counts * np.inf}, "not finite"),
        ("counts", lambda s: {"counts": s.counts * 1e-9}, "0 of .. spots"),
    ],
)
@pytest.mark.parametrize("side", ["source", "target"])
def test_slices_without_an_alignment(side, field, change, said):
    slices = {"source": SOURCE, "target": TARGET}
    slices[side] = changed(slices[side], **change(slices[side]))
    with pytest.raises(IllPosed, match=said) as caught:
        align(slices["source"], slices["target"])
    assert caught.value.field == f"{side}.{field}"


def test_too_few_spots():
    with pytest.raises(IllPosed, match="at least 3") as caught:
        align(reordered(SOURCE, [0, 1]), TARGET)
    assert caught.value.field == "source.coordinates"


def test_negative_expression_has_no_proportions():
    centred = changed(SOURCE, counts=csr_matrix(SOURCE.counts.toarray() - 1.0))
    with pytest.raises(IllPosed, match="kl needs counts; source holds -1") as caught:
        align(centred, TARGET)
    assert caught.value.field == "expression.dissimilarity"
