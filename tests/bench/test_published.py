"""The measurement at the paper's size, on a small model."""

from eao.bench.published import run
from eao.config import ModelConfig

SMALL = ModelConfig(
    text_dim=8,
    video_dim=8,
    embedding_dim=32,
    fusion={"embed_dim": 32, "num_heads": 2},
    audio={"channels": (4, 4, 4, 4, 4, 4, 4)},
)


def test_engines_are_proven_and_measured_beside_pytorch():
    report = run(SMALL, ["text", "video"], ["onnx"], ["fp32", "int8"], seconds=0.05)
    ways = ["torch", "onnxruntime fp32", "onnxruntime int8"]
    assert [list(entry.results) for entry in report.bench.entries] == [ways, ways]
    assert [one.name for one in report.parity.reports] == ways[1:] and report.parity.passed
    assert "| text | 1 | text tokens 20 | onnxruntime int8 |" in report.to_markdown()
