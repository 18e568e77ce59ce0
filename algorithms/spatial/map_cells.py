"""Dissociated cells placed in a tissue of which an atlas measured few genes."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from algorithms.errors import Caution, IllPosed
from algorithms.iterate import Stop, Watch, unwatched
from algorithms.quadratic.conditional_gradient import descend
from algorithms.quadratic.dense import balanced, dense, product
from algorithms.quadratic.entropic import solve_entropic
from algorithms.quadratic.objective import Pair
from algorithms.spaces import Relations
from algorithms.spatial.cells import Cells
from algorithms.spatial.graph_match import gap_share, step_length
from algorithms.spatial.markers import (
    Markers,
    columns,
    features,
    marker_cost,
    marker_panel,
)
from algorithms.spatial.neighbours import (
    Geodesics,
    Metric,
    Mode,
    geodesics,
    graph_cautions,
    proximity,
)
from algorithms.spatial.slice import Slice
from algorithms.spatial.transfer import correlation

FEWEST = 3
# Held-out genes told worse than this, on average over so many, are not told.
POOR, ENOUGH = 0.3, 5
# A term of the objective that weighs so many times the other decides alone.
UNBALANCED = 100.0


@dataclass(frozen=True)
class Graphs:
    """Which cells and which locations are neighbours.

    Attributes:
        k: neighbours that a point is joined with, itself counted.
        mode: length of an edge, 1 (`connectivity`) or the distance it spans.
        metric: what makes two cells near.
        components: principal components of all genes in which cells are compared; None for genes.
    """

    k: int = 5
    mode: Mode = "connectivity"
    metric: Metric = "correlation"
    components: int | None = None


@dataclass(frozen=True)
class HeldOut:
    """Pearson's correlation over genes that both have and that are no markers (None: no gene)."""

    genes: int
    mean: float | None
    lower_quartile: float | None
    median: float | None
    upper_quartile: float | None


@dataclass(frozen=True)
class Certificate:
    """What shows that the plan is feasible and stationary, recomputed from what is returned.

    Attributes:
        marginal_error_a: `|P 1 - a|_1`.
        marginal_error_b: `|P^T 1 - b|_1`.
        fixed_point_residual: how far a full step would move the plan, in L1; without entropy the
            Frank-Wolfe gap as a share of the linear term.
        value_difference: `value` minus its expansion from the marginals that the plan has.
        mean_error: largest difference of a gene's mean over locations from that over cells, as a
            share of its largest value.
    """

    marginal_error_a: float
    marginal_error_b: float
    fixed_point_residual: float
    value_difference: float
    mean_error: float


@dataclass(frozen=True)
class Mapped:
    """Where cells go, every gene at every location, and how well held-out genes are told."""

    cell_ids: tuple[str, ...]
    ids: tuple[str, ...]
    plan: Float[Tensor, "n m"]
    places: Float[Tensor, "n 2"]
    spread: Float[Tensor, "n"]
    likeliest: Int[Tensor, "n"]
    marker_genes: tuple[str, ...]
    genes: tuple[str, ...]
    expression: Float[Tensor, "m g"]
    pearson: tuple[float | None, ...]
    held_out: HeldOut
    value: float
    transport_cost: float
    distortion: float
    certificate: Certificate
    stop: Stop
    cautions: tuple[Caution, ...]


