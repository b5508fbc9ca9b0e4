"""Engines at the paper's size, of random weights: exported, proven and measured beside PyTorch."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pydantic
import torch

from eao.bench.forward import msrvtt_batch
from eao.bench.matrix import Options as Measure
from eao.bench.matrix import bench_bundle
from eao.bench.report import BenchReport
from eao.config import Config, ModelConfig
from eao.export.build import Options, choose_requests
from eao.export.bundle import write_bundle
from eao.export.engines import OFFERED, engine_name
from eao.export.parity_report import BundleParity
from eao.model import Batch, EverythingAtOnce, build_model

ENGINES = ("onnx", "openvino")
PRECISIONS = ("fp32", "fp16", "int8", "int8-weights", "int8-nncf")
CALIBRATION_BATCHES, CLIPS = 2, 16
_NEEDS = {"openvino": "openvino", "int8-weights": "nncf", "int8-nncf": "nncf"}


class PublishedReport(pydantic.BaseModel):
    """Speed and parity, for `docs/performance.md` and `docs/parity.md`."""

    bench: BenchReport
    parity: BundleParity

    def to_markdown(self) -> str:
        """The tables of the measurement."""
        return (
            "The published size (width 4096, one block, DAVEnet v2; random weights), one clip a call, with 20 words, "
            "48 video tokens and about 10 s of sound, none of it padding. Ranges of int8 come from random clips with "
            f"lengths as in MSR-VTT. {self.bench.to_markdown()}"
        )


def run(
    config: ModelConfig | None = None,
    encoders: str | Sequence[str] = "all",
    engines: Sequence[str] = ENGINES,
    precisions: Sequence[str] = PRECISIONS,
    seconds: float = 4.0,
) -> PublishedReport:
    """Export and measure. At the published size it takes about an hour on two cores, 16 GB, and 20 GB of disk.

    Args:
        config: the model; the published one by default.
        encoders: "all", or names.
        engines: those whose package is not installed are left out.
        precisions: likewise, and those that none of the engines takes.
        seconds: of each engine at each size.
    """
    torch.manual_seed(0)
    model = build_model(config or ModelConfig()).eval()
    assert isinstance(model, EverythingAtOnce)
    named = [engine_name(name) for name in engines if _installed(engine_name(name))]
    taken = [p for p in precisions if _installed(p) and any(p in OFFERED[name] for name in named)]
    requests = choose_requests(named, taken)
    with tempfile.TemporaryDirectory(prefix="eao-published-") as folder:
        written = write_bundle(
            model,
            Path(folder) / "bundle",
            Config(model=model.config),
            encoders,
            requests,
            Options(),
            calibration=_clips(model),
        )
        report = bench_bundle(model, written.path, options=Measure(batches=(1,), seconds=seconds))
    return PublishedReport(bench=report.model_copy(update={"bundle": "published size"}), parity=written.parity)


def _clips(model: EverythingAtOnce) -> Iterator[Batch]:
    for i in range(CALIBRATION_BATCHES):
        yield msrvtt_batch(model.config, CLIPS, seed=i)


def _installed(name: str) -> bool:
    return name not in _NEEDS or importlib.util.find_spec(_NEEDS[name]) is not None
