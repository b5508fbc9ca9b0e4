"""Plots of parity reports, as SVG elements for a page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from eao.export.bisect import Divergence
from eao.export.drawing import MARKERS, TEXT, draw, to_svg
from eao.export.parity import ParityReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_EXACT = 1e-9
"""1 - cosine is drawn from here on: what lies below is rounding of float64, and has no logarithm at 0."""
_ROW = 0.2
_LIMIT = "#c0392b"


def cosine_plot(report: ParityReport) -> str:
    """The distribution of 1 - cosine by case, one colour an encoder, with the threshold."""
    cases = list(dict.fromkeys(name for parity in report.encoders.values() for name in parity.cases))
    drawing, (axes,) = draw(height=1.2 + _ROW * len(cases))
    for i, (encoder, parity) in enumerate(report.encoders.items()):
        shift = 0.6 * ((i + 0.5) / len(report.encoders) - 0.5)
        spread = [(name, c) for name, figures in parity.cases.items() for c in figures.cosines if math.isfinite(c)]
        x = [max(1 - cosine, _EXACT) for _, cosine in spread]
        y = [cases.index(name) + shift for name, _ in spread]
        axes.scatter(x, y, s=6, color=f"C{i}", label=encoder, alpha=0.7)
    _limit(axes, max(1 - report.thresholds["cosine"], _EXACT))
    axes.set_xscale("log")
    axes.set_yticks(range(len(cases)), cases)
    axes.set_ylim(len(cases) - 0.5, -0.5)
    axes.set_xlabel("1 - cosine with PyTorch (left is better)")
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    return to_svg(drawing, f"cosine-{report.engine}-{report.precision}", f"Cosines by case, {report.name}")


def ranking_plot(reports: Sequence[ParityReport]) -> str:
    """Changes of R@1, R@5 and R@10 and the top-10 overlap by task, one marker an engine."""
    ranked = [report for report in reports if report.rankings]
    tasks = list(dict.fromkeys(ranking.task for report in ranked for ranking in report.rankings))
    drawing, panels = draw(height=1.4 + _ROW * len(tasks), columns=4)
    columns = (*((f"R{k}", f"R@{k}, points") for k in (1, 5, 10)), ("", "top-10 overlap, %"))
    for axes, (metric, label) in zip(panels, columns, strict=True):
        for i, report in enumerate(ranked):
            values = [r.recall_change[metric] if metric else 100 * r.top10_overlap for r in report.rankings]
            rows = [tasks.index(r.task) for r in report.rankings]
            axes.plot(values, rows, MARKERS[i % len(MARKERS)], color=f"C{i}", ms=5, alpha=0.7, label=report.name)
        axes.axvline(0 if metric else 100, color=TEXT, lw=0.8)
        axes.set_xlabel(label)
        axes.set_yticks(range(len(tasks)), tasks if axes is panels[0] else [""] * len(tasks))
        axes.set_ylim(len(tasks) - 0.5, -0.5)
    for limit in {report.thresholds["recall10"] for report in ranked if "recall10" in report.thresholds}:
        _limit(panels[2], -limit)
        _limit(panels[2], limit)
    for overlap in {report.thresholds["top10_overlap"] for report in ranked if "top10_overlap" in report.thresholds}:
        _limit(panels[3], 100 * overlap)
    panels[-1].legend(loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False)
    return to_svg(drawing, "rankings", "Rankings by engine")


def layer_plot(divergence: Divergence, name: str) -> str:
    """The error of every layer in the order of computation, with the tolerance and the first layer beyond it."""
    drawing, (axes,) = draw(height=2.8)
    errors = [layer.error for layer in divergence.layers]
    finite = [(i, max(error, _EXACT)) for i, error in enumerate(errors) if math.isfinite(error)]
    axes.plot([i for i, _ in finite], [error for _, error in finite], ".-", lw=0.8, ms=4)
    axes.axhline(divergence.tolerance, color=_LIMIT, lw=1, ls="--")
    if divergence.first is not None:
        place = divergence.layers.index(divergence.first)
        height = errors[place] if math.isfinite(errors[place]) else divergence.tolerance
        axes.plot([place], [height], "o", mfc="none", mec=_LIMIT, ms=10)
        axes.set_title(f"first out of tolerance: {divergence.first}", loc="left", color=_LIMIT, fontsize=9)
    axes.set_yscale("log")
    axes.set_xlabel("layer, in the order of computation")
    axes.set_ylabel("relative error")
    return to_svg(drawing, f"layers-{name}", f"Error by layer, {name}")


def _limit(axes: Axes, value: float) -> None:
    axes.axvline(value, color=_LIMIT, lw=1, ls="--")
