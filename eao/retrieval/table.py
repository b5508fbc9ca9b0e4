"""Clips in LanceDB, in a folder or on object storage: every change is one atomic commit, also when it is killed."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np

from eao.data.storage import Storage
from eao.errors import RetrievalError, missing_dependency
from eao.retrieval.clips import (
    LEAST_TO_LEARN,
    Compression,
    Condition,
    FileState,
    Floats,
    Layout,
    Neighbour,
    Row,
    check_enough,
    check_rows,
    column,
    cosines,
)
from eao.retrieval.columns import (
    LAYOUT_KEY,
    convert_batch,
    is_reduced,
    reduced_column,
    rows_to_arrow,
    table_schema,
    to_matrix,
)
from eao.retrieval.lance import any_of, index_config, vector_query
from eao.retrieval.projection import SAMPLE, fit_projection, load_projections, save_projections

# E embedding, K clips, R reduced width

TABLE = "clips"
_LOCK = ".lock"
_FRAGMENTS = 64  # commits between two compactions: each commit writes a file that every search opens
_CANDIDATES = 64  # ranked by their full vectors, at least; 24 KB each at the published width
_OVERSAMPLING = 2  # candidates for each clip that is asked for
_ROWS_READ = 1024
# Clips in a partition: of those around a query, many lie in other partitions, so few large ones are searched quicker to
# the same recall than many small ones; and one graph quicker than several.
_PARTITION: dict[Compression, int] = {"none": 1 << 62, "int8": 1_000_000, "pq": 8192}
_PROBES = 16  # partitions that are searched at least; all of them up to 16, half of them beyond 32
_BREADTH = 200  # clips of a graph that are looked at, at least
_SHOWN = ["id", "file", "start", "end"]

P = ParamSpec("P")
R = TypeVar("R")


def _twice(read: Callable[Concatenate[ClipTable, P], R]) -> Callable[Concatenate[ClipTable, P], R]:
    """Compacting takes away old versions of the table, of which one may just have been read: then read again."""

    @functools.wraps(read)
    def reread(table: ClipTable, *args: P.args, **options: P.kwargs) -> R:
        try:
            return read(table, *args, **options)
        except RetrievalError:
            return read(table, *args, **options)

    return reread


class ClipTable:
    """The default `ClipStore`.

    How vectors are kept and searched stands in the metadata of the table's schema, so that it changes in the same
    commit as the rows.

    Args:
        location: folder or URL of the index; the table is created in it at the first write.
        encoders: the vector columns, such as ("video-audio", "video", "audio").
        dim: E.

    Raises:
        MissingDependencyError: LanceDB is not installed.
    """

    def __init__(self, location: str | Path, encoders: Sequence[str], dim: int) -> None:
        try:
            import lancedb
        except ImportError:
            raise missing_dependency("lancedb", "index", "the search index") from None
        self.encoders = tuple(encoders)
        self.dim = dim
        self.location = str(location)
        self.storage = Storage(self.location)
        # Zero: a server sees at once what another process adds.
        self._database = lancedb.connect(self.location, read_consistency_interval=datetime.timedelta(0))
        self._opened: Any = None
        self._commits = 0
        self._opening = threading.RLock()
        self._projections: tuple[str, dict[str, Floats]] = ("", {})

    def __len__(self) -> int:
        return 0 if self._table is None else int(self._table.count_rows())

    @property
    def layout(self) -> Layout:
        """See `ClipStore`."""
        return Layout() if self._table is None else _layout(self._table)

    @_twice
    def files(self) -> dict[str, FileState]:
        """See `ClipStore`."""
        if self._table is None:
            return {}
        names = ["file", "size", "modified", "cut"]
        with self._reading():
            columns = self._table.search().select(names).to_arrow()
        return {
            file: FileState(*state) for file, *state in zip(*(columns[name].to_pylist() for name in names), strict=True)
        }

    @_twice
    def durations(self) -> dict[str, float]:
        """See `ClipStore`."""
        if self._table is None:
            return {}
        with self._reading():
            columns = self._table.search().select(["file", "duration"]).to_arrow()
        return dict(zip(columns["file"].to_pylist(), columns["duration"].to_pylist(), strict=True))

    def version(self) -> int | None:
        """See `ClipStore`."""
        with self._reading():
            return 0 if self._table is None else int(self._table.version)

    def replace(self, files: Sequence[str], rows: Iterable[Row]) -> None:
        """See `ClipStore`; one commit."""
        if not files:
            return
        checked = check_rows(rows)
        with self._writing():
            table = self._table
            if table is None:
                with self._opening:
                    schema = table_schema(self.encoders, self.dim, Layout())
                    table = self._opened = self._database.create_table(TABLE, schema=schema, exist_ok=True)
            merge = table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
            old = any_of("file", files)
            # Only where there is something to delete: with it, a commit reads all vectors of the table.
            if table.count_rows(old):
                merge = merge.when_not_matched_by_source_delete(old)
            # "null": a clip without sound has no "audio" vector, which LanceDB would otherwise take for a broken one.
            merge.execute(self._arrow(checked, table), on_bad_vectors="null")
        self._commits += 1
        if self._commits >= _FRAGMENTS:
            self.tidy()

    def remove(self, names: Sequence[str]) -> int:
        """See `ClipStore`; one commit."""
        if self._table is None or not names:
            return 0
        condition = f"{any_of('id', names)} OR {any_of('file', names)}"
        with self._writing():
            count = int(self._table.count_rows(condition))
            if count:
                self._table.delete(condition)
        return count

    def tidy(self) -> None:
        """Gather the small files of many commits, and take new clips into the approximate index."""
        if self._table is not None and self._commits:
            self._table.optimize()
            self._commits = 0

    def compact(self) -> None:
        """See `ClipStore`."""
        if self._table is None:
            return
        with self._writing():
            self._table.optimize(cleanup_older_than=datetime.timedelta(milliseconds=1))
            self._commits = 0
            for path in self.storage.folder.glob("projection-*.npz") if self.storage.folder is not None else ():
                if path.name != self.layout.projection:
                    path.unlink()

    @_twice
    def nearest(
        self, vector: Floats, encoder: str, limit: int, where: Sequence[Condition] = (), exact: bool = False
    ) -> list[Neighbour]:
        """See `ClipStore`."""
        table = self._table
        if table is None:
            return []
        layout = _layout(table)
        full = column(encoder)
        if exact or layout.exact or (layout.reduce and encoder not in self._projection(layout)):
            found = vector_query(table, vector, full, where).bypass_vector_index().limit(limit)
            with self._reading():
                hits = found.select([*_SHOWN, "_distance"]).to_list()
            return [Neighbour.of(hit, 1.0 - hit["_distance"]) for hit in hits]
        query, name = vector, full
        if layout.reduce:
            query, name = vector @ self._projection(layout)[encoder], reduced_column(encoder)
        count = max(_CANDIDATES, _OVERSAMPLING * limit)
        found = vector_query(table, query, name, where).ef(max(_BREADTH, 2 * count)).limit(count)
        # More partitions than that are read only where a filter leaves too few clips in them.
        found = found.minimum_nprobes(max(_PROBES, layout.partitions // 2)).maximum_nprobes(0)
        with self._reading():
            candidates = found.select([*_SHOWN, "_distance", full]).to_arrow()
        scores = cosines(to_matrix(candidates[full], self.dim), vector)
        shown = candidates.select(_SHOWN).to_pylist()
        return [Neighbour.of(shown[i], float(scores[i])) for i in np.argsort(-scores, kind="stable")[:limit]]

    @_twice
    def vectors(self, ids: Sequence[str]) -> dict[str, dict[str, Floats]]:
        """See `ClipStore`."""
        if self._table is None or not ids:
            return {}
        names = [column(encoder) for encoder in self.encoders]
        with self._reading():
            rows = self._table.search().where(any_of("id", ids)).select(["id", *names]).to_arrow().to_pylist()
        return {
            row["id"]: {
                encoder: np.asarray(row[name], np.float32)
                for encoder, name in zip(self.encoders, names, strict=True)
                if row[name] is not None
            }
            for row in rows
        }

    @_twice
    def sample(self, encoder: str, count: int, seed: int = 0) -> Floats:
        """See `ClipStore`."""
        if self._table is None:
            return np.zeros((0, self.dim), np.float32)
        with self._reading():
            rows = int(self._table.count_rows())
            chosen = np.random.default_rng(seed).choice(rows, size=min(count, rows), replace=False)
            taken = self._table.take_offsets(sorted(chosen.tolist())).select([column(encoder)]).to_arrow()
        return to_matrix(taken[column(encoder)], self.dim)

    def scan(self, encoder: str) -> Iterator[tuple[list[str], Floats]]:
        """See `ClipStore`."""
        if self._table is None:
            return
        name = column(encoder)
        having = self._table.search().where(f"{name} IS NOT NULL").select(["id", name])
        for batch in having.to_batches(batch_size=_ROWS_READ):
            yield batch.column("id").to_pylist(), to_matrix(batch.column(name), self.dim)

    def optimize(self, precision: str, compression: Compression, reduce: int) -> None:
        """See `ClipStore`. The rows change in one commit; what is killed before or after it can be searched as well."""
        table = self._table
        check_enough(0 if table is None else int(table.count_rows()), compression if not reduce else "a projection")
        with self._writing():
            layout = _layout(table)
            if precision == "float32" and layout.precision == "float16":
                raise RetrievalError(f"{self.location} keeps its vectors in half precision", "build the index again")
            projection = layout.projection
            if not reduce:
                projection = ""
            elif reduce != layout.reduce:
                samples = {encoder: self.sample(encoder, SAMPLE) for encoder in self.encoders}
                # Where hardly a clip has sound, its vectors stay as they are, and all of them are compared.
                enough = {e: x for e, x in samples.items() if len(x) >= LEAST_TO_LEARN}
                fitted = {encoder: fit_projection(x, reduce) for encoder, x in enough.items()}
                projection = save_projections(self.storage, fitted)
            wanted = Layout(
                precision=precision,  # type: ignore[arg-type]
                compression=compression,
                reduce=reduce,
                projection=projection,
                partitions=max(1, int(table.count_rows()) // _PARTITION[compression]),
            )
            for index in table.list_indices():
                table.drop_index(index.name)
            if wanted != layout:
                self._rewrite(wanted)
            if compression != "none":
                self._build(wanted)

    def size(self) -> int | None:
        """See `ClipStore`; None on object storage."""
        if self.storage.folder is None:
            return None
        return sum(path.stat().st_size for path in self.storage.folder.rglob("*") if path.is_file())

    def unindexed(self) -> int:
        """See `ClipStore`."""
        if self._table is None:
            return 0
        stats = [self._table.index_stats(index.name) for index in self._table.list_indices()]
        return max((int(s.num_unindexed_rows) for s in stats if s is not None), default=0)

    @property
    def _table(self) -> Any:
        with self._opening:
            if self._opened is None:  # another process may have made it meanwhile
                self._opened = self._open()
            return self._opened

    def _open(self) -> Any:
        folder = self.storage.folder
        if folder is not None:
            # Asking the file system is quicker than listing tables, and LanceDB names a table's folder after it.
            files = {path.parent.name for path in (folder / f"{TABLE}.lance").glob("*/*")}
            if not files & {"_versions", "data"}:
                return None  # also where its making was killed before anything was in it
        elif TABLE not in self._database.list_tables().tables:
            return None
        with self._reading():
            table = self._database.open_table(TABLE)
        missing = [encoder for encoder in self.encoders if column(encoder) not in table.schema.names]
        if missing:
            raise RetrievalError(f"the index {self.location} has no vectors of {', '.join(missing)}", "build it again")
        return table

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, RuntimeError, OSError) as error:  # LanceDB raises all of them for files it cannot read
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise RetrievalError(f"the index {self.location} is damaged: {reason}", "build it again") from None

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """One writer at a time. Object storage has no locks: there LanceDB refuses the later of clashing commits."""
        if self.storage.folder is None:
            yield
            return
        self.storage.folder.mkdir(parents=True, exist_ok=True)
        with (self.storage.folder / _LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _projection(self, layout: Layout) -> dict[str, Floats]:
        with self._opening:
            if self._projections[0] != layout.projection:
                self._projections = (layout.projection, load_projections(self.storage, layout.projection))
            return self._projections[1]

    def _arrow(self, rows: Sequence[Row], table: Any) -> Any:
        layout = _layout(table)
        projections = self._projection(layout) if layout.reduce else {}
        return rows_to_arrow(rows, self.encoders, projections, table.schema)

    def _rewrite(self, layout: Layout) -> None:
        """All rows in another layout, as one commit."""
        table = self._table
        projections = self._projection(layout) if layout.reduce else {}
        schema = table_schema(self.encoders, self.dim, layout, list(projections))
        kept = [name for name in table.schema.names if not is_reduced(name)]
        batches = table.search().select(kept).to_batches(batch_size=_ROWS_READ)
        changed = (convert_batch(batch, self.encoders, projections, schema) for batch in batches)
        import pyarrow as pa

        reader = pa.RecordBatchReader.from_batches(schema, changed)
        self._database.create_table(TABLE, data=reader, schema=schema, mode="overwrite", on_bad_vectors="null")

    def _build(self, layout: Layout) -> None:
        """The approximate index of each column that has enough vectors."""
        for encoder in self._projection(layout) if layout.reduce else self.encoders:
            count = self._table.count_rows(f"{column(encoder)} IS NOT NULL")
            if count >= LEAST_TO_LEARN:
                name = reduced_column(encoder) if layout.reduce else column(encoder)
                partitions = min(layout.partitions, max(1, count // LEAST_TO_LEARN))
                config = index_config(layout.compression, partitions, layout.reduce or self.dim)
                self._table.create_index(name, config=config)


def _layout(table: Any) -> Layout:
    metadata = table.schema.metadata or {}
    return Layout.model_validate_json(metadata.get(LAYOUT_KEY, b"{}"))
