"""The authors' `arch` as the model section."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from eao.authors.schema import leftover, renamed
from eao.errors import CheckpointError

ARCHITECTURES = {
    "EverythingAtOnceModel": "fusion",
    "EverythingAtOnceModel_TV_Only": "text-video",
    "TransformerPerModalityModel": "per-modality",
    "AVLnetBaselineModel": "avlnet",
}
PROJECTIONS = {"gated": "gated", "minimal": "minimal", "": "none"}
# The authors' constructor defaults, which differ from this package's (those are the published model).
FUSION_DEFAULTS = {"embed_dim": 768, "depth": 1, "num_heads": 12, "mlp_ratio": 4.0}
MODEL_KEYS = {
    "video_embed_dim": "video_dim",
    "text_embed_dim": "text_dim",
    "projection_dim": "embedding_dim",
    "individual_projections": "individual_projections",
    "cross_modal": "cross_modal",
    "use_positional_emb": "use_positional_emb",
    "text_max_tokens": "text_max_tokens",
    "video_max_tokens": "video_max_tokens",
    "audio_max_num_STFT_frames": "audio_max_frames",
    "strategy_audio_pooling": "audio_pooling",
}


def translate_model(arch: Mapping[str, Any], weights: Mapping[str, Tensor], notices: list[str]) -> dict[str, Any]:
    """The model section.

    Args:
        arch: their section, `type` and `args`.
        weights: the state dict it belongs to, or nothing. Widths of the audio network, which their schema cannot say,
            and feature widths that the section leaves out are taken from it.
        notices: what cannot be translated is added here.

    Raises:
        CheckpointError: no or an unknown architecture, or values that no model can have.
    """
    kind = arch.get("type")
    if not kind:
        raise CheckpointError(
            "the configuration names no architecture (`arch`)",
            "give the config.yaml that was written with the checkpoint",
        )
    if kind not in ARCHITECTURES:
        raise CheckpointError(f"unknown architecture {kind!r}", f"known: {', '.join(ARCHITECTURES)}")
    args = dict(arch.get("args") or {})
    model: dict[str, Any] = {"architecture": ARCHITECTURES[kind]}
    if kind == "AVLnetBaselineModel":
        if args.pop("davenet_v2", False):
            raise CheckpointError("AVLnet cannot work with davenet_v2", "set arch.args.davenet_v2: false")
        names = {"embd_dim": "embedding_dim", "video_dim": "video_dim", "we_dim": "text_dim"}
        model |= {"embedding_dim": 4096, "audio_flag_from_video": True}
        version = "v1"
    else:
        names = MODEL_KEYS
        fusion = dict(args.pop("fusion_params", None) or {})
        for option in ("norm_layer", "act_layer"):
            if fusion.pop(option, None) is not None:
                notices.append(f"arch.args.fusion_params.{option}: not supported; LayerNorm and exact GELU are used")
        model["fusion"] = FUSION_DEFAULTS | fusion
        for theirs, ours in (("token_projection", "token_projection"), ("projection", "output_projection")):
            name = args.pop(theirs, "gated")
            if name not in PROJECTIONS:
                raise CheckpointError(f"arch.args.{theirs}: unknown projection {name!r}", "known: gated, minimal, ''")
            model[ours] = PROJECTIONS[name]
        if kind == "TransformerPerModalityModel":
            model |= {"cross_modal": False}
        version = "v2" if args.pop("davenet_v2", True) else "v1"
    model |= renamed(args, names)
    leftover(args, "arch.args.", set(names), notices)
    dims = {"text_dim": ("text_token_proj", "text_pooling_caption"), "video_dim": ("video_token_proj", "GU_video")}
    for key, layers in dims.items():
        candidates = (weights.get(f"{layer}.{leaf}") for layer in layers for leaf in ("fc.weight", "weight"))
        weight = next((w for w in candidates if w is not None), None)
        if key not in model and weight is not None:
            model[key] = weight.shape[1]
    model["audio"] = _audio(version, weights, notices)
    return model


def _audio(version: str, weights: Mapping[str, Tensor], notices: list[str]) -> dict[str, Any]:
    """The audio network as the weights have it; the schema knows only two sizes."""
    from eao.model.audio import PUBLISHED

    found: dict[int, dict[int, int]] = {}  # stage -> block -> channels
    first = None
    for key, tensor in weights.items():
        if key in ("davenet.conv1.weight", "DAVEnet.conv1.weight"):
            first = tensor.shape[0]
        if match := re.fullmatch(r"(?:davenet|DAVEnet)\.layer(\d+)\.(\d+)\.conv2\.weight", key):
            found.setdefault(int(match[1]), {})[int(match[2])] = tensor.shape[0]
    if first is None or not found:
        return {"version": version}
    by_stages = {4: "v1", 6: "v2"}.get(len(found))
    if by_stages is not None and by_stages != version:
        notices.append(f"arch.args.davenet_v2: the weights are DAVEnet {by_stages}, the configuration says {version}")
        version = by_stages
    channels = (first, *(found[stage][0] for stage in sorted(found)))
    blocks = tuple(len(found[stage]) for stage in sorted(found))
    audio: dict[str, Any] = {"version": version}
    audio |= {"channels": channels} if channels != PUBLISHED[version][0] else {}
    return audio | ({"blocks": blocks} if blocks != PUBLISHED[version][1] else {})
