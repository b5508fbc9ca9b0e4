"""Which nodes lose most in 8 bits, and leaving those in higher precision until a check passes."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
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
) -> tuple[str, ...]:
    """The fewest of the worst nodes that have to stay in higher precision for a check to pass.

    They are found by halving, as if more of them never did harm: a graph takes minutes to check at the published size.

    Args:
        quantize: see `find_sensitive`.
        passes: the check.
        ranking: asked for only when the check fails at first, for example `lambda: find_sensitive(...)`.
        kept: nodes that are in higher precision in any case.

    Returns:
        the nodes that stay in higher precision; the graph that keeps them has passed.

    Raises:
        ExportError: the check fails with every node in higher precision.
    """
    if passes(quantize(kept)):
        return tuple(kept)
    worst = [entry for entry in ranking() if entry.node not in kept]
    names = [*kept, *(entry.node for entry in worst)]
    fails, holds = len(kept), len(names)
    if not passes(quantize(names)):
        raise ExportError(
            "the check fails though no node is quantised", "the fault lies elsewhere: look at the parity of fp32"
        )
    while holds - fails > 1:
        middle = (fails + holds) // 2
        if passes(quantize(names[:middle])):
            holds = middle
        else:
            fails = middle
    for entry in worst[: holds - len(kept)]:
        log.info("%s stays in higher precision: it adds %.2g to the error", entry.node, entry.error)
    return tuple(names[:holds])


def embedding_error(
    model: onnx.ModelProto, feeds: Feeds, expected: Sequence[NDArray], threads: int | None = None
) -> float:
    """The mean of 1 - cosine between what a graph gives and what it should give."""
    found = run_graph(model, feeds, threads)
    cosines = np.concatenate([(a * b).sum(1) for a, b in zip(found, expected, strict=True)])  # unit norm: (B,)
    return float(1 - cosines.mean(dtype=np.float64))


def run_graph(model: onnx.ModelProto, feeds: Feeds, threads: int | None = None) -> list[NDArray[np.float32]]:
    """The outputs of a graph in memory, of any size, for samples; its weights go to the disk for that."""
    return list(outputs(model, feeds, threads))


def outputs(model: onnx.ModelProto, feeds: Feeds, threads: int | None = None) -> Iterator[NDArray[np.float32]]:
    """As `run_graph`, one after the other: samples that nobody asks for are not run."""
    with tempfile.TemporaryDirectory() as folder:
        with WeightFile(Path(folder) / "weights.bin") as weights:
            path = weights.save(model, "graph.onnx")
        session = open_session(path, threads)
        for batch in feeds:
            yield session.run(None, dict(batch))[0]
