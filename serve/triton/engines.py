"""The models of encoders: which engine of a bundle serves a target, and how Triton runs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eao.config import Config
from eao.errors import ServingError
from eao.export.encoders import BATCH, Axis, InputSpec
from eao.export.engines import engine_name, unproven
from eao.export.manifest import EngineEntry, Manifest, check_file
from eao.export.tensorrt.profiles import AxisRange, Profile, input_shape, make_profiles
from eao.export.text_files import link_or_copy
from eao.serve.triton import schema
from eao.serve.triton.graphs import EMBEDDING, write_onnx, write_openvino
from eao.serve.triton.schema import Target, TensorSpec

# B batch, E embedding

USABLE: dict[str, tuple[str, ...]] = {
    "cpu": ("onnxruntime", "openvino"),
    "gpu": ("onnxruntime",),
    "tensorrt": ("tensorrt", "onnxruntime"),
}
"""Target -> engines that Triton can run there."""
ENGINE_CACHE = "/var/tmp/eao-engines"
"""Where the server keeps TensorRT engines that onnxruntime builds of a graph."""
_TENSORRT_PRECISIONS = {"fp32": "FP32", "fp16": "FP16", "int8": "INT8"}


@dataclass(frozen=True)
class Choice:
    """An encoder's engine and what it may be fed.

    Attributes:
        encoder: its name.
        entry: of the bundle's manifest.
        specs: its inputs.
        output: the name of its output in the bundle.
        profiles: sizes of their axes.
    """

    encoder: str
    entry: EngineEntry
    specs: tuple[InputSpec, ...]
    output: str
    profiles: tuple[Profile, ...]

    @property
    def max_batch_size(self) -> int:
        """The rows that the widest profile takes."""
        return max(profile[BATCH].max for profile in self.profiles)

    @property
    def is_plan(self) -> bool:
        """Whether it is a finished TensorRT engine, whose tensors cannot be renamed."""
        return self.entry.engine == "tensorrt" and not self.entry.deferred

    @property
    def model(self) -> str:
        """The name of the model that holds the engine."""
        return f"{self.encoder}-plan" if self.is_plan else self.encoder

    @property
    def embedding(self) -> str:
        """The name of that model's output."""
        return self.output if self.is_plan else EMBEDDING

    @property
    def inputs(self) -> list[TensorSpec]:
        """Its inputs, as Triton describes them."""
        return [
            TensorSpec(spec.name, spec.dtype, tuple(-1 if isinstance(a, Axis) else a for a in spec.shape[1:]))
            for spec in self.specs
        ]


def choose_engines(
    manifest: Manifest,
    config: Config,
    target: Target,
    engine: str | None = None,
    precision: str | None = None,
    encoders: Sequence[str] = (),
) -> list[Choice]:
    """Of each encoder, the first engine in the bundle's order that the target can run and that was asked for.

    Args:
        manifest: of the bundle.
        config: of the experiment, for the sizes of engines without profiles.
        target: where the server runs.
        engine: only of this runtime.
        precision: only of this precision.
        encoders: their names; by default all that the bundle has.

    Raises:
        ServingError: an encoder has none, or there is no such encoder.
    """
    unknown = [name for name in encoders if name not in manifest.encoders]
    if unknown:
        raise ServingError(f"the bundle has no encoder {unknown[0]!r}", f"it has {', '.join(manifest.encoders)}")
    wanted = None if engine is None else engine_name(engine)
    choices = []
    for name in encoders or manifest.encoders:
        fitting = [
            entry
            for runtime in USABLE[target]
            for entry in manifest.of_encoder(name)
            if entry.engine == runtime and wanted in (None, runtime) and precision in (None, entry.precision)
        ]
        if target == "cpu":
            # onnxruntime has no bfloat16 products on the CPU. Between its runtimes the bundle's own order decides.
            fitting = [
                entry
                for entry in manifest.of_encoder(name)
                if entry in fitting and entry.precision != "bf16" and unproven(entry) is None
            ]
        if not fitting:
            raise ServingError(_no_engine(manifest, name, target, wanted, precision), _hint(target))
        specs = manifest.specs(name)
        choices.append(
            Choice(name, fitting[0], specs, manifest.encoders[name].output, _profiles(fitting[0], specs, config))
        )
    return choices


