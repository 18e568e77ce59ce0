"""The consensus of several slices: couplings and low-rank expression that lower one function."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from algorithms.errors import Caution, IllPosed
from algorithms.iterate import Stop, Watch, iterate, quietly, unwatched
from algorithms.sparse import SparsePlan
from algorithms.spatial.align import AS_COUNTS, Alignment
from algorithms.spatial.expression import Expression
from algorithms.spatial.frames import distances
from algorithms.spatial.fused import (
    NEARLY_ZERO,
    Descent,
    Fused,
    descend,
    frank_wolfe_gap,
    from_plan,
    product,
    terms,
)
from algorithms.spatial.motions import matched_motion
from algorithms.spatial.pairs import Ends, aligned_pairs
from algorithms.spatial.panel import Member, panel
from algorithms.spatial.programmes import divergence, first_factors, improved, log_proportions
from algorithms.spatial.slice import Slice
from algorithms.spatial.starts import shared

# Multiplicative updates of the first factors, and of each round: these go on from the last.
FIRST_UPDATES, UPDATES = 200, 50
# A descent of a round ends when a step gains less; it goes on in the next round.
STEP_TOL, STEPS = 1e-7, 50


@dataclass(frozen=True)
class Part:
    """How one slice takes part: its plan from the centre, its motion onto it, its terms."""

    plan: SparsePlan
    transform: Float[Tensor, "3 3"]
    weight: float
    value: Float[Tensor, ""]
    transport_cost: Float[Tensor, ""]
    distortion: Float[Tensor, ""]


@dataclass(frozen=True)
class Tried:
    """What became of one template."""

    template: int
    value: float
    iterations: int
    status: str


@dataclass(frozen=True)
class Certificate:
    """What can be recomputed from the factors and plans that are returned.

    Attributes:
        marginal_error: largest L1 error of a marginal of any plan.
        largest_rise: largest rise of the objective in a half-step; rounding when monotone.
        value_difference: objective carried along minus objective recomputed.
        row_sum_error: largest distance of a row sum of W H from 1.
        frank_wolfe_gap: sum over slices of weight times gap: what a linear step could gain.
        factor_loss: mean KL(B || W H) of a spot: what the rank leaves out.
    """

    marginal_error: float
    largest_rise: float
    value_difference: float
    row_sum_error: float
    frank_wolfe_gap: float
    factor_loss: float


@dataclass(frozen=True)
class Center:
    """The consensus slice. Rows of plans count its spots, columns the rows of the files."""

    template: int
    ids: tuple[str, ...]
    kept: Int[Tensor, "n"]
    coordinates: Float[Tensor, "n 2"]
    genes: tuple[str, ...]
    W: Float[Tensor, "n r"]
    H: Float[Tensor, "r g"]
    value: Float[Tensor, ""]
    trace: Float[Tensor, "t"]
    parts: tuple[Part, ...]
    tried: tuple[Tried, ...]
    certificate: Certificate
    stop: Stop
    cautions: tuple[Caution, ...]


def center(
    slices: tuple[Slice, ...],
    *,
    weights: tuple[float, ...] | None = None,
    rank: int = 15,
    template: int | None = None,
    alpha: float = 0.1,
    expression: Expression = AS_COUNTS,
    scale: Literal["auto", "pitch", "none"] = "auto",
    tol: float = 3e-4,
    max_iter: int = 30,
    generator: torch.Generator,
    watch: Watch = unwatched,
) -> Center:
    r"""Compute a slice of n spots and rank-r expression that is closest to all given slices.

        min  sum_k w_k [ (1 - alpha) sum_ij P^k_ij KL(x^k_j || (W H)_i)
                         + alpha sum_ii'jj' (D_ii' - D^k_jj')^2 P^k_ij P^k_i'j' ]

    over couplings P^k of the uniform masses and W, H >= 0, where x^k_j are the gene proportions of
    spot j of slice k (after `expression.floor` is added) and D the distances between the spots of
    the template. With B = n sum_k w_k P^k x^k, whose rows sum to 1, the first term is a constant
    plus KL(B || W H) / n, so that both half-steps lower this one function: conditional gradient
    for the plans, from those of the last round; multiplicative updates for W H, from the last.

    Shapes: W (n, r), H (r, genes), plans of n x n_k; coordinates (n, 2).

    Args:
        weights: w_k, scaled to sum to 1; None weighs all alike.
        rank: r, the number of programmes.
        template: the slice whose spots the centre has; None tries each and keeps the best.
        alpha, expression, scale: as for `spatial.align`; dissimilarity is kl.
        tol: relative fall of the objective in one round at which the rounds end.
        max_iter: rounds for each template.
        generator: draws the first factors; the same for each template.

    Returns:
        template, ids, kept, coordinates: the spots of the centre.
        genes, W, H: its expression W H, proportions: rows of W and of H sum to 1.
        value: the objective, recomputed; trace: its course, plans and factors in turn.
        parts: plan, motion and terms of each slice.
        tried: each template, the best first.
        certificate: what proves the answer (`Certificate`).
        stop: how the rounds of the best template ended.
        cautions: the status of rounds that did not converge.

    Notes:
        K (K - 1) / 2 fast alignments, then per round and slice a product O(n n_k genes) and a few
        transport problems. Memory: proportions of all spots in float64. The objective falls to a
        stationary point, not to a global minimum. No gradient: plans are piecewise constant.

    References:
        Zeira, Land, Strzalkowski, Raphael 2022, doi:10.1038/s41592-022-01459-6 (centre slices);
        Lee and Seung 2001, "Algorithms for non-negative matrix factorization".
    """
    shares = _shares(len(slices), weights)
    _check(len(slices), template, expression)
    watch = shared(watch)
    members, genes, unit = panel(slices, expression, scale)
    templates = list(range(len(slices))) if template is None else [template]
    options: dict[str, Any] = {
        "alpha": alpha, "expression": expression, "scale": unit, "effort": "fast",
    }  # fmt: skip
    ends = [(k, l) for k in range(len(slices)) for l in range(k) if {k, l} & set(templates)]
    found = aligned_pairs(slices, ends, options, watch)
    drawn = generator.get_state()
    runs = []
    for own in templates:
        generator.set_state(drawn)
        task = _Task(own, members, shares, alpha, rank)
        runs.append(_run(task, _first_plans(task, found), generator, tol, max_iter, watch))
    runs.sort(key=lambda run: float(run.state.value))
    return _written(slices, genes, runs)


def _shares(count: int, weights: tuple[float, ...] | None) -> tuple[float, ...]:
    given = weights or (1.0,) * count
    if len(given) != count:
        raise IllPosed("weights", f"{len(given)} weights for {count} slices")
    if min(given) < 0 or sum(given) <= 0:
        raise IllPosed("weights", f"must not be negative, nor all 0; they are {list(given)}")
    return tuple(w / sum(given) for w in given)


def _check(count: int, template: int | None, expression: Expression) -> None:
    if template is not None and template >= count:
        raise IllPosed("template", f"is {template}; there are {count} slices, counted from 0")
    if expression.dissimilarity != "kl":
        raise IllPosed(
            "expression.dissimilarity",
            f"the centre is fitted by kl, not {expression.dissimilarity}",
        )


@dataclass(frozen=True)
class _Task:
    """The problem that one template poses."""

    template: int
    members: tuple[Member, ...]
    shares: tuple[float, ...]
    alpha: float
    rank: int

    @property
    def own(self) -> Member:
        """Return the slice that gives the spots."""
        return self.members[self.template]

    def problems(self, W: Tensor, H: Tensor) -> list[Fused]:
        """Pose the coupling problem of each slice against the centre's expression."""
        D1, logs = distances(self.own.z / self.own.unit), log_proportions(W, H)
        n = len(D1)
        a = torch.full((n,), 1 / n, dtype=D1.dtype)
        posed = []
        for member in self.members:
            m = len(member.p)
            M = (member.entropy - logs @ member.p.T).clamp_min(0.0)  # (n, g) (g, m); Gibbs
            b = torch.full((m,), 1 / m, dtype=D1.dtype)
            posed.append(Fused(M, D1, distances(member.z / member.unit), a, b, self.alpha))
        return posed

    def carried(self, plans: list[Tensor]) -> Float[Tensor, "n g"]:
        """Average the expression that the plans bring to each spot: B, rows sum to 1."""
        n = len(self.own.p)
        parts = zip(self.shares, plans, self.members, strict=True)
        return sum((n * w * (P @ member.p) for w, P, member in parts), torch.zeros_like(self.own.p))


