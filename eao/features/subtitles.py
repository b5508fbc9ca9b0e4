"""Reading subtitles: WebVTT (`.vtt`) and SubRip (`.srt`), as players, broadcasters and speech recognition write them.

Times are read strictly, since a wrong one would tie words to the wrong picture; everything around them tolerantly: byte
order marks, any line ends, hours left out, a comma or a dot before the milliseconds, cue numbers, settings behind the
times, styling, notes, cues that overlap or stand in any order. Text loses its markup; a cue without text is left out.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from eao.errors import DataError

SUFFIXES = (".vtt", ".srt")
MAX_BYTES = 50 << 20
"""Of a subtitle file: a day of speech takes two megabytes."""

_TIME = r"(?:(\d{1,4}):)?(\d{1,2}):(\d{1,2})(?:[.,](\d{1,3}))?"
_TIMING = re.compile(rf"{_TIME}\s*-->\s*{_TIME}(?:\s.*)?$")
_TAGS = re.compile(r"</?[a-zA-Z0-9][^<>]*>|<\d[\d:.]*>|\{\\[^{}]*\}")  # <i>, <c.yellow>, <v Ann>, <00:01.5>, {\an8}
_BLOCKS = ("NOTE", "STYLE", "REGION")


class Cue(NamedTuple):
    """One subtitle.

    Attributes:
        start: seconds.
        end: seconds, after `start`.
        text: on one line, without markup; never empty.
    """

    start: float
    end: float
    text: str


def find_subtitles(video: Path, folder: Path | None = None, stem: str = "") -> Path | None:
    """The subtitle file of a video: of its name beside it or in `folder`, also with a language (`talk.en.vtt`).

    Args:
        video: the file.
        folder: where to look instead of beside it.
        stem: the name to look for in `folder`, a relative path without suffix; by default that of the video.

    Returns:
        the first of `NAME.vtt`, `NAME.srt`, and those with a language in alphabetical order; None if there is none.
    """
    base = (folder / stem if stem else folder / video.stem) if folder is not None else video.with_suffix("")
    for suffix in SUFFIXES:
        path = base.with_name(base.name + suffix)
        if path.is_file():
            return path
    if not base.parent.is_dir():
        return None
    language = re.compile(re.escape(base.name) + r"\.[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*(\.vtt|\.srt)")
    return min((p for p in base.parent.iterdir() if language.fullmatch(p.name) and p.is_file()), default=None)


def read_subtitles(path: str | Path) -> list[Cue]:
    """The cues of a file, sorted by start.

    Raises:
        DataError: naming file and line, if it cannot be read or holds malformed times; or if there is no cue in it.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{path} is no subtitle file", f"known: {', '.join(SUFFIXES)}")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path} is larger than {MAX_BYTES >> 20} MB", "it is hardly a subtitle file")
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read the subtitles {path}: {error.strerror}", "check the path") from None
    cues = sorted(_cues(path, _decode(path, data)))
    if not cues:
        raise DataError(f"{path} holds no subtitle with text", "give a .vtt or .srt file with cues")
    return cues


def _decode(path: Path, data: bytes) -> list[str]:
    encoding = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text", "convert it: iconv -f WINDOWS-1252 -t UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _cues(path: Path, lines: list[str]) -> Iterator[Cue]:
    number = 0
    skipping = False  # a note or a style sheet, which ends with an empty line
    while number < len(lines):
        line = lines[number].strip()
        number += 1
        if not line:
            skipping = False
            continue
        skipping = skipping or line.split(None, 1)[0] in _BLOCKS
        if skipping or "-->" not in line:
            continue  # a heading, the number of a cue, or the text of a note
        start, end = _times(path, number, line)
        text = []
        while number < len(lines) and lines[number].strip() and "-->" not in lines[number]:
            text.append(lines[number])
            number += 1
        if number < len(lines) and "-->" in lines[number] and text and text[-1].strip().isdigit():
            text.pop()  # the number of the next cue, where the empty line between them is missing
        caption = _clean("\n".join(text))
        if caption and end > start:
            yield Cue(start, end, caption)


def _times(path: Path, number: int, line: str) -> tuple[float, float]:
    found = _TIMING.match(line)
    if found is None:
        raise DataError(
            f"{path} line {number}: malformed times: {line[:80]!r}", "they read 00:01:02.500 --> 00:01:04.000"
        )
    parts = found.groups()
    start, end = _seconds(parts[:4]), _seconds(parts[4:])
    if int(parts[1]) > 59 or int(parts[2]) > 59 or int(parts[5]) > 59 or int(parts[6]) > 59:
        raise DataError(f"{path} line {number}: there is no such time: {line[:80]!r}", "minutes and seconds end at 59")
    if end < start:
        raise DataError(f"{path} line {number}: the cue ends before it starts: {line[:80]!r}", "correct the line")
    return start, end


def _seconds(parts: tuple[str | None, ...]) -> float:
    hours, minutes, seconds, fraction = parts
    whole = int(hours or 0) * 3600 + int(minutes or 0) * 60 + int(seconds or 0)
    return whole + int((fraction or "0").ljust(3, "0")) / 1000


def _clean(text: str) -> str:
    text = html.unescape(_TAGS.sub("", text))
    return " ".join(part for part in text.replace("\u200b", "").replace("\ufeff", "").split())
