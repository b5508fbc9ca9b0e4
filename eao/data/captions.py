"""Caption files: CSV with a header, or one JSON object per line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from eao.data.text_rows import csv_rows, json_rows
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
    from_json = partial(json_rows, example='{"id": "a", "caption": "a dog"}')
    readers: dict[str, Callable[[Path], Iterator[tuple[int, dict[str, Any]]]]]
    readers = {".csv": csv_rows, ".jsonl": from_json, ".ndjson": from_json, ".json": from_json}
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
