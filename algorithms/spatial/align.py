"""Alignment of two slices that show the same tissue: the plan, the motion, and what proves them."""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.entropic.rounding import round_plan
from algorithms.errors import Caution, IllPosed
from algorithms.iterate import Stop, Watch, unwatched
from algorithms.sparse import SparsePlan
from algorithms.spatial import cautions
from algorithms.spatial.alignment import Alignment, Certificate
from algorithms.spatial.coarse import LARGE, coarsened
from algorithms.spatial.expression import Counts, Expression, common_counts, dissimilarity
from algorithms.spatial.frames import distances
from algorithms.spatial.fused import Fused, frank_wolfe_gap, from_plan, terms
from algorithms.spatial.hierarchical import hierarchical
from algorithms.spatial.levels import Asked
from algorithms.spatial.partial import (
    MATCHED,
    Bearings,
    Matching,
    around,
    bearings,
    matched,
)
from algorithms.spatial.procrustes import Motion, motion_of_pairs, procrustes
from algorithms.spatial.scores import scores
from algorithms.spatial.search import (
    JITTER,
    JITTER_LARGE,
    Found,
    from_motion,
    from_product,
    given,
    polished,
    refined,
    screened,
    table,
)
from algorithms.spatial.setting import Setting, paired, setting_of
from algorithms.spatial.slice import Slice
from algorithms.spatial.starts import Candidate, Errand, Pair, pair, shared
from algorithms.spatial.validity import check_kept, check_slices

# More spots in a slice than this, and `auto` takes the hierarchical solver.
DENSE_SPOTS = 5000
# Up to so many pairs of spots, descents run beside one another.
ROOMY = 2500**2
AS_COUNTS = Expression()


