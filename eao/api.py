"""Loading a model, whatever it was saved as."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from eao.config import Config, load_config, override_trained
from eao.embedder import Embedder, TorchBackend
from eao.errors import CheckpointError, ConfigError

BUNDLE_MANIFEST = "manifest.json"
CONFIG_FILE = "config.yaml"


def load(path: str | Path, device: str | None = None, overrides: Iterable[str] = ()) -> Embedder:
    """Load a model, ready to embed.

    Args:
        path: a checkpoint folder, a run folder (its `best/`, else its `latest/`), an authors' `.pth`, or a bundle of
            engines made by `eao export`.
        device: "cpu", "cuda", "cuda:1" ...; by default a GPU if there is one. A bundle of engines runs on the CPU
            unless "cuda" is asked for.
        overrides: settings to change as key=value, such as "data.text.path=vectors.bin"; none of `model.*`.

    Raises:
        CheckpointError: there is no model at `path`, or it is damaged.
        ConfigError: an unknown setting, or a device that is not there.

    Example:
        >>> load("runs/demo/best").embed(text="a dog barks").shape  # doctest: +SKIP
        (1, 1024)
    """
    path = Path(path)
    given, device = device, choose_device(device)
    if _is_bundle(path):
        from eao.export.runtime import Bundle

        bundle = Bundle(path, device="cpu" if given is None else given)
        return Embedder(bundle, path, override_trained(bundle.config, overrides, str(path)), device)
    from eao.checkpoint import load_checkpoint

    model, config = load_checkpoint(path)
    return Embedder(TorchBackend(model, config, device), path, override_trained(config, overrides, str(path)), device)


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
    from eao.checkpoint import find_checkpoint, load_authors

    location = find_checkpoint(path)
    return load_config(location / CONFIG_FILE) if location.is_dir() else load_authors(location)[1]


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
