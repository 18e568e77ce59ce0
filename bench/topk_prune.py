"""Train sparse networks on the digits, beside hard masks: `python -m bench.topk_prune`.

Digits of scikit-learn, 64 inputs in [0, 1], 70/30 stratified split. A network 64-64-10 (ReLU,
weights from N(0, 2/fan_in), Adam 3e-3, batches of 64, 60 epochs) is trained with both weight
matrices through a layer, and judged with all but the k largest magnitudes of the learned weights
set to 0, whatever it was trained with. Test accuracy, mean of 3 seeds.

`relaxed` trains through `topk.prune` (p = 2): lam falls geometrically from `first` to `last` over
the epochs. `hard` trains with the k largest of each step: gradients of the kept weights alone, or
of all (straight through); k at once, or falling from all weights by a cubic law over a share of
the epochs. Both have 12 recipes, chosen by the mean accuracy of 3 other seeds on a fifth of the
training split; the winner is trained on all of it. The test split chooses nothing.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from algorithms.topk.operator import soft_values
from algorithms.topk.pruned_rows import chosen
from bench.table import Row, pinned, report

EPOCHS, BATCH, RATE, HIDDEN = 60, 64, 3e-3, 64
BETAS, SMALL = (0.9, 0.999), 1e-8
SEEDS, TUNING_SEEDS = (0, 1, 2), (10, 11, 12)
KEEPS = (0.1, 0.05)
GOALS = {0.1: 0.95, 0.05: 0.80}
Layer = Callable[[Tensor, int, float], Tensor]


@dataclass(frozen=True)
class Split:
    """Images and labels to train on and to judge with."""

    x: Tensor
    labels: Tensor
    x_judged: Tensor
    labels_judged: Tensor


@dataclass(frozen=True)
class Recipe:
    """One way to train; `done` in its schedules runs from 0 to 1 over the epochs."""

    kind: str
    first: float = 0.0
    last: float = 0.0
    ramp: float = 0.0
    straight: bool = False

    def __str__(self) -> str:
        """Write it for the table."""
        if self.kind == "relaxed":
            return f"lam {self.first:g} -> {self.last:g}"
        through = "straight through" if self.straight else "kept alone"
        return f"{through}, ramp {self.ramp:g}"

    def lam(self, done: float) -> float:
        """Return the strength of a moment."""
        return self.first * (self.last / self.first) ** done

    def kept(self, keep: float, done: float) -> float:
        """Return the share kept at a moment: Zhu and Gupta 2017, arXiv:1710.01878, eq. (1)."""
        if done >= self.ramp:
            return keep
        return keep + (1 - keep) * (1 - done / self.ramp) ** 3


RELAXED = [Recipe("relaxed", a, b) for a in (4.0, 8.0, 16.0) for b in (0.01, 0.03, 0.1, 0.3)]
HARD = [
    Recipe("hard", ramp=ramp, straight=straight)
    for straight in (False, True)
    for ramp in (0.0, 0.2, 0.4, 0.6, 0.8, 0.95)
]
DENSE = Recipe("dense")


def digits() -> tuple[Split, Split]:
    """Split into training and test, and training again into training and validation."""
    images, labels = load_digits(return_X_y=True)
    whole = _split(images / 16.0, labels, 0.3)
    return _split(whole.x.numpy(), whole.labels.numpy(), 0.2), whole


def _split(images: np.ndarray, labels: np.ndarray, share: float) -> Split:
    parts = train_test_split(images, labels, test_size=share, stratify=labels, random_state=0)
    x, judged, y, y_judged = (torch.from_numpy(np.ascontiguousarray(part)) for part in parts)
    return Split(x.float(), y.long(), judged.float(), y_judged.long())


@dataclass
class Networks:
    """Networks of one shape, trained side by side: weights (S, out, in), biases (S, out)."""

    parameters: list[Tensor]

    @staticmethod
    def drawn(seeds: list[int]) -> "Networks":
        """Draw weights; equal seeds give equal networks."""
        layers: list[list[Tensor]] = [[], []]
        for seed in seeds:
            draw = torch.Generator().manual_seed(seed)
            for layer, size in zip(layers, (HIDDEN, 10), strict=True):
                layer.append(torch.randn(size, 64, generator=draw) * math.sqrt(2 / 64))
        first, second = (torch.stack(layer) for layer in layers)
        parameters = [first, torch.zeros(first.shape[:2]), second, torch.zeros(second.shape[:2])]
        return Networks([p.requires_grad_() for p in parameters])

    def outputs(self, x: Tensor, weights: list[Tensor]) -> Tensor:
        """Apply the networks to images (S, b, 64) -> (S, b, 10), with weights of their own."""
        hidden = torch.baddbmm(self.parameters[1][:, None], x, weights[0].mT).relu()
        return torch.baddbmm(self.parameters[3][:, None], hidden, weights[1].mT)

    def accuracies(self, split: Split, keep: float) -> list[float]:
        """Judge the networks with exactly k weights in each matrix."""
        with torch.no_grad():
            weights = [_cut(self.parameters[i], keep) for i in (0, 2)]
            x = split.x_judged.expand(weights[0].shape[0], -1, -1)
            found = self.outputs(x, weights).argmax(2) == split.labels_judged
        return found.float().mean(1).tolist()


def _cut(W: Tensor, keep: float) -> Tensor:
    flat = W.flatten(1)
    return W * chosen(flat.abs(), round(keep * flat.shape[1])).reshape(W.shape)


def layer(W: Tensor, recipes: list[Recipe], keep: float, done: float) -> Tensor:
    """Pass weight matrices through the layers of their recipes, all of one kind."""
    if recipes[0].kind == "dense":
        return W
    flat = W.flatten(1)  # (S, out in)
    if recipes[0].kind == "relaxed":
        lam = torch.tensor([recipe.lam(done) for recipe in recipes], dtype=torch.float64)
        k = round(keep * flat.shape[1])
        return soft_values(flat, float(k), lam, p=2.0).reshape(W.shape)
    masks = torch.zeros_like(flat)
    for index, recipe in enumerate(recipes):
        k = round(recipe.kept(keep, done) * flat.shape[1])
        masks[index] = chosen(flat[index : index + 1].detach().abs(), k)[0]
    masked = flat * masks
    straight = torch.tensor([recipe.straight for recipe in recipes])[:, None]
    through = flat + (masked - flat).detach()
    return torch.where(straight, through, masked).reshape(W.shape)


def train(recipes: list[Recipe], seeds: list[int], split: Split, keep: float) -> Networks:
    """Train one network for each recipe and seed, side by side."""
    networks, count = Networks.drawn(seeds), len(split.x)
    means = [torch.zeros_like(p) for p in networks.parameters]
    squares = [torch.zeros_like(p) for p in networks.parameters]
    draws = {seed: torch.Generator().manual_seed(seed + 1000) for seed in seeds}
    batches, step = range(0, count, BATCH), 0
    for epoch in range(EPOCHS):
        orders = {seed: torch.randperm(count, generator=draw) for seed, draw in draws.items()}
        order = torch.stack([orders[seed] for seed in seeds])  # (S, count)
        for batch, first in enumerate(batches):
            done = (epoch + batch / len(batches)) / EPOCHS
            here, step = order[:, first : first + BATCH], step + 1
            weights = [layer(networks.parameters[i], recipes, keep, done) for i in (0, 2)]
            logits = networks.outputs(split.x[here], weights)
            losses = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), split.labels[here].flatten(), reduction="none"
            )
            total = losses.sum() / here.shape[1]  # networks do not touch each other
            gradients = torch.autograd.grad(total, networks.parameters)
            _adam(networks.parameters, gradients, means, squares, step)
    return networks


def _adam(
    parameters: list[Tensor],
    gradients: tuple[Tensor, ...],
    means: list[Tensor],
    squares: list[Tensor],
    step: int,
) -> None:
    """Take one step (Kingma and Ba 2015): entry by entry, so each network has its own."""
    rate = RATE * math.sqrt(1 - BETAS[1] ** step) / (1 - BETAS[0] ** step)
    with torch.no_grad():
        for p, g, mean, square in zip(parameters, gradients, means, squares, strict=True):
            mean.lerp_(g, 1 - BETAS[0])
            square.mul_(BETAS[1]).addcmul_(g, g, value=1 - BETAS[1])
            p.addcdiv_(mean, square.sqrt().add_(SMALL), value=-rate)


def tuned(recipes: list[Recipe], split: Split, keep: float) -> list[tuple[float, Recipe]]:
    """Rank recipes by their mean accuracy on the validation split."""
    many = [recipe for recipe in recipes for _ in TUNING_SEEDS]
    seeds = list(TUNING_SEEDS) * len(recipes)
    found = train(many, seeds, split, keep).accuracies(split, keep)
    size = len(TUNING_SEEDS)
    means = [sum(found[i : i + size]) / size for i in range(0, len(found), size)]
    return sorted(zip(means, recipes, strict=True), key=lambda pair: -pair[0])


def judged(name: str, recipe: Recipe, split: Split, keep: float, validation: float | None) -> Row:
    """Train a recipe on the whole training split; the accuracies are those on the test split."""
    began = time.process_time()
    networks = train([recipe] * len(SEEDS), list(SEEDS), split, keep)
    seconds = (time.process_time() - began) / len(SEEDS)
    return _row(name, str(recipe), networks.accuracies(split, keep), seconds, keep, validation)


def _row(
    name: str, note: str, found: list[float], seconds: float, keep: float, validation: float | None
) -> Row:
    seen = {"accuracy": sum(found) / len(found), "least": min(found), "most": max(found)}
    if validation is not None:
        seen["validation"] = validation
    return Row(f"keep {keep:.0%}", name, seconds, seen, note)


def main() -> None:
    """Tune, train, print and write."""
    pinned("bench.topk_prune")
    began = time.process_time()
    inner, whole = digits()
    dense = train([DENSE] * len(SEEDS), list(SEEDS), whole, 1.0)
    rows = [_row("dense", "nothing pruned", dense.accuracies(whole, 1.0), 0.0, 1.0, None)]
    tables: dict[str, Any] = {}
    for keep in KEEPS:
        name = "after training"
        rows.append(_row(name, "", dense.accuracies(whole, keep), 0.0, keep, None))
        for kind, recipes in (("hard", HARD), ("relaxed", RELAXED)):
            ranked = tuned(recipes, inner, keep)
            tables[f"{kind} {keep:.0%}"] = {str(recipe): score for score, recipe in ranked}
            validation, best = ranked[0]
            rows.append(judged(kind, best, whole, keep, validation))
    print(*rows, sep="\n")
    reached = {
        f"keep {keep:.0%}": {
            "goal": GOALS[keep],
            "accuracy": next(
                row.reached["accuracy"]
                for row in rows
                if row.solver == "relaxed" and row.problem == f"keep {keep:.0%}"
            ),
        }
        for keep in KEEPS
    }
    print(f"{time.process_time() - began:.0f} CPU seconds in all; {reached}")
    report("topk_prune", rows, threads=1, clock="CPU seconds of one training", goals=reached,
           validation=tables)  # fmt: skip


if __name__ == "__main__":
    main()