def map_cells(
    cells: Cells,
    atlas: Slice,
    markers: Markers = Markers(),  # noqa: B008 - frozen
    *,
    graphs: Graphs = Graphs(),
    genes: tuple[str, ...] | list[str] | None = None,
    raw_counts: Literal["none", "cells", "both"] = "none",
    alpha: float = 0.5,
    epsilon: float | None = 5e-3,
    tol: float = 1e-5,
    max_iter: int = 500,
    watch: Watch = unwatched,
) -> Mapped:
    r"""Minimise  (1-alpha) <M, P> + alpha sum_ijkl (D_ik - D'_jl)^2 P_ij P_kl + epsilon KL(P | ab).

    Over plans P >= 0 from n cells to m locations with rows summing to a = 1/n and columns to
    b = 1/m; KL is taken to the product a b^T. M compares the markers of a cell with those of a
    location, divided by its largest; D and D' are shortest paths along the graphs that join every
    cell, and every location, with its k nearest, each divided by its largest. Mirror descent from
    the product; conditional gradient where there is no entropy (epsilon None). Location j gets
    the genes  (P^T X)_j / b_j,  X the counts of the cells.

    Shapes: n cells, m locations, g genes carried -> plan (n, m), expression (m, g), places (n, 2).

    Args:
        cells: without places; their genes are carried.
        atlas: locations and the genes measured there.
        markers: which genes are compared, and how.
        graphs: which cells and locations are neighbours.
        genes: of the cells, to be carried; None carries all.
        raw_counts: which side becomes log(1 + 10^4 count / total) before it is compared.
        alpha: 0 compares markers alone, 1 neighbourhoods alone.
        epsilon: entropic strength, as costs are at most 1; None leaves entropy out.
        tol: stop when a step moves less than this share of the mass; without entropy, when it
            gains less than this share of the value.
        max_iter: steps of the descent.
        watch: asked before each step.

    Returns:
        A `Mapped`: names of cells and locations; `plan`; for each cell the mean of its mass
        (`places`), the root mean square distance from it (`spread`) and the location that gets
        most (`likeliest`); `marker_genes` compared; `genes` and their `expression` at the
        locations; `pearson` with the atlas's own, for genes that are no markers, and its summary
        `held_out`; `value` without entropy, `transport_cost` <M, P>, `distortion` the quadratic
        sum; a `Certificate`; the `Stop`; cautions.

    Notes:
        Not convex for alpha > 0; on the data tried, starts from the product and from the plan of
        alpha 0 led to one plan. Without markers cells are placed up to symmetries of the tissue.
        Time O(n m (n + m)) a step, memory O(n^2 + m^2 + n m), float64 on the CPU. No gradients.

    References:
        Nitzan et al. 2019, doi:10.1038/s41586-019-1773-3 (graphs, the two terms); Vayer et al.
        2019, arXiv:1805.09114 (fused objective); Peyre, Cuturi, Solomon 2016, ICML (descent).
    """
    _check(cells, atlas, graphs, alpha, epsilon)
    seen = marker_panel(cells, atlas, markers, raw_counts)
    carried_genes = _carried_names(cells, genes)
    M = marker_cost(seen, markers, needed=alpha < 1)
    Dx, Dy = _graphs(cells, atlas, graphs, raw_counts)
    n, m = len(cells.ids), len(atlas.ids)
    a, b = Dx.D.new_full((n,), 1 / n), Dx.D.new_full((m,), 1 / m)
    pair = Pair(Relations(Dx.D), Relations(Dy.D), a, b, M, alpha)
    P, stop = _solved(pair, epsilon, tol, max_iter, watch)
    X = columns(cells, carried_genes)
    share = P / b  # (n, m): columns sum to one, so that no sum of counts overflows
    carried = share.T @ X  # (m, n), (n, g) -> (m, g)
    pearson = _pearson(carried, carried_genes, atlas, seen.names)
    held_out = _held_out(pearson)
    places, spread = _placed(P, atlas.coordinates.double())
    linear, quadratic = float(pair.linear(P)), float(pair.quadratic(P))
    told = [
        *graph_cautions("cells", Dx, graphs.k),
        *graph_cautions("atlas", Dy, graphs.k),
        *seen.cautions,
        *_of_terms(pair, linear, quadratic),
        *_of_answer(held_out, stop),
    ]
    return Mapped(
        cell_ids=cells.ids,
        ids=atlas.ids,
        plan=P,
        places=places,
        spread=spread,
        likeliest=P.argmax(1),
        marker_genes=seen.names,
        genes=carried_genes,
        expression=carried,
        pearson=pearson,
        held_out=held_out,
        value=(1 - alpha) * linear + alpha * quadratic,
        transport_cost=linear,
        distortion=quadratic,
        certificate=_certificate(pair, P, epsilon, X, carried),
        stop=stop,
        cautions=tuple(told),
    )


