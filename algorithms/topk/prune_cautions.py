"""What to be careful about in pruned tensors, in the words of who prunes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from algorithms.errors import Caution
from algorithms.topk.prune_proof import Pooled, Pruned
from algorithms.topk.pruned_rows import EPS, SPACINGS, hard_below
from algorithms.topk.sheets import Tensors, scale

# Root mean squares of tensors this far apart are not compared as they are without a word.
APART = 10.0
NAMED = 5


@dataclass(frozen=True)
class Told:
    """What the question says that cautions depend on."""

    p: float
    lam: float
    relative: bool
    differentiated: bool
    normalise: bool
    miss: float  # of the conditions of optimality
    proved: bool


def cautions_of(
    told: Told,
    given: Tensors,
    answers: Sequence[Pooled],
    pruned: Sequence[Pruned],
    *,
    widened: Sequence[str],
) -> tuple[Caution, ...]:
    """Look at the whole answer."""
    found = [
        _more_than_k(told, answers, pruned),
        _all_hard(told, answers),
        _unproved(told),
        _unresolved(told, answers),
        _scales(told, given, answers),
        _emptied(pruned),
        _few(answers),
        _steep(told),
        _widened(widened),
    ]
    return tuple(caution for caution in found if caution is not None)


def _more_than_k(told: Told, answers: Sequence[Pooled], pruned: Sequence[Pruned]) -> Caution | None:
    k, nnz = sum(one.k for one in pruned), sum(one.nnz for one in pruned)
    if nnz <= k:
        return None
    hardest = min(float(_limits(told, rows).amin()) for rows in answers)
    smaller = f"or lower lam: up to {hardest:.3g} nothing is shared"
    if hardest <= 0:
        smaller = "equal magnitudes at the border share what is kept at every lam"
    return Caution(
        "more_than_k",
        f"{nnz} soft values are not 0, {nnz - k} more than the {k} to keep: they lie within reach "
        f"of the threshold at lam = {told.lam:.3g}",
        f"deploy `hard`, which keeps exactly {k}; {smaller}",
    )


def _all_hard(told: Told, answers: Sequence[Pooled]) -> Caution | None:
    if not all(bool(rows.hard.all()) for rows in answers):
        return None
    softest = min(float(_limits(told, rows).amin()) for rows in answers)
    higher = f"raise lam above {softest:.3g}" if math.isfinite(softest) else "keep less"
    return Caution(
        "all_hard",
        f"no row shares anything at lam = {told.lam:.3g}: soft and hard values keep the same "
        "entries, and no gradient reaches those that are dropped",
        f"right for deployment; to train which entries are kept, {higher}",
    )


def _unproved(told: Told) -> Caution | None:
    if told.proved:
        return None
    return Caution(
        "unproved",
        f"the conditions of optimality are missed by {told.miss:.1e}: at lam = {told.lam:.3g} the "
        "threshold is lost in the rounding of the magnitudes",
        "ask for a smaller lam: relative strengths above 1e6 keep nearly all entries anyway",
    )


def _limits(told: Told, rows: Pooled) -> torch.Tensor:
    return hard_below(rows.first, rows.second, told.p, relative=told.relative)


def _unresolved(told: Told, answers: Sequence[Pooled]) -> Caution | None:
    count, needed = 0, 0.0
    for rows in answers:
        alive = (rows.first > 0) & (rows.first < torch.inf)
        least = SPACINGS * EPS * rows.first.pow(2 - told.p)
        below = alive & (rows.lam < least)
        count += int(below.sum())
        needed = max([needed, *(least / rows.lam)[below].tolist()])
    if not count:
        return None
    return Caution(
        "lam_below_resolution",
        f"lam = {told.lam:.3g} is lost in the rounding of the magnitudes of {count} rows: they "
        "are hard, or share among equal entries",
        f"ask for lam >= {told.lam * needed:.3g}",
    )


def _scales(told: Told, given: Tensors, answers: Sequence[Pooled]) -> Caution | None:
    if told.normalise or len(given) < 2 or len(answers) > 1:
        return None
    scales = {name: scale(tensor) for name, tensor in given.items()}
    low, high = min(scales, key=scales.__getitem__), max(scales, key=scales.__getitem__)
    if scales[high] <= APART * scales[low]:
        return None
    return Caution(
        "scales_differ",
        f"the root mean square of {high} is {scales[high]:.3g}, that of {low} {scales[low]:.3g}: "
        "the tensors of small entries lose nearly all of them",
        f"ask with normalise = true, which divides each by its own, or with scope per_tensor "
        f"({scales[high] / scales[low]:.1f} is the quotient)",
    )


def _emptied(pruned: Sequence[Pruned]) -> Caution | None:
    empty = [one for one in pruned if one.k == 0]
    if not empty:
        return None
    names = ", ".join(f"{one.name} ({one.size} entries)" for one in empty[:NAMED])
    return Caution(
        "tensor_emptied",
        f"nothing is left of {len(empty)} of {len(pruned)} tensors: {names}",
        "a layer without weights passes nothing on; keep more, or leave it out",
    )


def _few(answers: Sequence[Pooled]) -> Caution | None:
    count = sum(int((rows.first == 0).sum()) for rows in answers)
    if not count:
        return None
    of = sum(rows.sheet.x.shape[0] for rows in answers)
    return Caution(
        "fewer_than_k",
        f"{count} of {of} rows have fewer entries other than 0 than they are to keep",
        "they are returned as they are; the masks of `hard_kept` fill up with zeros",
    )


def _steep(told: Told) -> Caution | None:
    if told.p <= 2 or not told.differentiated:
        return None
    return Caution(
        "unbounded_gradient",
        f"with p = {told.p:g} the gradient of an entry that leaves 0 has no bound",
        "train with p <= 2, or clip the gradients",
    )


def _widened(names: Sequence[str]) -> Caution | None:
    if not names:
        return None
    return Caution(
        "element_type_widened",
        f"{len(names)} tensors have an element type that answers cannot have, such as bfloat16: "
        f"{', '.join(names[:NAMED])}; they come back in float32, whole numbers in int64",
        "convert them back: no digit was lost",
    )
