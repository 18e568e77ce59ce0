"""Consensus slices of made-up sections: one function that falls, truth recovered from copies."""

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.sparse import csr_matrix

from algorithms.errors import IllPosed
from algorithms.spatial.center import center
from algorithms.spatial.expression import Expression
from algorithms.spatial.motions import moved as placed
from algorithms.spatial.programmes import divergence, first_factors, improved
from schemas.spatial.center import EXAMPLE, CenterRequest
from tests.algorithms.spatial.tissue import changed, moved, reordered, tissue

# Sums of some thousand terms of size 1.
SAME = 1e-9
# Share of the mass that must join copies of one spot.
RECOVERED = 0.95
GENES, DEPTH = 60, 800.0
BASE = tissue(5, spots=60, genes=GENES, depth=1e6)


def drawn(seed=0):
    return torch.Generator().manual_seed(seed)


def noisy(seed, **how):
    """Copy the tissue, counting so few molecules that single spots are uncertain."""
    p = BASE.counts.toarray() / BASE.counts.toarray().sum(1, keepdims=True)
    counts = np.random.default_rng(seed).poisson(DEPTH * p).astype(float)
    return moved(changed(BASE, counts=csr_matrix(counts)), **how)


COPIES = (noisy(1), noisy(2, degrees=80.0, shift=(5.0, 9.0)), noisy(3, degrees=-30.0))


@cache
def answer(seed=0):
    return center(COPIES, rank=6, tol=1e-4, generator=drawn(seed))


@pytest.mark.slow
def test_truth_is_recovered_better_than_by_any_copy():
    found = answer()
    truth = BASE.counts.toarray() / BASE.counts.toarray().sum(1, keepdims=True)
    fit = lambda p: np.corrcoef(np.log(p + 1e-4).ravel(), np.log(truth + 1e-4).ravel())[0, 1]
    expression = (found.W @ found.H).numpy()
    for copy in COPIES:
        counts = copy.counts.toarray()
        assert fit(expression) > fit(counts / counts.sum(1, keepdims=True))
    for part in found.parts:
        right = part.plan.rows == part.plan.cols
        assert float(part.plan.mass[right].sum()) > RECOVERED
    assert found.ids == COPIES[found.template].ids


@pytest.mark.slow
def test_the_objective_falls_in_every_half_step():
    found = answer()
    assert found.stop.status == "converged"
    assert float((found.trace[1:] - found.trace[:-1]).max()) <= SAME
    certificate = found.certificate
    assert certificate.largest_rise <= SAME
    assert abs(certificate.value_difference) < SAME
    assert certificate.marginal_error < SAME
    assert certificate.row_sum_error < SAME
    assert certificate.frank_wolfe_gap >= 0


@pytest.mark.slow
def test_the_value_is_the_formula_in_numpy():
    found = answer()
    template = COPIES[found.template].coordinates.numpy()
    D1 = np.linalg.norm(template[:, None] - template[None], axis=2)
    C = (found.W @ found.H).numpy()
    total = 0.0
    for part, copy in zip(found.parts, COPIES, strict=True):
        P = part.plan.dense(60, 60).numpy()
        x = copy.counts.toarray() + 0.01
        x = x / x.sum(1, keepdims=True)
        M = (x * np.log(x)).sum(1)[None] - np.log(C) @ x.T
        z = copy.coordinates.numpy()
        D2 = np.linalg.norm(z[:, None] - z[None], axis=2)
        squares = (D1[:, :, None, None] - D2[None, None]) ** 2
        quadratic = np.einsum("ikjl,ij,kl->", squares, P, P)
        assert float(part.distortion) == pytest.approx(quadratic, abs=SAME)
        total += (0.9 * (M * P).sum() + 0.1 * quadratic) / 3
    assert float(found.value) == pytest.approx(total, abs=SAME)


@pytest.mark.slow
def test_the_seed_decides_and_nothing_else_does():
    again = center(COPIES, rank=6, tol=1e-4, generator=drawn())
    assert torch.equal(again.W, answer().W)
    assert torch.equal(again.H, answer().H)
    assert not torch.equal(answer(1).W, answer().W)


@pytest.mark.slow
def test_each_template_is_tried_and_the_lowest_kept():
    found = answer()
    assert sorted(t.template for t in found.tried) == [0, 1, 2]
    values = [t.value for t in found.tried]
    assert values == sorted(values)
    assert found.template == found.tried[0].template
    alone = center(COPIES, rank=6, tol=1e-4, template=found.template, generator=drawn())
    assert float(alone.value) == float(found.value)
    assert len(alone.tried) == 1