def _solved(
    pair: Pair, epsilon: float | None, tol: float, max_iter: int, watch: Watch
) -> tuple[Float[Tensor, "n m"], Stop]:
    """Descend from the product, which no symmetry of the tissue prefers."""
    if epsilon is None:
        found = descend(
            pair, balanced(pair), product(pair), start="product", tol=tol, max_iter=max_iter,
            watch=watch,
        )  # fmt: skip
    else:
        found = solve_entropic(pair, epsilon=epsilon, tol=tol, max_iter=max_iter, watch=watch)
    return dense(pair, found.plan), Stop(found.status, found.steps, found.residual)


def _check(cells: Cells, atlas: Slice, graphs: Graphs, alpha: float, epsilon: float | None) -> None:
    for field, ids in (("cells", cells.ids), ("atlas", atlas.ids)):
        if len(ids) < FEWEST:
            raise IllPosed(f"{field}.dataset", f"{len(ids)} rows; a geometry needs {FEWEST}")
    most = min(len(cells.ids), len(atlas.ids))
    if not 2 <= graphs.k <= most:
        raise IllPosed("graphs.k", f"is {graphs.k}; it counts the point itself, 2 to {most}")
    if graphs.components is not None and cells.embedding is not None:
        raise IllPosed("graphs.components", "are taken of genes; the cells bring an embedding")
    if not 0 <= alpha <= 1:
        raise IllPosed("alpha", f"is {alpha}; it lies in [0, 1]")
    if epsilon is not None and not epsilon > 0:
        raise IllPosed("epsilon", f"is {epsilon}; it must be positive")
    z = atlas.coordinates
    if not bool(z.isfinite().all()):
        bad = int((~z.isfinite()).any(1).sum())
        raise IllPosed("atlas.spatial_key", f"{bad} of {len(z)} places are NaN or infinite")
    if bool((z == z[0]).all()):
        raise IllPosed("atlas.spatial_key", f"all {len(z)} locations lie at {z[0].tolist()}")


def _carried_names(cells: Cells, genes: tuple[str, ...] | list[str] | None) -> tuple[str, ...]:
    named = cells.genes if genes is None else tuple(genes)
    there = set(cells.genes)
    lost = [gene for gene in named if gene not in there]
    if lost:
        raise IllPosed("genes", f"the cells lack {', '.join(lost[:5])}")
    if not named or len(set(named)) < len(named):
        raise IllPosed("genes", "names a gene twice" if named else "names none")
    return named


def _graphs(
    cells: Cells, atlas: Slice, graphs: Graphs, raw_counts: str
) -> tuple[Geodesics, Geodesics]:
    z = features(cells, graphs.components, raw_counts != "none")
    z = proximity(z, graphs.metric)
    y = atlas.coordinates.detach().double().cpu()
    y = y - y.mean(0)
    y = proximity(y / y.abs().amax(), "euclidean")
    return (
        geodesics("cells", z, graphs.k, graphs.mode),
        geodesics("atlas", y, graphs.k, graphs.mode),
    )


def _pearson(
    carried: Float[Tensor, "m g"], genes: tuple[str, ...], atlas: Slice, markers: tuple[str, ...]
) -> tuple[float | None, ...]:
    """Correlate each carried gene with the atlas's own, unless the plan was made from it."""
    known = set(atlas.genes) - set(markers)
    shared = tuple(gene for gene in genes if gene in known)
    own = dict(zip(shared, columns(atlas, shared).T, strict=True))
    return tuple(
        correlation(carried[:, at], own[gene]) if gene in own else None
        for at, gene in enumerate(genes)
    )


