"""What the command line prints: progress on standard error, results on standard output."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from eao.errors import MediaError

ProgressCallback = Callable[[int, int, str], None]
"""Called with (done, total, name of the item)."""

out = Console()
err = Console(stderr=True)


def set_up_logging(verbose: bool = False) -> None:
    """Show the package's warnings (or, verbosely, everything) on standard error."""
    handler = RichHandler(console=err, show_path=False, show_time=verbose)
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(message)s", handlers=[handler], force=True
    )


def print_json(value: Any) -> None:
    """Print JSON for machines, unwrapped and uncoloured."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def print_table(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print mappings with equal keys as a table; floats to one decimal."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for key in rows[0] if rows else ():
        numeric = isinstance(rows[0][key], int | float)
        # Rather in several lines than cut off.
        table.add_column(key, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(f"{v:.1f}" if isinstance(v, float) else str(v) for v in row.values()))
    out.print(table)


def print_report(title: str, report: Any, as_json: bool) -> None:
    """Print the counts of a job in one line, and each file that failed.

    Raises:
        MediaError: if every file failed: then the command has failed too.
    """
    values = asdict(report) if is_dataclass(report) and not isinstance(report, type) else dict(report)
    failed = [f if isinstance(f, str) else f"{f['reason']}" for f in values.get("failed") or []]
    if as_json:
        print_json(values)
    else:
        counts = {key: len(value) if isinstance(value, list) else value for key, value in values.items()}
        line = ", ".join(f"{key} {v:.1f}" if isinstance(v, float) else f"{key} {v}" for key, v in counts.items())
        out.print(f"{title}: {line}", highlight=False, soft_wrap=True)
        for failure in failed:
            err.print(f"  [red]\\[x][/red] {failure}", highlight=False, soft_wrap=True)
    done = ("extracted", "indexed", "skipped")
    if failed and not any(values.get(key) for key in done):
        raise MediaError(f"none of the {len(failed)} files could be read", "give complete video files")


@contextlib.contextmanager
def progress(description: str, enabled: bool = True) -> Iterator[ProgressCallback]:
    """A progress bar on standard error as a callback; without a terminal, a line now and then."""
    if not enabled:
        yield lambda done, total, name: None
        return
    if not err.is_terminal:
        yield _plain_progress(description)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, TextColumn("{task.fields[name]}"), console=err) as bar:
        task = bar.add_task(description, total=None, name="")

        def update(done: int, total: int, name: str = "") -> None:
            bar.update(task, completed=done, total=total, name=name[-40:])

        yield update


def _plain_progress(description: str) -> ProgressCallback:
    shown = -1

    def update(done: int, total: int, name: str = "") -> None:
        nonlocal shown
        tenth = 10 * done // max(total, 1)
        if tenth != shown:
            shown = tenth
            err.print(f"{description}: {done}/{total} {name}", highlight=False, soft_wrap=True)

    return update
