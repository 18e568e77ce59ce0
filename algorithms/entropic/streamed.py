r"""Entropic transport in O((n + m) d) memory: no matrix is stored, entries are made block by block.

A sweep makes every entry `b_j exp((f_i + g_j - C_ij)/eps)` once: the sums of a block of rows give
the new f of those rows, with which the same entries then count towards the sums of the columns.
Costs may be infinite: no mass goes there. Absent points (zero weights) carry none.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from algorithms.entropic import compiled
from algorithms.entropic.aprox import hard, pinned, relaxed
from algorithms.entropic.translation import shift
from algorithms.entropic.unbalanced import distance, fenchel_gap
from algorithms.geometry import CostMatrix, Geometry, PointClouds
from algorithms.iterate import Stop, Watch, iterate, quietly, unwatched
from algorithms.marginals import TV, Balanced, Marginal

# Entries in one block: some megabytes, so that a block costs more than the calls that make it.
BLOCK = {"cpu": 1 << 19}
BLOCK_ELSEWHERE = 1 << 26
# Sums outside these bounds have lost entries to the range of the type; exponents are kept within.
UNSEEN, OVERSEEN, LOWEST, HIGHEST = 1e-250, 1e250, -690.0, 690.0
# One point in SAMPLE is kept, if that leaves FEWEST, and solved first, to SAMPLE_TOL or to the
# caller's tol if that is larger: the potentials are then near, and the best relaxation known.
SAMPLE, FEWEST, SAMPLE_TOL = 5, 400, 1e-6
# Sweeps are relaxed from this error on, at a rate measured over so many sweeps, or over so much
# of 1/(2 - w); never nearer to 2; for as long as errors do not grow by RUNAWAY.
NEARLY_LINEAR, SPAN, MEMORY, MOST_RELAXED, RUNAWAY = 0.3, 6, 0.5, 1.98, 30.0
# A step of this share of 2 - w is worth a new estimate, which a relaxation is given time to show.
WORTH, SPANS = 0.1, 4
# Sweeps without a new best error before the loop gives up.
PATIENCE = 200


@dataclass(frozen=True)
class Streamed:
    """Potentials, the marginals of their plan, what it costs and weighs, and the stop."""

    f: Float[Tensor, "n"]
    g: Float[Tensor, "m"]
    rows: Float[Tensor, "n"]
    columns: Float[Tensor, "m"]
    transport_cost: Float[Tensor, ""]
    mass: Float[Tensor, ""]
    stop: Stop


@dataclass(frozen=True)
class Stream:
    """A problem whose exponents are made block by block, all in float64.

    Attributes:
        lifted: for squared distances, (x, -|x|^2/eps, 1) and (2 y/eps, 1, -|y|^2/eps), whose
            product is -C/eps.
    """

    geometry: Geometry
    a: Float[Tensor, "n"]
    b: Float[Tensor, "m"]
    epsilon: float
    marginal_a: Marginal
    marginal_b: Marginal
    lifted: tuple[Float[Tensor, "n e"], Float[Tensor, "m e"]] | None = None


@dataclass(frozen=True)
class Sweeping:
    """Potentials and the softmins `s = s_f(g)`, `z = s_g(f)` that belong to them.

    Attributes:
        relaxation: the exponent w of a sweep; 1 is Sinkhorn's.
        errors: errors since the relaxation was last chosen.
    """

    f: Float[Tensor, "n"]
    g: Float[Tensor, "m"]
    s: Float[Tensor, "n"]
    z: Float[Tensor, "m"]
    relaxation: float = 1.0
    errors: tuple[float, ...] = ()


def solve_streamed(
    geometry: Geometry,
    a: Float[Tensor, "n"],
    b: Float[Tensor, "m"],
    epsilon: float,
    *,
    marginal_a: Marginal = Balanced(),  # noqa: B008 - frozen
    marginal_b: Marginal = Balanced(),  # noqa: B008 - frozen
    f0: Float[Tensor, "n"] | None = None,
    g0: Float[Tensor, "m"] | None = None,
    tol: float = 1e-6,
    max_iter: int = 10_000,
    watch: Watch = unwatched,
) -> Streamed:
    r"""Find potentials of the plan that is optimal for a, b and their marginals, both positive.

    Sinkhorn's sweeps, over-relaxed; both half steps of a sweep share the exponentials. They start
    at f0, g0, or at the potentials of a sample of the points, of a sample of that sample, and so
    on. The error is that of `unbalanced.optimality`; balanced, it is the L1 errors of both
    marginals together, as a share of the mass.

    Returns:
        Potentials (balanced: `<f, a> = 0`), and what one more pass finds of their plan. `stop`
        counts the sweeps over all points.

    Notes:
        Time O(n m d) a sweep, memory O((n + m) d) and one block. float64 throughout.
    """
    with torch.no_grad():
        p = _stream(geometry, a, b, epsilon, (marginal_a, marginal_b))
        given = None if f0 is None or g0 is None else (f0.double(), g0.double())
        state = _started(p, given, tol, max_iter, watch)
        state, stop = _climbed(p, state, tol, max_iter, watch)
        f, g, found, error = _settled(p, state)
        rows, columns, cost = found
    if not (math.isfinite(error) and bool(f.isfinite().all()) and bool(g.isfinite().all())):
        stop, error = Stop("diverged", stop.iterations, stop.residual), stop.residual
    status = "stagnated" if stop.status == "converged" else stop.status
    status = "converged" if error <= tol and status != "diverged" else status
    stop = Stop(status, stop.iterations, error)
    return Streamed(f, g, rows, columns, cost, rows.sum(), stop)


def apply_streamed(
    geometry: Geometry,
    a: Float[Tensor, "n"],
    b: Float[Tensor, "m"],
    f: Float[Tensor, "n"],
    g: Float[Tensor, "m"],
    epsilon: float,
    V: Float[Tensor, "m k"],
) -> Float[Tensor, "n k"]:
    """Multiply the plan of f, g with V; with V = y, over the row sums, the barycentric map."""
    with torch.no_grad():
        wide = V.double()
        blocks = [
            P @ wide for _, P in _plan(geometry, a, b, f, g, epsilon)
        ]  # (rows, m) -> (rows, k)
        return torch.cat(blocks).to(f)


def top_streamed(
    geometry: Geometry,
    a: Float[Tensor, "n"],
    b: Float[Tensor, "m"],
    f: Float[Tensor, "n"],
    g: Float[Tensor, "m"],
    epsilon: float,
    top: int,
) -> tuple[Int[Tensor, "nnz"], Int[Tensor, "nnz"], Float[Tensor, "nnz"]]:
    """Keep the `top` largest entries of each row of the plan of f, g: rows, columns and masses."""
    rows, cols, mass = list[Tensor](), list[Tensor](), list[Tensor]()
    kept = min(top, len(b))
    with torch.no_grad():
        for first, P in _plan(geometry, a, b, f, g, epsilon):
            largest = P.topk(kept, dim=1)
            index = torch.arange(first, first + len(P), device=P.device)
            rows.append(index.repeat_interleave(kept))
            cols.append(largest.indices.flatten())
            mass.append(largest.values.flatten())
    return torch.cat(rows), torch.cat(cols), torch.cat(mass).to(f)


def _plan(
    geometry: Geometry,
    a: Float[Tensor, "n"],
    b: Float[Tensor, "m"],
    f: Float[Tensor, "n"],
    g: Float[Tensor, "m"],
    epsilon: float,
) -> Iterator[tuple[int, Float[Tensor, "k m"]]]:
    """Go through the plan of f, g by blocks of rows, each with the index of its first row."""
    p = _stream(geometry, a, b, epsilon)
    left, right = f.double() / epsilon + p.a.log(), g.double() / epsilon + p.b.log()
    for first, Z in _blocks(p, right):
        _exponentiated(Z, left[first : first + len(Z)])
        yield first, Z


def _stream(
    geometry: Geometry,
    a: Float[Tensor, "n"],
    b: Float[Tensor, "m"],
    epsilon: float,
    sides: tuple[Marginal, Marginal] = (Balanced(), Balanced()),
) -> Stream:
    """Leave the graph and go to float64; lift squared distances to one product."""
    a, b = a.detach().double(), b.detach().double()
    if isinstance(geometry, CostMatrix):
        return Stream(CostMatrix(geometry.C.detach()), a, b, epsilon, *sides)
    x, y = geometry.x.detach().double(), geometry.y.detach().double()
    geometry = replace(geometry, x=x, y=y)
    if geometry.cost != "sqeuclidean":
        return Stream(geometry, a, b, epsilon, *sides)
    centre = torch.cat([x, y]).mean(0)
    x, y = x - centre, y - centre
    one, norm = torch.ones_like, -x.square().sum(1, keepdim=True) / epsilon
    x = torch.cat([x, norm, one(norm)], 1)  # (n, d) -> (n, d + 2)
    norm = -y.square().sum(1, keepdim=True) / epsilon
    y = torch.cat([2 * y / epsilon, one(norm), norm], 1)
    return Stream(geometry, a, b, epsilon, *sides, lifted=(x, y))


def _blocks(p: Stream, right: Float[Tensor, "m"]) -> Iterator[tuple[int, Float[Tensor, "k m"]]]:
    """Compute `right_j - C_ij/eps` by blocks of rows; a block is overwritten by the next."""
    n, m = p.geometry.shape
    step = max(1, BLOCK.get(right.device.type, BLOCK_ELSEWHERE) // m)
    if p.lifted is None:
        for i in range(0, n, step):
            C = p.geometry.band(i, min(i + step, n)).matrix().double()
            yield i, right - C / p.epsilon
        return
    x, y = p.lifted
    across = _across(y, right)  # (m, d + 2) -> (d + 2, m)
    out = right.new_empty(min(step, n), m)
    for i in range(0, n, step):
        band = x[i : i + step]
        yield i, torch.mm(band, across, out=out[: len(band)])


def _exponentiated(
    Z: Float[Tensor, "k m"], left: Float[Tensor, "k"], *, products: bool = False
) -> tuple[Tensor, Tensor]:
    """Write `E_ij = exp(left_i + Z_ij)` over Z; return the row sums of E, and of E times Z."""
    if compiled.runs_on(Z):
        sums = compiled.exponentiate(Z.numpy(), left.numpy(), LOWEST, HIGHEST, products)
        return torch.from_numpy(sums[0]), torch.from_numpy(sums[1])
    Z.add_(left[:, None])
    exponents = Z.clamp(LOWEST, HIGHEST)
    Z.copy_(torch.where(Z < LOWEST, 0.0, exponents.exp()))
    return Z.sum(1), (exponents * Z).sum(1)


def _softmin(p: Stream, g: Float[Tensor, "m"]) -> Float[Tensor, "n"]:
    """Compute `s_f(g)_i = -eps LSE_j(log b_j + (g_j - C_ij)/eps)` without a near guess of it."""
    right = g / p.epsilon + p.b.log()
    return torch.cat([-p.epsilon * Z.logsumexp(1) for _, Z in _blocks(p, right)])


def _turned(p: Stream) -> Stream:
    """Exchange source and target."""
    return _between(p, None, None, swap=True)


def _between(
    p: Stream, rows: Tensor | None, columns: Tensor | None, *, swap: bool = False
) -> Stream:
    """Keep some rows and some columns, with weights of the mass of all; or exchange the sides."""
    geometry, a, b = p.geometry, p.a, p.b
    sides = (p.marginal_b, p.marginal_a) if swap else (p.marginal_a, p.marginal_b)
    x, y = (geometry.C, None) if isinstance(geometry, CostMatrix) else (geometry.x, geometry.y)
    if rows is not None:
        x, a = x[rows], a[rows] * (a.sum() / a[rows].sum())
    if columns is not None:
        x, y = (x[:, columns], None) if y is None else (x, y[columns])
        b = b[columns] * (b.sum() / b[columns].sum())
    if swap:
        x, y, a, b = (x.T, None, b, a) if y is None else (y, x, b, a)
    if isinstance(geometry, PointClouds):
        assert y is not None
        kept: Geometry = replace(geometry, x=x, y=y)
    else:
        kept = CostMatrix(x)
    return _stream(kept, a, b, p.epsilon, sides)


def _started(
    p: Stream,
    given: tuple[Float[Tensor, "n"], Float[Tensor, "m"]] | None,
    tol: float,
    max_iter: int,
    watch: Watch,
) -> Sweeping:
    """Begin at given potentials, or at those of a sample: one point in SAMPLE, at random."""
    n, m = p.geometry.shape
    w = 1.0
    if given is None and min(n, m) // SAMPLE >= FEWEST:
        draw = torch.Generator().manual_seed(0)
        rows, columns = (
            torch.randperm(k, generator=draw)[: k // SAMPLE].to(p.a.device) for k in (n, m)
        )
        small = _between(p, rows, columns)
        target = max(tol, SAMPLE_TOL)
        state = _started(small, None, target, max_iter, watch)
        state, _ = _climbed(small, state, target, max_iter, quietly(watch))
        w = state.relaxation
        f = _softmin(_between(p, None, columns), state.g)
        g = _softmin(_between(p, rows, None, swap=True), state.f)
        given = relaxed(p.marginal_a, f, p.epsilon), relaxed(p.marginal_b, g, p.epsilon)
    if given is None:
        z = _softmin(_turned(p), torch.zeros_like(p.a))
        g = relaxed(p.marginal_b, z, p.epsilon)
        s = _softmin(p, g)
        f = relaxed(p.marginal_a, s, p.epsilon)
        given = f, g
    f, s, z = _pass(p, *given, 1.0)
    return Sweeping(f, given[1], s, z, w)


def _climbed(
    p: Stream, state: Sweeping, tol: float, max_iter: int, watch: Watch
) -> tuple[Sweeping, Stop]:
    return iterate(
        lambda state: _sweep(p, state),
        lambda state: _error(p, (state.f, state.g), _marginals(p, state)),
        state,
        tol=tol,
        max_iter=max_iter,
        patience=PATIENCE,
        watch=watch,
    )


def _sweep(p: Stream, state: Sweeping) -> Sweeping:
    """Improve g for a given f, both by a common shift, then f for a given g; choose the next w."""
    state = _paced(state, float(_error(p, (state.f, state.g), _marginals(p, state))))
    f, w = state.f, state.relaxation
    g = _moved(p.marginal_b, state.g, relaxed(p.marginal_b, state.z, p.epsilon), w)
    t = shift(p.marginal_a, p.marginal_b, p.a, p.b, f, g)
    if t is not None:
        f, g = f + t, g - t
    f, s, z = _pass(p, f, g, w)
    return replace(state, f=f, g=g, s=s, z=z)


def _pass(
    p: Stream, f: Float[Tensor, "n"], g: Float[Tensor, "m"], w: float
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"], Float[Tensor, "m"]]:
    """Compute `s = s_f(g)`, move f towards the best for it, and compute `z = s_g(f)` of the new f.

    Every entry of the kernel is made once: with the f that was given, which is nearly the new one.
    """
    right, nu = g / p.epsilon + p.b.log(), torch.zeros_like(g)
    s, moved = torch.empty_like(f), torch.empty_like(f)
    for first, E in _blocks(p, right):
        rows = slice(first, first + len(E))
        base = f[rows]
        sums, _ = _exponentiated(E, base / p.epsilon)
        lost = _lost(sums)
        if bool(lost.any()):
            some = lost.nonzero()[:, 0]
            Z = _rows(p, first + some, right)
            base = base.index_put((some,), -p.epsilon * Z.logsumexp(1))
            sums[some], _ = _exponentiated(Z, base[some] / p.epsilon)
            E[some] = Z
        s[rows] = base - p.epsilon * sums.log()
        moved[rows] = _moved(p.marginal_a, f[rows], relaxed(p.marginal_a, s[rows], p.epsilon), w)
        _add_across(E, p.a[rows] * ((moved[rows] - base) / p.epsilon).exp(), nu)
    z = g - p.epsilon * (nu / p.b).log()
    lost = _lost(nu / p.b)
    if bool(lost.any()):
        columns = lost.nonzero()[:, 0]
        left, turned = moved / p.epsilon + p.a.log(), _turned(p)
        z[columns] = torch.cat(
            [-p.epsilon * _rows(turned, k, left).logsumexp(1) for k in columns.split(1)]
        )
    return moved, s, z


def _across(y: Float[Tensor, "m e"], right: Float[Tensor, "m"]) -> Float[Tensor, "e m"]:
    return torch.cat([y[:, :-1], y[:, -1:] + right[:, None]], 1).T.contiguous()


def _lost(sums: Float[Tensor, "k"]) -> Bool[Tensor, "k"]:
    return ~((sums > UNSEEN) & (sums < OVERSEEN))


def _add_across(E: Float[Tensor, "k m"], u: Float[Tensor, "k"], t: Float[Tensor, "m"]) -> None:
    if compiled.runs_on(E):
        compiled.add_across(E.numpy(), u.numpy(), t.numpy())
    else:
        t += E.T @ u  # (k, m), (k,) -> (m,)


def _rows(p: Stream, index: Int[Tensor, "k"], right: Float[Tensor, "m"]) -> Float[Tensor, "k m"]:
    """Compute `right_j - C_ij/eps` for some rows."""
    parts = [p.geometry.band(i, i + 1).matrix().double() for i in index.tolist()]
    return right - torch.cat(parts) / p.epsilon


def _moved(
    marginal: Marginal, f: Float[Tensor, "n"], best: Float[Tensor, "n"], w: float
) -> Float[Tensor, "n"]:
    """Go beyond the best potential by w - 1 of the way to it; stay in the domain of phi*."""
    if w == 1:
        return best
    # a kink of phi* holds potentials: their optimum is there exactly
    further = torch.where(pinned(marginal, best), best, f + w * (best - f))
    return further.clamp(-marginal.rho, marginal.rho) if isinstance(marginal, TV) else further


def _paced(state: Sweeping, error: float) -> Sweeping:
    r"""Choose the relaxation from the rate of the errors, as `unbalanced` does, every sweep.

    A sweep with exponent w whose error falls by lam has `(lam + w - 1)^2 = lam w^2 theta`, theta
    the rate of plain sweeps; `2 / (1 + sqrt(1 - theta))` is best for theta.
    """
    w, errors = state.relaxation, (*state.errors, error)
    state = replace(state, errors=errors)
    if error > NEARLY_LINEAR or (w > 1 and error > RUNAWAY * min(errors)):
        return replace(state, relaxation=1.0, errors=errors[-1:])
    span = SPAN if w == 1 else max(2 * SPAN, math.ceil(MEMORY / (2 - w)))
    if len(errors) <= span or not 0 < error < errors[-1 - span]:
        return state
    rate = (error / errors[-1 - span]) ** (1 / span)
    theta = min((rate + w - 1) ** 2 / (rate * w * w), 1.0)
    best = min(MOST_RELAXED, 2 / (1 + math.sqrt(1 - theta)))
    if rate > w - 1 and (w == 1 or best > w + WORTH * (2 - w)):
        return replace(state, relaxation=best, errors=errors[-1:])
    if w > 1 and len(errors) > SPANS * span and rate <= w - 1 + WORTH * (2 - w):
        return replace(state, relaxation=1 + (w - 1) ** 2, errors=errors[-1:])
    return state


def _marginals(p: Stream, state: Sweeping) -> tuple[Float[Tensor, "n"], Float[Tensor, "m"]]:
    """Return the marginals of the plan of f, g, from the softmins that belong to them."""
    mu = p.a * ((state.f - state.s) / p.epsilon).exp()
    return mu, p.b * ((state.g - state.z) / p.epsilon).exp()


def _error(
    p: Stream, potentials: tuple[Tensor, Tensor], marginals: tuple[Tensor, Tensor]
) -> Tensor:
    """Measure how far potentials are from optimal, as `unbalanced.optimality` does."""
    (f, g), (mu, nu) = potentials, marginals
    mass = mu.sum().clamp_min(torch.finfo(mu.dtype).tiny)
    apart = distance(p.marginal_a, p.a, f, mu) + distance(p.marginal_b, p.b, g, nu)
    gap = fenchel_gap(p.marginal_a, p.a, f, mu) + fenchel_gap(p.marginal_b, p.b, g, nu)
    scale = torch.stack([f.abs().amax(), g.abs().amax()]).amax().clamp_min(p.epsilon)
    return torch.maximum(apart / mass, gap / scale / mass)


def _settled(
    p: Stream, state: Sweeping
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor], float]:
    """Take a plain half step that ends on a hard side, which it makes exact; centre f; measure."""
    f, g = state.f, relaxed(p.marginal_b, state.z, p.epsilon)
    if hard(p.marginal_a) and not hard(p.marginal_b):
        f, _, _ = _pass(p, f, g, 1.0)
    if isinstance(p.marginal_a, Balanced) and isinstance(p.marginal_b, Balanced):
        centre = (p.a @ f) / p.a.sum()
        f, g = f - centre, g + centre
    found = _measured(p, f, g)
    return f, g, found, float(_error(p, (f, g), found[:2]))


def _measured(
    p: Stream, f: Float[Tensor, "n"], g: Float[Tensor, "m"]
) -> tuple[Float[Tensor, "n"], Float[Tensor, "m"], Float[Tensor, ""]]:
    r"""Return the marginals of the plan of f, g and `<P, C>`, C from the exponents of P."""
    left, right = f / p.epsilon + p.a.log(), g / p.epsilon + p.b.log()
    rows, columns, exponents = torch.empty_like(f), torch.zeros_like(g), torch.zeros_like(f)
    for first, P in _blocks(p, right):
        band = slice(first, first + len(P))
        rows[band], exponents[band] = _exponentiated(P, left[band], products=True)
        columns += P.sum(0)
    cost = p.epsilon * (rows @ left + columns @ right - exponents.sum())
    return rows, columns, cost
