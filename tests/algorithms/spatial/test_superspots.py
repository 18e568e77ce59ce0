"""What the hierarchical solver is made of: components, superspots, neighbours, fields, fits."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from algorithms.iterate import unwatched
from algorithms.sparse import SparsePlan
from algorithms.spatial.components import Components, components
from algorithms.spatial.expression import LIBRARY, Counts
from algorithms.spatial.motions import moved
from algorithms.spatial.nearest import averaged, nearest, untied
from algorithms.spatial.procrustes import procrustes, procrustes_of_entries, rotation
from algorithms.spatial.residual_field import Field, judged
from algorithms.spatial.superspots import MEAN_COST, finest, pooled
from algorithms.spatial.trimmed import Stage, settle

# Sums in another order.
ROUNDING = 1e-10
# The spectrum of few spots hardly falls, and four rounds of powers tell little of it apart.
NEARLY = 1e-3


def plane(count, seed=0):
    drawn = torch.Generator().manual_seed(seed)
    return 10 * torch.rand(count, 2, dtype=torch.float64, generator=drawn)


def test_components_are_those_of_the_dense_matrix():
    rng = np.random.default_rng(0)
    X = rng.poisson(np.exp(rng.normal(0, 1, (90, 3)) @ rng.normal(0, 1, (3, 40))))
    X1, X2 = csr_matrix(X[:50], dtype=float), csr_matrix(X[50:], dtype=float)
    rows = torch.arange(50), torch.arange(40)
    parts = components(Counts(X1, X2, *rows, tuple(map(str, range(40)))), 3)
    assert parts.judges is None  # eight genes judge nothing
    logs = np.log1p(LIBRARY * X / X.sum(1, keepdims=True))
    logs = logs - logs.mean(0)
    U, S, _ = np.linalg.svd(logs, full_matrices=False)
    best = (U * S)[:, :3]
    ours = torch.cat([parts.source, parts.target]).numpy()
    # scores are known up to signs, their inner products are not
    size = np.abs(best @ best.T).max()
    assert np.abs(ours @ ours.T - best @ best.T).max() < NEARLY * size


def test_every_fifth_gene_is_held_out():
    rng = np.random.default_rng(1)
    X = csr_matrix(rng.poisson(3.0, (60, 100)), dtype=float)
    judge = np.arange(100) % 5 == 4
    rows = torch.arange(30), torch.arange(30)
    own = components(Counts(X[:30], X[30:], *rows, tuple(map(str, range(100)))), 4)
    assert own.held_out == 20
    # spots that differ in held-out genes alone are alike in the others but for their totals
    changed = X.toarray()
    changed[:, judge] = changed[:, judge][:, ::-1]
    again = csr_matrix(changed)
    other = components(Counts(again[:30], again[30:], *rows, tuple(map(str, range(100)))), 4)
    assert (own.source @ own.target.T - other.source @ other.target.T).abs().max() < ROUNDING


def level(count=400, cells=None):
    z, y = plane(count), plane(count // 2, 1)
    fine = finest(z, y, Components(z * 2, y * 2, None, 0), 0.5)
    return fine if cells is None else pooled(fine, cells)


def test_superspots_keep_mass_and_means():
    fine, coarse = level(), level(cells=60)
    assert 40 <= len(coarse.z) <= 60
    assert float(coarse.a.sum()) == pytest.approx(1)
    assert float(coarse.b.sum()) == pytest.approx(0.5)
    for whole, part, mass, weight in (
        (fine.z, coarse.z, fine.a, coarse.a),
        (fine.target, coarse.target, fine.b, coarse.b),
    ):
        assert torch.allclose(mass @ whole, weight @ part)
    for one in (fine, coarse):
        apart = one.scale * torch.cdist(one.source, one.target).square()
        assert float(apart.mean()) == pytest.approx(MEAN_COST)


@pytest.mark.parametrize("count", [1, 3, 50])
def test_nearest_by_brute_force(count):
    x, z = plane(12), plane(9, 1)
    apart, near = nearest(x, z, count)
    wanted = torch.cdist(z, x).sort(1)
    assert near.tolist() == wanted.indices[:, :count].tolist()
    assert torch.allclose(apart, wanted.values[:, :count])


def test_a_turned_grid_has_the_same_neighbours():
    side = torch.arange(9.0, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side[:6]) + torch.tensor([0.0, 0.0])
    grid = grid[grid.sum(1) < 11]
    turned = grid @ rotation(33.0, grid).T + 5
    own, other = untied(grid), untied(turned)
    assert (own - grid).norm(dim=1).max() < 1e-4  # the bend is far below the pitch of 1
    values = torch.eye(len(grid), dtype=torch.float64)
    assert torch.equal(averaged(own, own, values, 4), averaged(other, other, values, 4))


def test_a_field_averages_and_vanishes_far_away():
    x = plane(200)
    u = torch.tensor([[0.3, -0.2]], dtype=torch.float64).expand(200, 2)
    field = Field(x, u, torch.ones(200, dtype=torch.float64), 1.0)
    # what stays still weighs a hundredth of one spot, of a dozen near
    assert (field(x) - u).abs().max() < 0.01
    assert field(x + 1000).abs().max() == 0


def test_true_places_are_judged_better():
    z = plane(300)
    h = torch.stack([z[:, 0].sin(), z[:, 1].cos()], 1)
    every = torch.ones(300, dtype=torch.bool)
    right, wrong = judged((z, h), (z, h), (z, z + 1.0), every)
    assert right == 0
    assert wrong > 0.1


def test_entries_of_a_plan_turn_like_the_plan():
    z, y = plane(7), plane(5, 1)
    P = torch.rand(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    rows, cols = P.nonzero(as_tuple=True)
    for reflection in (False, True):
        whole = procrustes(P, z, y, allow_reflection=reflection)
        entries = procrustes_of_entries(
            SparsePlan(rows, cols, P[rows, cols]), z, y, allow_reflection=reflection
        )
        assert (whole(z) - entries(z)).abs().max() < ROUNDING
        assert entries.strength == pytest.approx(whole.strength)
        assert entries.singular_ratio == pytest.approx(whole.singular_ratio)


@pytest.mark.parametrize("affine", [False, True])
def test_a_small_turn_is_undone(affine):
    side = torch.linspace(-12, 12, 25, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    y = grid[(grid[:, 0] / 12).square() + (grid[:, 1] / 8).square() <= 1]
    waves = torch.tensor([[0.3, 0.1], [-0.1, 0.35], [0.2, -0.3]], dtype=torch.float64)
    h = (y @ waves.T + torch.tensor([0.1, 0.7, 1.9])).sin()
    z = y @ rotation(4.0, y).T
    fine = finest(z, y, Components(h, h, None, 0), 1.0)
    stage = Stage(0.05, 0.05, affine, rounds=30, sweeps=100)
    fit, stop = settle(fine, stage, torch.eye(3, dtype=torch.float64), unwatched)
    assert stop.status == "converged"
    # a round that asks for 0.01 more is the end
    assert (moved(fit.T, z) - y).norm(dim=1).max() < 0.1
