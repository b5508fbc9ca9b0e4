"""The indexed files under opaque ids, as they stand in the index now."""

from __future__ import annotations

import asyncio
import datetime
import functools
import hashlib
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from eao.retrieval.index import Index
from eao.serve.logs import log
from eao.serve.problems import Problem
from eao.serve.schemas import Facets

FRESH = 2.0
"""Seconds for which a listing is taken for current."""
LATEST = 10.0
"""Seconds for which it is good enough while it is read again."""
_UNTOLD = 30.0  # seconds between two readings of a store that does not tell whether it changed
_FOLDERS = 1000  # that are listed
_MARK = "~"  # between the id of a file and the times of a clip


@dataclass(frozen=True)
class File:
    """An indexed file.

    Attributes:
        id: opaque: nobody can ask for a file that is not indexed, nor learn where one lies.
        path: on this machine, or the address it was extracted from.
        folder: below the one that holds all files.
        duration: seconds.
        modified: nanoseconds since 1970, when it was indexed.
    """

    id: str
    path: str
    folder: str
    duration: float
    modified: int

    @property
    def name(self) -> str:
        """The name without its folder."""
        return os.path.basename(self.path)


@dataclass(frozen=True)
class Listing:
    """All files at one moment.

    Attributes:
        files: by id.
        paths: the same by path.
        root: the folder that holds all files.
        clips: how many they have.
        version: of the index.
    """

    files: Mapping[str, File] = field(default_factory=dict)
    paths: Mapping[str, File] = field(default_factory=dict)
    root: str = ""
    clips: int = 0
    version: int | None = None

    def file(self, file_id: str) -> File:
        """A file by id.

        Raises:
            Problem: there is none.
        """
        found = self.files.get(file_id)
        if found is None:
            raise Problem(404, "no indexed file has this id", "ids are those of a search")
        return found

    def clip_name(self, clip_id: str) -> str:
        """The name in the index of a clip by its opaque id.

        Raises:
            Problem: its file is not there.
        """
        file_id, _, times = clip_id.partition(_MARK)
        return f"{self.file(file_id).path}#t={times}"

    def below(self, folder: str) -> str:
        """The path of a folder on this machine that a search is narrowed to.

        Raises:
            Problem: no file lies in or below it.
        """
        if folder not in self.folders:
            raise Problem(400, f"no indexed file lies in a folder {folder[:80]!r}", "folders are listed by /facets")
        return os.path.join(self.root, folder)

    @functools.cached_property
    def folders(self) -> Counter[str]:
        """The folders on this machine with files in or below them, and how many: an index knows no others."""
        counts: Counter[str] = Counter()
        local = (file for file in self.files.values() if os.path.isabs(file.path))
        for folder, number in Counter(file.folder for file in local).items():
            parts = folder.split("/") if folder else []
            for depth in range(len(parts) + 1):
                counts["/".join(parts[:depth])] += number
        return counts

    def facets(self, encoders: tuple[str, ...], uploads: int) -> Facets:
        """What a search can be narrowed to.

        Args:
            encoders: of the index.
            uploads: bytes of a file.
        """
        durations = [file.duration for file in self.files.values()]
        moments = [file.modified for file in self.files.values()]
        return Facets(
            folders=sorted(name for name, _ in self.folders.most_common(_FOLDERS)),
            duration=[min(durations), max(durations)] if durations else None,
            modified=[_moment(min(moments)), _moment(max(moments))] if moments else None,
            encoders=list(encoders),
            has_audio="audio" in encoders and "video" in encoders,
            uploads=uploads,
        )


class Catalog:
    """The listing of an index, read again when the index was changed, also by another process.

    Threads may share it.

    Args:
        index: the index.
    """

    def __init__(self, index: Index) -> None:
        self.index = index
        self.latest = Listing()
        self._lock = threading.Lock()
        self._checked = self._read = -math.inf
        self._reading: asyncio.Task[Listing] | None = None
        self._is_old = False  # what there was when that began

    async def current(self) -> Listing:
        """The files as they are now or were a moment ago.

        One task reads the index again while requests take what there is; it is waited for only if that is old.

        Raises:
            RetrievalError: the index has been unreadable for some time.
        """
        age = time.monotonic() - self._checked
        if age < FRESH:
            return self.latest
        if self._reading is None:
            self._reading = asyncio.create_task(asyncio.to_thread(self.listing))
            self._reading.add_done_callback(self._end_reading)
            self._is_old = age >= LATEST
        return await asyncio.shield(self._reading) if self._is_old else self.latest

    def listing(self, at_once: bool = False) -> Listing:
        """The files now; it blocks while they are read.

        Args:
            at_once: do not be content with what was read a moment ago.

        Raises:
            RetrievalError: the index cannot be read.
        """
        with self._lock:
            now = time.monotonic()
            if at_once or now - self._checked >= FRESH:
                version = self.index.version()
                changed = version != self.latest.version if version is not None else now - self._read > _UNTOLD
                if changed or at_once or not self.latest.files:
                    self.latest = read_listing(self.index, version)
                    self._read = now
                self._checked = now
            return self.latest

    def _end_reading(self, reading: asyncio.Task[Listing]) -> None:
        self._reading = None
        if not reading.cancelled() and (error := reading.exception()) is not None:
            log.warning(f"the index cannot be read again: {error}")


def read_listing(index: Index, version: int | None = None) -> Listing:
    """The files of an index.

    Raises:
        RetrievalError: it cannot be read.
    """
    states, durations = index.states(), index.durations()
    known = {path: state for path, state in states.items() if path in durations}
    local = [os.path.dirname(path) for path in known if os.path.isabs(path)]
    root = os.path.commonpath(local) if local else ""
    files = [
        File(
            file_id(path),
            path,
            _relative(os.path.dirname(path), root),
            durations[path],
            state.modified,
        )
        for path, state in known.items()
    ]
    return Listing({f.id: f for f in files}, {f.path: f for f in files}, root, len(index), version)


def file_id(path: str) -> str:
    """The opaque id of a file: the same in every process and after every restart."""
    return hashlib.sha256(path.encode()).hexdigest()[:24]


def clip_id(file: File, name: str) -> str:
    """The opaque id of a clip.

    Args:
        file: it is of.
        name: of the clip in the index.
    """
    return f"{file.id}{_MARK}{name.rpartition('#t=')[2]}"


def _relative(folder: str, root: str) -> str:
    if not os.path.isabs(folder):
        return folder.partition("://")[2].rstrip("/")
    relative = os.path.relpath(folder, root)
    return "" if relative == "." else relative


def _moment(nanoseconds: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(nanoseconds / 1e9, datetime.UTC)
