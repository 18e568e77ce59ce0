"""Labels and expression of one slice, carried to another through a plan."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from algorithms.clusterings import adjusted_rand, mutual_information
from algorithms.errors import Caution, IllPosed
from algorithms.iterate import Stop, Watch, unwatched
from algorithms.sparse import SparsePlan
from algorithms.spatial.slice import Slice

UNMATCHED = "unmatched"
# A target spot that receives less than this share of its weight is unmatched.
RECEIVED = 0.5


@dataclass(frozen=True)
class Transition:
    """Mass from source labels (rows) to target labels (columns), each row summing to 1 or 0."""

    source_labels: tuple[str, ...]
    target_labels: tuple[str, ...]
    share: Float[Tensor, "k l"]


@dataclass(frozen=True)
class Imputation:
    """Genes of the source at the target spots, and their correlation with what was measured."""

    genes: tuple[str, ...]
    expression: Float[Tensor, "m g"]
    pearson: tuple[float | None, ...]


@dataclass(frozen=True)
class Agreement:
    """How far transferred labels agree with the target's own, and with themselves sent back.

    Attributes:
        accuracy: share of the target spots with both labels where they are equal.
        adjusted_rand: of the two labellings of these spots.
        mutual_information: normalised by the mean entropy.
        round_trip: share of the labelled source spots that get their own label back.
    """

    accuracy: float | None
    adjusted_rand: float | None
    mutual_information: float | None
    round_trip: float | None


@dataclass(frozen=True)
class Certificate:
    """What shows that the plan belongs to these slices and that scores are shares.

    Attributes:
        mass: total of the plan.
        largest_received: largest `q_j / b_j`; above 1 the plan is not one of these weights.
        score_error: largest `|sum_l score_jl + unlabelled share - 1|` of a spot that receives.
    """

    mass: float
    largest_received: float
    score_error: float


@dataclass(frozen=True)
class Transferred:
    """What every target spot gets, in rows of the target's file."""

    ids: tuple[str, ...]
    received: Float[Tensor, "m"]
    names: tuple[str, ...]
    label_scores: Float[Tensor, "m l"] | None
    labels: tuple[str, ...] | None
    confidence: Float[Tensor, "m"] | None
    entropy: Float[Tensor, "m"] | None
    transition: Transition | None
    imputation: Imputation | None
    partners: Int[Tensor, "m k"]
    partner_share: Float[Tensor, "m k"]
    mutual_source: Int[Tensor, "p"]
    mutual_target: Int[Tensor, "p"]
    agreement: Agreement
    certificate: Certificate
    stop: Stop
    cautions: tuple[Caution, ...]


def transfer(
    source: Slice,
    target: Slice,
    plan: SparsePlan,
    *,
    mode: Literal["sum", "max"] = "sum",
    genes: tuple[str, ...] | list[str] | None = None,
    partners: int = 3,
    watch: Watch = unwatched,
) -> Transferred:
    r"""Compute  score_jl = sum_i P_ij [label_i = l] / q_j  and  (P^T X)_j / q_j,  with q = P^T 1.

    Target spot j takes the label of the highest score, or `unmatched` where q_j is less than half
    of its weight b_j = 1/m. With `mode` max only the heaviest source spot of j votes.

    Shapes: plan by entries between n source and m target spots -> label_scores (m, l).

    Args:
        source: its labels and counts are carried.
        target: its labels and counts, where there are some, serve comparison only.
        plan: as `spatial.align` returns it, in rows of both files.
        genes: names of source genes to carry; correlations mean something only for genes that the
            plan did not see.
        partners: so many heaviest source spots are listed for each target spot.
        watch: not asked; nothing iterates.

    Returns:
        A `Transferred`: `received`, `q_j / b_j`; `names` of the source's labels, `label_scores`,
        `labels`, `confidence` (the highest score), `entropy` (nats); the `transition` table where
        both are labelled; `imputation`; `partners` and their shares of q_j (-1 and 0 where there
        are fewer); mutual best hits; `agreement`; a `Certificate`; the `Stop`; cautions.

    Notes:
        Exact sums, O(nnz log nnz + m l + nnz g). Equal scores go to the label first in order, equal
        masses to the smaller row. A spot that receives nothing has scores, confidence, entropy
        and imputed expression 0. No gradients.

    References:
        Zeira et al. 2022, doi:10.1038/s41592-022-01459-6 (plans between slices); Klein et al.
        2025, doi:10.1038/s41586-024-08453-2 (labels and expression through plans).
    """
    n, m = len(source.ids), len(target.ids)
    rows, cols, mass = _checked(plan, n, m, partners)
    q = torch.zeros(m, dtype=torch.float64).index_add(0, cols, mass)
    received = q * m
    best = _ranked(cols, mass, rows, m, partners)
    back = _ranked(rows, mass, cols, n, 1)[0][:, 0]
    mutual = _mutual(best[0][:, 0], back)
    shares = best[1] / torch.where(q > 0, q, 1.0)[:, None]
    told = _cautions(received)
    names = tuple(sorted({label for label in source.labels or () if label is not None}))
    scores = labels = confidence = entropy = transition = None
    agreement, error = Agreement(None, None, None, None), 0.0
    if names:
        codes = _coded(source, names)
        voting = _heaviest(rows, cols, mass, best[0][:, 0]) if mode == "max" else mass
        scores, error = _scores(rows, cols, voting, codes, m, len(names))
        winner = scores.argmax(1)
        matched = (received >= RECEIVED) & (scores.sum(1) > 0)
        winner = torch.where(matched, winner, -1)
        labels = tuple(UNMATCHED if k < 0 else names[k] for k in winner.tolist())
        confidence, entropy = scores.amax(1), 0.0 - torch.xlogy(scores, scores).sum(1)
        transition = _transition(rows, cols, mass, codes, names, target)
        agreement = _agreement(rows, cols, mass, codes, winner, labels, names, target)
    imputation = _imputed(source, target, rows, cols, mass, q, tuple(genes)) if genes else None
    return Transferred(
        target.ids, received, names, scores, labels, confidence, entropy, transition, imputation,
        best[0], shares, *mutual, agreement,
        Certificate(float(mass.sum()), float(received.max()), error),
        Stop("converged", 1, error), told,
    )  # fmt: skip


