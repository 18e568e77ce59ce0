"""Cells placed by markers and neighbourhoods: sums spelt out, brute force, a peer, real cells."""

from itertools import permutations

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from algorithms.errors import IllPosed
from algorithms.spatial.cells import Cells
from algorithms.spatial.map_cells import Graphs, map_cells
from algorithms.spatial.markers import Markers, features, marker_cost, marker_panel
from algorithms.spatial.neighbours import geodesics, proximity
from algorithms.spatial.slice import Slice
from bench.map_cells import ASKED, drawn_markers, embryo
from bench.spatial import ABSENT, SECTIONS
from tests.algorithms.spatial.test_multiomics import paths_by_floyd

# Sums of a few hundred float64 products.
ROUNDING = 1e-11
# Two descents to one plan, each stopped when a step moves 1e-8 of the mass.
SAME_PLAN = 1e-5
# Stationary plans that begin at the product, by two line searches.
SAME_VALUE = 1e-6
TIGHT = {"tol": 1e-8, "epsilon": 0.02}
EUCLIDEAN = Graphs(k=4, mode="distance", metric="euclidean")


def tissue(seed=0, n=30, m=24, genes=7):
    """Draw cells and locations of one smooth tissue: genes are waves over the places."""
    rng = np.random.default_rng(seed)
    places, z = (rng.random((size, 2)) * [3.0, 1.0] for size in (n, m))
    waves, phases = rng.normal(0, 1.2, (genes, 2)), rng.uniform(0, 6, genes)
    X, Y = (1.5 + np.cos(w @ waves.T + phases) for w in (places, z))
    names = tuple(f"g{k}" for k in range(genes))
    return (
        Cells(csr_matrix(X), names, tuple(f"cell{i}" for i in range(n))),
        Slice(csr_matrix(Y), torch.from_numpy(z), names, tuple(f"spot{j}" for j in range(m))),
    )


def changed(side, **fields):
    return type(side)(**{**vars(side), **fields})


def values(side):
    return torch.from_numpy(side.counts.toarray())


def codes(answer):
    return {caution.code for caution in answer.cautions}


def by_hand(X, Y, kept):
    """Standardise markers on either side; squared distances over their largest."""
    x, y = ((Z[:, kept] - Z[:, kept].mean(0)) / Z[:, kept].std(0) for Z in (X.numpy(), Y.numpy()))
    M = ((x[:, None] - y[None]) ** 2).sum(2)
    return M / M.max()


def test_the_objective_is_its_definition():
    cells, atlas = tissue(n=9, m=7)
    kept = [0, 2, 5]
    markers = Markers(tuple(cells.genes[k] for k in kept))
    answer = map_cells(cells, atlas, markers, graphs=EUCLIDEAN, alpha=0.3, epsilon=0.05)
    M = by_hand(values(cells), values(atlas), kept)
    Dx, Dy = paths_by_floyd(values(cells).numpy(), 4), paths_by_floyd(atlas.coordinates.numpy(), 4)
    P = answer.plan.numpy()
    apart = (Dx[:, :, None, None] - Dy[None, None]) ** 2
    quadratic = np.einsum("ikjl,ij,kl->", apart, P, P)
    assert answer.distortion == pytest.approx(quadratic, rel=ROUNDING)
    assert answer.transport_cost == pytest.approx((M * P).sum(), rel=ROUNDING)
    assert answer.value == pytest.approx(0.7 * (M * P).sum() + 0.3 * quadratic, rel=ROUNDING)
    certificate = answer.certificate
    assert abs(certificate.value_difference) < ROUNDING
    assert max(certificate.marginal_error_a, certificate.marginal_error_b) < ROUNDING
    assert certificate.fixed_point_residual < 1e-4


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 1000))
def test_what_is_carried_is_the_definition(seed):
    cells, atlas = tissue(seed, n=12, m=10)
    answer = map_cells(cells, atlas, Markers(("g1", "g3")), genes=("g6", "g1", "g0"))
    P, X, z = answer.plan, values(cells), atlas.coordinates
    assert answer.genes == ("g6", "g1", "g0")
    assert answer.marker_genes == ("g1", "g3")
    assert answer.cell_ids == cells.ids
    assert answer.ids == atlas.ids
    for j in range(10):
        carried = sum(P[i, j] * 10 * X[i, [6, 1, 0]] for i in range(12))
        assert (answer.expression[j] - carried).abs().max() < ROUNDING
    for i in range(12):
        place = sum(P[i, j] * 12 * z[j] for j in range(10))
        around = sum(P[i, j] * 12 * (z[j] - place).square().sum() for j in range(10))
        assert (answer.places[i] - place).abs().max() < ROUNDING
        assert answer.spread[i] == pytest.approx(float(around) ** 0.5, abs=1e-6)
        assert answer.likeliest[i] == P[i].argmax()
    assert answer.pearson[1] is None  # a marker
    told = [np.corrcoef(answer.expression[:, at], values(atlas)[:, k])[0, 1]
            for at, k in ((0, 6), (2, 0))]  # fmt: skip
    assert [answer.pearson[0], answer.pearson[2]] == pytest.approx(told, abs=ROUNDING)
    held = answer.held_out
    assert held.genes == 2
    assert held.mean == pytest.approx(np.mean(told), abs=ROUNDING)
    assert held.median == pytest.approx(np.median(told), abs=ROUNDING)
    assert held.lower_quartile == pytest.approx(np.quantile(told, 0.25), abs=ROUNDING)
    assert answer.certificate.mean_error < ROUNDING


