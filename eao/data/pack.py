"""Packing: a data set as shards that are read faster, from disk or from object storage."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np

from eao.config import ClipData, DataConfig
from eao.console import ProgressCallback
from eao.data.datasets import open_dataset
from eao.data.record import Record, RecordDataset
from eao.data.shard_format import INDEX, Shard, ShardIndex, ShardWriter, pack_record, read_index, record_key
from eao.data.storage import Storage
from eao.errors import ConfigError, DataError

PARTIAL = "index.partial.json"
"""The index of a packing that has not ended."""
SHARD_BYTES = 256 << 20
READ_AHEAD = 32
"""Items that are read while others are written."""


@dataclass(frozen=True)
class PackReport:
    """What was packed.

    Attributes:
        url: the folder of shards.
        items: of the data set.
        shards: number of files.
        bytes: of all shards together.
        kept: shards that an earlier, interrupted packing had finished.
    """

    url: str
    items: int
    shards: int
    bytes: int
    kept: int


def pack_dataset(
    config: ClipData,
    data: DataConfig,
    url: str,
    *,
    shard_bytes: int = SHARD_BYTES,
    workers: int = 4,
    progress: ProgressCallback = lambda done, total, name: None,
) -> PackReport:
    """Write a data set as shards.

    A shard is whole or not there. Interrupted, the same call goes on after the last whole shard, and gives the same
    bytes as one that was not.

    Args:
        config: the section that describes the data set.
        data: sizes that it does not state itself; only used to open it.
        url: a folder, or a URL that fsspec writes to.
        shard_bytes: a shard ends with the record that reaches this size.
        workers: threads that read.
        progress: called with items done, items in all, and the shard's name.

    Raises:
        ConfigError: the data set cannot be packed, or the folder holds another one.
        DataError: a file of the data set is missing or damaged, or the folder cannot be written.
    """
    dataset = open_dataset(config, data)
    if not isinstance(dataset, RecordDataset):
        raise ConfigError(
            f"a data set of type {getattr(config, 'type', None)!r} cannot be packed",
            "folder, howto100m, msrvtt and youcook2 can",
        )
    storage = Storage(url)
    section = config.model_dump(mode="json")
    described = json.dumps([section, len(dataset), shard_bytes], sort_keys=True)
    fingerprint = hashlib.sha256(described.encode()).hexdigest()
    done = read_index(storage)
    partial = done or read_index(storage, PARTIAL)
    if partial is not None and partial.fingerprint != fingerprint:
        raise ConfigError(
            f"{storage.url} holds shards of another data set, or of another shard size", "name another folder"
        )
    if done is not None:
        return _report(done, len(done.shards), storage.url)
    shards = [] if partial is None else list(partial.shards)
    widths = {} if partial is None else dict(partial.widths)
    kept = len(shards)

    def index() -> ShardIndex:
        return ShardIndex(
            dataset=section,
            video_dim=dataset.video_dim,
            widths=widths,
            complete_dataset_size=dataset.complete_dataset_size,
            items=sum(shard.items for shard in shards),
            fingerprint=fingerprint,
            shards=shards,
        )

    start = sum(shard.items for shard in shards)
    groups = _groups(_read(dataset, start, workers), start)
    pending = next(groups, None)
    while pending is not None:
        name = f"{len(shards):06d}.tar"
        with storage.writing(name) as path, path.open("wb") as file:
            writer = ShardWriter(file)
            while pending is not None and writer.size < shard_bytes:
                number, record, count = pending
                _check_widths(record, widths)
                writer.add(pack_record(record_key(number, record), record), count)
                progress(number + count, len(dataset), name)
                pending = next(groups, None)
            shard = writer.finish(name)
        shards.append(shard)
        storage.write_text(PARTIAL, index().model_dump_json())
    packed = index()
    storage.write_text(INDEX, packed.model_dump_json())
    if storage.size(PARTIAL) is not None:
        storage.remove(PARTIAL)
    return _report(packed, kept, storage.url)


def verify_shards(url: str, progress: ProgressCallback = lambda done, total, name: None) -> PackReport:
    """Compare every shard with the checksum in the index.

    Raises:
        DataError: naming the shard that is missing, of another size, or of other content; or there is no index.
    """
    storage = Storage(url)
    index = open_index(storage)
    for place, shard in enumerate(index.shards):
        _verify(storage, shard)
        progress(place + 1, len(index.shards), shard.file)
    return _report(index, 0, storage.url)


def open_index(storage: Storage) -> ShardIndex:
    """The index of a folder of shards.

    Raises:
        DataError: there is none.
    """
    index = read_index(storage)
    if index is None:
        unfinished = storage.size(PARTIAL) is not None
        hint = "call eao pack again: it goes on" if unfinished else "write shards with eao pack"
        raise DataError(f"{storage.name(INDEX)} does not exist", hint)
    return index


def _verify(storage: Storage, shard: Shard) -> None:
    name, hint = storage.name(shard.file), "copy it again, or remove the folder and pack again"
    size = storage.size(shard.file)
    if size != shard.bytes:
        there = "does not exist" if size is None else f"has {size} bytes, not {shard.bytes}"
        raise DataError(f"{name} {there}", hint)
    digest = hashlib.sha256()
    try:
        for block in storage.blocks(shard.file):
            digest.update(block)
    except OSError as error:
        raise DataError(f"cannot read {name}: {error.strerror or error}", hint) from None
    if digest.hexdigest() != shard.sha256:
        raise DataError(f"{name} is damaged: its SHA-256 is not that of the index", hint)


def _read(dataset: RecordDataset, start: int, workers: int) -> Iterator[Record]:
    """The records from `start` on, some of them read ahead."""
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        places = iter(range(start, len(dataset)))
        waiting = [pool.submit(dataset.record, i) for i in islice(places, READ_AHEAD)]
        try:
            while waiting:
                record = waiting.pop(0).result()
                waiting += [pool.submit(dataset.record, i) for i in islice(places, 1)]
                yield record
        finally:
            for future in waiting:
                future.cancel()


def _groups(records: Iterator[Record], start: int) -> Iterator[tuple[int, Record, int]]:
    """Number of the first item, record, and number of items: neighbours that differ in their caption are one record."""
    number, count = start, 0
    group: Record | None = None
    for record in records:
        # A record with a choice of captions is an item of its own: only where there is one for each item can they be
        # told apart again.
        if group is not None and len(group.captions) == count and _same_features(group, record):
            group = group._replace(captions=[*group.captions, *record.captions])
            count += 1
            continue
        if group is not None:
            yield number, group, count
            number += count
        group, count = record, 1
    if group is not None:
        yield number, group, count


def _check_widths(record: Record, widths: dict[str, int]) -> None:
    for stream in ("video_2d", "video_3d"):
        array = getattr(record, stream)
        if array is not None and array.shape[1] != widths.setdefault(stream, array.shape[1]):
            raise DataError(f"the {stream} features of {record.id} are {array.shape[1]} wide, not {widths[stream]}")


def _same_features(group: Record, record: Record) -> bool:
    if record.id != group.id or record.starts is not None or len(record.captions) != 1:
        return False
    pairs = [(getattr(group, s), getattr(record, s)) for s in ("video_2d", "video_3d", "audio")]
    return all(a is b or (a is not None and b is not None and np.array_equal(a, b)) for a, b in pairs)


def _report(index: ShardIndex, kept: int, url: str) -> PackReport:
    return PackReport(url, index.items, len(index.shards), sum(shard.bytes for shard in index.shards), kept)
