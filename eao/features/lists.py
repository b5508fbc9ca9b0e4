"""Lists of videos in a file: a path or URL a line (`.txt`), or a table (`.csv`, `.jsonl`).

Columns of a table: `path` or `url`, and as wanted `id`, `start`, `end` (seconds of the part that is meant) and
`caption`. Lines that name the same part of the same file are one clip with several captions. Relative paths are
relative to the list's folder.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eao.data.text_rows import csv_rows, json_rows
from eao.errors import DataError
from eao.features.ids import check_id

SUFFIXES = frozenset({".csv", ".txt", ".jsonl", ".ndjson"})
SOURCES = ("path", "url")


@dataclass(frozen=True)
class Listed:
    """One line of a list.

    Attributes:
        location: an absolute path, or a URL.
        id: None if the list has none.
        start: seconds; None for the whole file.
        end: seconds; None for its end.
        caption: None if there is none.
        where: how a message names the line.
    """

    location: str
    id: str | None
    start: float | None
    end: float | None
    caption: str | None
    where: str


def is_url(text: str) -> bool:
    """Whether fsspec is needed to read this: `scheme://...`, unless it is a file of this machine."""
    scheme, found, _ = text.partition("://")
    return bool(found) and scheme != "file" and scheme.replace("+", "").replace("-", "").isalnum()


def without_password(location: str) -> str:
    """A location as it may be noted and shown: without the user name and password that a URL may hold."""
    if not is_url(location):
        return location
    scheme, _, rest = location.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def same_place(one: str, other: str) -> bool:
    """Whether two locations are one file: linked files, or URLs that differ in nothing but a password or signature."""
    if is_url(one) and is_url(other):
        return without_password(one).partition("?")[0] == without_password(other).partition("?")[0]
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def read_list(path: Path) -> list[Listed]:
    """The lines of a list, in its order.

    Raises:
        DataError: naming file and line, for malformed CSV or JSON, a missing column, an id that leaves the output
            folder, times that are none, or an empty list.
    """
    read = _text_rows if path.suffix.lower() == ".txt" else _table_rows
    try:
        listed = [_listed(path, f"{path} line {line}", columns) for line, columns in read(path)]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the list {path}: {error}", "it must be a UTF-8 text file") from None
    if not listed:
        raise DataError(
            f"the list {path} names no file", "one path or URL a line, or a table with a column path or url"
        )
    return listed


def _text_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if (text := line.strip()) and not text.startswith("#"):
                yield number, {"path": text}


def _table_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows without the columns that they leave empty."""
    is_csv = path.suffix.lower() == ".csv"
    for line, row in csv_rows(path, SOURCES) if is_csv else json_rows(path, '{"path": "a.mp4"}'):
        yield line, {name: value for name, value in row.items() if value not in (None, "")}


def _listed(path: Path, where: str, columns: dict[str, Any]) -> Listed:
    given = [columns[name] for name in SOURCES if name in columns]
    if len(given) != 1 or not isinstance(given[0], str) or not given[0].strip():
        raise DataError(f"{where}: there must be a path or a url", "fill in one of the two columns")
    location = given[0].strip()
    if "\0" in location:
        raise DataError(f"{where}: the path holds a NUL character", "take the line out")
    clip_id = columns.get("id")
    if isinstance(clip_id, int) and not isinstance(clip_id, bool):
        clip_id = str(clip_id)
    for name, value in (("id", clip_id), ("caption", columns.get("caption"))):
        if value is not None and not isinstance(value, str):
            raise DataError(f"{where}: the {name} is {value!r}", "it must be text")
    start, end = (_seconds(where, name, columns[name]) if name in columns else None for name in ("start", "end"))
    if end is not None and end <= (start or 0.0):
        raise DataError(f"{where}: the part ends at {end:g} s, not after its start", "times are seconds in the file")
    if not is_url(location):
        location = str((path.parent / location.removeprefix("file://")).absolute())
    caption = " ".join((columns.get("caption") or "").split()) or None
    return Listed(
        location,
        None if clip_id is None else check_id(str(clip_id), where),
        0.0 if start is None and end is not None else start,
        end,
        caption,
        where,
    )


def _seconds(where: str, name: str, value: Any) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if isinstance(value, bool) or not math.isfinite(seconds) or seconds < 0:
        raise DataError(f"{where}: {name} is {value!r}", "times are seconds from the start of the file")
    return seconds
