"""Whether weights fit a model, and which setting would make them fit."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from eao.errors import CheckpointError

SHOWN = 3
"""How many keys an error lists."""


def fit_weights(model: nn.Module, state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The state with second names filled in and floats in the model's type, checked key by key.

    Args:
        model: any model of `build_model`.
        state: what is to be loaded into it.
        source: names the state in errors.

    Raises:
        CheckpointError: keys or shapes differ, naming the setting that would make them agree; or NaN weights.
    """
    expected = model.state_dict()
    # Of two names with different values the later one wins, as in the original's loading.
    full = dict(state)
    for alias, key in aliases(model).items():
        if alias in full:
            full[key] = full[alias]
        elif key in full:
            full[alias] = full[key]
    _check_keys(set(expected) - set(full), set(full) - set(expected), source)
    wrong = [key for key, tensor in expected.items() if tensor.shape != full[key].shape]
    if wrong:
        key = wrong[0]
        ours, theirs = tuple(expected[key].shape), tuple(full[key].shape)
        others = f" ({len(wrong) - 1} more keys differ)" if len(wrong) > 1 else ""
        raise CheckpointError(
            f"{source}: {key} is {theirs} in the checkpoint but {ours} in the configured model{others}",
            _shape_hint(key, theirs, ours),
        )
    broken = [key for key, tensor in full.items() if not _finite(tensor)]
    if broken:
        raise CheckpointError(
            f"{source}: NaN or infinite weights in {list_keys(broken)}",
            "its training diverged; use an earlier checkpoint",
        )
    return {
        key: full[key].to(tensor.dtype) if tensor.is_floating_point() else full[key] for key, tensor in expected.items()
    }


def aliases(model: nn.Module) -> dict[str, str]:
    """Second names of parameters and buffers, and the first name of each."""
    first: dict[int, str] = {}
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: first[id(x)] for name, x in named if first.setdefault(id(x), name) != name}


_HEADS = r"(text|video|audio)_proj\."
_KEY_SETTINGS = (
    # what only the checkpoint has, what only the model has (empty = anything), the setting that makes them agree
    (r"fusion\.masking_token", "", "model.architecture=fusion"),
    (r"DAVEnet\.", "", "model.architecture=avlnet model.audio.version=v1"),
    (r"fusion_(text|video|audio)\.", "", "model.architecture=per-modality"),
    ("", r"fusion_(text|video|audio)\.", "model.architecture=fusion"),
    (r"\w+_pos_embed", "", "model.use_positional_emb=true"),
    ("", r"\w+_pos_embed", "model.use_positional_emb=false"),
    (r"fusion\.cls_token", "", "model.fusion.use_cls_token=true"),
    ("", r"fusion\.cls_token", "model.fusion.use_cls_token=false"),
    (r"fusion\.blocks\.\d+\.norm1", "", "a larger model.fusion.depth"),
    ("", r"fusion\.blocks\.\d+\.norm1", "a smaller model.fusion.depth"),
    (r"fusion\.blocks\.\d+\.attn\.qkv\.bias", "", "model.fusion.qkv_bias=true"),
    ("", r"fusion\.blocks\.\d+\.attn\.qkv\.bias", "model.fusion.qkv_bias=false"),
    (_HEADS, r"proj\.", "model.individual_projections=true"),
    (r"proj\.", _HEADS, "model.individual_projections=false"),
    (r"\w+_token_proj\.[fc]", "", "model.token_projection=gated"),
    (r"\w+_token_proj\.", "", "model.token_projection=minimal"),
    ("", r"\w+_token_proj\.", "model.token_projection=none"),
    (r"\w*proj\.[fc]", "", "model.output_projection=gated"),
    (r"\w*proj\.", "", "model.output_projection=minimal"),
    ("", r"\w*proj\.", "model.output_projection=none"),
    (r"davenet\.", "", "model.audio.version=v2"),
    ("", r"davenet\.", "model.audio.version=v1"),
)


def _check_keys(missing: set[str], unexpected: set[str], source: str) -> None:
    if not missing and not unexpected:
        return
    parts = []
    if missing:
        parts.append(f"it lacks {len(missing)} of the model's tensors: {list_keys(sorted(missing))}")
    if unexpected:
        parts.append(f"it has {len(unexpected)} that the model lacks: {list_keys(sorted(unexpected))}")
    hint = "it belongs to another configuration"
    for theirs, ours, setting in _KEY_SETTINGS:
        if _any(theirs, unexpected) and _any(ours, missing):
            hint = f"its configuration probably had {setting}"
            break
    raise CheckpointError(f"{source} does not fit the configured model: {'; '.join(parts)}", hint)


def _any(pattern: str, keys: set[str]) -> bool:
    return not pattern or any(re.match(pattern, key) for key in keys)


_SHAPE_SETTINGS = (
    # a key pattern, the axis, the setting that decides its size
    (r"fusion\w*\.(masking_token|cls_token|norm)|\w+_norm_layer", -1, "model.fusion.embed_dim"),
    (r"(text_token_proj|text_pooling_caption)\.(fc\.)?weight", 1, "model.text_dim"),
    (r"(video_token_proj|GU_video)\.(fc\.)?weight", 1, "model.video_dim"),
    (r"\w+_token_proj\.", 0, "model.fusion.embed_dim"),
    (r"(\w+_)?proj\.|GU_|text_pooling|DAVEnet_projection", 0, "model.embedding_dim"),
    (r"video_pos_embed", 1, "model.video_max_tokens"),
    (r"text_pos_embed", 1, "model.text_max_tokens"),
)
_TEXT_ENCODERS = {300: "word2vec", 384: "minilm", 512: "clip"}


def _shape_hint(key: str, theirs: tuple[int, ...], ours: tuple[int, ...]) -> str:
    if len(theirs) == len(ours):
        for pattern, axis, setting in _SHAPE_SETTINGS:
            if re.match(pattern, key) and theirs[axis] != ours[axis]:
                hint = f"set {setting}={theirs[axis]}"
                encoder = _TEXT_ENCODERS.get(theirs[axis]) if setting == "model.text_dim" else None
                return f"it was trained on other text features; {hint} data.text.encoder={encoder}" if encoder else hint
        if key.startswith("audio_pos_embed"):
            return "set model.audio_max_frames to its number of audio tokens times 64 (16 for DAVEnet v1)"
        if ".mlp." in key:
            return "set model.fusion.mlp_ratio to the width of its MLP over model.fusion.embed_dim"
        if key.lower().startswith("davenet."):
            return "set model.audio.version, model.audio.channels and model.audio.blocks as in its training"
    return "use the configuration it was trained with"


def _finite(tensor: Tensor) -> bool:
    # The sum of finite weights is finite in practice and takes no memory; only if not is every value looked at.
    if not tensor.is_floating_point() or bool(torch.isfinite(tensor.sum())):
        return True
    return bool(torch.isfinite(tensor).all())


def list_keys(keys: list[str]) -> str:
    """The first few keys, and how many more there are."""
    more = f", ... ({len(keys) - SHOWN} more)" if len(keys) > SHOWN else ""
    return ", ".join(keys[:SHOWN]) + more
