"""Model configurations as messages of Triton's own schema, so that nothing can be written that it does not know."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from eao.errors import ServingError, missing_dependency
from eao.files import write_text

Target = Literal["cpu", "gpu", "tensorrt"]
"""What the server's machine has: no GPU; one that onnxruntime uses; one that runs TensorRT engines."""

CONFIG = "config.pbtxt"
VERSION = "1"
QUEUE_DELAY_US = 2_000
"""How long a request may wait for others to share a run with: a tenth of what a run costs on two cores."""
QUEUE_SIZE = 512
"""Requests that wait for a model, at most; further ones are refused at once (HTTP 503)."""
QUEUE_TIMEOUT_US = 30_000_000
RESOURCE = "engine"
"""What a run of an encoder takes of the rate limiter. On a CPU there is one, since a run uses every core."""
INSTANCES: dict[str, tuple[str, int]] = {"cpu": ("KIND_CPU", 1), "gpu": ("KIND_GPU", 2), "tensorrt": ("KIND_GPU", 2)}
"""Target -> where instances run and how many: with two, one copies while the other computes."""
_TYPES = {"float32": "TYPE_FP32", "bool": "TYPE_BOOL", "int64": "TYPE_INT64", "string": "TYPE_STRING"}


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a model.

    Attributes:
        name: of the tensor.
        dtype: float32, bool, int64 or string.
        dims: without the batch; -1 may vary. None at all for one value per row.
        optional: an input that may be left out.
    """

    name: str
    dtype: str
    dims: tuple[int, ...]
    optional: bool = False


def messages() -> Any:
    """The module of Triton's messages.

    Raises:
        MissingDependencyError: tritonclient, which ships the schema, is not installed.
    """
    try:
        from tritonclient.grpc import model_config_pb2
    except ImportError:
        raise missing_dependency("tritonclient", "triton-client", "a model repository for Triton") from None
    return model_config_pb2


def model(
    name: str, backend: str, inputs: Iterable[TensorSpec], outputs: Iterable[TensorSpec], max_batch_size: int
) -> Any:
    """The configuration of a model of which only the newest version is served.

    Args:
        name: of the model, and of its folder.
        backend: onnxruntime, openvino, tensorrt or python; "ensemble" for the platform of that name.
        inputs: what it takes.
        outputs: what it gives.
        max_batch_size: rows of a run, at most.
    """
    config = messages().ModelConfig(name=name, max_batch_size=max_batch_size)
    if backend == "ensemble":
        config.platform = backend
    else:
        config.backend = backend
    config.version_policy.latest.num_versions = 1
    for spec in inputs:
        _add(config.input, spec, optional=spec.optional)
    for spec in outputs:
        _add(config.output, spec)
    return config


def batch_requests(config: Any, preferred: Iterable[int] = (), delay_us: int = QUEUE_DELAY_US) -> None:
    """Let requests that come together share a run, and refuse those that a long queue would keep waiting.

    Args:
        config: of the model.
        preferred: rows that are run at once, without waiting for more.
        delay_us: how long a request may wait for others, in microseconds.
    """
    batching = config.dynamic_batching
    batching.preferred_batch_size.extend(sorted({n for n in preferred if 1 < n <= config.max_batch_size}))
    batching.max_queue_delay_microseconds = delay_us if config.max_batch_size > 1 else 0
    policy = batching.default_queue_policy
    policy.max_queue_size = QUEUE_SIZE
    policy.default_timeout_microseconds = QUEUE_TIMEOUT_US
    policy.allow_timeout_override = True


def place(config: Any, target: Target, profiles: int = 0, priority: int = 1) -> None:
    """Say where and how often a model runs, and what each run takes of the rate limiter.

    Args:
        config: of the model.
        target: of the repository.
        profiles: how many optimisation profiles a TensorRT engine has.
        priority: 1 comes first where several models wait; 2 half as often.
    """
    kind, count = INSTANCES[target]
    group = config.instance_group.add(count=count, profile=[str(i) for i in range(profiles)])
    group.kind = messages().ModelInstanceGroup.Kind.Value(kind)
    group.rate_limiter.resources.add(name=RESOURCE, count=1)
    group.rate_limiter.priority = priority


def repeat(configs: Iterable[Any], instances: int) -> None:
    """Set the number of instances of what `place` has placed."""
    for config in configs:
        for group in config.instance_group:
            if group.rate_limiter.resources:
                group.count = instances


def place_on_cpu(config: Any, count: int = 1) -> None:
    """Run a model that prepares inputs on the CPU, whatever the target, and as often as it likes."""
    group = config.instance_group.add(count=count)
    group.kind = messages().ModelInstanceGroup.Kind.Value("KIND_CPU")


def set_parameters(config: Any, values: Mapping[str, str]) -> None:
    """Give the model parameters, which clients read from its configuration."""
    for key, value in values.items():
        config.parameters[key].string_value = value


def warm_up(config: Any, folder: Path, samples: Mapping[str, np.ndarray], batch_sizes: Sequence[int]) -> None:
    """Let the server run a model before it counts as ready.

    Args:
        config: of the model.
        folder: of the model; files of the samples are put into its `warmup`.
        samples: a row of each input, without the batch axis.
        batch_sizes: each is run once.
    """
    (folder / "warmup").mkdir(parents=True, exist_ok=True)
    for name, value in samples.items():
        (folder / "warmup" / name).write_bytes(np.ascontiguousarray(value).tobytes())
    types = {spec.name: spec.data_type for spec in config.input}
    for size in sorted({n for n in batch_sizes if n <= config.max_batch_size}):
        request = config.model_warmup.add(name=f"batch-{size}", batch_size=size, count=1)
        for name, value in samples.items():
            given = request.inputs[name]
            given.data_type = types[name]
            given.dims.extend(value.shape or (1,))
            given.input_data_file = name


def ensemble_step(config: Any, name: str, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> None:
    """Add a step to an ensemble.

    Args:
        config: of the ensemble.
        name: of the step's model.
        inputs: of the step's model -> the ensemble's tensor.
        outputs: likewise.
    """
    step = config.ensemble_scheduling.step.add(model_name=name, model_version=-1)
    step.input_map.update(inputs)
    step.output_map.update(outputs)


def write_config(config: Any, folder: Path) -> None:
    """Write config.pbtxt into a model's folder."""
    from google.protobuf import text_format

    write_text(folder / CONFIG, text_format.MessageToString(config))


def read_config(folder: Path) -> Any:
    """Parse a model's config.pbtxt by Triton's schema.

    Raises:
        ServingError: it is missing, or not of the schema.
    """
    from google.protobuf import text_format

    path = folder / CONFIG
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), messages().ModelConfig())
    except OSError:
        raise ServingError(f"{path} is missing", "write the repository again") from None
    except text_format.ParseError as error:
        raise ServingError(f"{path} is not of Triton's schema: {error}", "write the repository again") from None


def _add(tensors: Any, spec: TensorSpec, **settings: Any) -> None:
    tensor = tensors.add(name=spec.name, dims=spec.dims or (1,), **settings)
    tensor.data_type = messages().DataType.Value(_TYPES[spec.dtype])
    if not spec.dims:
        tensor.reshape.SetInParent()  # to no axis: the model takes a number per row, Triton's tensors have one axis
