"""Checkpoints: native folders (model.safetensors + config.yaml), and import of the authors' `.pth` files."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from eao.authors import AuthorsFile, read_authors_yaml, read_pth, translate_config
from eao.config import Config, load_config, override_trained
from eao.errors import CheckpointError
from eao.files import atomic_path
from eao.model import build_model

logger = logging.getLogger(__name__)

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.yaml"
RUN_CHECKPOINTS = ("best", "latest")
SHOWN = 3
"""How many keys an error lists."""


def save_native(
    folder: str | Path,
    model: nn.Module,
    config: Config,
    extra: Mapping[str, bytes | Callable[[Path], None]] | None = None,
) -> None:
    """Write a native checkpoint: a folder with `model.safetensors` and `config.yaml`.

    The folder appears, or replaces the checkpoint that stood there, only when it is complete. Tensors under two names
    (the per-modality model) are written once.

    Args:
        folder: where to.
        model: any model of `build_model`.
        config: the experiment it belongs to; `config.model` must describe `model`.
        extra: further files of the folder by name: their content, or a function that writes to the path it is given.

    Raises:
        CheckpointError: if `folder` exists and is no checkpoint, since it would be replaced with all it holds.
    """
    folder = Path(folder)
    _refuse_foreign(folder)
    once: dict[str, Tensor] = {}
    aliases = _aliases(model)
    for key, tensor in model.state_dict().items():
        if key not in aliases:
            once[key] = tensor.detach().cpu().contiguous()
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        save_file(once, temporary / WEIGHTS_FILE, metadata={"format": "pt"})
        config.save(temporary / CONFIG_FILE)
        # safetensors writes for the owner alone, but another user may serve what this one trained.
        (temporary / WEIGHTS_FILE).chmod((temporary / CONFIG_FILE).stat().st_mode)
        for name, content in (extra or {}).items():
            if isinstance(content, bytes):
                (temporary / name).write_bytes(content)
            else:
                content(temporary / name)


def load_checkpoint(path: str | Path) -> tuple[nn.Module, Config]:
    """The model, in eval mode on the CPU, and its configuration.

    Args:
        path: a native folder, a run folder (its `best/`, else its `latest/`), an authors' `.pth` or a folder with one.

    Raises:
        CheckpointError: if there is none, it is damaged, or weights and configuration do not fit.

    Example:
        >>> model, config = load_checkpoint("runs/demo")  # doctest: +SKIP
    """
    location = find_checkpoint(path)
    return load_native(location) if location.is_dir() else load_authors(location)


def load_native(folder: str | Path) -> tuple[nn.Module, Config]:
    """Load a folder written by `save_native`. See `load_checkpoint`."""
    folder = Path(folder)
    config = _native_config(folder)
    return _build(config, _read_native(folder), str(folder)), config


def load_authors(path: str | Path, config: Config | str | Path | None = None) -> tuple[nn.Module, Config]:
    """Load a `.pth` of the authors' code, with or without `module.` prefixes, in either of torch's containers.

    Args:
        path: the file.
        config: what to use in place of the configuration in the file or in `config.yaml` beside it: a `Config`, or the
            path of a YAML file in either schema.
    """
    path = Path(path)
    file = read_pth(path)
    resolved, notices = _authors_config(path, file, config)
    for notice in notices:
        logger.info("%s: %s", path, notice)
    return _build(resolved, file.state, str(path)), resolved


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Copy the weights of any checkpoint into an existing model, in place, whatever the checkpoint's configuration.

    Args:
        model: keeps its device and dtype; an optimizer may already hold its parameters.
        path: as in `load_checkpoint`.

    Raises:
        CheckpointError: if keys or shapes differ, naming the setting to change.
    """
    location = find_checkpoint(path)
    state = _read_native(location) if location.is_dir() else read_pth(location).state
    model.load_state_dict(_fit(model, state, str(location)))


def find_checkpoint(path: str | Path) -> Path:
    """The native folder or `.pth` file that a path means. See `load_checkpoint`."""
    path = Path(path)
    if path.name == WEIGHTS_FILE and path.is_file():
        return path.parent
    if path.is_file():
        return path
    if not path.exists():
        raise CheckpointError(f"no checkpoint at {path}", "check the path")
    if (path / WEIGHTS_FILE).is_file():
        return path
    for name in RUN_CHECKPOINTS:
        if (path / name / WEIGHTS_FILE).is_file():
            return path / name
    if (path / "manifest.json").is_file():
        raise CheckpointError(
            f"{path} is a bundle of engines, which holds no weights", "name the checkpoint it was made from"
        )
    files = sorted(path.glob("*.pth"))
    if len(files) == 1:
        return files[0]
    if files:
        names = ", ".join(file.name for file in files[:SHOWN])
        raise CheckpointError(f"{path} holds {len(files)} checkpoints ({names})", "name one of the files")
    raise CheckpointError(
        f"{path} holds no checkpoint",
        f"expected {WEIGHTS_FILE} and {CONFIG_FILE}, or a run folder with best/ or latest/",
    )


