"""Stages: parts of the model as graphs of their own, so that a service computes a part once and caches or shares it.

`davenet` gives the audio network's features of a spectrogram, and `tokens-<modality>` the tokens of one modality as the
fusion transformer receives them. `tokens-audio` reads the features, so that the two chain.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from eao.errors import ExportError, ParityError
from eao.export.cases import parity_cases
from eao.export.encoders import (
    AUDIO_TOKENS,
    BATCH,
    MEL_BANDS,
    SPECTROGRAM_FRAMES,
    Axis,
    InputSpec,
    Model,
    evaluating,
    input_specs,
    is_positional,
    squeezes_audio,
    varying_axes,
)
from eao.export.engines import OnnxSession
from eao.export.manifest import AxisEntry, FileEntry, InputEntry, StageEntry
from eao.export.onnx import OPSET, OUTPUT, Subject, export_subject
from eao.export.weights import with_weights
from eao.model import MODALITIES, Batch, EverythingAtOnce
from eao.model.audio import DAVEnet, limit_tokens, pool_mask
from eao.model.avlnet import AVLnet
from eao.model.model import Tokens

# B batch, N tokens, C channels of audio features, D width of the fusion transformer, T spectrogram frames

DAVENET = "davenet"
TOKENS = tuple(f"tokens-{modality}" for modality in MODALITIES)
STAGES = (DAVENET, *TOKENS)
LIMIT = 1e-4
"""Largest relative error of a token in float32."""
_SMALL = 1e-2
"""Tokens below this share of the typical length are measured against that: little may be left of one behind a ReLU."""

Run = Callable[[Mapping[str, NDArray]], NDArray[np.float32]]


@dataclass(frozen=True)
class ExportedStage:
    """A stage that was written and proven.

    Attributes:
        name: of the stage.
        path: its graph.
        opset: of the graph.
        inputs: in the order of the graph.
        relative_error: the greatest of any real token, as `stage_error` gives it.
    """

    name: str
    path: Path
    opset: int
    inputs: tuple[InputSpec, ...]
    relative_error: float

    def entry(self) -> StageEntry:
        """Its description for the manifest of the bundle that it lies in."""
        return StageEntry(
            files=tuple(map(FileEntry.of, with_weights(self.path))),
            opset=self.opset,
            inputs=tuple(map(InputEntry.of, self.inputs)),
            output=OUTPUT,
            axes={name: AxisEntry.of(axis) for name, axis in varying_axes(self.inputs).items()},
            relative_error=self.relative_error,
        )


def exportable_stages(model: Model) -> tuple[str, ...]:
    """The stages a model has."""
    if isinstance(model, AVLnet):
        return (DAVENET,)
    return STAGES if "audio" in model.encoders else ("tokens-text", "tokens-video")


def choose_stages(model: Model, names: Sequence[str]) -> tuple[str, ...]:
    """The stages a user named, each once, in the order of `STAGES`; "tokens" stands for those of every modality.

    Raises:
        ExportError: there is no such stage, or this model has none.
    """
    offered = exportable_stages(model)
    for name in names:
        if not any(_answers(stage, name) for stage in offered):
            hint = f"this model offers {', '.join(offered)}"
            if not any(_answers(stage, name) for stage in STAGES):
                raise ExportError(f"there is no stage {name!r}", hint)
            lacks = "has no fusion transformer" if isinstance(model, AVLnet) else "does not use audio"
            raise ExportError(f"cannot export stage {name!r}: the {model.config.architecture} model {lacks}", hint)
    return tuple(stage for stage in offered if any(_answers(stage, name) for name in names))


def stage_specs(model: Model, stage: str) -> tuple[InputSpec, ...]:
    """The inputs of a stage, in the order of the graph.

    `tokens-text` and `tokens-video` read the fields of `Batch` that encoders read. `tokens-audio` reads, of N tokens of
    `stride` spectrogram frames each:

    * `audio_features`, (B, N, C) float32, as `davenet` gives them;
    * `audio_token_mask`, (B, N) bool, which are real: those with any real frame;
    * `audio_lengths`, (B,) int64, frames // stride, only if the model squeezes audio tokens by the clip's length.

    Raises:
        ExportError: the model has no such stage.
    """
    if stage not in exportable_stages(model):
        raise ExportError(f"this model has no stage {stage!r}", f"it offers {', '.join(exportable_stages(model))}")
    network, batch = _audio_network(model), Axis(BATCH)
    if stage == DAVENET:
        frames = Axis(SPECTROGRAM_FRAMES, network.stride, network.stride)
        return (InputSpec("audio", "float32", (batch, MEL_BANDS, frames)),)
    if stage != "tokens-audio":
        return input_specs(model, _modality(stage))
    assert isinstance(model, EverythingAtOnce)
    config = model.config
    tokens: int | Axis = Axis(AUDIO_TOKENS)
    if squeezes_audio(config):
        tokens = Axis(AUDIO_TOKENS, model.max_audio_tokens)
    elif is_positional(config):
        tokens = model.max_audio_tokens
    specs = (
        InputSpec("audio_features", "float32", (batch, tokens, network.output_dim)),
        InputSpec("audio_token_mask", "bool", (batch, tokens)),
    )
    by_length = squeezes_audio(config) and config.audio_pooling != "clip"
    return (*specs, InputSpec("audio_lengths", "int64", (batch,))) if by_length else specs


def stage_module(model: Model, stage: str) -> nn.Module:
    """A stage as a function of tensors in the order of `stage_specs`: (B, N, C or D) float32.

    Of tokens that are not real, those of `tokens-<modality>` mean nothing, except the first token of a clip that lacks
    the modality: it is the masking token, and real to the fusion transformer.

    Example:
        >>> from eao.config import ModelConfig
        >>> from eao.model import build_model
        >>> model = build_model(ModelConfig(text_dim=8, video_dim=8, embedding_dim=8,
        ...     fusion={"embed_dim": 8, "num_heads": 2}, audio={"channels": (4, 4, 4, 4, 4, 4, 6)})).eval()
        >>> stage_module(model, "davenet")(torch.zeros(2, 40, 128)).shape
        torch.Size([2, 2, 6])
    """
    if stage == DAVENET:
        return AudioFeatures(_audio_network(model))
    assert isinstance(model, EverythingAtOnce)
    return AudioTokens(model) if stage == "tokens-audio" else ModalityTokens(model, _modality(stage))


class AudioFeatures(nn.Module):
    """`davenet`: (B, 40, T) decibels -> (B, T / stride, C)."""

    def __init__(self, davenet: DAVEnet) -> None:
        super().__init__()
        self.davenet = davenet

    def forward(self, *tensors: Tensor) -> Tensor:
        (audio,) = tensors
        return self.davenet(audio).transpose(1, 2)


class ModalityTokens(nn.Module):
    """`tokens-text` and `tokens-video`: (B, N, width of raw tokens), (B, N) bool -> (B, N, D)."""

    def __init__(self, model: EverythingAtOnce, modality: str) -> None:
        super().__init__()
        self.model = model
        self.modality = modality

    def forward(self, *tensors: Tensor) -> Tensor:
        x, mask = tensors
        return self.model.project_tokens(x, mask, self.modality).x


class AudioTokens(nn.Module):
    """`tokens-audio`: (B, N, C), (B, N) bool and, if the model squeezes by it, (B,) int64 lengths -> (B, N, D).

    Models with a cap on audio tokens give as many as that.
    """

    def __init__(self, model: EverythingAtOnce) -> None:
        super().__init__()
        self.model = model

    def forward(self, *tensors: Tensor) -> Tensor:
        features, mask, *rest = tensors
        config = self.model.config
        if squeezes_audio(config):
            lengths = rest[0] if rest else mask.sum(1)  # cutting reads none
            limit = self.model.max_audio_tokens
            features, mask = limit_tokens(features, mask, lengths, limit, config.audio_pooling)
        return self.model.project_tokens(features, mask, "audio").x


def export_stage(
    model: Model,
    stage: str,
    path: str | Path,
    opset: int = OPSET,
    threads: int | None = None,
    clips: Sequence[Batch] = (),
) -> ExportedStage:
    """Write one stage as a float32 ONNX graph, after running it at other sizes and comparing it with the model.

    Args:
        model: in any mode; traced in eval mode and left as it was.
        stage: a name of `exportable_stages(model)`.
        path: the .onnx file.
        opset: of the standard ONNX operators.
        threads: of the trial runs.
        clips: real data whose tokens fill the cases of the comparison; made up without it.

    Raises:
        ExportError: no such stage, tracing failed, the graph is invalid, or a dimension froze.
        ParityError: a token's relative error is greater than `LIMIT`; nothing is left at `path`.
    """
    path, specs = Path(path), stage_specs(model, stage)
    with evaluating(model):
        export_subject(Subject(f"stage {stage}", stage_module(model, stage), specs), path, opset, threads=threads)
        error, case = stage_error(model, stage, OnnxSession(path, threads).run, clips)
    if not error <= LIMIT:
        for file in with_weights(path):
            file.unlink()
        raise ParityError(f"stage {stage}: relative error {error:.2g} > {LIMIT:g} ({case})", "nothing was written")
    return ExportedStage(stage, path, opset, specs, error)


def stage_error(model: Model, stage: str, run: Run, clips: Sequence[Batch] = ()) -> tuple[float, str]:
    """The greatest relative error of any real token over the cases of parity, and the name of its case.

    The cases are those of the modality's encoder: batch sizes, lengths, masks, clips that lack the modality. What
    `tokens-audio` gives for the features is compared with what the model gives for the spectrogram.

    Args:
        model: in eval mode.
        stage: a name of `exportable_stages(model)`.
        run: what is compared: arrays by input -> (B, N, C or D).
        clips: real data whose tokens fill the cases.
    """
    errors = {}
    for case in parity_cases(model, _modality(stage), clips=clips):
        with torch.inference_mode():
            feeds, expected = _stage_case(model, stage, case.batch)
        found = run({spec.name: feeds[spec.name].numpy() for spec in stage_specs(model, stage)})
        errors[case.name] = relative_error(expected.x.numpy(), found, expected.mask.numpy())
    worst = list(errors)[int(np.argmax(list(errors.values())))]  # NaN counts as greatest
    return errors[worst], worst


def relative_error(expected: NDArray, found: NDArray, real: NDArray[np.bool_]) -> float:
    """The greatest ||a - b|| / ||b|| of any real token.

    Args:
        expected: (B, N, D), the b.
        found: (B, N, D), the a.
        real: (B, N) bool, at least one True.
    """
    b = expected[real].astype(np.float64)
    lengths = np.linalg.norm(b, axis=1)
    least = max(_SMALL * float(np.sqrt(np.mean(lengths**2))), float(np.finfo(np.float32).tiny))
    return float((np.linalg.norm(found[real] - b, axis=1) / np.maximum(lengths, least)).max())


def _stage_case(model: Model, stage: str, batch: Batch) -> tuple[dict[str, Tensor], Tokens]:
    """The inputs of a stage for a batch, and what the model's own code gives there."""
    modality = _modality(stage)
    if modality != "audio":
        assert isinstance(model, EverythingAtOnce)
        names = (modality, f"{modality}_mask")
        return {name: getattr(batch, name) for name in names}, model.tokens(batch, modality)
    assert batch.audio is not None
    features = _audio_network(model)(batch.audio).transpose(1, 2)
    if stage == DAVENET:
        return {"audio": batch.audio}, Tokens(features, torch.ones(features.shape[:2], dtype=torch.bool))
    assert isinstance(model, EverythingAtOnce) and batch.audio_mask is not None
    stride = model.davenet.stride
    feeds = {"audio_features": features, "audio_token_mask": pool_mask(batch.audio_mask, stride)}
    if batch.audio_frames is not None:
        feeds["audio_lengths"] = batch.audio_frames // stride
    return feeds, model.tokens(batch, modality)


def _answers(stage: str, name: str) -> bool:
    return name in (stage, stage.partition("-")[0])


def _modality(stage: str) -> str:
    return "audio" if stage == DAVENET else stage.partition("-")[2]


def _audio_network(model: Model) -> DAVEnet:
    return model.DAVEnet if isinstance(model, AVLnet) else model.davenet
