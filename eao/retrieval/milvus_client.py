"""Talking to Milvus: connections, quoting, reading in parts, and small notes beside the clips."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from eao.errors import RetrievalError, missing_dependency

T = TypeVar("T")

TOKEN_VARIABLE = "MILVUS_TOKEN"
NAME_BYTES = 65_535  # the longest string that Milvus takes
_COLLECTION = "eao_clips"
_BATCH_BYTES = 16 << 20  # of a request; servers refuse more than 64 MB
_ROWS = 1000  # read at once

_clients: dict[str, Any] = {}
_connecting = threading.Lock()


def connect(address: str) -> tuple[Any, str]:
    """A client, one for each server in this process, and the name of the collection.

    Args:
        address: `milvus://host:port/collection`, the same with http or https, or a file ending in `.db`.

    Raises:
        MissingDependencyError: pymilvus, or for a file milvus-lite, is not installed.
        RetrievalError: the address names no collection, or the server does not answer.
    """
    is_file = "://" not in address
    try:
        import pymilvus

        if is_file:
            import milvus_lite  # noqa: F401
    except ImportError as error:
        package = (error.name or "pymilvus").replace("_", "-")
        raise missing_dependency(package, "milvus", f"the index {address}") from None
    if is_file:
        server, collection = os.path.abspath(address), _COLLECTION
    else:
        parts = urlsplit(address)
        collection = parts.path.strip("/")
        if not collection.isidentifier():
            raise RetrievalError(f"{address} names no collection", "write milvus://host:19530/collection")
        server = f"{'http' if parts.scheme == 'milvus' else parts.scheme}://{parts.netloc}"
    with _connecting:
        if server not in _clients:
            try:
                _clients[server] = pymilvus.MilvusClient(server, token=os.environ.get(TOKEN_VARIABLE, ""), timeout=30)
            except (pymilvus.MilvusException, OSError, RuntimeError) as error:
                raise RetrievalError(
                    f"{address} cannot be opened: {error}", "is the server up, and no other process using the file?"
                ) from None
        return _clients[server], collection


def key(name: str) -> str:
    """A primary key for any name: the client pastes primary keys into queries of its own without quoting them."""
    return hashlib.sha256(name.encode("utf-8")).hexdigest()


def quoted(values: Sequence[str]) -> str:
    """Strings as a list in Milvus' language of filters, whose strings are written as those of JSON."""
    return json.dumps(list(values), ensure_ascii=False)


def index_name(field: str) -> str:
    """The name of a field's index; Milvus Lite knows no other names."""
    return f"{field}_idx"


def is_ready(client: Any, collection: str, fields: Sequence[str]) -> bool:
    """Whether a collection is there. It is loaded, after whatever a killed process left undone.

    Args:
        client: of the server.
        collection: its name.
        fields: its vectors; one that has no index gets an exact one, without which nothing is loaded.
    """
    from pymilvus.client.types import LoadState

    if not client.has_collection(collection):
        return False
    if client.get_load_state(collection)["state"] == LoadState.Loaded:
        return True
    for field in fields:
        if not client.list_indexes(collection, field_name=field):
            parameters = client.prepare_index_params()
            parameters.add_index(field, index_type="FLAT", index_name=index_name(field), metric_type="COSINE")
            client.create_index(collection, parameters)
    client.load_collection(collection)
    return True


def create_collection(client: Any, address: str, collection: str, schema: Any, parameters: Any) -> None:
    """Make a collection in which a search sees what was written before it.

    Args:
        client: of the server.
        address: see `connect`.
        collection: its name.
        schema, parameters: of the client's making.
    """
    from pymilvus import MilvusException

    def create() -> None:
        client.create_collection(collection, schema=schema, index_params=parameters, consistency_level="Strong")

    try:
        create()
    except MilvusException:
        # Milvus Lite makes a collection's folder before it writes what is in it. Of a process that was killed in
        # between, a folder is left that is no collection and that none can take the place of.
        if "://" in address or client.has_collection(collection):
            raise
        for folder in list(Path(address).rglob(collection)):
            shutil.rmtree(folder)
        create()


def count_rows(client: Any, collection: str, condition: str) -> int:
    """How many rows of a collection fulfil a condition."""
    return int(client.query(collection, filter=condition, output_fields=["count(*)"])[0]["count(*)"])


def row_batches(
    client: Any, collection: str, condition: str, fields: Sequence[str]
) -> Iterator[list[Mapping[str, Any]]]:
    """The rows that fulfil a condition, some at a time: one answer of a server is limited."""
    iterator = client.query_iterator(collection, batch_size=_ROWS, filter=condition, output_fields=list(fields))
    try:
        while batch := iterator.next():
            yield batch
    finally:
        iterator.close()


def read_rows(client: Any, collection: str, condition: str, fields: Sequence[str]) -> list[Mapping[str, Any]]:
    """All rows that fulfil a condition."""
    return [row for batch in row_batches(client, collection, condition, fields) for row in batch]


def batches(rows: Sequence[T], row_bytes: int) -> Iterator[Sequence[T]]:
    """Rows in parts that fit into a request."""
    size = max(1, _BATCH_BYTES // max(row_bytes, 1))
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


class Notes:
    """Small texts by name, in a collection of their own.

    Args:
        client: of the server.
        clips: the collection they belong to.
        address: see `connect`.
    """

    def __init__(self, client: Any, clips: str, address: str) -> None:
        self._client = client
        self._address = address
        self._collection = f"{clips}_notes"

    def read(self, name: str) -> str | None:
        """A note, None if it is not there."""
        if not self._is_ready():
            return None
        rows = read_rows(self._client, self._collection, f"key in {quoted([key(name)])}", ["name", "text"])
        return str(rows[0]["text"]) if rows else None

    def all(self) -> list[tuple[str, str]]:
        """All names and texts."""
        if not self._is_ready():
            return []
        return [(row["name"], row["text"]) for row in read_rows(self._client, self._collection, "", ["name", "text"])]

    def write(self, notes: Mapping[str, str]) -> None:
        """Write notes, in place of those of the same names."""
        if not self._is_ready():
            self._make()
        for batch in batches(list(notes.items()), 2048):
            # Milvus wants a vector in every row.
            rows = [{"key": key(name), "name": name, "text": text, "nothing": [1.0, 0.0]} for name, text in batch]
            self._client.upsert(self._collection, rows)

    def remove(self, names: Sequence[str]) -> None:
        """Remove notes; names that have none are passed over."""
        if names and self._is_ready():
            self._client.delete(self._collection, filter=f"key in {quoted([key(name) for name in names])}")

    def _is_ready(self) -> bool:
        return is_ready(self._client, self._collection, ["nothing"])

    def _make(self) -> None:
        from pymilvus import DataType

        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("key", DataType.VARCHAR, is_primary=True, max_length=64)
        schema.add_field("name", DataType.VARCHAR, max_length=NAME_BYTES)
        schema.add_field("text", DataType.VARCHAR, max_length=NAME_BYTES)
        schema.add_field("nothing", DataType.FLOAT_VECTOR, dim=2)
        parameters = self._client.prepare_index_params()
        parameters.add_index("nothing", index_type="FLAT", index_name=index_name("nothing"), metric_type="COSINE")
        create_collection(self._client, self._address, self._collection, schema, parameters)