def test_the_lowest_of_all_permutations_is_found():
    t = np.array([0.0, 0.1, 0.25, 0.5, 0.7, 1.0])
    z = np.stack([t, 0.2 * t**2], 1)
    order = np.array([3, 0, 5, 1, 4, 2])
    X = np.stack([t, np.cos(3 * t)], 1)[order]
    Y = np.stack([t + np.array([0.06, -0.06, 0.1, -0.1, 0.05, 0.0]), 0 * t], 1)
    names = ("seen", "hidden")
    cells = Cells(csr_matrix(X), names, tuple("abcdef"))
    atlas = Slice(csr_matrix(Y), torch.from_numpy(z), names, tuple("ABCDEF"))
    graphs = Graphs(k=3, mode="distance", metric="euclidean")
    answer, alone = (
        map_cells(cells, atlas, Markers(("seen",)), graphs=graphs, epsilon=2e-3, alpha=alpha)
        for alpha in (0.5, 0.0)
    )
    M = by_hand(torch.from_numpy(X), torch.from_numpy(Y), [0])
    Dx, Dy = paths_by_floyd(X, 3), paths_by_floyd(z, 3)
    at = np.arange(6)

    def objective(p):
        return 0.5 * M[at, p].mean() + 0.5 * ((Dx - Dy[np.ix_(p, p)]) ** 2).mean()

    best = min((np.array(p) for p in permutations(range(6))), key=objective)
    assert answer.likeliest.tolist() == best.tolist() == order.tolist()
    assert alone.likeliest.tolist() != order.tolist()  # noise swaps two locations


def test_markers_alone_are_entropic_transport():
    cells, atlas = tissue(1)
    answer = map_cells(cells, atlas, Markers(("g0", "g1")), alpha=0.0, **TIGHT)
    M = by_hand(values(cells), values(atlas), [0, 1])
    a, b = np.full(30, 1 / 30), np.full(24, 1 / 24)
    peer = ot.bregman.sinkhorn_log(a, b, M, 0.02, numItermax=100_000, stopThr=1e-13)
    assert np.abs(answer.plan.numpy() - peer).sum() < SAME_PLAN


def test_agrees_with_pot_on_the_same_costs():
    cells, atlas = tissue(2)
    markers = Markers(("g0", "g4"))
    answer = map_cells(cells, atlas, markers, graphs=EUCLIDEAN, alpha=0.4, **TIGHT)
    M = marker_cost(marker_panel(cells, atlas, markers, "none"), markers, needed=True).numpy()
    z = features(cells, None, False), atlas.coordinates
    Dx, Dy = (geodesics("x", proximity(x, "euclidean"), 4, "distance").D.numpy() for x in z)
    a, b = np.full(30, 1 / 30), np.full(24, 1 / 24)
    peer = ot.gromov.entropic_fused_gromov_wasserstein(
        M, Dx, Dy, a, b, "square_loss", epsilon=0.02, alpha=0.4, tol=1e-12, max_iter=5000
    )
    assert np.abs(answer.plan.numpy() - peer).sum() < SAME_PLAN