def align(
    source: Slice,
    target: Slice,
    *,
    alpha: float = 0.1,
    expression: Expression = AS_COUNTS,
    scale: Literal["auto", "pitch", "none"] = "auto",
    mass: float | Literal["auto"] | None = None,
    pairs: Float[Tensor, "p 2"] | None = None,
    plan0: Float[Tensor, "n m"] | None = None,
    solver: Literal["auto", "dense", "hierarchical"] = "auto",
    init: Literal["multi", "product"] = "multi",
    effort: Literal["default", "fast"] = "default",
    allow_reflection: bool = False,
    tol: float = 1e-9,
    max_iter: int = 200,
    watch: Watch = unwatched,
) -> Alignment:
    r"""Align two slices of one tissue by fused Gromov-Wasserstein transport, and rigidly.

        min_P F(P) = (1 - alpha) <M, P> + alpha sum_{ii'jj'} (D1_ii' - D2_jj')^2 P_ij P_i'j'

    over P >= 0, P 1 = a, P^T 1 = b, where a = 1/n and b = 1/m weigh the spots kept, M_ij is the
    dissimilarity of expression of source spot i and target spot j (`Expression`), and D1, D2 are
    Euclidean distances within each slice. Then the motion z -> R z + t that minimises
    sum P_ij |R z_i + t - y_j|^2.

    Conditional gradient (exact transport for the direction, exact line search) from many starts:
    24 turns and mirrored turns about the slices' own axes, expression alone, rigid fits iterated
    from it, and a b^T; three steps tell the basins apart, the best are run to the end, and the
    winner is polished from small turns and a blur of itself. Above 650 spots the search runs on
    superspots and its motion starts the full problem.

    That is the dense solver. The hierarchical one forms no matrix of all pairs: the search, and
    the share of the mass that fits, are of 350 superspots; then, at 1,500 and 6,000 superspots and
    at the spots, each is matched with 32 candidates around its place by unbalanced entropic
    transport, and a motion (rigid, then affine) is fitted to what is matched, in rounds until it
    rests. Spots with nothing near in the other slice, and a rim about them, take no part.

    Partial, with `mass` s < 1: P 1 <= a, P^T 1 <= b and sum P = s, for tissue that is torn or
    cropped; both families of starts of `algorithms.spatial.partial`, and for `auto` the largest s
    whose distortion, a root mean square of disagreeing distances, is within 5 % of the least.

    Shapes: counts (n, genes), coordinates (n, 2), pairs (p, 2); plan entries index
    the n and m original rows.

    Args:
        alpha: weight of distances; 0 is transport on M alone, 1 pure Gromov-Wasserstein. Its
            meaning depends on the unit of the coordinates: see `scale`.
        scale: `none` uses coordinates as they are, `pitch` divides each slice by its median
            nearest-neighbour distance, `auto` is `none` where both pitches lie in [0.5, 2].
        mass: share of the mass that is matched; None is all of it, `auto` lets distances decide.
        pairs: rows of the source and of the target, counted from 0, that show the same place. At
            least two; their rigid fit replaces the search. What a small overlap asks for.
        plan0: a plan between all rows, dropped ones included, where the descent begins instead of
            a search; it is moved to the marginals first. Not with pairs.
        solver: `auto` is hierarchical where a slice keeps more than 5,000 spots and neither a
            number for mass nor plan0 asks for the dense one. The hierarchical solver compares
            principal components averaged over 21 neighbours, whatever `expression` says; uses
            `alpha` between superspots only; and finds the overlap itself, mass or no mass.
        init: `product` descends from a b^T only (for comparison: it may end back to front).
        effort: `fast` leaves out the polish: half the time, up to 6e-5 above.
        allow_reflection: return the mirrored plan and motion where they are better; by default
            the best proper one comes, with the caution `reflected`.
        tol: relative change of F in one step at which a descent ends.
        max_iter: steps of one descent.

    Returns:
        plan: sparse; dropped spots carry no mass.
        aligned: all source coordinates, in the target's frame and unit, in the order they came.
        transform: 3 x 3 homogeneous matrix; aligned = (x, y, 1) transform^T.
        value, transport_cost, distortion: F, <M, P> and the quadratic sum at the returned plan,
            recomputed from the formula; value = (1 - alpha) transport_cost + alpha distortion.
        mass_moved: the mass of the plan, and curve: what was seen at each share (`auto` only).
        unmatched_source, unmatched_target: spots that carry less than half of their mass, those
            that the filter dropped included.
        kept_source, kept_target: rows that passed the filter; genes: how many were common.
        scale_used, pitch_source, pitch_target: the unit that alpha refers to.
        reflected: `transform` is a reflection.
        rotation_degrees: its angle, counter-clockwise; of a reflection, after (x, y) -> (x, -y).
        starts: every start, the stage it was dropped at, its last value and orientation.
        solver, hierarchy: which solver ran, and what the hierarchical one knows beyond the plan
            (None of the dense one). Its `transform` is affine and `rotation_degrees` of the rigid
            motion nearest to it; every spot weighs 1 / max(n, m); spots are unmatched that have
            none of the other slice near; values of starts and curve are of superspots; its
            distortion is sampled, with its standard error.
        scores: agreement with labels and landmarks where the slices carry them.
        certificate: what proves the answer (`Certificate`).
        stop: how the winner's descent ended, its iterations over all stages.
        cautions: few_genes, few_spots, duplicated_coordinates, unit_mismatch,
            log_transformed_with_kl, no_canonical_frame, reflected, orientation_ambiguous,
            rotation_ambiguous, unbalanced_terms, small_overlap, overlap_uncertain,
            or the status of a descent that did not converge; of the hierarchical solver also
            compared_by_components, doubtful_match, bent_tissue.

    Notes:
        One step costs a transport problem, O(n m (n + m)) in practice, and a product O(n^2 m).
        Two cores: about 2 s for 300 spots a slice, 8 s for 600. Memory: some 30 n x m matrices
        of float64 while many starts are alive; of more than 6 million pairs of spots one descent
        at a time (3.6 GiB for 5,000 spots a slice). Starts run in torch.get_num_threads() threads;
        the answer does not depend on their timing. Turning, shifting or reordering the upload
        changes nothing but rounding, since angles are counted from the tissue's own axes (a
        round tissue has none: caution). The plan is piecewise constant in its inputs: no gradient.
        The hierarchical solver takes O(n) memory and O(n log n) time: half a minute of one core
        and 1.3 GiB for 20,000 spots a slice.

    References:
        Zeira, Land, Strzalkowski, Raphael 2022, doi:10.1038/s41592-022-01459-6 (the objective);
        Vayer, Chapel, Flamary, Tavenard, Courty 2019, arXiv:1805.09114, algorithms 1 and 2;
        Liu, Zeira, Raphael 2023, doi:10.1101/gr.277670.123 (partial);
        Chapel, Alaya, Gasso 2020, arXiv:2002.08276 (its linear problems).
    """
    check_slices(source, target, expression)
    if mass == 1:
        mass = None
    counts = common_counts(source, target, expression)
    check_kept(counts, source, target)
    setting = setting_of(source, target, counts, scale)
    if _route(solver, counts, mass, plan0) == "hierarchical":
        asked = Asked(alpha, expression, pairs, init, allow_reflection, tol, max_iter)
        return hierarchical(source, target, setting, asked, watch)
    M = dissimilarity(counts, expression)
    pair = _posed(source, target, setting, M, alpha)
    guide = None if pairs is None else _guide(source, target, setting, pair, pairs)
    plan = (
        None if plan0 is None else _given(plan0, (len(source.ids), len(target.ids)), counts, pair)
    )
    if plan is not None:
        if guide is not None:
            raise IllPosed("plan0", "comes instead of pairs, not with them")
        guide = procrustes(plan, pair.z, pair.y, allow_reflection=allow_reflection)
    lent = shared(watch)
    # a descent holds some ten matrices of all pairs: large ones go one after another
    together = torch.get_num_threads() if M.numel() <= ROOMY else 1
    with ThreadPoolExecutor(together) as pool:
        errand = Errand(tol, max_iter, pool, lent)
        search = _Search(init, effort, allow_reflection, guide, plan)
        if mass is None:
            found = _searched(pair, errand, search)
            matching = _whole(found.best(allow_reflection), pair, errand)
        else:
            found, matching = _partial(pair, errand, search, None if mass == "auto" else mass)
        if matching.stop.status != "interrupted" and not errand.go_on():
            spent = matching.stop.iterations, matching.stop.residual
            matching = replace(matching, stop=Stop("interrupted", *spent), gap=None)
    told = cautions.of_input(counts, source, target, expression, setting.pitches)
    told += cautions.of_frames(pair)
    return _written(source, target, setting, pair, found, matching, told, allow_reflection)


