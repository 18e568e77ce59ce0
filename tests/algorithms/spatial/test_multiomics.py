"""Two modalities of the same cells: exact copies, published scores, a peer, every refusal."""

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithms.errors import IllPosed
from algorithms.spatial.multiomics import multiomics
from algorithms.spatial.neighbours import geodesics, normalised, proximity
from tests.algorithms.spatial.cells import cells

# Sums of a few hundred float64 products.
ROUNDING = 1e-10
# Two descents to one plan, each stopped when a step moves 1e-8 of the mass.
SAME_PLAN = 1e-5
SHARP = {
    "k": 4,
    "epsilon": 4e-3,
    "tol": 1e-4,
    "metric": "euclidean",
    "graph": "distance",
    "normalise": "none",
}


def ask(*args, seed=0, **options):
    return multiomics(*args, generator=torch.Generator().manual_seed(seed), **options)


def curve(n=24, seed=0):
    """Draw points along a bent line, denser towards one end: its graph has no symmetry."""
    t = torch.linspace(0, 1, n, dtype=torch.float64) ** 1.7
    return torch.stack([t, 0.3 * t**2], 1)


def codes(answer):
    return {caution.code for caution in answer.cautions}


def paths_by_floyd(z, k):
    """Measure paths of a distance graph by the definition."""
    n = len(z)
    apart = np.linalg.norm(z[:, None] - z[None], axis=2)
    D = np.full((n, n), np.inf)
    for i in range(n):
        others = sorted((apart[i, j], j) for j in range(n) if j != i)
        for length, j in others[: k - 1]:
            D[i, j] = D[j, i] = length
        D[i, i] = 0
    for via in range(n):
        D = np.minimum(D, D[:, [via]] + D[[via]])
    D[~np.isfinite(D)] = D[np.isfinite(D)].max()
    return D / D.max()


@pytest.mark.parametrize("k", [2, 4])
def test_paths_are_those_of_the_definition(k):
    z = torch.from_numpy(np.random.default_rng(0).normal(size=(20, 3)))
    found = geodesics("x", proximity(z, "euclidean"), k, "distance")
    np.testing.assert_allclose(found.D, paths_by_floyd(z.numpy(), k), atol=ROUNDING)
    assert found.tied == 0


def test_rows_and_columns_are_normalised():
    x = torch.tensor([[3.0, 4.0, 1.0], [0.0, 0.0, 1.0], [1.0, 0.0, 1.0]], dtype=torch.float64)
    assert (normalised("x", x, "l2").norm(dim=1) - 1).abs().max() < ROUNDING
    z = normalised("x", x, "zscore")
    assert (z[:, :2].mean(0)).abs().max() < ROUNDING
    assert (z[:, :2].square().mean(0) - 1).abs().max() < ROUNDING
    assert float(z[:, 2].abs().max()) == 0


@pytest.mark.slow
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 1000), power=st.integers(-400, 400))
def test_a_moved_copy_is_matched_cell_by_cell(seed, power):
    rng = np.random.default_rng(seed)
    order = torch.from_numpy(rng.permutation(24))
    turn = torch.from_numpy(np.linalg.qr(rng.normal(size=(3, 3)))[0])
    x = curve()
    wide = torch.cat([x, torch.zeros(24, 1, dtype=x.dtype)], 1) @ turn
    y = 2.0**power * wide[order]
    answer = ask(x, y, starts=2, seed=seed, **SHARP)
    truth = torch.argsort(order)
    assert float(answer.value) < 2e-3  # entropy spreads mass over near neighbours
    reached = answer.plan.argmax(1)
    assert (curve()[order[reached]] - x).norm(dim=1).max() < 0.1
    assert (reached == truth).double().mean() > 0.4
    assert answer.stop.status == "converged"


