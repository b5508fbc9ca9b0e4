"""Rows of the index as Arrow columns, for LanceDB."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from eao.retrieval.clips import Floats, Layout, Row, column

# E embedding, K clips, R reduced width

LAYOUT_KEY = b"eao.layout"
"""Where the metadata of the schema holds the `Layout`, as JSON."""
_REDUCED = "reduced_"


def reduced_column(encoder: str) -> str:
    """The column of an encoder's reduced vectors."""
    return _REDUCED + encoder.replace("-", "_")


def is_reduced(name: str) -> bool:
    """Whether a column holds reduced vectors."""
    return name.startswith(_REDUCED)


def table_schema(encoders: Sequence[str], dim: int, layout: Layout, reduced: Collection[str] = ()) -> Any:
    """The columns of a table.

    Args:
        encoders: whose vectors are kept.
        dim: E.
        layout: how; it is kept in the metadata.
        reduced: the encoders whose vectors are kept reduced as well.
    """
    import pyarrow as pa

    kinds = {"id": pa.string(), "file": pa.string(), "start": pa.float64(), "end": pa.float64()}
    kinds |= {"duration": pa.float64(), "has_audio": pa.bool_()}
    kinds |= dict.fromkeys(("size", "modified", "cut"), pa.int64())
    full = pa.float32() if layout.precision == "float32" else pa.float16()
    kinds |= {column(encoder): pa.list_(full, dim) for encoder in encoders}
    kinds |= {
        reduced_column(encoder): pa.list_(pa.float32(), layout.reduce) for encoder in encoders if encoder in reduced
    }
    fields = [pa.field(name, kind) for name, kind in kinds.items()]
    return pa.schema(fields, metadata={LAYOUT_KEY: layout.model_dump_json()})


def rows_to_arrow(rows: Sequence[Row], encoders: Sequence[str], projections: Mapping[str, Floats], schema: Any) -> Any:
    """Rows as a table of `schema`.

    Args:
        rows: clips.
        encoders: whose vectors are kept.
        projections: encoder -> (E, R), of those that are kept reduced as well.
        schema: from `table_schema`.
    """
    import pyarrow as pa

    columns: dict[str, Any] = {
        **{name: [getattr(row, name) for row in rows] for name in ("id", "file", "start", "end", "duration")},
        "has_audio": ["audio" in row.vectors for row in rows],
        **{name: [getattr(row.state, name) for row in rows] for name in ("size", "modified", "cut")},
    }
    for encoder in encoders:
        vectors = [row.vectors.get(encoder) for row in rows]
        columns[column(encoder)] = _fixed_lists(vectors, schema.field(column(encoder)).type)
        if encoder in projections:
            columns[reduced_column(encoder)] = _fixed_lists(
                [None if x is None else x @ projections[encoder] for x in vectors],
                schema.field(reduced_column(encoder)).type,
            )
    return pa.Table.from_pydict(columns, schema=schema)


def convert_batch(batch: Any, encoders: Sequence[str], projections: Mapping[str, Floats], schema: Any) -> Any:
    """A batch of rows in another precision or with other reduced vectors. Arguments: see `rows_to_arrow`."""
    import pyarrow as pa

    columns = {name: batch.column(name) for name in schema.names if not is_reduced(name)}
    for encoder in encoders:
        name = column(encoder)
        columns[name] = columns[name].cast(schema.field(name).type)
        if encoder in projections:
            there = batch.column(name).is_valid().to_numpy(zero_copy_only=False)
            shortened = iter(to_matrix(batch.column(name), schema.field(name).type.list_size) @ projections[encoder])
            columns[reduced_column(encoder)] = _fixed_lists(
                [next(shortened) if valid else None for valid in there], schema.field(reduced_column(encoder)).type
            )
    return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)


def to_matrix(vectors: Any, dim: int) -> Floats:
    """(K, E) float32: those of a column's vectors that are there."""
    if hasattr(vectors, "combine_chunks"):
        vectors = vectors.combine_chunks()
    # `flatten` passes over lists that are null.
    return np.asarray(vectors.flatten().to_numpy(zero_copy_only=False), np.float32).reshape(-1, dim)


def _fixed_lists(vectors: Sequence[Floats | None], kind: Any) -> Any:
    import pyarrow as pa

    width = kind.list_size
    numbers = np.zeros((len(vectors), width), np.float32)
    for row, vector in enumerate(vectors):
        if vector is not None:
            numbers[row] = vector
    flat = pa.array(numbers.astype(kind.value_type.to_pandas_dtype(), copy=False).ravel(), type=kind.value_type)
    missing = pa.array([vector is None for vector in vectors], type=pa.bool_())
    return pa.FixedSizeListArray.from_arrays(flat, width, mask=missing)
