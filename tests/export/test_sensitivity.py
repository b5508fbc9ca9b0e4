from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import onnx
import pytest

from eao.errors import ExportError
from eao.export.calibration import Range, collect
from eao.export.quantize import Quantizer, calibrated_tensors, quantizable_nodes
from eao.export.sensitivity import Sensitivity, embedding_error, find_sensitive, relax, run_graph

Quantize = Callable[[Collection[str]], onnx.ModelProto]


@pytest.fixture(scope="module")
def feeds() -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(0)
    return [
        {"text": random.standard_normal((4, 5, 12), np.float32), "text_mask": np.ones((4, 5), bool)} for _ in range(3)
    ]


@pytest.fixture(scope="module")
def source(make_graph: Callable[[str, str], Path]) -> Path:
    return make_graph("deep", "text")


@pytest.fixture(scope="module")
def spoilt(source: Path, feeds: list[dict[str, np.ndarray]]) -> tuple[Quantize, str]:
    """Quantisation with a scale that is 300 times too large for what one node reads, and the name of that node."""
    model = onnx.load(source)
    ranges = collect(source, feeds, calibrated_tensors(model), threads=1)
    (victim,) = [n for n in model.graph.node if n.op_type == "MatMul" and n.input[0] == "text"]
    ranges["text"] = Range(-300 * ranges["text"].bound, 300 * ranges["text"].bound)
    return Quantizer(model, ranges, "int8"), victim.name


def test_the_node_that_was_spoilt_ranks_first(
    source: Path, feeds: list[dict[str, np.ndarray]], spoilt: tuple[Quantize, str]
) -> None:
    quantize, victim = spoilt
    model = onnx.load(source)
    ranking = find_sensitive(quantize, quantizable_nodes(model), feeds, run_graph(model, feeds, 1), threads=1)
    assert ranking[0].node == victim
    assert ranking[0].error > 10 * abs(ranking[1].error)
    assert {entry.node for entry in ranking} == set(quantizable_nodes(model))


def test_relaxing_leaves_the_worst_and_says_so(
    source: Path,
    feeds: list[dict[str, np.ndarray]],
    spoilt: tuple[Quantize, str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    quantize, victim = spoilt
    expected = run_graph(onnx.load(source), feeds, 1)
    others = [n for n in quantizable_nodes(onnx.load(source)) if n != victim]
    ranking = [Sensitivity(victim, 0.5), *(Sensitivity(n, 0.0) for n in others)]
    with caplog.at_level(logging.INFO, logger="eao.export.sensitivity"):
        kept = relax(quantize, lambda g: embedding_error(g, feeds, expected, 1) < 0.01, lambda: ranking)
    assert kept == (victim,)
    assert f"{victim} stays in higher precision" in caplog.text


def test_a_graph_that_passes_is_not_ranked(spoilt: tuple[Quantize, str]) -> None:
    def ranking() -> list[Sensitivity]:
        raise AssertionError("asked for a ranking")

    assert relax(spoilt[0], lambda graph: True, ranking) == ()


def test_a_check_that_never_passes_is_an_error(spoilt: tuple[Quantize, str]) -> None:
    with pytest.raises(ExportError, match="though no node is quantised"):
        relax(spoilt[0], lambda graph: False, lambda: [Sensitivity(spoilt[1], 1.0)])


@pytest.mark.parametrize("needed", [1, 5, 8])
@pytest.mark.parametrize("kept", [(), ("n1",)])
def test_the_fewest_nodes_are_found_by_halving(needed: int, kept: tuple[str, ...]) -> None:
    checked: list[Collection[str]] = []
    ranking = [Sensitivity(f"n{i}", 1 / (i + 1)) for i in range(8)]
    wanted = {entry.node for entry in ranking[:needed]}

    def passes(graph: Collection[str]) -> bool:
        checked.append(graph)
        return wanted <= set(graph)

    found = relax(lambda keep: keep, passes, lambda: ranking, kept)  # type: ignore[arg-type, return-value]
    assert set(found) == wanted | set(kept)
    assert len(checked) <= 2 + 3
