"""Data sets on disk: a folder of features written by `eao extract` and a file of captions."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np

from eao.config import DataConfig, FolderData
from eao.data.arrays import EXTRACT_AGAIN, Array, check_finite, check_rows, check_spectrogram, load_array
from eao.data.captions import Caption, read_captions
from eao.data.item import Item, make_item, whole_shape
from eao.data.record import Record, whole_clips
from eao.errors import DataError

# n rows of a stream, D its width, N video tokens, T spectrogram frames

logger = logging.getLogger(__name__)

STREAMS = ("video_2d", "video_3d", "audio")
SUFFIXES = {"video_2d": "_2d.npz", "video_3d": "_3d.npz", "audio": "_spec.npz"}
KEYS = {"video_2d": "features", "video_3d": "features", "audio": "arr_0"}
CACHE_BYTES = 1 << 30


class StoredFeatures(NamedTuple):
    """What is on disk for one clip; None where there is no file.

    Attributes:
        video_2d: (n2, D2), usually float16.
        video_3d: (n3, D3).
        audio: (40, T) spectrogram.
    """

    video_2d: Array | None
    video_3d: Array | None
    audio: Array | None


def read_array(path: Path, stream: str) -> Array:
    """The array of one feature file, as stored.

    Args:
        stream: `video_2d`, `video_3d` or `audio`, which says what the file must hold.

    Raises:
        DataError: naming the file, if it is damaged, holds objects, or an array of another kind or shape.
    """
    array = load_array(path, KEYS[stream], EXTRACT_AGAIN)
    check = check_spectrogram if stream == "audio" else check_rows
    name = f"{path}: {KEYS[stream]!r}"
    return check_finite(check(array, name, EXTRACT_AGAIN), name, EXTRACT_AGAIN)


class FolderDataset:
    """Clips of a feature folder with their captions; a clip with several captions is several items.

    Args:
        config: the feature folder, the caption file and the split.
        data: numbers of tokens and frames, and the sampling.
        strict: whether a caption whose clip has no features is an error; if not, it is left out and listed in
            `missing`.
        cache_bytes: features are kept in memory, exactly as stored, if their files are no larger than this together.

    Attributes:
        ids: name of each item's clip.
        captions: sentence of each item.
        records: all columns of each item's line in the caption file.
        missing: ids of the captions that were left out.
        streams: the video streams of this folder, `video_2d` and/or `video_3d`.
        video_dim: width of a video token.
        is_cached: whether features are kept in memory.

    Raises:
        DataError: for a missing folder, malformed captions, or captions of clips without features.
    """

    def __init__(
        self, config: FolderData, data: DataConfig, *, strict: bool = True, cache_bytes: int = CACHE_BYTES
    ) -> None:
        self.config = config
        self.shape = whole_shape(config, data)
        self.complete_dataset_size = config.complete_dataset_size
        self.folder = Path(config.features)
        if not self.folder.is_dir():
            raise DataError(f"the feature folder {self.folder} does not exist", "write it with `eao extract`")
        captions = read_captions(config.captions, config.split)
        sizes = {clip: self._file_sizes(clip) for clip in dict.fromkeys(c.id for c in captions)}
        self.streams = tuple(s for s in STREAMS[:2] if any(s in found for found in sizes.values()))
        # A clip may lack all video or all audio, but not one of two video streams: its tokens would be narrower.
        usable = {clip: found for clip, found in sizes.items() if self._is_usable(set(found))}
        absent = [c for c in captions if c.id not in usable]
        if absent and (strict or not usable):
            raise self._missing_error(absent, len(captions), sizes)
        if absent:
            logger.warning("%s: %d captions left out, their clips have no features", config.captions, len(absent))
        self.missing = [c.id for c in absent]
        kept = [c for c in captions if c.id in usable]
        self.ids = [c.id for c in kept]
        self.captions = [c.caption for c in kept]
        self.records = [c.columns for c in kept]
        self._available = {clip: frozenset(found) for clip, found in usable.items()}
        self.is_cached = sum(sum(found.values()) for found in usable.values()) <= cache_bytes
        self._cache: dict[str, StoredFeatures] = {}
        self._widths: dict[str, int] = {}
        self._measure_widths()
        self.video_dim = sum(self._widths.values())

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Item:
        """Item `index` whole, read from disk unless it is in memory.

        Raises:
            DataError: naming the feature file that is damaged or of another width than the others.
        """
        return make_item(
            self.ids[index], self.captions[index], *self.features(self.ids[index]), self.shape, self.video_dim
        )

    def record(self, index: int) -> Record:
        """The stored features of item `index`, with its caption."""
        clip = self.ids[index]
        return Record(clip, clip, *self.features(clip), captions=[self.captions[index]])

    def clips(self, index: int, rng: np.random.Generator) -> list[Item]:
        """Item `index`, cut into pieces if `cut_clips` says so."""
        return whole_clips(self.record(index), self.config, self.shape, self.video_dim, rng)

    def features(self, clip: str) -> StoredFeatures:
        """The stored features of a clip, by id."""
        if clip in self._cache:
            return self._cache[clip]
        there = self._available[clip]
        arrays = {s: read_array(self._path(clip, s), s) if s in there else None for s in STREAMS}
        for stream, width in self._widths.items():
            array = arrays[stream]
            if array is not None and array.shape[1] != width:
                raise DataError(
                    f"{self._path(clip, stream)} has rows of width {array.shape[1]}, the other clips {width}",
                    "extract all clips of one folder with one features configuration",
                )
        features = StoredFeatures(**arrays)
        if self.is_cached:
            self._cache[clip] = features
        return features

    def _path(self, clip: str, stream: str) -> Path:
        return self.folder / f"{clip}{SUFFIXES[stream]}"

    def _file_sizes(self, clip: str) -> dict[str, int]:
        """Bytes of each feature file that exists for a clip."""
        sizes = {}
        for stream in STREAMS:
            path = self._path(clip, stream)
            try:
                sizes[stream] = path.stat().st_size
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise DataError(f"cannot read features from {path}: {error.strerror}") from None
        return sizes

    def _is_usable(self, found: set[str]) -> bool:
        video = found - {"audio"}
        return bool(found) and (not video or video == set(self.streams))

    def _measure_widths(self) -> None:
        example = next((clip for clip, there in self._available.items() if there - {"audio"}), None)
        if example is None:
            raise DataError(f"{self.folder} has no video features for these captions", "run `eao extract` with video")
        clip = self.features(example)
        self._widths = {s: getattr(clip, s).shape[1] for s in self.streams}

    def _missing_error(self, absent: list[Caption], total: int, sizes: dict[str, dict[str, int]]) -> DataError:
        first = absent[0]
        where = f"{self.config.captions} line {first.line}"
        if found := sizes[first.id]:
            lacking = next(s for s in self.streams if s not in found)
            return DataError(
                f"{where}: the clip {first.id!r} has no file {self._path(first.id, lacking)}, which other clips have",
                "extract all clips of one folder with one features configuration",
            )
        hint = "extract it with `eao extract`, or take the line out"
        stem = first.id.rpartition(".")[0]
        if stem and self._file_sizes(stem):
            hint = f"ids have no suffix: write {stem!r}"
        elif (self.folder / "failed.jsonl").is_file():
            hint = f"{self.folder / 'failed.jsonl'} lists the files that could not be read; {hint}"
        more = f" ({len(absent)} of {total} captions are without)" if len(absent) > 1 else ""
        return DataError(f"{where}: the clip {first.id!r} has no features in {self.folder}{more}", hint)
