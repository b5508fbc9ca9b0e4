"""The models that prepare raw inputs, and the ensembles from raw inputs to embeddings."""

from __future__ import annotations

import importlib.resources
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eao.config import Config
from eao.errors import ServingError
from eao.export.encoders import MEL_BANDS
from eao.export.manifest import TEXT_FOLDER, Manifest, check_file
from eao.export.text_files import link_or_copy
from eao.files import write_json
from eao.model.batch import encoder_modalities
from eao.serve.triton import schema
from eao.serve.triton.engines import Choice
from eao.serve.triton.graphs import EMBEDDING, write_words
from eao.serve.triton.schema import Target, TensorSpec

# N tokens, D width, T spectrogram frames

ENSEMBLE = "embed-"
"""Before the name of an encoder, that of the ensemble from raw inputs to its embedding."""
PREPARE = "prepare-"
AFTER, DONE = "after", "done"
"""An input that is not looked at, and the output of another model that is put there, to run one after the other."""
WORDS = "words"
WORDS_JSON = "words.json"
WORDS_ONNX = "words.onnx"
WORDS_TOKENIZER = "words.tokenizer.json"
_SHARED = "eao_answers.py"


@dataclass(frozen=True)
class Step:
    """A step of an ensemble, whose tensors have the names of its model's."""

    model: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Prepared:
    """How a modality is prepared.

    Attributes:
        inputs: what is sent.
        steps: models in their order.
        configs: of these models, not yet written.
    """

    inputs: tuple[TensorSpec, ...]
    steps: tuple[Step, ...]
    configs: tuple[Any, ...]


def prepare_text(
    manifest: Manifest, config: Config, bundle: Path, folder: Path, target: Target, max_batch_size: int
) -> Prepared:
    """Write the models from a sentence to text tokens: token ids and the network of words, or word vectors.

    Raises:
        ServingError: the bundle lacks the files for that.
    """
    entries = {file.file.removeprefix(f"{TEXT_FOLDER}/"): file for file in manifest.text}
    if WORDS_JSON not in entries:
        raise ServingError(
            f"{bundle} has no {TEXT_FOLDER}/{WORDS_JSON}, which says how sentences become tokens",
            "export the bundle again with this version of eao",
        )
    facts = json.loads((bundle / TEXT_FOLDER / WORDS_JSON).read_text(encoding="utf-8"))
    sentence = TensorSpec("sentence", "string", (1,))
    rows = facts["max_words"]
    text, mask = TensorSpec("text", "float32", (rows, facts["dim"])), TensorSpec("text_mask", "bool", (rows,))
    if facts["encoder"] == "word2vec":
        check_file(bundle, entries[facts["file"]])
        first = _python_model(folder, "text", "vectors", [sentence], [text, mask], max_batch_size, facts)
        link_or_copy(bundle / TEXT_FOLDER / facts["file"], _version(folder, "text") / facts["file"])
        return Prepared((sentence,), (Step(first.name, ("sentence",), ("text", "text_mask")),), (first,))
    for name in (WORDS_ONNX, WORDS_TOKENIZER):
        check_file(bundle, entries[name])
    # Later states of a causal network are not needed, and do not change those before them.
    ids = min(facts["length"], 1 + rows) if facts["encoder"] == "clip" else facts["length"]
    tokens = [TensorSpec(name, "int64", (ids,)) for name in ("input_ids", "attention_mask")]
    given = [*tokens, mask]
    first = _python_model(folder, "text", "sentences", [sentence], given, max_batch_size, {**facts, "ids": ids})
    link_or_copy(bundle / TEXT_FOLDER / WORDS_TOKENIZER, _version(folder, "text") / "tokenizer.json")
    words = schema.model(WORDS, "onnxruntime", given, [text], max_batch_size)
    version = folder / WORDS / schema.VERSION
    version.mkdir(parents=True)
    write_words(bundle / TEXT_FOLDER / WORDS_ONNX, version / "model.onnx", ids, rows)
    schema.batch_requests(words, [8, max_batch_size])
    schema.place(words, target)
    ones = {name: np.ones(ids, np.int64) for name in ("input_ids", "attention_mask")}
    schema.warm_up(words, folder / WORDS, {**ones, "text_mask": np.ones(rows, bool)}, [1, 8])
    names = tuple(spec.name for spec in given)
    steps = (Step(first.name, ("sentence",), names), Step(WORDS, names, ("text",)))
    return Prepared((sentence,), steps, (first, words))


