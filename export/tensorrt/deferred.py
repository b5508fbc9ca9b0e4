"""Engines that are built on first use: a bundle made without a GPU carries the graph and how to build it.

The built engine stays in a cache on the machine that built it, under a key of everything it depends on: the graph, the
request, the version of TensorRT and the GPU. Building with TensorRT is unverified on GPU.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import pydantic

from eao.errors import ExportError
from eao.export.manifest import FileEntry, check_file
from eao.export.tensorrt.api import load_tensorrt
from eao.export.tensorrt.builder import build, require_gpu
from eao.export.tensorrt.cache import engine_cache
from eao.export.tensorrt.cuda import Gpu, open_cuda
from eao.export.tensorrt.request import BuildRequest, BuiltEngine, Record
from eao.files import sha256, write_text

log = logging.getLogger(__name__)

SUFFIX = ".build.json"


class DeferredBuild(Record):
    """A build that waits for its machine. It lies in a bundle beside the graph.

    Attributes:
        format: version of this layout.
        files: the graph, then the files with its weights, if any.
        request: how to build.
    """

    format: Literal[1] = 1
    files: tuple[FileEntry, ...] = pydantic.Field(min_length=1)
    request: BuildRequest


def defer_build(graph: str | Path, request: BuildRequest, external: Sequence[str | Path] = ()) -> Path:
    """Write a build request beside a graph, instead of building.

    Args:
        graph: the .onnx file in the bundle.
        request: how to build.
        external: files with the graph's weights, in the same folder.

    Returns:
        The file `<graph without .onnx>.<flavour>.build.json`.

    Raises:
        ExportError: the request asks for something that its flavour cannot do.
    """
    graph = Path(graph)
    request.check()
    files = tuple(FileEntry.of(Path(file)) for file in (graph, *external))
    path = graph.with_name(f"{graph.stem}.{request.flavour}{SUFFIX}")
    write_text(path, DeferredBuild(files=files, request=request).model_dump_json(indent=2) + "\n")
    return path


def read_deferred(path: str | Path) -> DeferredBuild:
    """Read a build request of a bundle.

    Raises:
        ExportError: it is missing or damaged.
    """
    path = Path(path)
    try:
        return DeferredBuild.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ExportError(f"{path} cannot be read: {error.strerror}", "copy the bundle again") from None
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ExportError(f"{path} is damaged: {where}: {first['msg']}", "export the bundle again") from None


def build_deferred(path: str | Path, device: int = 0, cache: str | Path | None = None) -> BuiltEngine:
    """The engine of a build request: from the cache, or built now, which takes seconds to minutes.

    Of several processes that want the same engine one builds it, and the others wait.

    Args:
        path: the request, in a bundle.
        device: number of the CUDA device to build for.
        cache: the folder of built engines; by default `engine_cache()`.

    Raises:
        ExportError: no GPU, or one that the bundle is not meant for; a graph that was changed since the export; a
            failed build.
        MissingDependencyError: TensorRT or cuda-python is not installed.

    Example:
        >>> build_deferred("bundles/demo/text.tensorrt.build.json").path  # doctest: +SKIP
    """
    path = Path(path)
    deferred = read_deferred(path)
    require_gpu(deferred.request)
    cuda = open_cuda(device)
    with cuda.active():
        gpu = cuda.gpu()
    request = _for_gpu(deferred.request, gpu, path)
    version = load_tensorrt(deferred.request.flavour).version
    folder = Path(cache) if cache is not None else engine_cache()
    key = engine_key(deferred, version, gpu)
    engine, record = folder / f"{key}.engine", folder / f"{key}.json"
    with _lock(folder / f"{key}.lock"):
        found = _read_built(engine, record)
        if found is not None:
            return found
        for file in deferred.files:
            check_file(path.parent, file)
        log.warning("building %s for %s on first use; it is kept in %s", path.name, gpu.name, folder)
        timing = folder / f"timing-{_digest(version, gpu.name)}.cache"
        built = build(path.parent / deferred.files[0].file, engine, request, timing)
        write_text(record, built.model_dump_json(indent=2) + "\n")
        return built


def _for_gpu(request: BuildRequest, gpu: Gpu, path: Path) -> BuildRequest:
    """What is built here: TensorRT-RTX's engine for this GPU alone, not for all that the bundle is meant for.

    Raises:
        ExportError: the bundle is not meant for this GPU.
    """
    if request.flavour != "tensorrt-rtx":
        return request
    if gpu.compute_capability not in request.targets:
        raise ExportError(
            f"{path} is for compute capabilities {', '.join(request.targets)}, and {gpu.name} has "
            f"{gpu.compute_capability}",
            f"export with --target {gpu.compute_capability}",
        )
    return request.model_copy(update={"targets": (gpu.compute_capability,)})


def engine_key(deferred: DeferredBuild, version: str, gpu: Gpu) -> str:
    """A name for the engine that this request gives with this version of TensorRT on this GPU."""
    files = [file.sha256 for file in deferred.files]
    return _digest(json.dumps(files), deferred.request.model_dump_json(), version, gpu.name, gpu.compute_capability)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _read_built(engine: Path, record: Path) -> BuiltEngine | None:
    """What was built earlier, if it is whole."""
    if not engine.is_file() or not record.is_file():
        return None
    try:
        built = BuiltEngine.model_validate_json(record.read_text(encoding="utf-8"))
    except pydantic.ValidationError:
        built = None
    if built is not None and sha256(engine) == built.sha256:
        return built.model_copy(update={"path": engine})  # the cache may have been moved
    log.warning("%s was changed since it was built: it is built again", engine)
    return None


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