def _route(
    solver: Literal["auto", "dense", "hierarchical"],
    counts: Counts,
    mass: float | Literal["auto"] | None,
    plan0: Tensor | None,
) -> Literal["dense", "hierarchical"]:
    """Choose the solver; refuse what the hierarchical one cannot do."""
    needs_dense = plan0 is not None or mass not in (None, "auto")
    if solver == "hierarchical" and needs_dense:
        field = "mass" if plan0 is None else "plan0"
        raise IllPosed(field, "is of the dense solver: the hierarchical one finds both by itself")
    if solver != "auto":
        return solver
    large = max(len(counts.kept_source), len(counts.kept_target)) > DENSE_SPOTS
    return "hierarchical" if large and not needs_dense else "dense"


@dataclass(frozen=True)
class _Search:
    """How to look for the best plan: what was asked, and what was given to begin from."""

    init: str
    effort: str
    allow_reflection: bool
    guide: Motion | None
    plan: Float[Tensor, "n m"] | None


def _posed(source: Slice, target: Slice, setting: Setting, M: Tensor, alpha: float) -> Pair:
    n, m = M.shape
    z = source.coordinates[setting.counts.kept_source].double() / setting.units[0]
    y = target.coordinates[setting.counts.kept_target].double() / setting.units[1]
    a, b = torch.full((n,), 1 / n, dtype=M.dtype), torch.full((m,), 1 / m, dtype=M.dtype)
    return pair(Fused(M, distances(z), distances(y), a, b, alpha), z, y)


