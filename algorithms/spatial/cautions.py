"""Warnings that travel with an alignment, each with the numbers behind it."""

import numpy as np
from torch import Tensor

from algorithms.errors import Caution
from algorithms.iterate import Stop
from algorithms.spatial.expression import Counts, Expression
from algorithms.spatial.fused import Fused, product
from algorithms.spatial.partial import Matching
from algorithms.spatial.slice import Slice
from algorithms.spatial.starts import Pair

FEW_GENES, FEW_SPOTS = 50, 30
# Pitches further apart than this are those of two technologies or two units.
UNIT_RATIO = 3.0
# Proper input ends at +0.03 to +0.09, mirrored input at -0.03 to -0.08: between lies doubt.
CLEAR_MARGIN = 0.005
# Singular values closer than this: the shape alone does not tell one axis from the other.
AXES_ALIKE = 0.99
# A rigid fit that explains less than this share of both spreads says nothing of the angle.
FAINT_FIT = 0.05
UNBALANCED = 100.0
# Cropped to less than this, real sections were laid on each other by shape: 8 pitches off.
SMALL_OVERLAP = 0.6
# Votes are 5 degrees and a pitch apart; motions further apart, in radii, contradict each other.
DOUBTFUL = 0.25


def of_input(
    counts: Counts, source: Slice, target: Slice, options: Expression, pitches: tuple[float, float]
) -> list[Caution]:
    """Look at what came in: genes, spots, coordinates, units, transforms of the counts."""
    told = []
    genes = len(counts.genes)
    if genes < FEW_GENES:
        told.append(
            Caution(
                "few_genes",
                f"{genes} genes in common after filtering; expression says little below "
                f"{FEW_GENES}",
                "lower expression.min_gene_counts, or check that gene names are spelt alike",
            )
        )
    sides = (("source", counts.kept_source, source), ("target", counts.kept_target, target))
    for field, rows, tissue in sides:
        told += _of_spots(field, rows, tissue, options)
    ratio = max(pitches) / min(pitches)
    if ratio > UNIT_RATIO:
        told.append(
            Caution(
                "unit_mismatch",
                f"the pitches are {pitches[0]:.4g} and {pitches[1]:.4g}, a ratio of {ratio:.3g}: "
                "different units or technologies",
                "use scale='pitch', which divides each slice by its pitch, if spots are as dense",
            )
        )
    counted = counts.source, counts.target
    if options.dissimilarity != "pca" and any(np.mod(X.data, 1).any() for X in counted):
        told.append(
            Caution(
                "log_transformed_with_kl",
                f"expression is not whole counts (largest {max(X.max() for X in counted):.4g}), "
                f"yet {options.dissimilarity} adds a floor of {options.floor:g} made for counts",
                "pass raw counts, or use expression.dissimilarity='pca'",
            )
        )
    return told


def _of_spots(field: str, rows: Tensor, tissue: Slice, options: Expression) -> list[Caution]:
    told = []
    if len(rows) < FEW_SPOTS:
        told.append(
            Caution(
                "few_spots",
                f"{field}: {len(rows)} of {len(tissue.coordinates)} spots kept",
                f"lower expression.min_spot_counts (now {options.min_spot_counts:g}); an outline "
                f"of fewer than {FEW_SPOTS} spots determines a motion poorly",
            )
        )
    places = len(tissue.coordinates[rows].unique(dim=0))
    if places < len(rows):
        told.append(
            Caution(
                "duplicated_coordinates",
                f"{field}: {len(rows)} spots at {places} places",
                "several slices in one file, or spots read twice? Split or drop them",
            )
        )
    return told


def of_frames(pair: Pair) -> list[Caution]:
    """Look at whether each slice has axes of its own."""
    told = []
    for field, own in (("source", pair.source), ("target", pair.target)):
        if not own.canonical:
            told.append(
                Caution(
                    "no_canonical_frame",
                    f"{field}: the tissue is as long as wide, so it has no axes of its own",
                    "a turned upload may end in a neighbouring plan, some 1e-4 apart in value",
                )
            )
    return told


def of_orientation(proper: float, mirrored: float, margin: float) -> list[Caution]:
    """Look at the lowest values of both orientations."""
    both = f"mirrored {mirrored:.6g} against {proper:.6g}, margin {margin:+.4f}"
    if margin < -CLEAR_MARGIN:
        return [
            Caution(
                "reflected",
                f"the mirrored tissue fits better: {both}",
                "was a section turned over, or does y point down in one file? Allow it with "
                "allow_reflection=true",
            )
        ]
    if margin <= CLEAR_MARGIN:
        return [
            Caution(
                "orientation_ambiguous",
                f"the tissue and its mirror image fit almost alike: {both}",
                "compare both with allow_reflection=true; labels or landmarks can decide",
            )
        ]
    return []


def of_terms(problem: Fused, transport_cost: float, distortion: float) -> list[Caution]:
    """Look for a term that decides alone.

    Distances that fit perfectly leave a small term without being powerless, so their power is
    read off a b^T: it is what a wrong plan would pay.
    """
    alpha = problem.alpha
    expression, distances = (1 - alpha) * transport_cost, alpha * distortion
    power = alpha * float(problem.offset - 2 * product(problem).cross)
    if not 0 < alpha < 1 or expression <= 0:
        return []
    if distances > UNBALANCED * expression:
        name, other, odds = "distances", distances, expression / distances
    elif expression > UNBALANCED * power > 0:
        name, other, odds = "expression", power, expression / power
    else:
        return []
    odds *= alpha / (1 - alpha)
    return [
        Caution(
            "unbalanced_terms",
            f"weighted terms: expression {expression:.4g}, distances {other:.4g} (unit "
            f"dependent); {name} decides alone",
            f"use scale='pitch', or alpha near {odds / (1 + odds):.2g}, where both weigh alike",
        )
    ]


def of_overlap(matching: Matching) -> list[Caution]:
    """Look at how much was matched: a small overlap is where shape wins over expression."""
    told = []
    if matching.doubt is not None and matching.doubt > DOUBTFUL:
        told.append(
            Caution(
                "overlap_uncertain",
                f"expression, or the pairs given, ask for a motion that differs by "
                f"{matching.doubt:.2f} of the tissue's radius from the plan's (mass "
                f"{matching.mass:.2f}): one of them is wrong",
                "the overlap may be below 60 %; look at the picture, give `pairs` of rows that "
                "show the same place, or a smaller `mass`",
            )
        )
    if matching.mass >= SMALL_OVERLAP:
        return told
    return [
        *told,
        Caution(
            "small_overlap",
            f"{matching.mass:.2f} of the mass is matched; below {SMALL_OVERLAP:g} the outline of "
            "the tissue may outweigh its expression, and the motion may be wrong altogether",
            "look at the picture, and give `pairs` of rows that show the same place",
        ),
    ]


def of_answer(ratio: float, strength: float, stop: Stop) -> list[Caution]:
    """Look at what comes out: the rigid fit and the ending."""
    told = []
    if ratio > AXES_ALIKE or strength < FAINT_FIT:
        told.append(
            Caution(
                "rotation_ambiguous",
                f"S2/S1 is {ratio:.4f} and the rigid fit explains {strength:.3f} of the spread: "
                "shape alone hardly determines the angle",
                "check the angle against the image; a smaller alpha gives expression more weight",
            )
        )
    if stop.status != "converged":
        told.append(
            Caution(
                stop.status,
                f"the descent ended as {stop.status} after {stop.iterations} iterations, relative "
                f"change {stop.residual:.2g}",
                "raise max_iter" if stop.status == "max_iter" else "run it again to its end",
            )
        )
    return told
