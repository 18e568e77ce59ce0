"""Learn with relaxed top-k: `python -m bench.topk_learning [--only NAME ...]`.

`losses`: a linear model on scikit-learn's digits, 30 % of the training labels drawn anew, by cross
entropy, nll and partial_fy with k = 2. All have one learning rate and choose among four settings
of lam and weight decay by top-2 accuracy on noisy validation labels; clean test accuracy is the
mean of 3 seeds, by one function. From a wrong start, what each loss still learns. `speed`:
topk.route beside torch.topk with softmax, topk.loss beside cross entropy, forward and backward.
CPU seconds, one thread. Writes bench/results/topk_learning.json.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.table import Row, pinned, report, timed

MODULE = "bench.topk_learning"
SEEDS = (0, 1, 2)
NOISE, K, STEPS, RATE = 0.3, 2, 400, 0.03
SOFT = ((3.0, 0.0), (3.0, 0.01), (10.0, 0.01), (10.0, 0.03))
# lam and weight decay a step, four of each loss
SETTINGS = {
    "cross entropy": ((1.0, 0.0), (1.0, 0.003), (1.0, 0.01), (1.0, 0.03)),
    "nll": SOFT,
    "partial_fy": SOFT,
}


def digits(seed: int) -> dict[str, Tensor]:
    """Split the digits 70 / 30, then training 80 / 20; spoil the labels of the first two."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    table = load_digits()
    x, c = table.data / 16.0, table.target
    x, x_test, c, c_test = train_test_split(x, c, test_size=0.3, stratify=c, random_state=seed)
    draw = torch.Generator().manual_seed(seed)
    c = torch.from_numpy(c)
    spoilt = torch.rand(len(c), generator=draw) < NOISE
    c = torch.where(spoilt, torch.randint(0, 10, (len(c),), generator=draw), c)
    cut = len(c) * 4 // 5
    x = torch.from_numpy(x)
    return {
        "x": x[:cut], "c": c[:cut], "x_valid": x[cut:], "c_valid": c[cut:],
        "x_test": torch.from_numpy(x_test), "c_test": torch.from_numpy(c_test),
    }  # fmt: skip


def topped(scores: Tensor, c: Tensor, k: int) -> float:
    """Count, in float64, how often the label is among the k highest scores."""
    return float((scores.double().topk(k, 1).indices == c[:, None]).any(1).double().mean())


def priced(name: str, lam: float) -> Callable[[Tensor, Tensor], Any]:
    """Choose what training minimises; the answer of topk.loss, or a loss."""
    from algorithms.topk.loss import loss

    if name == "cross entropy":
        return lambda s, c: torch.nn.functional.cross_entropy(s, c)
    return lambda s, c: loss(s, c.double(), kind=name, k=K, lam=lam)  # type: ignore[arg-type]


def trained(
    name: str, setting: tuple[float, float], data: dict[str, Tensor]
) -> tuple[Tensor, float]:
    """Train weights and offsets by Adam on all of the training set; also the share of dead rows."""
    W = torch.zeros(65, 10, dtype=torch.float64, requires_grad=True)
    lam, decay = setting
    adam = torch.optim.AdamW([W], lr=RATE, weight_decay=decay / RATE)
    price, dead = priced(name, lam), 0.0
    for _ in range(STEPS):
        found = price(scored(data["x"], W), data["c"])
        total = found if isinstance(found, Tensor) else found.value
        dead = 0.0 if isinstance(found, Tensor) else found.dead_fraction
        adam.zero_grad()
        total.backward()
        adam.step()
    return W.detach(), dead


def scored(x: Tensor, W: Tensor) -> Tensor:
    """Evaluate the linear model."""
    return x @ W[:-1] + W[-1]


def losses() -> list[Row]:
    """Compare losses under label noise."""
    rows, base = list[Row](), None
    for name, settings in SETTINGS.items():
        seen, spent, chosen = (
            list[tuple[float, float, float]](),
            list[float](),
            list[tuple[float, float]](),
        )
        for seed in SEEDS:
            data = digits(seed)
            tried = list[tuple[float, tuple[float, float], Tensor, float]]()
            for setting in settings:
                run = lambda data=data, setting=setting, name=name: trained(name, setting, data)
                seconds, (W, dead) = timed(run, repeats=1)
                spent.append(seconds)
                tried.append((topped(scored(data["x_valid"], W), data["c_valid"], K), setting, W,
                              dead))  # fmt: skip
            _, setting, W, dead = max(tried, key=lambda one: one[0])
            s = scored(data["x_test"], W)
            seen.append((topped(s, data["c_test"], 1), topped(s, data["c_test"], K), dead))
            chosen.append(setting)
        top1, topk, dead = (statistics.mean(column) for column in zip(*seen, strict=True))
        seconds = statistics.median(spent)
        base = base or seconds
        reached = {"top1": top1, f"top{K}": topk, "dead_fraction": dead}
        note = f"lam and decay chosen {chosen}"
        ratio = seconds / base if name != "cross entropy" else None
        rows.append(Row("digits, 30 % label noise", name, seconds, reached, note, ratio))
        print(rows[-1], flush=True)
    return rows + lost()