def write_engine(
    choice: Choice, bundle: Path, folder: Path, target: Target, parameters: Mapping[str, str], embedding_dim: int
) -> list[Any]:
    """Write the model of an encoder into the repository.

    A finished TensorRT engine keeps the names of its tensors, so an ensemble around it has the encoder's name.

    Args:
        choice: of the engine.
        bundle: its folder.
        folder: the repository.
        target: where the server runs.
        parameters: of the model's configuration.
        embedding_dim: E.

    Returns:
        the configurations, not yet written.
    """
    for file in choice.entry.files:
        check_file(bundle, file)
    version = folder / choice.model / schema.VERSION
    version.mkdir(parents=True)
    output = TensorSpec(choice.embedding, "float32", (embedding_dim,))
    backend = "onnxruntime" if choice.entry.engine == "tensorrt" and choice.entry.deferred else choice.entry.engine
    config = schema.model(choice.model, backend, choice.inputs, [output], choice.max_batch_size)
    source = bundle / choice.entry.files[0].file
    if choice.is_plan:
        link_or_copy(source, version / "model.plan")
    elif source.suffix == ".onnx":
        config.default_model_filename = "model.onnx"
        write_onnx(source, version / "model.onnx")
    else:
        write_openvino(source, version / "model.xml")
    schema.batch_requests(config, [p[BATCH].opt for p in choice.profiles] + [choice.max_batch_size])
    # What people wait for, a sentence, goes before the clips of a gallery.
    schema.place(
        config,
        target,
        profiles=len(choice.profiles) if choice.is_plan else 0,
        priority=1 if choice.encoder == "text" else 2,
    )
    if target == "tensorrt" and not choice.is_plan:
        _accelerate(config, choice)
    schema.set_parameters(config, parameters)
    schema.warm_up(config, folder / choice.model, _samples(choice), [1, choice.profiles[-1][BATCH].opt])
    if not choice.is_plan:
        return [config]
    return [config, _around_plan(choice, parameters, embedding_dim)]


def _around_plan(choice: Choice, parameters: Mapping[str, str], embedding_dim: int) -> Any:
    output = TensorSpec(EMBEDDING, "float32", (embedding_dim,))
    config = schema.model(choice.encoder, "ensemble", choice.inputs, [output], choice.max_batch_size)
    same = {spec.name: spec.name for spec in choice.specs}
    schema.ensemble_step(config, choice.model, same, {choice.embedding: EMBEDDING})
    schema.set_parameters(config, parameters)
    return config


def _accelerate(config: Any, choice: Choice) -> None:
    """Let onnxruntime build TensorRT engines of the graph on the server, and keep them."""
    accelerator = config.optimization.execution_accelerators.gpu_execution_accelerator.add(name="tensorrt")
    settings = {"trt_engine_cache_enable": "1", "trt_engine_cache_path": ENGINE_CACHE}
    if choice.entry.precision in _TENSORRT_PRECISIONS:
        settings["precision_mode"] = _TENSORRT_PRECISIONS[choice.entry.precision]
    whole = _union(choice.profiles)
    for bound in ("min", "opt", "max"):
        sizes = {name: getattr(axis, bound) for name, axis in whole.items()}
        shapes = (f"{spec.name}:{'x'.join(map(str, input_shape(spec, sizes)))}" for spec in choice.specs)
        settings[f"trt_profile_{bound}_shapes"] = ",".join(shapes)
    accelerator.parameters.update(settings)


def _union(profiles: Sequence[Profile]) -> Profile:
    """One profile that holds all, fastest where the last is."""
    return {
        name: AxisRange(min(p[name].min for p in profiles), last.opt, max(p[name].max for p in profiles))
        for name, last in profiles[-1].items()
    }


def _profiles(entry: EngineEntry, specs: Sequence[InputSpec], config: Config) -> tuple[Profile, ...]:
    if not entry.profiles:
        return make_profiles(specs, config)
    return tuple(
        {name: AxisRange(sizes.minimum, sizes.optimum, sizes.maximum) for name, sizes in profile.items()}
        for profile in entry.profiles
    )


def _samples(choice: Choice) -> dict[str, np.ndarray]:
    """A row of each input at the sizes it is tuned for: zeros, all of them real."""
    sizes = {name: axis.opt for name, axis in choice.profiles[-1].items()}
    samples = {}
    for spec in choice.specs:
        shape = input_shape(spec, sizes)[1:]
        if spec.dtype == "int64":  # how many spectrogram frames are real
            frames = next(input_shape(s, sizes)[-1] for s in choice.specs if s.name == "audio")
            samples[spec.name] = np.full(shape, frames, np.int64)
        else:
            samples[spec.name] = np.ones(shape, bool) if spec.dtype == "bool" else np.zeros(shape, np.float32)
    return samples


def _no_engine(manifest: Manifest, encoder: str, target: str, engine: str | None, precision: str | None) -> str:
    entries = manifest.of_encoder(encoder)
    reasons = [unproven(entry) if target == "cpu" else None for entry in entries]
    held = ", ".join(
        f"{e.engine} {e.precision}{f' ({reason})' if reason else ''}"
        for e, reason in zip(entries, reasons, strict=True)
    )
    asked = " ".join(name for name in (engine, precision) if name)
    return f"the bundle has no {f'{asked} ' if asked else ''}engine of {encoder} for --target {target}; it has {held}"


def _hint(target: str) -> str:
    engines = " or ".join(USABLE[target])
    rtx = "; Triton does not run engines of TensorRT-RTX" if target == "tensorrt" else ""
    return f"export it with --engine {engines}{rtx}"
