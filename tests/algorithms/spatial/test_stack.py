"""Stacks of made-up slices: motions that compose, triangles that close, units that do not count."""

from functools import cache

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from algorithms.errors import IllPosed
from algorithms.spatial.motions import matched_motion
from algorithms.spatial.motions import moved as placed
from algorithms.spatial.pairs import chain, wanted
from algorithms.spatial.procrustes import procrustes, rotation
from algorithms.spatial.stack import stack
from schemas.spatial.stack import EXAMPLE, StackRequest
from tests.algorithms.spatial.tissue import changed, moved, reordered, tissue

# Products of a few matrices with entries of size 100.
SAME = 1e-9
# Motions fitted to plans between jittered sections of 60 spots, in pitches.
CLOSE = 1.0
BASE = tissue(3, spots=60, genes=60)
TURNS = ((0.0, (0.0, 0.0)), (137.0, (40.0, -7.0)), (-60.0, (3.0, 90.0)), (20.0, (-8.0, 1.0)))


def section(k):
    return moved(tissue(3, spots=60, genes=60, reading=k or None), *TURNS[k])


@cache
def answer(policy="sequential", reference=0, count=3):
    return stack(tuple(map(section, range(count))), policy=policy, reference=reference,
                 effort="fast")  # fmt: skip


@pytest.mark.parametrize("policy", ["sequential", "star", "procrustes"])
@pytest.mark.slow
def test_sections_come_to_lie_over_one_another(policy):
    found = answer(policy)
    assert found.stop.status == "converged"
    assert torch.equal(found.transforms[0], torch.eye(3, dtype=torch.float64))
    truth = dict(zip(BASE.ids, BASE.coordinates, strict=True))
    for k, own in enumerate(found.slices):
        original = section(k)
        assert own.ids == original.ids
        again = placed(found.transforms[k], original.coordinates)
        assert (again - own.aligned).abs().max() < SAME
        goal = torch.stack([truth[name] for name in own.ids])
        assert (own.aligned - goal).norm(dim=1).median() < CLOSE
    assert found.certificate.marginal_error < SAME
    assert abs(found.certificate.frank_wolfe_gap) < SAME


@pytest.mark.parametrize("reference", [0, 1, 2])
@pytest.mark.slow
def test_motions_of_pairs_compose_to_those_returned(reference):
    found = answer("sequential", reference)
    pairs = {(p.source, p.target): p for p in found.pairs}
    assert found.certificate.composition_error < SAME
    for k in range(3):
        T, step = torch.eye(3, dtype=torch.float64), k
        while step != reference:
            near = step - 1 if step > reference else step + 1
            T, step = pairs[step, near].transform @ T, near
        assert (T - found.transforms[k]).abs().max() < SAME
        assert found.slices[k].links == abs(k - reference)
    total = found.slices[2].cumulative_degrees - found.slices[2].rotation_degrees
    assert abs((total + 180) % 360 - 180) < SAME


@pytest.mark.slow
def test_procrustes_never_raises_the_mismatch_and_recomputes_it():
    found = answer("procrustes")
    certificate = found.certificate
    assert certificate.mismatch <= certificate.mismatch_composed
    squares = []
    for pair in found.pairs:
        x, y = found.slices[pair.source].aligned, found.slices[pair.target].aligned
        far = (x[pair.plan.rows] - y[pair.plan.cols]).square().sum(1) / found.pitch**2
        squares.append(float(pair.plan.mass @ far))
        assert pair.mismatch == pytest.approx(squares[-1] ** 0.5)
    assert certificate.mismatch**2 == pytest.approx(np.mean(squares))
    # no motion of a single slice lowers the sum
    for k in (1, 2):
        own = found.slices[k].aligned
        for near in (rotation(0.5, own), rotation(-0.5, own)):
            turned = (own - own.mean(0)) @ near.T + own.mean(0)
            other = 0.0
            for pair in found.pairs:
                x = turned if pair.source == k else found.slices[pair.source].aligned
                y = turned if pair.target == k else found.slices[pair.target].aligned
                far = (x[pair.plan.rows] - y[pair.plan.cols]).square().sum(1)
                other += float(pair.plan.mass @ far) / found.pitch**2 / len(found.pairs)
            assert other > certificate.mismatch**2


