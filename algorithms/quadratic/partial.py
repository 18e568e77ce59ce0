"""Partial Gromov-Wasserstein: a given mass is matched, the rest of both spaces is left out."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from algorithms.iterate import Watch, unwatched
from algorithms.linear.staircase import NO_MASS
from algorithms.quadratic.conditional_gradient import Corner, Oracle, descend
from algorithms.quadratic.dense import from_vertices
from algorithms.quadratic.many_starts import best_of, by_value
from algorithms.quadratic.objective import Found, Pair, Plan
from algorithms.simplex import network_simplex
from algorithms.sparse import SparsePlan

# Above so many points, starts are anchors of the source laid on anchors of the target.
FEW, ANCHORS = 100, 3
# Places tried for the first anchor; rows by which they are compared; triples tried for each
# start asked for; triples that are made to plans; plans that descend.
FIRSTS, ROWS, TRIES, PLANS, KEPT = 500, 64, 40, 6, 2


def solve_partial(
    pair: Pair,
    *,
    mass: float,
    starts: int = 100,
    plan0: Plan | None = None,
    tol: float = 1e-9,
    max_iter: int = 1000,
    generator: torch.Generator,
    watch: Watch = unwatched,
) -> list[Found]:
    r"""Find plans `P 1 <= a`, `P^T 1 <= b`, `sum P = mass` that no linear step improves.

    The start decides: from the product the wrong points are left out. Up to a hundred points the
    starts are random vertices. Above, three anchors p of the source are laid on three q of the
    target with like distances, and `sum_k (Cx_i,p_k - Cy_j,q_k)^2` is the cost of a start; from
    the best of these the descent begins, and from the product.

    Returns:
        The best first. Their f, g <= 0 are potentials of the caps: with
        `lam = min (gradient - f - g)` the bound of the linear problem is
        `<a, f> + <b, g> + lam mass`.
    """
    oracle = capped(pair, mass)
    first = ("product", share(pair, mass)) if plan0 is None else ("given", plan0)
    if starts == 1:
        return [
            descend(pair, oracle, first[1], start=first[0], tol=tol, max_iter=max_iter, watch=watch)
        ]
    if max(pair.shape) <= FEW:
        begun = from_vertices(pair, oracle, first, starts, generator)
        return best_of(pair, oracle, begun, tol=tol, max_iter=max_iter, watch=watch)
    begun = _anchored(pair, oracle, mass, starts, generator)
    ends = [
        descend(pair, oracle, plan, start=name, tol=tol, max_iter=max_iter, watch=watch)
        for name, plan in [first, *begun]
    ]
    return by_value(ends)


def capped(pair: Pair, mass: float) -> Oracle:
    """Solve linear problems over the plans of this mass: one dummy point a side takes the rest.

    With F, G the extended potentials and 0 the dummies, f = F + G_0 and g = G + F_0 are at most the
    cost 0 of a dummy.
    """
    n, m = pair.shape
    totals = float(pair.a.sum()), float(pair.b.sum())
    spare = [max(0.0, w - mass) for w in reversed(totals)]
    spare = [s if s > NO_MASS * max(totals) else 0.0 for s in spare]
    a, b = (torch.cat([w, w.new_tensor([s])]) for w, s in zip((pair.a, pair.b), spare, strict=True))

    def solve(C: Float[Tensor, "n m"], before: Corner | None) -> Corner:
        wide = C.new_zeros(n + 1, m + 1)
        wide[:n, :m] = C - C.amin()
        largest = float(wide.amax())
        # dear enough that no mass goes from dummy to dummy: that would save at most one arc
        wide[n, m] = 2.5 * largest if largest > 0 else 1.0
        vertex = network_simplex(a, b, wide, warm=before and before.duals)
        true = (vertex.rows < n) & (vertex.cols < m)
        entries = (t[true].to(C.device) for t in (vertex.rows, vertex.cols, vertex.mass))
        f = (vertex.f[:n] + vertex.g[m]).clamp_max(0).to(C.device)
        g = (vertex.g[:m] + vertex.f[n]).clamp_max(0).to(C.device)
        return Corner(SparsePlan(*entries), f, g, (vertex.f, vertex.g))

    return solve


def share(pair: Pair, mass: float) -> Float[Tensor, "n m"]:
    """Let every point give and take the same share: the product, at this mass."""
    return pair.a[:, None] * (pair.b * (mass / (pair.a.sum() * pair.b.sum())))


def _anchored(
    pair: Pair, oracle: Oracle, mass: float, count: int, generator: torch.Generator
) -> list[tuple[str, Plan]]:
    """Lay triples of anchors of the source on triples of the target; keep the best plans.

    Where two rows of distances to the anchors agree, the points may match: triples are compared
    by the distances from a sample of rows to the nearest target, the farthest left out.
    """
    C, D = pair.X.matrix(), pair.Y.matrix()
    rows, firsts = _drawn(pair.a, ROWS, generator), _drawn(pair.b, FIRSTS, generator)
    share = mass / float(pair.a.sum())
    tried: list[tuple[float, Tensor, Tensor]] = []
    for _ in range(max(1, count * TRIES // len(firsts))):
        source = _drawn(pair.a, ANCHORS, generator)
        target = _laid(C, D, source, firsts)  # (firsts, anchors)
        fit = _fit(C[rows][:, source], D[:, target], share)
        best = fit.topk(min(PLANS, len(fit)), largest=False)
        tried += [
            (value, source, target[k])
            for value, k in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
    plans: list[tuple[float, str, Plan]] = []
    for k, (_, source, target) in enumerate(sorted(tried, key=lambda t: t[0])[:PLANS]):
        cost = (
            (C[:, None, source] - D[None, :, target]).square().sum(2)
        )  # (n, m, anchors) -> (n, m)
        plan = oracle(cost, None).plan
        plans.append((float(pair.objective(plan)), f"anchors {k}", plan))
    return [(name, plan) for _, name, plan in sorted(plans, key=lambda t: t[0])[:KEPT]]


def _drawn(w: Float[Tensor, "n"], count: int, generator: torch.Generator) -> Int[Tensor, "k"]:
    """Draw different points by weight."""
    count = min(count, int(w.count_nonzero()))
    return torch.multinomial(w.to(generator.device), count, generator=generator).to(w.device)


def _laid(
    C: Float[Tensor, "n n"],
    D: Float[Tensor, "m m"],
    source: Int[Tensor, "k"],
    firsts: Int[Tensor, "t"],
) -> Int[Tensor, "t k"]:
    """Choose, for each target of the first anchor, those of the next: distances agree best."""
    target = [firsts]
    for k in range(1, len(source)):
        off = torch.zeros(len(firsts), len(D), dtype=D.dtype, device=D.device)
        for earlier, place in zip(source[:k], target, strict=True):
            off += (D[place] - C[earlier, source[k]]).abs()
        target.append(off.argmin(1))
    return torch.stack(target, 1)


def _fit(
    rows: Float[Tensor, "r k"], targets: Float[Tensor, "m t k"], share: float
) -> Float[Tensor, "t"]:
    """Average, over the share of rows that fit best, the squared distance to the best target."""
    kept = max(1, round(share * len(rows)))
    fits: list[Tensor] = []
    for one in targets.unbind(1):  # (m, k)
        apart = torch.cdist(rows, one).amin(1)  # (r, k), (m, k) -> (r,)
        fits.append(apart.square().sort().values[:kept].mean())
    return torch.stack(fits)