def _guide(
    source: Slice, target: Slice, setting: Setting, pair: Pair, pairs: Float[Tensor, "p 2"]
) -> Motion:
    """Fit the motion that carries the source's rows of the pairs onto the target's."""
    z, y = paired(source, target, setting.units, pairs)
    return motion_of_pairs(z - pair.source.centre, y - pair.target.centre)


def _given(
    plan0: Float[Tensor, "n m"], spots: tuple[int, int], counts: Counts, pair: Pair
) -> Float[Tensor, "k l"]:
    """Take the rows that were kept of a plan, and move it to their marginals."""
    sizes = tuple(plan0.shape)
    if sizes != spots:
        raise IllPosed("plan0", f"has shape {sizes}; the files have {spots} spots")
    plan = plan0.double()[counts.kept_source][:, counts.kept_target]
    if float(plan.amin()) < 0 or not 0 < float(plan.sum()) < math.inf:
        raise IllPosed("plan0", "needs mass between spots kept, and no negative entries")
    return round_plan(plan / plan.sum(), pair.problem.a, pair.problem.b)


def _searched(pair: Pair, errand: Errand, search: _Search) -> Found:
    """Search as asked; without distances (alpha = 0) there is one basin, and one step ends it."""
    if search.guide is not None:
        large = max(pair.problem.M.shape) > LARGE
        if search.plan is not None and search.plan.shape == pair.problem.M.shape:
            found = given(pair, errand, search.plan)
        else:  # a plan between all spots is a motion of superspots
            found = from_motion(pair, errand, search.guide)
        if pair.problem.alpha == 0:
            return found
    elif search.init == "product" or pair.problem.alpha == 0:
        return from_product(pair, errand)
    elif large := max(pair.problem.M.shape) > LARGE:
        small = coarsened(pair)
        found = refined(pair, errand, small, screened(small, errand))
    else:
        found = screened(pair, errand)
    best = found.best(search.allow_reflection)
    errand.watch(best.stop.iterations, best.stop.residual)
    if search.effort == "fast":
        return found
    return polished(pair, errand, found, best, JITTER_LARGE if large else JITTER)


def _whole(winner: Candidate, pair: Pair, errand: Errand) -> Matching:
    """Stand at a balanced plan, with the gap that proves it stationary."""
    P, stop = winner.state.P, winner.stop
    gap = None
    if stop.status != "interrupted" and errand.go_on():
        gap = frank_wolfe_gap(pair.problem, from_plan(pair.problem, P))
    return Matching(P, float(winner.state.value), 1.0, stop, gap)


def _partial(
    pair: Pair, errand: Errand, search: _Search, mass: float | None
) -> tuple[Found, Matching]:
    """Match a share; of large slices the share is found, and the motion, between superspots."""
    large = max(pair.problem.M.shape) > LARGE
    rough = coarsened(pair) if large else pair
    found = _searched(rough, errand, replace(search, effort="fast"))
    best = found.best(search.allow_reflection)
    if search.guide is None and search.init == "multi":
        begun = bearings(rough, best.state.P, best.mirrored)
    else:
        begun = Bearings(best.state.P, () if search.guide is None else (search.guide,))
    matching = matched(rough, errand, begun, mass)
    if matching.mass == 1.0:
        found = _searched(pair, errand, search)
        whole = _whole(found.best(search.allow_reflection), pair, errand)
        return found, replace(whole, curve=matching.curve)
    if large:
        motion = procrustes(matching.P, rough.z, rough.y, allow_reflection=best.mirrored)
        shift = rough.target.centre - motion.R @ rough.source.centre
        motion = replace(motion, target_mean=motion.target_mean + shift)
        fine = around(pair, errand, motion, matching.mass)
        return found, replace(fine, curve=matching.curve, doubt=matching.doubt)
    return found, matching


