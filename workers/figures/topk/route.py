"""Picture of a routing: what each expert carries, and how many experts a token has."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from workers.figures.style import BLUE, GREY, ORANGE, sheet


def draw(question: Mapping[str, Any], answer: Mapping[str, Any]) -> Figure:
    """Draw load and importance of the experts beside the even load, and the tokens' experts."""
    figure = sheet(12, 4.4)
    left, middle, right = figure.subplots(1, 3, width_ratios=(4, 4, 3))
    load, importance = (np.asarray(answer[name]) for name in ("load", "importance"))
    _bars(left, load, "load", "tokens", BLUE, f"capacity {answer['capacity']}", answer["capacity"])
    _bars(middle, importance, "importance", "sum of weights", ORANGE)
    _degrees(right, np.asarray(answer["degrees"]))
    figure.suptitle(
        f"{question['choice']} choice, k {question['k']}, lam {answer['lam']:.3g}: CV² of the load "
        f"{answer['load_cv2']:.3g}, of the importance {answer['importance_cv2']:.3g}; "
        f"{answer['tokens_dropped']} tokens without an expert",
        fontsize=11,
    )
    return figure


def _bars(
    axes: Axes, amounts: NDArray[Any], title: str, unit: str, color: str,
    limit: str = "", height: float = 0.0,
) -> None:  # fmt: skip
    axes.bar(np.arange(len(amounts)), amounts, color=color, width=0.8)
    mean = float(amounts.mean())
    axes.axhline(mean, color="black", linestyle="--", linewidth=1.2, label=f"even: {mean:.3g}")
    if limit:
        axes.axhline(height, color=GREY, linestyle=":", linewidth=1.8, label=limit)
    axes.set_title(title, fontsize=11)
    axes.set_xlabel("expert", fontsize=9)
    axes.set_ylabel(unit, fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(labelsize=8)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), frameon=False, fontsize=9, ncols=2)


def _degrees(axes: Axes, degrees: NDArray[Any]) -> None:
    most = int(np.flatnonzero(degrees).max())
    axes.bar(np.arange(most + 1), degrees[: most + 1], color=GREY, width=0.8)
    axes.set_title("experts of a token", fontsize=11)
    axes.set_xlabel("experts with a weight above 0", fontsize=9)
    axes.set_ylabel("tokens", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(labelsize=8)
