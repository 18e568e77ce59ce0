"""Stacks and centres of four real sections, against the published steps made of POT's parts.

    python -m bench.spatial_slices

The peer follows the public recipe: fused Gromov-Wasserstein plans from the product plan
(`ot.gromov.fused_gromov_wasserstein`), one section after another; for the centre, plans and a
newly drawn factorisation (scikit-learn's NMF, KL loss) in turn, on the spots of the first section.
Objectives of pairs and of centres are computed by one function each, in float64, from the plans
and the expression that each side returned.
"""

import sys
import time
import warnings

import numpy as np
import ot
import torch
from sklearn.decomposition import NMF

from algorithms.spatial.center import center
from algorithms.spatial.expression import Expression, common_counts, dissimilarity
from algorithms.spatial.panel import Member, panel
from algorithms.spatial.slice import Slice
from algorithms.spatial.stack import stack
from bench.spatial import ABSENT, SECTIONS, section
from bench.table import Row, pinned, report

NAMES = tuple(f"stahl_breast_slice{k}" for k in (1, 2, 3, 4))
ALPHA, RANK, ROUNDS = 0.1, 15, 10


def main() -> int:
    """Measure both, print the rows, keep them."""
    if not SECTIONS.is_dir():
        print(f"skipped: {ABSENT}")
        return 0
    pinned("bench.spatial_slices")
    slices = tuple(section(name) for name in NAMES)
    rows = [*stacked(slices), *centred(slices)]
    for row in rows:
        print(row, flush=True)
    report("spatial_slices", rows, threads=1, clock="process CPU seconds, one run")
    return 0


def stacked(slices: tuple[Slice, ...]) -> list[Row]:
    """Align each section to the one before it; the mean objective of the three pairs."""
    began = time.process_time()
    ours = stack(slices, cycles=False)
    spent = time.process_time() - began
    plans = [pair.plan.dense(*_sizes(slices, pair.source)) for pair in ours.pairs]
    began = time.process_time()
    theirs = [_fused(slices[k], slices[k - 1]) for k in range(1, len(slices))]
    peer = time.process_time() - began
    values = [
        [_pair_value(slices[k], slices[k - 1], P) for k, P in enumerate(each, 1)]
        for each in (plans, theirs)
    ]
    ours_row, peer_row = ({"mean objective": float(np.mean(v)), "worst": max(v)} for v in values)
    problem = "four Stahl sections, sequential"
    return [
        Row(problem, "spatial.stack", spent, ours_row),
        Row(problem, "POT, product start", peer, peer_row, ratio=peer / spent),
    ]


def _sizes(slices: tuple[Slice, ...], k: int) -> tuple[int, int]:
    return len(slices[k].ids), len(slices[k - 1].ids)


def _fused(source: Slice, target: Slice) -> torch.Tensor:
    counts = common_counts(source, target, Expression())
    M = dissimilarity(counts, Expression()).numpy()
    D = [
        torch.cdist(z, z).numpy()
        for z in (source.coordinates[counts.kept_source], target.coordinates[counts.kept_target])
    ]
    P = ot.gromov.fused_gromov_wasserstein(M, *D, symmetric=True, alpha=ALPHA)
    whole = torch.zeros(len(source.ids), len(target.ids), dtype=torch.float64)
    whole[counts.kept_source[:, None], counts.kept_target] = torch.from_numpy(np.asarray(P))
    return whole


def _pair_value(source: Slice, target: Slice, whole: torch.Tensor) -> float:
    counts = common_counts(source, target, Expression())
    P = whole[counts.kept_source][:, counts.kept_target]
    z, y = source.coordinates[counts.kept_source], target.coordinates[counts.kept_target]
    M = dissimilarity(counts, Expression())
    return _value(M, torch.cdist(z, z), torch.cdist(y, y), P)


def _value(M: torch.Tensor, D1: torch.Tensor, D2: torch.Tensor, P: torch.Tensor) -> float:
    p, q = P.sum(1), P.sum(0)
    quadratic = p @ D1**2 @ p + q @ D2**2 @ q - 2 * ((D1 @ P @ D2) * P).sum()
    return float((1 - ALPHA) * (M * P).sum() + ALPHA * quadratic)


def centred(slices: tuple[Slice, ...]) -> list[Row]:
    """Compute a centre on the spots of the first section, and ours on those of the best."""
    members, _, _ = panel(slices, Expression(), "none")
    rows = []
    for name, template in (("spatial.center, first", 0), ("spatial.center, best", None)):
        began = time.process_time()
        ours = center(
            slices, rank=RANK, template=template, generator=torch.Generator().manual_seed(0)
        )
        spent = time.process_time() - began
        own = members[ours.template]
        plans = [
            part.plan.dense(len(own.z), len(s.ids))[:, member.kept]
            for part, s, member in zip(ours.parts, slices, members, strict=True)
        ]
        reached = {"objective": _center_value(own, members, ours.W @ ours.H, plans)}
        rows.append(Row("centre of four Stahl sections", name, spent, reached))
    began = time.process_time()
    expression, plans = _public_center(members)
    peer = time.process_time() - began
    reached = {"objective": _center_value(members[0], members, expression, plans)}
    row = Row("centre of four Stahl sections", "POT + scikit-learn", peer, reached,
              "plans and factors lower different functions", peer / rows[0].seconds)  # fmt: skip
    return [*rows, row]


def _center_value(
    own: Member, members: tuple[Member, ...], C: torch.Tensor, plans: list[torch.Tensor]
) -> float:
    """Average the objective over the sections: KL(section || centre), rows of C sum to 1."""
    C = C / C.sum(1, keepdim=True)
    D1 = torch.cdist(own.z, own.z)
    values = [
        _value(m.entropy - C.log() @ m.p.T, D1, torch.cdist(m.z, m.z), P)
        for m, P in zip(members, plans, strict=True)
    ]
    return float(np.mean(values))


def _public_center(members: tuple[Member, ...]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Alternate plans, by KL(centre || section), and a factorisation drawn anew each round."""
    own, n = members[0], len(members[0].p)
    D1, C, last = torch.cdist(own.z, own.z).numpy(), own.p.numpy(), np.inf
    plans: list[np.ndarray] = [np.outer(np.full(n, 1 / n), np.full(len(m.p), 1 / len(m.p)))
                               for m in members]  # fmt: skip
    for round_ in range(ROUNDS):
        total = 0.0
        for k, m in enumerate(members):
            q = m.p.numpy()
            M = (C * np.log(C)).sum(1)[:, None] - C @ np.log(q).T
            plans[k], log = ot.gromov.fused_gromov_wasserstein(
                M, D1, torch.cdist(m.z, m.z).numpy(), symmetric=True, alpha=ALPHA, G0=plans[k],
                log=True,
            )  # fmt: skip
            total += float(log["fgw_dist"]) / len(members)
        B = sum(n * P @ m.p.numpy() for P, m in zip(plans, members, strict=True)) / len(members)
        model = NMF(RANK, solver="mu", beta_loss="kullback-leibler", init="random",
                    random_state=round_)  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # 200 updates seldom meet its tolerance
            C = np.maximum(model.fit_transform(B) @ model.components_, 1e-12)
        C /= C.sum(1, keepdims=True)
        if abs(last - total) < 1e-3:
            break
        last = total
    return torch.from_numpy(C), [torch.from_numpy(np.asarray(P)) for P in plans]


if __name__ == "__main__":
    sys.exit(main())
