r"""Gromov-Wasserstein between clouds with squared distances: a search over small matrices.

The objective is concave along feasible directions (see `centred`), so a full step of conditional
gradient, `P <- OT(a, b, cost(G))`, `G <- X^T P Y`, is its exact line search. It depends on P
through G only, a matrix of the two dimensions: where the search leads between a few hundred
centres is where it starts between all points.
"""

import itertools
import math
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from algorithms.iterate import Status, Watch, iterate, quietly
from algorithms.linear.staircase import staircase
from algorithms.quadratic.centred import Centred, centred
from algorithms.quadratic.objective import Found, Pair, Plan
from algorithms.quadratic.quantised import part
from algorithms.quadratic.smoothed import STRENGTHS, smoothed
from algorithms.simplex import Vertex, network_simplex
from algorithms.sparse import SparsePlan

# Centres a side where all starts run.
COARSE = 200
# Centres of the levels between them and the clouds, and how many starts go on from each.
LEVELS = ((500, 2), (1000, 1))
# Starts that leave the coarse level, and the relative distance of G below which two are one.
KEPT, APART = 6, 1e-2
# Starts whose value is more than this many times the best are not worth lifting.
HOPELESS = 2.0
# Between so few points every local minimum counts: starts also descend as they are.
FEW = 64
# Random starts, and axes whose signs are all tried.
RANDOM_STARTS, SIGNED_AXES = 20, 4
# Steps between centres, and the fall of the value at which they end.
COARSE_STEPS, COARSE_TOL = 15, 1e-6
# Steps between all points, where they are many and where there are no levels.
STEPS, SMALL_STEPS = 8, 50
# A fall below this share of the value is slow: the next step then goes twice as far.
SLOW, OVER = 1e-2, 2.0
# Values below this share of the scale are rounding of its constants.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Attempt:
    """One start and how far it went.

    Attributes:
        start: its name.
        points: points or centres of the larger side where it was last seen.
        value: objective that it had there, between all points only if `points` is their number.
    """

    start: str
    points: int
    value: float


@dataclass(frozen=True)
class Trail:
    """Where a search is on one level.

    Attributes:
        names: the starts that came here; those after the first came to the same G later.
        G: matrix that the next step starts from.
        plan: best plan seen on this level; None before the first step.
        value: its objective.
        image: its own matrix.
        last: objective of the plan before the present one.
        fall: what the last step gained, as a share of the value; one where that is not known.
        plain: whether G is the matrix of a plan, or further out.
        duals: potentials of the last linear problem on this level.
        steps: linear problems solved, on all levels.
        status: why the last descent ended.
    """

    names: tuple[str, ...]
    G: Float[Tensor, "d e"]
    plan: SparsePlan | None = None
    value: float = math.inf
    image: Float[Tensor, "d e"] | None = None
    last: float = math.inf
    fall: float = 1.0
    plain: bool = True
    duals: tuple[Tensor, Tensor] | None = None
    steps: int = 0
    status: Status = "interrupted"


