"""Alignment from superspots down to spots: planted motions, torn and mirrored tissue."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from algorithms.errors import IllPosed
from algorithms.spatial import align as aligning
from algorithms.spatial import levels, partial
from algorithms.spatial.align import align
from algorithms.spatial.expression import Expression
from algorithms.spatial.motions import degrees, moved
from algorithms.spatial.slice import Slice
from brenier.simulate import simulate_sections
from tests.algorithms.spatial.tissue import changed, reordered
from tests.algorithms.spatial.tissue import moved as uploaded
from tests.algorithms.spatial.tissue import tissue as drawn

# The plan is recomputed from the same numbers.
ROUNDING = 1e-12
# Rounding of a turned upload, through some tens of rounds of matching.
SAME = 1e-6
# Median error in pitches: half of what separates two spots.
HALF = 0.5
# At 800 spots the outline takes part in every seventh match.
FEW = 1.0


def tissue(section):
    return Slice(
        csr_matrix(section.counts, dtype=np.float64),
        torch.from_numpy(section.coordinates),
        tuple(section.genes),
        tuple(section.ids),
        tuple(section.domain),
        torch.from_numpy(section.tissue),
    )


def simulated(spots=800, genes=150, **fields):
    first, second = simulate_sections(spots=spots, genes=genes, depth=2000.0, **fields)
    return tissue(first), tissue(second), first.truth


def motion_error(answer, source, truth):
    """Measure how far the motion sends spots from where the true one does, warp left out."""
    T = torch.from_numpy(truth["transform"])
    return float((answer.aligned - moved(T, source.coordinates)).norm(dim=1).median())


def codes(answer):
    return {caution.code for caution in answer.cautions}


@pytest.fixture(scope="module", autouse=True)
def fewer_superspots():
    """Search between fewer superspots and shares: the search takes the most time, and has tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(levels, "COARSE", 60)
        patch.setattr(partial, "GRID", (0.7, 0.8, 0.9))
        yield


@pytest.fixture(scope="module")
def pair():
    return simulated(seed=3)


@pytest.fixture(scope="module")
def plain(pair):
    return align(pair[0], pair[1], solver="hierarchical")


@pytest.mark.slow
def test_finds_the_planted_motion(pair, plain):
    source, _, truth = pair
    assert plain.solver == "hierarchical"
    assert plain.stop.status == "converged"
    assert motion_error(plain, source, truth) < HALF
    off = (plain.rotation_degrees - truth["rotation_degrees"] + 180) % 360 - 180
    assert abs(off) < 1
    assert plain.scores.label_accuracy > plain.scores.label_accuracy_best_possible - 0.12
    margin = plain.certificate.reflection_margin
    # the descent from a mirrored start may turn proper: no margin then
    assert margin is None or margin > 0.01
    assert all(level.settled for level in plain.hierarchy.levels)
    assert codes(plain) == {"compared_by_components"}


@pytest.mark.slow
def test_recomputes_what_it_reports(pair, plain):
    source, target, _ = pair
    n, m = len(source.ids), len(target.ids)
    P = plain.plan.dense(n, m)
    assert P.min() >= 0
    assert abs(float(P.sum()) - plain.mass_moved) < ROUNDING
    each = 1 / max(n, m)
    assert abs(float((P.sum(1) - each).clamp_min(0).sum()) - plain.certificate.marginal_error_a) < (
        ROUNDING
    )
    assert not bool(P.sum(1)[plain.unmatched_source].any())
    value = 0.9 * plain.transport_cost + 0.1 * plain.distortion
    assert abs(float(plain.value - value)) < ROUNDING
    # the sampled distortion against the sum over all pairs of pairs, by matrix products
    D1, D2 = (torch.cdist(s.coordinates, s.coordinates) for s in (source, target))
    p, q = P.sum(1), P.sum(0)
    whole = p @ D1.square() @ p + q @ D2.square() @ q - 2 * (D1 @ P @ D2 * P).sum()
    # five standard errors: one draw in millions lies further off
    assert abs(float(plain.distortion - whole)) < 5 * plain.hierarchy.distortion_error
    ones = torch.ones(n, 1, dtype=torch.float64)
    assert torch.allclose(torch.cat([source.coordinates, ones], 1) @ plain.transform[:2].T,
                          plain.aligned)  # fmt: skip
    R = plain.hierarchy.rigid[:2, :2]
    assert (R @ R.T - torch.eye(2)).abs().max() < ROUNDING
    assert degrees(plain.hierarchy.rigid) == plain.rotation_degrees
    assert plain.hierarchy.residual.shape == (n, 2)
    assert plain.hierarchy.sinkhorn_residual <= 1e-6


