"""Latency of every encoder, by PyTorch and by its engines, at the size of the demo model. Run: pytest bench/suites"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from eao.bench.feeds import random_feeds
from eao.bench.matrix import torch_encoder
from eao.config import Config, ModelConfig
from eao.export.build import Request
from eao.export.bundle import write_bundle
from eao.export.encoders import Model
from eao.export.engines import unusable
from eao.export.runtime import Bundle
from eao.model import ENCODERS, build_model

SIZES = {"text_tokens": 20, "video_tokens": 16, "spectrogram_frames": 512}
# Those that need no real clips to choose ranges from.
REQUESTS = [
    Request(engine, precision)
    for engine in ("onnxruntime", "openvino")
    for precision in ("fp32", "fp16")
    if unusable(engine) is None
]
WAYS = ["torch", *(f"{request.engine} {request.precision}" for request in REQUESTS)]


@pytest.fixture(scope="module")
def model_and_bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Path]:
    torch.manual_seed(0)
    config = Config(
        model=ModelConfig(
            text_dim=384,
            video_dim=1378,
            embedding_dim=512,
            fusion={"embed_dim": 256, "num_heads": 8},
            audio={"version": "v2", "channels": (32, 32, 64, 64, 128, 128, 256)},
        )
    )
    model = build_model(config.model).eval()
    out: Path = tmp_path_factory.mktemp("bench") / "bundle"
    write_bundle(model, out, config, requests=REQUESTS)
    return model, out


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_encoder_latency(
    benchmark: Callable, model_and_bundle: tuple[Model, Path], encoder: str, way: str, batch: int
) -> None:
    model, path = model_and_bundle
    engine, _, precision = way.partition(" ")
    threads = torch.get_num_threads()
    bundle = Bundle(path, threads, engine=engine, precision=precision) if precision else Bundle(path, threads)
    feeds = random_feeds(bundle.manifest.specs(encoder), {**SIZES, "batch": batch})
    call = partial(bundle.run, encoder, feeds) if precision else torch_encoder(model, encoder, feeds)
    with torch.inference_mode():
        output = benchmark(call)
    assert output.shape == (batch, 512)