@pytest.mark.slow
def test_scores_of_a_copy():
    x = curve()
    labels = (torch.arange(24) // 8).double()
    answer = ask(x, x, labels, labels, paired=True, starts=2, **SHARP)
    assert answer.scores.foscttm < 0.1
    assert answer.scores.label_transfer_accuracy > 0.9
    assert answer.scores.plan_label_accuracy > 0.8
    assert ask(x, x, **SHARP).scores.foscttm is None


@pytest.mark.slow
def test_a_symmetric_cloud_has_two_modes():
    t = torch.linspace(-1, 1, 21, dtype=torch.float64)[:, None]
    answer = ask(t, t, paired=True, starts=4, **SHARP)
    assert len(answer.matches) >= 2
    first, second = answer.matches[:2]
    assert abs(first.value - second.value) < 1e-2 * first.value
    assert second.mass_elsewhere > 0.5
    assert {round(m.foscttm, 2) for m in answer.matches[:2]} >= {0.0}
    assert "match_not_unique" in codes(answer)


def test_agrees_with_pot_on_the_same_graphs():
    rng = np.random.default_rng(3)
    x, y = (torch.from_numpy(rng.normal(size=(n, 3))) for n in (30, 25))
    options = SHARP | {"epsilon": 0.02, "tol": 1e-8}
    answer = ask(x, y, **options)
    # points are brought to size one before; graphs do not depend on the unit
    Dx, Dy = (geodesics("x", proximity(z, "euclidean"), 4, "distance").D.numpy() for z in (x, y))
    a, b = np.full(30, 1 / 30), np.full(25, 1 / 25)
    peer = ot.gromov.entropic_gromov_wasserstein(
        Dx, Dy, a, b, "square_loss", epsilon=0.02, tol=1e-12, max_iter=5000
    )
    assert np.abs(answer.plan.numpy() - peer).sum() < SAME_PLAN
    assert answer.certificate.fixed_point_residual < SAME_PLAN


def test_the_value_is_the_fourfold_sum():
    x, y = curve(7), curve(6) ** 2
    answer = ask(x, y, **SHARP | {"k": 3, "epsilon": 0.05})
    Dx, Dy = (geodesics("x", proximity(z, "euclidean"), 3, "distance").D for z in (x, y))
    apart = (Dx[:, :, None, None] - Dy[None, None]) ** 2
    value = torch.einsum("ikjl,ij,kl->", apart, answer.plan, answer.plan)
    assert abs(float(value) - answer.value) < ROUNDING
    assert abs(answer.certificate.value_difference) < ROUNDING
    assert answer.certificate.marginal_error_a < ROUNDING
    assert answer.certificate.marginal_error_b < ROUNDING


def test_partial_leaves_out_what_has_no_partner():
    x = curve(40)
    y = x[:28]
    answer = ask(x, y, mass=0.6, **{k: v for k, v in SHARP.items() if k != "epsilon"})
    assert answer.epsilon is None
    assert abs(answer.mass - 0.6) < ROUNDING
    assert answer.certificate.marginal_error_a < ROUNDING
    assert answer.certificate.fixed_point_residual < 1e-4
    assert (answer.matched <= 1 + ROUNDING).all()
    assert (answer.matched == 0).any()
    assert answer.images.isfinite().all()


def test_strong_rho_is_balanced_and_weak_rho_is_not():
    x, y = curve(20), curve(16) ** 2
    options = SHARP | {"epsilon": 0.02}
    balanced, strong = ask(x, y, **options), ask(x, y, rho=1e4, **options)
    # unbalanced entropy is of the squared plan: twice the strength at mass one
    twice = ask(x, y, **options | {"epsilon": 0.04})
    assert (strong.plan - twice.plan).abs().sum() < 1e-2
    assert abs(strong.mass - 1) < 1e-3 < abs(ask(x, y, rho=0.01, **options).mass - 1)
    assert balanced.mass == pytest.approx(1)


@pytest.mark.slow
def test_tuning_keeps_the_lowest_value():
    x, y = curve(30), curve(30) ** 2
    answer = ask(x, y, metric="euclidean")
    values = [trial.value for trial in answer.trials]
    best = answer.trials[int(np.argmin(values))]
    assert (answer.k, answer.epsilon) == (best.k, best.epsilon)
    assert answer.value <= best.value * (1 + 1e-2)
    assert len({trial.k for trial in answer.trials}) > 1
    assert len({trial.epsilon for trial in answer.trials}) > 1


def test_pieces_and_ties_are_told():
    two = torch.cat([curve(10), curve(10) + 50])
    assert "disconnected_graph" in codes(ask(two, two, **SHARP | {"epsilon": 0.02}))
    grid = torch.tensor([[i, j] for i in range(4) for j in range(4)]).double()
    assert "tied_neighbours" in codes(ask(grid, curve(16), **SHARP | {"epsilon": 0.02}))


def test_duplicates_zero_rows_and_float32_are_answered():
    x = curve(12)
    doubled = torch.cat([x, x[:3], torch.zeros(1, 2, dtype=x.dtype)])
    assert ask(doubled, x, k=4, epsilon=0.01).plan.isfinite().all()
    small = ask(x.float(), x.float(), **SHARP | {"epsilon": 0.01})
    assert small.plan.dtype == torch.float32
    wide = ask(x, x, **SHARP | {"epsilon": 0.01})
    assert (small.plan - wide.plan).abs().sum() < 1e-3


@pytest.mark.parametrize("allowed", [0, 1, 7, 30])
def test_interruption_returns_a_plan(allowed):
    asked = 0

    def watch(iteration, residual):
        nonlocal asked
        asked += 1
        return asked <= allowed

    answer = ask(curve(30), curve(30) ** 2, tol=1e-12, watch=watch)
    assert answer.stop.status == "interrupted"
    assert answer.certificate.marginal_error_a < ROUNDING
    assert "not_converged" in codes(answer)


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("x", {"x": curve(2)}),
        ("y", {"y": torch.full((5, 2), float("nan"), dtype=torch.float64)}),
        ("y", {"y": torch.ones(5, 2, dtype=torch.float64)}),
        ("k", {"k": 9}),
        ("k", {"k": 1}),
        ("paired", {"paired": True}),
        ("rho", {"mass": 0.5, "rho": 1.0}),
        ("epsilon", {"mass": 0.5}),
        ("labels_x", {"labels_x": torch.full((8,), 0.5, dtype=torch.float64)}),
    ],
)
def test_impossible_questions_name_the_field(field, change):
    asked = {"x": curve(8), "y": curve(5), **SHARP} | change
    with pytest.raises(IllPosed) as caught:
        ask(asked.pop("x"), asked.pop("y"), **asked)
    assert caught.value.field == field


def test_scgem_reaches_the_published_score():
    x, y, labels = cells("scgem", "expression", "methylation")
    answer = ask(x, y, labels, labels, paired=True, k=35, epsilon=5e-3)
    assert answer.stop.status == "converged"
    assert answer.scores.foscttm <= 0.192
    print(f"scGEM: {answer.scores}")


@pytest.mark.slow
def test_snareseq_reaches_the_published_score():
    x, y, labels = cells("snareseq", "atac", "rna")
    answer = ask(x, y, labels, labels, paired=True, k=110, epsilon=1e-3, tol=1e-3)
    assert answer.scores.foscttm <= 0.150
    print(f"SNARE-seq: {answer.scores}")
