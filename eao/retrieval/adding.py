"""Putting files into a store of clips: read, embedded and committed a few files at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from eao.embedder import Embedder
from eao.errors import EaoError
from eao.retrieval.clips import ClipStore, FileState, Row, file_state
from eao.retrieval.features import Part

if TYPE_CHECKING:
    from eao.features.extractor import ClipFeatures

ProgressCallback: TypeAlias = Callable[[int, int, str], None]
"""Called with (done, total, name of the file)."""

# Committed together: enough windows to fill the model's batches, few enough that a killed run loses little. No clock
# has a say: a run that goes on after it was killed forms the same groups, and so computes the same bits.
_FILES = 16
_WINDOWS = 32


@dataclass
class AddReport:
    """What adding did.

    Attributes:
        indexed: files embedded and stored.
        clips: clips stored for them.
        skipped: files that were in the index already, unchanged.
        failed: "path: reason" of each file that could not be read.
    """

    indexed: int = 0
    clips: int = 0
    skipped: int = 0
    failed: list[str] = field(default_factory=list)


Opener: TypeAlias = Callable[[], tuple[FileState, list[Part]]]
"""How a file stands now, and its parts. May raise what makes the file unreadable."""


class _Loaded(NamedTuple):
    file: str
    state: FileState
    start: float
    duration: float | None
    features: ClipFeatures


def video_openers(paths: Iterable[Path], extract: Callable[[Path], ClipFeatures]) -> dict[str, Opener]:
    """Openers of video files, which are decoded when their features are asked for."""

    def open_video(path: Path) -> tuple[FileState, list[Part]]:
        return file_state(path), [Part(0.0, partial(extract, path))]

    return {os.path.abspath(path): partial(open_video, path) for path in paths}


def feature_openers(files: Mapping[str, tuple[FileState, list[Part]]]) -> dict[str, Opener]:
    """Openers of files whose features are there."""

    def open_features(found: tuple[FileState, list[Part]]) -> tuple[FileState, list[Part]]:
        return found

    return {file: partial(open_features, found) for file, found in files.items()}


def add_files(
    store: ClipStore,
    embedder: Embedder,
    files: Mapping[str, Opener],
    before_commit: Callable[[], None],
    progress: ProgressCallback | None = None,
) -> AddReport:
    """Add files; those that the store has unchanged are skipped, those that changed are replaced.

    Args:
        store: where to.
        embedder: the model.
        files: absolute path -> how to open it.
        before_commit: called before every commit.
        progress: called before every file, and at the end.
    """
    adding = _Adding(store, embedder, before_commit)
    known = store.files()
    try:
        for done, (name, open_file) in enumerate(files.items()):
            if progress is not None:
                progress(done, len(files), name)
            adding.add(name, open_file, known.get(name))
    except KeyboardInterrupt:
        adding.commit()  # the work that is done is kept
        raise
    adding.commit()
    store.tidy()
    if progress is not None:
        progress(len(files), len(files), "")
    return adding.report


class _Adding:
    """The files that are read but not committed yet."""

    def __init__(self, store: ClipStore, embedder: Embedder, before_commit: Callable[[], None]) -> None:
        self.store = store
        self.embedder = embedder
        self.before_commit = before_commit
        self.report = AddReport()
        self.waiting: list[_Loaded] = []
        # With or without clips: a changed file that is broken now loses its clips.
        self.names: list[str] = []

    def add(self, name: str, open_file: Opener, known: FileState | None) -> None:
        try:
            _check_name(name)
            state, parts = open_file()
            if known == state:
                self.report.skipped += 1
                return
            loaded = [_Loaded(name, state, part.start, part.duration, part.load()) for part in parts]
        except (EaoError, FileNotFoundError, PermissionError) as error:
            reason = error.message if isinstance(error, EaoError) else str(error)
            self.report.failed.append(reason if name in reason else f"{name}: {reason}")
            loaded = []
            if known is None:
                return
        self.waiting += loaded
        self.names.append(name)
        windows = sum(len(self._windows(part.features)) for part in self.waiting)
        if len(self.names) >= _FILES or windows >= _WINDOWS:
            self.commit()

    def commit(self) -> None:
        if not self.names:
            return
        pairs = [(part.features, self._windows(part.features)) for part in self.waiting]
        embedded = self.embedder.embed_windows(pairs, self.store.encoders)
        rows = [
            Row(
                id=f"{part.file}#t={part.start + clip.start:.2f},{part.start + clip.end:.2f}",
                file=part.file,
                start=part.start + clip.start,
                end=part.start + clip.end,
                duration=part.features.duration if part.duration is None else part.duration,
                state=part.state,
                vectors=dict(clip.vectors),
            )
            for part, clips in zip(self.waiting, embedded, strict=True)
            for clip in clips
        ]
        self.before_commit()
        self.store.replace(self.names, rows)
        self.report.indexed += len({part.file for part in self.waiting})
        self.report.clips += len({row.id for row in rows})
        self.waiting, self.names = [], []

    def _windows(self, features: ClipFeatures) -> list[tuple[float, float]]:
        # Rounded as in the manifest of an extraction, so that both ways give a clip the same id.
        return self.embedder.windows(round(features.duration, 3))


def _check_name(name: str) -> None:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise EaoError(f"{name!r}: its name is not valid UTF-8", "rename it") from None
