"""Entropic optimal transport, balanced or not."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.entropic.entropic_plan import EntropicPlan
from algorithms.entropic.penalised import (
    BALANCED,
    Ask,
    Found,
    checked,
    entropic,
    simplified,
)
from algorithms.entropic.potentials import floor_caution, largest_cost
from algorithms.entropic.readings import PlanForm, barycentric_map, entries_of
from algorithms.entropic.small_answers import answer_small
from algorithms.entropic.streamed_answer import Reading, mean_cost, streamed_answer, streams
from algorithms.errors import Caution, IllPosed
from algorithms.geometry import Geometry, PointClouds
from algorithms.iterate import Watch, unwatched
from algorithms.marginals import Marginal
from algorithms.measures import costs_within, weights

Method = Literal["auto", "dense", "streamed"]
Reference = Literal["product", "counting"]
# The entropic strength of a question that names none, in means of the cost.
RELATIVE = 0.05
# A plan this near to a b^T, in KL a unit of mass, says nothing of the cost.
INDEPENDENT = 1e-3
# Mass below this share of the lighter measure: nearly everything was destroyed.
DESTROYED = 1e-6


def sinkhorn(
    geometry: Geometry,
    a: Float[Tensor, "n"] | None = None,
    b: Float[Tensor, "m"] | None = None,
    *,
    epsilon: float | None = None,
    epsilon_relative: float | None = None,
    marginal_a: Marginal = BALANCED,
    marginal_b: Marginal = BALANCED,
    entropy_reference: Reference = "product",
    f0: Float[Tensor, "n"] | None = None,
    g0: Float[Tensor, "m"] | None = None,
    tol: float = 1e-6,
    max_iter: int = 10_000,
    method: Method = "auto",
    plan_form: PlanForm = "dense",
    top: int = 10,
    barycentric: bool = False,
    rounded: bool = False,
    watch: Watch = unwatched,
) -> EntropicPlan:
    r"""Solve `min_P <P, C> + D_a(P 1 | a) + D_b(P^T 1 | b) + epsilon KL(P | a b^T)`, `P >= 0`.

    C (n, m) is the cost matrix of `geometry`, a and b the weights of source and target,
    `KL(p|q) = sum p log(p/q) - p + q`, D_a and D_b what each marginal owes to its weights (see
    `algorithms.marginals`): balanced on both sides is entropic optimal transport. The optimum is
    `P_ij = a_i b_j exp((f_i + g_j - C_ij)/epsilon)`. Sinkhorn's alternating scaling of a stabilised
    kernel, over-relaxed once it is nearly linear, annealed when osc(C)/epsilon exceeds 1,000;
    unless both sides are balanced, each sweep ends with the best shift (f + t, g - t).

    Shapes: geometry (n, m), a (n,), b (m,), f0 (n,), g0 (m,).

    Args:
        a: source weights, at least zero; None is uniform with mass one. A zero means absent: its
            row of the plan is zero and its potential what a vanishing mass there would have.
        b: target weights; of balanced problems rescaled to the mass of a where they differ by
            less than 1e-5 of it.
        epsilon: entropic strength, in units of C.
        epsilon_relative: the same in means of the finite entries of C; without either 0.05.
        marginal_a: what `P 1` owes to a. marginal_b: what `P^T 1` owes to b.
        entropy_reference: `counting` replaces the entropic term by `epsilon sum P (log P - 1)`, and
            then `P_ij = exp((f_i + g_j - C_ij)/epsilon)`: the same plan when both sides are
            balanced, another when not.
        f0: potentials to start from, as an earlier answer gave them; g0 is used where f0 is None.
        tol: stop when the marginals miss those that are optimal for f and g by less than this share
            of the mass, in L1 and both together. For a balanced side that is the marginal error.
        method: `dense` keeps the kernel; `streamed` never forms an (n, m) matrix: it is slower, and
            for point clouds with cost sqeuclidean only. `auto` streams what is too large for
            memory and asks for no dense plan.
        plan_form: `sparse` returns entries above a thousandth of the mean of their row, `top` the
            largest `top` entries of each row, `none` neither.
        barycentric: return `map` also, of point clouds.
        rounded: return the plan moved to marginals that balanced and range sides allow, at most
            `2 max(C) |error|_1` away in cost; `transport_cost` and `value` are then its own.
        watch: asked every ten sweeps whether to go on.

    Returns:
        An `EntropicPlan`: `plan`, or `entries` and the mass `dropped` by them; `map`, the mean
        `sum_j P_ij y_j / mu_i` of where a point goes; `f`, `g`, balanced in the gauge `<f, a> = 0`;
        the `epsilon` that was used; `value`, the whole objective at the plan; `transport_cost`,
        `<P, C>` alone; the `mass` of the plan and its marginals `rows` and `columns`; a
        `Certificate`; the `Stop`, with the error of the plan as residual; cautions. Potentials are
        rounded to the type of C before the plan is made of them: in float32 the error has a floor
        near 1e-8 max|C|/epsilon.

    Notes:
        Time O(n m) a sweep; memory 2 n m besides C. float64 exponents. Balanced problems need about
        1/epsilon sweeps, others at most as many. Infinite costs forbid a pair.
        Gradients: `value` by the envelope theorem, dV/dC = P; balanced dV/da = f, dV/db = g +
        2 epsilon (m - 1), m the mass: right along every change of a and b that keeps their masses
        equal; else dV/da = -phi*(-f) - epsilon (P 1 / a - m(b)), phi* the conjugate of the penalty.
        `plan`, its sums, `map`, `f`, `g`, `transport_cost` by the implicit function theorem, one
        linear system solved by conjugate gradients; where a penalty has a kink (tv, range) they
        exist for almost all inputs. Second derivatives of `value` are first ones of those. The
        plan's derivative with respect to an absent weight is taken as zero. Streamed: `value`
        only.

    References:
        Cuturi 2013, arXiv:1306.0895; Chizat, Peyre, Schmitzer, Vialard 2018, arXiv:1607.05816
        (marginals); Schmitzer 2019, arXiv:1610.06519, section 3 (stabilised kernel); Sejourne,
        Vialard, Peyre 2022, arXiv:2201.00730 (shift); Thibault, Chizat, Dossal, Papadakis 2021,
        arXiv:1711.01851 (over-relaxation); Altschuler, Weed, Rigollet 2017, arXiv:1705.09634,
        algorithm 2 (rounding).
    """
    if barycentric and not isinstance(geometry, PointClouds):
        raise IllPosed("barycentric", "needs points: a cost matrix has no place to map to")
    counting = entropy_reference == "counting"
    small = plan_form in ("top", "none") and not (rounded or counting)
    sides = simplified(marginal_a), simplified(marginal_b)
    if method == "streamed" and not small:
        raise IllPosed(
            "method", "streamed forms no plan: plan_form top or none, not rounded, product"
        )
    if method == "streamed" or (method == "auto" and small and streams(geometry)):
        strength = resolved(lambda: mean_cost(geometry), epsilon, epsilon_relative)
        ask = Ask(strength, *sides, tol, max_iter, watch)
        reading = Reading(top if plan_form == "top" else 0, barycentric)
        return EntropicPlan(**vars(streamed_answer(geometry, a, b, ask, reading, (f0, g0))))
    C, ends = costs_within(geometry)
    a, b = weights("a", a, C.shape[0], C), weights("b", b, C.shape[1], C)
    finite = C if ends.finite else torch.where(C.isfinite(), C, 0.0)
    strength = resolved(lambda: float(_present(C).mean()), epsilon, epsilon_relative)
    ask = Ask(strength, *sides, tol, max_iter, watch, rounded)
    largest = largest_cost(C, ends)
    b, cautions = checked(largest, a, b, ask)
    if rounded and ask.hard and not ends.finite:
        raise IllPosed("rounded", "would send mass across forbidden pairs; leave it out")
    if counting:
        priced = counted(C, a, b, strength)
        found = _discounted(entropic(priced, a, b, ask, f0=f0, g0=g0), a, b, strength)
    else:
        priced, found = C, entropic(C, a, b, ask, f0=f0, g0=g0, within=ends)
    plan, entries, image = found.plan, entries_of(found.plan, plan_form, top), None
    cost, mass = _paid(plan, finite), found.rows.sum()
    if barycentric:
        assert isinstance(geometry, PointClouds)
        logs = (b.log() + (found.g - priced) / strength).detach()
        image = barycentric_map(plan, geometry.x, geometry.y, logs)
    cautions += floor_caution(largest, C.dtype, strength, found.stop, tol)
    paid = _paid(plan.detach(), torch.where(priced.isfinite(), priced, 0.0)) if counting else cost
    information = _information(found, paid, a, b, ask)
    lighter = min(float(a.detach().sum()), float(b.detach().sum()))
    cautions += _cautions(C.detach(), ends.finite, lighter, found, ask, information)
    return EntropicPlan(
        plan if plan_form == "dense" else None,
        entries,
        torch.zeros_like(mass) if entries is None else mass.detach() - entries.mass.sum(),
        image,
        *(found.f, found.g, strength, found.value, cost, mass, found.rows, found.columns),
        certificate=found.certificate,
        stop=found.stop,
        cautions=cautions,
    )


def resolved(
    mean_of_cost: Callable[[], float], epsilon: float | None, epsilon_relative: float | None
) -> float:
    """Return the entropic strength in units of the cost, whose mean is asked for if it matters."""
    if epsilon is not None:
        if epsilon_relative is not None:
            raise IllPosed("epsilon_relative", "is given beside epsilon; give one of the two")
        return epsilon
    share = RELATIVE if epsilon_relative is None else epsilon_relative
    if not (math.isfinite(share) and share > 0):
        raise IllPosed("epsilon_relative", f"is {share}; it must be positive and finite")
    mean = mean_of_cost()
    if not mean > 0:
        raise IllPosed("epsilon_relative", f"needs a positive mean cost, and it is {mean:.3g}")
    return share * mean


def counted(
    C: Float[Tensor, "n m"], a: Float[Tensor, "n"], b: Float[Tensor, "m"], epsilon: float
) -> Float[Tensor, "n m"]:
    r"""Return the cost with which the product reference means what the counting one does with C.

    `eps sum P (log P - 1) = <P, eps log(a b^T)> + eps KL(P | a b^T) - eps m(a) m(b)`.
    """
    log_a, log_b = (torch.where(w > 0, w, 1.0).log() for w in (a, b))
    return C + epsilon * (log_a[:, None] + log_b)


def _discounted(found: Found, a: Tensor, b: Tensor, epsilon: float) -> Found:
    """Take from the value what `counted` put in."""
    more = epsilon * a.sum() * b.sum()
    seen = found.certificate
    seen = replace(seen, dual_value=seen.dual_value - float(more.detach()))
    return replace(found, value=found.value - more, certificate=seen)


def _present(C: Float[Tensor, "n m"]) -> Float[Tensor, "k"]:
    """List the costs that are finite, in float64."""
    wide = C.detach().double()
    return wide[wide.isfinite()]


def _paid(P: Float[Tensor, "n m"], C: Float[Tensor, "n m"]) -> Float[Tensor, ""]:
    """Compute `<P, C>`; in float64 without a matrix of products, whose sum float32 needs."""
    return P.flatten().dot(C.flatten()) if P.dtype == torch.float64 else (P * C).sum()


def _information(
    found: Found, cost: Tensor, a: Float[Tensor, "n"], b: Float[Tensor, "m"], ask: Ask
) -> float:
    """Compute `KL(P | a b^T)` of the plan of f, g from its marginals and what it costs."""
    rows, columns, f, g = (z.detach() for z in (found.rows, found.columns, found.f, found.g))
    spread = (rows @ f + columns @ g - cost.detach()).double() / ask.epsilon
    return float(spread - rows.sum() + a.detach().double().sum() * b.detach().double().sum())


def _cautions(
    C: Float[Tensor, "n m"],
    finite: bool,
    lighter: float,
    found: Found,
    ask: Ask,
    information: float,
) -> tuple[Caution, ...]:
    """Say when pairs are forbidden in vain, mass was destroyed, or the cost hardly mattered."""
    mass, stop = float(found.rows.detach().sum()), found.stop
    said: list[Caution] = []
    if ask.hard and stop.status != "converged" and not finite:
        said.append(
            Caution(
                "forbidden_pairs",
                f"{C.numel() - len(_present(C))} of {C.numel()} pairs are forbidden and the"
                f" marginals are missed by {stop.residual:.1e} of the mass: perhaps no plan avoids"
                " them all",
                "relax a marginal, as with kl, or widen delta",
            )
        )
    if mass < DESTROYED * lighter:
        said.append(
            Caution(
                "mass_destroyed",
                f"the plan has mass {mass:.1e}; the lighter measure has {lighter:.3g}",
                f"rho is small beside the costs, of mean {float(_present(C).mean()):.3g}",
            )
        )
    elif min(C.shape) > 1 and information < INDEPENDENT * mass:
        deviation = float(_present(C).std())
        if deviation > 0:
            said.append(
                Caution(
                    "nearly_independent",
                    f"the plan is a b^T up to KL {information:.1e}: the cost hardly matters",
                    f"epsilon is {ask.epsilon / deviation:.1f} standard deviations of the cost;"
                    " lower it",
                )
            )
    return tuple(said)


def many(
    questions: Sequence[Mapping[str, Any]], *, watch: Watch = unwatched
) -> list[EntropicPlan | IllPosed]:
    """Answer many questions: plain small ones in one tensor, every other by `sinkhorn` itself.

    Problems are swept together by shape, each with its own epsilon, tol and max_iter; those that
    have converged leave, and those that crawl are solved alone.
    """
    answers: list[EntropicPlan | IllPosed] = []
    for question, fields in zip(questions, answer_small(questions, RELATIVE, watch), strict=True):
        try:
            alone = fields is None
            answers.append(sinkhorn(**question, watch=watch) if alone else EntropicPlan(**fields))
        except IllPosed as error:
            answers.append(error)
    return answers
