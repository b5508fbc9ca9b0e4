"""The authors' checkpoints and configuration files, read without running anything that is in them."""

from __future__ import annotations

import re
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from eao.config import Config, parse_config
from eao.errors import CheckpointError, ConfigError

ARCHITECTURES = {
    "EverythingAtOnceModel": "fusion",
    "EverythingAtOnceModel_TV_Only": "text-video",
    "TransformerPerModalityModel": "per-modality",
    "AVLnetBaselineModel": "avlnet",
}
PROJECTIONS = {"gated": "gated", "minimal": "minimal", "": "none"}
LOSSES = {"NormSoftmax": "norm-softmax", "MMS": "mms"}
LOSS_WEIGHTS = {
    "tv_weight": "text_video",
    "ta_weight": "text_audio",
    "va_weight": "video_audio",
    "t_va_weight": "text_videoaudio",
    "v_ta_weight": "video_textaudio",
    "a_tv_weight": "audio_textvideo",
}
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
DATA_KEYS = {
    "n_video_tokens": "video_tokens",
    "num_audio_STFT_frames": "audio_frames",
    "video_sampling_strategy": "sampling",
}
# Read by nothing in the authors' code either, or without a counterpart worth a notice.
SILENT = {
    "trainer.use_clip_text_model_use_proj",
    "trainer.use_clip_text_model_use_just_cls",
    "trainer.verbosity",
    "name",
}


@dataclass
class Translation:
    """The authors' configuration in this package's schema, and what could not be carried over."""

    config: Config
    notices: list[str] = field(default_factory=list)


@dataclass
class AuthorsFile:
    """What a `.pth` holds: weights with `module.` taken off, and the configuration if the file has it."""

    state: dict[str, Tensor]
    config: Mapping[str, Any] | None


