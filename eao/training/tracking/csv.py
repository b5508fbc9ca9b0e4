"""A table of metrics in the run folder, which needs no other package."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path

from eao.errors import ConfigError
from eao.files import write_text
from eao.training.tracking.run import Status, TrackedRun

FILE_NAME = "metrics.csv"
HEADER = ("step", "name", "value")


class CsvTracker:
    """Appends to `metrics.csv`: one row a value, so that new metrics may come at any step.

    A resumed run keeps the rows up to its step, so a file reads as that of an uninterrupted run.

    Args:
        run: the run to record.

    Raises:
        ConfigError: a resumed run's table is not one this class wrote.
    """

    def __init__(self, run: TrackedRun) -> None:
        path = run.folder / FILE_NAME
        rows = [] if run.resume_step is None else read_rows(path)
        write_text(path, _lines([HEADER, *(row for row in rows if row[0] <= (run.resume_step or 0))]))
        self._file = path.open("a", encoding="utf-8", newline="")

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Append one row a metric and hand them to the system, so that a killed process loses none."""
        self._file.write(_lines((step, name, value) for name, value in metrics.items()))
        self._file.flush()

    def close(self, status: Status) -> None:
        """Close the file."""
        self._file.close()


def read_rows(path: Path) -> list[tuple[int, str, float]]:
    """The (step, name, value) rows of a table; none if there is no file.

    Raises:
        ConfigError: naming the file and row that cannot be read.
    """
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    # What follows the last line end was cut off when the process was killed.
    lines = csv.reader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))
    hint = "move the file away: a new one is begun"
    if tuple(next(lines, ())) != HEADER:
        raise ConfigError(f"{path}: the header is not {','.join(HEADER)}", hint)
    rows = []
    for number, fields in enumerate(lines, start=1):
        try:
            step, name, value = fields
            rows.append((int(step), name, float(value)))
        except ValueError as error:
            raise ConfigError(f"{path}: row {number} is not step,name,value: {error}", hint) from None
    return rows


def _lines(rows: Iterable[tuple[object, ...]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
