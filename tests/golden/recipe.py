"""Reads the stored numbers of the authors' implementation and regenerates the weights they were made with.

Test files load this module by path, since the tests are no package.
"""

from __future__ import annotations

import functools
import json
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from eao.authors import translate_config
from eao.config import Config
from eao.model import Batch, build_model

FOLDER = Path(__file__).parent
SEED = 20220704
"""Of the small models, combined with each case's name."""

EMBEDDINGS = {
    "text": "text",
    "video": "video",
    "audio": "audio",
    "tv": "text-video",
    "ta": "text-audio",
    "va": "video-audio",
    "t+v": "text+video",
    "t+a": "text+audio",
    "v+a": "video+audio",
}
TERMS = {
    "tv": "text_video",
    "ta": "text_audio",
    "va": "video_audio",
    "t_va": "text_videoaudio",
    "v_ta": "video_textaudio",
    "a_tv": "audio_textvideo",
}


@functools.cache
def cases(folder: str) -> dict[str, Any]:
    """The description of the cases in a folder of golden data."""
    values = json.loads((FOLDER / folder / "cases.json").read_text(encoding="utf-8"))
    return values.get("cases", values)


def weight(key: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """The value that a tensor of a state dict has by the recipe: decided by its name, its shape and the seed."""
    random = np.random.RandomState((zlib.crc32(key.encode()) ^ seed) & 0xFFFFFFFF)
    leaf = key.rpartition(".")[2]
    if leaf == "num_batches_tracked":
        return torch.tensor(7)
    if leaf == "running_var":
        return torch.from_numpy(np.asarray(0.5 + random.random_sample(shape)).astype(np.float32))
    z = random.standard_normal(shape).astype(np.float32)
    if leaf in ("running_mean", "bias"):
        z *= np.float32(0.1)
    elif leaf == "weight" and len(shape) == 1:
        z *= np.float32(0.1)
        z += 1
    elif leaf == "weight":
        z *= np.float32(np.prod(shape[1:]) ** -0.5)
    else:
        z *= np.float32(0.5)
    return torch.from_numpy(z)


def weights(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """A whole state dict by the recipe. Of the per-modality model's two names of one tensor, the later one counts."""
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    later = {key: key.replace("fusion.", "fusion_text.", 1) for key in shapes if key.startswith("fusion.")}
    sources = [other if (other := later.get(key, key)) in shapes else key for key in shapes]
    with ThreadPoolExecutor(2) as pool:
        values = pool.map(weight, sources, shapes.values(), [seed] * len(shapes))
        return dict(zip(shapes, values, strict=True))


def case_seed(case: str) -> int:
    """The seed of a small model's weights."""
    return SEED ^ (zlib.crc32(case.encode()) & 0xFFFF)


def small_config(description: Mapping[str, Any], loss: Mapping[str, Any] | None = None) -> Config:
    """The configuration of a narrow golden model, whose audio widths the authors' schema cannot say."""
    authors = {"arch": description["arch"], "loss": {"args": dict(loss or {})}}
    config = translate_config(authors).config
    v2 = config.model.audio.version == "v2"
    config.model.audio.channels = (8, 8, 16, 16, 32, 32, 64) if v2 else (8, 8, 16, 16, 32)
    config.model.audio.blocks = (2, 2, 1, 1, 1, 1) if v2 else (2, 2, 2, 2)
    return config


def small_model(case: str) -> nn.Module:
    """The model of a case, with its weights, in eval mode."""
    model = build_model(small_config(cases("models")[case]).model)
    model.load_state_dict(weights(model, case_seed(case)))
    return model.eval()


def tensors(path: str) -> dict[str, Tensor]:
    """The tensors of a file under tests/golden."""
    return load_file(FOLDER / path)


def as_batch(values: Mapping[str, Tensor]) -> Batch:
    """The authors' batch, whose masks are floats, as ours."""
    masks = {name: values[name].bool() for name in ("text_mask", "video_mask", "audio_mask") if name in values}
    others = {name: values[name].float() for name in ("text", "video", "audio") if name in values}
    return Batch(**others, **masks, audio_frames=values.get("audio_STFT_nframes"))


def case_batch(case: str, stored: Mapping[str, Tensor] | None = None) -> Batch:
    """The inputs of a case. `stored` are its numbers, which may replace some inputs of the shared file."""
    values = tensors(f"models/inputs_{cases('models')[case]['inputs']}.safetensors")
    stored = stored if stored is not None else tensors(f"models/{case}.safetensors")
    return as_batch(values | section(stored, "in"))


def section(stored: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The entries `name.*`, without that prefix."""
    return {key[len(name) + 1 :]: tensor for key, tensor in stored.items() if key.startswith(name + ".")}


def embeddings(outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' outputs under our encoder names."""
    return {EMBEDDINGS[key.removesuffix("_embed")]: x for key, x in outputs.items() if key.endswith("_embed")}


def flags(outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Which clips have which modality, from the authors' outputs."""
    suffix = "_nonempty_input_mask"
    return {key.removesuffix(suffix): x for key, x in outputs.items() if key.endswith(suffix)}


def digest(key: str, x: Tensor) -> Tensor:
    """Eight random projections of a tensor, which stand for it where storing it whole would take too much space.

    A projection of an error has the error's own length as its standard deviation, so none hides from all eight.
    """
    random = np.random.RandomState(zlib.crc32(key.encode()))
    values = random.standard_normal((8, x.numel())) @ x.detach().double().flatten().numpy()
    return torch.from_numpy(values.astype(np.float32))


def assert_same_digest(key: str, actual: Tensor, expected: Tensor, rtol: float, atol: float) -> None:
    """`actual` equals the tensor whose digest is `expected`: `rtol` of its length, or `atol` in every element."""
    bound = 5 * (rtol * actual.detach().double().norm().item() + atol * actual.numel() ** 0.5)
    error = (digest(key, actual) - expected).abs().max().item()
    assert error <= bound, f"{key}: differs by {error:.3g}, allowed {bound:.3g}"