def _written(
    source: Slice,
    target: Slice,
    setting: Setting,
    pair: Pair,
    found: Found,
    matching: Matching,
    told: list[Caution],
    allow_reflection: bool,
) -> Alignment:
    """Recompute everything that is reported from the plan that is returned."""
    winner = found.best(allow_reflection)
    P, stop, counts = matching.P, matching.stop, setting.counts
    rows, cols = P.nonzero(as_tuple=True)
    plan = SparsePlan(counts.kept_source[rows], counts.kept_target[cols], P[rows, cols])
    value, transport_cost, distortion = terms(pair.problem, P)
    motion = procrustes(P, pair.z, pair.y, allow_reflection=allow_reflection)
    transform = _homogeneous(motion, pair, setting.units)
    z = source.coordinates.double()
    certificate = _certificate(pair, found, matching, value, motion)
    if found.proper is not None and found.mirrored is not None:
        margin = certificate.reflection_margin or 0.0
        told = told + cautions.of_orientation(found.proper.value, found.mirrored.value, margin)
    told = told + cautions.of_terms(pair.problem, float(transport_cost), float(distortion))
    told = told + cautions.of_overlap(matching)
    told = told + cautions.of_answer(motion.singular_ratio, motion.strength, stop)
    n, m = len(z), len(target.coordinates)
    unmatched_source = torch.ones(n, dtype=torch.bool)
    unmatched_source[counts.kept_source] = P.sum(1) < MATCHED * pair.problem.a
    unmatched_target = torch.ones(m, dtype=torch.bool)
    unmatched_target[counts.kept_target] = P.sum(0) < MATCHED * pair.problem.b
    return Alignment(
        plan=plan,
        aligned=z @ transform[:2, :2].T + transform[:2, 2],
        transform=transform,
        value=value,
        transport_cost=transport_cost,
        distortion=distortion,
        mass_moved=float(P.sum()),
        curve=matching.curve,
        unmatched_source=unmatched_source,
        unmatched_target=unmatched_target,
        kept_source=counts.kept_source,
        kept_target=counts.kept_target,
        genes=len(counts.genes),
        scale_used=setting.scale,
        pitch_source=setting.pitches[0],
        pitch_target=setting.pitches[1],
        reflected=bool(torch.linalg.det(motion.R) < 0),
        rotation_degrees=motion.degrees,
        starts=table(found, winner),
        solver="dense",
        hierarchy=None,
        scores=scores(plan, source, target, ~unmatched_source),
        certificate=certificate,
        stop=stop,
        cautions=tuple(told),
    )


def _certificate(
    pair: Pair, found: Found, matching: Matching, value: Tensor, motion: Motion
) -> Certificate:
    problem, P = pair.problem, matching.P
    over = [P.sum(1) - problem.a, P.sum(0) - problem.b]
    if matching.mass < 1:
        over = [excess.clamp_min(0) for excess in over]
    return Certificate(
        marginal_error_a=float(over[0].abs().sum()),
        marginal_error_b=float(over[1].abs().sum()),
        mass_error=abs(float(P.sum()) - matching.mass),
        frank_wolfe_gap=matching.gap,
        value_difference=matching.value - float(value),
        reflection_margin=found.margin(problem),
        mirrored_value=found.mirrored.value if found.mirrored else None,
        singular_ratio=motion.singular_ratio,
        rigid_strength=motion.strength,
    )


def _homogeneous(motion: Motion, pair: Pair, units: tuple[float, float]) -> Float[Tensor, "3 3"]:
    """Write the motion for original coordinates: into one unit, moved, out of the other."""
    transform = torch.eye(3, dtype=motion.R.dtype)
    about = pair.source.centre + motion.source_mean
    to = pair.target.centre + motion.target_mean
    transform[:2, :2] = motion.R * (units[1] / units[0])
    transform[:2, 2] = units[1] * (to - motion.R @ about)
    return transform
