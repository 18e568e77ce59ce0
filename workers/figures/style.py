"""What all pictures share: a colour-blind safe palette, sizes legible at 800 pixels."""

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

ORANGE, BLUE, GREY = "#E69F00", "#0072B2", "#999999"


def sheet(width: float, height: float) -> Figure:
    """Open a figure of so many inches that never touches a display."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plane(axes: Axes, title: str, unit: str) -> None:
    """Dress axes that show places: equal scales, named with their unit."""
    axes.set_aspect("equal", "datalim")
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(f"x ({unit})", fontsize=9)
    axes.set_ylabel(f"y ({unit})", fontsize=9)
    axes.tick_params(labelsize=8)
