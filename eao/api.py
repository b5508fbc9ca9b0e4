"""Loading a model, whatever it was saved as."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from eao.backend import TorchBackend
from eao.config import Config, load_config, override_config
from eao.embedder import Embedder
from eao.errors import CheckpointError, ConfigError

BUNDLE_MANIFEST = "manifest.json"
CONFIG_FILE = "config.yaml"


def load(
    path: str | Path,
    device: str | None = None,
    overrides: Iterable[str] = (),
    engine: str | None = None,
    precision: str | None = None,
) -> Embedder:
    """Load a model, ready to embed.

    Args:
        path: a checkpoint folder, a run folder (its `best/`, else its `latest/`), an authors' `.pth`, or a bundle of
            engines made by `eao export`.
        device: "cpu", "cuda", "cuda:1" ...; by default a GPU if there is one. A bundle of engines runs on the CPU
            unless "cuda" is asked for.
        overrides: settings to change as key=value, such as "data.text.path=vectors.bin". Of `model.*` only those that
            mean the same weights, such as `model.audio_pooling`.
        engine: of a bundle, use this runtime, such as "openvino"; by default the first in the bundle that runs here.
        precision: of a bundle, use engines of this precision, such as "int8".

    Raises:
        CheckpointError: there is no model at `path`, or it is damaged.
        ConfigError: an unknown setting, one that the weights do not fit, or a device that is not there; an engine or
            precision asked of a checkpoint.
        ExportError: a damaged bundle, or one without such an engine.

    Example:
        >>> load("runs/demo/best").embed(text="a dog barks").shape  # doctest: +SKIP
        (1, 1024)
    """
    return _load(Path(path), device, lambda trained: override_config(trained, overrides), engine, precision)


def load_for_evaluation(
    path: str | Path, experiment: str | Path, device: str | None = None, overrides: Iterable[str] = ()
) -> Embedder:
    """Load a model with the settings of an evaluation laid over its own.

    Args:
        path: see `load`.
        experiment: a file in this package's schema or the authors', or the name of a shipped one, such as
            "evaluation/msrvtt_at_once".
        device: see `load`.
        overrides: see `load`; they come last.

    Raises:
        CheckpointError: as `load`.
        ConfigError: as `load`; there is no such experiment, or its `model` is not what the weights were trained with.

    Example:
        >>> load_for_evaluation("checkpoints/everything_at_once_tva", "msrvtt_clips")  # doctest: +SKIP
    """
    from eao.experiments import load_evaluation

    return _load(Path(path), device, lambda trained: override_config(load_evaluation(experiment, trained), overrides))


def _load(
    path: Path,
    device: str | None,
    change: Callable[[Config], Config],
    engine: str | None = None,
    precision: str | None = None,
) -> Embedder:
    given, device = device, choose_device(device)
    if _is_bundle(path):
        from eao.export.runtime import Bundle

        bundle = Bundle(path, device="cpu" if given is None else given, engine=engine, precision=precision)
        config = change(bundle.config)
        if config.model != bundle.config.model:
            raise ConfigError(
                f"model.* of {path} cannot be changed: its engines are compiled", "evaluate the checkpoint instead"
            )
        return Embedder(bundle, path, config, device)
    if engine is not None or precision is not None:
        raise ConfigError(f"{path} is a checkpoint, which PyTorch runs", "an engine and a precision are for bundles")
    from eao.checkpoint import load_checkpoint

    model, config = load_checkpoint(path, change)
    return Embedder(TorchBackend(model, config, device), path, config, device)


def load_model_config(path: str | Path) -> Config:
    """The configuration of a saved model, without its weights where they are apart from it.

    Args:
        path: see `load`.
    """
    path = Path(path)
    if _is_bundle(path):
        if not (path / CONFIG_FILE).is_file():
            raise CheckpointError(f"the bundle {path} has no {CONFIG_FILE}", "copy the bundle whole")
        return load_config(path / CONFIG_FILE)
    from eao.checkpoint import checkpoint_config

    return checkpoint_config(path)


def choose_device(device: str | None = None) -> str:
    """A device by name, or by default a GPU if there is one.

    Raises:
        ConfigError: there is no such device.
    """
    import torch

    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ConfigError(f"unknown device {device!r}", "give cpu, cuda or cuda:1") from None
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"there is no device {device}", f"{torch.cuda.device_count()} CUDA devices are usable; see eao doctor"
        )
    return device


def _is_bundle(path: Path) -> bool:
    if path.name == BUNDLE_MANIFEST and path.is_file():
        raise CheckpointError(f"{path} is the manifest of a bundle", f"give its folder, {path.parent}")
    return (path / BUNDLE_MANIFEST).is_file()
