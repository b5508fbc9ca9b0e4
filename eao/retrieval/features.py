"""Reading a folder of extracted features, clip by clip."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eao.config import FeaturesConfig
from eao.data.folder import SUFFIXES, read_array
from eao.errors import DataError
from eao.retrieval.table import FileState, file_state

if TYPE_CHECKING:
    from eao.features.extractor import ClipFeatures


@dataclass(frozen=True)
class Entry:
    """One clip of a features folder.

    Attributes:
        file: the media file it was extracted from.
        state: of that file, or of its features where the file is gone.
        start: seconds in the file.
        load: reads the arrays.
    """

    file: str
    state: FileState
    start: float
    load: Callable[[], ClipFeatures]


def read_folder(folder: Path, expected: FeaturesConfig, under: str = "") -> list[Entry]:
    """The clips of a folder written by `eao extract`, or of those the ones whose id lies in the subfolder `under`.

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
    return [_entry(folder, clip, record) for clip, record in sorted(records.items())]


def _entry(folder: Path, clip: str, record: Mapping[str, Any]) -> Entry:
    paths = {
        stream: folder / f"{clip}{suffix}" for stream, suffix in SUFFIXES.items() if record.get(stream) is not None
    }
    missing = [path for path in paths.values() if not path.is_file()]
    if missing or not paths:
        raise DataError(
            f"{folder}: the features of {clip} are missing", "run eao extract again: it makes what is missing"
        )
    try:
        file, start, end = Path(record["file"]), float(record["start"]), float(record["end"])
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{folder}: the manifest does not say where {clip} comes from", "extract it again") from None
    state = file_state(file if file.is_file() else next(iter(paths.values())))
    return Entry(str(file), state, start, partial(_load, paths, end - start))


def _load(paths: Mapping[str, Path], duration: float) -> ClipFeatures:
    from eao.features.extractor import ClipFeatures

    arrays = {stream: read_array(paths[stream], stream) if stream in paths else None for stream in SUFFIXES}
    return ClipFeatures(**arrays, duration=duration)