@dataclass(frozen=True, eq=False)
class _State:
    """Plans and factors after some rounds, and the objective after each half-step."""

    plans: list[Tensor]
    W: Float[Tensor, "n r"]
    H: Float[Tensor, "r g"]
    problems: list[Fused]
    trace: tuple[float, ...]
    change: float

    @property
    def value(self) -> float:
        """Return the objective."""
        return self.trace[-1]


@dataclass(frozen=True, eq=False)
class _Run:
    task: _Task
    state: _State
    stop: Stop


def _first_plans(task: _Task, found: dict[Ends, Alignment]) -> list[Tensor]:
    """Take the plans of the alignments of the template with each slice, and itself with itself."""
    plans = []
    for k, member in enumerate(task.members):
        if k == task.template:
            n = len(member.p)
            plans.append(torch.eye(n, dtype=torch.float64) / n)
            continue
        turned = (task.template, k) not in found
        plan = found[k, task.template].plan if turned else found[task.template, k].plan
        rows, cols = (plan.cols, plan.rows) if turned else (plan.rows, plan.cols)
        P = torch.zeros(len(task.own.p), len(member.p), dtype=torch.float64)
        here = torch.searchsorted(task.own.kept, rows), torch.searchsorted(member.kept, cols)
        plans.append(P.index_put(here, plan.mass.double(), accumulate=True))
    return plans


