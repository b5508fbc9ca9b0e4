"""An encoder, or a part of one, as an ONNX graph: traced, checked, and proved to run at other sizes than traced."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eao.errors import ExportError, missing_dependency
from eao.export.encoders import (
    BATCH,
    Axis,
    EncoderModule,
    InputSpec,
    Model,
    evaluating,
    input_specs,
    random_inputs,
    traced_sizes,
    varying_axes,
)
from eao.export.session import open_session
from eao.files import atomic_path

OUTPUT = "output"
"""The name of the only output of encoders and their parts. "embedding" is avoided: it once gave an invalid graph."""
OPSET = 18
EMBED_LIMIT = 1_900_000_000
"""Bytes of weights above which they go to a file beside the graph: protobuf ends at 2 GB, and the graph needs room."""
_COARSE = 1e-3
"""Largest difference of any output allowed here, relative to the greatest one where that exceeds 1. Far above rounding
and far below what a wrong shape gives; the fine comparisons are those of `eao.export.parity` and `.stages`."""


@dataclass(frozen=True)
class Subject:
    """What becomes a graph.

    Attributes:
        name: for messages, such as "encoder text".
        module: its `forward(*tensors)` takes them in the order of `inputs` and gives one.
        inputs: names, dtypes and axes.
        output: its name in the graph.
    """

    name: str
    module: nn.Module
    inputs: tuple[InputSpec, ...]
    output: str = OUTPUT


@dataclass(frozen=True)
class ExportedGraph:
    """What was written: the graph, and the file with its weights if they did not fit into it."""

    path: Path
    external: Path | None
    opset: int
    inputs: tuple[InputSpec, ...]


def export_onnx(
    model: Model,
    encoder: str,
    path: str | Path,
    opset: int = OPSET,
    external_data: bool | None = None,
    threads: int | None = None,
) -> ExportedGraph:
    """Write one encoder as ONNX, with dynamic batch and token axes, after running it at other sizes.

    Args:
        model: in any mode; traced in eval mode and left as it was.
        encoder: a name of `exportable_encoders(model)`.
        path: the .onnx file. It appears only once the graph has passed every check.
        opset: of the standard ONNX operators; 18 runs everywhere.
        external_data: weights in `<path>.data`; by default only when the graph would exceed 2 GB.
        threads: of the trial runs.

    Raises:
        ExportError: no such encoder, tracing failed, the graph is invalid, or a dimension froze.
    """
    subject = encoder_subject(model, encoder)
    with evaluating(model):
        return export_subject(subject, path, opset, external_data, threads)


def encoder_subject(model: Model, encoder: str) -> Subject:
    """An encoder as what becomes a graph."""
    return Subject(f"encoder {encoder}", EncoderModule(model, encoder), input_specs(model, encoder))


def export_subject(
    subject: Subject,
    path: str | Path,
    opset: int = OPSET,
    external_data: bool | None = None,
    threads: int | None = None,
) -> ExportedGraph:
    """As `export_onnx`, for any function of tensors, which is in eval mode."""
    path = Path(path)
    program = _trace(subject, opset)
    initializers = program.model.graph.initializers.values()
    if external_data is None:
        external_data = sum(v.const_value.nbytes for v in initializers if v.const_value is not None) > EMBED_LIMIT
    # A folder, since weights beside a graph are found by their name, which a renamed file would lose.
    with atomic_path(path.with_name(f"{path.name}.export")) as folder:
        folder.mkdir()
        draft = folder / path.name
        with _quiet():
            program.save(str(draft), external_data=external_data)
        _check(draft, subject.name)
        verify_sizes(subject, draft, threads)
        data = folder / f"{path.name}.data"
        has_data = data.exists()
        if has_data:
            os.replace(data, path.with_name(data.name))
        os.replace(draft, path)
    path.with_name(f"{path.name}.export").rmdir()
    return ExportedGraph(path, path.with_name(data.name) if has_data else None, opset, subject.inputs)


def verify_sizes(subject: Subject, path: str | Path, threads: int | None = None) -> None:
    """Run a graph at sizes it was not traced with and compare with what it was made from.

    Raises:
        ExportError: an axis that should vary is fixed in the graph, or the graph fails or differs at another size.
    """
    name, specs = subject.name, subject.inputs
    session = open_session(path, threads=threads)
    for given, spec in zip(session.get_inputs(), specs, strict=True):
        if given.name != spec.name:
            raise ExportError(f"{name}: the graph's input {given.name!r} should be {spec.name!r}")
        for axis, size in zip(spec.shape, given.shape, strict=True):
            if isinstance(axis, Axis) and not isinstance(size, str):
                raise _frozen(name, axis.name, f"the input {spec.name} has the fixed size {size} there")
    traced = traced_sizes(specs)
    for sizes in _trial_sizes(varying_axes(specs), traced):
        changed = ", ".join(f"{axis} {size}" for axis, size in sizes.items() if size != traced[axis])
        tensors = random_inputs(specs, sizes, seed=1)
        with torch.inference_mode():
            expected = subject.module(*tensors).numpy()
        feeds = {spec.name: x.numpy() for spec, x in zip(specs, tensors, strict=True)}
        try:
            found = session.run([subject.output], feeds)[0]
        except Exception as error:  # onnxruntime raises several classes of its own, none of them public
            raise _frozen(name, changed, " ".join(str(error).split())[:300]) from None
        if found.shape != expected.shape:
            raise _frozen(name, changed, f"output {found.shape} instead of {expected.shape}")
        difference = float(np.abs(found - expected).max()) / max(1.0, float(np.abs(expected).max()))
        if not difference < _COARSE:
            raise _frozen(name, changed, f"outputs differ by {difference:.2g}")


def _trial_sizes(dynamic: Mapping[str, Axis], traced: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """The traced sizes, then each axis alone at another size, then all at their smallest and all larger."""
    yield dict(traced)
    for name, axis in dynamic.items():
        yield {**traced, name: traced[name] + 2 * axis.multiple + (axis.multiple if name != BATCH else -axis.multiple)}
    yield {name: axis.minimum for name, axis in dynamic.items()}
    yield {name: traced[name] + 4 * axis.multiple for name, axis in dynamic.items()}


def _frozen(name: str, where: str, detail: str) -> ExportError:
    return ExportError(
        f"{name}: the graph does not work at other sizes ({where}): {detail}",
        "a dimension froze while tracing; nothing was written. Please report it with the model's configuration",
    )


def _trace(subject: Subject, opset: int) -> Any:
    try:
        import onnxscript  # noqa: F401  torch's exporter needs it, and says so only deep inside
    except ImportError:
        raise missing_dependency("onnxscript", "cpu", "ONNX export") from None
    specs = subject.inputs
    dims = {name: _dim(axis) for name, axis in varying_axes(specs).items()}
    shapes = tuple(
        {i: dims[axis.name] for i, axis in enumerate(spec.shape) if isinstance(axis, Axis)} for spec in specs
    )
    tensors = random_inputs(specs)
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                _capture(subject.module, tensors, shapes),
                tensors,
                dynamo=True,
                opset_version=opset,
                input_names=[spec.name for spec in specs],
                output_names=[subject.output],
                verbose=False,
            )
    except Exception as error:  # the exporter wraps anything at all; the first line carries the cause
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise ExportError(f"{subject.name} cannot be traced at opset {opset}: {first}") from error
    assert program is not None
    _name_axes(program.model.graph, specs)
    _drop_nan_guards(program.model.graph)
    _strip_notes(program.model)
    return program


def _capture(module: nn.Module, tensors: tuple[Tensor, ...], shapes: tuple[dict[int, Any], ...]) -> Any:
    """The program of a module. `len(tensor)` fixes a size unless the source code itself is analysed (`strict`), which
    takes longer: only where the quick way refuses."""

    def capture(strict: bool) -> Any:
        # Deferred: guards of the kind "no more than one token is left after the first" become checks at run time,
        # which the graph leaves out, instead of a refusal (they are false alarms: sizes of one are tried below).
        return torch.export.export(
            module, tensors, dynamic_shapes=(shapes,), strict=strict, prefer_deferred_runtime_asserts_over_guards=True
        )

    try:
        return capture(strict=False)
    except Exception:  # torch._dynamo.exc.UserError and others, none of them public
        return capture(strict=True)


def _dim(axis: Axis) -> Any:
    # At the cap itself pooling is the identity, but the tracer would take it for a branch of its own.
    least = 1 if axis.minimum == axis.multiple else axis.minimum // axis.multiple + 1
    if axis.multiple == 1:
        return torch.export.Dim(axis.name, min=least, max=axis.maximum)
    return axis.multiple * torch.export.Dim(f"{axis.name}_{axis.multiple}", min=least)


def _name_axes(graph: Any, specs: tuple[InputSpec, ...]) -> None:
    """Give the axes the names of the manifest, in place of the tracer's symbols (s19 ...), in the whole graph."""
    names: dict[str, str] = {}
    for value, spec in zip(graph.inputs, specs, strict=True):
        for size, axis in zip(value.shape, spec.shape, strict=True):
            if isinstance(axis, Axis) and not isinstance(size, int):
                names[str(size.value)] = axis.name
    values = [*graph.inputs, *graph.outputs, *(v for node in graph for v in node.outputs)]
    for value in values:
        if value.shape is None:
            continue
        for i, size in enumerate(value.shape):
            if not isinstance(size, int) and str(size.value) in names:
                value.shape[i] = names[str(size.value)]


def _drop_nan_guards(graph: Any) -> None:
    """Take away the exporter's replacement of NaN behind softmax, for rows of which every key is masked.

    The models leave no such row: a clip that lacks a modality gets a token in its place. And TensorRT, which looks for
    a softmax between two products, gives up over it.
    """
    for node in list(graph):
        condition = node.inputs[0].producer() if node.op_type == "Where" else None
        if condition is None or condition.op_type != "IsNaN" or condition.inputs[0] is not node.inputs[2]:
            continue
        node.outputs[0].replace_all_uses_with(node.inputs[2])
        graph.remove([node, condition], safe=True)


def _strip_notes(model: Any) -> None:
    """Leave out the stack traces the exporter attaches to every node: they hold paths of this machine."""
    for function in (model.graph, *model.functions.values()):
        function.metadata_props.clear()
        for node in function:
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


def _check(path: Path, name: str) -> None:
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # checker and shape inference raise different classes by version
        raise ExportError(f"{name}: the ONNX checker refuses the graph: {error}") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter: it prints progress, and warns of packages that this project does not use."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    disabled = registration.disabled
    try:
        registration.disabled = True
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        registration.disabled = disabled
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
