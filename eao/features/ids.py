"""Names of clips, which become paths below the output folder and may come from anywhere.

An id is a relative path of parts joined by `/`. What a user writes as an id is refused if it is none, since captions
refer to it; what is derived from a file name or a URL is escaped instead, like a URL (`%0A`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

from eao.errors import DataError

MAX_PART_BYTES = 200
"""A file system takes 255 bytes; the rest is for suffixes such as `_spec.npz` and for the names of files underway."""
MAX_BYTES = 1000
"""Of a whole id; paths end at 4,096."""
RESERVED = frozenset({"features.yaml", "manifest.jsonl", "failed.jsonl", "captions.jsonl", "source.json"})
"""Files of the output folder, which no clip's folder may be named like."""

# Control characters, the two separators of other systems, and halves of characters (how Python shows bytes that are not
# UTF-8).
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\\]")


def check_id(clip_id: str, where: str) -> str:
    """The id as it is.

    Args:
        clip_id: as somebody wrote it.
        where: how a message names the place.

    Raises:
        DataError: it would leave the output folder, be no name on some system, or stand in the way of another file.
    """
    if reason := _fault(clip_id):
        shown = clip_id if len(clip_id) <= 80 else f"{clip_id[:80]}..."
        raise DataError(f"{where}: the id {shown!r} {reason}", "ids are relative paths such as cooking/0001")
    return clip_id


def derive_id(path: PurePosixPath) -> str:
    """An id from the path of a file below its folder: without the suffix, and escaped where it has to be.

    Example:
        >>> derive_id(PurePosixPath("cooking/0001.mp4"))
        'cooking/0001'
    """
    parts = [_escape(part) for part in path.with_suffix("").parts]
    clip_id = "/".join(parts)
    if len(clip_id.encode()) > MAX_BYTES:
        clip_id = f"{parts[0]}/{_digest(clip_id)}"
    return check_id(clip_id, str(path))


def check_clashes(ids: Iterable[str], names: Mapping[str, str]) -> None:
    """See that no two ids are one file on a system that ignores case, as those of Windows and macOS do.

    Args:
        ids: of all clips.
        names: how a message names the source of an id; the id itself by default.

    Raises:
        DataError: naming two that clash.
    """
    seen: dict[str, str] = {}
    for clip_id in ids:
        other = seen.setdefault(clip_id.casefold(), clip_id)
        if other != clip_id:
            raise DataError(
                f"{names.get(other, other)} and {names.get(clip_id, clip_id)} differ by nothing but upper and lower "
                "case, and some systems would write one over the other",
                "rename one of them, or give a list with ids",
            )


def _fault(clip_id: str) -> str:
    """What is wrong with an id, or nothing."""
    if not clip_id.strip():
        return "is empty"
    if _UNSAFE.search(clip_id):
        return "holds a control character, a backslash or half a character"
    parts = clip_id.split("/")
    if clip_id.startswith("/") or ".." in parts:
        return "leaves the output folder"
    if "" in parts or "." in parts:
        return "has an empty part"
    if any(part.startswith(".") for part in parts):
        return "has a part that begins with a dot, which hides it"
    if len(clip_id.encode()) > MAX_BYTES or any(len(part.encode()) > MAX_PART_BYTES for part in parts):
        return f"is longer than {MAX_BYTES} bytes, or a part of it than {MAX_PART_BYTES}"
    if parts[0] in RESERVED or any(part.endswith(".npz") for part in parts[:-1]):
        return "has a folder that is named like a file of the output"
    return ""


def _escape(part: str) -> str:
    text = _UNSAFE.sub(lambda found: "".join(f"%{byte:02X}" for byte in _bytes(found[0])), part)
    text = text if text.strip() else text.replace(" ", "%20")
    if text.startswith("."):
        text = f"%2E{text[1:]}"
    if text in RESERVED or text.endswith(".npz"):
        text = text.replace(".", "%2E")
    if len(text.encode()) > MAX_PART_BYTES:
        kept = text.encode()[: MAX_PART_BYTES - 13].decode(errors="ignore")
        text = f"{kept}~{_digest(text)}"
    return text


def _bytes(character: str) -> bytes:
    """A character's bytes; of one that stands for a byte of a file name that is not UTF-8, that byte."""
    try:
        return character.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return character.encode("utf-8", "surrogatepass")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
