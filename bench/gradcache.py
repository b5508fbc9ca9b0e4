"""Peak memory and time of a training step, plain and with GradCache, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version

import pydantic
import torch

from eao.bench.docs import measured_on
from eao.bench.hardware import Hardware, describe_hardware
from eao.bench.latency import foreign_load, peak_memory
from eao.config import Config, LossConfig, ModelConfig
from eao.errors import EaoError
from eao.model import Batch, build_model
from eao.training.loss import CombinatorialLoss
from eao.training.step import OptimizerStep, seed_torch

WORDS, VIDEO_TOKENS, AUDIO_FRAMES = 20, 12, 768
"""Of a clip in pretraining: 8 seconds."""
WEIGHTS = {"text_video": 1.0} | dict.fromkeys(
    ("text_audio", "video_audio", "text_videoaudio", "video_textaudio", "audio_textvideo"), 0.1
)


class Job(pydantic.BaseModel):
    """What one process measures.

    Attributes:
        model: its size.
        clips: of the batch.
        chunk: clips that go through the model at once; None = the plain step.
        steps: how often; the fastest counts.
    """

    model: ModelConfig
    clips: int
    chunk: int | None
    steps: int


class Measurement(pydantic.BaseModel):
    """What a process measured.

    Attributes:
        resting_bytes: of the process with model and batch, before the first step.
        peak_bytes: the most while it made its steps.
        seconds: of the fastest step.
        loss: of the batch.
        norms: of each parameter's gradient.
        projections: of each parameter's gradient on a random direction.
    """

    resting_bytes: int
    peak_bytes: int
    seconds: float
    loss: float
    norms: list[float]
    projections: list[float]


class Row(pydantic.BaseModel):
    """A batch in one way.

    Attributes:
        activation_bytes: by how much the peak lay above model, batch and gradients.
        gradient_error: how far the gradient lies from the plain one's, relative, by random projections.
    """

    clips: int
    chunk: int | None
    peak_bytes: int
    activation_bytes: int
    seconds: float
    loss_error: float
    gradient_error: float


class GradCacheReport(pydantic.BaseModel):
    """The measurement and its conditions."""

    hardware: Hardware
    versions: dict[str, str]
    threads: int
    parameters: int
    foreign_cores: float | None
    rows: list[Row]

    def to_markdown(self) -> str:
        lines = [
            f"A training step at the published widths ({self.parameters / 1e6:.0f} million parameters, random "
            f"weights), clips of 8 s with {WORDS} words as in pretraining, all six terms of the loss, float32 on the "
            "CPU, BatchNorm in eval mode so that the gradients can be compared, without the optimizer's state. Each "
            "row is a process of its own; `activations` is its peak less what model, batch and gradients take. The "
            "last two columns compare with the plain step of the same batch.",
            "",
            "| clips | chunk | peak GB | activations GB | s a step | loss differs by | gradient differs by |",
            "|---:|---:|---:|---:|---:|---:|---:|",
        ]
        for r in self.rows:
            errors = "| |" if r.chunk is None else f"{r.loss_error:.0e} | {r.gradient_error:.0e} |"
            lines.append(
                f"| {r.clips} | {r.chunk or 'plain'} | {r.peak_bytes / 1e9:.2f} | {r.activation_bytes / 1e9:.2f} | "
                f"{r.seconds:.1f} | {errors}"
            )
        if self.foreign_cores is not None:
            lines += ["", f"Other processes kept {self.foreign_cores:.2f} cores busy meanwhile."]
        return "\n".join([*lines, "", measured_on(self.hardware, self.versions, self.threads)])


def run(
    config: ModelConfig | None = None, clips: Sequence[int] = (64, 256), chunk: int = 32, steps: int = 2
) -> GradCacheReport:
    """Measure. At the published widths it takes twenty minutes on two idle cores, and 13 GB.

    Args:
        config: the model; the published one by default.
        clips: batch sizes.
        chunk: clips that go through the model at once with GradCache.
        steps: of each measurement; the fastest counts.
    """
    hardware, model = describe_hardware(), config or ModelConfig()
    with torch.device("meta"):
        parameters = sum(p.numel() for p in build_model(model).parameters())
    rows = []
    with foreign_load() as others:
        for size in clips:
            plain, cached = (_in_process(Job(model=model, clips=size, chunk=c, steps=steps)) for c in (None, chunk))
            rows += [_row(size, None, plain, plain, parameters), _row(size, chunk, cached, plain, parameters)]
    return GradCacheReport(
        hardware=hardware,
        versions={"torch": version("torch")},
        threads=torch.get_num_threads(),
        parameters=parameters,
        foreign_cores=others.cores,
        rows=rows,
    )


def measure(job: Job) -> Measurement:
    """Measure in this process, whose earlier peak would count."""
    trainer = {"eval_mode": True, "gradcache_chunk": job.chunk}
    config = Config.model_validate({"model": job.model, "loss": LossConfig(weights=WEIGHTS), "trainer": trainer})
    seed_torch(0)
    model = build_model(config.model).eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    step = OptimizerStep(model, CombinatorialLoss(config.loss), optimizer, config)
    batch, seconds = pretraining_batch(config.model, job.clips), []
    with peak_memory() as memory:
        for _ in range(job.steps):
            start = time.perf_counter()
            loss, _ = step(batch, 0).read()
            seconds.append(time.perf_counter() - start)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    random = torch.Generator().manual_seed(1)
    return Measurement(
        resting_bytes=memory.before,
        peak_bytes=memory.peak,
        seconds=min(seconds),
        loss=loss,
        norms=[float(g.norm()) for g in gradients],
        projections=[float((g * torch.randn(g.shape, generator=random)).sum()) for g in gradients],
    )


def pretraining_batch(config: ModelConfig, clips: int) -> Batch:
    """Random clips of 8 seconds with sound all along, and between 5 and 20 words."""
    random = torch.Generator().manual_seed(0)
    words = torch.randint(5, WORDS + 1, (clips, 1), generator=random)
    return Batch(
        text=torch.randn(clips, WORDS, config.text_dim, generator=random),
        text_mask=torch.arange(WORDS) < words,
        video=torch.randn(clips, VIDEO_TOKENS, config.video_dim, generator=random) * config.video_dim**-0.5,
        video_mask=torch.ones(clips, VIDEO_TOKENS, dtype=torch.bool),
        audio=10 * torch.randn(clips, 40, AUDIO_FRAMES, generator=random) - 40,
        audio_mask=torch.ones(clips, AUDIO_FRAMES, dtype=torch.bool),
        audio_frames=torch.full((clips,), AUDIO_FRAMES),
        ids=[str(i) for i in range(clips)],
    )


def _in_process(job: Job) -> Measurement:
    command = [sys.executable, "-m", __name__, job.model_dump_json()]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        # A process that the system ends for its memory says nothing.
        told = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise EaoError(f"a step of {job.clips} clips failed: {told[0]}", "out of memory? try fewer clips")
    return Measurement.model_validate_json(done.stdout)


def _row(clips: int, chunk: int | None, measured: Measurement, plain: Measurement, parameters: int) -> Row:
    differences = [a - b for a, b in zip(measured.projections, plain.projections, strict=True)]
    error = sum(d * d for d in differences) / sum(n * n for n in plain.norms)
    return Row(
        clips=clips,
        chunk=chunk,
        peak_bytes=measured.peak_bytes,
        activation_bytes=max(measured.peak_bytes - measured.resting_bytes - 4 * parameters, 0),
        seconds=measured.seconds,
        loss_error=abs(measured.loss / plain.loss - 1),
        gradient_error=error**0.5,
    )


if __name__ == "__main__":
    print(json.dumps(measure(Job.model_validate_json(sys.argv[1])).model_dump()))
