"""Downloading files from where fsspec reads (`https://`, `s3://`, `memory://`, ...), a few at a time, ahead of use.

A file is whole or not there; it is deleted when it has been used, so that the disk holds a handful of them however many
there are.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from eao.data.storage import open_filesystem
from eao.errors import EaoError, MediaError, MediaKind, missing_dependency
from eao.features.compute import check_stop
from eao.features.inputs import Source

logger = logging.getLogger(__name__)

AHEAD = 4
"""Files that are downloaded before somebody asks for them, and at a time."""
MOST_HELD = 16 << 30
"""Bytes of downloaded files, of which no further one is fetched ahead."""
FIRST_PAUSE = 0.5
"""Seconds before the second attempt; each later pause is twice as long, up to `LONGEST_PAUSE`."""
LONGEST_PAUSE = 60.0

_BLOCK = 1 << 20
_IDLE_SECONDS = 60.0  # without a byte


class DownloadError(MediaError):
    """A file cannot be downloaded; `may_pass` says whether it may work the next time."""

    def __init__(self, message: str, hint: str, kind: MediaKind = "download", may_pass: bool = False) -> None:
        super().__init__(message, hint, kind)
        self.may_pass = may_pass


class Downloader:
    """Downloads into one folder.

    Args:
        folder: emptied by its owner.
        max_bytes: of a file.
        retries: further attempts after a failure that may pass.
        stop: when it is set, attempts end.
    """

    def __init__(self, folder: Path, max_bytes: int, retries: int, stop: threading.Event) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self.retries = retries
        self.stop = stop

    def has_room(self) -> bool:
        """Whether the folder holds less than `MOST_HELD`."""
        held = 0
        for path in self.folder.glob("*"):
            with contextlib.suppress(FileNotFoundError):  # used and deleted meanwhile
                held += path.stat().st_size
        return held < MOST_HELD

    def fetch(self, source: Source) -> Path:
        """Download a file.

        Raises:
            DownloadError: it is not there, may not be read, is too large, or fails again and again.
            MissingDependencyError: the package for this kind of URL is not installed.
            OSError: the disk takes no more.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256(source.location.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        suffix = PurePosixPath(urlsplit(source.location).path).suffix
        path = self.folder / f"{name}{suffix if suffix.isascii() and len(suffix) < 10 else ''}"
        for attempt in range(self.retries + 1):
            try:
                with path.open("wb") as local:
                    for block in self._blocks(source):
                        check_stop(self.stop)
                        local.write(block)
                return path
            except DownloadError as error:
                path.unlink(missing_ok=True)
                if not error.may_pass or attempt == self.retries:
                    raise
                pause = pause_before(attempt)
                logger.warning("%s; trying again in %g s", error.message, pause)
                self.stop.wait(pause)
                check_stop(self.stop)
        raise AssertionError("the last attempt returns or raises")

    def _blocks(self, source: Source) -> Iterator[bytes]:
        """The parts of a file, as they arrive."""
        name = source.name
        received, size = 0, None
        try:
            fs, place, options = _connect(source)
            with fs.open(place, "rb", **options) as remote:
                # Of a stream the client keeps the response, whose header may say the size.
                size = getattr(remote, "size", None) or getattr(getattr(remote, "r", None), "content_length", None)
                self._check_size(name, size or 0)
                while block := remote.read(_BLOCK):
                    received += len(block)
                    self._check_size(name, received)
                    yield block
        except EaoError:
            raise
        except (FileNotFoundError, IsADirectoryError):
            raise DownloadError(f"{name} does not exist", "check the URL", "missing") from None
        except Exception as error:  # every store's client has exceptions of its own
            status = getattr(error, "status", None)
            refused = isinstance(status, int) and 400 <= status < 500 and status not in (408, 425, 429)
            raise DownloadError(
                f"{name} cannot be downloaded: {_reason(error)}",
                "check the URL, the network and the credentials",
                may_pass=not (refused or isinstance(error, PermissionError | NotImplementedError)),
            ) from error
        if size is not None and received != size:
            raise DownloadError(f"{name}: {received:,} of {size:,} bytes arrived", "run again", may_pass=True)

    def _check_size(self, name: str, size: int) -> None:
        if size > self.max_bytes:
            raise DownloadError(
                f"{name} is larger than the limit of {self.max_bytes:,} bytes", "raise --max-bytes", "too-large"
            )


def download_ahead(
    sources: Iterable[Source], downloader: Downloader, ahead: int = AHEAD
) -> Iterator[tuple[Source, Future[Path] | None]]:
    """The sources in their order; a remote one comes with the download that was begun for it.

    At most `ahead` files are downloaded before they are asked for, and none while those that are there take much room.
    """
    window: deque[tuple[Source, Future[Path] | None]] = deque()
    pool = ThreadPoolExecutor(ahead, "download")
    is_left = True
    try:
        for source in sources:
            while window and source.is_remote and not downloader.has_room():
                yield window.popleft()
            window.append((source, pool.submit(downloader.fetch, source) if source.is_remote else None))
            if len(window) > ahead:
                yield window.popleft()
        yield from window
        is_left = False
    finally:
        pool.shutdown(wait=False, cancel_futures=is_left)


def pause_before(attempt: int) -> float:
    """Seconds to wait after a failed attempt, counted from 0."""
    return min(FIRST_PAUSE * 2**attempt, LONGEST_PAUSE)


def _connect(source: Source) -> tuple[Any, str, dict[str, Any]]:
    """The file system of a URL, the file's name in it, and how to open it."""
    if "::" in source.location:
        raise DownloadError(f"{source.name}: chains of file systems are not opened", "give a plain URL")
    is_http = source.location.startswith(("http://", "https://"))
    options: dict[str, Any] = {}
    if is_http:
        try:
            import aiohttp
        except ImportError:
            raise missing_dependency("aiohttp", "remote", "downloading by HTTP") from None
        # The client's own limit is five minutes for a whole file.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_IDLE_SECONDS, sock_read=_IDLE_SECONDS)
        options["client_kwargs"] = {"timeout": timeout}
    try:
        fs, place = open_filesystem(source.location, source.name, "remote", **options)
    except ValueError as error:
        raise DownloadError(f"{source.name} cannot be opened: {error}", "check the URL") from None
    # A stream from start to end needs no server that knows ranges. A size that is given saves a request by which the
    # client would ask for it, and which takes every failure for a missing file.
    return fs, place, {"block_size": 0, "size": -1} if is_http else {}


def _reason(error: BaseException) -> str:
    line = next(iter(str(error).splitlines()), "") or type(error).__name__
    return re.sub(r"//[^/@\s]+@", "//", line)  # no user name and password of a URL
