"""Drawings as SVG elements of a page, by matplotlib, which is imported when the first is made."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

from eao.errors import missing_dependency

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TEXT, GRID = "#333333", "#dddddd"
MARKERS = "osD^vP*"


def require_matplotlib() -> None:
    """Say at once that plots cannot be drawn, before hours are spent on what they would show.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise missing_dependency("matplotlib", "report", "the HTML report") from None


def draw(height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A drawing as wide as a page, and its panels side by side.

    Args:
        height: in inches.
        columns: number of panels.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(9, height), layout="constrained")
    panels = list(drawing.subplots(1, columns, squeeze=False)[0])
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color=GRID, lw=0.5)
        axes.tick_params(labelsize=8, colors=TEXT)
    return drawing, panels


def to_svg(drawing: Figure, name: str, title: str) -> str:
    """The drawing as an <svg> element: text stays text, and its ids are its own among the drawings of a page."""
    import matplotlib

    file = io.StringIO()
    prefix = re.sub(r"[^a-z0-9]+", "-", name.lower()) + "-"
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 9}):
        drawing.savefig(file, format="svg", metadata={"Date": None, "Title": title})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    return re.sub(r'(href="|url\()#', rf"\1#{prefix}", svg).strip()
