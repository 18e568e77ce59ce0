"""Picture of a barycenter among the measures that it averages."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from algorithms.transport.barycenter import FixedSupport, FreeSupport
from workers.figures.style import BLUE, GREY, ORANGE, plane, sheet

MOST_PANELS = 7


def draw(question: Mapping[str, Any], answer: Mapping[str, Any]) -> Figure:
    """Draw points of the plane, curves on a line, or a row of images, as the problem has them."""
    problem, beta = question["problem"], np.asarray(answer["weights"])
    caption = f"barycenter, value {answer['value']:.4g}, residual {answer['residual']:.1e}"
    if isinstance(problem, FreeSupport):
        return _free(problem, np.asarray(answer["points"]), caption)
    if not isinstance(problem, FixedSupport):
        histograms = problem.histograms.numpy()
        if histograms.ndim == 3 and 1 in histograms.shape[1:]:
            line = np.arange(beta.size) * problem.spacing
            inputs = histograms.reshape(len(histograms), -1)
            return _curves(line, inputs, line, beta.ravel(), caption)
        return _images(histograms, beta, caption)
    inputs = problem.weights.numpy()
    if problem.x is None:
        place, source = np.arange(beta.size), np.arange(inputs.shape[1])
        return _curves(source, inputs, place, beta, caption, "index of the point")
    x = problem.x.numpy()
    y = x if problem.y is None else problem.y.numpy()
    if x.shape[1] == 1:
        return _curves(y[:, 0], inputs, x[:, 0], beta, caption)
    figure = sheet(8, 7)
    axes = figure.subplots()
    for w in inputs:
        axes.scatter(*y[:, :2].T, s=200 * w / w.max(), facecolors="none", edgecolors=GREY)
    axes.scatter(*x[:, :2].T, s=200 * beta / beta.max(), c=ORANGE, alpha=0.8)
    _legend(axes, (GREY, "inputs (area is mass)"), (ORANGE, "barycenter"))
    plane(axes, caption, "unit of the points")
    return figure


def _legend(axes: Axes, *entries: tuple[str, str]) -> None:
    for colour, name in entries:
        axes.scatter([], [], c=colour, label=name)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=len(entries), frameon=False)


def _curves(
    source: NDArray[Any],
    inputs: NDArray[Any],
    place: NDArray[Any],
    beta: NDArray[Any],
    caption: str,
    label: str = "place (unit of the points)",
) -> Figure:
    """Draw masses over a line."""
    figure = sheet(8, 5)
    axes = figure.subplots()
    order = np.argsort(source)
    for k, w in enumerate(inputs):
        axes.plot(source[order], w[order], c=GREY, lw=1.5, label=None if k else "inputs")
    order = np.argsort(place)
    axes.plot(place[order], beta[order], c=ORANGE, lw=2.5, label="barycenter")
    axes.set_xlabel(label)
    axes.set_ylabel("mass of a point")
    axes.set_title(caption, fontsize=11)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2, frameon=False)
    return figure


def _images(histograms: NDArray[Any], beta: NDArray[Any], caption: str) -> Figure:
    """Put images side by side, the barycenter first; volumes are summed along their last axis."""
    shown = [beta, *histograms[: MOST_PANELS - 1]]
    flat = [z.sum(2) if z.ndim == 3 else z for z in shown]
    figure = sheet(max(8, 2.4 * len(flat)), 3.6)
    panels = figure.subplots(1, len(flat), squeeze=False)[0]
    for k, (axes, image) in enumerate(zip(panels, flat, strict=True)):
        drawn = axes.imshow(image, cmap="cividis", interpolation="none")
        axes.set_title("barycenter" if k == 0 else f"input {k - 1}", fontsize=10)
        axes.set_xlabel("grid index, axis w", fontsize=8)
        axes.tick_params(labelsize=7)
        figure.colorbar(drawn, ax=axes, shrink=0.7).ax.tick_params(labelsize=7)
    panels[0].set_ylabel("grid index, axis h", fontsize=8)
    left_out = len(histograms) + 1 - len(flat)
    figure.suptitle(caption + (f", {left_out} inputs not shown" if left_out else ""), fontsize=11)
    return figure


def _free(problem: FreeSupport, points: NDArray[Any], caption: str) -> Figure:
    """Draw the clouds and the points, by their first two coordinates."""
    figure = sheet(8, 7)
    axes = figure.subplots()
    flat = points.shape[1] == 1
    for k, cloud in enumerate(problem.clouds):
        x = cloud.x.numpy()
        height = np.full(len(x), float(k + 1)) if flat else x[:, 1]
        axes.scatter(x[:, 0], height, s=15, c=GREY if k % 2 else BLUE, alpha=0.6)
    height = np.zeros(len(points)) if flat else points[:, 1]
    axes.scatter(points[:, 0], height, s=35, c=ORANGE, edgecolors="black", linewidths=0.5)
    _legend(axes, (BLUE, "clouds, even"), (GREY, "clouds, odd"), (ORANGE, "barycenter"))
    if flat:
        axes.set_title(caption, fontsize=11)
        axes.set_xlabel("place (unit of the points)")
        axes.set_ylabel("number of the cloud, from 1; barycenter at 0")
    else:
        plane(axes, caption, "unit of the points")
    return figure
