"""The format of shards: tar archives in the layout of WebDataset, and the index that lies beside them.

A record is a group of members that share a key: `<key>.json` with id, captions and times, then `<key>.video_2d.npy`,
`<key>.video_3d.npy` and `<key>.audio.npy` for the streams it has. Any WebDataset reader understands that. The index
says where each record begins, so that any of them is read without those before it.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from typing import Any, BinaryIO, Literal

import numpy as np
import pydantic

from eao.data.arrays import AUDIO_BANDS, Array, read_npy
from eao.data.record import Record
from eao.data.storage import Storage
from eao.errors import DataError

# n rows of a stream, D its width, T spectrogram frames

INDEX = "index.json"
FORMAT_VERSION = 1
BLOCK = tarfile.BLOCKSIZE
MEMBER_BYTES = 8 << 30
"""A member must be smaller: the header of a tar archive has room for 33 bits."""
STREAMS = ("video_2d", "video_3d", "audio")
CHECK_HINT = "find what is damaged with `eao pack --verify --out FOLDER`, then copy or pack it again"


class Shard(pydantic.BaseModel):
    """One archive.

    `offsets` are the bytes at which its records begin, `counts` how many items of the data set each record stands for:
    items that differ in their caption alone share one record.
    """

    file: str = pydantic.Field(pattern=r"^[0-9]+\.tar$")
    items: int
    bytes: int
    sha256: str
    offsets: list[int]
    counts: list[int]

    @property
    def end(self) -> int:
        """The byte after the last record; two empty blocks end the archive."""
        return self.bytes - 2 * BLOCK


class ShardIndex(pydantic.BaseModel):
    """What `index.json` says: the data set that was packed, and its shards.

    `dataset` is the section of the configuration it was opened with, `widths` the width of each video stream,
    `fingerprint` what a packing that was interrupted is recognised by.
    """

    format: Literal["eao-shards"] = "eao-shards"
    version: int = FORMAT_VERSION
    dataset: dict[str, Any]
    video_dim: int
    widths: dict[str, int]
    complete_dataset_size: int | None
    items: int
    fingerprint: str
    shards: list[Shard]


def read_index(storage: Storage, file: str = INDEX) -> ShardIndex | None:
    """The index of a folder of shards, None if it has none.

    Raises:
        DataError: it is damaged, or of a version that is not known here.
    """
    name = storage.name(file)
    try:
        values = json.loads(storage.read(file))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {name}: {error}", "copy it again, or pack the data set again") from None
    version = values.get("version") if isinstance(values, dict) else None
    if version != FORMAT_VERSION:
        raise DataError(
            f"{name} is of the version {version}, this program reads {FORMAT_VERSION}",
            "pack the data set again with this version of eao, or install the one that packed it",
        )
    try:
        index = ShardIndex.model_validate(values)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(f"{name} is damaged: {where}: {first['msg']}", "pack the data set again") from None
    for shard in index.shards:
        if len(shard.offsets) != len(shard.counts) or sum(shard.counts) != shard.items:
            raise DataError(f"{name} contradicts itself about {shard.file}", "pack the data set again")
    return index


class ShardWriter:
    """Writes records to an archive, the same bytes for the same records.

    Args:
        file: where to write.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._offsets: list[int] = []
        self._counts: list[int] = []
        self.size = 0

    def add(self, packed: bytes, count: int) -> None:
        """Append a record of `count` items, as `pack_record` gives it."""
        self._offsets.append(self.size)
        self._counts.append(count)
        self._write(packed)

    def finish(self, name: str) -> Shard:
        """End the archive and say what is in it."""
        self._write(bytes(2 * BLOCK))
        return Shard(
            file=name,
            items=sum(self._counts),
            bytes=self.size,
            sha256=self._digest.hexdigest(),
            offsets=self._offsets,
            counts=self._counts,
        )

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.size += len(data)


def record_key(number: int, record: Record) -> str:
    """The key of the record whose first item has this number: unique, in order, and a plain file name."""
    return f"{number:09d}-{re.sub(r'[^A-Za-z0-9_-]', '_', record.id)[:60]}"


