"""Partial alignment: torn and cropped tissue, the choice of the share, pairs of places."""

import itertools

import numpy as np
import pytest
import torch

from algorithms.errors import IllPosed
from algorithms.quadratic.objective import Pair
from algorithms.quadratic.partial import capped
from algorithms.spaces import Relations
from algorithms.sparse import SparsePlan
from algorithms.spatial.align import align
from algorithms.spatial.cautions import DOUBTFUL, SMALL_OVERLAP, of_overlap
from algorithms.spatial.expression import Expression, common_counts, dissimilarity
from algorithms.spatial.partial import Matching, Stop
from algorithms.spatial.procrustes import rotation
from algorithms.spatial.scores import scores
from algorithms.spatial.voting import voted
from bench.spatial import ABSENT, SECTIONS, section
from tests.algorithms.spatial.tissue import moved, reordered, tissue

# Masses of a vertex are multiples of 2^-52 of the total, summed over a few hundred entries.
ROUNDING = 1e-12
# A plan that is stationary to tol 1e-9 of its objective.
STATIONARY = 1e-8
# Half a turn of 10 degrees, a bin and its blur, at a radius of 5 pitches; wrong votes miss by 10.
VOTED = 4.0
LOOSE = Expression(min_spot_counts=1.0, min_gene_counts=1.0)
SOURCE = tissue(0)
# The left part of the tissue and the right part of a turned copy: two fifths of each are shared.
LEFT = np.flatnonzero(SOURCE.coordinates[:, 0].numpy() <= 1.5)
RIGHT = np.flatnonzero(SOURCE.coordinates[:, 0].numpy() >= -2.5)


def codes(answer):
    return {caution.code for caution in answer.cautions}


def cropped():
    """Return both parts and the number of spots that both have."""
    source = reordered(SOURCE, LEFT)
    target = moved(reordered(SOURCE, RIGHT), 70.0, (3.0, 9.0))
    return source, target, len(set(LEFT) & set(RIGHT))


def on_true_pairs(answer, source, target):
    rows, cols = answer.plan.rows.tolist(), answer.plan.cols.tolist()
    true = [source.ids[i] == target.ids[j] for i, j in zip(rows, cols, strict=True)]
    return float(answer.plan.mass[torch.tensor(true)].sum() / answer.plan.mass.sum())


@pytest.fixture(scope="module")
def copy():
    source, target, shared = cropped()
    share = shared / max(len(LEFT), len(RIGHT))
    return source, target, share, align(source, target, mass=share, effort="fast")


def test_cropped_copy_matches_true_pairs_only(copy):
    source, target, share, answer = copy
    assert on_true_pairs(answer, source, target) == pytest.approx(1, abs=ROUNDING)
    assert answer.mass_moved == pytest.approx(share, abs=ROUNDING)
    assert answer.rotation_degrees == pytest.approx(70, abs=1e-6)
    there = [ident in set(target.ids) for ident in source.ids]
    assert (~answer.unmatched_source).tolist() == there
    assert answer.scores.landmark_error_median < STATIONARY


def test_certificate_of_a_partial_plan(copy):
    source, target, share, answer = copy
    P = answer.plan.dense(len(source.ids), len(target.ids))
    assert float(P.sum()) == pytest.approx(share, abs=ROUNDING)
    assert float(P.sum(1).max()) <= 1 / len(source.ids) + ROUNDING
    assert float(P.sum(0).max()) <= 1 / len(target.ids) + ROUNDING
    certificate = answer.certificate
    assert max(certificate.marginal_error_a, certificate.marginal_error_b) < ROUNDING
    assert certificate.mass_error < ROUNDING
    assert abs(certificate.frank_wolfe_gap) < STATIONARY
    M = dissimilarity(common_counts(source, target, Expression()), Expression())
    D1 = torch.cdist(source.coordinates, source.coordinates)
    D2 = torch.cdist(target.coordinates, target.coordinates)
    squared = (D1[:, :, None, None] - D2[None, None]) ** 2  # (n, n, m, m)
    distortion = torch.einsum("ikjl,ij,kl->", squared, P, P)
    assert float(answer.value) == pytest.approx(
        float(0.9 * (M * P).sum() + 0.1 * distortion), abs=1e-9
    )


