"""Which nodes lose most in 8 bits, and leaving those in higher precision until a check passes."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from eao.errors import ExportError
from eao.export.session import open_session
from eao.export.weights import WeightFile

# B batch, E embedding

log = logging.getLogger(__name__)

Feeds = Sequence[Mapping[str, NDArray]]
Quantize = Callable[[Collection[str]], onnx.ModelProto]
"""Gives a quantised graph in which the named nodes keep the higher precision."""


@dataclass(frozen=True)
class Sensitivity:
    """A node, and how much of the graph's error goes away when it alone keeps the higher precision.

    Errors are means of 1 - cosine between embeddings.
    """

    node: str
    error: float


@dataclass(frozen=True)
class Relaxed:
    """A graph that passed its check, and the nodes that had to stay in higher precision for that."""

    model: onnx.ModelProto
    kept: tuple[str, ...]


def find_sensitive(
    quantize: Quantize, nodes: Sequence[str], feeds: Feeds, expected: Sequence[NDArray], threads: int | None = None
) -> list[Sensitivity]:
    """Rank nodes by the error each adds, the worst first. One graph is built and run for each.

    Args:
        quantize: for example `Quantizer(model, ranges, "int8")` of `eao.export.quantize`.
        nodes: names, as of `eao.export.quantize.quantizable_nodes`.
        feeds: samples, by input name.
        expected: what the float32 graph gives for each of them, (B, E).
        threads: of the runs.
    """
    whole = embedding_error(quantize([]), feeds, expected, threads)
    gains = [whole - embedding_error(quantize([node]), feeds, expected, threads) for node in nodes]
    ranking = [Sensitivity(node, gain) for node, gain in zip(nodes, gains, strict=True)]
    return sorted(ranking, key=lambda entry: -entry.error)


def relax(
    quantize: Quantize,
    passes: Callable[[onnx.ModelProto], bool],
    ranking: Callable[[], Sequence[Sensitivity]],
    kept: Sequence[str] = (),
) -> Relaxed:
    """Leave the worst nodes in higher precision, one after the other, until a check passes.

    Args:
        quantize: see `find_sensitive`.
        passes: the check.
        ranking: asked for only when the check fails at first, for example `lambda: find_sensitive(...)`.
        kept: nodes that are in higher precision from the beginning.

    Raises:
        ExportError: the check fails with every node in higher precision.
    """
    kept = list(kept)
    model = quantize(kept)
    if passes(model):
        return Relaxed(model, tuple(kept))
    for entry in ranking():
        if entry.node in kept:
            continue
        kept.append(entry.node)
        model = quantize(kept)
        log.info("%s stays in higher precision: it adds %.2g to the error", entry.node, entry.error)
        if passes(model):
            return Relaxed(model, tuple(kept))
    raise ExportError(
        "the check fails though no node is quantised", "the fault lies elsewhere: look at the parity of fp32"
    )


def embedding_error(
    model: onnx.ModelProto, feeds: Feeds, expected: Sequence[NDArray], threads: int | None = None
) -> float:
    """The mean of 1 - cosine between what a graph gives and what it should give."""
    outputs = run_graph(model, feeds, threads)
    cosines = np.concatenate([(a * b).sum(1) for a, b in zip(outputs, expected, strict=True)])  # unit norm: (B,)
    return float(1 - cosines.mean(dtype=np.float64))


def run_graph(model: onnx.ModelProto, feeds: Feeds, threads: int | None = None) -> list[NDArray[np.float32]]:
    """The outputs of a graph in memory, of any size, for samples; its weights go to the disk for that."""
    with tempfile.TemporaryDirectory() as folder:
        with WeightFile(Path(folder) / "weights.bin") as weights:
            path = weights.save(model, "graph.onnx")
        session = open_session(path, threads)
        return [session.run(None, dict(batch))[0] for batch in feeds]