def pack_record(key: str, record: Record) -> bytes:
    """The members of a record as a part of a tar archive."""
    values: dict[str, Any] = {"id": record.id, "path": record.path, "captions": list(record.captions)}
    if record.starts is not None and record.ends is not None:
        values |= {"starts": record.starts.tolist(), "ends": record.ends.tolist()}
    members = [("json", json.dumps(values).encode())]
    for stream in STREAMS:
        array = getattr(record, stream)
        if array is not None:
            # Along time, so that a window of the spectrogram is one run of bytes.
            ordered = np.asfortranarray(array) if stream == "audio" else np.ascontiguousarray(array)
            content = io.BytesIO()
            np.lib.format.write_array(content, ordered, version=(1, 0), allow_pickle=False)
            members.append((f"{stream}.npy", content.getvalue()))
    return b"".join(part for name, content in members for part in _member(f"{key}.{name}", content))


def unpack_record(data: memoryview, name: str, widths: dict[str, int]) -> Record:
    """The record in a part of an archive; its arrays are views of `data`.

    Args:
        data: the bytes of its members.
        name: how messages name it.
        widths: of the video streams.

    Raises:
        DataError: whatever is damaged, naming the record and the member.
    """
    members = _members(data, name)
    if not members:
        raise DataError(f"{name} is empty", CHECK_HINT)
    key = next(iter(members)).partition(".")[0]
    name = f"{name} ({key})"
    arrays: dict[str, Array | None] = {}
    for stream in STREAMS:
        content = members.get(f"{key}.{stream}.npy")
        arrays[stream] = None if content is None else _array(content, stream, f"{name}: {stream}.npy", widths)
    try:
        values = json.loads(bytes(members[f"{key}.json"]))
        captions = values["captions"]
        starts, ends = (np.array(values[k], dtype=np.float64) if k in values else None for k in ("starts", "ends"))
        if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
            raise ValueError("captions are no list of sentences")
        if any(times is not None and times.shape != (len(captions),) for times in (starts, ends)):
            raise ValueError("there are not as many times as captions")
        return Record(str(values["id"]), str(values["path"]), **arrays, captions=captions, starts=starts, ends=ends)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise DataError(f"{name}: json is damaged: {reason}", CHECK_HINT) from None


def _member(name: str, content: bytes) -> tuple[bytes, bytes, bytes]:
    if len(content) >= MEMBER_BYTES:
        raise DataError(f"{name} has {len(content)} bytes, and a shard holds parts of 8 GiB at most", "cut the video")
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info.tobuf(tarfile.USTAR_FORMAT), content, bytes(-len(content) % BLOCK)


def _members(data: memoryview, name: str) -> dict[str, memoryview]:
    members = {}
    place = 0
    while place < len(data):
        try:
            info = tarfile.TarInfo.frombuf(bytes(data[place : place + BLOCK]), "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise DataError(f"{name} is damaged at its byte {place}: {error}", CHECK_HINT) from None
        place += BLOCK
        if not 0 <= info.size <= len(data) - place:
            raise DataError(f"{name}: {info.name} has a size that the record has not", CHECK_HINT)
        members[info.name] = data[place : place + info.size]
        place += info.size + -info.size % BLOCK
    return members


def _array(content: memoryview, stream: str, name: str, widths: dict[str, int]) -> Array:
    """A view of an array in numpy's format, as wide as it must be."""
    file = io.BytesIO(content[:BLOCK])
    try:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("another version of numpy's format")
        shape, fortran, dtype = read_npy(np.lib.format.read_array_header_1_0, file, max_header_size=BLOCK)
        if dtype.kind != "f" or len(shape) != 2:
            raise ValueError(f"{dtype}{shape} is no array of floats with two axes")
        if len(content) - file.tell() != dtype.itemsize * shape[0] * shape[1]:
            raise ValueError(f"{len(content)} bytes are not {dtype}{shape}")
        array = np.frombuffer(content, dtype, offset=file.tell()).reshape(shape, order="F" if fortran else "C")
    except Exception as error:  # numpy reads the header of an array as Python, which fails in a dozen different ways
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(f"{name} is damaged: {reason}", CHECK_HINT) from None
    wanted = ("frames", AUDIO_BANDS, shape[0]) if stream == "audio" else ("rows", widths.get(stream), shape[1])
    if wanted[1] != wanted[2]:
        raise DataError(f"{name} is {dtype}{shape}, and {wanted[1]} is the width of the others", CHECK_HINT)
    return array
