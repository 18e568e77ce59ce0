"""Near-optimal transport of large clouds in linear memory, with bounds."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from algorithms.errors import Caution, IllPosed
from algorithms.geometry import PointClouds
from algorithms.iterate import Stop, Watch, iterate, quietly, unwatched
from algorithms.linear.block_bound import dual_bound, independent_cost, moment_bound
from algorithms.linear.halving import Plan, block_pass, halved, scaled, split_masses
from algorithms.linear.plan_blocks import plan_pass
from algorithms.measures import same_mass, weights
from algorithms.sparse import SparsePlan

Cost = Literal["sqeuclidean", "euclidean"]
Bound = Literal["auto", "dual", "moments"]

# Blocks grow from the first size to the last, by factors of two, whenever a pass gains less than
# the share: small blocks are cheaper for what they gain, until they gain little.
SMALLEST, WORTH = 128, 0.01
# The last size: for bijections of few points, for most questions, and beyond many points.
LARGEST_OF_FEW, LARGEST, LARGEST_OF_MANY = 1024, 512, 256
FEW, MANY = 10_000, 50_000
# Weights that differ by less, relatively, are equal.
EQUAL = 1e-13
# Pairs of points for which `auto` computes the dual bound: some seconds.
PAIRS = 500_000_000
WIDE_GAP = 0.1


@dataclass(frozen=True)
class Certificate:
    """What is known of the plan and of the optimum, recomputed from what is returned.

    Attributes:
        marginal_error_a: `|P 1 - a|_1`.
        marginal_error_b: `|P^T 1 - b|_1`.
        bijective: every target is the image of exactly one source; None where weights differ.
        lower_bound: no plan costs less.
        relative_gap: `1 - lower_bound / value`: the cost is at most so far above the optimum, as a
            share of itself.
        bound: how the lower bound was found, `dual` or `moments`.
        pairs_checked: pairs of points that were evaluated for it.
        independent_cost: the cost of `a b^T`, which ignores the points; None for distances.
    """

    marginal_error_a: float
    marginal_error_b: float
    bijective: bool | None
    lower_bound: float
    relative_gap: float
    bound: str
    pairs_checked: int
    independent_cost: float | None


@dataclass(frozen=True)
class RefinedPlan:
    """A sparse plan, its map where it is a bijection, its cost, and a bound of the optimum."""

    plan: SparsePlan
    map: Int[Tensor, "n"] | None
    value: Float[Tensor, ""]
    transport_cost: Float[Tensor, ""]
    method: str
    block: int
    certificate: Certificate
    stop: Stop
    cautions: tuple[Caution, ...]


@dataclass(frozen=True)
class Question:
    """The points that have mass, in the unit box, with weights of total one; float64 on the CPU."""

    x: Float[Tensor, "n d"]
    y: Float[Tensor, "m d"]
    a: Float[Tensor, "n"]
    b: Float[Tensor, "m"]
    cost: Cost
    uniform: bool


@dataclass(frozen=True)
class Progress:
    """The plan so far, its cost, what the last two passes gained, and the next pass."""

    plan: Plan
    value: float
    gains: tuple[float, float]
    leaf: int
    turn: int = 0


def refine(
    x: Float[Tensor, "n d"],
    y: Float[Tensor, "m d"],
    a: Float[Tensor, "n"] | None = None,
    b: Float[Tensor, "m"] | None = None,
    *,
    cost: Cost = "sqeuclidean",
    leaf: int | None = None,
    passes: int = 40,
    tol: float = 1e-3,
    bound: Bound = "auto",
    generator: torch.Generator,
    watch: Watch = unwatched,
) -> RefinedPlan:
    r"""Find a plan P with small `sum_ij P_ij c(x_i, y_j)`, `P >= 0`, `P 1 = a`, `P^T 1 = b`.

    c is the squared distance (not halved) or the distance. Both clouds are halved together until
    blocks are small; these are solved exactly; then passes divide the pairs into blocks anew and
    solve each exactly, which never raises the cost. With equal weights and n = m the plan is a
    bijection, else atoms on a cut are divided. Nothing of size n x m is held.

    Shapes: x (n, d), y (m, d), a (n,), b (m,).

    Args:
        a: source weights, at least zero; None is uniform with mass one.
        b: target weights; rescaled to the mass of a where they differ by less than 1e-5 of it.
        leaf: largest block that is solved exactly; None starts at 128 and goes to 512 when passes
            gain less than 1 % (to 1,024 for bijections of up to 10,000 points, to 256 beyond
            50,000).
        passes: most passes.
        tol: two successive passes that each gain less, relatively, end the refinement.
        bound: `dual` evaluates all pairs several times, in blocks; `moments` takes time O(n d^2)
            and is far from the optimum unless one cloud is nearly an affine image of the other;
            `auto` is `dual` up to 5e8 pairs.
        generator: draws the directions of cuts; the answer is a function of its seed.
        watch: asked between levels, passes and chunks of blocks. A no ends with the plan so far,
            which is feasible.

    Returns:
        A `RefinedPlan`: the sparse `plan`; `map`, the target of each source, where the plan is a
        bijection; `value` and `transport_cost`, both the cost of the plan; `method` (`bijection`
        or `masses`); `block`, the size of the last blocks; a `Certificate` with a lower bound of
        the optimum; the `Stop`, whose `converged` says that passes no longer pay, and whose
        residual is the larger of the last two gains; cautions.

    Notes:
        float64 on the CPU inside. Time O(n leaf^2) a pass at worst, memory O((n + m) d) and 100
        MB; as many threads as torch may use. Problems that fit one block are solved exactly.
        Gradients of `value` for x and y: the plan is held fixed, as it is between the points where
        it jumps.

    References:
        Halmos, Gold, Liu, Raphael 2025, arXiv:2503.03025 (hierarchical refinement); Gelbrich
        1990, doi:10.1002/mana.19901470121 (moments).
    """
    _check(x, y, cost)
    weight_a, weight_b = weights("a", a, len(x), x), weights("b", b, len(y), x)
    weight_b, cautions = same_mass(weight_a, weight_b)
    p, q = (w.detach().double().cpu() for w in (weight_a, weight_b))
    question, alive = _question(x, y, p, q, cost)
    progress, stop = _refined(question, leaf, passes, tol, generator, watch)
    rows, cols, mass = progress.plan
    rows, cols = (end[i].to(x.device) for end, i in zip(alive, (rows, cols), strict=True))
    plan = SparsePlan(rows, cols, (mass * p.sum()).to(weight_a))
    wide = PointClouds(x.double(), y.double(), cost)
    value = (wide.entries(rows, cols) @ plan.mass.double()).to(x)
    least = _least(question, progress.plan, _chosen(bound, question, stop), generator, watch)
    unit = _unit(x, y, cost) * float(p.sum())
    certificate = _certificate(plan, p, q, question.uniform, float(value.detach()), least, unit)
    cautions += _cautions(certificate, stop, progress, len(x) * len(y))
    return RefinedPlan(
        plan,
        cols.clone() if question.uniform else None,
        value,
        value,
        "bijection" if question.uniform else "masses",
        progress.leaf,
        certificate,
        stop,
        cautions,
    )


def _check(x: Tensor, y: Tensor, cost: Cost) -> None:
    """Refuse clouds that are empty, not finite, of unequal dimension, or too far apart."""
    for name, points in (("x", x), ("y", y)):
        if not points.numel():
            raise IllPosed(name, f"is empty, of shape {tuple(points.shape)}")
        if not bool(points.isfinite().all()):
            raise IllPosed(name, "holds NaN or infinity; every entry must be finite")
    if x.shape[1] != y.shape[1]:
        raise IllPosed("y", f"has {y.shape[1]} coordinates a point; expected {x.shape[1]}, as x")
    if not math.isfinite(PointClouds(x, y, cost).bound()):
        raise IllPosed("x", "costs overflow float64; rescale the points")


def _question(
    x: Tensor, y: Tensor, p: Tensor, q: Tensor, cost: Cost
) -> tuple[Question, tuple[Tensor, Tensor]]:
    """Scale points and weights, leave out what has no mass; return also which points are left."""
    alive = p.nonzero()[:, 0], q.nonzero()[:, 0]
    points = scaled(x.detach().double().cpu(), y.detach().double().cpu())
    (x, y), (a, b) = (
        [w[kept] for w, kept in zip(both, alive, strict=True)] for both in (points, (p, q))
    )
    a, b = a / a.sum(), b / b.sum()
    uniform = len(a) == len(b) and float((torch.cat([a, b]) * len(a) - 1).abs().amax()) < EQUAL
    whole = len(a) == len(p) and len(b) == len(q)
    return Question(x, y, a, b, cost, uniform and whole), alive


def _unit(x: Tensor, y: Tensor, cost: Cost) -> float:
    """Return the cost, in units of the points, of one unit of the box."""
    both = torch.cat([x, y]).detach().double()
    half = float((both.amax(0) / 2 - both.amin(0) / 2).amax())
    half = half if half > 0 else 1.0
    return half if cost == "euclidean" else half**2


def _refined(
    question: Question,
    leaf: int | None,
    passes: int,
    tol: float,
    generator: torch.Generator,
    watch: Watch,
) -> tuple[Progress, Stop]:
    """Halve, solve the leaves, and pass over blocks while that pays."""
    last = leaf or _largest(question)
    first = leaf or (last if len(question.x) <= last else SMALLEST)
    plan = _first_plan(question, first, generator, watch)
    # one block that holds all is the whole problem: no pass can gain
    whole = max(len(question.x), len(question.y)) <= first and question.uniform
    unknown = (0.0, 0.0) if whole else (1.0, 1.0)

    def step(now: Progress) -> Progress:
        plan = _passed(question, now, generator, watch)
        value = _price(question, plan)
        gain = 1 - value / now.value if now.value > 0 else 0.0
        gains = (now.gains[1], gain)
        size = now.leaf
        if size < last and gain < WORTH:
            size, gains = min(2 * size, last), (1.0, 1.0)
        return Progress(plan, value, gains, size, now.turn + 1)

    return iterate(
        step,
        lambda now: max(now.gains),
        Progress(plan, _price(question, plan), unknown, first),
        tol=tol,
        max_iter=passes,
        watch=watch,
    )


def _largest(question: Question) -> int:
    n = max(len(question.x), len(question.y))
    if question.uniform and n <= FEW:
        return LARGEST_OF_FEW
    return LARGEST if n <= MANY else LARGEST_OF_MANY


def _first_plan(question: Question, leaf: int, generator: torch.Generator, watch: Watch) -> Plan:
    x, y, a, b, cost = question.x, question.y, question.a, question.b, question.cost
    quiet = quietly(watch)
    if not question.uniform:
        return split_masses(x, a, y, b, generator=generator, watch=quiet, cost=cost)
    sigma = halved(x, y, leaf=leaf, generator=generator, watch=quiet, cost=cost)
    return torch.arange(len(x)), sigma, a


def _passed(question: Question, now: Progress, generator: torch.Generator, watch: Watch) -> Plan:
    x, y, cost, quiet = question.x, question.y, question.cost, quietly(watch)
    leaf, turn = now.leaf, now.turn
    if not question.uniform:
        return plan_pass(
            x, y, now.plan, turn, leaf=leaf, generator=generator, watch=quiet, cost=cost
        )  # fmt: skip
    rows, sigma, mass = now.plan
    sigma = block_pass(x, y, sigma, turn, leaf=leaf, generator=generator, watch=quiet, cost=cost)
    return rows, sigma, mass


def _price(question: Question, plan: Plan) -> float:
    rows, cols, mass = plan
    return float(PointClouds(question.x, question.y, question.cost).entries(rows, cols) @ mass)


def _chosen(bound: Bound, question: Question, stop: Stop) -> str:
    """Settle which bound is computed: whoever was told to stop does not start on all pairs."""
    if stop.status == "interrupted":
        return "moments"
    if bound == "auto":
        return "dual" if len(question.x) * len(question.y) <= PAIRS else "moments"
    return bound


def _least(
    question: Question, plan: Plan, bound: str, generator: torch.Generator, watch: Watch
) -> tuple[float, str, int, float | None]:
    """Bound the optimum below: the bound, how it was found, pairs; and the independent cost."""
    x, y, a, b, cost = question.x, question.y, question.a, question.b, question.cost
    least, pairs, found_by = moment_bound(x, a, y, b, cost), 0, "moments"
    if bound == "dual":
        dual, pairs = dual_bound(
            x, a, y, b, plan, cost=cost, generator=generator, watch=quietly(watch)
        )
        if dual >= least:
            least, found_by = dual, "dual"
    apart = independent_cost(x, a, y, b) if cost == "sqeuclidean" else None
    return least, found_by, pairs, apart


def _certificate(
    plan: SparsePlan,
    p: Float[Tensor, "n"],
    q: Float[Tensor, "m"],
    uniform: bool,
    value: float,
    least: tuple[float, str, int, float | None],
    unit: float,
) -> Certificate:
    """Recompute the constraints from the plan; bring the bound into units of the points."""
    rows, cols, mass = plan.rows.cpu(), plan.cols.cpu(), plan.mass.double().cpu()
    off_a = torch.zeros_like(p).index_add(0, rows, mass) - p
    off_b = torch.zeros_like(q).index_add(0, cols, mass) - q
    bijective = bool((torch.bincount(cols, minlength=len(q)) == 1).all()) if uniform else None
    low, found_by, pairs, apart = least
    low = low * unit
    gap = 1 - low / value if value > 0 else 0.0
    return Certificate(
        float(off_a.abs().sum()),
        float(off_b.abs().sum()),
        bijective,
        low,
        gap,
        found_by,
        pairs,
        None if apart is None else apart * unit,
    )


def _cautions(seen: Certificate, stop: Stop, progress: Progress, pairs: int) -> tuple[Caution, ...]:
    """Say what keeps the answer from being as good as it looks."""
    found: list[Caution] = []
    if seen.relative_gap > WIDE_GAP:
        hint = "more passes, a smaller tol or a larger leaf bring the cost down"
        if seen.bound == "moments":
            hint = f"the bound is from moments; `dual` evaluates all {pairs:.1e} pairs, repeatedly"
        found.append(
            Caution(
                "wide_gap",
                f"the cost may be up to {seen.relative_gap:.0%} of itself above the optimum",
                hint,
            )
        )
    if stop.status == "max_iter":
        found.append(
            Caution(
                "passes_spent",
                f"{stop.iterations} passes ended while one still gained {stop.residual:.1e}",
                f"allow more passes; blocks held up to {progress.leaf} pairs",
            )
        )
    return tuple(found)