def prepare_video(config: Config, folder: Path, max_batch_size: int, has_mask: bool) -> Prepared:
    """Write the model from frame features to video tokens.

    The streams have the widths of the backbones that the configuration names, if those add up to what the model takes;
    else it was trained on features from elsewhere, and only their sum is known.
    """
    widths = _stream_widths(config)
    streams = [TensorSpec(name, "float32", (-1, width)) for name, width in widths.items()]
    tokens = config.data.video_tokens
    outputs = [TensorSpec("video", "float32", (tokens or 1, config.model.video_dim))]
    outputs += [TensorSpec("video_mask", "bool", (tokens or 1,))] if has_mask else []
    facts = {
        "streams": list(widths),
        "outputs": [spec.name for spec in outputs],
        "width": config.model.video_dim,
        "tokens": tokens,
        "sampling": config.data.sampling,
    }
    made = _python_model(folder, "video", "frames", streams, outputs, max_batch_size, facts)
    step = Step(made.name, tuple(widths), tuple(spec.name for spec in outputs))
    return Prepared(tuple(streams), (step,), (made,))


def prepare_audio(config: Config, folder: Path, max_batch_size: int, needed: Sequence[str]) -> Prepared:
    """Write the model from a waveform, or its log-mel spectrogram, to audio.

    Args:
        config: of the experiment.
        folder: the repository.
        max_batch_size: rows of a run.
        needed: of "audio", "audio_mask" and "audio_frames", what the encoders take.
    """
    sound = [
        TensorSpec("waveform", "float32", (-1,), optional=True),
        TensorSpec("log_mel", "float32", (MEL_BANDS, -1), optional=True),
    ]
    frames = config.data.audio_frames
    offered = [
        TensorSpec("audio", "float32", (MEL_BANDS, frames)),
        TensorSpec("audio_mask", "bool", (frames,)),
        TensorSpec("audio_frames", "int64", (1,)),
    ]
    outputs = [spec for spec in offered if spec.name in needed]
    names = tuple(spec.name for spec in outputs)
    made = _python_model(
        folder, "audio", "sound", sound, outputs, max_batch_size, {"frames": frames, "outputs": list(names)}
    )
    from eao.features.spectrogram import window_and_basis

    window, basis = window_and_basis()
    np.savez(_version(folder, "audio") / "mel.npz", window=window, basis=basis)
    return Prepared(tuple(sound), (Step(made.name, ("waveform", "log_mel"), names),), (made,))


def ensemble(choice: Choice, prepared: dict[str, Prepared], embedding_dim: int) -> Any:
    """The configuration of the ensemble from an encoder's raw inputs to its embedding."""
    modalities = encoder_modalities(choice.encoder)
    config = schema.model(
        f"{ENSEMBLE}{choice.encoder}",
        "ensemble",
        [spec for modality in modalities for spec in prepared[modality].inputs],
        [TensorSpec(EMBEDDING, "float32", (embedding_dim,))],
        choice.max_batch_size,
    )
    # One after the other, the network of words last: Triton (2.51) never lets go of a request that one step of an
    # ensemble refuses while another is under way, and then cannot unload the model.
    ordered = [modality for modality in ("video", "audio", "text") if modality in modalities]
    taken = {spec.name for spec in choice.specs}
    for i, modality in enumerate(ordered):
        steps = prepared[modality].steps
        read = taken.union(*(step.inputs for step in steps))
        for step in steps:
            given = {name: name for name in step.inputs}
            made = {name: name for name in step.outputs if name in read}
            if step is steps[0] and i > 0:
                given[AFTER] = f"{ordered[i - 1]}-{DONE}"
            if step is steps[0] and i + 1 < len(ordered):
                made[DONE] = f"{modality}-{DONE}"
            schema.ensemble_step(config, step.model, given, made)
    schema.ensemble_step(config, choice.model, {name: name for name in sorted(taken)}, {choice.embedding: EMBEDDING})
    return config


def _python_model(
    folder: Path,
    modality: str,
    kind: str,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    max_batch_size: int,
    facts: dict[str, Any],
) -> Any:
    """Copy a Python model with its facts into the repository."""
    version = _version(folder, modality)
    version.mkdir(parents=True)
    with importlib.resources.as_file(importlib.resources.files("eao.serve.triton") / "models") as models:
        for source in (models / _SHARED, *sorted((models / kind).glob("*.py"))):
            shutil.copyfile(source, version / source.name)
    write_json(version / "facts.json", facts)
    after, done = TensorSpec(AFTER, "bool", (1,), optional=True), TensorSpec(DONE, "bool", (1,))
    config = schema.model(f"{PREPARE}{modality}", "python", [*inputs, after], [*outputs, done], max_batch_size)
    schema.batch_requests(config, delay_us=0)  # rows are computed one by one: nothing is worth a wait
    schema.place_on_cpu(config)
    return config


def _version(folder: Path, modality: str) -> Path:
    return folder / f"{PREPARE}{modality}" / schema.VERSION


def _stream_widths(config: Config) -> dict[str, int]:
    """Each stream of video features and its width; -1 where it is not known."""
    from eao.features.backbones import get_backbone

    named = {"video_2d": config.features.video_2d, "video_3d": config.features.video_3d}
    used = {name: get_backbone(stream.backbone).dim for name, stream in named.items() if stream is not None}
    if sum(used.values()) == config.model.video_dim:
        return used
    return dict.fromkeys(used or named, -1)
