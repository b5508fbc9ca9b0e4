"""The manifest of a bundle: what each engine is, where it came from, and what it may be fed."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal

import pydantic

from eao.errors import ExportError
from eao.export.encoders import Axis, InputSpec
from eao.files import sha256, write_json

FORMAT = 2
"""Version of the manifest's layout; a reader refuses others."""
MANIFEST_FILE = "manifest.json"
_DIGEST = "sha256"
CONFIG_FILE = "config.yaml"
TEXT_FOLDER = "text"
"""Holds what the text encoder reads: word vectors, or a transformers model with its tokenizer."""

EngineName = Literal["onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"]
Precision = Literal["fp32", "fp16", "bf16", "int8", "int8-weights", "int8-nncf", "fp8"]


def _plain_name(name: str) -> str:
    """Names come from a file that may have been tampered with, and must not lead out of the bundle."""
    plain = name.removeprefix(f"{TEXT_FOLDER}/")
    if plain in ("", ".", "..") or "/" in plain or "\\" in plain:
        raise ValueError(f"{name!r} is no plain file name")
    return name


FileName = Annotated[str, pydantic.AfterValidator(_plain_name)]
Digest = Annotated[str, pydantic.StringConstraints(pattern="^[0-9a-f]{64}$")]


class Record(pydantic.BaseModel):
    """Base of the manifest's parts."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class FileEntry(Record):
    """A file of the bundle."""

    file: FileName
    size: pydantic.NonNegativeInt
    sha256: Digest

    @classmethod
    def of(cls, path: Path, folder: Path | None = None) -> FileEntry:
        """A file that lies in `folder`, the bundle; by default the file's own folder is the bundle."""
        name = path.relative_to(folder or path.parent).as_posix()
        return cls(file=name, size=path.stat().st_size, sha256=sha256(path))


class AxisEntry(Record):
    """A size that may vary: at least `minimum`, a multiple of `multiple`."""

    minimum: pydantic.PositiveInt
    multiple: pydantic.PositiveInt

    @classmethod
    def of(cls, axis: Axis) -> AxisEntry:
        """The limits of an axis."""
        return cls(minimum=axis.minimum, multiple=axis.multiple)


class InputEntry(Record):
    """An input, of an encoder a field of `eao.Batch`. A shape holds numbers, and names of axes that may vary."""

    name: str
    dtype: Literal["float32", "bool", "int64"]
    shape: tuple[pydantic.PositiveInt | str, ...]

    @classmethod
    def of(cls, spec: InputSpec) -> InputEntry:
        """The description of an input."""
        shape = tuple(a.name if isinstance(a, Axis) else a for a in spec.shape)
        return cls(name=spec.name, dtype=spec.dtype, shape=shape)  # type: ignore[arg-type]


class ParitySummary(Record):
    """The worst figures of an engine against the PyTorch model; the bundle's parity.json has them all.

    Attributes:
        simulated: the figures are those of the engine's graph in onnxruntime, since the engine cannot run on the
            machine that made it.
        exact_int8: the CPU adds int8 products in 32 bits (VNNI), rather than in 16, where sums may overflow. None: not
            known.
    """

    passed: bool
    max_abs: float
    cosine_min: float
    batch_invariance: float
    top10_overlap: float | None = None
    simulated: bool = False
    exact_int8: bool | None = None


class ProfileEntry(Record):
    """The sizes of an axis that a TensorRT engine takes, and the one it is tuned for."""

    minimum: pydantic.PositiveInt
    optimum: pydantic.PositiveInt
    maximum: pydantic.PositiveInt