@pytest.mark.slow
def test_exact_copies_close_every_cycle():
    order = np.random.default_rng(0).permutation(60)
    copies = (BASE, moved(BASE, 137.0, (5.0, 1.0)), reordered(moved(BASE, -70.0), order))
    found = stack(copies, effort="fast")
    (cycle,) = found.cycles
    assert (cycle.first, cycle.middle, cycle.last) == (2, 1, 0)
    assert max(cycle.error_mean, cycle.error_median, cycle.motion_error) < SAME
    assert found.certificate.mismatch < SAME
    assert (found.slices[2].aligned - BASE.coordinates[torch.from_numpy(order)]).abs().max() < SAME
    assert found.slices[1].rotation_degrees == pytest.approx(-137)


@pytest.mark.slow
def test_pixels_and_micrometres_may_be_mixed():
    plain = stack((section(0), section(1)), effort="fast", scale="pitch")
    pixels = stack((section(0), moved(section(1), unit=140.0)), effort="fast")
    assert pixels.pairs[0].value == pytest.approx(float(plain.pairs[0].value), abs=SAME)
    assert (pixels.slices[1].aligned - plain.slices[1].aligned).abs().max() < SAME
    assert "unit_mismatch" in {caution.code for caution in pixels.cautions}
    assert pixels.certificate.mismatch == pytest.approx(plain.certificate.mismatch, abs=SAME)


@pytest.mark.slow
def test_the_origin_moves_when_asked_and_nothing_else_does():
    slices = (section(1), section(0))
    kept, centred = (stack(slices, effort="fast", center_origin=c) for c in (False, True))
    assert (kept.slices[0].aligned - slices[0].coordinates).abs().max() == 0
    assert centred.slices[0].aligned.mean(0).abs().max() < SAME
    away = slices[0].coordinates.mean(0)
    assert (kept.slices[1].aligned - centred.slices[1].aligned - away).abs().max() < SAME
    assert centred.certificate.composition_error < SAME
    assert kept.certificate.mismatch == pytest.approx(centred.certificate.mismatch)


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("policy", ["sequential", "star", "procrustes"])
def test_every_slice_leads_to_the_reference(policy, count):
    for reference in range(count):
        reached = {reference}
        for k, l in chain(count, reference, policy):
            assert l in reached
            reached.add(k)
        assert reached == set(range(count))
        pairs = wanted(count, reference, policy, True)
        assert set(chain(count, reference, policy)) <= set(pairs)
        assert len({frozenset(pair) for pair in pairs}) == len(pairs)
        assert set(chain(count, reference, "star")) <= set(pairs) or policy == "sequential"
        for k in range(count) if count > 2 else ():
            assert sum(k in pair for pair in pairs) >= 2  # each on a triangle


def test_matched_motion_is_procrustes_of_a_diagonal_plan():
    rng = np.random.default_rng(1)
    x, y = torch.from_numpy(rng.normal(size=(2, 9, 2)))
    mass = torch.from_numpy(rng.uniform(0.1, 1, 9))
    for allowed in (False, True):
        T = matched_motion(x, y, mass, allow_reflection=allowed)
        motion = procrustes(mass.diag(), x, y, allow_reflection=allowed)
        assert (placed(T, x) - motion(x)).abs().max() < SAME
    line = torch.arange(4).double()[:, None] * torch.tensor([[1.0, 2.0]]).double()
    T = matched_motion(line, line + 3, torch.ones(4).double(), allow_reflection=True)
    assert (placed(T, line) - line - 3).abs().max() < SAME
    assert torch.linalg.det(T) > 0


@pytest.mark.slow
def test_a_refused_watch_still_gives_matrices():
    found = stack((section(0), section(1), section(2)), watch=lambda k, r: False)
    assert found.stop.status == "interrupted"
    assert found.transforms.isfinite().all()
    assert found.certificate.marginal_error < SAME
    assert found.certificate.frank_wolfe_gap is None


def test_problems_name_the_slice():
    with pytest.raises(IllPosed) as caught:
        stack((BASE, BASE), reference=2)
    assert caught.value.field == "reference"
    with pytest.raises(IllPosed) as caught:
        stack((BASE,))
    assert caught.value.field == "slices"
    poor = changed(BASE, counts=BASE.counts * 1e-9)
    with pytest.raises(IllPosed, match="0 of 60 spots") as caught:
        stack((BASE, poor))
    assert caught.value.field == "slices.1.counts"


def test_a_reference_beyond_the_slices_is_refused_before_the_queue():
    with pytest.raises(ValidationError, match="there are 2 slices"):
        StackRequest.model_validate({**EXAMPLE, "reference": 2})
