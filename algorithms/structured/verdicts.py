"""What to be careful about in an answer."""

from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from algorithms.errors import Caution
from algorithms.structured.alternation import Ended
from algorithms.structured.question import Question
from algorithms.structured.regularizer import SPARSE

if TYPE_CHECKING:
    from algorithms.structured.answer import Certificate, Mode

# Modes of values this close may well be mirror images of each other.
TIED = 1e-6
# Starts of which fewer reach the value of the answer leave doubt.
FEW = 0.05
# F may rise by rounding, of inexact plans by their error; more than this share is worth a word.
RISEN = 1e-6
# Cross moments whose smallest singular value is below this share leave an orthogonal map free.
DEFICIENT = 1e-9
# Mass that balanced measures would not have.
INFLATED = 1.2


def verdicts(
    q: Question, seen: "Certificate", best: Ended, modes: "tuple[Mode, ...]", mass: float
) -> tuple[Caution, ...]:
    """Collect every caution that applies."""
    found = [*_of_strengths(q, seen, best), *_of_data(q), *_of_search(seen, best, modes)]
    if mass > INFLATED:
        found.append(Caution(
            "mass_inflated", f"the plan has mass {mass:.4g} between measures of mass 1",
            "costs take both signs, so that mass can pay; try ten times the rho",
        ))  # fmt: skip
    if q.asked.name == "stiefel":
        largest = float(torch.linalg.matrix_norm(best.seen.G[0], 2)) * q.unit
        if seen.smallest_singular_value <= DEFICIENT * largest:
            found.append(Caution(
                "map_not_unique", f"the smallest singular value of the cross moment is "
                f"{seen.smallest_singular_value:.2g}, the largest {largest:.2g}",
                "the map is free on the directions without moment; rank or frobenius drop them",
            ))  # fmt: skip
    return tuple(found)


def _of_strengths(q: Question, seen: "Certificate", best: Ended) -> list[Caution]:
    found = list[Caution]()
    star = seen.epsilon_star
    if q.epsilon == 0 < q.asked_epsilon:
        found.append(Caution(
            "exact_transport", f"epsilon {q.asked_epsilon * q.price:.3g} is below 1e-4 of "
            f"{q.scale * q.price:.3g}, and transport was exact, with epsilon 0",
            "method dense insists on sweeps, which may be hundreds of thousands",
        ))  # fmt: skip
    if not q.asked.bounded and q.every.alpha > 0 and q.epsilon * q.price >= star:
        found.append(Caution(
            "epsilon_above_threshold", f"epsilon {q.epsilon * q.price:.3g} is not below eps* = "
            f"{star:.3g}, above which the map 0 is stable", f"try epsilon {0.05 * star:.3g}",
        ))  # fmt: skip
    if seen.collapsed:
        found.append(Caution(
            "collapsed", "the map vanished: nothing was matched",
            f"lower epsilon below {star:.3g}"
            + (", or lam" if q.asked.name in SPARSE else ""),
        ))  # fmt: skip
    if q.asked.lam and q.asked.name in SPARSE:
        largest = q.problem.penalty.annihilating(q.problem.alpha * best.seen.G[0]) * q.unit
        if q.asked.lam >= largest:
            found.append(Caution(
                "lam_annihilates", f"lam {q.asked.lam:.3g} is not below {largest:.3g}, from which "
                "on no entry is left", "ask for lam_relative 0.1 instead of lam",
            ))  # fmt: skip
    return found


def _of_data(q: Question) -> list[Caution]:
    found = list[Caution]()
    for name, ready, present in zip("xy", q.ready, q.present, strict=True):
        if ready.constant:
            found.append(Caution(
                "constant_features", f"{ready.constant} features of {name} do not vary",
                "they carry nothing; their entries of the map are 0 when centred",
            ))  # fmt: skip
        size, features = len(present), ready.points.shape[1]
        if size < features:
            found.append(Caution(
                "few_points", f"{name} has {size} points with {features} features",
                "many maps fit; ask for rank, nuclear or a sparse penalty",
            ))  # fmt: skip
    return found


def _of_search(seen: "Certificate", best: Ended, modes: "tuple[Mode, ...]") -> list[Caution]:
    found = list[Caution]()
    low = abs(best.value)
    if seen.starts_tried > 1 and seen.starts_reached < FEW * seen.starts_tried:
        found.append(Caution(
            "starts_disagree", f"{seen.starts_reached} of {seen.starts_tried} starts ended at the "
            "lowest value", "a lower one may exist; ask for four times the starts, or give map0",
        ))  # fmt: skip
    if len(modes) > 1 and modes[1].value - modes[0].value <= TIED * abs(modes[0].value):
        found.append(Caution(
            "modes_tie", f"two different plans have values {modes[0].value:.6g} and "
            f"{modes[1].value:.6g}", "the data may be symmetric; anchors or labels must decide",
        ))  # fmt: skip
    rise = max((later - earlier for earlier, later in
                pairwise(best.history)), default=0.0)  # fmt: skip
    if rise > RISEN * max(low, 1e-300):
        found.append(Caution(
            "value_increased", f"the objective rose by {rise / max(low, 1e-300):.1e} of itself",
            "plans were not exact enough; ask for a tol ten times smaller",
        ))  # fmt: skip
    if best.stop.status == "max_iter":
        found.append(Caution(
            "max_iter", f"after {best.stop.iterations} turns the map still moved by "
            f"{best.stop.residual:.1e} of itself", "ask for ten times max_iter",
        ))  # fmt: skip
    return found