@pytest.mark.slow
def test_motions_bring_every_slice_onto_the_centre():
    found = answer()
    for part, copy in zip(found.parts, COPIES, strict=True):
        far = placed(part.transform, copy.coordinates) - found.coordinates
        assert far.norm(dim=1).max() < 0.5


@pytest.mark.slow
def test_pixels_do_not_count():
    plain = center(COPIES[:2], rank=4, scale="pitch", generator=drawn())
    pixels = (COPIES[0], moved(COPIES[1], unit=140.0))
    found = center(pixels, rank=4, generator=drawn())
    assert float(found.value) == pytest.approx(float(plain.value), abs=SAME)
    assert found.template == plain.template


@pytest.mark.slow
def test_dropped_spots_and_private_genes_take_no_part():
    counts = COPIES[0].counts.tolil()
    counts[[3, 17]] = 0
    poor = changed(COPIES[0], counts=csr_matrix(counts))
    other = changed(COPIES[1], genes=("Own", *COPIES[1].genes[1:]))
    found = center((poor, other), rank=3, template=0, generator=drawn())
    assert 3 not in found.kept
    assert len(found.ids) == 58
    assert found.genes == COPIES[0].genes[1:]
    assert not set(found.parts[0].plan.cols.tolist()) & {3, 17}


@pytest.mark.slow
def test_one_slice_is_its_own_centre():
    found = center((COPIES[0],), rank=3, generator=drawn())
    assert found.parts[0].transform == pytest.approx(torch.eye(3).double(), abs=SAME)
    assert float(found.parts[0].distortion) < SAME


@pytest.mark.slow
def test_a_weight_of_zero_leaves_a_slice_out_of_the_factors():
    pair = center(COPIES[:2], weights=(1.0, 0.0), rank=4, template=0, generator=drawn())
    single = center(COPIES[:1], rank=4, template=0, generator=drawn())
    assert float(pair.value) == pytest.approx(float(single.value), abs=1e-6)


@given(st.integers(0, 100), st.integers(1, 4))
@settings(max_examples=5, deadline=None)
def test_updates_never_raise_the_divergence(seed, rank):
    B = torch.rand(9, 12, generator=drawn(seed), dtype=torch.float64) ** 4 + 1e-6
    B = B / B.sum(1, keepdim=True)
    W, H = first_factors(B, rank, drawn(seed))
    for _ in range(20):
        before = divergence(B, W, H)
        W, H = improved(B, W, H, 1)
        assert divergence(B, W, H) <= before + SAME
        assert (W.sum(1) - 1).abs().max() < SAME


def test_factors_of_their_own_rank_are_found():
    W = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [0.25, 0.75]], dtype=torch.float64)
    H = torch.tensor([[0.6, 0.4, 0.0], [0.0, 0.3, 0.7]], dtype=torch.float64)
    found = improved(W @ H, *first_factors(W @ H, 2, drawn()), 5000)
    assert divergence(W @ H, *found) < 1e-6


@pytest.mark.slow
def test_interruption_keeps_a_feasible_answer():
    asked = 0

    def watch(iteration, residual):
        nonlocal asked
        asked += 1
        return asked < 6

    found = center(COPIES, rank=3, generator=drawn(), watch=watch)
    assert found.stop.status == "interrupted"
    assert {caution.code for caution in found.cautions} == {"interrupted"}
    assert found.certificate.marginal_error < SAME


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("rank", {"rank": 61}),
        ("template", {"template": 3}),
        ("weights", {"weights": (1.0,)}),
        ("weights", {"weights": (0.0, 0.0, 0.0)}),
        ("expression.dissimilarity", {"expression": Expression("pca")}),
    ],
)
@pytest.mark.slow
def test_problems_name_their_field(field, change):
    with pytest.raises(IllPosed) as caught:
        center(COPIES, **change, generator=drawn())
    assert caught.value.field == field


def test_a_slice_without_counts_is_named():
    poor = changed(COPIES[1], counts=COPIES[1].counts * 1e-9)
    with pytest.raises(IllPosed) as caught:
        center((COPIES[0], poor), rank=3, generator=drawn())
    assert caught.value.field == "slices.1.counts"
    few = reordered(COPIES[1], [0, 1])
    with pytest.raises(IllPosed) as caught:
        center((COPIES[0], few), rank=2, generator=drawn())
    assert caught.value.field == "slices.1.coordinates"


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("template", {"template": 2}),
        ("weights", {"weights": [1.0]}),
        ("weights", {"weights": [0.0, 0.0]}),
        ("dissimilarity", {"expression": {"dissimilarity": "pca"}}),
    ],
)
def test_what_can_be_known_is_refused_before_the_queue(field, change):
    with pytest.raises(ValidationError) as caught:
        CenterRequest.model_validate({**EXAMPLE, **change})
    assert field in str(caught.value.errors()[0]["ctx"]["field"])
