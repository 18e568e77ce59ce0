"""Warps of made-up slices: known maps recovered, folds counted, rows without mass interpolated."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithms.errors import IllPosed
from algorithms.sparse import SparsePlan
from algorithms.spatial.bending import hull_area, jacobian_on_grid, spline_field
from algorithms.spatial.motions import moved as placed
from algorithms.spatial.warp import warp
from tests.algorithms.spatial.tissue import changed, moved, reordered, tissue

# A spline of 60 points solves a system of condition 1e6.
SAME = 1e-8
BASE = tissue(4, spots=60, genes=40)
METHODS = ("thin_plate", "gaussian", "barycentric")
every_method = pytest.mark.parametrize("method", METHODS)


def identity(n=60, order=None):
    at = torch.arange(n)
    there = at if order is None else torch.from_numpy(np.argsort(order))
    return SparsePlan(at, there, torch.full((n,), 1 / n, dtype=torch.float64))


def codes(answer):
    return {caution.code for caution in answer.cautions}


@every_method
def test_the_identity_plan_is_the_identity(method):
    answer = warp(BASE, BASE, plan=identity(), method=method)
    assert (answer.warped - BASE.coordinates).abs().max() < SAME
    assert answer.hull_ratio == pytest.approx(1)
    assert answer.certificate.folds == 0
    assert answer.certificate.lowest_jacobian == pytest.approx(1)
    assert not answer.cautions


@every_method
@pytest.mark.parametrize("mirrored", [False, True])
def test_motions_leave_nothing_to_bend(method, mirrored):
    order = np.random.default_rng(2).permutation(60)
    other = reordered(moved(BASE, 137.0, (31.0, 8.0), mirrored=mirrored), order)
    answer = warp(BASE, other, plan=identity(order=order), method=method,
                  allow_reflection=mirrored)  # fmt: skip
    goal = other.coordinates[torch.from_numpy(np.argsort(order))]
    assert (answer.warped - goal).abs().max() < SAME
    assert (answer.aligned - goal).abs().max() < SAME
    assert (placed(answer.transform, BASE.coordinates) - answer.aligned).abs().max() < SAME
    assert float(torch.linalg.det(answer.transform)) == pytest.approx(-1 if mirrored else 1)


def bent_copy(strength):
    z = BASE.coordinates
    return changed(BASE, coordinates=z + strength * torch.sin(z.flip(1) / 4))


def test_weak_smoothing_passes_through_strong_smoothing_is_affine():
    other = bent_copy(0.8)
    near = warp(BASE, other, plan=identity(), lam=1e-9)
    assert (near.warped - other.coordinates).abs().max() < 1e-3
    far = warp(BASE, other, plan=identity(), lam=1e9)
    Q = torch.cat([torch.ones(60, 1).double(), BASE.coordinates], 1)
    affine = Q @ torch.linalg.lstsq(Q, other.coordinates).solution
    assert (far.warped - affine).abs().max() < 1e-3
    gaussian = warp(BASE, other, plan=identity(), method="gaussian", lam=1e9)
    assert (gaussian.warped - gaussian.aligned).abs().max() < 1e-3
    errors = [
        warp(BASE, other, plan=identity(), lam=lam).certificate.warp_error
        for lam in (1e-4, 1e-2, 1.0, 100.0)
    ]
    assert errors == sorted(errors)
    assert near.certificate.warp_error <= errors[0] < far.certificate.rigid_error


@every_method
def test_a_fold_is_counted_and_told(method):
    # the left half is laid over the right one
    z = BASE.coordinates
    folded = torch.stack([z[:, 0].abs(), z[:, 1]], 1)
    answer = warp(BASE, changed(BASE, coordinates=folded), plan=identity(), method=method,
                  lam=1e-3, bandwidth=1.0)  # fmt: skip
    assert answer.certificate.folds > 0
    assert answer.certificate.lowest_jacobian < 0
    assert "folds" in codes(answer)


def test_areas_are_looked_at_where_gradients_are_off():
    with torch.no_grad():
        assert warp(BASE, BASE, plan=identity()).certificate.places > 60


def test_the_jacobian_of_a_known_field():
    x = torch.cartesian_prod(torch.arange(6).double(), torch.arange(6).double())
    stretched = jacobian_on_grid(lambda z: z * torch.tensor([1.0, 0.5]), x)
    assert stretched.lowest == pytest.approx(3.0)
    assert stretched.folds == 0
    turned = jacobian_on_grid(lambda z: z * torch.tensor([-3.0, 0.0]), x)
    assert turned.folds == turned.places > 36
    assert turned.lowest == pytest.approx(-2.0)


def test_a_diffuse_plan_shrinks_and_says_so():
    D = torch.cdist(BASE.coordinates, BASE.coordinates).square()
    P = torch.exp(-D / 20)
    for _ in range(200):
        P = P / P.sum(1, keepdim=True)
        P = P / P.sum(0, keepdim=True)
    rows, cols = P.nonzero(as_tuple=True)
    plan = SparsePlan(rows, cols, P[rows, cols] / 60)
    answer = warp(BASE, BASE, plan=plan, method="barycentric")
    assert answer.hull_ratio == pytest.approx(answer.barycentric_hull_ratio)
    assert answer.hull_ratio < 0.9
    assert "shrunk_hull" in codes(answer)
    assert (answer.aligned - BASE.coordinates).abs().max() < 1e-6


@every_method
def test_rows_without_mass_are_interpolated(method):
    kept = torch.tensor([k for k in range(60) if k not in (5, 20, 33)])
    plan = SparsePlan(kept, kept, torch.full((57,), 1 / 57, dtype=torch.float64))
    answer = warp(BASE, bent_copy(0.3), plan=plan, method=method)
    assert answer.interpolated == 3
    assert answer.mass[[5, 20, 33]].tolist() == [0, 0, 0]
    assert "rows_without_mass" in codes(answer)
    whole = warp(BASE, bent_copy(0.3), plan=identity(), method=method)
    assert (answer.warped - whole.warped).norm(dim=1).max() < 0.5
    assert answer.ids == BASE.ids


@every_method
def test_pixels_and_masses_of_another_unit_do_not_count(method):
    other = bent_copy(0.5)
    plain = warp(BASE, other, plan=identity(), method=method, scale="pitch")
    plan = SparsePlan(identity().rows, identity().cols, 2**20 * identity().mass)
    pixels = warp(moved(BASE, unit=128.0), moved(other, 30.0, unit=2.0), plan=plan,
                  method=method, scale="pitch")  # fmt: skip
    back = moved(changed(other, coordinates=plain.warped), 30.0, unit=2.0).coordinates
    assert (pixels.warped - back).abs().max() < SAME
    assert pixels.certificate.warp_error == pytest.approx(plain.certificate.warp_error)


@every_method
def test_spots_on_a_line_and_very_few_spots(method):
    line = changed(
        reordered(BASE, range(5)),
        coordinates=torch.arange(5).double()[:, None] * torch.tensor([[1.0, 2.0]]).double(),
    )
    answer = warp(line, line, plan=identity(5), method=method)
    assert (answer.warped - line.coordinates).abs().max() < SAME
    assert answer.hull_ratio is None
    one = SparsePlan(torch.tensor([1]), torch.tensor([2]), torch.ones(1).double())
    single = warp(line, line, plan=one, method=method)
    assert single.warped.isfinite().all()
    assert (single.warped[1] - line.coordinates[2]).abs().max() < SAME
    assert single.interpolated == 4


@given(st.integers(0, 1000))
@settings(max_examples=5, deadline=None)
def test_the_spline_is_the_lowest_of_its_objective(seed):
    rng = np.random.default_rng(seed)
    x, u = (torch.from_numpy(rng.normal(size=(9, 2)) * 2) for _ in range(2))
    w = torch.from_numpy(rng.uniform(0.2, 2, 9))
    field, error = spline_field(x, u, w, 0.3, 1.0)
    assert error < SAME
    # stationarity in weights: 8 pi lam s = w (u - v), and the s have no moments
    s = w[:, None] * (u - field(x)) / (8 * torch.pi * 0.3)
    assert s.sum(0).abs().max() < SAME
    assert (x.T @ s).abs().max() < SAME


def test_hulls_by_hand():
    square = torch.tensor([[0, 0], [2, 0], [2, 2], [0, 2], [1, 1], [1, 0]]).double()
    assert hull_area(square) == 4
    assert hull_area(square[:2]) == 0
    assert hull_area(torch.arange(5).double()[:, None].repeat(1, 2)) == 0


@pytest.mark.slow
def test_without_a_plan_the_slices_are_aligned():
    other = moved(tissue(4, spots=60, genes=40, reading=1), 137.0, (40.0, -7.0))
    answer = warp(BASE, other)
    truth = moved(BASE, 137.0, (40.0, -7.0)).coordinates
    assert (answer.warped - truth).norm(dim=1).median() < 1
    assert answer.stop.status == "converged"
    assert answer.stop.iterations > 0
    assert answer.certificate.folds == 0


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("plan.rows", {"rows": torch.tensor([0, 60])}),
        ("plan.cols", {"cols": torch.tensor([-1, 3])}),
        ("plan.mass", {"mass": torch.zeros(2).double()}),
        ("plan.mass", {"mass": torch.tensor([1.0, float("nan")]).double()}),
        ("plan.mass", {"mass": torch.tensor([1.0, -0.5]).double()}),
    ],
)
def test_plans_between_other_slices_are_refused(field, change):
    parts = {"rows": torch.tensor([0, 1]), "cols": torch.tensor([0, 1]), "mass": torch.ones(2)}
    with pytest.raises(IllPosed) as caught:
        warp(BASE, BASE, plan=SparsePlan(**(parts | change)))
    assert caught.value.field == field