def read_pth(path: str | Path) -> AuthorsFile:
    """Read a `.pth` in either of torch's containers.

    Only tensors, plain values and numpy scalars are accepted: a file that names anything else is refused unopened, so
    that a checkpoint from the internet can never run code.

    Raises:
        CheckpointError: for a missing, truncated or foreign file, one that holds code, or one without weights.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}", "check the path")
    is_zip = zipfile.is_zipfile(path)
    try:
        with torch.serialization.safe_globals(_numpy_scalars()):
            # Mapped, so that the optimizer state of the published files (twice the weights) is never read.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except MemoryError:
        raise
    except Exception as error:  # torch answers damaged files with a dozen different types
        raise _unreadable(path, error) from None
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not state or not all(isinstance(x, Tensor) for x in state.values()):
        raise CheckpointError(f"{path} holds no model weights", "expected a dictionary with the entry `state_dict`")
    prefix = "module." if all(str(key).startswith("module.") for key in state) else ""
    config = content.get("config") if state is not content else None
    return AuthorsFile(
        state={str(key).removeprefix(prefix): tensor for key, tensor in state.items()},
        config=config if isinstance(config, Mapping) else None,
    )


def read_authors_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file as a mapping. Raises a CheckpointError if it is missing or malformed."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CheckpointError(f"cannot read {path}: {' '.join(str(error).split())}", "check the path") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} is not a configuration: the top level must be a mapping")
    return values


def translate_config(authors: Mapping[str, Any], weights: Mapping[str, Tensor] | None = None) -> Translation:
    """The authors' configuration schema in ours.

    Args:
        authors: their YAML: `arch`, `loss`, `optimizer`, `lr_scheduler`, `trainer`, `data_loader`, ...
        weights: the state dict it belongs to. Widths of the audio network, which the authors' schema cannot say, and
            feature widths that the file leaves out are taken from it.

    Raises:
        CheckpointError: without `arch`, for an unknown architecture, or for values this model cannot have.
    """
    notices: list[str] = []
    values: dict[str, Any] = {"model": _model(_section(authors, "arch"), weights or {}, notices)}
    values |= _training(authors, notices)
    values["data"], values["evaluation"] = _data(authors, notices)
    if loader := _section(_section(_section(authors, "data_loader"), "args"), "dataset_kwargs"):
        values["features"] = _features(loader)
    if isinstance(authors.get("name"), str):
        values["name"] = authors["name"]
    known = {"arch", "loss", "optimizer", "lr_scheduler", "trainer", "data_loader", "val_data_loaders", "metrics"}
    _leftover(authors, "", known, notices)
    try:
        return Translation(parse_config(values, "the authors' configuration"), notices)
    except ConfigError as error:
        raise CheckpointError(error.message, error.hint) from None


def _model(arch: Mapping[str, Any], weights: Mapping[str, Tensor], notices: list[str]) -> dict[str, Any]:
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
    model |= {ours: args[theirs] for theirs, ours in names.items() if args.get(theirs) is not None}
    _leftover(args, "arch.args.", set(names), notices)
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


def _training(authors: Mapping[str, Any], notices: list[str]) -> dict[str, Any]:
    values: dict[str, Any] = {"schedule": {"name": "constant"}}
    if loss := dict(_section(authors, "loss").get("args") or {}):
        kind = loss.pop("contrastive_loss", "NormSoftmax")
        if kind not in LOSSES:
            raise CheckpointError(f"loss.args.contrastive_loss: unknown loss {kind!r}", f"known: {', '.join(LOSSES)}")
        weights = {ours: loss[theirs] for theirs, ours in LOSS_WEIGHTS.items() if theirs in loss}
        values["loss"] = {"kind": LOSSES[kind], "weights": weights}
        values["loss"] |= {"temperature": loss["temperature"]} if "temperature" in loss else {}
        _leftover(loss, "loss.args.", {*LOSS_WEIGHTS, "temperature"}, notices)
    if optimizer := _section(authors, "optimizer"):
        args = dict(optimizer.get("args") or {})
        values["optimizer"] = {"name": optimizer.get("type", "Adam"), "lr": args.pop("lr", 1e-3), "args": args}
    if schedule := _section(authors, "lr_scheduler"):
        if schedule.get("type") == "ExponentialLR":
            values["schedule"] = {"name": "exponential", "gamma": (schedule.get("args") or {}).get("gamma", 0.9)}
        else:
            notices.append(f"lr_scheduler: {schedule.get('type')} has no counterpart; the rate stays constant")
    trainer = _section(authors, "trainer")
    section: dict[str, Any] = {"precision": "auto" if trainer.get("mixed_precision") else "fp32", "monitor": None}
    names = {"epochs": "epochs", "save_period": "save_every", "use_eval_mode_always": "eval_mode"}
    section |= {ours: trainer[theirs] for theirs, ours in names.items() if theirs in trainer}
    if isinstance(trainer.get("early_stop"), int) and trainer["early_stop"] > 0:
        section["early_stop"] = trainer["early_stop"]
    values["trainer"] = section
    off = {"monitor"} if trainer.get("monitor", "off") == "off" else set()
    _leftover(trainer, "trainer.", {*names, *off, "mixed_precision", "early_stop", "use_clip_text_model"}, notices)
    return values


def _data(authors: Mapping[str, Any], notices: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    loader, data = _loader(_section(authors, "data_loader"))
    kwargs = dict(loader.get("dataset_kwargs") or {})
    text: dict[str, Any] = {}
    if "max_words" in kwargs:
        text["max_words"] = kwargs["max_words"]
    if _section(authors, "trainer").get("use_clip_text_model"):
        text["encoder"] = "clip"
    elif isinstance(kwargs.get("word2vec_path"), str):
        text["path"] = kwargs["word2vec_path"]
    if text:
        data["text"] = text
    clips = kwargs.get("n_clips", 1)
    if isinstance(loader.get("batch_size"), int):
        # One row of the contrastive loss is a clip; their loader counts videos.
        data["batch_size"] = loader["batch_size"] * (clips if isinstance(clips, int) else 1)
    if isinstance(loader.get("num_workers"), int):
        data["workers"] = loader["num_workers"]
    streams = {"use_2D", "use_3D", "key_2d", "key_3d", "feature_per_sec_2D", "feature_per_sec_3D"}
    translated = {*DATA_KEYS, *streams, "max_words", "word2vec_path", "n_clips", "we_dim"}
    _leftover(kwargs, "data_loader.args.dataset_kwargs.", translated, notices)
    evaluation: dict[str, Any] = {}
    validations = authors.get("val_data_loaders")
    for position, each in enumerate(validations if isinstance(validations, list) else []):
        args, sizes = _loader(each if isinstance(each, Mapping) else {})
        if position == 0 and isinstance(args.get("batch_size"), int):
            evaluation["batch_size"] = args["batch_size"]
        different = " ".join(f"data.{key}={value}" for key, value in sizes.items() if data.get(key, value) != value)
        if different:
            notices.append(f"val_data_loaders[{position}]: {args.get('dataset_name')} was evaluated with {different}")
    metrics = authors.get("metrics")
    if isinstance(metrics, list) and metrics:
        tasks = [str(name).removesuffix("_metrics") for name in metrics]
        # "t2v_va" and the like are accepted by their code and never computed.
        evaluation["tasks"] = [task for task in tasks if "_" not in task]
    return data, evaluation


def _features(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The feature streams a data set of theirs was made of: ResNet-152 and ResNeXt-101 unless it says otherwise."""
    rate_2d, rate_3d = kwargs.get("feature_per_sec_2D"), kwargs.get("feature_per_sec_3D")
    clip = kwargs.get("key_2d") == "clip" or (kwargs.get("use_3D") is False and kwargs.get("use_2D", True))
    s3d = kwargs.get("key_3d") == "s3d" or (kwargs.get("use_2D") is False and kwargs.get("use_3D", True))
    video_2d = {"backbone": "clip-vit-b32" if clip else "resnet152", "rate": rate_2d or 1.0}
    video_3d = {"backbone": "s3d" if s3d else "resnext101", "rate": rate_3d or (1.0 if s3d else 1.5)}
    return {
        "video_2d": video_2d if kwargs.get("use_2D", True) else None,
        "video_3d": video_3d if kwargs.get("use_3D", True) else None,
    }