def test_without_entropy_plans_are_those_of_conditional_gradient():
    cells, atlas = tissue(2)
    markers = Markers(("g0", "g4"))
    answer = map_cells(cells, atlas, markers, graphs=EUCLIDEAN, epsilon=None, tol=1e-12)
    M = marker_cost(marker_panel(cells, atlas, markers, "none"), markers, needed=True).numpy()
    z = features(cells, None, False), atlas.coordinates
    Dx, Dy = (geodesics("x", proximity(x, "euclidean"), 4, "distance").D.numpy() for x in z)
    a, b = np.full(30, 1 / 30), np.full(24, 1 / 24)
    peer = ot.gromov.fused_gromov_wasserstein(M, Dx, Dy, a, b, "square_loss", alpha=0.5)
    theirs = (
        0.5 * (M * peer).sum()
        + 0.5
        * ot.gromov.gwggrad(*ot.gromov.init_matrix(Dx, Dy, a, b), peer).ravel()
        @ peer.ravel()
        / 2
    )
    assert answer.value <= theirs * (1 + SAME_VALUE)
    assert answer.stop.status == "converged"
    assert abs(answer.certificate.fixed_point_residual) < ROUNDING
    assert int((answer.plan > 0).sum()) <= 2 * (30 + 24)
    alone = map_cells(cells, atlas, markers, alpha=0.0, epsilon=None)
    assert alone.transport_cost == pytest.approx(ot.emd2(a, b, M), rel=ROUNDING)


@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 1000), power=st.integers(-300, 300))
def test_neither_unit_nor_order_matters(seed, power):
    cells, atlas = tissue(seed, n=14, m=11)
    rng, unit = np.random.default_rng(seed), 2.0**power
    one, other = rng.permutation(14), rng.permutation(11)
    plain = map_cells(cells, atlas, Markers(("g0", "g1")), **TIGHT)
    z = unit * atlas.coordinates @ torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    again = map_cells(
        changed(cells, counts=unit * cells.counts[one], ids=tuple(cells.ids[i] for i in one)),
        changed(atlas, counts=atlas.counts[other] / unit, coordinates=z[torch.from_numpy(other)],
                ids=tuple(atlas.ids[j] for j in other)),
        Markers(("g0", "g1")),
        **TIGHT,
    )  # fmt: skip
    assert (again.plan - plain.plan[one][:, other]).abs().sum() < SAME_PLAN
    assert (again.expression / unit - plain.expression[other]).abs().max() < SAME_PLAN
    assert again.cell_ids == tuple(cells.ids[i] for i in one)


def test_another_unit_of_the_atlas_is_told_or_removed():
    cells, atlas = tissue(3)
    other = changed(atlas, counts=csr_matrix(1000 * atlas.counts.toarray() + 300))
    plain, moved = (map_cells(cells, side, Markers(("g0", "g2")), **TIGHT)
                    for side in (atlas, other))  # fmt: skip
    assert (plain.plan - moved.plan).abs().sum() < SAME_PLAN
    raw = map_cells(cells, other, Markers(("g0", "g2"), normalise="none"), **TIGHT)
    assert "unit_mismatch" in codes(raw)
    assert "unit_mismatch" not in codes(moved)


