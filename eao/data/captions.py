"""Caption files: CSV with a header, or one JSON object per line."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from eao.errors import DataError

REQUIRED = ("id", "caption")


class Caption(NamedTuple):
    """One line of a caption file.

    Attributes:
        id: the clip, as `eao extract` names it: its path in the input folder without suffix.
        caption: the sentence, never empty.
        line: its line in the file, counted from 1.
        columns: every column of the line, `id` and `caption` included.
    """

    id: str
    caption: str
    line: int
    columns: dict[str, Any]


def read_captions(path: str | Path, split: str | None = None) -> list[Caption]:
    """The captions of a file, in its order; with `split` only those whose column `split` says so.

    Raises:
        DataError: naming file and line, for a missing column, an empty caption, an id that leaves the feature folder,
            malformed CSV or JSON, or a split that does not occur.
    """
    path = Path(path)
    readers = {".csv": _csv_rows, ".jsonl": _json_rows, ".ndjson": _json_rows, ".json": _json_rows}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: captions must be a .csv or .jsonl file, not {path.suffix or 'without a suffix'}")
    try:
        captions = [_caption(path, line, columns) for line, columns in reader(path)]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read captions from {path}: {error}", "it must be a UTF-8 text file") from None
    if not captions:
        raise DataError(f"{path} holds no captions", "each line needs an id and a caption")
    if split is None:
        return captions
    for caption in captions:
        if "split" not in caption.columns:
            raise DataError(f"{path} line {caption.line}: there is no split", f"add a column split to choose {split!r}")
    chosen = [c for c in captions if c.columns["split"] == split]
    if not chosen:
        known = ", ".join(sorted({str(c.columns["split"]) for c in captions}))
        raise DataError(f"{path} holds no captions of the split {split!r}", f"it has: {known}")
    return chosen


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    # utf-8-sig, since spreadsheets put a byte order mark in front, which would become part of the first column's name.
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file, strict=True)
        try:
            for row in rows:
                if None in row or None in row.values():
                    raise DataError(
                        f"{path} line {rows.line_num}: not as many values as the header has columns",
                        'put a caption that holds a comma in quotes: "a dog, barking"',
                    )
                yield rows.line_num, row
        except csv.Error as error:
            raise DataError(f"{path} line {rows.reader.line_num}: malformed CSV: {error}") from None


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                columns = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path} line {number}: malformed JSON: {error}", "one object per line") from None
            if not isinstance(columns, dict):
                raise DataError(
                    f"{path} line {number}: not a JSON object", 'for example {"id": "a", "caption": "a dog"}'
                )
            yield number, columns


def _caption(path: Path, line: int, columns: dict[str, Any]) -> Caption:
    for name in REQUIRED:
        if name not in columns:
            there = ", ".join(map(str, columns)) or "nothing"
            raise DataError(f"{path} line {line}: the column {name} is missing", f"there is: {there}")
    clip, caption = columns["id"], columns["caption"]
    if isinstance(clip, int) and not isinstance(clip, bool):
        clip = str(clip)
    for name, value in (("id", clip), ("caption", caption)):
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"{path} line {line}: the {name} is {'empty' if value in ('', None) else repr(value)}")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise DataError(f"{path} line {line}: the {name} holds half a character (a lone surrogate)") from None
    parts = PurePosixPath(clip).parts
    if clip.startswith("/") or ".." in parts or "\0" in clip:
        raise DataError(f"{path} line {line}: the id {clip!r} leaves the feature folder", "ids are relative paths")
    return Caption(clip, caption, line, columns)
