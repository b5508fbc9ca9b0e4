"""The packed model beside the published six passes at the paper's size: evaluation, training and fine-tuning steps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from eao.bench.naive import naive_forward
from eao.bench.ways import Row, WaysReport, measure_ways
from eao.config import LossConfig, ModelConfig, OptimizerConfig
from eao.model import MODALITIES, PAIRS, Batch, EverythingAtOnce, build_model
from eao.model.audio import set_memory_format
from eao.training.loss import CombinatorialLoss
from eao.training.optimizer import build_optimizer

CLIPS = 16
WORDS, VIDEO_TOKENS, AUDIO_FRAMES = 20, 48, 3072
ENCODERS = (*MODALITIES, *PAIRS)
WEIGHTS = dict.fromkeys(
    ("text_video", "text_audio", "video_audio", "text_videoaudio", "video_textaudio", "audio_textvideo"), 1.0
)

Forward = Callable[[EverythingAtOnce, Batch], dict[str, Tensor]]


class ForwardReport(WaysReport):
    """The measurement and its conditions.

    Attributes:
        clips: of a batch.
        norm_share: BatchNorm's share of the time of one packed evaluation.
    """

    clips: int
    norm_share: float = 0

    def to_markdown(self) -> str:
        return self.page(
            f"The published size (width 4096, one block, DAVEnet v2; random weights), {self.clips} clips a batch with "
            f"lengths as in MSR-VTT (about 9 words, 22 video tokens, 15 s of sound) padded to {WORDS} / {VIDEO_TOKENS} "
            f"/ {AUDIO_FRAMES}, the six embeddings of the loss, float32 on {self.device}. `six passes` computes every "
            "combination over padded tensors, as the published code does; `dense` is what engines are compiled from. "
            "In the steps its filters lie channels-last, which is faster here than the published layout. GFLOP/s count "
            "the arithmetic that each way really does, for the packed one without attention and, in the steps, without "
            f"the audio network's gradients of filters; GB/s count inputs and weights once for an evaluation, for a "
            f"step also what gradients and optimizer read and write; this machine reaches {self.ceiling}.",
            f"BatchNorm takes {100 * self.norm_share:.1f} % of a packed evaluation. That is all that folding it into "
            "the convolutions could save, so PyTorch's model leaves it as trained; in the graphs of engines it is "
            "folded.",
        )


_STEP_PASSES = 10
"""Over the weights in a step: read forward and backward; gradient, weight and Adam's two moments read and written."""

SIX_PASSES, COMPILED, PACKED, DENSE = "six passes", "six passes, torch.compile", "packed", "dense"


def run(
    config: ModelConfig | None = None,
    clips: int = CLIPS,
    seconds: float = 1.0,
    rounds: int = 3,
    compiled: bool = True,
) -> ForwardReport:
    """Measure. At the published size it takes twenty minutes on two cores, and 16 GB.

    Args:
        config: the model; the published one by default.
        clips: of a batch.
        seconds: of each way in each kind of work.
        rounds: how often the ways take turns.
        compiled: also evaluate under `torch.compile`, which needs a C++ compiler on a CPU.
    """
    options: dict[str, Any] = {"max_seconds": seconds, "rounds": rounds, "items": clips}
    torch.manual_seed(0)
    model = build_model(config or ModelConfig())
    assert isinstance(model, EverythingAtOnce)

    def measure(device: str) -> Iterator[Row]:
        batch = msrvtt_batch(model.to(device).config, clips).to(device)
        yield _evaluation(model, batch, options, compiled)
        yield _training(model.train(), batch, options, "training step")
        yield _training(model.eval(), batch, options, "fine-tuning step, in eval mode")

    report = ForwardReport.of(measure, clips=clips)
    report.norm_share = _norm_share(model, msrvtt_batch(model.config, clips).to(report.device))
    return report


def msrvtt_batch(config: ModelConfig, clips: int, seed: int = 0) -> Batch:
    """Random clips with lengths like those of MSR-VTT: 10 to 30 s, most of them short."""
    random = torch.Generator().manual_seed(seed)
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


_WAYS: dict[str, Forward] = {
    SIX_PASSES: lambda model, batch: naive_forward(model, batch, ENCODERS),
    PACKED: lambda model, batch: model(batch, ENCODERS),
    DENSE: lambda model, batch: model.forward_dense(batch, ENCODERS),
}


def _evaluation(model: EverythingAtOnce, batch: Batch, options: Mapping[str, Any], compiled: bool) -> Row:
    model = model.eval()
    # The published code leaves filters in torch's default format.
    published, davenet = copy.copy(model), copy.deepcopy(model.davenet)
    set_memory_format(davenet, torch.contiguous_format)
    published._modules = model._modules | {"davenet": davenet}
    forwards = {SIX_PASSES: partial(_WAYS[SIX_PASSES], published)}
    if compiled:
        forwards[COMPILED] = partial(torch.compile(_WAYS[SIX_PASSES], dynamic=False), published)
    forwards |= {way: partial(_WAYS[way], model) for way in (PACKED, DENSE)}

    def embed(forward: Callable[[Batch], dict[str, Tensor]]) -> Tensor:
        outputs = forward(batch)
        return torch.stack([F.normalize(outputs[encoder]) for encoder in ENCODERS])

    ways = {way: partial(embed, forward) for way, forward in forwards.items()}
    with torch.inference_mode():
        gflop = {way: _count(ways[way]) for way in (SIX_PASSES, PACKED, DENSE)}
        gflop |= {COMPILED: gflop[SIX_PASSES]}
        return measure_ways("evaluation", _size(batch), ways, gflop, options, gbyte=_gbyte(model, batch))


def _training(model: EverythingAtOnce, batch: Batch, options: Mapping[str, Any], work: str) -> Row:
    loss = CombinatorialLoss(LossConfig.model_validate({"weights": WEIGHTS}))
    optimizer = build_optimizer(OptimizerConfig(name="Adam", lr=1e-6), model.parameters())

    def step(forward: Forward) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        value, _ = loss(forward(model, batch), model.nonempty(batch))
        value.backward()
        optimizer.step()
        return value

    ways = {way: partial(step, _WAYS[way]) for way in (SIX_PASSES, PACKED)}
    gflop = {way: _count(function) for way, function in ways.items()}
    # Weights move with every step, so there is no result to compare.
    gbyte = _gbyte(model, batch, passes=_STEP_PASSES)
    row = measure_ways(work, _size(batch), ways, gflop, options, select=None, gbyte=gbyte)
    optimizer.zero_grad(set_to_none=True)
    return row


def _gbyte(model: EverythingAtOnce, batch: Batch, passes: int = 1) -> float:
    """What a call has to read and write at least, in 1e9 bytes."""
    weights = sum(weight.nbytes for weight in model.parameters())
    inputs = [getattr(batch, modality) for modality in batch.modalities]
    return 1e-9 * (passes * weights + sum(x.nbytes for x in inputs))


def _norm_share(model: EverythingAtOnce, batch: Batch) -> float:
    """BatchNorm's share of the time of the operators of one packed evaluation."""
    with torch.inference_mode(), torch.profiler.profile() as profiler:
        model(batch, ENCODERS)
    times = {event.key: event.self_device_time_total or event.self_cpu_time_total for event in profiler.key_averages()}
    return sum(time for name, time in times.items() if "batch_norm" in name) / sum(times.values())


def _size(batch: Batch) -> str:
    return f"{len(batch)} clips"


def _count(function: Callable[[], Any]) -> float:
    """Arithmetic of a call in 1e9 operations, without that of packed attention, which is about one hundredth."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops() / 1e9
