"""A searchable index of videos: a folder with `index.json`, which names the model, and a LanceDB table of clips."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import pydantic

from eao.config import Config, FeaturesConfig
from eao.embedder import CLIP_ENCODERS, Embedder
from eao.errors import ConfigError, DataError, EaoError, RetrievalError
from eao.files import write_json
from eao.retrieval.search import Hit, check_weights, search_table
from eao.retrieval.table import ClipTable, FileState, Row, file_state

if TYPE_CHECKING:
    from eao.features.extractor import ClipFeatures

log = logging.getLogger(__name__)

METADATA = "index.json"
FORMAT = 1
ProgressCallback: TypeAlias = Callable[[int, int, str], None]
"""Called with (done, total, name of the file)."""

# Committed together: enough windows to fill the model's batches, few enough that a killed run loses little.
_FILES = 16
_WINDOWS = 32
_SECONDS = 20.0


class Metadata(pydantic.BaseModel):
    """`index.json`."""

    model_config = pydantic.ConfigDict(extra="ignore", protected_namespaces=())

    format: int
    model: str
    """Where the model was loaded from, absolute; empty if it was made in memory."""
    model_hash: str
    embedding_dim: pydantic.PositiveInt
    encoders: tuple[str, ...]
    """The vectors kept of each clip; the first is what a sentence is compared with."""
    config: Config


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


class _Source(NamedTuple):
    """A file to be indexed, and how to get the features of it or of a part of it."""

    file: str
    state: FileState
    start: float
    load: Callable[[], ClipFeatures]


class Index:
    """Videos that can be searched by words, by video and by sound.

    A file longer than the model's training length is indexed as consecutive windows. Nothing is ever half-written: what
    is done is committed a few files at a time, and adding the same folder again continues where it stopped.

    Args:
        path: the folder of the index; made at the first `add`.
        model: what embeds. May be left out for an index that exists: the model that made it is then loaded when it is
            needed.

    Raises:
        RetrievalError: there is no index and no model to make one with, it is damaged, or another model made it.
        MissingDependencyError: LanceDB is not installed.

    Example:
        index = Index("index", eao.load("runs/demo/best"))
        index.add("clips")
        index.search("a dog barks", k=3)[0].file
    """

    def __init__(self, path: str | Path, model: Embedder | str | Path | None = None) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._embedder = _load(model) if isinstance(model, str | Path) else model
        exists = (self.path / METADATA).is_file()
        if exists:
            self.metadata = _read_metadata(self.path)
        elif self._embedder is None:
            raise RetrievalError(f"there is no index at {self.path}", "make one: eao index FOLDER --model MODEL")
        else:
            self.metadata = _describe(self._embedder)
        if exists and self._embedder is not None:
            self._check_model(self._embedder)
        self._table = ClipTable(self.path, self.metadata.encoders, self.metadata.embedding_dim)

    def __len__(self) -> int:
        """How many clips."""
        return len(self._table)

    @property
    def encoders(self) -> tuple[str, ...]:
        """The vectors kept of each clip; the first is what a sentence is compared with by default."""
        return self.metadata.encoders

    @property
    def files(self) -> list[str]:
        """The indexed files, sorted."""
        return sorted(self._table.files())

    @property
    def embedder(self) -> Embedder:
        """The model, loaded from where it was when the index was made unless it was given."""
        with self._lock:
            if self._embedder is None:
                if not self.metadata.model:
                    raise RetrievalError(
                        f"{self.path} was made with a model that was never saved", "open it with model=..."
                    )
                embedder = _load(self.metadata.model)
                self._check_model(embedder)
                self._embedder = embedder
            return self._embedder

    def add(self, inputs: str | Path | Sequence[str | Path], progress: ProgressCallback | None = None) -> AddReport:
        """Index video files, and those in folders. Files that are in the index unchanged are skipped.

        Args:
            inputs: files and folders.
            progress: called with (done, total, file) before every file, and at the end.

        Raises:
            DataError: there are no videos.
            OSError: the disk is full; what was committed stays.
        """
        from eao.features.inputs import find_videos

        files = find_videos([inputs] if isinstance(inputs, str | Path) else inputs)
        if not files:
            raise DataError("nothing to index", "give video files, or a folder that holds some")
        extract = self.embedder.extractor.extract

        def open_file(path: Path) -> list[_Source]:
            return [_Source(str(path), file_state(path), 0.0, partial(extract, path))]

        return self._add([(str(path), partial(open_file, path)) for path in files], progress)

    def add_features(self, folder: str | Path, progress: ProgressCallback | None = None, under: str = "") -> AddReport:
        """Index a folder written by `eao extract`, without decoding a video again.

        Args:
            folder: the features.
            progress: called after every file.
            under: take only clips whose id lies in this subfolder, such as "test".

        Raises:
            DataError: it holds no features, or damaged ones.
            ConfigError: it holds other features than the model was trained on.
        """
        from eao.retrieval.features import read_folder

        entries = read_folder(Path(folder), self.embedder.config.features, under)
        by_file: dict[str, list[_Source]] = {}
        for entry in entries:
            source = _Source(entry.file, entry.state, entry.start, entry.load)
            by_file.setdefault(entry.file, []).append(source)
        return self._add([(file, partial(list, parts)) for file, parts in by_file.items()], progress)

    def remove(self, ids: str | Sequence[str]) -> int:
        """Remove clips by id, or all clips of files by path. Returns how many clips were removed.

        Raises:
            RetrievalError: the index has none of them.
        """
        names = [ids] if isinstance(ids, str) else [str(i) for i in ids]
        removed = self._table.remove(names)
        if names and not removed:
            raise RetrievalError(
                f"{self.path} has no clip or file {names[0]!r}", "ids and files are listed by a search"
            )
        return removed

    def search(
        self,
        query: str | None = None,
        *,
        video: str | Path | None = None,
        audio: str | Path | None = None,
        k: int = 10,
        encoder: str | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> list[Hit]:
        """The k files that fit best, each by its best clip.

        Args:
            query: what to look for, in words.
            video: a video file, for clips that look like it. Beside `query`, both together are looked for.
            audio: a video or sound file, for clips that sound like it.
            k: how many files.
            encoder: which vectors to compare with: by default those of the whole clip ("video-audio"); "video" for a
                query by video alone, "audio" for one by sound alone.
            weights: instead of `encoder`, several with weights, such as {"video": 0.7, "audio": 0.3}. A clip without
                sound is then scored by what is left.

        Raises:
            ConfigError: k below 1, no query, or vectors the index does not have.
            DataError: no word of the query is known.
            RetrievalError: the index is empty.
        """
        if k < 1:
            raise ConfigError(f"k is {k}", "ask for at least one clip")
        given: dict[str, Any] = {"text": query, "video": video, "audio": audio}
        given = {name: [value] for name, value in given.items() if value is not None}
        if not given:
            raise ConfigError("nothing to look for", "give a sentence, a video or a sound")
        if encoder is not None and weights is not None:
            raise ConfigError("both encoder and weights are given", "weights say which vectors are compared already")
        only = next(iter(given)) if len(given) == 1 else ""
        default = only if only in self.encoders else self.encoders[0]
        checked = check_weights(weights if weights is not None else {encoder or default: 1.0}, self.encoders)
        if len(self) == 0:
            raise RetrievalError(f"the index {self.path} is empty", "add videos: eao index FOLDER --model MODEL")
        return search_table(self._table, self.embedder.embed(**given)[0], checked, k)

    def _add(
        self, files: Sequence[tuple[str, Callable[[], list[_Source]]]], progress: ProgressCallback | None
    ) -> AddReport:
        report = AddReport()
        known = self._table.files()
        waiting: list[tuple[_Source, ClipFeatures]] = []
        # Files that are committed together, with or without clips: a changed file that is broken now loses its clips.
        names: list[str] = []
        since = time.monotonic()
        try:
            for done, (name, open_file) in enumerate(files):
                if progress is not None:
                    progress(done, len(files), name)
                try:
                    parts = open_file()
                    if known.get(name) == parts[0].state:
                        report.skipped += 1
                        continue
                    loaded = [(part, part.load()) for part in parts]
                except (EaoError, FileNotFoundError, PermissionError) as error:
                    reason = error.message if isinstance(error, EaoError) else str(error)
                    report.failed.append(reason if name in reason else f"{name}: {reason}")
                    loaded = []
                    if name not in known:
                        continue
                waiting += loaded
                names.append(name)
                windows = sum(len(self._windows(features)) for _, features in waiting)
                if len(names) >= _FILES or windows >= _WINDOWS or time.monotonic() - since > _SECONDS:
                    self._commit(names, waiting, report)
                    waiting, names, since = [], [], time.monotonic()
        except KeyboardInterrupt:
            self._commit(names, waiting, report)  # the work that is done is kept
            raise
        self._commit(names, waiting, report)
        self._table.compact()
        if progress is not None:
            progress(len(files), len(files), "")
        return report

    def _commit(self, names: list[str], files: list[tuple[_Source, ClipFeatures]], report: AddReport) -> None:
        if not names:
            return
        if not (self.path / METADATA).is_file():
            # First, so that no table ever stands there without the name of its model.
            write_json(self.path / METADATA, self.metadata.model_dump(mode="json"))
        pairs = [(features, self._windows(features)) for _, features in files]
        embedded = self.embedder.embed_windows(pairs, self.encoders)
        rows = [
            Row(
                id=f"{source.file}#t={source.start + clip.start:.2f},{source.start + clip.end:.2f}",
                file=source.file,
                start=source.start + clip.start,
                end=source.start + clip.end,
                duration=features.duration,
                state=source.state,
                vectors=dict(clip.vectors),
            )
            for (source, features), clips in zip(files, embedded, strict=True)
            for clip in clips
        ]
        self._table.replace(names, rows)
        report.indexed += len({source.file for source, _ in files})
        report.clips += len(rows)

    def _windows(self, features: ClipFeatures) -> list[tuple[float, float]]:
        # Rounded as in the manifest of an extraction, so that both ways give a clip the same id.
        return self.embedder.windows(round(features.duration, 3))

    def _check_model(self, embedder: Embedder) -> None:
        made = self.metadata
        given = _describe(embedder)
        if (made.model_hash, made.embedding_dim) != (given.model_hash, given.embedding_dim):
            raise RetrievalError(
                f"{self.path} was made with the model {_name(made)}, not with {_name(given)}",
                "search with the model it was made with, or make another index",
            )
        if made.config.features.identity() != given.config.features.identity():
            raise RetrievalError(
                f"{self.path} holds other features than this model is set to extract "
                f"({_shown(made.config.features)}, not {_shown(given.config.features)})",
                "leave features.* as they were when the index was made",
            )


def _load(path: str | Path) -> Embedder:
    # By the public name, since what loads a bundle of engines stands above this layer.
    import eao

    return eao.load(path)


def _describe(embedder: Embedder) -> Metadata:
    encoders = tuple(e for e in CLIP_ENCODERS if e in embedder.encoders)
    if not {"video-audio", "video"} & set(encoders):
        raise RetrievalError(
            f"the model {embedder.source or 'in memory'} has no encoder for videos",
            f"it offers {', '.join(embedder.encoders)}",
        )
    return Metadata(
        format=FORMAT,
        model=str(Path(embedder.source).absolute()) if embedder.source else "",
        model_hash=embedder.model_hash,
        embedding_dim=embedder.embedding_dim,
        encoders=encoders,
        config=embedder.config,
    )


def _read_metadata(path: Path) -> Metadata:
    try:
        metadata = Metadata.model_validate(json.loads((path / METADATA).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:  # pydantic's and json's errors are ValueErrors
        reason = str(error).splitlines()[0]
        raise RetrievalError(f"{path / METADATA} is damaged: {reason}", "build the index again") from None
    if metadata.format != FORMAT:
        raise RetrievalError(
            f"{path} has the format {metadata.format}, this version reads {FORMAT}", "build the index again"
        )
    return metadata


def _name(metadata: Metadata) -> str:
    return f"{metadata.model or 'in memory'} ({metadata.model_hash[:12]}, {metadata.embedding_dim}-d)"


def _shown(features: FeaturesConfig) -> str:
    streams: Iterator[str] = (f"{s.backbone} at {s.rate:g}/s" for s in (features.video_2d, features.video_3d) if s)
    return " and ".join(streams)
