"""Picture of pruned tensors: which magnitudes stay, and how much of each tensor."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter
from numpy.typing import NDArray

from workers.figures.style import BLUE, GREY, ORANGE, sheet

BINS = 60
MOST_BARS = 12
# Magnitudes below this share of the threshold are all shown at the left end.
LOWEST = 0.02
Array = NDArray[Any]


def draw(question: Mapping[str, Any], answer: Mapping[str, Any]) -> Figure:
    """Draw magnitudes around their thresholds, and what is left of each tensor."""
    given = question["tensors"] if question["state"] is None else question["state"].chosen
    bars = min(len(answer["pruned"]), MOST_BARS)
    figure = sheet(10, max(4.2, 2.4 + 0.32 * bars))
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    _magnitudes(left, given, answer)
    _shares(right, answer)
    figure.suptitle(
        f"{answer['k']} entries kept exactly, {answer['nnz']} softly "
        f"({answer['soft_share']:.0%} of them in between), p {question['p']:.3g}, "
        f"lam {answer['lam']:.3g}{' relative' if answer['lam_relative'] else ''}",
        fontsize=11,
    )
    return figure


def _magnitudes(axes: Axes, given: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
    """Count entries by magnitude over threshold: dropped, in the soft block, kept whole."""
    kinds: tuple[list[Array], ...] = ([], [], [])
    for name, tensor in given.items():
        theta = np.asarray(answer["theta"][name], np.float64)[:, None]
        s = np.abs(tensor.double().numpy()).reshape(len(theta), -1)
        v = np.abs(np.asarray(answer["values"][name], np.float64)).reshape(s.shape)
        kept = v > 0
        block = kept & (v < (s if answer["debias"] else theta))
        ratio = s / np.where(theta > 0, theta, 1.0)
        for kind, mask in zip(kinds, (~kept, block, kept & ~block), strict=True):
            kind.append(np.clip(ratio[mask], LOWEST, None))
    dropped, block, whole = (np.concatenate(kind) for kind in kinds)
    highest = max((float(part.max()) for part in (dropped, block, whole) if part.size), default=1.0)
    above = np.geomspace(1, max(1.05 * highest, 2.0), BINS // 2)
    edges = np.concatenate([np.geomspace(LOWEST, 1, BINS // 2)[:-1], above])
    if block.size:
        axes.axvspan(1.0, float(block.max()), color=ORANGE, alpha=0.15, lw=0)
    labels = (f"dropped ({dropped.size})", f"in between ({block.size})", f"whole ({whole.size})")
    parts = zip((dropped, block, whole), labels, (GREY, ORANGE, BLUE), strict=True)
    for part, label, colour in parts:
        axes.hist(part, edges.tolist(), color=colour, label=label)
    axes.axvline(1.0, color="black", lw=1.2, ls="--", label="threshold theta")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.set_ylim(0.7, axes.get_ylim()[1] * 1.5)
    axes.set_xlabel(f"magnitude / threshold of its row (no unit; below {LOWEST}: first bar)",
                    fontsize=9)  # fmt: skip
    axes.set_ylabel("entries (count)", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.legend(fontsize=8, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)


def _shares(axes: Axes, answer: Mapping[str, Any]) -> None:
    """Draw a bar for each tensor, the largest ones where they are many."""
    reports = sorted(answer["pruned"], key=lambda one: -one["size"])[:MOST_BARS]
    where = np.arange(len(reports))
    size, nnz, soft, k = (np.array([one[key] for one in reports]) for key in
                          ("size", "nnz", "soft", "k"))  # fmt: skip
    whole = 100 * (nnz - soft) / size
    axes.barh(where, whole, 0.6, color=BLUE, label="whole")
    axes.barh(where, 100 * soft / size, 0.6, left=whole, color=ORANGE, label="in between")
    ends = (where - 0.38, where + 0.38)
    axes.vlines(100 * k / size, *ends, color="black", lw=2, label="kept exactly (k)")
    for at, share, one in zip(where, 100 * np.maximum(nnz, k) / size, reports, strict=True):
        axes.annotate(f"{one['nnz']} of {one['size']}", (float(share), float(at)), (5, 0),
                      textcoords="offset points", va="center", fontsize=8)  # fmt: skip
    axes.set_yticks(where, [_short(one["name"]) for one in reports], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.45 * max(float((100 * np.maximum(nnz, k) / size).max()), 1.0))
    axes.set_xticks([tick for tick in axes.get_xticks() if tick <= 100])
    axes.set_xlabel("entries that are not 0 (% of the tensor)", fontsize=9)
    axes.tick_params(labelsize=8)
    rest = len(answer["pruned"]) - len(reports)
    if rest > 0:
        axes.set_ylabel(f"the largest; {rest} more not shown", fontsize=8)
    axes.legend(fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)


def _short(name: str) -> str:
    """Keep the end of a long name: it tells layers apart."""
    return name if len(name) <= 24 else f"...{name[-21:]}"
