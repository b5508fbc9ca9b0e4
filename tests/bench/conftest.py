"""One small bundle for all tests, since exporting takes seconds, and a clock that the machine does not disturb."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from eao.bench import arrivals, latency
from eao.config import Config, ModelConfig
from eao.export.build import Options, Request
from eao.export.bundle import write_bundle
from eao.export.encoders import Model
from eao.export.engines import unusable
from eao.model import build_model


class Clock:
    """A time that passes in its `sleep` alone, whatever else the machine does."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """What the measurements of calls read and wait by."""
    clock = Clock()
    for module in (arrivals, latency):
        monkeypatch.setattr(module, "time", clock)
    return clock


class Small(NamedTuple):
    """A model and its bundle, of two encoders."""

    model: Model
    config: Config
    path: Path
    ways: tuple[str, ...]


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    config = Config(
        model=ModelConfig(
            text_dim=6,
            video_dim=6,
            embedding_dim=4,
            fusion={"embed_dim": 8, "num_heads": 2, "depth": 0},
            audio={"version": "v1", "channels": (4, 4), "blocks": (1,)},
        )
    )
    torch.manual_seed(0)
    model = build_model(config.model).eval()
    requests = [Request("onnxruntime", "fp32"), Request("onnxruntime", "fp16"), Request("openvino", "fp32")]
    requests = [request for request in requests if unusable(request.engine) is None]
    out: Path = tmp_path_factory.mktemp("bench") / "bundle"
    write_bundle(model, out, config, "text,video", requests, Options(threads=1))
    return Small(model, config, out, tuple(f"{request.engine} {request.precision}" for request in requests))
