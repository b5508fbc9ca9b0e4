"""The parity report as one HTML page that needs no other file."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from eao.export.page import Table, html_details, html_list, html_page, html_table
from eao.export.parity import ParityReport
from eao.export.parity_plots import cosine_plot, layer_plot, ranking_plot
from eao.export.parity_report import RANKING_NOTE, SIMULATED_NOTE, BundleParity, nines


def render_page(parity: BundleParity) -> str:
    """The page: verdict, tables over engines, precisions and encoders, plots, and all cases to unfold.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    return html_page("Parity of engines with PyTorch", _body(parity))


def _body(parity: BundleParity) -> Iterator[str]:
    yield "<h1>Parity of engines with PyTorch</h1>"
    failures = parity.failures()
    if failures:
        yield f'<p class="failed">{len(failures)} figures miss their thresholds:</p>'
        yield html_list(failures, "failed")
    else:
        yield '<p class="passed">All figures hold their thresholds.</p>'
    yield f"<p>{escape(parity.introduction())}</p>"
    yield html_table(parity.embedding_table())
    yield "<h3>Thresholds</h3>"
    yield html_table(parity.threshold_table())
    if any(report.simulated for report in parity.reports):
        yield f"<p>{escape(SIMULATED_NOTE)}</p>"
    yield from _rankings(parity)
    yield "<h2>Cosines by case</h2>"
    for report in parity.reports:
        yield f"<h3>{escape(report.name)}</h3>"
        yield cosine_plot(report)
        yield html_details("all cases", html_table(_case_table(report)))
    yield from _layers(parity)
    if parity.versions:
        versions = ", ".join(f"{name} {version}" for name, version in parity.versions.items())
        yield f"<p>Measured with {escape(versions)}.</p>"


def _rankings(parity: BundleParity) -> Iterator[str]:
    if not any(report.rankings for report in parity.reports):
        return
    yield "<h2>Rankings</h2>"
    yield f"<p>{escape(RANKING_NOTE)}</p>"
    yield html_table(parity.ranking_table())
    yield ranking_plot(parity.reports)
    for metric, heading in (("R1", "R@1"), ("R5", "R@5"), ("R10", "R@10"), ("MedR", "Median rank")):
        yield html_details(f"{heading} by task", html_table(parity.recall_table(metric)))


def _layers(parity: BundleParity) -> Iterator[str]:
    found = list(parity.divergences())
    if found:
        yield "<h2>Error by layer</h2>"
    for report, encoder, divergence in found:
        name = f"{report.name} {encoder}"
        yield f"<h3>{escape(name)}</h3>"
        yield f"<p>{escape(divergence.describe())}</p>"
        yield layer_plot(divergence, name)
        header = ("layer", "operator", "module", "relative error", "max abs")
        rows = [(e.node, e.op, e.module, f"{e.error:.2g}", f"{e.max_abs:.2g}") for e in divergence.layers]
        yield html_details("all layers", html_table(Table(header, rows)))


def _case_table(report: ParityReport) -> Table:
    header = ("encoder", "case", "max abs", "mean abs", "cosine min", "cosine p1", "cosine mean")
    rows = []
    for encoder, parity in report.encoders.items():
        for name, f in parity.cases.items():
            cosines = map(nines, (f.cosine_min, f.cosine_p1, f.cosine_mean))
            rows.append((encoder, name, f"{f.max_abs:.2g}", f"{f.mean_abs:.2g}", *cosines))
    return Table(header, rows)