def test_raw_counts_become_logarithms_of_shares():
    cells, atlas = tissue(4)
    rng = np.random.default_rng(0)
    drawn = [rng.poisson(40 * side.counts.toarray()).astype(float) for side in (cells, atlas)]
    pairs = list(zip((cells, atlas), drawn, strict=True))
    raw = [changed(side, counts=csr_matrix(X)) for side, X in pairs]
    shares = [(side, 1e4 * X / X.sum(1, keepdims=True)) for side, X in pairs]
    logs = [changed(side, counts=csr_matrix(np.log1p(share))) for side, share in shares]
    asked = map_cells(*raw, Markers(("g0", "g2")), raw_counts="both")
    own = map_cells(*logs, Markers(("g0", "g2")))
    assert (asked.plan - own.plan).abs().sum() < 1e-9
    carried = (own.plan * 24).T @ values(raw[0])
    assert (asked.expression - carried).abs().max() < 1e-6
    assert "raw_counts_compared" in codes(map_cells(*raw, Markers(("g0", "g2"))))
    assert "raw_counts_compared" not in codes(asked)


def test_features_may_be_an_embedding_or_components():
    cells, atlas = tissue(5)
    markers = Markers(("g0", "g2"))
    plain = map_cells(cells, atlas, markers, graphs=EUCLIDEAN, **TIGHT)
    scores = changed(cells, embedding=values(cells))
    embedded = map_cells(scores, atlas, markers, graphs=EUCLIDEAN, **TIGHT)
    assert (plain.plan - embedded.plan).abs().sum() < SAME_PLAN
    whole = Graphs(k=4, mode="distance", metric="euclidean", components=7)
    rotated = map_cells(cells, atlas, markers, graphs=whole, **TIGHT)  # distances are the same
    assert (plain.plan - rotated.plan).abs().sum() < SAME_PLAN


def test_correlation_ignores_what_is_common_to_all_markers():
    cells, atlas = tissue(6)
    markers = Markers(("g0", "g1", "g2", "g3"), dissimilarity="correlation", normalise="none")
    rows = csr_matrix(2.0 * cells.counts.toarray() + 1.0)
    plain, moved = (
        marker_cost(marker_panel(side, atlas, markers, "none"), markers, needed=True)
        for side in (cells, changed(cells, counts=rows))
    )
    expected = 1 - np.corrcoef(values(cells)[:, :4], values(atlas)[:, :4])[:30, 30:]
    assert np.abs(plain.numpy() - expected / expected.max()).max() < ROUNDING
    assert (plain - moved).abs().max() < ROUNDING


def test_without_markers_neighbourhoods_decide():
    cells, atlas = tissue(7)
    answer = map_cells(cells, atlas, Markers(()), alpha=1.0)
    assert answer.transport_cost == 0
    assert answer.value == answer.distortion
    assert answer.marker_genes == ()
    assert "no_markers" in codes(answer)
    every = map_cells(cells, atlas)
    assert every.marker_genes == atlas.genes
    assert every.held_out == type(every.held_out)(0, None, None, None, None)


def test_what_speaks_against_an_answer_is_told():
    cells, atlas = tissue(8)
    still = atlas.counts.toarray()
    still[:, 1] = 2.0
    answer = map_cells(cells, changed(atlas, counts=csr_matrix(still)), Markers(("g0", "g1")))
    assert "constant_markers" in codes(answer)
    two = changed(atlas, coordinates=torch.cat([atlas.coordinates[:12],
                                                atlas.coordinates[12:] + 99]))  # fmt: skip
    assert "disconnected_graph" in codes(map_cells(cells, two, graphs=EUCLIDEAN))
    rng = np.random.default_rng(0)
    noise = changed(atlas, counts=csr_matrix(rng.random((24, 7))))
    assert "poor_prediction" in codes(map_cells(cells, noise, Markers(("g0",))))
    assert "unbalanced_terms" in codes(map_cells(cells, atlas, alpha=1e-4))
    stopped = map_cells(cells, atlas, max_iter=1)
    assert stopped.stop.status == "max_iter"
    assert "not_converged" in codes(stopped)