def _checked(plan: SparsePlan, n: int, m: int, partners: int) -> tuple[Tensor, Tensor, Tensor]:
    """Refuse a plan that is not one between these slices."""
    rows, cols, mass = plan.rows.cpu(), plan.cols.cpu(), plan.mass.detach().double().cpu()
    if partners < 1:
        raise IllPosed("partners", f"is {partners}; at least 1")
    if not len(rows) == len(cols) == len(mass) > 0:
        raise IllPosed("plan.mass", f"{len(rows)} rows, {len(cols)} cols, {len(mass)} masses")
    for field, at, size in (("plan.rows", rows, n), ("plan.cols", cols, m)):
        low, high = int(at.min()), int(at.max())
        if low < 0 or high >= size:
            raise IllPosed(field, f"lies in [{low}, {high}]; the file has rows 0 to {size - 1}")
    if not bool(mass.isfinite().all()) or float(mass.min()) < 0 or not float(mass.sum()) > 0:
        raise IllPosed("plan.mass", "must be finite and not negative, and have a positive sum")
    if not float(mass.sum()) * m < float("inf"):
        raise IllPosed("plan.mass", f"sums to {float(mass.sum()):.3g}; rescale it to 1")
    there = mass > 0
    return rows[there], cols[there], mass[there]


def _ranked(
    keys: Tensor, mass: Tensor, others: Tensor, size: int, k: int
) -> tuple[Int[Tensor, "m k"], Float[Tensor, "m k"]]:
    """List, for each key, its k heaviest partners and their masses; -1 where there are fewer."""
    order = torch.from_numpy(np.lexsort((others.numpy(), -mass.numpy(), keys.numpy())))
    keys, mass, others = keys[order], mass[order], others[order]
    starts = torch.searchsorted(keys, torch.arange(size))
    rank = torch.arange(len(keys)) - starts[keys]
    few = rank < k
    found, heavy = torch.full((size, k), -1), torch.zeros(size, k, dtype=torch.float64)
    found[keys[few], rank[few]] = others[few]
    heavy[keys[few], rank[few]] = mass[few]
    return found, heavy


def _mutual(best: Tensor, back: Tensor) -> tuple[Int[Tensor, "p"], Int[Tensor, "p"]]:
    """Pair spots that are each other's heaviest partner."""
    at = (best >= 0).nonzero()[:, 0]
    at = at[back[best[at]] == at]
    return best[at], at


def _heaviest(rows: Tensor, cols: Tensor, mass: Tensor, best: Tensor) -> Tensor:
    """Keep the mass of the heaviest source spot of each target spot only."""
    return torch.where(best[cols] == rows, mass, 0.0)


def _coded(tissue: Slice, names: tuple[str, ...]) -> Int[Tensor, "n"]:
    """Number the labels; -1 where a spot has none, or one that is not listed."""
    code = {name: k for k, name in enumerate(names)}
    known = tissue.labels or (None,) * len(tissue.ids)
    return torch.tensor([-1 if name is None else code.get(name, -1) for name in known])


