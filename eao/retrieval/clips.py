"""What an index holds, and what any store of it can do: LanceDB's (`table.py`) and Milvus' (`milvus.py`)."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
import pydantic
from numpy.typing import NDArray

from eao.errors import ConfigError, RetrievalError

# E embedding, K clips

Floats: TypeAlias = NDArray[np.float32]
Compression: TypeAlias = Literal["none", "int8", "pq"]

LEAST_TO_LEARN = 256
"""Vectors that an approximate index or a projection needs to learn from."""


class FileState(NamedTuple):
    """How a file stood when it was indexed: bytes, nanoseconds since 1970, and how it was cut into clips.

    `cut` is 0 for windows over the whole file, else a checksum of the starts and ends that an extraction gave.
    """

    size: int
    modified: int
    cut: int = 0


@dataclass(frozen=True)
class Row:
    """One clip of the index.

    Attributes:
        id: unique name, `<file>#t=<start>,<end>` (a media fragment address).
        file: absolute path.
        start: seconds.
        end: seconds.
        duration: of the whole file, seconds.
        state: of the file.
        vectors: encoder -> (E,) float32; an encoder may be missing.
    """

    id: str
    file: str
    start: float
    end: float
    duration: float
    state: FileState
    vectors: dict[str, Floats]


class Neighbour(NamedTuple):
    """A clip found by its vector; `score` is the cosine similarity."""

    id: str
    file: str
    start: float
    end: float
    score: float

    @classmethod
    def of(cls, row: Mapping[str, Any], score: float) -> Neighbour:
        """From the columns of a row."""
        return cls(row["id"], row["file"], row["start"], row["end"], score)


class Condition(NamedTuple):
    """A comparison of a column with a value; a store writes it in its own language."""

    column: str
    operator: Literal[">=", "<=", "<"]
    value: str | float | int


@dataclass(frozen=True)
class Filter:
    """Which clips may be found.

    Attributes:
        folder: those whose file lies below it.
        min_duration: seconds that the whole file lasts at least.
        max_duration: seconds that it lasts at most.
        after: the file was last changed then or later; without a time zone it is local time.
        before: the file was last changed before that.

    Example:
        index.search("a dog barks", where=Filter(folder="holiday", max_duration=60))
    """

    folder: str | Path | None = None
    min_duration: float | None = None
    max_duration: float | None = None
    after: datetime.datetime | None = None
    before: datetime.datetime | None = None

    def conditions(self) -> list[Condition]:
        """All of them must hold.

        Raises:
            ConfigError: nothing can fulfil them.
        """
        if None not in (low := self.min_duration, high := self.max_duration) and low > high:  # type: ignore[operator]
            raise ConfigError(f"no file lasts at least {low:g} s and at most {high:g} s", "exchange the two durations")
        if self.after is not None and self.before is not None and _nanoseconds(self.after) >= _nanoseconds(self.before):
            raise ConfigError(f"no time is after {self.after} and before {self.before}", "exchange the two dates")
        found: list[Condition] = []
        if self.folder is not None:
            folder = os.path.abspath(self.folder).rstrip("/")
            # All strings that begin with "folder/": "0" follows "/", and no character has to be escaped.
            found += [Condition("file", ">=", f"{folder}/"), Condition("file", "<", f"{folder}0")]
        if self.min_duration is not None:
            found.append(Condition("duration", ">=", float(self.min_duration)))
        if self.max_duration is not None:
            found.append(Condition("duration", "<=", float(self.max_duration)))
        if self.after is not None:
            found.append(Condition("modified", ">=", _nanoseconds(self.after)))
        if self.before is not None:
            found.append(Condition("modified", "<", _nanoseconds(self.before)))
        return found


class Layout(pydantic.BaseModel):
    """How vectors are kept and searched.

    Attributes:
        precision: of the full vectors, by which results are ranked.
        compression: of the approximate index that chooses candidates; "none": every vector is compared.
        reduce: width of the vectors that candidates are chosen by; 0: full.
        projection: name of the file with the matrices that make them.
        partitions: of the approximate index.
    """

    model_config = pydantic.ConfigDict(frozen=True)

    precision: Literal["float32", "float16"] = "float32"
    compression: Compression = "none"
    reduce: pydantic.NonNegativeInt = 0
    projection: str = ""
    partitions: pydantic.PositiveInt = 1

    @property
    def exact(self) -> bool:
        """Whether every search compares every full vector."""
        return self.compression == "none" and not self.reduce

    def __str__(self) -> str:
        parts: list[str] = [self.precision]
        if self.reduce:
            parts.append(f"reduced to {self.reduce}")
        if self.compression != "none":
            parts.append(self.compression)
        return ", ".join(parts)


class ClipStore(Protocol):
    """Clips and their vectors. Methods may be called from several threads.

    Attributes:
        encoders: whose vectors are kept of each clip.
        dim: E.
    """

    encoders: tuple[str, ...]
    dim: int

    def __len__(self) -> int:
        """How many clips."""

    @property
    def layout(self) -> Layout:
        """How vectors are kept and searched now."""

    def files(self) -> dict[str, FileState]:
        """Every file that is wholly indexed, and how it stood then."""

    def durations(self) -> dict[str, float]:
        """Seconds that each file lasts that has clips."""

    def version(self) -> int | None:
        """Another number after every change; None if the store does not tell."""

    def replace(self, files: Sequence[str], rows: Iterable[Row]) -> None:
        """Put `rows`, whose ids are unique, in place of every clip of `files`."""

    def remove(self, names: Sequence[str]) -> int:
        """Remove clips by id, or all clips of a file by its path. Returns how many there were."""

    def tidy(self) -> None:
        """After many writes: whatever keeps the next searches quick."""

    def compact(self) -> None:
        """Free what removed and replaced clips still take on the disk."""

    def nearest(
        self, vector: Floats, encoder: str, limit: int, where: Sequence[Condition] = (), exact: bool = False
    ) -> list[Neighbour]:
        """The `limit` nearest clips, best first, ranked by full vectors; clips without that vector are left out.

        Args:
            vector: (E,) the query.
            encoder: which vectors.
            limit: how many at most.
            where: what a clip must fulfil.
            exact: compare every clip, also where an approximate index could choose candidates.
        """

    def vectors(self, ids: Sequence[str]) -> dict[str, dict[str, Floats]]:
        """Of clips by id: encoder -> (E,)."""

    def sample(self, encoder: str, count: int, seed: int = 0) -> Floats:
        """(K, E): vectors of up to `count` clips chosen at random."""

    def scan(self, encoder: str) -> Iterator[tuple[list[str], Floats]]:
        """Ids and vectors (K, E) of all clips that have them, part by part."""

    def optimize(self, precision: str, compression: Compression, reduce: int) -> None:
        """Change how vectors are kept and searched.

        Raises:
            RetrievalError: there are too few clips to learn from, or this store cannot do that.
        """

    def size(self) -> int | None:
        """Bytes on the disk, None if the store does not tell."""

    def unindexed(self) -> int:
        """Clips that were added since the approximate index was made; they are compared one by one."""


def check_rows(rows: Iterable[Row]) -> list[Row]:
    """The rows, each id once.

    Raises:
        RetrievalError: a vector is not finite.
    """
    unique = {row.id: row for row in rows}
    for row in unique.values():
        if not all(np.isfinite(vector).all() for vector in row.vectors.values()):
            raise RetrievalError(f"the model's embedding of {row.file} is not finite", "check the model: eao eval")
    return list(unique.values())


def check_enough(clips: int, what: str) -> None:
    """Refuse to learn from too little.

    Raises:
        RetrievalError: below `LEAST_TO_LEARN`.
    """
    if clips < LEAST_TO_LEARN:
        raise RetrievalError(
            f"{clips} clips are too few for {what}, which learns from at least {LEAST_TO_LEARN}",
            "leave the index as it is: searching that few is quick",
        )


def column(encoder: str) -> str:
    """The column of an encoder's vectors."""
    return "vector_" + encoder.replace("-", "_")


def cosines(vectors: Floats, query: Floats) -> Floats:
    """(K,) cosine similarities of vectors (K, E) of any length with a query (E,)."""
    return np.asarray(vectors @ query / (np.linalg.norm(vectors, axis=1) * np.linalg.norm(query)), np.float32)


def file_state(path: str | os.PathLike[str]) -> FileState:
    """How a file stands now."""
    stat = os.stat(path)
    return FileState(stat.st_size, stat.st_mtime_ns)


def _nanoseconds(time: datetime.datetime) -> int:
    return round(time.timestamp() * 1e6) * 1000
