"""The parity of all engines of a bundle, together: as JSON, as Markdown and as one HTML page."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import pydantic

from eao.errors import ExportError
from eao.export.bisect import Divergence
from eao.export.page import Table
from eao.export.parity import ParityReport
from eao.export.ranking import RankingParity
from eao.files import write_text

PARITY_JSON = "parity.json"
PARITY_MARKDOWN = "parity.md"
PARITY_HTML = "parity.html"
PARITY_FILES = (PARITY_JSON, PARITY_MARKDOWN, PARITY_HTML)

_CASES = "Embeddings at many batch sizes, lengths and masks, with modalities missing for some clips,"
SIMULATED_NOTE = (
    "Where `its graph` holds, the engine cannot run on the machine that made it: the figures are those of the graph it "
    "was made from, in onnxruntime on the CPU."
)
RANKING_NOTE = (
    "Rankings of the real clips, the worst of all tasks: percentage points by which a recall lies outside what ties of "
    "the model allow, median rank less the model's, queries with the same ten best items, share of these items, and "
    "rank correlation of whole galleries."
)


class BundleParity(pydantic.BaseModel):
    """The reports of several engines and precisions that were made from one model.

    Attributes:
        reports: one for each engine and precision.
        clips: how many real clips rankings were compared on, and cases were filled with; 0 without a data set.
        versions: of the packages that took part.

    Example:
        parity = BundleParity(reports=[measure_parity(reference, bundle.encode, encoders)])
        parity.save(folder)
    """

    reports: list[ParityReport]
    clips: int = 0
    versions: dict[str, str] = {}

    @property
    def passed(self) -> bool:
        """Whether every engine that was measured holds its thresholds."""
        return not self.failures()

    def failures(self) -> list[str]:
        """One line for each figure that misses its threshold, naming engine, precision, encoder and figure."""
        return [f"{report.name} {line}" for report in self.reports for line in report.failures()]

    def report(self, engine: str, precision: str) -> ParityReport:
        """The report of one engine at one precision.

        Raises:
            KeyError: it was not measured.
        """
        for report in self.reports:
            if (report.engine, report.precision) == (engine, precision):
                return report
        raise KeyError(f"{engine} {precision}")

    def to_markdown(self) -> str:
        """The verdict, one table over engines, precisions and encoders, and the rankings."""
        lines = ["# Parity of engines with PyTorch", ""]
        lines += [f"- [x] {line}" for line in self.failures()] or ["All figures hold their thresholds."]
        lines += [f"- {report.name} {encoder}: {d.describe()}" for report, encoder, d in self.divergences()]
        lines += ["", self.introduction(), "", self.embedding_table().to_markdown()]
        lines += ["", "Thresholds; a dash leaves a figure free:", "", self.threshold_table().to_markdown()]
        if any(report.rankings for report in self.reports):
            lines += ["", RANKING_NOTE, "", self.ranking_table().to_markdown()]
            lines += ["", "R@10 by task:", "", self.recall_table().to_markdown()]
        if any(report.simulated for report in self.reports):
            lines += ["", SIMULATED_NOTE]
        if self.versions:
            lines += ["", f"Measured with {', '.join(f'{k} {v}' for k, v in self.versions.items())}."]
        return "\n".join(lines) + "\n"

    def save(self, folder: str | Path) -> None:
        """Write `PARITY_FILES` into a folder, each atomically; HTML only where matplotlib is installed."""
        write_text(Path(folder) / PARITY_JSON, self.model_dump_json(indent=1) + "\n")
        write_text(Path(folder) / PARITY_MARKDOWN, self.to_markdown())
        if importlib.util.find_spec("matplotlib") is not None:
            self.save_html(Path(folder) / PARITY_HTML)

    def save_html(self, path: str | Path) -> None:
        """Write one page with all tables and plots that needs no other file, atomically.

        Raises:
            MissingDependencyError: matplotlib, which draws the plots, is not installed.
        """
        from eao.export.parity_page import render_page

        write_text(path, render_page(self))

    @classmethod
    def load(cls, path: str | Path) -> BundleParity:
        """Read what `save` wrote, from the file or its folder.

        Raises:
            ExportError: it is missing, or damaged.
        """
        path = Path(path)
        path = path / PARITY_JSON if path.is_dir() else path
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ExportError(f"{path} cannot be read: {error.strerror}", "measure parity again: eao export") from None
        except (pydantic.ValidationError, UnicodeDecodeError):
            raise ExportError(f"{path} is no parity report of this version", "measure parity again") from None

    def divergences(self) -> Iterator[tuple[ParityReport, str, Divergence]]:
        """The reports and encoders whose layers were compared."""
        for report in self.reports:
            for encoder, divergence in report.divergences.items():
                yield report, encoder, divergence

    def introduction(self) -> str:
        """What the embeddings were computed on."""
        if self.clips:
            return f"{_CASES} with the tokens of {self.clips} real clips, and these clips as they are."
        return f"{_CASES} with made-up tokens. Rankings were not compared, for want of a data set."

    def embedding_table(self) -> Table:
        """One row for each engine, precision and encoder."""
        header = (
            "engine",
            "precision",
            "encoder",
            "cases",
            "max abs",
            "mean abs",
            "cosine min",
            "cosine p1",
            "cosine mean",
            "alone / in a batch",
            "holds",
        )
        rows = []
        for report in self.reports:
            for name, parity in report.encoders.items():
                f = parity.figures
                cosines = (f.cosine_min, f.cosine_p1, f.cosine_mean, parity.batch_invariance)
                verdict = "[x] no" if report.failures(name) else "its graph" if report.simulated else "yes"
                numbers = (str(len(parity.cases)), f"{f.max_abs:.2g}", f"{f.mean_abs:.2g}", *map(nines, cosines))
                rows.append((report.engine, report.precision, name, *numbers, verdict))
        return Table(header, rows)

    def threshold_table(self) -> Table:
        """The limits that each precision was held to."""
        figures = tuple(dict.fromkeys(figure for report in self.reports for figure in report.thresholds))
        limits = {report.precision: report.thresholds for report in self.reports}
        rows = [
            (precision, *(f"{given[figure]:g}" if figure in given else "-" for figure in figures))
            for precision, given in limits.items()
        ]
        return Table(("precision", *(figure.replace("_", " ") for figure in figures)), rows)

    def ranking_table(self) -> Table:
        """The worst of all retrieval tasks, one row for each engine and precision."""
        header = (
            "engine",
            "precision",
            "tasks",
            "R@1",
            "R@5",
            "R@10",
            "MedR",
            "same top-10",
            "top-10 overlap",
            "Kendall tau",
        )
        rows = []
        for report in self.reports:
            tasks = report.rankings
            if not tasks:
                continue
            changes = (signed(_largest(r.recall_change[k] for r in tasks)) for k in ("R1", "R5", "R10"))
            shares = (_least(r.top10_identical for r in tasks), _least(r.top10_overlap for r in tasks))
            taus = [r.kendall_tau for r in tasks if r.kendall_tau is not None]
            rows.append(
                (
                    report.engine,
                    report.precision,
                    str(len(tasks)),
                    *changes,
                    signed(_largest(r.medr_change for r in tasks)),
                    *(f"{100 * share:.1f} %" for share in shares),
                    f"{_least(taus):.4f}" if taus else "-",
                )
            )
        return Table(header, rows)

    def recall_table(self, metric: str = "R10") -> Table:
        """One retrieval metric, plainly: one row for each task, one column for PyTorch and for each engine."""
        ranked = [report for report in self.reports if report.rankings]
        tasks: dict[str, dict[str, RankingParity]] = {}
        for report in ranked:
            for ranking in report.rankings:
                tasks.setdefault(ranking.task, {})[report.name] = ranking
        rows = []
        for task, by_engine in tasks.items():
            one = next(iter(by_engine.values()))
            found = (f"{by_engine[r.name].engine[metric]:.1f}" if r.name in by_engine else "-" for r in ranked)
            rows.append((task, f"{one.queries} x {one.gallery}", f"{one.torch[metric]:.1f}", *found))
        return Table(("retrieval", "queries x gallery", "PyTorch", *(report.name for report in ranked)), rows)


def nines(value: float) -> str:
    """A cosine with the digits that matter near 1."""
    return f"{value:.7f}"


def signed(value: float) -> str:
    """A change with its sign; a dash for none."""
    return "0" if value == 0 else f"{value:+.2f}"


def _least(values: Iterable[float]) -> float:
    """The least value, or NaN if any is."""
    values = list(values)
    return math.nan if any(map(math.isnan, values)) else min(values)


def _largest(changes: Iterable[float]) -> float:
    """The largest change either way, or NaN if any is."""
    changes = list(changes)
    return math.nan if any(map(math.isnan, changes)) else max(changes, key=abs)