def _scores(
    rows: Tensor, cols: Tensor, mass: Tensor, codes: Tensor, m: int, count: int
) -> tuple[Float[Tensor, "m l"], float]:
    """Share the mass of each target spot among labels; unlabelled mass counts for none."""
    table = torch.zeros(m, count + 1, dtype=torch.float64)  # the last column: unlabelled
    table.index_put_((cols, codes[rows]), mass, accumulate=True)
    q = torch.zeros(m, dtype=torch.float64).index_add(0, cols, mass)
    shares = table / torch.where(q > 0, q, 1.0)[:, None]
    off = (shares.sum(1) - 1)[q > 0].abs()
    return shares[:, :count].contiguous(), float(off.max())


def _transition(
    rows: Tensor, cols: Tensor, mass: Tensor, codes: Tensor, names: tuple[str, ...], target: Slice
) -> Transition | None:
    others = tuple(sorted({label for label in target.labels or () if label is not None}))
    if not others:
        return None
    to = _coded(target, others)
    known = (codes[rows] >= 0) & (to[cols] >= 0)
    table = torch.zeros(len(names), len(others), dtype=torch.float64)
    at = codes[rows][known], to[cols][known]
    table.index_put_(at, mass[known], accumulate=True)
    total = table.sum(1, keepdim=True)
    return Transition(names, others, table / torch.where(total > 0, total, 1.0))


def _agreement(
    rows: Tensor,
    cols: Tensor,
    mass: Tensor,
    codes: Tensor,
    winner: Tensor,
    labels: tuple[str, ...],
    names: tuple[str, ...],
    target: Slice,
) -> Agreement:
    home, _ = _scores(cols, rows, mass, winner, len(codes), len(names))
    asked = (codes >= 0) & (home.sum(1) > 0)
    round_trip = None
    if bool(asked.any()):
        round_trip = float((home.argmax(1) == codes)[asked].double().mean())
    both = [
        (label, own)
        for label, own in zip(labels, target.labels or (), strict=False)
        if label != UNMATCHED and own is not None
    ]
    if not both:
        return Agreement(None, None, None, round_trip)
    words = {word: k for k, word in enumerate(sorted({w for pair in both for w in pair}))}
    one, other = (torch.tensor([words[pair[side]] for pair in both]) for side in (0, 1))
    accuracy = float((one == other).double().mean())
    return Agreement(
        accuracy, adjusted_rand(one, other), mutual_information(one, other), round_trip
    )


def _imputed(
    source: Slice,
    target: Slice,
    rows: Tensor,
    cols: Tensor,
    mass: Tensor,
    q: Tensor,
    genes: tuple[str, ...],
) -> Imputation:
    """Carry genes; correlate over the target spots that receive mass."""
    place = {gene: k for k, gene in enumerate(source.genes)}
    missing = [gene for gene in genes if gene not in place]
    if missing or len(set(genes)) < len(genes):
        told = f"the source lacks {', '.join(missing[:5])}" if missing else "names a gene twice"
        raise IllPosed("genes", told)
    X = torch.from_numpy(source.counts[:, [place[g] for g in genes]].toarray()).double()
    carried = torch.zeros(len(q), len(genes), dtype=torch.float64)
    weight = mass / q[cols]  # before the product: shares of at most 1 cannot overflow
    carried.index_add_(0, cols, weight[:, None] * X[rows])
    there = {gene: k for k, gene in enumerate(target.genes)}
    pearson: list[float | None] = []
    for k, gene in enumerate(genes):
        if gene not in there:
            pearson.append(None)
            continue
        seen = torch.from_numpy(target.counts[:, [there[gene]]].toarray()[:, 0]).double()
        pearson.append(correlation(carried[q > 0, k], seen[q > 0]))
    return Imputation(genes, carried, tuple(pearson))


def correlation(one: Float[Tensor, "n"], other: Float[Tensor, "n"]) -> float | None:
    """Compute Pearson's correlation; None where one side is constant."""
    centred = [z / max(float(z.abs().max()), 1e-300) for z in (one, other)]
    centred = [z - z.mean() for z in centred]
    sizes = [float(z.norm()) for z in centred]
    if min(sizes) <= 1e-12 * len(one) ** 0.5:
        return None
    return float(centred[0] @ centred[1]) / (sizes[0] * sizes[1])


def _cautions(received: Tensor) -> tuple[Caution, ...]:
    few = int((received < RECEIVED).sum())
    if 2 * few <= len(received):
        return ()
    return (
        Caution(
            "mostly_unmatched",
            f"{few} of {len(received)} target spots receive less than half of their weight 1/m",
            "does the plan belong to these slices, and is its mass near 1? Partial plans leave "
            "out what they should",
        ),
    )
