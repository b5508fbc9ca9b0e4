"""Columns of the CSV lists that data sets are published with."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from eao.errors import DataError


def read_columns(path: str | Path, names: Sequence[str]) -> list[tuple[str, ...]]:
    """The named columns of a CSV file with a header, a tuple a line; empty lines are left out.

    Raises:
        DataError: naming file and line, for a missing file, a missing column, a line that is too short, an empty value
            or one that leads out of the folder of features, or a list without lines.
    """
    try:
        # utf-8-sig, since spreadsheets put a byte order mark in front, which would become part of the first name.
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            for name in names:
                if name not in header:
                    there = ", ".join(header)[:200] or "nothing"
                    raise DataError(f"{path}: the column {name} is missing", f"there is: {there}")
            places = [header.index(name) for name in names]
            rows = []
            for row in reader:
                if not row:
                    continue
                values = tuple(row[place] for place in places if place < len(row))
                if len(values) < len(places) or not all(map(_is_name, values)):
                    wrong = next((v for v in values if not _is_name(v)), "")
                    raise DataError(
                        f"{path} line {reader.line_num}: {wrong!r} is no name of a video",
                        "names are relative paths within the folders of features",
                    )
                rows.append(values)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {path}: {error}", "it must be a CSV file with a header") from None
    if not rows:
        raise DataError(f"{path} lists no videos", "each line names one")
    return rows


def _is_name(value: str) -> bool:
    return bool(value.strip()) and not value.startswith("/") and ".." not in value.split("/") and "\0" not in value