def lost() -> list[Row]:
    """Start from a model that is sure and often wrong: what each loss still learns."""
    rows = list[Row]()
    data = digits(0)
    for name in ("nll", "partial_fy"):
        W = torch.zeros(65, 10, dtype=torch.float64)
        W[-1, :2] = 10.0  # every digit is a 0 or a 1
        W.requires_grad_()
        adam, price = torch.optim.Adam([W], lr=RATE), priced(name, 1.0)
        first = price(scored(data["x"], W), data["c"]).dead_fraction
        for _ in range(STEPS):
            adam.zero_grad()
            price(scored(data["x"], W), data["c"]).value.backward()
            adam.step()
        s = scored(data["x_test"], W.detach())
        last = price(scored(data["x"], W), data["c"]).dead_fraction
        reached = {"top1": topped(s, data["c_test"], 1), f"top{K}": topped(s, data["c_test"], K),
                   "dead_first": first, "dead_last": last}  # fmt: skip
        rows.append(Row("digits, a wrong start, lam 1", name, 0.0, reached))
        print(rows[-1], flush=True)
    return rows


def hard_weights(s: Tensor, k: int) -> Tensor:
    """Route by torch.topk; k = 1 keeps the softmax's own size, or the router would not learn."""
    kept = s.topk(k, 1)
    own = s.softmax(1).gather(1, kept.indices) if k == 1 else kept.values.softmax(1)
    return torch.zeros_like(s).scatter(1, kept.indices, own)


def speed() -> list[Row]:
    """Time one forward and backward pass of route and loss beside bare torch."""
    from algorithms.topk.loss import loss
    from algorithms.topk.route import route

    rows = list[Row]()
    draw = torch.Generator().manual_seed(0)
    for size, experts, k in ((4096, 8, 2), (16384, 64, 2)):
        s = torch.randn(size, experts, generator=draw, dtype=torch.float64).requires_grad_()
        problem = f"route, {size} x {experts}, k = {k}"

        def ours(s: Tensor = s, k: int = k) -> Tensor:
            found = route(s, k)
            torch.autograd.grad(found.weights.square().sum(), s)
            sums = torch.segment_reduce(found.weights.detach(), "sum", offsets=found.offsets)
            return (sums - 1).abs().max()

        def theirs(s: Tensor = s, k: int = k) -> Tensor:
            w = hard_weights(s, k)
            torch.autograd.grad(w.square().sum(), s)
            return (w.detach().sum(1) - 1).abs().max()

        rows += _beside(problem, "topk.route, all statistics", ours, "torch.topk, softmax", theirs)
    for size, classes, k in ((1024, 1000, 5),):
        x = torch.randn(size, classes, generator=draw, dtype=torch.float64).requires_grad_()
        c = torch.randint(0, classes, (size,), generator=draw)

        def ours_loss(x: Tensor = x, c: Tensor = c, k: int = k) -> Tensor:
            found = loss(x, c.double(), k=k)
            (g,) = torch.autograd.grad(found.value, x)
            return g.sum(1).abs().max()

        def theirs_loss(x: Tensor = x, c: Tensor = c) -> Tensor:
            (g,) = torch.autograd.grad(torch.nn.functional.cross_entropy(x, c), x)
            return g.sum(1).abs().max()

        problem = f"loss, {size} x {classes}, k = {k}"
        rows += _beside(problem, "topk.loss, partial_fy", ours_loss, "cross entropy", theirs_loss)
    return rows


def _beside(
    problem: str, ours: str, ask: Callable[[], Tensor], theirs: str, ask_them: Callable[[], Tensor]
) -> list[Row]:
    """Time both after a first call; their ratio is to ours."""
    ask(), ask_them()
    seconds, found = timed(ask, repeats=15)
    spent, other = timed(ask_them, repeats=15)
    rows = [
        Row(problem, ours, seconds, {"sum_error": float(found)}, f"{seconds / spent:.1f}x theirs"),
        Row(problem, theirs, spent, {"sum_error": float(other)}, "", spent / seconds),
    ]
    for row in rows:
        print(row, flush=True)
    return rows


PARTS = {"losses": losses, "speed": speed}


def main() -> int:
    """Print the tables and keep them."""
    parser = argparse.ArgumentParser(prog=MODULE)
    parser.add_argument("--only", nargs="*", choices=tuple(PARTS))
    asked = parser.parse_args().only
    pinned(MODULE)
    rows = list[Row]()
    for name in asked or PARTS:
        rows += PARTS[name]()
    if not asked:
        report("topk_learning", rows, threads=1, clock="CPU seconds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