def solve_points(
    pair: Pair,
    *,
    starts: int | None,
    plan0: Float[Tensor, "n m"] | None,
    tol: float,
    max_iter: int | None,
    generator: torch.Generator,
    watch: Watch,
) -> tuple[list[Found], list[Attempt]]:
    """Search from many starts between centres, lift the best, and finish between all points.

    Points without mass take no part.

    Args:
        starts: random starts besides those that are always tried; None is 20.
        plan0: one more start, taken between all points whatever it is worth.
        tol: a start is at rest when a plain step lowers its value by no more than this share.
        max_iter: steps between all points for each start that comes so far; None is 8, or 50 where
            all points are few enough for every start.
        generator: draws centres and random starts.
        watch: asked before each step.

    Returns:
        Plans between all points, best first, and what became of every start.
    """
    rows, cols = pair.a.nonzero()[:, 0], pair.b.nonzero()[:, 0]
    alive = pair
    if (len(rows), len(cols)) != pair.shape:
        M = None if pair.M is None else pair.M[rows][:, cols]
        X, Y = part(pair.X, rows), part(pair.Y, cols)
        alive = Pair(X, Y, pair.a[rows], pair.b[cols], M, pair.alpha)
        plan0 = None if plan0 is None else plan0[rows][:, cols]
    count = RANDOM_STARTS if starts is None else starts
    level = centred(alive)
    trails, gone = _between_centres(level, count, generator, quietly(watch))
    largest = max(alive.shape)
    if plan0 is not None:
        trails.append(Trail(("given",), level.X.T @ (plan0 / plan0.sum()) @ level.Y))
    budget = (SMALL_STEPS if largest <= COARSE else STEPS) if max_iter is None else max_iter
    told = watch if len(trails) == 1 else quietly(watch)  # one loop at a time reports numbers
    trails = _each(lambda t: _descend(level, t, tol, budget, told), trails)
    trails, given_up = _best(trails, len(trails), largest)
    for trail in trails:
        gone += [Attempt(name, largest, trail.value) for name in trail.names if trail.plan]
    scale = float(pair.a.sum())
    gone = [
        Attempt(
            one.start, max(pair.shape) if one.points == largest else one.points, one.value * scale
        )
        for one in gone + given_up
    ]
    found = [_found(alive, level, t) for t in trails if t.plan] or [_sorted(alive, level)]
    if alive is pair:
        return found, gone
    return [replace(one, plan=_placed(one.plan, rows, cols), f=None, g=None) for one in found], gone


def _placed(P: Plan, rows: Int[Tensor, "n"], cols: Int[Tensor, "m"]) -> SparsePlan:
    assert isinstance(P, SparsePlan)
    return SparsePlan(rows[P.rows], cols[P.cols], P.mass)


def _between_centres(
    whole: Centred, count: int, generator: torch.Generator, watch: Watch
) -> tuple[list[Trail], list[Attempt]]:
    """Run all starts on a few hundred centres, then the best on more; return where they stand."""
    largest = max(len(whole.a), len(whole.b))
    level = whole if largest <= COARSE else whole.coarse(COARSE, generator)
    trails = _smoothed_starts(level, count, generator, watch)
    gone: list[Attempt] = []
    for size, kept in ((COARSE, KEPT), *LEVELS):
        if size >= largest:
            break
        if size > COARSE:
            level = whole.coarse(size, generator)
        descend = partial(_descend, level, tol=COARSE_TOL, steps=COARSE_STEPS, watch=watch)
        trails = _each(descend, trails)
        trails, given_up = _best(trails, kept, size)
        gone += given_up
    return trails, gone


def _smoothed_starts(
    level: Centred, count: int, generator: torch.Generator, watch: Watch
) -> list[Trail]:
    """Make the starts `diag(sd_x) R diag(sd_y)`, R zero, signed axes or semi-orthogonal."""
    d, e = level.X.shape[1], level.Y.shape[1]
    r = min(d, e)
    signed = min(r, SIGNED_AXES)
    names, R = ["product"], [level.X.new_zeros(d, e)]
    for signs in itertools.product((1.0, -1.0), repeat=signed):
        rest = torch.randint(0, 2, (r - signed,), generator=generator, device=generator.device)
        diagonal = torch.cat([level.X.new_tensor(signs), 2 * rest.to(level.X) - 1])
        R.append(torch.zeros_like(R[0]))
        R[-1][:r, :r] = diagonal.diag()
        names.append("axes " + "".join("+" if s > 0 else "-" for s in signs))
    for number in range(count):
        drawn = torch.randn(d, e, generator=generator, device=generator.device).to(level.X)
        u, _, v = torch.linalg.svd(drawn, full_matrices=False)
        R.append(u @ v)
        names.append(f"random {number}")
    x, y = (v.sqrt() for v in level.spreads)
    starts = [x[:, None] * one * y for one in R]
    if level.M is not None:
        names.append("linear")
        starts.append(level.image(_plan(network_simplex(level.a, level.b, level.M))))
    trails = plain = [Trail((name,), G) for name, G in zip(names, starts, strict=True)]
    for strength in STRENGTHS:
        smooth = partial(smoothed, level, strength=strength, watch=watch)
        moved = _each(partial(_moved, smooth), trails)
        trails, _ = _best(moved, len(moved), COARSE)
    if max(len(level.a), len(level.b)) > FEW:
        return trails
    return plain + [replace(t, names=tuple(f"{n}, smoothed" for n in t.names)) for t in trails]


