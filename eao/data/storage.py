"""A folder of files on disk or on object storage: read in parts, written whole or not at all."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from eao.errors import DataError, MissingDependencyError, install_extra, missing_dependency
from eao.files import atomic_path, recover

T = TypeVar("T")

logger = logging.getLogger(__name__)

BLOCK_BYTES = 16 << 20
ATTEMPTS = 5
FIRST_PAUSE = 0.5
"""Seconds before the second attempt; each later pause is twice as long."""


def open_filesystem(url: str, name: str, extra: str, **options: Any) -> tuple[Any, str]:
    """The fsspec file system of a URL, and what it calls the place.

    Args:
        url: of a file or folder.
        name: how messages call it.
        extra: of eao that brings fsspec.
        options: of the file system.

    Raises:
        MissingDependencyError: fsspec, or the package for this protocol, is not installed.
        ValueError: a protocol that fsspec does not know.
    """
    try:
        import fsspec
    except ImportError:
        raise missing_dependency("fsspec", extra, "reading and writing URLs") from None
    try:
        fs, place = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        raise MissingDependencyError(
            f"access to {name} needs a package that is not installed: {error}",
            f"install it with pip; for s3://: {install_extra(extra)}",
        ) from None
    return fs, str(place)


class Storage:
    """A folder, given as a path or as a URL that fsspec knows (`s3://`, `gs://`, `file://`, `memory://`).

    Reading from object storage is tried several times, since a long job meets a failing request sooner or later.

    Args:
        url: the folder.

    Attributes:
        folder: its path if it is on this machine's file system, else None.

    Raises:
        DataError: a protocol that fsspec does not know.
        MissingDependencyError: the package for this protocol is not installed.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/") or url
        # A plain path needs no fsspec, and must not be parsed as a URL: it may hold "::".
        self.folder = Path(url) if "://" not in url else None
        if self.folder is None:
            fs, root = self._connect()
            from fsspec.implementations.local import LocalFileSystem

            if isinstance(fs, LocalFileSystem):
                self.folder = Path(root)

    def name(self, file: str) -> str:
        """How a message names a file of this folder."""
        return f"{self.url}/{file}"

    def size(self, file: str) -> int | None:
        """Bytes of a file, None if it is not there."""
        try:
            if self.folder is not None:
                return (self.folder / file).stat().st_size
            return int(self._remote(lambda fs, root: fs.info(f"{root}/{file}")["size"], file))
        except FileNotFoundError:
            return None

    def read(self, file: str) -> bytes:
        """All of a file.

        Raises:
            FileNotFoundError: it is not there.
            DataError: it cannot be read.
        """
        if self.folder is not None:
            return (self.folder / file).read_bytes()
        return bytes(self._remote(lambda fs, root: fs.cat_file(f"{root}/{file}"), file))

    def blocks(self, file: str) -> Iterator[bytes]:
        """All of a file, part by part.

        Raises:
            FileNotFoundError: it is not there.
            DataError: it cannot be read.
        """
        if self.folder is not None:
            with (self.folder / file).open("rb") as stream:
                while block := stream.read(BLOCK_BYTES):
                    yield block
            return
        size = self.size(file) or 0
        for start in range(0, size, BLOCK_BYTES):
            yield self.read_ranges([file], [start], [min(start + BLOCK_BYTES, size)])[0]

    def read_ranges(self, files: Sequence[str], starts: Sequence[int], ends: Sequence[int]) -> list[bytes]:
        """Parts of files, requested all at once where the storage can do that.

        Raises:
            FileNotFoundError: a file is not there.
            DataError: a part cannot be read, or the file is shorter.
        """

        def fetch(fs: Any, root: str) -> list[bytes]:
            return list(fs.cat_ranges([f"{root}/{f}" for f in files], list(starts), list(ends), on_error="raise"))

        parts = self._remote(fetch, files[0])
        for file, start, end, part in zip(files, starts, ends, parts, strict=True):
            if len(part) != end - start:
                raise DataError(f"{self.name(file)} ends at byte {start + len(part)}, not after {end}", "copy it again")
        return parts

    @contextlib.contextmanager
    def writing(self, file: str) -> Iterator[Path]:
        """A path to write to, which becomes `file` when the block ends without an exception.

        What a killed writer of the same file left is removed: a folder has one writer at a time.
        """
        if self.folder is not None:
            recover(self.folder / file)
            with atomic_path(self.folder / file) as temporary:
                yield temporary
            return
        with tempfile.TemporaryDirectory(prefix="eao-") as folder:
            local = Path(folder) / file
            yield local
            # A store shows an object only once all of it has arrived.
            self._remote(lambda fs, root: fs.put_file(str(local), f"{root}/{file}"), file)

    def write_text(self, file: str, text: str) -> None:
        """Write all of a file."""
        with self.writing(file) as path:
            path.write_text(text, encoding="utf-8")

    def remove(self, file: str) -> None:
        """Remove a file that is there."""
        if self.folder is not None:
            (self.folder / file).unlink()
        else:
            self._remote(lambda fs, root: fs.rm_file(f"{root}/{file}"), file)

    def _connect(self) -> tuple[Any, str]:
        """The file system and the folder's name in it; fsspec keeps one connection for each process."""
        try:
            fs, root = open_filesystem(self.url, self.url, "shards")
        except ValueError as error:
            raise DataError(f"cannot use {self.url}: {error}", "a folder, or a URL such as s3://bucket/name") from None
        return fs, root.rstrip("/")

    def _remote(self, action: Callable[[Any, str], T], file: str) -> T:
        fs, root = self._connect()
        for attempt in range(ATTEMPTS):
            try:
                return action(fs, root)
            except FileNotFoundError:
                raise
            except Exception as error:  # every store's client has exceptions of its own
                reason = next(iter(str(error).splitlines()), "") or type(error).__name__
                if attempt == ATTEMPTS - 1 or isinstance(error, PermissionError | NotImplementedError):
                    raise DataError(
                        f"cannot access {self.name(file)}: {reason}", "check the network and the credentials"
                    ) from error
                pause = FIRST_PAUSE * 2**attempt
                logger.warning("%s: %s; trying again in %g s", self.name(file), reason, pause)
                time.sleep(pause)
        raise AssertionError("the last attempt returns or raises")
