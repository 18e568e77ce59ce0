r"""Entropic unbalanced transport where each source point has few candidates.

    min_P  <C, P> + rho KL(P 1 | a) + rho KL(P^T 1 | b) + eps KL(P | a b^T)

over plans on the given pairs only. Time and memory are linear in the number of pairs.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import csr_matrix
from torch import Tensor

from algorithms.entropic.aprox import relaxed
from algorithms.entropic.translation import shift
from algorithms.entropic.unbalanced import distance, fenchel_gap
from algorithms.iterate import Stop, Watch, iterate, unwatched
from algorithms.marginals import KL

# Sweeps by products with one kernel, between two sweeps that take logarithms of sums afresh.
BLOCK = 9
# Potentials may move so far, in epsilons, from those that a kernel was built for.
REACH = 500.0


@dataclass(frozen=True)
class Candidates:
    """Row i may send mass to `cols[i, t]`, at cost `C[i, t]`; all else is forbidden."""

    cols: Int[Tensor, "n k"]
    C: Float[Tensor, "n k"]


@dataclass(frozen=True)
class Solved:
    """A plan on the candidates, and how nearly it is optimal.

    Attributes:
        mass: of each pair.
        f: potential of each row.
        rows: P 1.
        columns: P^T 1.
        stop: `residual` is the larger of the relative error of the fixed point and the duality
            gap, both as shares of what travels.
    """

    mass: Float[Tensor, "n k"]
    f: Float[Tensor, "n"]
    rows: Float[Tensor, "n"]
    columns: Float[Tensor, "m"]
    stop: Stop


@dataclass(frozen=True)
class _Problem:
    """The columns that are reached, numbered anew, and their entries in the order of columns."""

    at: Int[Tensor, "n k"]
    C: Float[Tensor, "n k"]
    a: Float[Tensor, "n"]
    b: Float[Tensor, "r"]
    epsilon: float
    marginal: KL


@dataclass(frozen=True)
class _State:
    """Potentials, and softmins s of the rows for g, z of the columns for f."""

    f: Float[Tensor, "n"]
    g: Float[Tensor, "r"]
    s: Float[Tensor, "n"]
    z: Float[Tensor, "r"]


def solve(
    c: Candidates,
    a: Float[Tensor, "n"],
    b: Float[Tensor, "m"],
    *,
    epsilon: float,
    rho: float,
    tol: float,
    max_iter: int,
    f: Float[Tensor, "n"] | None = None,
    watch: Watch = unwatched,
) -> Solved:
    """Alternate the dual updates, each sweep followed by the best common shift of both potentials.

    Weights are positive; columns that nobody may reach stay empty. `max_iter` counts sweeps;
    `f` is where they start.
    """
    reached, at = torch.unique(c.cols, return_inverse=True)
    p = _Problem(at, c.C, a, b[reached], epsilon, KL(rho))
    state = _swept(p, torch.zeros_like(a) if f is None else f)
    rounds = math.ceil(max_iter / (BLOCK + 1))
    state, stop = iterate(
        lambda state: _block(p, state),
        lambda state: _residual(p, state),
        state,
        tol=tol,
        max_iter=rounds,
        watch=watch,
    )
    P = _plan(p, state.f, state.g)
    columns = torch.zeros_like(b)
    columns[reached] = _summed(p, P)
    stop = replace(stop, iterations=(BLOCK + 1) * stop.iterations)
    return Solved(P, state.f, P.sum(1), columns, stop)


def _block(p: _Problem, state: _State) -> _State:
    """Sweep once with fresh logarithms, then a few times with the kernel of that sweep."""
    state = _swept(p, relaxed(p.marginal, state.s, p.epsilon))
    n, k = p.at.shape
    f, g = state.f, state.g
    entries = _plan(p, f, g).ravel().numpy(), p.at.ravel().numpy(), np.arange(0, n * k + 1, k)
    K = csr_matrix(entries, shape=(n, len(p.b)))
    KT = csr_matrix(K.T)
    for _ in range(BLOCK):
        further = relaxed(p.marginal, state.s, p.epsilon)
        z = g - p.epsilon * (_times(KT, further - f, p.epsilon) / p.b).log()
        onward = relaxed(p.marginal, z, p.epsilon)
        t = _shift(p, further, onward)
        f, g = f + t, g - t  # the kernel does not see a shift
        further, onward = further + t, onward - t
        s = f - p.epsilon * (_times(K, onward - g, p.epsilon) / p.a).log()
        if not bool(s.isfinite().all() and z.isfinite().all()):
            break
        state = _State(further, onward, s, z - t)
    return state


def _times(K: csr_matrix, moved: Tensor, epsilon: float) -> Tensor:
    grown = (moved / epsilon).clamp(-REACH, REACH).exp()
    return torch.from_numpy(np.asarray(K @ grown.numpy()))


def _swept(p: _Problem, f: Float[Tensor, "n"]) -> _State:
    """Find the best g for f, shift both, and take the softmins that the next sweep starts from."""
    z = _softmin_of_columns(p, f)
    g = relaxed(p.marginal, z, p.epsilon)
    t = _shift(p, f, g)
    f, g, z = f + t, g - t, z - t
    right = p.b.log() + g / p.epsilon
    s = -p.epsilon * (right[p.at] - p.C / p.epsilon).logsumexp(1)  # (n, k) -> (n,)
    return _State(f, g, s, z)


def _softmin_of_columns(p: _Problem, f: Float[Tensor, "n"]) -> Float[Tensor, "r"]:
    x = ((p.a.log() + f / p.epsilon)[:, None] - p.C / p.epsilon).ravel()
    at = p.at.ravel()
    top = torch.full_like(p.b, -math.inf).scatter_reduce(0, at, x, "amax")
    total = torch.zeros_like(p.b).index_add(0, at, (x - top[at]).exp())
    return -p.epsilon * (top + total.log())


def _shift(p: _Problem, f: Float[Tensor, "n"], g: Float[Tensor, "r"]) -> Tensor:
    t = shift(p.marginal, p.marginal, p.a, p.b, f, g)
    assert t is not None, "two KL sides see a shift"
    return t


def _plan(p: _Problem, f: Float[Tensor, "n"], g: Float[Tensor, "r"]) -> Float[Tensor, "n k"]:
    left, right = p.a.log() + f / p.epsilon, p.b.log() + g / p.epsilon
    return (left[:, None] + right[p.at] - p.C / p.epsilon).exp()


def _summed(p: _Problem, P: Float[Tensor, "n k"]) -> Float[Tensor, "r"]:
    return torch.zeros_like(p.b).index_add(0, p.at.ravel(), P.ravel())


def _residual(p: _Problem, state: _State) -> Tensor:
    """Measure, as a share of the mass, how far a sweep would move it, and the duality gap."""
    mu = p.a * ((state.f - state.s) / p.epsilon).exp()
    nu = p.b * ((state.g - state.z) / p.epsilon).exp()
    mass = mu.sum().clamp_min(torch.finfo(mu.dtype).tiny)
    side = p.marginal
    apart = distance(side, p.a, state.f, mu) + distance(side, p.b, state.g, nu)
    gap = fenchel_gap(side, p.a, state.f, mu) + fenchel_gap(side, p.b, state.g, nu)
    return torch.maximum(apart, gap / side.rho) / mass
