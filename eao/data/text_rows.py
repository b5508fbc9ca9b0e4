"""Rows of tables in text files: CSV with a header, or a JSON object a line."""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from eao.errors import DataError

_MAX_LINE = 1 << 20  # characters of a JSON line


def csv_rows(path: Path, one_of: Collection[str] = ()) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a CSV file, each with its line counted from 1.

    Args:
        path: the file, UTF-8.
        one_of: columns of which the header must name one; none: any header will do.

    Raises:
        DataError: naming file and line, for malformed CSV, or a header without such a column.
        OSError, UnicodeDecodeError: the file cannot be read.
    """
    # utf-8-sig, since spreadsheets put a byte order mark in front, which would become part of the first column's name.
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file, strict=True)
        try:
            header = rows.fieldnames or ()
            if one_of and not set(one_of) & set(header):
                raise DataError(
                    f"{path} has no column {' or '.join(one_of)}", f"there is: {', '.join(header) or 'nothing'}"
                )
            for row in rows:
                if None in row or None in row.values():
                    raise DataError(
                        f"{path} line {rows.line_num}: not as many values as the header has columns",
                        'put a value that holds a comma in quotes: "a dog, barking"',
                    )
                yield rows.line_num, row
        except csv.Error as error:
            raise DataError(f"{path} line {rows.reader.line_num}: malformed CSV: {error}") from None


def json_rows(path: Path, example: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file of JSON lines, each with its line counted from 1; empty lines are passed over.

    Args:
        path: the file, UTF-8.
        example: of a line, for messages.

    Raises:
        DataError: naming file and line, for malformed JSON, or a line that is no object or longer than a million
            characters.
        OSError, UnicodeDecodeError: the file cannot be read.
    """
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            if len(line) > _MAX_LINE:
                raise DataError(f"{path} line {number}: {len(line):,} characters are too long", "one object per line")
            try:
                columns = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path} line {number}: malformed JSON: {error}", "one object per line") from None
            if not isinstance(columns, dict):
                raise DataError(f"{path} line {number}: not a JSON object", f"for example {example}")
            yield number, columns
