"""The answer of `transport.sinkhorn` without any (n, m) matrix: memory O((n + m) d)."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from algorithms.entropic.aprox import relaxed
from algorithms.entropic.entropic_plan import EntropicPlan
from algorithms.entropic.objective import objective
from algorithms.entropic.penalised import Ask, Certificate, certified, checked, slopes
from algorithms.entropic.potentials import floor_caution
from algorithms.entropic.streamed import (
    Streamed,
    apply_streamed,
    solve_streamed,
    top_streamed,
)
from algorithms.entropic.unbalanced import Problem
from algorithms.errors import IllPosed
from algorithms.geometry import Geometry, PointClouds, factors
from algorithms.measures import check_finite, weights
from algorithms.sparse import SparsePlan

# Bytes of cost, kernel and plan from which `auto` streams a problem that allows it.
STREAMED_FROM = 2 << 30
# Entries of the cost that one pass holds at once.
BLOCK = 1 << 20


@dataclass(frozen=True)
class Reading:
    """What is wanted of the plan: the largest entries of each row, the barycentric map."""

    top: int
    barycentric: bool


def streams(geometry: Geometry) -> bool:
    """Tell whether a problem is too large for matrices, and one that can do without."""
    n, m = geometry.shape
    known = isinstance(geometry, PointClouds) and geometry.cost == "sqeuclidean"
    return known and 8 * 4 * n * m > STREAMED_FROM


def mean_cost(geometry: Geometry) -> float:
    """Average the squared distances, by a product of factors."""
    clouds = _clouds(geometry)
    A, B = factors(clouds.x.detach().double(), clouds.y.detach().double())
    return float(A.mean(0) @ B.mean(0))


def streamed_answer(
    geometry: Geometry,
    a: Float[Tensor, "n"] | None,
    b: Float[Tensor, "m"] | None,
    ask: Ask,
    reading: Reading,
    start: tuple[Float[Tensor, "n"] | None, Float[Tensor, "m"] | None],
) -> EntropicPlan:
    """Solve block by block; the value has derivatives, what is made of the plan refuses them."""
    clouds = _clouds(geometry)
    n, m = clouds.shape
    a, b = weights("a", a, n, clouds.x), weights("b", b, m, clouds.x)
    b, cautions = checked(clouds.bound(), a, b, ask)
    plan, mu, nu, found = _solved(clouds, a, b, ask, start)
    certificate, value = _measured(plan, ask, mu, nu)
    inputs = clouds.x, clouds.y, a, b
    value = StreamedValue.apply(value.to(a), *inputs, (plan, ask, mu, nu))
    entries, dropped = None, torch.zeros_like(value)
    if reading.top:
        rows, cols, mass = top_streamed(*plan.parts, reading.top)
        some = mass > 0
        entries = SparsePlan(rows[some], cols[some], mass[some].to(a))
        dropped = (found.mass - mass.double().sum()).to(a)
    image = plan.image(mu) if reading.barycentric else None
    made = plan.f, plan.g, found.transport_cost, found.mass, mu, nu
    f, g, cost, mass, rows, columns = (Refusing.apply(t.to(a), *inputs) for t in made)
    cautions += floor_caution(clouds.bound(), a.dtype, ask.epsilon, found.stop, ask.tol)
    return EntropicPlan(
        None,
        entries,
        dropped.detach(),
        None if image is None else Refusing.apply(image.to(a), *inputs),
        *(f, g, ask.epsilon, value, cost, mass, rows, columns),
        certificate=certificate,
        stop=found.stop,
        cautions=cautions,
    )


def _solved(
    clouds: PointClouds,
    a: Float[Tensor, "n"],
    b: Float[Tensor, "m"],
    ask: Ask,
    start: tuple[Float[Tensor, "n"] | None, Float[Tensor, "m"] | None],
) -> tuple["Blocks", Float[Tensor, "n"], Float[Tensor, "m"], Streamed]:
    """Solve between the points that have weight; give the others potentials and no mass."""
    x, y, a, b = (t.detach().double() for t in (clouds.x, clouds.y, a, b))
    here, there = a > 0, b > 0
    found = solve_streamed(
        replace(clouds, x=x[here], y=y[there]),
        a[here],
        b[there],
        ask.epsilon,
        marginal_a=ask.marginal_a,
        marginal_b=ask.marginal_b,
        f0=None if start[0] is None else start[0][here],
        g0=None if start[1] is None else start[1][there],
        tol=ask.tol,
        max_iter=ask.max_iter,
        watch=ask.watch,
    )
    f, mu, g, nu = a.clone(), a.clone(), b.clone(), b.clone()
    f[here], mu[here], g[there], nu[there] = found.f, found.rows, found.g, found.columns
    plan = Blocks(replace(clouds, x=x, y=y), a, b, f, g, ask.epsilon)
    if not bool(here.all() and there.all()):
        s = [-ask.epsilon * z.logsumexp(1) for _, z in plan.exponents(~here)]
        z = [-ask.epsilon * z.logsumexp(1) for _, z in plan.turned.exponents(~there)]
        f[~here] = relaxed(ask.marginal_a, torch.cat([*s, a[:0]]), ask.epsilon)
        g[~there] = relaxed(ask.marginal_b, torch.cat([*z, b[:0]]), ask.epsilon)
    return plan, mu, nu, found


def _clouds(geometry: Geometry) -> PointClouds:
    check_finite(geometry)
    if not (isinstance(geometry, PointClouds) and geometry.cost == "sqeuclidean"):
        raise IllPosed("method", "streamed is for point clouds with cost sqeuclidean")
    return geometry


@dataclass(frozen=True)
class Blocks:
    """The plan of f, g by what it does to vectors; made anew, block by block, each time."""

    clouds: PointClouds
    a: Float[Tensor, "n"]
    b: Float[Tensor, "m"]
    f: Float[Tensor, "n"]
    g: Float[Tensor, "m"]
    epsilon: float

    @property
    def parts(self) -> tuple[PointClouds, Tensor, Tensor, Tensor, Tensor, float]:
        """Return what makes the plan, in the order of `streamed`."""
        return self.clouds, self.a, self.b, self.f, self.g, self.epsilon

    @property
    def turned(self) -> "Blocks":
        """Exchange source and target."""
        clouds = replace(self.clouds, x=self.clouds.y, y=self.clouds.x)
        return Blocks(clouds, self.b, self.a, self.g, self.f, self.epsilon)

    def rows(self, v: Float[Tensor, "m"]) -> Float[Tensor, "n"]:
        """Return `P v`."""
        return self.times(v[:, None])[:, 0]

    def times(self, V: Float[Tensor, "m k"]) -> Float[Tensor, "n k"]:
        """Return `P V`."""
        return apply_streamed(*self.parts, V)

    def columns(self, u: Float[Tensor, "n"]) -> Float[Tensor, "m"]:
        """Return `P^T u`."""
        return self.turned.rows(u)

    def cost(self, u: Float[Tensor, "n"], v: Float[Tensor, "m"]) -> Tensor:
        """Return `u^T C v`."""
        A, B = factors(self.clouds.x, self.clouds.y)
        return (u @ A) @ (v @ B)

    def image(self, mu: Float[Tensor, "n"]) -> Float[Tensor, "n d"]:
        """Return the barycentric map; of rows without mass, that of a trace of it."""
        image = self.times(self.clouds.y)
        known = mu > torch.finfo(mu.dtype).tiny / torch.finfo(mu.dtype).eps
        image = image / torch.where(known, mu, 1.0)[:, None]
        for rows, z in self.exponents(~known):
            image[rows] = z.softmax(1) @ self.clouds.y
        return image

    def exponents(self, some: Bool[Tensor, "n"]) -> Iterator[tuple[Tensor, Float[Tensor, "k m"]]]:
        """Go through `log b_j + (g_j - C_ij)/eps` of some rows, by blocks of them."""
        for rows in some.nonzero()[:, 0].split(max(1, BLOCK // len(self.b))):
            C = replace(self.clouds, x=self.clouds.x[rows]).matrix()
            yield rows, self.b.log() + (self.g - C) / self.epsilon

    def ratios(self, mu: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        """Divide the row sums by the weights; where there is no weight, by a vanishing one."""
        ratio = mu / torch.where(self.a > 0, self.a, 1.0)
        for rows, z in self.exponents(self.a == 0):
            ratio[rows] = (z + self.f[rows][:, None] / self.epsilon).exp().sum(1)
        return ratio


def _measured(
    plan: Blocks, ask: Ask, mu: Float[Tensor, "n"], nu: Float[Tensor, "m"]
) -> tuple[Certificate, Tensor]:
    """Compute the certificate and the objective; points without weight have no part in them."""
    here, there = plan.a > 0, plan.b > 0
    clouds = replace(plan.clouds, x=plan.clouds.x[here], y=plan.clouds.y[there])
    a, b, f, g = plan.a[here], plan.b[there], plan.f[here], plan.g[there]
    none = a.new_zeros(()).expand(len(a), len(b))  # its entries are never read
    p = Problem(none, a, b, ask.epsilon, ask.marginal_a, ask.marginal_b)
    inner = Blocks(clouds, a, b, f, g, ask.epsilon)
    mu, nu = mu[here], nu[there]
    return certified(p, f, g, mu, nu, inner), objective(p, f, g, mu, nu)


class StreamedValue(torch.autograd.Function):
    r"""Attach the derivatives of the value: `2 (mu_i x_i - sum_j P_ij y_j)` for x_i, and so on."""

    @staticmethod
    def forward(
        ctx: Any,
        value: Float[Tensor, ""],
        x: Float[Tensor, "n d"],
        y: Float[Tensor, "m d"],
        a: Float[Tensor, "n"],
        b: Float[Tensor, "m"],
        solved: tuple[Blocks, Ask, Tensor, Tensor],
    ) -> Float[Tensor, ""]:
        """Return the value as it was found."""
        ctx.solved = solved
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        """Apply the plan to the points, once from each side."""
        (w,), (plan, ask, mu, nu) = cotangents, ctx.solved
        with torch.no_grad():
            x, y = plan.clouds.x, plan.clouds.y
            to_x = 2 * (mu[:, None] * x - plan.times(y))
            to_y = 2 * (nu[:, None] * y - plan.turned.times(x))
            if ask.balanced:
                to_a, to_b = plan.f, plan.g + 2 * ask.epsilon * (plan.a.sum() - 1)
            else:
                ratios = plan.ratios(mu), plan.turned.ratios(nu)
                to_a, to_b = slopes(ask, (plan.a, plan.b), (plan.f, plan.g), ratios)
            out = tuple(w * t.to(w) for t in (to_x, to_y, to_a, to_b))
        return None, *(Refusing.apply(t, w) for t in out), None


class Refusing(torch.autograd.Function):
    """Refuse derivatives that would need the plan: without this they would be taken as zero."""

    @staticmethod
    def forward(ctx: Any, made: Tensor, *made_of: Tensor) -> Tensor:
        """Return it, in a graph that leads to what it was made of."""
        return made.view_as(made)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        """Say what there is instead."""
        raise IllPosed("method", "streamed has derivatives of the value only; ask for dense")
