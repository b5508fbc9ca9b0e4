"""What the table asks of LanceDB, in its words."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Any

from eao.retrieval.clips import Compression, Condition, Floats

_COMPARE = {">=": operator.ge, "<=": operator.le, "<": operator.lt}


def index_config(compression: Compression, partitions: int, width: int) -> Any:
    """An approximate index over vectors of that width."""
    from lancedb.index import HnswSq, IvfPq

    if compression == "int8":
        # Half of LanceDB's links and of its care in building: less than half of the time, and the same recall here.
        return HnswSq(distance_type="cosine", num_partitions=partitions, m=16, ef_construction=150)
    # Numbers to a byte. Parts that do not divide the width, LanceDB refuses.
    sizes = (4, 8, 16) if width <= 1024 else (16, 8, 4)
    parts = next(width // size for size in (*sizes, 2, 1) if width % size == 0)
    # A quarter of LanceDB's sample and fewer rounds: minutes instead of a quarter of an hour for 100,000 clips.
    return IvfPq(
        distance_type="cosine", num_partitions=partitions, num_sub_vectors=parts, sample_rate=64, max_iterations=20
    )


def vector_query(table: Any, vector: Floats, name: str, where: Sequence[Condition]) -> Any:
    """The nearest by cosine similarity to a vector (E,), of the column `name`."""
    query = table.search(vector, vector_column_name=name, query_type="vector").distance_type("cosine")
    if not where:
        return query
    from lancedb.expr import col, lit

    conditions = [_COMPARE[c.operator](col(c.column), lit(c.value)) for c in where]
    return query.where(functools.reduce(operator.and_, conditions), prefilter=True)


def any_of(name: str, values: Sequence[str]) -> str:
    """A condition in SQL, with the values quoted by LanceDB itself."""
    from lancedb.expr import col

    return str(col(name).isin(values).to_sql())
