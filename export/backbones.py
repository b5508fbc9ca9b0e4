"""Feature networks as engines: from uint8 frames to features in one graph, proved against PyTorch before it is used."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from eao.console import print_table
from eao.errors import ExportError, ParityError
from eao.export.calibration import collect
from eao.export.encoders import BATCH, HEIGHT, WIDTH, Axis, InputSpec
from eao.export.manifest import FileEntry, Record
from eao.export.onnx import OPSET, Subject, export_subject
from eao.export.quantize import calibrated_tensors, to_int8
from eao.export.thresholds import Thresholds, thresholds_of
from eao.features.backbones import Forward, Network, get_backbone
from eao.features.engine import ENGINES, FRAMES, openvino_core
from eao.features.fingerprint import fingerprint
from eao.features.frames import View
from eao.features.media import ClipReader
from eao.files import write_json

# n rows

SUFFIXES = {"onnx": ".onnx", "openvino": ".xml"}
PRECISIONS = ("fp32", "int8")
BATCHES = (1, 2, 3)
"""Rows at a time that parity is measured with."""
ROWS = 6
"""That parity is measured on."""
CALIBRATION_ROWS = 64
_ROWS_PER_CLIP = 4
_SMALLEST = 32  # pixels of a side that may vary
_TIMED = 3

Frames = list[NDArray[np.uint8]]
"""What each row is made of: (height, width, 3) or (chunk, height, width, 3), of one size or several."""


class BackboneEngine(Record):
    """One engine of a feature network.

    Attributes:
        files: the one to name as `weights`, and those beside it.
        cosine: least cosine of a row with PyTorch's, over all batch sizes.
        batch_invariance: least cosine of a row alone with the same row in a batch.
        rows_per_second: on one core of the machine that made it, at the network's batch size.
    """

    engine: str
    precision: str
    files: tuple[FileEntry, ...]
    cosine: float
    batch_invariance: float
    rows_per_second: float


class BackboneManifest(Record):
    """What was exported, written beside the engines as `<backbone>.json`.

    Attributes:
        network: its name.
        weights: SHA-256 of the weights it was made of.
        opset: of the graphs.
        frames: what parity was measured on: "clips", or "noise" without any.
        rows_per_second: of PyTorch, likewise.
    """

    network: str
    weights: str
    opset: int
    frames: str
    rows_per_second: float
    engines: tuple[BackboneEngine, ...]


class _Whole(nn.Module):
    """A network in the form of `Subject.module`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *tensors: Tensor) -> Tensor:
        rows: Tensor = self.network(*tensors)
        return rows


@dataclass(frozen=True)
class _Proof:
    """Rows by PyTorch, which engines are compared with."""

    frames: Frames
    expected: NDArray[np.float32]


