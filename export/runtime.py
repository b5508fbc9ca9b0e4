"""A bundle of engines as a backend: the same embeddings as the PyTorch model, without PyTorch's model code."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from eao.config import Config, TextConfig, load_config
from eao.data.text import TextEncoder, build_text_encoder
from eao.errors import ConfigError, DataError, ExportError
from eao.export.encoders import Axis, InputSpec
from eao.export.engines import OnnxSession, Session, engine_name, open_engine, unproven, unusable
from eao.export.manifest import TEXT_FOLDER, EngineEntry, Manifest, check_file, load_manifest
from eao.export.words import WORDS_ONNX, GraphText
from eao.model.batch import Batch

# B batch, N tokens, T spectrogram frames, E embedding

_UNKNOWN_LENGTH = -1


class Bundle:
    """The engines of a folder written by `write_bundle`.

    Of several engines of an encoder, the first of the manifest's order that was asked for and runs on this machine is
    used. Engines open on first use, so that a service that only embeds text loads only that one. Safe to call from
    several threads.

    Args:
        path: the bundle's folder.
        threads: of one run; by default as many as the machine has cores.
        device: "cpu" or "cuda"; never the CPU in silence when CUDA was asked for.
        verify: compare the SHA-256 of every file with the manifest before it is used.
        engine: use engines of this runtime only, such as "openvino".
        precision: use engines of this precision only, such as "int8".

    Raises:
        ExportError: the folder is no bundle, or damaged; or it has no engine of that runtime and precision.

    Example:
        bundle = Bundle("bundles/demo")
        rows = bundle.encode(batch, "video-audio")    # (B, E) float32, unit norm
    """

    def __init__(
        self,
        path: str | Path,
        threads: int | None = None,
        device: str = "cpu",
        verify: bool = True,
        engine: str | None = None,
        precision: str | None = None,
    ) -> None:
        self.path = Path(path)
        self.threads = threads
        self.device = device
        self.verify = verify
        self.engine = None if engine is None else engine_name(engine)
        self.precision = precision
        self.manifest: Manifest = load_manifest(self.path)
        self._wanted = [
            entry
            for entry in self.manifest.engines.values()
            if self.engine in (None, entry.engine) and precision in (None, entry.precision)
        ]
        if not self._wanted:
            held = sorted({f"{e.engine} {e.precision}" for e in self.manifest.engines.values()})
            asked = " ".join(name for name in (self.engine, precision) if name)
            raise ExportError(f"the bundle {self.path} has no {asked} engine", f"it has {', '.join(held)}")
        if verify:
            for file in (self.manifest.config, *self.manifest.reports):
                check_file(self.path, file)
        self.config: Config = _with_text(load_config(self.path / self.manifest.config.file), self.path)
        self._sessions: dict[str, Session] = {}
        self._stages: dict[str, Stage] = {}
        self._lock = threading.Lock()

    @property
    def encoders(self) -> tuple[str, ...]:
        """The encoders it has engines for."""
        names = {entry.encoder for entry in self._wanted}
        return tuple(name for name in self.manifest.encoders if name in names)

    @property
    def model_hash(self) -> str:
        """SHA-256 of the PyTorch weights that the engines were made from."""
        return self.manifest.model_sha256

    def encode(self, batch: Batch, encoder: str) -> NDArray[np.float32]:
        """Embeddings of a batch: (B, E) float32, unit norm.

        Raises:
            ConfigError: the bundle has no such encoder.
            DataError: the batch lacks an input of the encoder, or has it in another shape or dtype.
            ExportError: no engine of the encoder runs on this machine, or it is damaged.
        """
        self._check_encoder(encoder)
        return self.run(encoder, batch_feeds(batch, self.manifest.specs(encoder), encoder))

    def run(self, encoder: str, feeds: Mapping[str, NDArray]) -> NDArray[np.float32]:
        """Run one engine on arrays that are known to fit."""
        return self.session(encoder).run(feeds)

    def session(self, encoder: str) -> Session:
        """The engine of an encoder, opened on first use."""
        with self._lock:
            if encoder not in self._sessions:
                entry = self.entry(encoder)
                if self.verify:
                    for file in entry.files:
                        check_file(self.path, file)
                self._sessions[encoder] = open_engine(
                    self.path, entry, self.manifest.specs(encoder), self.threads, self.device
                )
            return self._sessions[encoder]

    def entry(self, encoder: str) -> EngineEntry:
        """Which engine of an encoder is used.

        Raises:
            ConfigError: the bundle has no such encoder.
            ExportError: none runs on this machine.
        """
        self._check_encoder(encoder)
        reasons = []
        for entry in self._wanted:
            if entry.encoder == encoder:
                reason = self.refusal(entry)
                if reason is None:
                    return entry
                reasons.append(f"{entry.engine} {entry.precision}: {reason}")
        raise ExportError(f"no engine of encoder {encoder} in {self.path} runs here", "; ".join(reasons))

    def refusal(self, entry: EngineEntry) -> str | None:
        """Why one of the engines is not used on this machine and device, or None."""
        return unusable(entry.engine, self.device, entry.precision) or unproven(entry)

    def stage(self, name: str) -> Stage:
        """A part of the model, opened on first use. Stages are float32 graphs for onnxruntime, whatever the engines.

        Raises:
            ConfigError: the bundle has no such stage.
            ExportError: its files were changed, or it cannot run on the device.
        """
        entry = self.manifest.stages.get(name)
        if entry is None:
            held = ", ".join(self.manifest.stages) or "none"
            raise ConfigError(
                f"the bundle {self.path} has no stage {name!r}", f"it has {held}; export again with --stage"
            )
        with self._lock:
            if name not in self._stages:
                if self.verify:
                    for file in entry.files:
                        check_file(self.path, file)
                path = self.path / entry.files[0].file
                self._stages[name] = Stage(path, name, entry.specs, self.threads, self.device)
            return self._stages[name]

    def text_encoder(self, config: TextConfig) -> TextEncoder:
        """The encoder of words that a configuration names.

        The bundle's own is its graph in onnxruntime where it has one (MiniLM, CLIP) and onnxruntime is installed.

        Raises:
            ExportError: a file of the bundle's was changed, or its graph cannot be opened.
            DataError, ConfigError, MissingDependencyError: see `eao.data.text.build_text_encoder`.
        """
        if self.verify:
            for file in self.manifest.text:
                check_file(self.path, file)
        has_graph = any(file.file == f"{TEXT_FOLDER}/{WORDS_ONNX}" for file in self.manifest.text)
        if has_graph and config == self.config.data.text and importlib.util.find_spec("onnxruntime") is not None:
            return GraphText(self.path / TEXT_FOLDER, self.threads)
        return build_text_encoder(config)

    def _check_encoder(self, encoder: str) -> None:
        if encoder not in self.encoders:
            raise ConfigError(
                f"the bundle {self.path} has no encoder {encoder!r}",
                f"it has {', '.join(self.encoders)}; export again with --encoder all",
            )


class Stage:
    """A part of the model in onnxruntime; see `eao.export.stages` for what each reads and gives.

    Safe to call from several threads.

    Args:
        path: the graph.
        name: of the stage.
        specs: its inputs.
        threads: of one run; by default as many as the machine has cores.
        device: "cpu" or "cuda".

    Raises:
        ExportError: onnxruntime refuses the graph or the device.
    """

    def __init__(
        self,
        path: str | Path,
        name: str,
        specs: tuple[InputSpec, ...],
        threads: int | None = None,
        device: str = "cpu",
    ) -> None:
        self.name = name
        self.specs = specs
        self._session = OnnxSession(path, threads, device)

    def run(self, feeds: Mapping[str, NDArray]) -> NDArray[np.float32]:
        """The stage's output, (B, N, width) float32, for an array of every input.

        Raises:
            DataError: an input is missing or unknown, or has another shape or dtype.
        """
        taker, names = f"stage {self.name!r}", [spec.name for spec in self.specs]
        if set(feeds) != set(names):
            raise DataError(f"{taker} was given {', '.join(feeds) or 'nothing'}", f"it takes {', '.join(names)}")
        arrays: dict[str, NDArray] = {}
        sizes: dict[str, tuple[int, str]] = {}
        for spec in self.specs:
            arrays[spec.name] = _cast(np.asarray(feeds[spec.name]), spec, spec.name, taker)
            _check_shape(arrays[spec.name], spec, spec.name, taker, sizes)
        return self._session.run(arrays)


def _with_text(config: Config, folder: Path) -> Config:
    """The configuration with the path of the text encoder's files, which the bundle holds, made absolute."""
    path = config.data.text.path
    if path is None or Path(path).is_absolute() or Path(path).parts[:1] != (TEXT_FOLDER,):
        return config
    text = config.data.text.model_copy(update={"path": str(folder.absolute() / path)})
    return config.model_copy(update={"data": config.data.model_copy(update={"text": text})})


