"""Picture of a consensus slice: its programmes in place, and the course of the objective."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workers.figures.style import BLUE, ORANGE, plane, sheet

SHOWN = 5


def draw(question: Mapping[str, Any], answer: Mapping[str, Any]) -> Figure:
    """Draw the largest programmes over the tissue, and the objective after each half-step."""
    places, W, H = (np.asarray(answer[name]) for name in ("coordinates", "W", "H"))
    heaviest = np.argsort(-W.mean(0), kind="stable")[:SHOWN]
    figure = sheet(10, 6.6)
    panels = figure.subplots(2, 3).ravel()
    size = float(np.clip(9_000 / max(len(places), 1), 1.5, 60))
    for axes, k in zip(panels, heaviest, strict=False):
        drawn = axes.scatter(*places.T, s=size, c=W[:, k], cmap="viridis", linewidths=0, vmin=0)
        bar = figure.colorbar(drawn, ax=axes, shrink=0.8)
        bar.set_label("share of expression (0 to 1)", fontsize=8)
        bar.ax.tick_params(labelsize=7)
        plane(axes, f"programme {k}: {_leading(H, answer['genes'], k)}", "file unit")
    for axes in panels[len(heaviest) : -1]:
        axes.set_axis_off()
    _course(panels[-1], answer)
    figure.suptitle(
        f"centre of {len(question['slices'])} slices on the spots of slice {answer['template']}: "
        f"objective {answer['value']:.4f}"
        + ("" if answer["status"] == "converged" else f", status {answer['status']}"),
        fontsize=12,
    )
    return figure


def _leading(H: Any, genes: list[str], k: int) -> str:
    """Name the gene that a programme has the most of, against the mean of all programmes."""
    return genes[int(np.argmax(H[k] - H.mean(0)))]


def _course(axes: Axes, answer: Mapping[str, Any]) -> None:
    trace = np.asarray(answer["trace"])
    at = np.arange(len(trace))
    axes.plot(at / 2, trace, color="#444444", linewidth=1)
    axes.scatter(at[1::2] / 2, trace[1::2], color=BLUE, s=22, label="after plans", zorder=3)
    axes.scatter(
        at[::2] / 2, trace[::2], color=ORANGE, marker="s", s=22, label="after factors", zorder=3
    )
    axes.set_xlabel("round", fontsize=9)
    axes.set_ylabel("objective (nats)", fontsize=9)
    axes.set_title("course of the objective", fontsize=11)
    axes.tick_params(labelsize=8)
    axes.legend(frameon=False, fontsize=8, loc="upper right")
