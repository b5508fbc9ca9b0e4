"""Files of JSON lines that grow while a job runs, and may be cut off when it is killed."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from eao.errors import DataError


def format_line(record: dict[str, Any]) -> str:
    """A record as a line of UTF-8 text."""
    text = json.dumps(record, ensure_ascii=False) + "\n"
    # File names that are not UTF-8 can only be written with escapes.
    return text if text.isascii() or _encodes(text) else json.dumps(record) + "\n"


def append_lines(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Append in one go, so that at worst the last lines are missing or torn."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        data = memoryview("".join(map(format_line, records)).encode("utf-8"))
        while data:
            data = data[os.write(descriptor, data) :]
    finally:
        os.close(descriptor)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a file; a torn last line is passed over, any other damage is an error.

    Raises:
        DataError: naming file and line.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", "check its permissions") from None
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict):
            records.append(record)
        elif number != len(lines):
            raise DataError(f"{path}:{number} is no JSON object", "remove that line: its clip is extracted again")
    return records


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """A full disk ends the run with one clear line: it must not count as a failure of every clip that follows."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot write to {folder}: {error.strerror or error}",
            "make room or check permissions, then run again to go on",
        ) from None


def _encodes(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