def batch_feeds(batch: Batch, specs: tuple[InputSpec, ...], encoder: str) -> dict[str, NDArray]:
    """The arrays of an encoder's inputs, taken from a batch and checked against their description.

    Raises:
        DataError: an input is missing, or has another shape or dtype.
    """
    feeds: dict[str, NDArray] = {}
    sizes: dict[str, tuple[int, str]] = {}
    names = {spec.name for spec in specs}
    taker = f"encoder {encoder!r}"
    for spec in specs:
        if spec.name == "audio_frames" and batch.audio_frames is None and "audio_mask" not in names:
            # AVLnet averages the whole spectrogram when the length is unknown; positional models need it.
            feeds[spec.name] = np.full(len(feeds["audio"]), _UNKNOWN_LENGTH, dtype=np.int64)
            continue
        value: Tensor | None = getattr(batch, spec.name)
        if value is None:
            raise DataError(f"{taker} needs Batch.{spec.name}, which the batch does not have")
        array = _cast(value.detach().cpu().numpy(), spec, f"Batch.{spec.name}", taker)
        _check_shape(array, spec, f"Batch.{spec.name}", taker, sizes)
        feeds[spec.name] = array
    return feeds


def _cast(array: NDArray, spec: InputSpec, name: str, taker: str) -> NDArray:
    if spec.dtype == "bool" and array.dtype != np.bool_:
        raise DataError(f"{name} is {array.dtype}, but masks are bool", "True = real token")
    kinds = {"float32": "f", "int64": "iu", "bool": "b"}
    if array.dtype.kind not in kinds[spec.dtype]:
        raise DataError(f"{name} is {array.dtype}, but {taker} takes {spec.dtype}")
    return np.ascontiguousarray(array, dtype=spec.dtype)


def _check_shape(array: NDArray, spec: InputSpec, name: str, taker: str, sizes: dict[str, tuple[int, str]]) -> None:
    expected = ", ".join(a.name if isinstance(a, Axis) else str(a) for a in spec.shape)
    fixed = [(axis, size) for axis, size in zip(spec.shape, array.shape, strict=False) if isinstance(axis, int)]
    if array.ndim != len(spec.shape) or any(axis != size for axis, size in fixed):
        raise DataError(f"{name} has shape {array.shape}, but {taker} takes ({expected})")
    for axis, size in zip(spec.shape, array.shape, strict=True):
        if isinstance(axis, int):
            continue
        if size < axis.minimum or size % axis.multiple:
            rule = f"at least {axis.minimum}" + (f" and a multiple of {axis.multiple}" if axis.multiple > 1 else "")
            hint = "pad with zeros and a mask that is False there" if axis.multiple > 1 else ""
            raise DataError(f"{name} has {size} {axis.name}, but {taker} takes {rule}", hint)
        other, first = sizes.setdefault(axis.name, (size, name))
        if other != size:
            raise DataError(f"{name} has {size} {axis.name}, but {first} has {other}")