@pytest.mark.slow
def test_turning_shifting_and_reordering_changes_rounding_only(pair, plain):
    source, target, _ = pair
    rng = np.random.default_rng(0)
    order = rng.permutation(len(source.ids))
    upload = reordered(uploaded(source, 71.0, (30.0, -4.0)), order)
    other = align(upload, target, solver="hierarchical")
    assert (other.aligned - plain.aligned[torch.from_numpy(order)]).abs().max() < SAME
    assert abs(other.transport_cost - plain.transport_cost) < SAME
    assert torch.equal(other.unmatched_source, plain.unmatched_source[torch.from_numpy(order)])


@pytest.mark.slow
def test_torn_piece_is_outside():
    source, target, truth = simulated(seed=1, tear=0.2)
    answer = align(source, target, solver="hierarchical")
    assert motion_error(answer, source, truth) < FEW
    lost = torch.cdist(source.landmarks, target.landmarks).amin(1) > 1
    assert float((answer.unmatched_source == lost).double().mean()) > 0.95
    assert answer.hierarchy.outside_source == pytest.approx(0.2, abs=0.05)


@pytest.mark.slow
def test_mirrored_slice_is_flagged_and_turned_over_when_allowed(pair, plain):
    source, target, _ = pair
    upload = uploaded(source, 20.0, (5.0, 5.0), mirrored=True)
    told = align(upload, target, solver="hierarchical")
    assert "reflected" in codes(told)
    assert not told.reflected
    allowed = align(upload, target, solver="hierarchical", allow_reflection=True)
    assert allowed.reflected
    assert torch.linalg.det(allowed.hierarchy.rigid) == pytest.approx(-1)
    # the same tissue, so the same places as from the proper upload, found from mirrored starts
    assert (allowed.aligned - plain.aligned).norm(dim=1).median() < HALF
    residual = plain.hierarchy.residual - allowed.hierarchy.residual
    assert residual.norm(dim=1).median() < HALF


@pytest.mark.slow
def test_pairs_replace_the_search(pair):
    source, target, truth = pair
    near = torch.cdist(source.landmarks, target.landmarks).argmin(1)
    rows = torch.arange(0, len(source.ids), 100)
    pairs = torch.stack([rows, near[rows]], 1).double()
    answer = align(source, target, pairs=pairs, solver="hierarchical")
    assert motion_error(answer, source, truth) < HALF
    assert {start.name for start in answer.starts} == {"pairs"}
    assert answer.curve == ()


@pytest.mark.slow
def test_unit_of_the_coordinates_is_divided_out():
    source, target = drawn(0), drawn(0, reading=1)
    asked = {"solver": "hierarchical", "scale": "pitch", "init": "product"}
    plain = align(source, target, **asked)
    scaled = align(source, uploaded(target, unit=64.0), **asked)
    assert scaled.scale_used == "pitch"
    assert (scaled.aligned / 64 - plain.aligned).norm(dim=1).max() < SAME
    assert (scaled.hierarchy.residual / 64 - plain.hierarchy.residual).norm(dim=1).max() < SAME


@pytest.mark.parametrize("allowed", [0, 60])
def test_interruption_returns_something_finite(allowed):
    source, target = drawn(0), drawn(0, reading=1)
    asked = 0

    def watch(iteration, residual):
        nonlocal asked
        asked += 1
        return asked <= allowed

    answer = align(source, target, solver="hierarchical", watch=watch)
    assert answer.stop.status == "interrupted"
    assert "interrupted" in codes(answer)
    assert bool(answer.aligned.isfinite().all())
    assert np.isfinite(float(answer.value))
    assert 0 < answer.mass_moved < 2


def test_few_spots_few_genes_float32_and_a_place_twice():
    source, target = drawn(0, genes=40), drawn(0, genes=40, reading=1)
    z = source.coordinates.clone()
    z[0] = z[1]
    poor = reordered(changed(source, coordinates=z.float()), range(12))
    answer = align(poor, target, solver="hierarchical", init="product")
    assert answer.hierarchy.residual_ratio is None
    assert answer.hierarchy.genes_held_out == 0
    assert bool(answer.aligned.isfinite().all())
    assert {"few_spots", "few_genes", "duplicated_coordinates"} <= codes(answer)


@pytest.mark.parametrize(
    ("fields", "field"),
    [({"mass": 0.5}, "mass"), ({"plan0": torch.ones(80, 76, dtype=torch.float64)}, "plan0")],
)
def test_what_the_dense_solver_alone_can_do(fields, field):
    with pytest.raises(IllPosed, match="dense solver") as caught:
        align(drawn(0), drawn(0, reading=1), solver="hierarchical", **fields)
    assert caught.value.field == field


def test_large_slices_take_the_hierarchical_solver(monkeypatch):
    monkeypatch.setattr(aligning, "DENSE_SPOTS", 79)
    source, target = drawn(0), drawn(0, reading=1)
    pca = Expression("pca")
    assert align(source, target, expression=pca, init="product").solver == "hierarchical"
    half = align(source, target, expression=pca, mass=0.5, init="product", effort="fast")
    assert half.solver == "dense"
    assert half.hierarchy is None