@pytest.mark.slow
def test_auto_finds_the_share_of_a_cropped_copy(copy):
    source, target, share, _ = copy
    answer = align(source, target, mass="auto", effort="fast")
    assert share - 0.1 <= answer.mass_moved <= share + 1e-9
    assert on_true_pairs(answer, source, target) == pytest.approx(1, abs=ROUNDING)
    shares = [point.mass for point in answer.curve]
    assert shares == sorted(shares)
    assert answer.curve[-1].mass == 1
    # the price of the next mass jumps at the overlap
    slopes = [p.slope for p in answer.curve if p.slope is not None]
    assert slopes[-1] > slopes[0]
    assert answer.curve[-1].slope is None
    assert answer.curve[-1].edge_score == 0


@pytest.mark.slow
def test_auto_matches_all_of_a_whole_copy():
    order = np.random.default_rng(0).permutation(80)
    answer = align(SOURCE, reordered(moved(SOURCE, 137.0), order), mass="auto", effort="fast")
    assert answer.mass_moved == pytest.approx(1, abs=ROUNDING)
    assert answer.plan.cols.tolist() == np.argsort(order).tolist()
    assert not answer.unmatched_source.any()
    assert len(answer.curve) > 5


@pytest.mark.slow
def test_mass_one_is_balanced():
    target = moved(tissue(0, reading=1), 40.0)
    one, none = (align(SOURCE, target, mass=mass, effort="fast") for mass in (1.0, None))
    assert torch.equal(one.plan.cols, none.plan.cols)
    assert float(one.value) == float(none.value)
    assert one.curve == ()


def test_alpha_zero_is_partial_transport_of_expression():
    source, target = reordered(SOURCE, range(0, 80, 4)), reordered(SOURCE, range(1, 80, 4))
    answer = align(source, target, alpha=0.0, mass=0.5, expression=LOOSE)
    M = dissimilarity(common_counts(source, target, LOOSE), LOOSE)
    n = len(M)
    D = torch.zeros(n, n, dtype=M.dtype)
    w = torch.full((n,), 1 / n, dtype=M.dtype)
    exact = capped(Pair(Relations(D), Relations(D), w, w, M, 0.0), 0.5)(M, None).plan
    best = float(exact.mass @ M[exact.rows, exact.cols])
    assert float(answer.value) == pytest.approx(best, abs=ROUNDING)


def test_pairs_fix_the_motion():
    target = moved(tissue(0, reading=1), 137.0, (40.0, -7.0))
    row = {ident: k for k, ident in enumerate(target.ids)}
    common = [k for k, ident in enumerate(SOURCE.ids) if ident in row][::20]
    pairs = torch.tensor([[k, row[SOURCE.ids[k]]] for k in common], dtype=torch.float64)
    answer = align(SOURCE, target, pairs=pairs, effort="fast")
    assert abs(answer.rotation_degrees - 137) < 3
    assert answer.starts[0].name == "pairs"
    partial = align(SOURCE, target, pairs=pairs, mass=0.9, effort="fast")
    assert abs(partial.rotation_degrees - 137) < 3
    assert partial.mass_moved == pytest.approx(0.9, abs=ROUNDING)


