"""Shards as a data set: records read at random, from disk as views of mapped memory, or by ranges from object storage.

Since the index says where each record lies, shards need no order of their own: a run over them draws the same items in
the same order, and the same clips from them, as a run over the files that were packed.
"""

from __future__ import annotations

import bisect
import mmap
from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import pydantic

from eao.config import DATASET_TYPES, ClipData, DataConfig, HowTo100MData, ShardData, WholeData
from eao.data.arrays import Array
from eao.data.howto100m import draw_windows, window_clip
from eao.data.item import Item, clip_shape, whole_shape
from eao.data.pack import open_index
from eao.data.record import Record, whole_clips
from eao.data.shard_format import CHECK_HINT, unpack_record
from eao.data.storage import Storage
from eao.errors import ConfigError, DataError

OPTIONS = ("cut_clips", "complete_dataset_size", "clips_per_video", "min_time", "audio_shift")
"""Settings of the packed data set that can still be changed: the others decided what was packed."""
OPEN_SHARDS = 64


class Mapped(NamedTuple):
    """A shard in memory, and its address there."""

    memory: mmap.mmap
    view: memoryview
    address: int


class ShardDataset:
    """What `eao pack` wrote.

    Args:
        config: where the shards are, and what is changed of the data set that was packed.
        data: numbers of tokens and frames, and the sampling.

    Attributes:
        packed: the section of the data set that was packed, with the changes.
        video_dim: width of a video token.

    Raises:
        ConfigError: an option that cannot be changed.
        DataError: there are no shards, or the index is damaged.
    """

    is_cached = False

    def __init__(self, config: ShardData, data: DataConfig) -> None:
        self.config = config
        self._storage = Storage(config.url)
        self._index = open_index(self._storage)
        self.packed = _packed_section(config, self._index.dataset)
        whole = isinstance(self.packed, WholeData)
        self.shape = whole_shape(self.packed, data) if whole else clip_shape(self.packed, data)  # type: ignore[arg-type]
        self.video_dim = self._index.video_dim
        self.complete_dataset_size = self._index.complete_dataset_size
        if "complete_dataset_size" in config.options:
            self.complete_dataset_size = self.packed.complete_dataset_size  # type: ignore[attr-defined]
        # The first item after each shard, and after each record of a shard.
        self._ends = list(accumulate(shard.items for shard in self._index.shards))
        self._record_ends = [list(accumulate(shard.counts)) for shard in self._index.shards]
        self._mapped: OrderedDict[int, Mapped] = OrderedDict()
        self._fetched: dict[tuple[int, int], bytes] = {}

    def __len__(self) -> int:
        return self._index.items

    def record(self, index: int) -> Record:
        """What was packed of item `index`; its arrays are views of read-only memory.

        Raises:
            DataError: naming the shard and the record that is damaged or cannot be read.
        """
        shard, place, item = self._place(index)
        name = f"{self._storage.name(self._index.shards[shard].file)} record {place}"
        record = unpack_record(self._bytes(shard, place), name, self._index.widths)
        if self._index.shards[shard].counts[place] == 1:
            return record
        if item >= len(record.captions):
            raise DataError(f"{name} holds {len(record.captions)} captions, not one for each of its items", CHECK_HINT)
        return record._replace(captions=[record.captions[item]])

    def clips(self, index: int, rng: np.random.Generator) -> list[Item]:
        """The clips of item `index`, as the packed data set gives them."""
        record = self.record(index)
        if isinstance(self.packed, HowTo100MData):
            windows = draw_windows(record, rng, self.packed, self.shape)
            self._will_need(index, [part for w in windows for part in (w.video_2d, w.video_3d, w.audio)])
            return [window_clip(window, self.shape, self.video_dim) for window in windows]
        assert isinstance(self.packed, WholeData)
        self._will_need(index, [record.video_2d, record.video_3d, record.audio])
        return whole_clips(record, self.packed, self.shape, self.video_dim, rng)

    def prefetch(self, indices: Sequence[int]) -> None:
        """Fetch the records of a batch from object storage in one go; nothing is done for shards on disk."""
        if self._storage.folder is not None:
            return
        places = list(dict.fromkeys(self._place(index)[:2] for index in indices))
        spans = [self._span(*place) for place in places]
        files = [self._index.shards[shard].file for shard, _ in places]
        parts = self._fetch(files, [start for start, _ in spans], [end for _, end in spans])
        self._fetched = dict(zip(places, parts, strict=True))

    def __getstate__(self) -> dict[str, Any]:
        # Maps belong to a process; each worker makes its own.
        return self.__dict__ | {"_mapped": OrderedDict(), "_fetched": {}}

    def _place(self, index: int) -> tuple[int, int, int]:
        """Shard, record of the shard, and item of the record."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        shard = bisect.bisect_right(self._ends, index)
        in_shard = index - (self._ends[shard - 1] if shard else 0)
        ends = self._record_ends[shard]
        place = bisect.bisect_right(ends, in_shard)
        return shard, place, in_shard - (ends[place - 1] if place else 0)

    def _span(self, shard: int, place: int) -> tuple[int, int]:
        """The first byte of a record, and the one after its last."""
        description = self._index.shards[shard]
        ends = [*description.offsets[place + 1 : place + 2], description.end]
        return description.offsets[place], ends[0]

    def _bytes(self, shard: int, place: int) -> memoryview:
        start, end = self._span(shard, place)
        if self._storage.folder is not None:
            return self._map(shard).view[start:end]
        if (shard, place) not in self._fetched:
            self._fetched[shard, place] = self._fetch([self._index.shards[shard].file], [start], [end])[0]
        return memoryview(self._fetched[shard, place])

    def _fetch(self, files: list[str], starts: list[int], ends: list[int]) -> list[bytes]:
        """Parts of shards from object storage."""
        try:
            return self._storage.read_ranges(files, starts, ends)
        except FileNotFoundError:  # which one, not every store says
            missing = [file for file in dict.fromkeys(files) if self._storage.size(file) is None]
            name = self._storage.name(missing[0]) if missing else f"a shard of {self._storage.url}"
            raise DataError(f"{name} does not exist", CHECK_HINT) from None

    def _will_need(self, index: int, parts: Sequence[Array | None]) -> None:
        """Have the system read parts of an item's arrays, each a run of bytes, while those before them are used."""
        if self._storage.folder is None:
            return
        mapped = self._map(self._place(index)[0])
        for part in parts:
            if part is not None and part.size:
                start = part.__array_interface__["data"][0] - mapped.address
                before = start % mmap.PAGESIZE
                mapped.memory.madvise(mmap.MADV_WILLNEED, start - before, before + part.nbytes)

    def _map(self, shard: int) -> Mapped:
        """A shard in memory; those used last stay mapped."""
        if shard in self._mapped:
            self._mapped.move_to_end(shard)
            return self._mapped[shard]
        description = self._index.shards[shard]
        assert self._storage.folder is not None
        path = self._storage.folder / description.file
        try:
            with path.open("rb") as file:
                memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # an empty file cannot be mapped
            raise DataError(f"cannot read {path}: {error}", CHECK_HINT) from None
        if len(memory) != description.bytes:
            raise DataError(f"{path} has {len(memory)} bytes, not {description.bytes}", CHECK_HINT)
        # Else the system reads far around each byte that is touched: most of a video for a few windows of it.
        memory.madvise(mmap.MADV_RANDOM)
        mapped = Mapped(memory, memoryview(memory), np.frombuffer(memory, np.uint8).__array_interface__["data"][0])
        self._mapped[shard] = mapped
        if len(self._mapped) > OPEN_SHARDS:
            self._mapped.popitem(last=False)  # unmapped once no array looks into it any more
        return mapped


def _packed_section(config: ShardData, section: dict[str, Any]) -> ClipData:
    """The section of the packed data set, with the options and sizes of `config` in place of its own."""
    kind = DATASET_TYPES.get(str(section.get("type")))
    if kind is None or not issubclass(kind, WholeData | HowTo100MData):
        raise DataError(f"{config.url} holds a data set of type {section.get('type')!r}", CHECK_HINT)
    for name in config.options:
        if name not in OPTIONS or name not in kind.model_fields:
            known = ", ".join(option for option in OPTIONS if option in kind.model_fields)
            raise ConfigError(f"the option {name!r} of shards cannot be changed", f"these can: {known}")
    own = {name: getattr(config, name) for name in ClipData.model_fields if getattr(config, name) is not None}
    try:
        return kind.model_validate(section | config.options | own)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"the options of the shards {config.url}: {where}: {first['msg']}") from None
