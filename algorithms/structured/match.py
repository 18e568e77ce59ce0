"""Match two clouds that share no coordinates while learning a simple linear map between them."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from algorithms.errors import Caution, IllPosed
from algorithms.iterate import Stop, Watch, unwatched
from algorithms.measures import weights
from algorithms.sparse import SparsePlan
from algorithms.structured.answer import Certificate, Mode, Scores, Terms, answered
from algorithms.structured.couplings import How
from algorithms.structured.preparation import (
    Prepared,
    Scaling,
    Shared,
    Standardize,
    fixed_factors,
    prepared,
    unit_of,
)
from algorithms.structured.problem import Problem
from algorithms.structured.question import Question, resolved
from algorithms.structured.regularizer import Regularizer, penalty
from algorithms.structured.search import Attempt, Search, searched
from algorithms.structured.starts import Starts

FROBENIUS = Regularizer()
# Weight of the squared norm for which the conjugate is that of Gromov-Wasserstein: 1/4 and 1/16.
WEIGHT = {"unit": 1.0, "gw_ip": 0.25, "gw_se": 0.0625}
# Without a word, the entropic strength in units of eps*.
RELATIVE = 0.05
# Entropic plans of so many entries are not formed.
STREAMED_FROM = 1 << 26


@dataclass(frozen=True)
class MatchedClouds:
    """The map, the plan, what they are worth, the other ends of the search, what speaks for it."""

    map: Float[Tensor, "e d"]
    left: Float[Tensor, "e r"] | None
    right: Float[Tensor, "d r"] | None
    plan: SparsePlan | None
    dense_plan: Float[Tensor, "n m"] | None
    dropped: float
    images: Float[Tensor, "n e"]
    f: Float[Tensor, "n"]
    g: Float[Tensor, "m"]
    epsilon: float
    lam: float | None
    value: float
    terms: Terms
    gw: float | None
    mass: float
    singular_values: Float[Tensor, "s"]
    numerical_rank: int
    zeros_percent: float
    source_features: tuple[int, ...]
    target_features: tuple[int, ...]
    center_x: Float[Tensor, "d"]
    center_y: Float[Tensor, "e"]
    scale_x: Float[Tensor, "d"]
    scale_y: Float[Tensor, "e"]
    history: Float[Tensor, "t"]
    attempts: tuple[Attempt, ...]
    modes: tuple[Mode, ...]
    scores: Scores
    certificate: Certificate
    stop: Stop
    cautions: tuple[Caution, ...]


def match(
    x: Float[Tensor, "n d"],
    y: Float[Tensor, "m e"],
    *,
    a: Float[Tensor, "n"] | None = None,
    b: Float[Tensor, "m"] | None = None,
    regularizer: Regularizer = FROBENIUS,
    scaling: Scaling = "unit",
    epsilon: float | None = None,
    epsilon_relative: float | None = None,
    rho_a: float | None = None,
    rho_b: float | None = None,
    center: bool = True,
    standardize: Standardize = "none",
    x_shared: Float[Tensor, "n q"] | None = None,
    y_shared: Float[Tensor, "m q"] | None = None,
    shared_cost: Shared = "sqeuclidean",
    alpha: float = 1.0,
    map0: Float[Tensor, "e d"] | None = None,
    plan0: Float[Tensor, "n m"] | None = None,
    starts: int | None = None,
    anneal: bool = True,
    n_modes: int = 1,
    method: Literal["auto", "dense", "streamed"] = "auto",
    top: int = 10,
    paired: bool = False,
    labels: Float[Tensor, "n"] | None = None,
    target_labels: Float[Tensor, "m"] | None = None,
    neighbours: int = 5,
    tol: float = 1e-6,
    max_iter: int = 500,
    generator: torch.Generator,
    watch: Watch = unwatched,
) -> MatchedClouds:
    r"""Minimise `F(M, P) = -alpha <M, G(P)> + (1 - alpha) <C, P> + R(M) + epsilon KL(P | a b^T)`.

    M (e, d) is a linear map from source to target space, P a plan between a and b (divided by their
    totals), `G(P) = sum_ij P_ij y_j x_i^T` the cross moment of the prepared points, C the cost of
    shared features, R the regularizer: `(q/2) |M - M0|^2 + lam r(M)`, or 0 on a bounded set. With
    `rho_a`, `rho_b` the marginals are free at a price `rho KL`. Best plan and best map in turns,
    neither of which raises F; from many starts, annealed together in one batch, of which the best
    go on. Not convex: the lowest F found is no proof of the lowest, nor of the right match.

    Shapes: x (n, d), y (m, e), a (n,), b (m,), x_shared (n, q), y_shared (m, q), map0 (e, d),
    plan0 (n, m), labels (n,), target_labels (m,).

    Args:
        scaling: `unit` is q = 1; `gw_ip` (1/4) and `gw_se` (1/16, and the cost `-4 |x|^2 |y|^2`)
            make F for `frobenius` equal to inner-product and squared-Euclidean
            Gromov-Wasserstein up to a constant.
        epsilon: entropic strength in units of F. 0 is exact transport by vertices.
        epsilon_relative: the same in units of eps* (see the certificate), to which the mean shared
            cost times 1 - alpha is added; 0.05 without either.
        map0: one more start; plan0 another, by its best map.
        starts: random starts; None is what suits the size.
        anneal: begin at larger strengths, with lam off at first.
        n_modes: how many ends with different plans are listed.
        method: `dense` never switches to exact transport, nor streams; `streamed` forms no matrix;
            `auto` is exact below 1e-4 eps*, and streams above 2^26 pairs.
        tol: a start is at rest when a turn moves M by less than this share of it.
        max_iter: turns of an end that is listed.
        watch: asked once a turn whether to go on.

    Returns:
        The `map` on prepared points `(x - center_x) / scale_x`; its factors for `rank`; the plan by
        its entries (exact, streamed) or as a matrix; `images`, where points go, in the units of y;
        potentials; `value` with its terms; `gw` for the scalings gw_*; attempts, modes, scores; a
        `Certificate`; the `Stop` with the last movement of M as residual; cautions.

    Notes:
        Time O(n m) a sweep of each start between at most 500 points a side, then of the listed
        ends between all; memory 4 n m, or O((n + m) d) streamed. Computed in float64 whatever
        the inputs. No derivatives are declared.

    References:
        Sebbouh, Cuturi, Peyre 2024, arXiv:2311.05788 (the problem, section 3; block-coordinate
        descent, algorithm 1); Pardini, Papagiannouli 2025, arXiv:2511.19075 (unbalanced);
        Memoli 2011, doi:10.1007/s10208-011-9093-5 (Gromov-Wasserstein).
    """
    if map0 is not None and not bool(map0.isfinite().all()):
        raise IllPosed("map0", "holds NaN or infinity")
    wide = [z.detach().double() for z in (x, y)]
    given = _measures(wide[0], wide[1], a, b)
    ready = tuple(prepared(name, z, w, standardize, center=center)
                  for name, z, w in zip("xy", wide, given, strict=True))  # fmt: skip
    _check(regularizer, scaling, alpha, center, (rho_a, rho_b), (x_shared, y_shared))
    shared = None
    if x_shared is not None and y_shared is not None:
        shared = x_shared.detach().double(), y_shared.detach().double()
    q = _question(ready, given, regularizer, scaling, shared, shared_cost, alpha, (rho_a, rho_b))
    q = resolved(q, epsilon, RELATIVE if epsilon_relative is None else epsilon_relative, method,
                 STREAMED_FROM)  # fmt: skip
    ask = Search(_given(q, map0, plan0), starts, anneal, n_modes, tol, max_iter)
    how = How(q.epsilon, max(0.01 * tol, 1e-12), 10_000, watch, q.streamed)
    q = _relative(q, regularizer, ask, how, generator)
    modes, attempts = searched(q.problem, ask, how, generator)
    truth = (paired, labels, target_labels, neighbours)
    found = answered(q, modes, attempts, how, truth, top, wide[1])
    return MatchedClouds(**{name: _as(x, value) for name, value in found.items()})


def _as(x: Tensor, value: Any) -> Any:
    """Return what is an array in the type of the points."""
    return value.to(x.dtype) if isinstance(value, Tensor) else value


def _measures(x: Tensor, y: Tensor, a: Tensor | None, b: Tensor | None) -> tuple[Tensor, Tensor]:
    """Divide the weights by their totals."""
    pair = weights("a", a, len(x), x), weights("b", b, len(y), y)
    return pair[0] / pair[0].sum(), pair[1] / pair[1].sum()


def _check(
    asked: Regularizer,
    scaling: Scaling,
    alpha: float,
    center: bool,
    rho: tuple[float | None, float | None],
    shared: tuple[Tensor | None, Tensor | None],
) -> None:
    """Refuse what has no answer."""
    if rho != (None, None) and not asked.bounded:
        raise IllPosed(
            "rho_a" if rho[0] is not None else "rho_b",
            f"makes the problem unbounded below with {asked.name}: its conjugate grows like the "
            "square of the mass, the prices like mass log mass; take stiefel or a ball, or "
            "transport.unbalanced_gromov",
        )
    if (shared[0] is None) != (shared[1] is None):
        raise IllPosed("y_shared" if shared[1] is None else "x_shared", "is missing; give both")
    if (shared[0] is None) != (alpha == 1):
        raise IllPosed("alpha", f"is {alpha}; alpha < 1 and shared features go together")
    if scaling == "gw_se" and not (center and alpha == 1):
        raise IllPosed("scaling", "gw_se needs centred points and alpha = 1")


def _question(
    ready: tuple[Prepared, ...],
    given: tuple[Tensor, Tensor],
    asked: Regularizer,
    scaling: Scaling,
    shared: tuple[Tensor, Tensor] | None,
    shared_cost: Shared,
    alpha: float,
    rho: tuple[float | None, float | None],
) -> Question:
    """Divide both clouds by their sizes, and keep the points that weigh something."""
    units = unit_of(ready[0].points), unit_of(ready[1].points)
    unit = units[0] * units[1]
    price = unit if asked.bounded else unit**2
    X, Y = ready[0].points / units[0], ready[1].points / units[1]
    left, right = fixed_factors(X, Y, scaling, None, shared_cost)
    mean = 0.0
    if shared is not None:
        s, t = fixed_factors(X, Y, "unit", shared, shared_cost)
        s = (1 - alpha) * s / price
        mean = float(given[0] @ (s @ t.T).abs() @ given[1])
        left, right = torch.cat([left, s], 1), torch.cat([right, t], 1)
    if not (math.isfinite(mean) and bool(left.isfinite().all() and right.isfinite().all())):
        raise IllPosed("x_shared", "costs too much beside the points; rescale the features")
    pen = penalty(asked, WEIGHT[scaling], unit, Y.new_zeros(Y.shape[1], X.shape[1]))
    rows, columns = ((w > 0).nonzero()[:, 0] for w in given)
    prices = [None if r is None else r / price for r in rho]
    every = Problem(X, Y, *given, alpha, (left, right), pen, *prices)
    return Question(every, every.kept(rows, columns), (rows, columns), ready, unit, units, price,
                    scaling, asked, mean)  # fmt: skip


def _given(q: Question, map0: Tensor | None, plan0: Tensor | None) -> Starts | None:
    """Bring starts that the caller knows into the units of the problem."""
    found = list[tuple[str, Tensor]]()
    if map0 is not None:
        found.append(("map0", map0.detach().to(q.problem.X) / (1 if q.asked.bounded else q.unit)))
    if plan0 is not None:
        P = plan0.detach().to(q.problem.X)
        if not bool(P.isfinite().all()) or bool((P < 0).any()) or not bool((P > 0).any()):
            raise IllPosed("plan0", "is not a plan: entries must be >= 0 and have mass")
        found.append(("plan0", q.every.best_map(q.every.moment(P / P.sum()))))
    if not found:
        return None
    return Starts(tuple(name for name, _ in found), torch.stack([M for _, M in found]))


def _relative(
    q: Question, asked: Regularizer, ask: Search, how: How, generator: torch.Generator
) -> Question:
    """Turn a share of the strength that annihilates the map into that strength."""
    if asked.lam_relative is None:
        return q
    plain, _ = searched(q.problem.weaker(0.0), ask, how, generator)
    largest = q.problem.penalty.annihilating(q.problem.alpha * plain[0].ended.seen.G[0])
    return q.with_lam(asked.lam_relative * largest)
