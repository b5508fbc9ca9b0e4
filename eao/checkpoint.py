"""Checkpoints: native folders (model.safetensors + config.yaml), and import of the authors' `.pth` files."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from eao.authors import AuthorsFile, is_authors, read_authors_config, read_pth, translate_config
from eao.config import Config, check_trained, load_config, override_trained
from eao.errors import CheckpointError
from eao.files import atomic_path
from eao.model import build_model
from eao.model.fit import SHOWN, aliases, fit_weights, list_keys

logger = logging.getLogger(__name__)

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.yaml"
RUN_CHECKPOINTS = ("best", "latest")


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
    second_names = aliases(model)
    for key, tensor in model.state_dict().items():
        if key not in second_names:
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


def load_checkpoint(path: str | Path, change: Callable[[Config], Config] | None = None) -> tuple[nn.Module, Config]:
    """The model, in eval mode on the CPU, and its configuration.

    Args:
        path: a native folder, a run folder (its `best/`, else its `latest/`), an authors' `.pth` or a folder with one.
        change: gives the configuration to use in place of the stored one, such as that of an evaluation.

    Raises:
        CheckpointError: if there is none, it is damaged, or weights and configuration do not fit.
        ConfigError: if `change` changes what the weights were trained with.

    Example:
        >>> model, config = load_checkpoint("runs/demo")  # doctest: +SKIP
    """
    location = find_checkpoint(path)
    if location.is_dir():
        config, state = _native_config(location), _read_native(location)
    else:
        file = read_pth(location)
        config, state = _logged(location, *_authors_config(location, file, None)), file.state
    if change is not None:
        changed = change(config)
        check_trained(config.model, changed.model, str(path))
        config = changed
    return _build(config, state, str(location)), config


def checkpoint_config(path: str | Path) -> Config:
    """The configuration of a checkpoint, whose model is not built. See `load_checkpoint`."""
    location = find_checkpoint(path)
    if location.is_dir():
        return _native_config(location)
    return _logged(location, *_authors_config(location, read_pth(location), None))


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
    resolved = _logged(path, *_authors_config(path, file, config))
    return _build(resolved, file.state, str(path)), resolved


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Copy the weights of any checkpoint into an existing model, in place. See `read_weights`.

    Args:
        model: keeps its device and dtype; an optimizer may already hold its parameters.
        path: as in `load_checkpoint`.
    """
    model.load_state_dict(read_weights(model, path))


def read_weights(model: nn.Module, path: str | Path) -> dict[str, Tensor]:
    """The weights of any checkpoint as a model takes them, whatever the checkpoint's configuration.

    Args:
        model: what they are for; may be on the meta device.
        path: as in `load_checkpoint`.

    Raises:
        CheckpointError: if keys or shapes differ, naming the setting to change.
    """
    location = find_checkpoint(path)
    state = _read_native(location) if location.is_dir() else read_pth(location).state
    return fit_weights(model, state, str(location))


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
            f"{target} differs from {location} in {list_keys(different)}",
            "the disk or the memory is at fault; try again",
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
        source, values = Path(config), read_authors_config(config)
    elif file.config is not None:
        source, values = path, dict(file.config)
        if beside.is_file():
            # The copy inside lacks paths such as word2vec's, which their loader removed before saving.
            whole = read_authors_config(beside)
            values = whole if whole.get("arch") == _plain(values.get("arch")) else values
    elif beside.is_file():
        source, values = beside, read_authors_config(beside)
    else:
        raise CheckpointError(
            f"{path} holds no configuration, and there is no {CONFIG_FILE} beside it",
            "put the config.yaml of its training beside it, or name one with --config",
        )
    if not is_authors(values) and ("model" in values or "base" in values):
        return load_config(source), []
    translation = translate_config(values, file.state)
    return translation.config, translation.notices


def _logged(path: Path, config: Config, notices: list[str]) -> Config:
    for notice in notices:
        logger.info("%s: %s", path, notice)
    return config


def _plain(value: Any) -> Any:
    """Ordered dictionaries as plain ones, so that the order of keys does not matter in a comparison."""
    return {key: _plain(each) for key, each in value.items()} if isinstance(value, Mapping) else value


def _build(config: Config, state: dict[str, Tensor], source: str) -> nn.Module:
    # Without memory of its own, so that a checkpoint of gigabytes is held once.
    with torch.device("meta"):
        model = build_model(config.model)
    model.load_state_dict(fit_weights(model, state, source), assign=True)
    return model.eval()


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