def export_backbone(
    name: str,
    weights: str | Path | None,
    out: str | Path,
    engines: Sequence[str] = ("onnx",),
    precisions: Sequence[str] = ("fp32",),
    clips: Sequence[str | Path] = (),
    thresholds: dict[str, Thresholds] | None = None,
) -> BackboneManifest:
    """Write the network of a backbone as engines, which extraction takes as `features.<stream>.weights`.

    An engine is written only once its rows agree with PyTorch's.

    Args:
        name: of the backbone, such as "resnet152".
        weights: of the network; None where a package ships them.
        out: the folder: `<name>.onnx`, `<name>.int8.onnx`, `<name>.xml` with `.bin`, and `<name>.json`.
        engines: of "onnx" (for onnxruntime) and "openvino".
        precisions: of "fp32" and "int8".
        clips: video files, to choose the ranges of int8 from, and to measure parity on.
        thresholds: limits of parity by precision.

    Raises:
        ExportError: there is no such engine or precision, int8 is asked for without clips, or tracing failed.
        ParityError: an engine's rows do not agree with PyTorch's; the other engines are written.
        ConfigError, CheckpointError, MissingDependencyError: the weights are not given, or not of this network.
    """
    _check(engines, precisions, clips)
    network = get_backbone(name).network
    path = network.find_weights(weights, "--weights")
    if path.suffix in ENGINES:
        raise ExportError(f"{path} is an engine already", "give the original weights")
    module = network.build(path)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    read = [frames for clip in clips for frames in read_frames(network, clip)]
    proof = _prove(network, module, read[:: max(1, len(read) // ROWS)][:ROWS] or noise(network, ROWS))
    made, failures = [], []
    with tempfile.TemporaryDirectory(dir=out, prefix=f".{name}.") as draft:
        subject = Subject(f"backbone {name}", _Whole(module), (_spec(network),))
        graph = export_subject(subject, Path(draft) / f"{name}.onnx", OPSET, external_data=False).path
        for precision in precisions:
            # A file of OpenVINO's is loaded on CPUs with and without VNNI.
            of_precision = graph if precision == "fp32" else _quantize(graph, read, "openvino" in engines)
            for engine in engines:
                file = of_precision if engine == "onnx" else _to_openvino(of_precision)
                found, misses = _measure(network, file, engine, precision, proof, thresholds)
                failures += misses
                if not misses:
                    made.append(found)
        for engine_entry in made:
            for entry in engine_entry.files:
                os.replace(Path(draft) / entry.file, out / entry.file)
    manifest = BackboneManifest(
        network=network.name,
        weights=fingerprint(path),
        opset=OPSET,
        frames="clips" if read else "noise",
        rows_per_second=_speed(network, _one_core(module), proof.frames),
        engines=tuple(made),
    )
    if made:
        write_json(out / f"{name}.json", json.loads(manifest.model_dump_json()))
    if failures:
        raise ParityError("; ".join(failures), "try fp32, more clips, or another --threshold")
    return manifest


def print_engines(manifest: BackboneManifest, folder: Path) -> None:
    """The figures that decide, a line for each engine."""
    print_table(
        f"{manifest.network}: {manifest.rows_per_second:.2f} rows/s in PyTorch, on one core as the engines",
        [
            {
                "weights": str(folder / entry.files[0].file),
                "cosine min": f"{entry.cosine:.6f}",
                "batch invariance": f"{entry.batch_invariance:.6f}",
                "rows/s": f"{entry.rows_per_second:.2f}",
            }
            for entry in manifest.engines
        ],
    )


def read_frames(network: Network, clip: str | Path) -> Frames:
    """What a network sees in the first seconds of a video, a row each second.

    Raises:
        MediaError: the file cannot be decoded.
    """
    view = View(float(network.chunk), network.side, network.crop)
    images = [frame.image for frame in islice(ClipReader(clip, [view]), _ROWS_PER_CLIP * network.chunk)]
    if network.chunk == 1:
        return images
    whole = len(images) // network.chunk * network.chunk
    return [np.stack(images[i : i + network.chunk]) for i in range(0, whole, network.chunk)]


def noise(network: Network, rows: int) -> Frames:
    """Coarse noise under fine noise, which differs from row to row in what a network sees."""
    random = np.random.default_rng(0)
    shape = [2 * network.side if size is None else size for size in network.frame_shape]
    if None in network.frame_shape:
        shape[0] = network.side
    coarse = [max(1, size // 16) if size > 3 else size for size in shape]
    frames = []
    for _ in range(rows):
        values = random.random(coarse)
        for axis, size in enumerate(shape):
            values = np.repeat(values, -(-size // values.shape[axis]), axis).take(range(size), axis)
        frames.append((values * 191 + random.random(shape) * 64).astype(np.uint8))
    return frames


def _check(engines: Sequence[str], precisions: Sequence[str], clips: Sequence[str | Path]) -> None:
    for given, known, what in ((engines, SUFFIXES, "engine"), (precisions, PRECISIONS, "precision")):
        for value in given:
            if value not in known:
                raise ExportError(
                    f"feature networks are not exported with {what} {value!r}", f"known: {', '.join(known)}"
                )
    if "int8" in precisions and not clips:
        raise ExportError("int8 needs videos to choose its ranges from", "give some with --clips")


def _spec(network: Network) -> InputSpec:
    """The frames, as the graph takes them."""
    names = iter((HEIGHT, WIDTH))
    sizes = (size if size is not None else Axis(next(names), _SMALLEST) for size in network.frame_shape)
    return InputSpec(FRAMES, "uint8", (Axis(BATCH), *sizes))


def _quantize(graph: Path, frames: Frames, reduce_range: bool) -> Path:
    model = onnx.load(graph)
    step = max(1, len(frames) // CALIBRATION_ROWS)
    feeds = ({FRAMES: image[None]} for image in frames[::step])
    quantized = to_int8(model, collect(graph, feeds, calibrated_tensors(model)), reduce_range=reduce_range)
    path = graph.with_name(f"{graph.stem}.int8.onnx")
    onnx.save(quantized, path)
    return path


def _to_openvino(graph: Path) -> Path:
    core = openvino_core("exporting to OpenVINO")
    import openvino

    path = graph.with_suffix(".xml")
    openvino.save_model(core.read_model(str(graph)), str(path), compress_to_fp16=False)
    return path


def _prove(network: Network, module: nn.Module, frames: Frames) -> _Proof:
    forward = _one_core(module)
    return _Proof(frames, np.concatenate([forward(image[None]) for image in frames]))


def _measure(
    network: Network,
    file: Path,
    engine: str,
    precision: str,
    proof: _Proof,
    thresholds: dict[str, Thresholds] | None,
) -> tuple[BackboneEngine, list[str]]:
    """An engine's figures, and a line for each that misses its threshold."""
    forward = network.load(file)
    alone = np.concatenate([forward(image[None]) for image in proof.frames])
    cosines, invariance = [_cosines(alone, proof.expected)], []
    for size in BATCHES[1:]:
        for start in range(0, len(proof.frames), size):
            part = proof.frames[start : start + size]
            if len({image.shape for image in part}) > 1:
                continue  # pictures of several sizes make no batch
            rows = forward(np.stack(part))
            cosines.append(_cosines(rows, proof.expected[start : start + size]))
            invariance.append(_cosines(rows, alone[start : start + size]))
    entry = BackboneEngine(
        engine=engine,
        precision=precision,
        files=tuple(FileEntry.of(path) for path in (file, *([file.with_suffix(".bin")] * (engine == "openvino")))),
        cosine=float(np.concatenate(cosines).min()),
        batch_invariance=float(np.concatenate(invariance).min()) if invariance else 1.0,
        rows_per_second=_speed(network, forward, proof.frames),
    )
    limits = thresholds_of(precision, thresholds)
    misses = [
        f"{engine} {precision}: {figure.replace('_', ' ')} {value:.7g} < {limit:g}"
        for figure, value, limit in (
            ("cosine", entry.cosine, limits.cosine),
            ("batch_invariance", entry.batch_invariance, limits.batch_invariance),
        )
        if not value >= limit  # so that NaN fails
    ]
    return entry, misses


def _cosines(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    a64, b64 = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(a64, axis=1) * np.linalg.norm(b64, axis=1)
    return np.einsum("nd,nd->n", a64, b64) / np.maximum(lengths, 1e-30)


def _one_core(module: nn.Module) -> Forward:
    """A module as extraction runs it: a batch on one core."""

    def forward(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with torch.inference_mode():
                return module(torch.from_numpy(frames)).float().numpy()
        finally:
            torch.set_num_threads(threads)

    return forward


def _speed(network: Network, forward: Callable[[NDArray[np.uint8]], NDArray[np.float32]], frames: Frames) -> float:
    """Rows per second, the best of a few runs."""
    batch = np.stack([frames[0]] * network.batch_size)
    best = float("inf")
    for _ in range(_TIMED):
        start = time.perf_counter()
        forward(batch)
        best = min(best, time.perf_counter() - start)
    return round(len(batch) / best, 3)
