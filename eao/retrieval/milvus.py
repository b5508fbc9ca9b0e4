"""Clips in Milvus: a server, a cluster, or a file of Milvus Lite.

Milvus commits each request by itself, so no set of rows ever changes in one step. What holds instead, also when a
process is killed between two requests: a file is noted as indexed only after all of its new clips are in and its old
ones are out, and the note is taken away before they change. So a file that was being changed may be found by old and
new clips together, or after an interrupted removal by some of its clips, until the same command is run again, which
repairs it; a file that is noted is whole.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from eao.errors import RetrievalError
from eao.retrieval.clips import (
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
)
from eao.retrieval.metadata import METADATA
from eao.retrieval.milvus_client import (
    NAME_BYTES,
    Notes,
    batches,
    connect,
    count_rows,
    create_collection,
    index_name,
    is_ready,
    key,
    quoted,
    read_rows,
    row_batches,
)

# E embedding, K clips

_MOST = 16_384  # rows that a search or query gives
_CANDIDATES = 64
_OVERSAMPLING = 2
_SHOWN = ["id", "file", "start", "end"]
_FLAT = {"index_type": "FLAT", "params": {}}
_INDEXES: dict[Compression, dict[str, Any]] = {
    "none": _FLAT,
    "int8": {"index_type": "HNSW_SQ", "params": {"M": 20, "efConstruction": 300, "sq_type": "SQ8"}},
    "pq": {"index_type": "IVF_PQ", "params": {"nlist": 128, "nbits": 8}},
}
_SEARCH: dict[str, dict[str, Any]] = {"HNSW_SQ": {"ef": 200}, "IVF_PQ": {"nprobe": 16}}


class MilvusClips:
    """A `ClipStore` in two collections: clips, and notes on which files are wholly indexed.

    Args:
        address: `milvus://host:port/collection`, the same with http or https, or a file ending in `.db`. A server's
            password or token is taken from the variable MILVUS_TOKEN.
        encoders: the vector fields, such as ("video-audio", "video", "audio").
        dim: E.

    Raises:
        MissingDependencyError: pymilvus, or for a file milvus-lite, is not installed.
        RetrievalError: the server does not answer.
    """

    def __init__(self, address: str, encoders: Sequence[str], dim: int) -> None:
        self.encoders = tuple(encoders)
        self.dim = dim
        self.address = address
        self._client, self._clips = connect(address)
        self._notes = Notes(self._client, self._clips, address)
        self._writing = threading.Lock()

    def __len__(self) -> int:
        return count_rows(self._client, self._clips, "") if self._is_ready() else 0

    @property
    def layout(self) -> Layout:
        """See `ClipStore`."""
        return Layout(compression=self._compression())

    def files(self) -> dict[str, FileState]:
        """See `ClipStore`."""
        return {name: FileState(*json.loads(value)) for name, value in self._notes.all() if name != METADATA}

    def durations(self) -> dict[str, float]:
        """See `ClipStore`."""
        if not self._is_ready():
            return {}
        rows = read_rows(self._client, self._clips, "duration >= 0", ["file", "duration"])
        return {row["file"]: row["duration"] for row in rows}

    def version(self) -> int | None:
        """See `ClipStore`: a server does not tell."""
        return None

    def replace(self, files: Sequence[str], rows: Iterable[Row]) -> None:
        """See `ClipStore`; several requests, see the head of this file."""
        if not files:
            return
        checked = check_rows(rows)
        with self._writing:
            self._make()
            self._notes.remove(files)
            # What has the same primary key is replaced.
            for batch in batches(checked, 4 * self.dim * len(self.encoders)):
                self._client.upsert(self._clips, [self._entity(row) for row in batch])
            old = f"file in {quoted(files)}"
            keys = quoted([key(row.id) for row in checked])
            self._client.delete(self._clips, filter=f"{old} and not (key in {keys})" if checked else old)
            self._notes.write({row.file: json.dumps(row.state) for row in checked})

    def remove(self, names: Sequence[str]) -> int:
        """See `ClipStore`; several requests, see the head of this file."""
        if not names or not self._is_ready():
            return 0
        condition = f"id in {quoted(names)} or file in {quoted(names)}"
        with self._writing:
            count = count_rows(self._client, self._clips, condition)
            files = {row["file"] for row in read_rows(self._client, self._clips, condition, ["file"])}
            self._notes.remove([name for name in names if name in files])
            if count:
                self._client.delete(self._clips, filter=condition)
                # A file whose last clip went by its id is no longer indexed.
                left = read_rows(self._client, self._clips, f"file in {quoted(sorted(files))}", ["file"])
                self._notes.remove(sorted(files - {row["file"] for row in left}))
        return count

    def tidy(self) -> None:
        """See `ClipStore`: a server does that by itself."""

    def compact(self) -> None:
        """See `ClipStore`."""
        if self._is_ready():
            self._client.flush(self._clips)
            self._client.compact(self._clips)

    def nearest(
        self, vector: Floats, encoder: str, limit: int, where: Sequence[Condition] = (), exact: bool = False
    ) -> list[Neighbour]:
        """See `ClipStore`."""
        if not self._is_ready():
            return []
        compression = self._compression()
        if exact and compression != "none":
            raise RetrievalError(
                f"{self.address} has an approximate index, which Milvus cannot pass by", "eao index --optimize none"
            )
        approximate = compression != "none"
        wanted = max(_CANDIDATES, _OVERSAMPLING * limit) if approximate else limit
        index = _INDEXES[compression]["index_type"]
        conditions = [f"has_{column(encoder)} == true"]
        conditions += [f"{c.column} {c.operator} {json.dumps(c.value, ensure_ascii=False)}" for c in where]
        (found,) = self._client.search(
            self._clips,
            data=[vector.tolist()],
            anns_field=column(encoder),
            limit=min(wanted, _MOST),
            filter=" and ".join(conditions),
            output_fields=[*_SHOWN, column(encoder)] if approximate else _SHOWN,
            search_params={"metric_type": "COSINE", "params": _SEARCH.get(index, {})},
        )
        hits = [(hit["entity"], float(hit["distance"])) for hit in found]
        if approximate:
            hits = [(entity, _cosine(entity[column(encoder)], vector)) for entity, _ in hits]
        hits.sort(key=lambda hit: -hit[1])
        return [Neighbour.of(entity, score) for entity, score in hits[:limit]]

    def vectors(self, ids: Sequence[str]) -> dict[str, dict[str, Floats]]:
        """See `ClipStore`."""
        if not ids or not self._is_ready():
            return {}
        fields = [name for e in self.encoders for name in (column(e), f"has_{column(e)}")]
        rows = read_rows(self._client, self._clips, f"id in {quoted(ids)}", ["id", *fields])
        return {
            row["id"]: {e: np.asarray(row[column(e)], np.float32) for e in self.encoders if row[f"has_{column(e)}"]}
            for row in rows
        }

    def sample(self, encoder: str, count: int, seed: int = 0) -> Floats:
        """See `ClipStore`."""
        having = f"has_{column(encoder)} == true"
        if not self._is_ready():
            return np.zeros((0, self.dim), np.float32)
        ids = sorted(row["id"] for row in read_rows(self._client, self._clips, having, ["id"]))
        chosen = np.random.default_rng(seed).choice(len(ids), size=min(count, len(ids)), replace=False)
        rows = read_rows(
            self._client, self._clips, f"id in {quoted([ids[i] for i in chosen])}", ["id", column(encoder)]
        )
        vectors = [row[column(encoder)] for row in sorted(rows, key=lambda row: str(row["id"]))]
        return np.asarray(vectors, np.float32).reshape(-1, self.dim)

    def scan(self, encoder: str) -> Iterator[tuple[list[str], Floats]]:
        """See `ClipStore`."""
        if not self._is_ready():
            return
        having = f"has_{column(encoder)} == true"
        for batch in row_batches(self._client, self._clips, having, ["id", column(encoder)]):
            yield [row["id"] for row in batch], np.asarray([row[column(encoder)] for row in batch], np.float32)

    def optimize(self, precision: str, compression: Compression, reduce: int) -> None:
        """See `ClipStore`; an index on full float32 vectors is all that can be changed here."""
        if precision != "float32" or reduce:
            raise RetrievalError(
                f"{self.address}: in Milvus vectors stay at full width in float32", "choose --optimize int8, pq or none"
            )
        check_enough(len(self), compression)
        with self._writing:
            self._client.release_collection(self._clips)
            for encoder in self.encoders:
                self._client.drop_index(self._clips, index_name=index_name(column(encoder)))
            parameters = self._client.prepare_index_params()
            for encoder in self.encoders:
                _add_index(parameters, encoder, compression, self.dim)
            self._client.create_index(self._clips, parameters)
            self._client.load_collection(self._clips)

    def size(self) -> int | None:
        """See `ClipStore`."""
        if not os.path.isdir(self.address):
            return None
        return sum(os.path.getsize(os.path.join(d, name)) for d, _, names in os.walk(self.address) for name in names)

    def unindexed(self) -> int:
        """See `ClipStore`: a server takes new rows into its index by itself."""
        return 0

    def _is_ready(self) -> bool:
        return is_ready(self._client, self._clips, [column(encoder) for encoder in self.encoders])

    def _compression(self) -> Compression:
        if not self._is_ready():
            return "none"
        found = self._client.describe_index(self._clips, index_name=index_name(column(self.encoders[0])))
        kind = str((found or {}).get("index_type", "FLAT"))
        return next((name for name, index in _INDEXES.items() if index["index_type"] == kind), "none")

    def _make(self) -> None:
        if self._is_ready():
            return
        from pymilvus import DataType

        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("key", DataType.VARCHAR, is_primary=True, max_length=64)
        for name in ("id", "file"):
            schema.add_field(name, DataType.VARCHAR, max_length=NAME_BYTES)
        for name in ("start", "end", "duration"):
            schema.add_field(name, DataType.DOUBLE)
        schema.add_field("modified", DataType.INT64)
        parameters = self._client.prepare_index_params()
        for encoder in self.encoders:
            # A search finds rows without a vector as well, so they have one of zeros, and a field says so.
            schema.add_field(f"has_{column(encoder)}", DataType.BOOL)
            schema.add_field(column(encoder), DataType.FLOAT_VECTOR, dim=self.dim)
            _add_index(parameters, encoder, "none", self.dim)
        create_collection(self._client, self.address, self._clips, schema, parameters)

    def _entity(self, row: Row) -> dict[str, Any]:
        entity: dict[str, Any] = {"key": key(row.id)} | {name: getattr(row, name) for name in (*_SHOWN, "duration")}
        entity["modified"] = row.state.modified
        for encoder in self.encoders:
            vector = row.vectors.get(encoder)
            entity[f"has_{column(encoder)}"] = vector is not None
            entity[column(encoder)] = np.zeros(self.dim, np.float32) if vector is None else vector
        return entity


def _add_index(parameters: Any, encoder: str, compression: Compression, dim: int) -> None:
    index = _INDEXES[compression]
    params = dict(index["params"])
    if compression == "pq":
        params["m"] = next(dim // size for size in (4, 8, 16, dim) if dim % size == 0)
    kind, name = index["index_type"], index_name(column(encoder))
    parameters.add_index(column(encoder), index_type=kind, index_name=name, metric_type="COSINE", params=params)


def _cosine(vector: Sequence[float], query: Floats) -> float:
    x = np.asarray(vector, np.float32)
    return float(x @ query / (np.linalg.norm(x) * np.linalg.norm(query)))
