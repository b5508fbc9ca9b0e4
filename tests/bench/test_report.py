from __future__ import annotations

from pathlib import Path

import pytest

from eao.bench.hardware import Hardware
from eao.bench.latency import Latency
from eao.bench.report import BenchReport, Entry, bench_bundle
from eao.config import Config, ModelConfig
from eao.errors import ConfigError
from eao.export.bundle import write_bundle
from eao.export.encoders import Model
from eao.model import build_model


@pytest.fixture(scope="module")
def model_and_bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Path]:
    config = Config(
        model=ModelConfig(
            text_dim=6,
            video_dim=6,
            embedding_dim=4,
            fusion={"embed_dim": 8, "num_heads": 2, "depth": 0},
            audio={"version": "v1", "channels": (4, 4), "blocks": (1,)},
        )
    )
    model = build_model(config.model).eval()
    return model, write_bundle(model, tmp_path_factory.mktemp("b") / "bundle", config, "text", threads=1).path


def entry(speedup: float, foreign: float | None, noise: float = 0.05) -> Entry:
    latency = Latency.of([0.001, 0.002])
    sizes = {"batch": 8, "text_tokens": 20}
    return Entry(
        encoder="text",
        sizes=sizes,
        latencies={"torch": latency, "onnxruntime": latency},
        speedup=speedup,
        noise=noise,
        foreign_cores=foreign,
    )


def report(*entries: Entry) -> BenchReport:
    hardware = Hardware(cpu="C", cores=2, memory_gb=8, system="S", load_average=0)
    return BenchReport(bundle="b", threads=2, hardware=hardware, versions={}, entries=list(entries), memory=[])


def test_a_bundle_is_measured_beside_its_model(model_and_bundle: tuple[Model, Path]) -> None:
    model, bundle = model_and_bundle
    found = bench_bundle(model, bundle, batches=(1, 3), text_tokens=5, seconds=0.05, threads=1)
    assert [e.sizes for e in found.entries] == [{"batch": 1, "text_tokens": 5}, {"batch": 3, "text_tokens": 5}]
    assert all(set(e.latencies) == {"torch", "onnxruntime"} and e.speedup is not None for e in found.entries)
    assert found.hardware.cores >= 1
    assert "onnxruntime" in found.versions
    assert found.memory[0].file_mb > 0
    assert BenchReport.model_validate_json(found.model_dump_json()) == found


def test_engines_are_measured_without_a_model(model_and_bundle: tuple[Model, Path]) -> None:
    found = bench_bundle(None, model_and_bundle[1], batches=(1,), seconds=0.02, threads=1)
    assert found.entries[0].speedup is None
    assert set(found.entries[0].latencies) == {"onnxruntime"}


@pytest.mark.parametrize("kwargs", [{"encoders": "smell"}, {"batches": (0,)}, {"video_tokens": 0}])
def test_wrong_requests_are_refused(model_and_bundle: tuple[Model, Path], kwargs: dict) -> None:
    with pytest.raises(ConfigError):
        bench_bundle(None, model_and_bundle[1], **kwargs)


def test_a_speed_up_measured_on_a_busy_machine_is_not_shown() -> None:
    text = report(entry(182.0, foreign=0.9), entry(1.5, foreign=0.0)).to_markdown()
    assert "182" not in text
    assert "1.50x" in text
    assert "0.9 of 2 cores busy during 1 of 2 measurements" in text


def test_only_a_slowdown_beyond_the_noise_of_a_quiet_machine_is_told() -> None:
    slow, noisy, busy = entry(0.5, 0.0), entry(0.97, 0.0), entry(0.5, 0.9)
    assert report(slow, noisy, busy).slower == [slow]
    assert "slower than PyTorch" in report(slow).to_markdown()
