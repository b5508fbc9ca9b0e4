"""Checks of a model repository that need no server: what Triton would refuse, and what it would find while running."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eao.errors import ServingError
from eao.serve.triton.schema import CONFIG, messages, read_config

FILES = {"onnxruntime": "model.onnx", "openvino": "model.xml", "tensorrt": "model.plan", "python": "model.py"}
"""Backend -> the file it opens, unless the configuration names another."""


def check_repository(folder: str | Path) -> tuple[str, ...]:
    """Parse every configuration by Triton's schema and check that the models fit together.

    Returns:
        the models' names.

    Raises:
        ServingError: naming the first file that is wrong, and how.
    """
    folder = Path(folder)
    configs = {path.name: read_config(path) for path in sorted(folder.iterdir()) if path.is_dir()}
    if not configs:
        raise ServingError(f"{folder} has no models", "write it with eao serve triton --bundle BUNDLE")
    for name, config in configs.items():
        _refuse(folder / name, _model_faults(folder / name, config))
    for name, config in configs.items():  # when each model is known to be sound by itself
        if config.platform == "ensemble":
            _refuse(folder / name, _ensemble_faults(config, configs))
    return tuple(configs)


def _refuse(folder: Path, faults: list[str]) -> None:
    if faults:
        raise ServingError(f"{folder / CONFIG}: {faults[0]}", "write the repository again")


def _model_faults(folder: Path, config: Any) -> list[str]:
    faults = []
    if config.name != folder.name:
        faults.append(f"the name {config.name!r} is not that of the folder")
    versions = [path for path in folder.iterdir() if path.is_dir() and path.name.isdecimal()]
    if not versions:
        faults.append("no version of the model is there")
    if config.platform != "ensemble":
        if config.backend not in FILES:
            faults.append(f"there is no backend {config.backend!r}")
        else:
            file = config.default_model_filename or FILES[config.backend]
            faults += [f"{version.name}/{file} is missing" for version in versions if not (version / file).is_file()]
    for tensors in (config.input, config.output):
        names = [tensor.name for tensor in tensors]
        faults += [f"{name!r} is there twice" for name in names if names.count(name) > 1]
        faults += [f"{tensor.name} has no shape" for tensor in tensors if not tensor.dims]
    if not config.input or not config.output:
        faults.append("it has no inputs or no outputs")
    wrong = [n for n in config.dynamic_batching.preferred_batch_size if not 1 <= n <= config.max_batch_size]
    faults += [f"the preferred batch of {n} is beyond max_batch_size {config.max_batch_size}" for n in wrong]
    return faults + _warm_up_faults(folder, config)


def _warm_up_faults(folder: Path, config: Any) -> list[str]:
    faults = []
    inputs = {tensor.name: tensor for tensor in config.input}
    for request in config.model_warmup:
        if set(request.inputs) != set(inputs):
            faults.append(f"the warm-up {request.name} gives {sorted(request.inputs)}, not {sorted(inputs)}")
            continue
        for name, given in request.inputs.items():
            if not _fit(given.dims, inputs[name].dims) or given.data_type != inputs[name].data_type:
                faults.append(f"the warm-up {request.name} has another shape or type of {name}")
            if not (folder / "warmup" / given.input_data_file).is_file():
                faults.append(f"warmup/{given.input_data_file} is missing")
    return faults


def _ensemble_faults(config: Any, configs: Mapping[str, Any]) -> list[str]:
    """Steps in order: every tensor a step reads is an input or was made before, and the types and shapes agree."""
    made: dict[str, Any] = {tensor.name: tensor for tensor in config.input}
    read: set[str] = set()
    faults = []
    for step in config.ensemble_scheduling.step:
        model = configs.get(step.model_name)
        if model is None or model is config:
            faults.append(f"the step {step.model_name!r} is no model of the repository")
            continue
        if model.max_batch_size < config.max_batch_size:
            faults.append(f"{step.model_name} takes {model.max_batch_size} rows, the ensemble {config.max_batch_size}")
        takes = {tensor.name: tensor for tensor in model.input}
        needed = {name for name, tensor in takes.items() if not tensor.optional}
        if not needed <= set(step.input_map) <= set(takes):
            faults.append(f"{step.model_name} takes {sorted(takes)}, but is given {sorted(step.input_map)}")
        for name, tensor in step.input_map.items():
            read.add(tensor)
            if tensor not in made:
                faults.append(f"{step.model_name} reads {tensor!r}, which nothing before it makes")
            elif name in takes:
                faults += _mismatch(f"{step.model_name}.{name}", takes[name], made[tensor])
        gives = {tensor.name: tensor for tensor in model.output}
        for name, tensor in step.output_map.items():
            if name not in gives:
                faults.append(f"{step.model_name} has no output {name!r}")
            elif tensor in made:
                faults.append(f"{tensor!r} is made twice")
            else:
                made[tensor] = gives[name]
    wanted = {tensor.name: tensor for tensor in config.output}
    for name, tensor in wanted.items():
        faults += [f"nothing makes the output {name!r}"] if name not in made else _mismatch(name, tensor, made[name])
    unread = set(made) - read - set(wanted)
    return faults + [f"nothing reads {name!r}" for name in sorted(unread)]


def _mismatch(name: str, wanted: Any, given: Any) -> list[str]:
    if wanted.data_type != given.data_type:
        type_name = messages().DataType.Name
        return [f"{name} is {type_name(wanted.data_type)}, but is given {type_name(given.data_type)}"]
    if not _fit(given.dims, wanted.dims):
        return [f"{name} has the shape {list(wanted.dims)}, but is given {list(given.dims)}"]
    return []


def _fit(given: Any, wanted: Any) -> bool:
    return len(given) == len(wanted) and all(-1 in (a, b) or a == b for a, b in zip(given, wanted, strict=True))
