"""The table of indexed clips, in LanceDB: every change is one atomic commit, also when the process is killed."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from eao.errors import RetrievalError, missing_dependency

# E embedding

TABLE = "clips"
_FRAGMENTS = 64  # commits between two compactions: each commit writes a file that every search opens


class FileState(NamedTuple):
    """How a file stood when it was indexed: bytes and nanoseconds since 1970."""

    size: int
    modified: int


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
    vectors: dict[str, NDArray[np.float32]]


class Neighbour(NamedTuple):
    """A clip found by its vector; `score` is the cosine similarity."""

    id: str
    file: str
    start: float
    end: float
    score: float


class ClipTable:
    """Clips and their vectors.

    Args:
        folder: the index; the table is created in it at the first write.
        encoders: the vector columns, such as ("video-audio", "video", "audio").
        dim: E.

    Raises:
        MissingDependencyError: LanceDB is not installed.
    """

    def __init__(self, folder: Path, encoders: Sequence[str], dim: int) -> None:
        try:
            import lancedb
        except ImportError:
            raise missing_dependency("lancedb", "index", "the search index") from None
        self.encoders = tuple(encoders)
        self.dim = dim
        self.folder = folder
        # Zero: a server sees at once what another process adds.
        self._database = lancedb.connect(str(folder), read_consistency_interval=datetime.timedelta(0))
        self._opened: Any = None
        self._commits = 0

    def __len__(self) -> int:
        return 0 if self._table is None else int(self._table.count_rows())

    @property
    def _table(self) -> Any:
        if self._opened is None:  # another process may have made it meanwhile
            self._opened = self._open()
        return self._opened

    def files(self) -> dict[str, FileState]:
        """Every indexed file and how it stood then."""
        if self._table is None:
            return {}
        columns = self._table.search().select(["file", "size", "modified"]).to_arrow()
        rows = zip(*(columns[name].to_pylist() for name in ("file", "size", "modified")), strict=True)
        return {file: FileState(size, modified) for file, size, modified in rows}

    def replace(self, files: Sequence[str], rows: Iterable[Row]) -> None:
        """Put `rows` in place of every clip of `files`, in one commit."""
        if not files:
            return
        if self._table is None:
            self._opened = self._database.create_table(TABLE, schema=self._schema(), exist_ok=True)
        merge = self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
        merge = merge.when_not_matched_by_source_delete(_is_one_of("file", files))
        # "null": a clip without sound has no "audio" vector, which LanceDB would otherwise take for a broken one.
        merge.execute(self._arrow(rows), on_bad_vectors="null")
        self._commits += 1
        if self._commits >= _FRAGMENTS:
            self.compact()

    def remove(self, names: Sequence[str]) -> int:
        """Remove clips by id, or all clips of a file by its path. Returns how many there were."""
        if self._table is None or not names:
            return 0
        condition = f"{_is_one_of('id', names)} OR {_is_one_of('file', names)}"
        count = int(self._table.count_rows(condition))
        if count:
            self._table.delete(condition)
        return count

    def compact(self) -> None:
        """Gather the many small files that many commits leave."""
        if self._table is not None and self._commits:
            self._table.optimize()
            self._commits = 0

    def nearest(self, vector: NDArray[np.float32], encoder: str, limit: int) -> list[Neighbour]:
        """The `limit` nearest clips by exact cosine similarity, best first; clips without that vector are left out."""
        if self._table is None:
            return []
        query = self._table.search(vector, vector_column_name=_column(encoder), query_type="vector")
        # Exact, even if someone built an approximate index on the table.
        query = query.distance_type("cosine").bypass_vector_index().limit(limit)
        found = query.select(["id", "file", "start", "end", "_distance"]).to_list()
        return [Neighbour(r["id"], r["file"], r["start"], r["end"], 1.0 - r["_distance"]) for r in found]

    def _open(self) -> Any:
        # Asking the file system is quicker than listing tables, and LanceDB names a table's folder after it.
        if not (self.folder / f"{TABLE}.lance").is_dir():
            return None
        try:
            table = self._database.open_table(TABLE)
        except (ValueError, RuntimeError, OSError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise RetrievalError(f"the index {self.folder} is damaged: {reason}", "build it again") from None
        missing = [encoder for encoder in self.encoders if _column(encoder) not in table.schema.names]
        if missing:
            raise RetrievalError(f"the index {self.folder} has no vectors of {', '.join(missing)}", "build it again")
        return table

    def _schema(self) -> Any:
        import pyarrow as pa

        kinds = {"id": pa.string(), "file": pa.string(), "start": pa.float64(), "end": pa.float64()}
        kinds |= {"duration": pa.float64(), "has_audio": pa.bool_(), "size": pa.int64(), "modified": pa.int64()}
        kinds |= {_column(encoder): pa.list_(pa.float32(), self.dim) for encoder in self.encoders}
        return pa.schema([pa.field(name, kind) for name, kind in kinds.items()])

    def _arrow(self, rows: Iterable[Row]) -> Any:
        import pyarrow as pa

        rows = list(rows)
        for row in rows:
            if not all(np.isfinite(vector).all() for vector in row.vectors.values()):
                raise RetrievalError(f"the model's embedding of {row.file} is not finite", "check the model: eao eval")
        columns: dict[str, list[Any]] = {
            **{name: [getattr(row, name) for row in rows] for name in ("id", "file", "start", "end", "duration")},
            "has_audio": ["audio" in row.vectors for row in rows],
            "size": [row.state.size for row in rows],
            "modified": [row.state.modified for row in rows],
            **{_column(encoder): [row.vectors.get(encoder) for row in rows] for encoder in self.encoders},
        }
        return pa.Table.from_pydict(columns, schema=self._schema())


def _column(encoder: str) -> str:
    return "vector_" + encoder.replace("-", "_")


def _is_one_of(column: str, values: Sequence[str]) -> str:
    quoted = ", ".join("'" + value.replace("'", "''") + "'" for value in values)
    return f"{column} IN ({quoted})"


def file_state(path: str | os.PathLike[str]) -> FileState:
    """How a file stands now."""
    stat = os.stat(path)
    return FileState(stat.st_size, stat.st_mtime_ns)