def _moved(smooth: Callable[[Tensor], Tensor], trail: Trail) -> Trail:
    return replace(trail, G=smooth(trail.G))


def _each(work: Callable[[Trail], Trail], trails: list[Trail]) -> list[Trail]:
    """Follow several trails at once, as many as there are threads; the order is kept.

    Their kernels and simplexes are small or single-threaded, and release the interpreter.
    """
    threads = min(torch.get_num_threads(), len(trails))
    if threads <= 1:
        return [work(trail) for trail in trails]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, trails))


def _descend(level: Centred, trail: Trail, tol: float, steps: int, watch: Watch) -> Trail:
    """Step until a plain step no longer lowers the value; the best plan seen stays."""
    floor = max(ROUNDING * level.scale, sys.float_info.min)  # all points may be one

    def step(now: Trail) -> Trail:
        vertex = network_simplex(level.a, level.b, level.cost(now.G), warm=now.duals)
        plan = _plan(vertex)
        image = level.image(plan)
        value = level.value(plan, image)
        known = math.isfinite(now.last)
        fall = max(0.0, now.last - value) / max(abs(value), floor) if known else 1.0
        best = (plan, value, image) if value < now.value else (now.plan, now.value, now.image)
        ahead, plain, last = image, True, value
        if not now.plain and fall <= tol:
            assert best[2] is not None
            ahead, last, fall = best[2], best[1], 1.0  # too far: back, and on in plain steps
        elif now.plain and fall <= tol:
            pass
        elif fall < SLOW:
            ahead, plain = now.G + OVER * (image - now.G), False
        return Trail(
            trail.names, ahead, *best, last, fall, plain, (vertex.f, vertex.g), now.steps + 1
        )

    start = Trail(trail.names, trail.G, steps=trail.steps)
    end, stop = iterate(step, lambda t: t.fall, start, tol=tol, max_iter=steps, watch=watch)
    return replace(end, status=stop.status, G=end.G if end.image is None else end.image)


def _plan(vertex: Vertex) -> SparsePlan:
    return SparsePlan(vertex.rows, vertex.cols, vertex.mass)


def _best(trails: list[Trail], kept: int, points: int) -> tuple[list[Trail], list[Attempt]]:
    """Keep the best that differ, let the others that are the same join them, give up the rest."""
    best: list[Trail] = []
    gone: list[Attempt] = []
    for trail in sorted(trails, key=lambda t: t.value):
        same = next((k for k, other in enumerate(best) if _same(trail, other)), None)
        if same is not None:
            best[same] = replace(best[same], names=best[same].names + trail.names)
        elif len(best) < kept and not (best and _hopeless(trail.value, best[0].value)):
            best.append(trail)
        elif math.isfinite(trail.value):
            gone += [Attempt(name, points, trail.value) for name in trail.names]
    return best, gone


def _same(one: Trail, other: Trail) -> bool:
    return float((one.G - other.G).norm()) <= APART * float(other.G.norm())


def _hopeless(value: float, best: float) -> bool:
    return value - best > (HOPELESS - 1) * abs(best)


def _found(pair: Pair, level: Centred, trail: Trail) -> Found:
    """Give the plan its true mass and its value by the common rule; at rest, its potentials."""
    assert trail.plan is not None
    f, g = None, None
    if trail.status == "converged" and trail.duals is not None:
        r, c = level.offsets(trail.plan)
        f, g = trail.duals[0] + r, trail.duals[1] + c
    plan = replace(trail.plan, mass=trail.plan.mass * pair.a.sum())
    value = float(pair.objective(plan))
    return Found(plan, value, trail.names[0], trail.steps, trail.status, f, g, trail.fall)


def _sorted(pair: Pair, level: Centred) -> Found:
    """Couple the points by their distance from the mean: what can be had without a search."""
    s, t = level.norms
    by_s, by_t = s.argsort(), t.argsort()
    rows, cols, mass = staircase(level.a[by_s], level.b[by_t])
    some = mass > 0
    mass = mass[some] * pair.a.sum()
    plan = SparsePlan(by_s[rows[some]], by_t[cols[some]], mass)
    return Found(plan, float(pair.objective(plan)), "sorted", 0, "interrupted")