class EngineEntry(Record):
    """An encoder compiled for a runtime.

    Attributes:
        files: the one that the runtime opens, then those beside it.
        opset: of the ONNX graph it was made from.
        profiles: of TensorRT engines, each by axis.
        targets: compute capabilities that a TensorRT engine was built for.
        version_compatible: a TensorRT engine that later versions of it may load.
        deferred: `files` hold a graph, and the engine is built on first use on the target.
        left: nodes of a quantised graph that stayed in higher precision.
        layers: how many could have been quantised.
        parity: None before it was measured.
        speedup: over PyTorch eager, at batch 1 on the machine that made the bundle; None if it was not measured.
    """

    encoder: str
    engine: EngineName
    precision: Precision
    files: tuple[FileEntry, ...] = pydantic.Field(min_length=1)
    opset: int
    profiles: tuple[dict[str, ProfileEntry], ...] = ()
    targets: tuple[str, ...] = ()
    version_compatible: bool = False
    deferred: bool = False
    left: tuple[str, ...] = ()
    layers: int = 0
    parity: ParitySummary | None = None
    speedup: float | None = None

    @property
    def key(self) -> str:
        """Its name in the bundle, such as "text.onnxruntime.int8"."""
        return engine_key(self.encoder, self.engine, self.precision)


class EncoderEntry(Record):
    """What all engines of an encoder have in common."""

    inputs: tuple[InputEntry, ...]
    output: str


class StageEntry(Record):
    """A part of the model as a float32 ONNX graph of its own; see `eao.export.stages`.

    Attributes:
        files: the graph, then those with its weights.
        opset: of the graph.
        inputs: not fields of `eao.Batch` where tokens are read off another stage.
        output: the name of the graph's output.
        axes: by name, the limits of the sizes that may vary.
        relative_error: the greatest of any token against the PyTorch model.
    """

    files: tuple[FileEntry, ...] = pydantic.Field(min_length=1)
    opset: int
    inputs: tuple[InputEntry, ...]
    output: str
    axes: dict[str, AxisEntry]
    relative_error: float

    @pydantic.model_validator(mode="after")
    def _axes_known(self) -> StageEntry:
        _check_axes("a stage", self.inputs, self.axes)
        return self

    @property
    def specs(self) -> tuple[InputSpec, ...]:
        """Its inputs with their varying axes."""
        return _specs(self.inputs, self.axes)


class Manifest(Record):
    """The manifest of a bundle.

    Attributes:
        format: version of this layout.
        model_sha256: of the PyTorch weights the engines were made from, as `eao.model.weights.hash_weights`.
        source: the checkpoint, as the user named it; a note, never opened.
        embedding_dim: E.
        config: config.yaml.
        text: what the text encoder reads; empty if no engine embeds text.
        axes: by name, the limits of the sizes that may vary.
        encoders: by name, their inputs and output.
        engines: by key, in order of preference: of several that run, the first is used.
        stages: by name.
        reports: what was measured of the engines, to be read by people.
        versions: of the packages that made the bundle.
    """

    format: Literal[2] = 2
    model_sha256: Digest
    source: str
    embedding_dim: pydantic.PositiveInt
    config: FileEntry
    text: tuple[FileEntry, ...] = ()
    axes: dict[str, AxisEntry]
    encoders: dict[str, EncoderEntry]
    engines: dict[str, EngineEntry]
    stages: dict[str, StageEntry] = {}
    reports: tuple[FileEntry, ...] = ()
    versions: dict[str, str]

    @pydantic.model_validator(mode="after")
    def _names_known(self) -> Manifest:
        for encoder, entry in self.encoders.items():
            _check_axes(f"encoder {encoder}", entry.inputs, self.axes)
        for key, engine in self.engines.items():
            if engine.encoder not in self.encoders:
                raise ValueError(f"engine {key} belongs to the unknown encoder {engine.encoder!r}")
            if key != engine.key:
                raise ValueError(f"engine {key} should be called {engine.key}")
        without = [name for name in self.encoders if not self.of_encoder(name)]
        if without:
            raise ValueError(f"encoder {without[0]} has no engine")
        return self

    def of_encoder(self, encoder: str) -> tuple[EngineEntry, ...]:
        """The engines of an encoder, in order of preference."""
        return tuple(e for e in self.engines.values() if e.encoder == encoder)

    def files(self) -> tuple[FileEntry, ...]:
        """Every file of the bundle but the manifest, each once."""
        graphs = [*(engine.files for engine in self.engines.values()), *(stage.files for stage in self.stages.values())]
        entries = [self.config, *self.text, *(file for files in graphs for file in files), *self.reports]
        return tuple({entry.file: entry for entry in entries}.values())

    def specs(self, encoder: str) -> tuple[InputSpec, ...]:
        """The inputs of an encoder with their varying axes."""
        return _specs(self.encoders[encoder].inputs, self.axes)

    def save(self, folder: Path) -> None:
        """Write manifest.json into a bundle's folder, with a hash of its own under "sha256"."""
        values = json.loads(self.model_dump_json())
        write_json(folder / MANIFEST_FILE, {**values, _DIGEST: _digest(values)})