def convert(
    source: str | Path, target: str | Path, config: str | Path | None = None, overrides: Iterable[str] = ()
) -> dict[str, Any]:
    """Convert an authors' `.pth` to a native checkpoint, and check that every tensor came over bit by bit.

    Args:
        source: the `.pth`, or a folder with one.
        target: the folder to write.
        config: the authors' configuration, if it is neither in the file nor beside it.
        overrides: settings of the new configuration as key=value, such as data.text.path; none of `model.*`.

    Returns:
        `source`, `target`, `tensors`, `parameters` and `notices` (what of their configuration was not translated).

    Raises:
        CheckpointError: if the source is native already, cannot be read, or the copy differs.
    """
    location = find_checkpoint(source)
    if location.is_dir():
        raise CheckpointError(f"{location} is a native checkpoint already", "copy the folder if you need a second one")
    _refuse_foreign(Path(target))
    file = read_pth(location)
    resolved, notices = _authors_config(location, file, config)
    resolved = override_trained(resolved, overrides, str(location))
    model = _build(resolved, file.state, str(location))
    save_native(target, model, resolved)
    copy, _ = load_native(target)
    written = copy.state_dict()
    different = [key for key, tensor in file.state.items() if not _same_bits(tensor, written[key])]
    if different:
        raise CheckpointError(
            f"{target} differs from {location} in {_list(different)}", "the disk or the memory is at fault; try again"
        )
    return {
        "source": str(location),
        "target": str(target),
        "tensors": len(file.state),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "notices": notices,
    }


def _native_config(folder: Path) -> Config:
    if not folder.is_dir():
        raise CheckpointError(f"no checkpoint at {folder}", "check the path")
    if not (folder / CONFIG_FILE).is_file():
        raise CheckpointError(
            f"{folder} has no {CONFIG_FILE}", "a native checkpoint is a folder; copy it whole, not only its weights"
        )
    return load_config(folder / CONFIG_FILE)


def _read_native(folder: Path) -> dict[str, Tensor]:
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {WEIGHTS_FILE}", "a native checkpoint is a folder; copy it whole")
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is truncated or damaged: {error}", "copy or convert it again") from None


def _authors_config(path: Path, file: AuthorsFile, config: Config | str | Path | None) -> tuple[Config, list[str]]:
    if isinstance(config, Config):
        return config, []
    beside = path.parent / CONFIG_FILE
    if config is not None:
        source, values = Path(config), read_authors_yaml(config)
    elif file.config is not None:
        source, values = path, dict(file.config)
        if beside.is_file():
            # The copy inside lacks paths such as word2vec's, which their loader removed before saving.
            whole = read_authors_yaml(beside)
            values = whole if whole.get("arch") == _plain(values.get("arch")) else values
    elif beside.is_file():
        source, values = beside, read_authors_yaml(beside)
    else:
        raise CheckpointError(
            f"{path} holds no configuration, and there is no {CONFIG_FILE} beside it",
            "put the config.yaml of its training beside it, or name one with --config",
        )
    if "arch" not in values and ("model" in values or "base" in values):
        return load_config(source), []
    translation = translate_config(values, file.state)
    return translation.config, translation.notices


def _plain(value: Any) -> Any:
    """Ordered dictionaries as plain ones, so that the order of keys does not matter in a comparison."""
    return {key: _plain(each) for key, each in value.items()} if isinstance(value, Mapping) else value


def _build(config: Config, state: dict[str, Tensor], source: str) -> nn.Module:
    # Without memory of its own, so that a checkpoint of gigabytes is held once.
    with torch.device("meta"):
        model = build_model(config.model)
    model.load_state_dict(_fit(model, state, source), assign=True)
    return model.eval()


def _fit(model: nn.Module, state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The state with second names filled in and floats in the model's type, checked key by key."""
    expected = model.state_dict()
    # Of two names with different values the later one wins, as in the original's loading.
    full = dict(state)
    for alias, key in _aliases(model).items():
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
            f"{source}: NaN or infinite weights in {_list(broken)}", "its training diverged; use an earlier checkpoint"
        )
    return {
        key: full[key].to(tensor.dtype) if tensor.is_floating_point() else full[key] for key, tensor in expected.items()
    }


def _aliases(model: nn.Module) -> dict[str, str]:
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
        parts.append(f"it lacks {len(missing)} of the model's tensors: {_list(sorted(missing))}")
    if unexpected:
        parts.append(f"it has {len(unexpected)} that the model lacks: {_list(sorted(unexpected))}")
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


def _same_bits(a: Tensor, b: Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(a.contiguous().reshape(-1).view(torch.uint8), b.contiguous().reshape(-1).view(torch.uint8))


def _refuse_foreign(folder: Path) -> None:
    """A checkpoint replaces the folder it is written to, so that one must be a checkpoint itself, or empty."""
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file", "name a folder for the checkpoint")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / WEIGHTS_FILE).is_file():
        raise CheckpointError(f"{folder} holds other files, which a checkpoint would replace", "name a new folder")


def _list(keys: list[str]) -> str:
    more = f", ... ({len(keys) - SHOWN} more)" if len(keys) > SHOWN else ""
    return ", ".join(keys[:SHOWN]) + more