def _loader(loader: Mapping[str, Any]) -> tuple[Mapping[str, Any], dict[str, Any]]:
    args = _section(loader, "args")
    kwargs = _section(args, "dataset_kwargs")
    # 0 video tokens mean one pooled vector, which only AVLnet uses and which needs no number of tokens.
    return args, {ours: kwargs[theirs] for theirs, ours in DATA_KEYS.items() if kwargs.get(theirs)}


def _section(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = values.get(name)
    return section if isinstance(section, Mapping) else {}


def _leftover(section: Mapping[str, Any], prefix: str, known: set[str], notices: list[str]) -> None:
    for key, value in section.items():
        if key not in known and f"{prefix}{key}" not in SILENT:
            notices.append(f"{prefix}{key}: not translated (was {value!r})")


def _numpy_scalars() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Globals of a pickled numpy number, such as a best metric: under numpy 1's module name and numpy 2's."""
    import numpy as np

    scalar: Any = np.float64(0).__reduce__()[0]
    kinds = ("float64", "float32", "int64", "int32")
    return [
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        np.dtype,
        *(type(np.dtype(kind)) for kind in kinds),
    ]


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    if match := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return CheckpointError(
            f"{path} is refused: loading it would run {match[1]}, and a checkpoint needs no code",
            "get the file from its authors, or re-save it with only tensors and plain values",
        )
    with path.open("rb") as file:
        head = file.read(512)
    again = "download it again"
    if not head:
        return CheckpointError(f"{path} is empty", again)
    if head.startswith(b"version https://git-lfs"):
        return CheckpointError(f"{path} is a Git LFS pointer, not the file itself", "run `git lfs pull`")
    if head.lstrip()[:14].lower().startswith((b"<!doctype", b"<html")):
        return CheckpointError(f"{path} is a web page, not a checkpoint", "the download link led to a page; " + again)
    if head.startswith(b"PK\x03\x04"):
        return CheckpointError(f"{path} is truncated or damaged: {_line(error)}", again)
    if tarfile.is_tarfile(path):
        return CheckpointError(f"{path} is an archive of checkpoints", f"unpack it first: tar xf {path.name}")
    # torch's legacy container starts with the pickled magic number 0x1950a86a20f9469cfc6c.
    if bytes.fromhex("6cfc9c46f9206aa85019") in head[:32]:
        return CheckpointError(f"{path} is truncated or damaged: {_line(error)}", again)
    return CheckpointError(
        f"{path} is not a checkpoint", "expected a .pth written by torch.save, or a native checkpoint folder"
    )


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