def _check_axes(owner: str, inputs: Iterable[InputEntry], axes: Mapping[str, AxisEntry]) -> None:
    for axis in (a for i in inputs for a in i.shape if isinstance(a, str)):
        if axis not in axes:
            raise ValueError(f"{owner} has an input with the unknown axis {axis!r}")


def _specs(inputs: Iterable[InputEntry], axes: Mapping[str, AxisEntry]) -> tuple[InputSpec, ...]:
    found = {name: Axis(name, a.minimum, a.multiple) for name, a in axes.items()}
    return tuple(
        InputSpec(i.name, i.dtype, tuple(found[a] if isinstance(a, str) else a for a in i.shape)) for i in inputs
    )


def load_manifest(folder: str | Path) -> Manifest:
    """Read the manifest of a bundle and check that its files are there with the right sizes.

    Raises:
        ExportError: no bundle, a damaged or changed manifest, another format, or a file missing or cut short.
    """
    folder = Path(folder)
    path = folder / MANIFEST_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        failed = " (it holds the evidence of a failed export)" if (folder / "parity.json").exists() else ""
        raise ExportError(f"{folder} is no bundle: it has no {MANIFEST_FILE}{failed}", "make one: eao export") from None
    except ValueError as error:
        raise ExportError(f"{path} is damaged: {error}", "export the bundle again") from None
    found = values.get("format") if isinstance(values, dict) else None
    if found != FORMAT:
        raise ExportError(
            f"{path} has format {found!r}; this version of eao reads {FORMAT}",
            "export the bundle again, or install the version of eao that made it",
        )
    digest = values.pop(_DIGEST, None)
    try:
        manifest = Manifest.model_validate(values)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ExportError(f"{path} is damaged: {where}: {first['msg']}", "export the bundle again") from None
    if digest not in (None, _digest(values)):  # bundles of earlier versions have none
        raise ExportError(f"{path} was changed since the export: its SHA-256 differs", "copy the bundle again")
    for entry in manifest.files():
        check_file(folder, entry, content=False)
    return manifest


def _digest(values: Mapping[str, object]) -> str:
    """The SHA-256 of a manifest's values in their order, which for engines is that of preference."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def engine_key(encoder: str, engine: str, precision: str) -> str:
    """The name of an engine in a bundle.

    Example:
        >>> engine_key("text", "onnxruntime", "int8")
        'text.onnxruntime.int8'
    """
    return f"{encoder}.{engine}.{precision}"


def check_file(folder: Path, entry: FileEntry, content: bool = True) -> None:
    """Check the size of a bundle's file and, with `content`, its hash.

    Raises:
        ExportError: it is missing, or not what the manifest describes.
    """
    path = folder / entry.file
    if not path.is_file():
        raise ExportError(f"the bundle {folder} lacks {entry.file}", "copy the bundle whole, or export it again")
    if path.stat().st_size != entry.size:
        raise ExportError(
            f"{path} has {path.stat().st_size} bytes, but the manifest says {entry.size}",
            "it was cut short or changed: copy the bundle again",
        )
    if content and sha256(path) != entry.sha256:
        raise ExportError(f"{path} was changed since the export: its SHA-256 differs", "copy the bundle again")


PACKAGES = (
    *("eao", "torch", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino", "nncf"),
    *("tensorrt", "tensorrt-cu12", "tensorrt-cu13", "tensorrt-rtx-cu13", "numpy"),
)


def versions() -> dict[str, str]:
    """The installed versions of what an engine's figures depend on; packages that are not installed are left out."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
