from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from eao.bench.ceiling import Ceiling
from eao.bench.roofline import bound_ms, call_bytes, encoder_work, weight_bytes
from eao.config import ModelConfig
from eao.export.manifest import EngineEntry, FileEntry
from eao.export.weights import share, with_weights
from eao.model import build_model

CONFIG = ModelConfig(
    text_dim=6,
    video_dim=10,
    embedding_dim=4,
    fusion={"embed_dim": 8, "num_heads": 2, "depth": 1},
    audio={"version": "v1", "channels": (4, 4), "blocks": (1,)},
)


def graph(path: Path, rows: int, seed: int) -> Path:
    """A product with a weight of `rows` x 64, and one that every graph has."""
    random = np.random.default_rng(seed)
    own = numpy_helper.from_array(random.standard_normal((rows, 64), dtype=np.float32), "own")
    common = numpy_helper.from_array(np.ones((64, 64), dtype=np.float32), "common")
    nodes = [helper.make_node("MatMul", ["x", "own"], ["y"]), helper.make_node("MatMul", ["y", "common"], ["z"])]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, rows])
    z = helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 64])
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [x], [z], [own, common])), path)
    return path


def entry(path: Path) -> EngineEntry:
    files = tuple(FileEntry.of(file) for file in with_weights(path))
    return EngineEntry(encoder="text", engine="onnxruntime", precision="fp32", files=files, opset=18)


def test_arithmetic_grows_with_the_batch_and_is_that_of_the_products() -> None:
    one, three = (encoder_work(CONFIG, "text", {"batch": b, "text_tokens": 5}) for b in (1, 3))
    assert three.gflop == pytest.approx(3 * one.gflop)
    weights = sum(p.numel() for n, p in build_model(CONFIG).named_parameters() if n.startswith("text_token_proj"))
    # Each of the five tokens meets every weight of its projection and of the fusion in at least one product.
    assert one.gflop > 2 * 5 * (weights - 16) / 1e9


def test_only_the_weights_of_the_encoder_count() -> None:
    named = dict(build_model(CONFIG).named_parameters())
    text = encoder_work(CONFIG, "text", {"batch": 1, "text_tokens": 5}).weights
    # The norm after the last block is in the published checkpoints, but takes part in nothing.
    own = sum(p.nbytes for n, p in named.items() if n.startswith(("text", "fusion")) and "fusion.norm" not in n)
    assert text == own
    assert text < sum(p.nbytes for p in named.values())


def test_of_a_shared_file_an_engine_reads_its_own_weights(tmp_path: Path) -> None:
    small, large = graph(tmp_path / "a.onnx", 8, 0), graph(tmp_path / "b.onnx", 80, 1)
    embedded = weight_bytes(tmp_path, entry(small))
    assert embedded == small.stat().st_size
    shared = share(tmp_path, ["a.onnx", "b.onnx"])
    for path, rows in ((small, 8), (large, 80)):
        assert weight_bytes(tmp_path, entry(path)) == path.stat().st_size + 4 * 64 * (rows + 64)
        assert weight_bytes(tmp_path, entry(path)) < shared.stat().st_size + path.stat().st_size


def test_the_traffic_of_a_call_is_weights_inputs_and_output() -> None:
    assert call_bytes(1000, {"text": np.zeros((2, 3, 5), np.float32), "mask": np.ones((2, 3), bool)}, 4) == (
        1000 + 120 + 6 + 32
    )


def test_the_bound_is_set_by_whichever_takes_longer() -> None:
    ceiling = Ceiling(gflops=100, gbs=10)
    assert bound_ms(ceiling, gflop=1, traffic=50_000_000) == (10, "arithmetic")
    assert bound_ms(ceiling, gflop=1, traffic=200_000_000) == (20, "memory")
