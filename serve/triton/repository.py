"""Writing a Triton model repository from a bundle of engines."""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eao.config import Config, load_config
from eao.errors import ServingError
from eao.export.manifest import Manifest, check_file, load_manifest, versions
from eao.files import atomic_path, write_json, write_text
from eao.model.batch import encoder_modalities
from eao.serve.triton import schema
from eao.serve.triton.check import check_repository
from eao.serve.triton.engines import Choice, choose_engines, write_engine
from eao.serve.triton.environment import requirements
from eao.serve.triton.preparation import Prepared, ensemble, prepare_audio, prepare_text, prepare_video
from eao.serve.triton.schema import Target

RECORD = "repository.json"
"""Marks a folder as written here, and names what is in it. Triton looks at folders only."""
DEPLOYMENT = ("Dockerfile", "compose.yaml", "kubernetes.yaml", "kserve.yaml")
_FORMAT = 1


@dataclass(frozen=True)
class Repository:
    """What `write_repository` wrote.

    Attributes:
        path: of the repository.
        target: where its server runs.
        model_sha256: of the PyTorch weights.
        engines: encoder -> runtime and precision, as "onnxruntime fp32".
        models: names of all models, ensembles included.
    """

    path: Path
    target: Target
    model_sha256: str
    engines: dict[str, str]
    models: tuple[str, ...]


def write_repository(
    bundle: str | Path,
    out: str | Path,
    target: Target = "cpu",
    engine: str | None = None,
    precision: str | None = None,
    encoders: Sequence[str] = (),
    instances: int | None = None,
) -> Repository:
    """Write a model repository: a model per encoder, and an ensemble from raw inputs to its embedding.

    It appears at `out` whole, and only after every configuration was read back and checked. An older repository there
    is replaced.

    Args:
        bundle: a folder that `eao export` wrote.
        out: the repository.
        target: "cpu", "gpu" or "tensorrt".
        engine: of the bundle, use this runtime only.
        precision: of the bundle, use engines of this precision only.
        encoders: by default all.
        instances: of each network; by default one on a CPU, two per GPU.

    Raises:
        ExportError: no bundle, or a damaged one.
        ServingError: no engine for the target; or `out` holds something else.
        MissingDependencyError: tritonclient or onnx is not installed.

    Example:
        write_repository("runs/demo/bundle", "triton").models   # ("audio", "embed-audio", ...)
    """
    bundle, out = Path(bundle), Path(out)
    schema.messages()
    manifest = load_manifest(bundle)
    check_file(bundle, manifest.config)
    config = load_config(bundle / manifest.config.file)
    choices = choose_engines(manifest, config, target, engine, precision, encoders)
    _check_output(out)
    parameters = {"model_sha256": manifest.model_sha256}
    parameters["config"] = (bundle / manifest.config.file).read_text(encoding="utf-8")
    with atomic_path(out) as folder:
        folder.mkdir()
        configs: list[Any] = []
        for choice in choices:
            own = {**parameters, "engine": choice.entry.engine, "precision": choice.entry.precision}
            configs += write_engine(choice, bundle, folder, target, own, manifest.embedding_dim)
        prepared = _prepare(choices, manifest, config, bundle, folder, target)
        configs += [made for part in prepared.values() for made in part.configs]
        for choice in choices:
            configs.append(ensemble(choice, prepared, manifest.embedding_dim))
        if instances is not None:
            schema.repeat(configs, instances)
        for made in configs:
            if made.platform == "ensemble":  # its version is empty, which object stores would not keep
                (folder / made.name / schema.VERSION).mkdir(parents=True)
                (folder / made.name / schema.VERSION / ".keep").touch()
            schema.write_config(made, folder / made.name)
        models = check_repository(folder)
        _write_deployment(folder, target)
        engines = {c.encoder: f"{c.entry.engine} {c.entry.precision}" for c in choices}
        record = {
            "format": _FORMAT,
            "model_sha256": manifest.model_sha256,
            "target": target,
            "engines": engines,
            "entries": sorted([*(path.name for path in folder.iterdir()), RECORD]),
            "versions": versions(),
        }
        write_json(folder / RECORD, record)
    return Repository(out, target, manifest.model_sha256, engines, models)


def _prepare(
    choices: Sequence[Choice], manifest: Manifest, config: Config, bundle: Path, folder: Path, target: Target
) -> dict[str, Prepared]:
    """The models for each modality that an encoder reads."""
    size = max(choice.max_batch_size for choice in choices)
    modalities = {modality for choice in choices for modality in encoder_modalities(choice.encoder)}
    taken = {spec.name for choice in choices for spec in choice.specs}
    prepared = {}
    if "text" in modalities:
        prepared["text"] = prepare_text(manifest, config, bundle, folder, target, size)
    if "video" in modalities:
        prepared["video"] = prepare_video(config, folder, size, "video_mask" in taken)
    if "audio" in modalities:
        prepared["audio"] = prepare_audio(config, folder, size, sorted(taken))
    return prepared


def _check_output(out: Path) -> None:
    """Refuse to replace a folder that was not written here, or to which something was added.

    Raises:
        ServingError: naming what is in it.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise ServingError(f"{out} is a file", "name a folder")
    held = sorted(path.name for path in out.iterdir())
    try:
        known = json.loads((out / RECORD).read_text(encoding="utf-8"))["entries"]
    except (OSError, ValueError, KeyError, TypeError):
        known = []
    others = [name for name in held if name not in known]
    if others:
        raise ServingError(f"{out} holds {others[0]}, which is not of this command's making", "name another folder")


def _write_deployment(folder: Path, target: Target) -> None:
    """Write what runs the repository in NVIDIA's image. Lines that are for a GPU end in `# gpu`."""
    source = importlib.resources.files("eao.serve.triton") / "deploy"
    for name in DEPLOYMENT:
        lines = (source / name).read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if target != "cpu" or not line.endswith("# gpu")]
        write_text(folder / name, "\n".join(line.removesuffix("# gpu").rstrip() for line in kept) + "\n")
    needed = [package for package in requirements(()) if not package.startswith("numpy")]
    write_text(folder / "requirements.txt", "\n".join(needed) + "\n")
