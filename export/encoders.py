"""Encoders as functions of plain tensors: what an engine computes, what it reads, and which sizes may vary."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eao.config import ModelConfig
from eao.errors import ExportError
from eao.kernels.contrastive import normalize
from eao.model import Batch, EverythingAtOnce, encoder_modalities
from eao.model.avlnet import AVLnet

# B batch, N tokens, D width of raw tokens, T spectrogram frames, E embedding

Model = EverythingAtOnce | AVLnet

BATCH = "batch"
TEXT_TOKENS = "text_tokens"
VIDEO_TOKENS = "video_tokens"
SPECTROGRAM_FRAMES = "spectrogram_frames"
AUDIO_TOKENS = "audio_tokens"
HEIGHT = "height"
WIDTH = "width"
DYNAMIC = (BATCH, TEXT_TOKENS, VIDEO_TOKENS, SPECTROGRAM_FRAMES)
"""Every axis of encoders that may vary from call to call. Models with positional embeddings fix all but the batch (and,
where they squeeze audio tokens, all but the batch and the spectrogram)."""

# Far from 0 and 1, which tracing specialises on, and all different, so that no two axes are taken for one.
_TRACED = {
    BATCH: 2,
    TEXT_TOKENS: 5,
    VIDEO_TOKENS: 7,
    SPECTROGRAM_FRAMES: 3,
    AUDIO_TOKENS: 3,
    HEIGHT: 40,
    WIDTH: 56,
}
MEL_BANDS = 40


@dataclass(frozen=True)
class Axis:
    """A size that may vary: at least `minimum`, at most `maximum` if there is one, and a multiple of `multiple`."""

    name: str
    minimum: int = 1
    multiple: int = 1
    maximum: int | None = None

    def size(self, units: int) -> int:
        """The size `units` steps of `multiple` give, raised to the minimum."""
        return max(units * self.multiple, self.minimum)


@dataclass(frozen=True)
class InputSpec:
    """One input of a graph: its name (of encoders a `Batch` field), dtype ("float32", "bool", "int64" or "uint8") and
    axes."""

    name: str
    dtype: str
    shape: tuple[int | Axis, ...]


def exportable_encoders(model: Model) -> tuple[str, ...]:
    """The encoders of a model that become graphs: all but the sums, which are the mean of two embeddings."""
    return tuple(e for e in model.encoders if "+" not in e)


def input_specs(model: Model, encoder: str) -> tuple[InputSpec, ...]:
    """The inputs of an encoder, in the order of the graph.

    Raises:
        ExportError: if the model has no such encoder, or it is a sum.
    """
    offered = exportable_encoders(model)
    if encoder not in offered:
        hint = f"it offers {', '.join(offered)}"
        if "+" in encoder:
            hint = "it is the mean of two embeddings: export its two modalities instead"
        raise ExportError(f"encoder {encoder!r} of this model cannot be exported", hint)
    specs = [spec for modality in encoder_modalities(encoder) for spec in _modality_specs(model, modality)]
    return tuple(specs)


def input_names(model: Model, encoder: str) -> tuple[str, ...]:
    """The names of the inputs, each a field of `Batch`, in the order of the graph.

    Example:
        >>> from eao.model import build_model
        >>> small = ModelConfig(text_dim=8, video_dim=8, embedding_dim=8,
        ...     fusion={"embed_dim": 8, "num_heads": 2}, audio={"channels": (4, 4, 4, 4, 4, 4, 4)})
        >>> input_names(build_model(small), "text-audio")
        ('text', 'text_mask', 'audio', 'audio_mask')
    """
    return tuple(spec.name for spec in input_specs(model, encoder))


def axes(model: Model, encoder: str) -> dict[str, Axis]:
    """The axes of an encoder that may vary, by name, in the order of the graph."""
    return varying_axes(input_specs(model, encoder))


def varying_axes(specs: Sequence[InputSpec]) -> dict[str, Axis]:
    """The axes of inputs that may vary, by name, in their order."""
    return {a.name: a for spec in specs for a in spec.shape if isinstance(a, Axis)}


def concrete_shape(spec: InputSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of an input with its varying axes at `sizes` (by axis name)."""
    return tuple(sizes[a.name] if isinstance(a, Axis) else a for a in spec.shape)


def traced_sizes(specs: Sequence[InputSpec]) -> dict[str, int]:
    """The sizes at which a graph with these inputs is traced."""
    sizes = {}
    for name, axis in varying_axes(specs).items():
        # Above the cap on audio tokens, where pooling really happens; at the cap the same graph is the identity.
        above = 1 + axis.minimum // axis.multiple if axis.minimum > axis.multiple else 0
        sizes[name] = axis.size(max(_TRACED[name], above))
    return sizes


def example_inputs(
    model: Model, encoder: str, sizes: Mapping[str, int] | None = None, seed: int = 0
) -> tuple[Tensor, ...]:
    """Random inputs with every token real; `sizes` by axis name, by default those of tracing.

    Example:
        `example_inputs(model, "text", {"batch": 3, "text_tokens": 9})` is a (3, 9, D) float32 and a (3, 9) bool tensor.
    """
    return random_inputs(input_specs(model, encoder), sizes, seed)


