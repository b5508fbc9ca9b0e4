"""Weights that several graphs of a folder hold, stored once: one file beside the graphs, which they refer to."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import onnx
from onnx import TensorProto

from eao.errors import ExportError
from eao.export.graph import without_weights
from eao.files import atomic_path

SMALLEST = 1024
"""Bytes below which a tensor stays in its graph: shapes and scalars must, for runtimes to see them at once."""
PAGE = 4096
"""Every tensor begins at a multiple of it, so that runtimes may map it into memory rather than read it."""


class WeightFile:
    """A file of weights under construction; equal tensors are stored once, whatever their names.

    It appears, and with it the graphs, when the block ends without an exception.

    Args:
        path: the file. Graphs must lie in the same folder and find it by its name, so that the folder can be moved.

    Example:
        with WeightFile("bundle/weights.fp16.bin") as weights:
            weights.save(text, "text.fp16.onnx")
            weights.save(video, "video.fp16.onnx")
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.graphs: list[Path] = []
        self._atomic = atomic_path(self.path)
        self._places: dict[tuple[bytes, int], int] = {}

    def __enter__(self) -> WeightFile:
        self._temporary = self._atomic.__enter__()
        self._file = self._temporary.open("wb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._atomic.__exit__(kind, error, trace)
        for graph in self.graphs:
            draft = self._draft(graph)
            os.replace(draft, graph) if kind is None else draft.unlink(missing_ok=True)

    def save(self, model: onnx.ModelProto, name: str) -> Path:
        """Write a graph whose weights are in memory; `model` stays as it is.

        Args:
            model: of any size.
            name: of the graph in the folder of the file.
        """
        light = without_weights(model)
        for tensor in model.graph.initializer:
            data = tensor.raw_data
            if len(data) < SMALLEST:
                light.graph.initializer.append(tensor)
                continue
            stub = light.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
            stub.data_location = TensorProto.EXTERNAL
            entries = {"location": self.path.name, "offset": self._offset(data), "length": len(data)}
            for key, value in entries.items():
                stub.external_data.add(key=key, value=str(value))
        path = self.path.with_name(name)
        self._draft(path).write_bytes(light.SerializeToString())
        self.graphs.append(path)
        return path

    def _offset(self, data: bytes) -> int:
        key = (hashlib.sha256(data).digest(), len(data))
        if key not in self._places:
            self._file.write(b"\0" * (-self._file.tell() % PAGE))
            self._places[key] = self._file.tell()
            self._file.write(data)
        return self._places[key]

    def _draft(self, path: Path) -> Path:
        return path.with_name(f".{path.name}.tmp")


def share(folder: str | Path, graphs: Iterable[str], file: str = "weights.bin") -> Path:
    """Move the weights of graphs that lie in a folder into one file there.

    Graphs are read one at a time. Files that held their weights before are removed.

    Args:
        folder: of the graphs.
        graphs: their names in it.
        file: the name of the file of weights.

    Returns:
        the path of that file.

    Raises:
        ExportError: a graph is missing.
    """
    folder = Path(folder)
    old: set[Path] = set()
    with WeightFile(folder / file) as weights:
        for name in graphs:
            if not (folder / name).is_file():
                raise ExportError(f"{folder / name} does not exist", "export it first")
            old |= {folder / used for used in external_files(folder / name)}
            weights.save(onnx.load(folder / name), name)
    for path in old - {weights.path}:
        path.unlink()
    return weights.path


def external_files(path: str | Path) -> tuple[str, ...]:
    """The names of the files that hold weights of a graph, relative to it."""
    model = onnx.load(path, load_external_data=False)
    found = [
        entry.value
        for tensor in model.graph.initializer
        if tensor.data_location == TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    ]
    return tuple(dict.fromkeys(found))


def with_weights(graph: Path) -> tuple[Path, ...]:
    """A graph and the files with its weights, if they are apart from it."""
    return (graph, *(graph.with_name(name) for name in external_files(graph)))
