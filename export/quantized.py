"""The 8-bit graph of an encoder: with as few layers in higher precision as its embeddings allow."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from eao.export.calibration import Method, Range, collect
from eao.export.engines import OnnxSession
from eao.export.precision import simulate
from eao.export.quantize import Quantizer, calibrated_tensors, quantizable_nodes
from eao.export.sensitivity import Sensitivity, find_sensitive, outputs, relax

LEVELS = (0.992, 0.995, 0.998, 0.999, 0.9998)
"""Least cosines of the judged samples, tried one after the other until parity holds. The first lies above the threshold
of parity, which is measured on other clips."""
JUDGES = 64
"""Samples that a graph is judged on."""
RANKERS = 8
"""Samples that layers are ranked on, those that 8 bits change most: a graph is built and run for each layer."""


class QuantizedGraph:
    """An encoder's graph in int8 or fp8, made anew with more layers in higher precision as often as it must be.

    Args:
        source: the float32 graph.
        samples: inputs by name, the most telling first.
        kind: "int8" or "fp8".
        method: how ranges are chosen.
        threads: of trial runs.
        reduce_range: int8 weights keep to half of their range; see `eao.export.quantize.Quantizer`.

    Attributes:
        kept: nodes that stay in higher precision.
        layers: how many nodes could be quantised, once the graph was built.
        level: which of `LEVELS` the graph holds.
    """

    def __init__(
        self,
        source: Path,
        samples: Sequence[Mapping[str, NDArray]],
        kind: str,
        method: Method = "minmax",
        threads: int | None = None,
        reduce_range: bool = False,
    ) -> None:
        self.source = source
        self.samples = samples
        self.kind = kind
        self.method = method
        self.threads = threads
        self.reduce_range = reduce_range
        self.kept: tuple[str, ...] = ()
        self.layers = 0
        self.level = 0
        self._ranges: dict[str, Range] | None = None
        self._ranking: list[Sensitivity] | None = None

    def tighten(self) -> bool:
        """Ask for the next level; False if this is the last."""
        if self.level + 1 == len(LEVELS):
            return False
        self.level += 1
        return True

    def build(self) -> onnx.ModelProto:
        """The graph at the level: layers that add most to the error stay in higher precision until it holds.

        Raises:
            ExportError: values that are not finite.
        """
        model = onnx.load(self.source)
        if self._ranges is None:
            self._ranges = collect(self.source, self.samples, calibrated_tensors(model), self.method, self.threads)
        quantizer = Quantizer(model, self._ranges, self.kind, self.reduce_range)
        nodes = quantizable_nodes(model, self.kind)
        self.layers = len(nodes)
        judges = self.samples[:JUDGES]
        session = OnnxSession(self.source, self.threads)
        expected = [session.run(sample) for sample in judges]

        def runnable(keep: Collection[str]) -> onnx.ModelProto:
            return simulate(quantizer(keep)) if self.kind == "fp8" else quantizer(keep)

        def passes(quantized: onnx.ModelProto) -> bool:
            # The first one below the level decides.
            found = zip(outputs(quantized, judges, self.threads), expected, strict=True)
            return all(float((a * b).sum(1).min()) >= LEVELS[self.level] for a, b in found)

        def ranking() -> list[Sensitivity]:
            if self._ranking is None:
                found = zip(outputs(runnable([]), judges, self.threads), expected, strict=True)
                worst = np.argsort([float((a * b).sum(1).min()) for a, b in found])[:RANKERS]
                feeds, targets = [judges[i] for i in worst], [expected[i] for i in worst]
                self._ranking = find_sensitive(runnable, nodes, feeds, targets, self.threads)
            return self._ranking

        self.kept = relax(runnable, passes, ranking, self.kept)
        return quantizer(self.kept)
