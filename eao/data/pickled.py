"""Pickled lists of clips, as MSR-VTT and YouCook2 are published: a dictionary of features, sound and captions each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from eao.config import DataConfig, MSRVTTData, YouCook2Data
from eao.data.arrays import Array, check_finite, check_rows, check_spectrogram
from eao.data.item import Item, whole_shape
from eao.data.pickles import read_pickle
from eao.data.record import Record, whole_clips
from eao.errors import ConfigError, DataError

PickledData: TypeAlias = MSRVTTData | YouCook2Data

HINT = "compare the file with the published one"
SAME_ORDER = "the lists must hold the same clips in the same order"


class PickledDataset:
    """Clips of a pickled list, in memory.

    Features are kept as they are stored, in the memory they were read into: those of the MSR-VTT training clips take
    several GB, which worker processes share. What no setting asks for is dropped.

    Args:
        config: the files and the keys.
        data: numbers of tokens and frames, and the sampling.
        caption_key: where a clip holds its caption.
        has_captions: whether it holds several there, of which one is drawn each time.
        complete_dataset_size: see `ClipDataset`.

    Attributes:
        ids: name of each item.
        video_dim: width of a video token.

    Raises:
        ConfigError: neither 2-D nor 3-D features are asked for.
        DataError: naming file, clip and field, for whatever is missing or malformed.
    """

    is_cached = True

    def __init__(
        self,
        config: PickledData,
        data: DataConfig,
        caption_key: str,
        has_captions: bool,
        complete_dataset_size: int | None,
    ) -> None:
        self.config = config
        self.shape = whole_shape(config, data)
        self.complete_dataset_size = complete_dataset_size
        self._clips = _read_clips(config, caption_key, has_captions)
        self.ids = [clip.record.id for clip in self._clips]
        first = self._clips[0].record
        self.video_dim = sum(x.shape[1] for x in (first.video_2d, first.video_3d) if x is not None)

    def __len__(self) -> int:
        return len(self._clips)

    def record(self, index: int) -> Record:
        """The features and captions of item `index`.

        Raises:
            DataError: features that are not finite.
        """
        (name, name_2d, name_3d), record = self._clips[index]
        for where, field, array in (
            (name_2d, self.config.key_2d, record.video_2d),
            (name_3d, self.config.key_3d, record.video_3d),
            (name, "audio", record.audio),
        ):
            if array is not None:
                check_finite(array, f"{where}: {field!r}", HINT)
        return record

    def clips(self, index: int, rng: np.random.Generator) -> list[Item]:
        """Item `index`, cut into pieces if `cut_clips` says so; of several captions one is drawn."""
        return whole_clips(self.record(index), self.config, self.shape, self.video_dim, rng)


class _Clip(NamedTuple):
    """A record, and how messages call it in each of the three lists."""

    names: tuple[str, str, str]
    record: Record


class _Entry:
    """A clip in one of the lists: its fields, and how messages call it."""

    def __init__(self, path: str, place: int, clip: Any) -> None:
        self.path = path
        self.name = f"{path} clip {place}"
        if not isinstance(clip, Mapping):
            raise DataError(f"{self.name} is of the type {type(clip).__name__}, not a dictionary", HINT)
        self.fields = clip
        self.id = self._id() if "id" in clip else None
        self.name += f" ({self.id})" if self.id is not None else ""

    def get(self, key: str, hint: str) -> Any:
        if key not in self.fields:
            there = ", ".join(map(str, self.fields)) or "nothing"
            raise DataError(f"{self.name} has no {key!r}; there is: {there[:200]}", hint)
        return self.fields[key]

    def _id(self) -> str:
        value = self.fields["id"]
        if isinstance(value, bool) or not isinstance(value, str | int | np.integer) or value == "":
            raise DataError(f"{self.name}: 'id' is {_kind(value)}, not a name or a number", HINT)
        return str(value)


def _read_clips(config: PickledData, caption_key: str, has_captions: bool) -> list[_Clip]:
    if config.key_2d is None and config.key_3d is None:
        raise ConfigError(f"{config.type} is to be read without video features", "set key_2d or key_3d")
    paths = (config.path, config.path_2d or config.path, config.path_3d or config.path)
    lists = {path: read_pickle(path, list, "clips") for path in dict.fromkeys(paths)}
    clips = lists[config.path]
    for path, others in lists.items():
        if len(others) != len(clips):
            raise DataError(f"{path} holds {len(others)} clips, {config.path} {len(clips)}", SAME_ORDER)
    expected = config.expected_items if isinstance(config, MSRVTTData) and not config.training else None
    if expected is not None and len(clips) != expected:
        raise DataError(
            f"{config.path} holds {len(clips)} clips, and {expected} are evaluated",
            "set expected_items to the length of another list, or to null for any",
        )
    required = config.required_key if isinstance(config, YouCook2Data) else None
    widths: dict[str, int] = {}
    found = []
    for place in range(len(clips)):
        entries = [_Entry(path, place, lists[path][place]) for path in paths]
        if required is None or required in entries[0].fields:
            record = _record(config, entries, caption_key, has_captions, widths)
            found.append(_Clip((entries[0].name, entries[1].name, entries[2].name), record))
    if not clips:
        raise DataError(f"{config.path} holds no clips", HINT)
    if not found:
        raise DataError(f"{config.path} holds no clip with the key {required!r}", "set required_key: null")
    return found


def _record(
    config: PickledData, entries: list[_Entry], caption_key: str, has_captions: bool, widths: dict[str, int]
) -> Record:
    main, entry_2d, entry_3d = entries
    main.get("id", HINT)
    clip_id = str(main.id)
    for other in entries[1:]:
        if other.id not in (None, clip_id):
            raise DataError(f"{main.name} is {other.id!r} in {other.path}", SAME_ORDER)
    hint = "a clip without sound has an array (40, 0)"
    return Record(
        id=clip_id,
        path=clip_id,
        video_2d=_rows(entry_2d, "key_2d", config.key_2d, widths),
        video_3d=_rows(entry_3d, "key_3d", config.key_3d, widths),
        audio=check_spectrogram(main.get("audio", hint), f"{main.name}: 'audio'", hint),
        captions=_captions(main.get(caption_key, HINT), f"{main.name}: {caption_key!r}", has_captions),
    )


def _rows(entry: _Entry, setting: str, key: str | None, widths: dict[str, int]) -> Array | None:
    """The features of one stream, as wide as those of the clips before."""
    if key is None:
        return None
    name = f"{entry.name}: {key!r}"
    hint = f"set {setting} to the key of the features, or to null to leave them out"
    rows = check_rows(entry.get(key, hint), name, HINT)
    width = widths.setdefault(setting, rows.shape[1])
    if rows.shape[1] != width:
        raise DataError(f"{name} has rows of width {rows.shape[1]}, the clips before it {width}", HINT)
    return rows


def _captions(value: Any, name: str, has_captions: bool) -> list[str]:
    captions = list(value) if has_captions and isinstance(value, list | tuple | np.ndarray) else [value]
    if not captions:
        raise DataError(f"{name} holds no sentence", HINT)
    for caption in captions:
        if not isinstance(caption, str):
            raise DataError(f"{name} is or holds something of the type {type(caption).__name__}, not text", HINT)
    return [str(caption) for caption in captions]


def _kind(value: Any) -> str:
    return "empty" if isinstance(value, str) and not value else f"of the type {type(value).__name__}"
