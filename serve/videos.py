"""Giving an indexed file to a player: whole or in ranges (RFC 9110, sections 13 and 14)."""

from __future__ import annotations

import asyncio
import os
import re
import stat
from collections.abc import AsyncIterator
from email.utils import formatdate, parsedate_to_datetime
from pathlib import PurePosixPath
from typing import BinaryIO
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.responses import Response, StreamingResponse

from eao.serve.catalog import File
from eao.serve.problems import Problem, problem_reply

_TYPES = {
    ".mp4": "video/mp4",
    ".m4v": "video/mp4",
    ".mov": "video/quicktime",
    ".webm": "video/webm",
    ".ogv": "video/ogg",
    ".mkv": "video/x-matroska",
    ".avi": "video/x-msvideo",
    ".mpg": "video/mpeg",
    ".mpeg": "video/mpeg",
    ".ts": "video/mp2t",
    ".mts": "video/mp2t",
    ".m2ts": "video/mp2t",
    ".wmv": "video/x-ms-wmv",
    ".flv": "video/x-flv",
    ".3gp": "video/3gpp",
    ".gif": "image/gif",
}
_PLAYABLE = frozenset({".mp4", ".m4v", ".mov", ".webm", ".ogv"})
CACHING = "private, no-cache"
"""`Cache-Control` of what an indexed file gives: kept, but asked for again, since the file may have changed."""
_CHUNK = 2**18


def is_playable(file: File) -> bool:
    """Whether browsers play files of this container. The codec in it they judge themselves."""
    return os.path.isabs(file.path) and _suffix(file) in _PLAYABLE


def open_file(file: File) -> tuple[BinaryIO, os.stat_result]:
    """A file opened for reading, and how it stands.

    Raises:
        Problem: it is on another machine, is gone, or is no plain file.
    """
    if not os.path.isabs(file.path):
        raise Problem(404, f"{file.name} is not on this machine", "it was indexed from its features")
    try:
        # Opening a pipe would wait for a writer.
        handle = open(os.open(file.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")  # noqa: SIM115
    except OSError:
        raise Problem(404, f"{file.name} is gone, or may not be read", "index again: eao index") from None
    status = os.fstat(handle.fileno())
    if not stat.S_ISREG(status.st_mode):
        handle.close()
        raise Problem(404, f"{file.name} is no plain file any more", "index again: eao index")
    return handle, status


def video_response(method: str, given: Headers, file: File, handle: BinaryIO, status: os.stat_result) -> Response:
    """The answer to a request for a file; it closes the file.

    A range that cannot be understood, and a list of ranges, are passed over, as the standard allows: the answer is the
    whole file. No player asks for lists.

    Args:
        method: GET or HEAD.
        given: headers of the request.
        file: that is asked for.
        handle: from `open_file`.
        status: likewise.
    """
    size = status.st_size
    headers = {
        "etag": f'"{status.st_mtime_ns:x}-{size:x}"',
        "last-modified": formatdate(status.st_mtime, usegmt=True),
        "cache-control": CACHING,
        "accept-ranges": "bytes",
    }
    if _is_known(given, headers["etag"], status.st_mtime):
        handle.close()
        return Response(status_code=304, headers=headers)
    # Ranges are defined for GET alone (RFC 9110, section 14.2).
    is_ranged = method == "GET" and given.get("if-range") in (None, headers["etag"], headers["last-modified"])
    ranged = find_range(given.get("range", ""), size) if is_ranged else None
    begin, end = ranged or (0, size)
    if ranged is not None and begin >= end:
        handle.close()
        beyond = {"content-range": f"bytes */{size}"}
        return problem_reply(Problem(416, f"the file has {size} bytes", "ask for a part of it", beyond))
    code = 200 if ranged is None else 206
    if ranged is not None:
        headers["content-range"] = f"bytes {begin}-{end - 1}/{size}"
    headers["content-length"] = str(end - begin)
    headers["content-disposition"] = f"inline; filename*=utf-8''{quote(file.name, safe='')}"
    media_type = _TYPES.get(_suffix(file), "application/octet-stream")
    if method == "HEAD":
        handle.close()
        return Response(status_code=code, headers=headers, media_type=media_type)
    return StreamingResponse(_read(handle, begin, end), code, headers, media_type)


def find_range(text: str, size: int) -> tuple[int, int] | None:
    """Begin and end (exclusive) of the bytes that a `Range` header asks for; begin = end if there are none.

    Args:
        text: of the header.
        size: of the file.

    Returns:
        None for no header, or one that is passed over.

    Example:
        >>> find_range("bytes=2-", 10), find_range("bytes=-3", 10), find_range("bytes=0-1,5-6", 10)
        ((2, 10), (7, 10), None)
    """
    found = re.fullmatch(r"bytes=(\d{0,19})-(\d{0,19})", text.replace(" ", ""), re.IGNORECASE | re.ASCII)
    if found is None or not (found[1] or found[2]):
        return None
    if not found[1]:
        return max(size - int(found[2]), 0), size
    begin, end = int(found[1]), int(found[2]) + 1 if found[2] else size
    if end <= begin and found[2]:
        return None
    return min(begin, size), min(max(end, begin), size)


def matches(given: str, etag: str) -> bool:
    """Whether an `If-None-Match` header names an entity tag, weakly or not (RFC 9110, section 13.1.2).

    Example:
        >>> matches('"a", W/"b"', '"b"'), matches("*", '"b"'), matches("", '"b"')
        (True, True, False)
    """
    tags = [tag.strip().removeprefix("W/") for tag in given.split(",")]
    return etag in tags or "*" in tags


def _is_known(given: Headers, etag: str, modified: float) -> bool:
    if "if-none-match" in given:  # counts alone (RFC 9110, section 13.1.3)
        return matches(given["if-none-match"], etag)
    try:
        since = parsedate_to_datetime(given.get("if-modified-since", "")).timestamp()
    except (ValueError, OverflowError):
        return False
    return int(modified) <= since


async def _read(handle: BinaryIO, begin: int, end: int) -> AsyncIterator[bytes]:
    with handle:
        await asyncio.to_thread(handle.seek, begin)
        while begin < end:
            chunk = await asyncio.to_thread(handle.read, min(_CHUNK, end - begin))
            if not chunk:
                raise OSError("the file became shorter while it was read")
            begin += len(chunk)
            yield chunk


def _suffix(file: File) -> str:
    return PurePosixPath(file.path).suffix.lower()
