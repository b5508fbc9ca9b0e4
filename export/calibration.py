"""Ranges of a graph's tensors on real samples: what an 8-bit number has to span."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import onnx
from numpy.typing import NDArray

from eao.errors import ExportError
from eao.export.session import open_session

Method = Literal["minmax", "percentile", "entropy"]
METHODS: tuple[Method, ...] = get_args(Method)
PERCENTILE = 99.99
"""Of the absolute values, which method "percentile" spans."""

BINS = 2048
LEVELS = 128
"""Magnitudes that a signed 8-bit number tells apart."""


@dataclass(frozen=True)
class Range:
    """What a tensor's values span, after the method has cut off outliers."""

    lowest: float
    highest: float

    @property
    def bound(self) -> float:
        """The largest magnitude: the end of a symmetric scale."""
        return max(abs(self.lowest), abs(self.highest))


def collect(
    path: str | Path,
    feeds: Iterable[Mapping[str, NDArray]],
    tensors: Collection[str],
    method: Method = "minmax",
    threads: int | None = None,
) -> dict[str, Range]:
    """Run a float32 graph on samples and find the ranges of tensors in it.

    Memory does not grow with the samples: histograms are kept, not values.

    Args:
        path: the graph; the folder must be writable, since weights beside a graph are found from its place alone.
        feeds: inputs by name, a batch at a time.
        tensors: names of inputs or intermediate float tensors, as `eao.export.quantize.calibrated_tensors` gives.
        method: "minmax" spans everything seen; "percentile" 99.99 % of the magnitudes; "entropy" what loses the least
            information (KL divergence) when rounded to 8 bits, as TensorRT's calibrator does.
        threads: of the runs.

    Raises:
        ExportError: an unknown method, no samples, or a tensor with values that are not finite.
    """
    if method not in METHODS:
        raise ExportError(f"unknown calibration method {method!r}", f"choose one of {', '.join(METHODS)}")
    histograms = {name: Histogram() for name in tensors}
    for values in intermediate(path, feeds, tensors, threads):
        for name, array in values.items():
            if not np.isfinite(array).all():
                raise ExportError(f"calibration gives values that are not finite in {name}", "check the samples")
            histograms[name].add(array)
    if tensors and not any(h.total for h in histograms.values()):
        raise ExportError("there are no samples to calibrate with", "give a data set")
    return {name: histogram.range(method) for name, histogram in histograms.items()}


def intermediate(
    path: str | Path, feeds: Iterable[Mapping[str, NDArray]], tensors: Collection[str], threads: int | None = None
) -> Iterable[dict[str, NDArray]]:
    """The values of tensors within a graph, for each batch of inputs."""
    path = Path(path)
    model = onnx.load(path, load_external_data=False)
    inputs = {value.name for value in model.graph.input} & set(tensors)
    inner = [name for name in tensors if name not in inputs]
    given = {value.name for value in model.graph.output}
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in inner if name not in given
    )
    # Beside the graph, since weights outside it are found by a path relative to it.
    opened = path.with_name(f".{path.stem[:40]}.{uuid.uuid4().hex[:8]}.tmp.onnx")
    try:
        onnx.save(model, opened)
        session = open_session(opened, threads)
    finally:
        opened.unlink(missing_ok=True)
    for batch in feeds:
        found = dict(zip(inner, session.run(inner, dict(batch)), strict=True)) if inner else {}
        yield found | {name: batch[name] for name in inputs}


class Histogram:
    """Magnitudes in equal bins from zero up. When a value lies beyond the last, bins merge in pairs: nothing is lost.

    Attributes:
        counts: (BINS,) int64.
        top: the upper end of the last bin; 0 until a value other than zero was seen.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(BINS, np.int64)
        self.top = 0.0
        self.total = 0
        self.lowest, self.highest = np.inf, -np.inf

    def add(self, values: NDArray[Any]) -> None:
        """Count the values of an array of any shape."""
        if not values.size:
            return
        magnitudes = np.abs(values.ravel())
        self.total += magnitudes.size
        self.lowest = min(self.lowest, float(values.min()))
        self.highest = max(self.highest, float(values.max()))
        largest = float(magnitudes.max())
        if self.top == 0:
            self.top = largest
            self.counts[0] = self.total - magnitudes.size  # zeros alone so far
        if self.top == 0:
            self.counts[0] = self.total
            return
        while largest > self.top:
            self.counts = np.concatenate([self.counts.reshape(-1, 2).sum(1), np.zeros(BINS // 2, np.int64)])
            self.top *= 2
        # In double precision, since bins may be narrower than the smallest float32.
        self.counts += np.histogram(magnitudes.astype(np.float64), BINS, (0, self.top))[0]

    def range(self, method: Method) -> Range:
        """What a method makes of the counts."""
        if not self.total:
            return Range(0.0, 0.0)
        bound = {"minmax": lambda: np.inf, "percentile": self._percentile, "entropy": self._entropy}[method]()
        return Range(max(self.lowest, -bound), min(self.highest, bound))

    def _percentile(self) -> float:
        share = np.cumsum(self.counts) / self.total
        return self.top * (int(np.searchsorted(share, PERCENTILE / 100)) + 1) / BINS

    def _entropy(self) -> float:
        """The end of the scale whose 128 levels differ least from the counts (Migacz, "8-bit inference with TensorRT").

        Counts beyond a candidate go into its last bin; zeros, which every scale holds exactly, are left out.
        """
        counts = self.counts.astype(np.float64)
        counts[0] = 0
        last = int(np.flatnonzero(counts)[-1]) + 1 if counts.any() else 0
        if last <= LEVELS:
            return np.inf
        cuts = np.arange(LEVELS, last + 1, max(1, BINS // 512))
        divergences = [_divergence(counts, int(cut)) for cut in cuts]
        return self.top * float(cuts[int(np.argmin(divergences))]) / BINS


def _divergence(counts: NDArray[np.float64], cut: int) -> float:
    """KL divergence of the first `cut` bins, clipped, from what 128 levels tell of them."""
    exact = counts[:cut].copy()
    held = exact > 0
    exact[-1] += counts[cut:].sum()
    level = np.arange(cut) * LEVELS // cut
    sums = np.bincount(level, counts[:cut], LEVELS)
    bins = np.bincount(level, held, LEVELS)
    rounded = np.where(held, (sums / np.maximum(bins, 1))[level], 0)
    p, q = exact / exact.sum(), rounded / max(rounded.sum(), 1e-12)
    seen = p > 0
    return float((p[seen] * np.log(p[seen] / np.maximum(q[seen], 1e-12))).sum())
