"""A bundle of engines as a backend: the same embeddings as the PyTorch model, without PyTorch's model code."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from eao.config import Config, load_config, override_config
from eao.errors import ConfigError, DataError, ExportError
from eao.export.encoders import Axis, InputSpec
from eao.export.engines import Session, engine_name, open_engine, unusable
from eao.export.manifest import TEXT_FOLDER, EngineEntry, Manifest, check_file, load_manifest
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
            check_file(self.path, self.manifest.config)
        self.config: Config = _with_text(load_config(self.path / self.manifest.config.file), self.path)
        self._sessions: dict[str, Session] = {}
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
                reason = unusable(entry.engine, self.device, entry.precision)
                if reason is None:
                    return entry
                reasons.append(f"{entry.engine} {entry.precision}: {reason}")
        raise ExportError(f"no engine of encoder {encoder} in {self.path} runs here", "; ".join(reasons))

    def check_text(self) -> None:
        """Compare the files of the text encoder with the manifest.

        Raises:
            ExportError: one was changed.
        """
        if self.verify:
            for file in self.manifest.text:
                check_file(self.path, file)

    def _check_encoder(self, encoder: str) -> None:
        if encoder not in self.encoders:
            raise ConfigError(
                f"the bundle {self.path} has no encoder {encoder!r}",
                f"it has {', '.join(self.encoders)}; export again with --encoder all",
            )


def _with_text(config: Config, folder: Path) -> Config:
    """The configuration with the path of the text encoder's files, which the bundle holds, made absolute."""
    path = config.data.text.path
    if path is None or Path(path).is_absolute() or Path(path).parts[:1] != (TEXT_FOLDER,):
        return config
    return override_config(config, [f"data.text.path={folder.absolute() / path}"])


def batch_feeds(batch: Batch, specs: tuple[InputSpec, ...], encoder: str) -> dict[str, NDArray]:
    """The arrays of an encoder's inputs, taken from a batch and checked against their description.

    Raises:
        DataError: an input is missing, or has another shape or dtype.
    """
    feeds: dict[str, NDArray] = {}
    sizes: dict[str, tuple[int, str]] = {}
    names = {spec.name for spec in specs}
    for spec in specs:
        if spec.name == "audio_frames" and batch.audio_frames is None and "audio_mask" not in names:
            # AVLnet averages the whole spectrogram when the length is unknown; positional models need it.
            feeds[spec.name] = np.full(len(feeds["audio"]), _UNKNOWN_LENGTH, dtype=np.int64)
            continue
        feeds[spec.name] = array = _array(batch, spec, encoder)
        _check_shape(array, spec, encoder, sizes)
    return feeds


def _array(batch: Batch, spec: InputSpec, encoder: str) -> NDArray:
    value: Tensor | None = getattr(batch, spec.name)
    if value is None:
        raise DataError(f"encoder {encoder!r} needs Batch.{spec.name}, which the batch does not have")
    array = value.detach().cpu().numpy()
    if spec.dtype == "bool" and array.dtype != np.bool_:
        raise DataError(f"Batch.{spec.name} is {array.dtype}, but masks are bool", "True = real token")
    kinds = {"float32": "f", "int64": "iu", "bool": "b"}
    if array.dtype.kind not in kinds[spec.dtype]:
        raise DataError(f"Batch.{spec.name} is {array.dtype}, but encoder {encoder!r} takes {spec.dtype}")
    return np.ascontiguousarray(array, dtype=spec.dtype)


def _check_shape(array: NDArray, spec: InputSpec, encoder: str, sizes: dict[str, tuple[int, str]]) -> None:
    expected = ", ".join(a.name if isinstance(a, Axis) else str(a) for a in spec.shape)
    if array.ndim != len(spec.shape):
        raise DataError(f"Batch.{spec.name} has shape {array.shape}, but encoder {encoder!r} takes ({expected})")
    for axis, size in zip(spec.shape, array.shape, strict=True):
        if isinstance(axis, int):
            if size != axis:
                raise DataError(
                    f"Batch.{spec.name} has shape {array.shape}, but encoder {encoder!r} takes ({expected})"
                )
            continue
        if size < axis.minimum or size % axis.multiple:
            rule = f"at least {axis.minimum}" + (f" and a multiple of {axis.multiple}" if axis.multiple > 1 else "")
            hint = "pad with zeros and a mask that is False there" if axis.multiple > 1 else ""
            raise DataError(f"Batch.{spec.name} has {size} {axis.name}, but encoder {encoder!r} takes {rule}", hint)
        other, name = sizes.setdefault(axis.name, (size, spec.name))
        if other != size:
            raise DataError(f"Batch.{spec.name} has {size} {axis.name}, but Batch.{name} has {other}")
