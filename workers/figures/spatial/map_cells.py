"""Picture of mapped cells: genes carried beside genes measured, where cells went, how well."""

from collections.abc import Mapping
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from workers.figures.spatial.align import marker_size
from workers.figures.style import BLUE, GREY, ORANGE, sheet

Values = NDArray[np.float64]
SHOWN = 2  # genes
CAPTION = 90  # characters on a line: what the width holds


def draw(question: Mapping[str, Any], answer: Mapping[str, Any]) -> Figure:
    """Draw two genes at the locations, carried and measured; the cells' places; correlations."""
    atlas = question["atlas"]
    places = atlas.coordinates.numpy()
    size = marker_size(len(places))
    drawn = _chosen(answer, named=question["genes"] is not None)
    heights = [_height(places)] * len(drawn) + [max(_height(places), 3.2)]
    figure = sheet(10.4, sum(heights) + 0.4)
    panels = figure.subplots(len(drawn) + 1, 2, squeeze=False, height_ratios=heights)
    for row, gene in zip(panels, drawn, strict=False):
        _gene(row, figure, atlas, answer, gene, size)
    _cells(panels[-1, 0], figure, places, answer)
    _correlations(panels[-1, 1], answer, drawn)
    figure.suptitle(_caption(answer), fontsize=12)
    return figure


def _height(z: Values) -> float:
    """Choose the inches of a row of maps: long tissue takes less than round tissue."""
    width, height = np.ptp(z, axis=0)
    return float(np.clip(3.6 * height / max(width, 1e-300), 1.4, 5.0)) + 1.0


def _chosen(answer: Mapping[str, Any], *, named: bool) -> list[str]:
    """Take the genes asked for first; of all genes the best and the middle one of those held out.

    Genes that can be compared come before those that cannot.
    """
    genes = list(answer["genes"])
    told = {g: r for g, r in zip(genes, answer["pearson"], strict=True) if r is not None}
    if not told:
        return genes[:SHOWN]
    if named:
        return list(told)[:SHOWN]
    ranked = sorted(told, key=lambda gene: -told[gene])
    return list(dict.fromkeys([ranked[0], ranked[len(ranked) // 2]]))


def _gene(
    row: NDArray[Any],
    figure: Figure,
    atlas: Any,
    answer: Mapping[str, Any],
    gene: str,
    size: float,
) -> None:
    at = list(answer["genes"]).index(gene)
    r = answer["pearson"][at]
    if r is not None:
        told = f" (r {r:.2f})"
    else:
        told = " (a marker)" if gene in answer["marker_genes"] else ""
    places = atlas.coordinates.numpy()
    carried = np.asarray(answer["expression"], float)[:, at]
    _map(row[0], figure, places, carried, size, f"{gene}, mapped{told}", "cells' unit")
    if gene not in atlas.genes:
        row[1].axis("off")
        row[1].text(0.5, 0.5, f"{gene} was not measured in the atlas", ha="center", fontsize=11)
        return
    own = atlas.counts[:, [atlas.genes.index(gene)]].toarray()[:, 0]
    _map(row[1], figure, places, own, size, f"{gene}, measured", "atlas's unit")


def _map(
    axes: Axes,
    figure: Figure,
    z: Values,
    values: Values,
    size: float,
    title: str,
    meaning: str,
) -> None:
    dots = axes.scatter(*z.T, s=size, c=values, cmap="cividis", linewidths=0)
    _side(axes, title)
    figure.colorbar(dots, ax=axes, shrink=0.8).set_label(meaning, fontsize=9)


def _side(axes: Axes, title: str) -> None:
    """Dress axes that show the two coordinates that were read, whichever these are."""
    axes.set_aspect("equal", "box")
    axes.set_title(title, fontsize=11)
    axes.set_xlabel("coordinate 1 (atlas's unit)", fontsize=9)
    axes.set_ylabel("coordinate 2 (atlas's unit)", fontsize=9)
    axes.tick_params(labelsize=8)


def _cells(axes: Axes, figure: Figure, places: Values, answer: Mapping[str, Any]) -> None:
    axes.scatter(*places.T, s=0.5 * marker_size(len(places)), c=GREY, alpha=0.35, linewidths=0)
    cells, spread = np.asarray(answer["places"], float), np.asarray(answer["spread"], float)
    dots = axes.scatter(
        *cells.T, s=marker_size(4 * len(cells)), c=spread, cmap="viridis", linewidths=0
    )
    _side(axes, "mean place of each cell, on the locations (grey)")
    figure.colorbar(dots, ax=axes, shrink=0.8).set_label("spread (atlas's unit)", fontsize=9)


def _correlations(axes: Axes, answer: Mapping[str, Any], drawn: list[str]) -> None:
    told = sorted(
        (r, gene)
        for gene, r in zip(answer["genes"], answer["pearson"], strict=True)
        if r is not None
    )
    if not told:
        axes.axis("off")
        axes.text(0.5, 0.5, "no gene was held out", ha="center", fontsize=11)
        return
    heights = [r for r, _ in told]
    colours = [ORANGE if gene in drawn else BLUE for _, gene in told]
    axes.bar(range(len(told)), heights, color=colours, width=0.8 if len(told) < 100 else 1.0)
    axes.axhline(0, color="black", linewidth=0.8)
    middle = float(np.median(heights))
    axes.axhline(middle, color=GREY, linestyle="--", linewidth=1.2)
    axes.set_ylim(min(0.0, *heights) - 0.02, 1.05)
    axes.set_title(f"held-out genes, median {middle:.2f} (dashed); orange: shown", fontsize=11)
    axes.set_xlabel("genes that both have, no markers, by rising correlation", fontsize=9)
    axes.set_ylabel("correlation, mapped with measured", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.set_xticks([])


def _caption(answer: Mapping[str, Any]) -> str:
    words = [f"{len(answer['cell_ids'])} cells on {len(answer['ids'])} locations"]
    names = list(answer["marker_genes"])
    few = ", ".join(names) if len(names) <= 4 else f"{len(names)} genes"
    words.append(f"markers: {few or 'none'}")
    held = answer["held_out"]
    if held["mean"] is not None:
        words.append(f"mean correlation of {held['genes']} held-out genes {held['mean']:.2f}")
    if answer["status"] != "converged":
        words.append(f"status {answer['status']}")
    return fill("; ".join(words), CAPTION)