def test_ends_of_the_range_are_answered():
    cells, atlas = tissue(9, n=3, m=3)
    small = map_cells(cells, atlas, graphs=Graphs(k=2))
    assert small.plan.isfinite().all()
    cells, atlas = tissue(9, n=12, m=10)
    doubled = changed(cells, counts=csr_matrix(np.repeat(cells.counts.toarray()[:6], 2, 0)))
    assert map_cells(doubled, atlas).certificate.marginal_error_a < ROUNDING
    smooth = map_cells(cells, atlas, epsilon=1e3)
    assert (smooth.plan - 1 / 120).abs().sum() < 1e-2
    sharp = map_cells(cells, atlas, epsilon=1e-6)
    assert sharp.plan.isfinite().all()
    assert sharp.certificate.marginal_error_b < ROUNDING
    assert (sharp.stop.status == "converged") == (sharp.stop.residual <= 1e-5)


@pytest.mark.parametrize("allowed", [0, 1, 3])
def test_interruption_returns_a_plan(allowed):
    asked = 0

    def watch(iteration, residual):
        nonlocal asked
        asked += 1
        return asked <= allowed

    answer = map_cells(*tissue(), tol=1e-12, watch=watch)
    assert answer.stop.status == "interrupted"
    assert answer.certificate.marginal_error_a < ROUNDING
    assert "not_converged" in codes(answer)


def spoilt(field):
    """Change one side of a good question so that it has no answer."""
    cells, atlas = tissue()
    nowhere = torch.full((24, 2), float("nan"), dtype=torch.float64)
    return {
        "few": (tissue(n=2)[0], atlas),
        "nan": (cells, changed(atlas, coordinates=nowhere)),
        "point": (cells, changed(atlas, coordinates=torch.ones(24, 2, dtype=torch.float64))),
        "upper": (changed(cells, genes=tuple(g.upper() for g in cells.genes)), atlas),
        "other": (changed(cells, genes=tuple(f"x{g}" for g in cells.genes)), atlas),
        "negative": (changed(cells, counts=-cells.counts), atlas),
        "equal": (changed(cells, counts=csr_matrix(np.ones((30, 7)))), atlas),
        "embedded": (changed(cells, embedding=values(cells)), atlas),
    }.get(field, (cells, atlas))


@pytest.mark.parametrize(
    ("field", "sides", "more"),
    [
        ("cells.dataset", "few", {}),
        ("atlas.spatial_key", "nan", {}),
        ("atlas.spatial_key", "point", {}),
        ("markers.names", "upper", {}),
        ("markers.names", "other", {}),
        ("markers.names", "", {"markers": Markers(("nowhere",))}),
        ("markers.names", "", {"markers": Markers(("g0", "g0"))}),
        ("markers.names", "", {"markers": Markers(())}),
        ("markers.names", "equal", {"markers": Markers(normalise="none"), "alpha": 0.0}),
        ("markers.dissimilarity", "",
         {"markers": Markers(("g0", "g1"), dissimilarity="correlation")}),
        ("genes", "", {"genes": ("nowhere",)}),
        ("genes", "", {"genes": ("g0", "g0")}),
        ("genes", "", {"genes": ()}),
        ("raw_counts", "negative", {"raw_counts": "cells"}),
        ("graphs.k", "", {"graphs": Graphs(k=25)}),
        ("graphs.k", "", {"graphs": Graphs(k=1)}),
        ("graphs.components", "embedded", {"graphs": Graphs(components=2)}),
        ("alpha", "", {"alpha": 1.5}),
        ("epsilon", "", {"epsilon": 0.0}),
    ],
)  # fmt: skip
def test_impossible_questions_name_the_field(field, sides, more):
    with pytest.raises(IllPosed) as caught:
        map_cells(*spoilt(sides), **more)
    assert caught.value.field == field


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_neighbourhoods_pay_where_markers_are_few(count):
    if not SECTIONS.is_dir():
        pytest.skip(ABSENT)
    cells, atlas = embryo(600, None)
    markers = drawn_markers(cells.genes, count)
    fused, linear = (map_cells(cells, atlas, markers, alpha=alpha) for alpha in (0.5, 0.0))
    assert fused.stop.status == linear.stop.status == "converged"
    ratio = fused.held_out.mean / linear.held_out.mean
    print(f"{count} markers: {fused.held_out.mean:.3f}, {ratio:.2f} x linear")
    assert ratio >= ASKED
    assert "poor_prediction" not in codes(fused)
