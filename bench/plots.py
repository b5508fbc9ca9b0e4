"""Plots of a report of engines, as SVG elements for a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from eao.bench.report import TORCH, BenchReport, Entry
from eao.export.drawing import MARKERS, TEXT, draw, to_svg
from eao.export.encoders import BATCH

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

_EXACT = 1e-9
"""1 - cosine is drawn from here on: 0 has no logarithm."""


def encoder_plot(report: BenchReport, encoder: str) -> str:
    """Three panels of an encoder: latency by batch, latency by length, and which engines are both near and fast.

    Args:
        report: what was measured.
        encoder: one that it holds.
    """
    entries = [entry for entry in report.entries if entry.encoder == encoder]
    longest = max(entry.length for entry in entries)
    fewest = min(entry.sizes[BATCH] for entry in entries)
    ways = list(dict.fromkeys(way for entry in report.entries for way in entry.results))
    drawing, (by_batch, by_length, pareto) = draw(height=3.2, columns=3)
    at_longest = sorted((e for e in entries if e.length == longest), key=lambda e: e.sizes[BATCH])
    at_fewest = sorted((e for e in entries if e.sizes[BATCH] == fewest), key=lambda e: e.length)
    batches = [e.sizes[BATCH] for e in at_longest]
    _lines(by_batch, at_longest, batches, ways)
    by_batch.set_xscale("log", base=2)
    by_batch.set_xticks(batches, [str(batch) for batch in batches])
    by_batch.set_xlabel(f"clips a call, {100 * longest:.0f} % of the length")
    by_batch.set_ylabel("median ms a call")
    _lines(by_length, at_fewest, [100 * e.length for e in at_fewest], ways)
    by_length.set_xlabel(f"length, % of the longest, batch {fewest}")
    by_length.set_xlim(0, 105)
    entry = next(e for e in at_fewest if e.length == at_fewest[-1].length)
    _pareto(pareto, report, entry, ways)
    handles, labels = by_batch.get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    return to_svg(drawing, f"latency-{encoder}", f"Latency and parity, {encoder}")


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of points of which both coordinates are better when less, those that none beats in both, by the first coordinate.

    Example:
        >>> pareto_front([(3, 1), (1, 3), (2, 2), (3, 3)])
        [(1, 3), (2, 2), (3, 1)]
    """
    front: list[tuple[float, float]] = []
    for point in sorted(points):
        if not front or point[1] < front[-1][1]:
            front.append(point)
    return front


def _lines(axes: Axes, entries: Sequence[Entry], x: Sequence[float], ways: Sequence[str]) -> None:
    for i, way in enumerate(ways):
        points = [(a, e.results[way].latency.median_ms) for a, e in zip(x, entries, strict=True) if way in e.results]
        if points:
            axes.plot(*zip(*points, strict=True), marker=_marker(i), color=_color(i, way), ms=4, lw=1, label=way)
    axes.set_yscale("log")
    _milliseconds(axes.yaxis)


def _milliseconds(axis: Axis) -> None:
    """Plain numbers at 1, 2 and 5 of each decade: times often lie within one."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _pareto(axes: Axes, report: BenchReport, entry: Entry, ways: Sequence[str]) -> None:
    points = []
    for way, result in entry.engines.items():
        facts = report.facts(entry.encoder, way)
        if facts is not None and facts.parity is not None:
            point = (result.latency.median_ms, max(1 - facts.parity.cosine_min, _EXACT))
            points.append(point)
            i = ways.index(way)
            axes.plot(*point, marker=_marker(i), color=_color(i, way), ms=6, ls="none")
    if points:
        axes.step(*zip(*pareto_front(points), strict=True), where="post", color=TEXT, lw=0.8)
    if TORCH in entry.results:
        axes.axvline(entry.results[TORCH].latency.median_ms, color=TEXT, lw=0.8, ls=":")
        axes.set_title("dotted: PyTorch", fontsize=8, color=TEXT, loc="right")
    axes.set_xscale("log")
    _milliseconds(axes.xaxis)
    axes.set_yscale("log")
    axes.set_xlabel(f"median ms a call, batch {entry.sizes[BATCH]}")
    axes.set_ylabel("1 - cosine, worst clip")


def _marker(i: int) -> str:
    return MARKERS[i % len(MARKERS)]


def _color(i: int, way: str) -> str:
    return TEXT if way == TORCH else f"C{i % 10}"
