"""The packed model beside the published six passes at the paper's size: evaluation, training and fine-tuning steps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from typing import Any

import pydantic
import torch
from torch import Tensor
from torch.nn import functional as F

from eao.bench.docs import measured_on
from eao.bench.hardware import Hardware, describe_hardware
from eao.bench.latency import Comparison, Latency, compare, foreign_load
from eao.bench.naive import naive_forward
from eao.config import LossConfig, ModelConfig
from eao.model import MODALITIES, PAIRS, Batch, EverythingAtOnce, build_model
from eao.model.audio import set_memory_format
from eao.training.loss import CombinatorialLoss

CLIPS = 16
WORDS, VIDEO_TOKENS, AUDIO_FRAMES = 20, 48, 3072
ENCODERS = (*MODALITIES, *PAIRS)
WEIGHTS = dict.fromkeys(
    ("text_video", "text_audio", "video_audio", "text_videoaudio", "video_textaudio", "audio_textvideo"), 1.0
)

Forward = Callable[[EverythingAtOnce, Batch], dict[str, Tensor]]


class Row(pydantic.BaseModel):
    """One kind of work, done in several ways.

    Attributes:
        work: what is done.
        latencies: way -> times of a batch.
        speedups: way -> how much faster than the six passes.
        noise: way -> half the interquartile range of that ratio, over its median.
        deviation: the largest difference of an embedding from that of the six passes; None where weights change.
    """

    work: str
    latencies: dict[str, Latency]
    speedups: dict[str, float]
    noise: dict[str, float]
    deviation: float | None = None


class ForwardReport(pydantic.BaseModel):
    """The measurement and its conditions."""

    hardware: Hardware
    versions: dict[str, str]
    threads: int
    device: str
    clips: int
    foreign_cores: float | None
    rows: list[Row]

    def to_markdown(self) -> str:
        lines = [
            f"The published size (width 4096, one block, DAVEnet v2; random weights), {self.clips} clips a batch with "
            f"lengths as in MSR-VTT (about 9 words, 22 video tokens, 15 s of sound) padded to {WORDS} / {VIDEO_TOKENS} "
            f"/ {AUDIO_FRAMES}, the six embeddings of the loss, float32 on {self.device}. `six passes` computes every "
            "combination over padded tensors, as the published code does; `dense` is what engines are compiled from. "
            "Measured in turns in one process; ± is half the interquartile range of the ratio.",
            "",
            "| work | way | ms a batch | clips/s | speed-up | largest difference |",
            "|---|---|---:|---:|---:|---:|",
        ]
        for row in self.rows:
            for way, latency in row.latencies.items():
                deviation = "" if row.deviation is None or way == SIX_PASSES else f"{row.deviation:.1e}"
                lines.append(
                    f"| {row.work} | {way} | {latency.median_ms:,.0f} | {latency.throughput:.2f} | "
                    f"{row.speedups[way]:.2f}x ± {100 * row.noise[way]:.0f} % | {deviation} |"
                )
        if self.foreign_cores is not None:
            lines += ["", f"Other processes kept {self.foreign_cores:.2f} cores busy meanwhile."]
        return "\n".join([*lines, "", measured_on(self.hardware, self.versions, self.threads)])


SIX_PASSES, PACKED, DENSE = "six passes", "packed", "dense"


def run(config: ModelConfig | None = None, clips: int = CLIPS, seconds: float = 1.0, rounds: int = 3) -> ForwardReport:
    """Measure. At the published size it takes a quarter of an hour on two cores, and 16 GB.

    Args:
        config: the model; the published one by default.
        clips: of a batch.
        seconds: of each way in each kind of work.
        rounds: how often the ways take turns.
    """
    hardware, device = describe_hardware(), "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model = build_model(config or ModelConfig()).to(device)
    assert isinstance(model, EverythingAtOnce)
    batch = msrvtt_batch(model.config, clips).to(device)
    options: dict[str, Any] = {"warmup_seconds": 0.0, "max_seconds": seconds, "rounds": rounds, "items": clips}
    with foreign_load() as others:
        rows = [
            _evaluation(model, batch, options),
            _training(model.train(), batch, options, "training step"),
            _training(model.eval(), batch, options, "fine-tuning step, in eval mode"),
        ]
    return ForwardReport(
        hardware=hardware,
        versions={"torch": version("torch")},
        threads=torch.get_num_threads(),
        device=device,
        clips=clips,
        foreign_cores=others.cores,
        rows=rows,
    )


def msrvtt_batch(config: ModelConfig, clips: int) -> Batch:
    """Random clips with lengths like those of MSR-VTT: 10 to 30 s, most of them short."""
    random = torch.Generator().manual_seed(0)
    words = torch.randint(5, 14, (clips,), generator=random)
    seconds = 10 + 20 * torch.rand(clips, generator=random) ** 3
    rows, frames = (1.5 * seconds).long(), (100 * seconds).long()
    masks = [torch.arange(n) < length[:, None] for n, length in
             ((WORDS, words), (VIDEO_TOKENS, rows), (AUDIO_FRAMES, frames))]  # fmt: skip
    return Batch(
        text=torch.randn(clips, WORDS, config.text_dim, generator=random) * masks[0][..., None],
        text_mask=masks[0],
        video=F.normalize(torch.randn(clips, VIDEO_TOKENS, config.video_dim, generator=random), dim=-1),
        video_mask=masks[1],
        audio=(10 * torch.randn(clips, 40, AUDIO_FRAMES, generator=random) - 40) * masks[2][:, None],
        audio_mask=masks[2],
        audio_frames=frames,
    )


def _ways() -> dict[str, Forward]:
    return {
        SIX_PASSES: lambda model, batch: naive_forward(model, batch, ENCODERS),
        PACKED: lambda model, batch: model(batch, ENCODERS),
        DENSE: lambda model, batch: model.forward_dense(batch, ENCODERS),
    }


def _evaluation(model: EverythingAtOnce, batch: Batch, options: Mapping[str, Any]) -> Row:
    model = model.eval()
    # The published code leaves filters in torch's default format.
    published, davenet = copy.copy(model), copy.deepcopy(model.davenet)
    set_memory_format(davenet, torch.contiguous_format)
    published._modules = model._modules | {"davenet": davenet}
    functions = {
        way: _finished(partial(forward, published if way == SIX_PASSES else model, batch))
        for way, forward in _ways().items()
    }
    with torch.inference_mode():
        expected, actual = functions[SIX_PASSES](), functions[PACKED]()
        deviation = max(float((F.normalize(actual[e]) - F.normalize(expected[e])).abs().max()) for e in ENCODERS)
        return _row("evaluation", compare(functions, **options), deviation)


def _training(model: EverythingAtOnce, batch: Batch, options: Mapping[str, Any], work: str) -> Row:
    loss = CombinatorialLoss(LossConfig.model_validate({"weights": WEIGHTS}))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-6)

    def step(forward: Forward) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        value, _ = loss(forward(model, batch), model.nonempty(batch))
        value.backward()
        optimizer.step()
        return value

    functions = {way: _finished(partial(step, forward)) for way, forward in _ways().items() if way != DENSE}
    row = _row(work, compare(functions, **options))
    optimizer.zero_grad(set_to_none=True)
    return row


def _finished(function: Callable[[], Any]) -> Callable[[], Any]:
    """Waits for a GPU, if there is one."""

    def call() -> Any:
        result = function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return result

    return call


def _row(work: str, comparison: Comparison, deviation: float | None = None) -> Row:
    return Row(
        work=work,
        latencies=comparison.latencies,
        speedups=comparison.speedups,
        noise=comparison.noise,
        deviation=deviation,
    )
