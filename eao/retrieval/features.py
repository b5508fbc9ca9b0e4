"""Reading a folder of extracted features, clip by clip."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eao.config import FeaturesConfig
from eao.data.folder import SUFFIXES, read_array
from eao.errors import DataError
from eao.retrieval.clips import FileState, file_state

if TYPE_CHECKING:
    from eao.features.extractor import ClipFeatures


@dataclass(frozen=True)
class Part:
    """A file to be indexed, or a part of it, and how to get its features.

    Attributes:
        start: seconds in the file.
        load: the features; its times count from `start`.
        duration: of the whole file, seconds; None: that of the features.
    """

    start: float
    load: Callable[[], ClipFeatures]
    duration: float | None = None


def read_folder(folder: Path, expected: FeaturesConfig, under: str = "") -> dict[str, tuple[FileState, list[Part]]]:
    """The files of a folder written by `eao extract`, each with its clips.

    A file that is gone is known by its features, and one that was cut into clips also by where.

    Args:
        folder: the features.
        expected: what they must be.
        under: take only clips whose id lies in this subfolder.

    Raises:
        ConfigError: it holds other features than `expected`.
        DataError: it is no such folder, is empty or damaged.
    """
    from eao.features.store import FeatureStore

    prefix = f"{under.strip('/')}/" if under else ""
    records = {
        clip: record for clip, record in FeatureStore(folder, expected).records.items() if clip.startswith(prefix)
    }
    if not records:
        where = f" under {prefix}" if prefix else ""
        raise DataError(f"{folder} holds no features{where}", "write some: eao extract FOLDER --out FEATURES")
    by_file: dict[str, list[_Clip]] = {}
    for name, record in sorted(records.items()):
        clip = _read_record(folder, name, record)
        by_file.setdefault(clip.file, []).append(clip)
    return {file: _describe(file, clips) for file, clips in by_file.items()}


@dataclass(frozen=True)
class _Clip:
    file: str
    start: float
    end: float
    duration: float
    size: int | None
    paths: dict[str, Path]


def _read_record(folder: Path, name: str, record: Mapping[str, Any]) -> _Clip:
    paths = {
        stream: folder / f"{name}{suffix}" for stream, suffix in SUFFIXES.items() if record.get(stream) is not None
    }
    missing = [path for path in paths.values() if not path.is_file()]
    if missing or not paths:
        raise DataError(
            f"{folder}: the features of {name} are missing", "run eao extract again: it makes what is missing"
        )
    try:
        start, end = float(record["start"]), float(record["end"])
        duration, size = float(record.get("duration", end)), record.get("bytes")
        return _Clip(_full_name(record["file"]), start, end, duration, size, paths)
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{folder}: the manifest does not say where {name} comes from", "extract it again") from None


def _full_name(file: str) -> str:
    return file if "://" in file else os.path.abspath(file)


def _describe(file: str, clips: list[_Clip]) -> tuple[FileState, list[Part]]:
    # A file that is gone, was replaced since, or lies on object storage is known by the features of its first clip.
    is_there = os.path.isfile(file) and clips[0].size in (None, os.path.getsize(file))
    state = file_state(file if is_there else next(iter(clips[0].paths.values())))
    duration = max(max(clip.end, clip.duration) for clip in clips)
    whole = len(clips) == 1 and clips[0].start == 0 and clips[0].end >= duration - 1e-2
    if not whole:
        state = state._replace(cut=zlib.crc32(repr([(clip.start, clip.end) for clip in clips]).encode()))
    return state, [Part(c.start, partial(_load, c.paths, c.end - c.start), duration) for c in clips]


def _load(paths: Mapping[str, Path], duration: float) -> ClipFeatures:
    from eao.features.extractor import ClipFeatures

    arrays = {stream: read_array(paths[stream], stream) if stream in paths else None for stream in SUFFIXES}
    return ClipFeatures(**arrays, duration=duration)