def _held_out(pearson: tuple[float | None, ...]) -> HeldOut:
    told = [r for r in pearson if r is not None]
    if not told:
        return HeldOut(0, None, None, None, None)
    quartiles = (float(q) for q in np.quantile(told, (0.25, 0.5, 0.75)))
    return HeldOut(len(told), float(np.mean(told)), *quartiles)


def _placed(
    P: Float[Tensor, "n m"], z: Float[Tensor, "m 2"]
) -> tuple[Float[Tensor, "n 2"], Float[Tensor, "n"]]:
    """Take mean and root mean square distance of each cell's mass."""
    centre = z.mean(0)
    size = (z - centre).abs().amax()
    y = (z - centre) / size
    share = P * len(P)  # rows sum to one
    mean = share @ y  # (n, m), (m, 2) -> (n, 2)
    around = share @ y.square().sum(1) - mean.square().sum(1)
    return mean * size + centre, around.clamp_min(0).sqrt() * size


def _certificate(
    pair: Pair,
    P: Float[Tensor, "n m"],
    epsilon: float | None,
    X: Float[Tensor, "n g"],
    carried: Float[Tensor, "m g"],
) -> Certificate:
    mu, nu, Dx, Dy = P.sum(1), P.sum(0), pair.X.matrix(), pair.Y.matrix()
    apart = mu @ Dx.square() @ mu + nu @ Dy.square() @ nu - 2 * ((Dx @ P @ Dy) * P).sum()
    linear = 0.0 if pair.M is None else float(torch.einsum("nm,nm->", pair.M, P))
    value = pair.alpha * float(apart) + (1 - pair.alpha) * linear
    size = X.abs().amax(0).clamp_min(torch.finfo(X.dtype).tiny)
    off = (carried / size).mean(0) - (X / size).mean(0)
    return Certificate(
        float((mu - pair.a).abs().sum()),
        float((nu - pair.b).abs().sum()),
        gap_share(pair, P, balanced(pair)) if epsilon is None else step_length(pair, P, epsilon),
        float(pair.objective(P)) - value,
        float(off.abs().amax()),
    )


def _of_terms(pair: Pair, linear: float, quadratic: float) -> list[Caution]:
    """Look for a term that decides alone; its power is what the product plan would pay."""
    alpha = pair.alpha
    if pair.M is None or not 0 < alpha < 1:
        return []
    even = product(pair)
    power = [float(pair.linear(even)) * (1 - alpha), float(pair.quadratic(even)) * alpha]
    if max(power) <= UNBALANCED * min(power):
        return []
    name = "markers" if power[0] > power[1] else "neighbourhoods"
    return [
        Caution(
            "unbalanced_terms",
            f"of a plan that knows nothing, markers would cost {power[0]:.3g} and neighbourhoods "
            f"{power[1]:.3g}; {name} decide alone (in the answer: {(1 - alpha) * linear:.3g}, "
            f"{alpha * quadratic:.3g})",
            f"alpha {alpha:g} can move towards {'1' if name == 'markers' else '0'}; one outlying "
            "cell makes all other marker costs small: look at the largest values",
        )
    ]


def _of_answer(held_out: HeldOut, stop: Stop) -> list[Caution]:
    told: list[Caution] = []
    if held_out.mean is not None and held_out.genes >= ENOUGH and held_out.mean < POOR:
        told.append(
            Caution(
                "poor_prediction",
                f"{held_out.genes} held-out genes correlate with the atlas by "
                f"{held_out.mean:.2f} on average",
                "cells may be misplaced or mirrored: add markers, try graphs.k or raw_counts, and "
                "compare with alpha 0",
            )
        )
    if stop.status != "converged":
        told.append(
            Caution(
                "not_converged",
                f"ended as {stop.status} after {stop.iterations} steps, residual "
                f"{stop.residual:.1e}",
                "raise max_iter, epsilon (where there is entropy) or tol",
            )
        )
    return told
