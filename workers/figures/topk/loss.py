"""Picture of top-k losses: how they are spread, and how high the truth ranks."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from workers.figures.style import BLUE, GREY, ORANGE, sheet

MOST_BARS = 40
MOST_NUMBERS = 12  # bars that carry their value in print


def draw(question: Mapping[str, Any], answer: Mapping[str, Any]) -> Figure:
    """Draw the losses of rows, those without a gradient apart, and the accuracies."""
    figure = sheet(10, 4.2)
    left, right = figure.subplots(1, 2)
    _losses(left, np.asarray(answer["losses"]), np.asarray(answer["dead"], dtype=bool))
    _accuracies(right, np.asarray(answer["accuracy"]), question["kind"] == "fy")
    figure.suptitle(
        f"{question['kind']}, lam {answer['lam']:.3g}, p {question['p']:.3g}: mean loss "
        f"{answer['value']:.4g}, {100 * answer['dead_fraction']:.3g} % of rows dead, gap "
        f"{answer['certificate']['optimality_gap']:.1e}",
        fontsize=11,
    )
    return figure


def _losses(axes: Axes, losses: NDArray[Any], dead: NDArray[np.bool_]) -> None:
    high = float(losses.max()) or 1.0
    edges = np.linspace(0, high, min(MOST_BARS, max(8, int(np.sqrt(len(losses))))) + 1)
    axes.hist(
        [losses[~dead], losses[dead]],
        bins=edges.tolist(),
        stacked=True,
        color=[BLUE, ORANGE],
        label=["with a gradient, or no loss", "loss without a gradient (dead)"],
    )
    axes.set_title("losses of rows", fontsize=11)
    axes.set_xlabel("loss", fontsize=9)
    axes.set_ylabel("rows", fontsize=9)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(labelsize=8)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False, fontsize=9, ncols=2)


def _accuracies(axes: Axes, accuracy: NDArray[Any], shares: bool) -> None:
    j = np.arange(1, len(accuracy) + 1)
    if len(j) <= MOST_BARS:
        axes.bar(j, accuracy, color=GREY, width=0.6)
    else:
        axes.plot(j, accuracy, color=BLUE)
    for place, value in zip(j, accuracy, strict=True) if len(j) <= MOST_NUMBERS else ():
        axes.annotate(f"{value:.3g}", (place, value), ha="center", va="bottom", fontsize=9)
    axes.set_ylim(0, 1.08)
    axes.set_xlim(0.4, len(j) + 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title("targets found" if shares else "label found", fontsize=11)
    axes.set_xlabel("among the j highest scores", fontsize=9)
    axes.set_ylabel("share of min(j, k)" if shares else "share of rows", fontsize=9)
    axes.tick_params(labelsize=8)
