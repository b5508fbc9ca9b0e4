"""Latency of every encoder, by PyTorch and by its engine, at the size of the demo model. Run: pytest bench/suites"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from eao.bench.report import random_feeds
from eao.config import Config, ModelConfig
from eao.export.bundle import write_bundle
from eao.export.encoders import EncoderModule, Model
from eao.export.runtime import Bundle
from eao.model import ENCODERS, build_model

SIZES = {"text_tokens": 20, "video_tokens": 16, "spectrogram_frames": 512}


@pytest.fixture(scope="module")
def model_and_bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Bundle]:
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
    write_bundle(model, out, config)
    return model, Bundle(out, threads=torch.get_num_threads())


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_encoder_latency(
    benchmark: Callable, model_and_bundle: tuple[Model, Bundle], encoder: str, runtime: str, batch: int
) -> None:
    model, bundle = model_and_bundle
    feeds = random_feeds(bundle.manifest.specs(encoder), {**SIZES, "batch": batch})
    if runtime == "torch":
        module = EncoderModule(model, encoder)
        tensors = tuple(torch.from_numpy(array) for array in feeds.values())
        with torch.inference_mode():
            output = benchmark(module, *tensors)
    else:
        output = benchmark(bundle.run, encoder, feeds)
    assert output.shape == (batch, 512)