def test_a_plan_is_where_the_descent_begins():
    target = moved(SOURCE, 90.0)
    for mass in (None, 0.8):
        answer = align(SOURCE, target, plan0=torch.eye(80).double(), mass=mass, effort="fast")
        assert answer.starts[0].name == "plan"
        assert torch.equal(answer.plan.rows, answer.plan.cols)
        assert float(answer.value) < ROUNDING
        assert answer.rotation_degrees == pytest.approx(90, abs=1e-6)


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (torch.eye(79).double(), "the files have"),
        (-torch.eye(80).double(), "negative"),
        (torch.zeros(80, 80).double(), "needs mass"),
    ],
)
def test_plans_that_nothing_begins_from(plan, said):
    with pytest.raises(IllPosed, match=said) as caught:
        align(SOURCE, SOURCE, plan0=plan)
    assert caught.value.field == "plan0"


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        ([[0, 0]], "two different places"),
        ([[0, 1], [0, 2]], "two different places"),
        ([[0, 1], [80, 2]], "source rows lie in"),
        ([[0, 1], [1, -1]], "target rows lie in"),
        ([[0, 1], [1, 1.5]], "whole numbers"),
    ],
)
def test_pairs_without_a_motion(pairs, said):
    with pytest.raises(IllPosed, match=said) as caught:
        align(SOURCE, SOURCE, pairs=torch.tensor(pairs, dtype=torch.float64))
    assert caught.value.field == "pairs"


@pytest.mark.parametrize("mirrored", [False, True])
def test_votes_find_the_motion(mirrored):
    target = moved(tissue(0, reading=1), 137.0, (4.0, -7.0), mirrored=mirrored)
    M = dissimilarity(common_counts(SOURCE, target, Expression()), Expression())
    best = voted(M, SOURCE.coordinates, target.coordinates, mirrored=mirrored)[0]
    flip = torch.tensor([1.0, -1.0 if mirrored else 1.0], dtype=torch.float64)
    true = (SOURCE.coordinates * flip) @ rotation(137.0, M).T + torch.tensor([4.0, -7.0])
    apart = (SOURCE.coordinates @ best.R.T + best.t - true).norm(dim=1)
    assert float(apart.median()) < VOTED


def test_interruption_leaves_a_feasible_plan():
    for allowed in (0, 3, 30):
        asked = itertools.count()
        answer = align(SOURCE, SOURCE, mass=0.7, watch=lambda k, r: next(asked) < allowed)  # noqa: B023
        assert answer.stop.status == "interrupted"
        assert answer.mass_moved == pytest.approx(0.7, abs=ROUNDING)
        assert answer.certificate.marginal_error_a < ROUNDING
        assert answer.certificate.frank_wolfe_gap is None


def test_doubt_is_told():
    plan, stop = torch.zeros(2, 2, dtype=torch.float64), Stop("converged", 1, 0.0)
    told = lambda mass, doubt: {
        c.code for c in of_overlap(Matching(plan, 0.0, mass, stop, doubt=doubt))
    }
    assert told(0.9, DOUBTFUL / 2) == set()
    assert told(0.9, DOUBTFUL * 2) == {"overlap_uncertain"}
    assert told(SMALL_OVERLAP / 2, None) == {"small_overlap"}


def test_landmarks_are_scored_on_matched_spots():
    target = reordered(SOURCE, np.roll(np.arange(80), 1))
    each = torch.arange(80)
    plan = SparsePlan(each, each, torch.full((80,), 1 / 80, dtype=torch.float64))
    matched = torch.zeros(80, dtype=torch.bool)
    matched[:10] = True
    assert scores(plan, SOURCE, target).landmark_spots == 80
    assert scores(plan, SOURCE, target, matched).landmark_spots == 10


real = pytest.mark.skipif(not SECTIONS.is_dir(), reason=ABSENT)


@real
@pytest.mark.slow
def test_torn_section():
    answer = align(section("her2_H2"), section("her2_H3"), mass="auto")
    assert 0.80 <= answer.mass_moved <= 0.92
    assert answer.scores.landmark_error_median < 0.5
    assert codes(answer) == set()


@real
@pytest.mark.slow
def test_cropped_real_copy():
    whole = section("stahl_breast_slice1")
    x = whole.coordinates[:, 0]
    left = torch.nonzero(x <= x.quantile(0.7)).ravel().numpy()
    right = torch.nonzero(x >= x.quantile(0.3)).ravel().numpy()
    source, target = reordered(whole, right), moved(reordered(whole, left), 50.0, (4.0, 4.0))
    share = len(set(left) & set(right)) / max(len(left), len(right))
    answer = align(source, target, mass=share, effort="fast")
    assert on_true_pairs(answer, source, target) == pytest.approx(1, abs=1e-9)