def _run(
    task: _Task,
    plans: list[Tensor],
    generator: torch.Generator,
    tol: float,
    max_iter: int,
    watch: Watch,
) -> _Run:
    B = task.carried(plans)
    if task.rank > min(B.shape):
        raise IllPosed(
            "rank",
            f"is {task.rank}; the centre has {B.shape[0]} spots and {B.shape[1]} genes, and no "
            "more programmes than either",
        )
    W, H = improved(B, *first_factors(B, task.rank, generator), FIRST_UPDATES)
    problems = task.problems(W, H)
    state = _State(plans, W, H, problems, (_objective(task, problems, plans),), 1.0)
    quiet = quietly(watch)
    state, stop = iterate(
        lambda s: _round(task, s, quiet),
        lambda s: s.change,
        state,
        tol=tol,
        max_iter=max_iter,
        watch=watch,
    )
    return _Run(task, state, stop)


def _round(task: _Task, state: _State, watch: Watch) -> _State:
    """Lower the objective over the plans, then over the factors."""
    plans = [
        descend(problem, from_plan(problem, P), tol=STEP_TOL, max_iter=STEPS, watch=watch)[0].P
        for problem, P in zip(state.problems, state.plans, strict=True)
    ]
    between = _objective(task, state.problems, plans)
    W, H = improved(task.carried(plans), state.W, state.H, UPDATES)
    problems = task.problems(W, H)
    value = _objective(task, problems, plans)
    size = sum(w * product(p).value for w, p in zip(task.shares, problems, strict=True))
    change = (state.value - value) / max(abs(value), NEARLY_ZERO * float(size))
    trace = (*state.trace, between, value)
    return replace(
        state, plans=plans, W=W, H=H, problems=problems, trace=trace, change=max(change, 0.0)
    )


def _objective(task: _Task, problems: list[Fused], plans: list[Tensor]) -> float:
    parts = zip(task.shares, problems, plans, strict=True)
    return float(sum(w * terms(problem, P)[0] for w, problem, P in parts))


def _written(slices: tuple[Slice, ...], genes: tuple[str, ...], runs: list[_Run]) -> Center:
    """Recompute everything that is reported from the factors and plans that are returned."""
    best = runs[0]
    task, state = best.task, best.state
    problems = task.problems(state.W, state.H)
    parts = tuple(_part(task, k, problems[k], P) for k, P in enumerate(state.plans))
    value = sum((w * p.value for w, p in zip(task.shares, parts, strict=True)), torch.tensor(0.0))
    rises = [b - a for a, b in zip(state.trace, state.trace[1:], strict=False)]
    errors = [
        float(max((P.sum(1) - f.a).abs().sum(), (P.sum(0) - f.b).abs().sum()))
        for P, f in zip(state.plans, problems, strict=True)
    ]
    gaps = [_gap(f, from_plan(f, P)) for f, P in zip(problems, state.plans, strict=True)]
    certificate = Certificate(
        marginal_error=max(errors),
        largest_rise=max([0.0, *rises]),
        value_difference=state.value - float(value),
        row_sum_error=float(((state.W @ state.H).sum(1) - 1).abs().max()),
        frank_wolfe_gap=sum(w * gap for w, gap in zip(task.shares, gaps, strict=True)),
        factor_loss=divergence(task.carried(state.plans), state.W, state.H),
    )
    piece, stop = slices[task.template], best.stop
    told = () if stop.status == "converged" else (_unfinished(stop),)
    return Center(
        template=task.template,
        ids=tuple(piece.ids[k] for k in task.own.kept.tolist()),
        kept=task.own.kept,
        coordinates=task.own.z,
        genes=genes,
        W=state.W,
        H=state.H,
        value=value,
        trace=torch.tensor(state.trace, dtype=torch.float64),
        parts=parts,
        tried=tuple(
            Tried(r.task.template, r.state.value, r.stop.iterations, r.stop.status) for r in runs
        ),
        certificate=certificate,
        stop=stop,
        cautions=told,
    )


def _gap(problem: Fused, state: Descent) -> float:
    return max(frank_wolfe_gap(problem, state), 0.0)


def _part(task: _Task, k: int, problem: Fused, P: Tensor) -> Part:
    rows, cols = P.nonzero(as_tuple=True)
    member, mass = task.members[k], P[rows, cols]
    value, transport_cost, distortion = terms(problem, P)
    transform = matched_motion(
        member.z[cols], task.own.z[rows], mass, scale=task.own.unit / member.unit
    )
    plan = SparsePlan(rows, member.kept[cols], mass)
    return Part(plan, transform, task.shares[k], value, transport_cost, distortion)


def _unfinished(stop: Stop) -> Caution:
    return Caution(
        stop.status,
        f"the rounds ended as {stop.status} after {stop.iterations}, the last one lowering the "
        f"objective by {stop.residual:.2g} of itself",
        "raise max_iter or tol" if stop.status == "max_iter" else "run it again to its end",
    )