def random_inputs(
    specs: Sequence[InputSpec], sizes: Mapping[str, int] | None = None, seed: int = 0
) -> tuple[Tensor, ...]:
    """As `example_inputs`, for any inputs."""
    sizes = traced_sizes(specs) if sizes is None else sizes
    generator = torch.Generator().manual_seed(seed)
    tensors: list[Tensor] = []
    for spec in specs:
        shape = concrete_shape(spec, sizes)
        if spec.dtype == "bool":
            tensors.append(torch.ones(shape, dtype=torch.bool))
        elif spec.dtype == "uint8":  # pixels
            tensors.append(torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator))
        elif spec.name == "input_ids":  # those that every vocabulary has
            tensors.append(torch.randint(0, 4, shape, generator=generator))
        elif spec.name == "attention_mask":  # the last sentence is the shortest
            tensors.append(torch.ones(shape, dtype=torch.int64))
            tensors[-1][-1, 1 + shape[1] // 2 :] = 0
        elif spec.dtype == "int64":  # lengths of clips
            tensors.append(torch.full(shape, sizes.get(SPECTROGRAM_FRAMES) or sizes[AUDIO_TOKENS]))
        elif spec.name == "audio":
            tensors.append((torch.randn(shape, generator=generator) * 15 - 40).clamp(-80, 0))  # decibels
        elif spec.name == "video":
            tensors.append(F.normalize(torch.randn(shape, generator=generator), dim=-1))
        else:
            tensors.append(torch.randn(shape, generator=generator))
    return tuple(tensors)


def to_batch(model: Model, encoder: str, tensors: tuple[Tensor, ...]) -> Batch:
    """The tensors of an encoder as a `Batch`."""
    return _as_batch(dict(zip(input_names(model, encoder), tensors, strict=True)))


class EncoderModule(nn.Module):
    """One encoder as a function of positional tensors, in the order of `input_names`, giving (B, E) float32, unit norm.

    Example:
        >>> from eao.model import build_model
        >>> model = build_model(ModelConfig(text_dim=8, video_dim=8, embedding_dim=6,
        ...     fusion={"embed_dim": 8, "num_heads": 2}, audio={"channels": (4, 4, 4, 4, 4, 4, 4)}))
        >>> EncoderModule(model, "text")(*example_inputs(model, "text")).shape
        torch.Size([2, 6])
    """

    def __init__(self, model: Model, encoder: str) -> None:
        super().__init__()
        self.names = input_names(model, encoder)
        self.model = model
        self.encoder = encoder

    def forward(self, *tensors: Tensor) -> Tensor:
        given = dict(zip(self.names, tensors, strict=True))
        if isinstance(self.model, AVLnet) and self.encoder == "audio":
            return normalize(_avlnet_audio(self.model, given["audio"], given["audio_frames"]))
        embed = self.model if isinstance(self.model, AVLnet) else self.model.forward_dense
        return normalize(embed(_as_batch(given), [self.encoder])[self.encoder])


@contextlib.contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """The model in eval mode; afterwards in the mode it was in."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _as_batch(tensors: Mapping[str, Tensor]) -> Batch:
    batch = Batch()
    for name, tensor in tensors.items():
        setattr(batch, name, tensor)
    return batch


def _modality_specs(model: Model, modality: str) -> list[InputSpec]:
    config = model.config
    batch = Axis(BATCH)
    if modality == "audio":
        return _audio_specs(model, batch)
    dim = config.text_dim if modality == "text" else config.video_dim
    tokens: int | Axis = Axis(TEXT_TOKENS if modality == "text" else VIDEO_TOKENS)
    if is_positional(config):
        tokens = (config.text_max_tokens if modality == "text" else config.video_max_tokens) or 0
    values = InputSpec(modality, "float32", (batch, tokens, dim))
    if config.architecture == "avlnet":  # its maximum goes over padding too: a mask would be a dead input
        return [values]
    return [values, InputSpec(f"{modality}_mask", "bool", (batch, tokens))]


def _audio_specs(model: Model, batch: Axis) -> list[InputSpec]:
    config = model.config
    frames_input = InputSpec("audio_frames", "int64", (batch,))
    if isinstance(model, AVLnet):
        frames: int | Axis = Axis(SPECTROGRAM_FRAMES, model.DAVEnet.stride, model.DAVEnet.stride)
        return [InputSpec("audio", "float32", (batch, MEL_BANDS, frames)), frames_input]
    stride = model.davenet.stride
    if squeezes_audio(config):
        frames = Axis(SPECTROGRAM_FRAMES, model.max_audio_tokens * stride, stride)
    elif is_positional(config):
        frames = model.max_audio_tokens * stride
    else:
        frames = Axis(SPECTROGRAM_FRAMES, stride, stride)
    specs = [
        InputSpec("audio", "float32", (batch, MEL_BANDS, frames)),
        InputSpec("audio_mask", "bool", (batch, frames)),
    ]
    return [*specs, frames_input] if squeezes_audio(config) and config.audio_pooling != "clip" else specs


def squeezes_audio(config: ModelConfig) -> bool:
    """Whether the model keeps at most so many audio tokens, by a strategy of `limit_tokens`."""
    return config.audio_max_frames is not None and config.audio_pooling != "none"


def is_positional(config: ModelConfig) -> bool:
    """Whether positional tables fix the numbers of tokens (the per-modality model owns tables but never adds them)."""
    return config.use_positional_emb and config.architecture in ("fusion", "text-video")


def _avlnet_audio(model: AVLnet, audio: Tensor, frames: Tensor) -> Tensor:
    """`AVLnet`'s audio embedding without a branch on values, so that it can be traced; same numbers, quirk included."""
    features = model.DAVEnet(audio)  # (B, C, N)
    tokens = audio.shape[2] // model.DAVEnet.stride  # not read off the features, whose BatchNorm would stay unfolded
    lengths = (frames / model.DAVEnet.stride).long().clamp(min=1)
    lengths = torch.where(frames[:1] == -1, tokens, lengths)[:, None]  # the first clip decides for the whole batch
    real = torch.arange(tokens, device=features.device) < lengths  # (B, N)
    pooled = (features * real[:, None]).sum(2) / real.sum(1, keepdim=True)
    return model.DAVEnet_projection(model.GU_audio(pooled))
