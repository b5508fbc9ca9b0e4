"""The parity report as one HTML page that needs no other file."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from eao.export.parity import ParityReport
from eao.export.parity_plots import cosine_plot, layer_plot, ranking_plot
from eao.export.parity_report import RANKING_NOTE, BundleParity, Table, nines

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2, h3 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .5rem 0; }
th, td { padding: .2rem .6rem; text-align: left; border-bottom: 1px solid #ddd; white-space: nowrap; }
th { font-weight: 600; } tr.fails { background: #fbeaea; }
.passed { color: #1e7d34; } .failed { color: #a32020; }
summary { cursor: pointer; margin: .5rem 0; } svg { max-width: 100%; height: auto; }
"""


def render_page(parity: BundleParity) -> str:
    """The page: verdict, tables over engines, precisions and encoders, plots, and all cases to unfold.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    body = "\n".join(_body(parity))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Parity of engines with PyTorch</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _body(parity: BundleParity) -> Iterator[str]:
    yield "<h1>Parity of engines with PyTorch</h1>"
    failures = parity.failures()
    if failures:
        yield f'<p class="failed">{len(failures)} figures miss their thresholds:</p>'
        yield _list(failures, "failed")
    else:
        yield '<p class="passed">All figures hold their thresholds.</p>'
    yield f"<p>{escape(parity.introduction())}</p>"
    yield _table(parity.embedding_table())
    yield "<h3>Thresholds</h3>"
    yield _table(parity.threshold_table())
    if parity.unmeasured:
        yield "<h3>Not measured here</h3>"
        yield _list([f"{name}: {reason}" for name, reason in parity.unmeasured.items()])
    yield from _rankings(parity)
    yield "<h2>Cosines by case</h2>"
    for report in parity.reports:
        yield f"<h3>{escape(report.name)}</h3>"
        yield cosine_plot(report)
        yield _details("all cases", _table(_case_table(report)))
    yield from _layers(parity)
    if parity.versions:
        versions = ", ".join(f"{name} {version}" for name, version in parity.versions.items())
        yield f"<p>Measured with {escape(versions)}.</p>"


def _rankings(parity: BundleParity) -> Iterator[str]:
    if not any(report.rankings for report in parity.reports):
        return
    yield "<h2>Rankings</h2>"
    yield f"<p>{escape(RANKING_NOTE)}</p>"
    yield _table(parity.ranking_table())
    yield ranking_plot(parity.reports)
    for metric, heading in (("R1", "R@1"), ("R5", "R@5"), ("R10", "R@10"), ("MedR", "Median rank")):
        yield _details(f"{heading} by task", _table(parity.recall_table(metric)))


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
        yield _details("all layers", _table(Table(header, rows)))


def _case_table(report: ParityReport) -> Table:
    header = ("encoder", "case", "max abs", "mean abs", "cosine min", "cosine p1", "cosine mean")
    rows = []
    for encoder, parity in report.encoders.items():
        for name, f in parity.cases.items():
            cosines = map(nines, (f.cosine_min, f.cosine_p1, f.cosine_mean))
            rows.append((encoder, name, f"{f.max_abs:.2g}", f"{f.mean_abs:.2g}", *cosines))
    return Table(header, rows)


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.header)
    rows = []
    for row in table.rows:
        fails = ' class="fails"' if any(cell.startswith("[x]") for cell in row) else ""
        rows.append(f"<tr{fails}>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>")
    body = "\n".join(rows)
    return f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def _list(lines: list[str], style: str = "") -> str:
    items = "\n".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<ul class="{style}">\n{items}\n</ul>' if style else f"<ul>\n{items}\n</ul>"


def _details(summary: str, content: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>\n{content}\n</details>"
