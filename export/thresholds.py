"""What an engine must hold to be offered, by precision: one table, which a user may adjust."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

from eao.errors import ExportError


@dataclass(frozen=True)
class Thresholds:
    """Limits of the figures of `eao.export.parity`; None leaves a figure free.

    Attributes:
        cosine: least cosine of any embedding with the model's.
        batch_invariance: least cosine of a clip alone with the same clip in a batch.
        top10_identical: least share of queries whose ten best items are the model's.
        top10_overlap: least share of the model's ten best items among the engine's, mean over queries.
        recall_moved: most percentage points of queries that an R@K (1, 5, 10) may gain or lose, whichever is more.
        recall10: most percentage points by which R@10 may change in sum.
    """

    cosine: float
    batch_invariance: float = 0.9999
    top10_identical: float | None = None
    top10_overlap: float | None = None
    recall_moved: float | None = None
    recall10: float | None = None

    def limits(self) -> dict[str, float]:
        """The figures that are limited, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


_HALF = Thresholds(cosine=0.9995)
_EIGHT_BITS = Thresholds(cosine=0.99, top10_overlap=0.95, recall10=1.0)

THRESHOLDS: dict[str, Thresholds] = {
    "fp32": Thresholds(cosine=0.99999, batch_invariance=0.99999, top10_identical=1.0, recall_moved=0.5),
    "fp16": _HALF,
    "bf16": _HALF,
    "int8": _EIGHT_BITS,
    "int8-weights": _EIGHT_BITS,
    "int8-nncf": _EIGHT_BITS,
    "fp8": _EIGHT_BITS,
}
"""By precision."""

FIGURES = tuple(field.name for field in fields(Thresholds))
_POINTS = ("recall_moved", "recall10")


def thresholds_of(precision: str, table: dict[str, Thresholds] | None = None) -> Thresholds:
    """The thresholds of a precision.

    Raises:
        ExportError: the table (by default `THRESHOLDS`) has no such precision.
    """
    table = THRESHOLDS if table is None else table
    if precision not in table:
        raise ExportError(f"precision {precision!r} has no thresholds", f"known: {', '.join(table)}")
    return table[precision]


def parse_thresholds(changes: Iterable[str], table: dict[str, Thresholds] | None = None) -> dict[str, Thresholds]:
    """A copy of the table (by default `THRESHOLDS`) with changes of the form "precision.figure=value".

    Raises:
        ExportError: an unknown precision or figure, or a value that the figure cannot take.

    Example:
        >>> parse_thresholds(["int8.cosine=0.985"])["int8"].cosine
        0.985
    """
    adjusted = dict(THRESHOLDS if table is None else table)
    for change in changes:
        key, equals, text = change.partition("=")
        precision, dot, figure = key.strip().partition(".")
        if not equals or not dot:
            raise ExportError(f"threshold {change!r} is not understood", "write it as int8.cosine=0.985")
        if precision not in adjusted:
            raise ExportError(f"threshold {change!r}: no precision {precision!r}", _known(precision, adjusted))
        if figure not in FIGURES:
            raise ExportError(f"threshold {change!r}: no figure {figure!r}", _known(figure, FIGURES))
        adjusted[precision] = replace(adjusted[precision], **{figure: _value(change, figure, text)})
    return adjusted


def _value(change: str, figure: str, text: str) -> float:
    most = 100.0 if figure in _POINTS else 1.0
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= most:
        unit = "percentage points" if figure in _POINTS else "a share or a cosine"
        raise ExportError(f"threshold {change!r}: {text.strip()!r} is no value for it", f"{unit}, from 0 to {most:g}")
    return value


def _known(name: str, names: Iterable[str]) -> str:
    names = list(names)
    near = difflib.get_close_matches(name, names, n=1)
    return (f"did you mean {near[0]}? " if near else "") + f"known: {', '.join(names)}"
