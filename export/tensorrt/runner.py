"""Running an engine: pinned memory, one stream, CUDA graphs, and the profile that suits each call. Unverified on GPU.

Every call copies its inputs to the device, runs, and copies the output back; all three are recorded in one CUDA graph
when the same sizes come again. A recorded graph is tied to the state of its execution context, so with TensorRT each
set of sizes has a context of its own; they share one piece of scratch memory, since they never run at the same time.
TensorRT-RTX records graphs by itself, and there a profile has one context.
"""

from __future__ import annotations

import logging
import math
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from eao.errors import DataError, ExportError
from eao.export.tensorrt.api import Flavour, TensorRT, load_tensorrt
from eao.export.tensorrt.cuda import Bytes, Cuda, open_cuda
from eao.export.tensorrt.engine import RuntimeCache, check_tensors, load_engine, read_profiles
from eao.export.tensorrt.profiles import Profile, choose_profile, input_shape

if TYPE_CHECKING:
    import tensorrt

    from eao.export.encoders import InputSpec

# B batch, E embedding

log = logging.getLogger(__name__)

MAX_PLANS = 16
"""Sets of sizes that stay ready; the one unused for longest makes room. Each costs a context and a recorded graph."""


class Timing(NamedTuple):
    """Milliseconds that the device took."""

    upload: float
    compute: float
    download: float


@dataclass
class _Buffer:
    """A tensor on both sides, at its largest."""

    host: Bytes
    device: int


@dataclass
class _Plan:
    """A context with sizes set; and what was recorded of it, from its second run on."""

    context: Any
    sizes: dict[str, int]
    graph: Any = None
    warm: bool = False


class TensorRTSession:
    """An engine of either flavour, ready to run. Safe to call from several threads, which take turns.

    Args:
        path: the engine.
        specs: the inputs of its encoder.
        flavour: of the engine.
        device: number of the CUDA device.
        graphs: record CUDA graphs. Without them each kernel is launched on its own.
        runtime_cache: TensorRT-RTX only: a file for the kernels it compiles on this machine, so that the next process
            starts faster.
        version_compatible: the engine was built so, and carries code of its own for this process to run; its file must
            be one that is trusted.

    Raises:
        ExportError: no CUDA device, or the engine does not load: it is of another GPU or version.
        MissingDependencyError: neither cuda-python nor PyCUDA is installed, or TensorRT is not.

    Example:
        session = TensorRTSession("text.engine", manifest.specs("text"), "tensorrt")
        rows = session.run({"text": text, "text_mask": mask})    # (B, E) float32
    """

    def __init__(
        self,
        path: str | Path,
        specs: Sequence[InputSpec],
        flavour: Flavour,
        device: int = 0,
        graphs: bool = True,
        runtime_cache: str | Path | None = None,
        version_compatible: bool = False,
    ) -> None:
        self.path = Path(path)
        self.specs = tuple(specs)
        self._api: TensorRT = load_tensorrt(flavour)
        self._cuda: Cuda = open_cuda(device)
        self._graphs = graphs
        self._lock = threading.Lock()
        self._plans: OrderedDict[tuple[int, ...], _Plan] = OrderedDict()
        self._errors: list[str] = []
        with self._cuda.active():
            self._runtime, self._engine = load_engine(self._api, self.path, version_compatible, self._errors)
            self._output = check_tensors(self._api, self._engine, self.path, self.specs)
            self.profiles: tuple[Profile, ...] = read_profiles(self._engine, self.specs)
            self._kernels = RuntimeCache(self._api, self._engine, graphs, runtime_cache)
            self._stream = self._cuda.create_stream()
            self._buffers: dict[str, _Buffer] = {}
            self._scratch: list[int] = []
            owned = (self._cuda, self._stream, self._plans, self._buffers, self._scratch)
            self._close = weakref.finalize(self, _release, *owned)
            self._close.atexit = False  # the driver shuts down by itself, perhaps earlier
            self._allocate()

    def run(self, feeds: Mapping[str, NDArray]) -> NDArray[np.float32]:
        """Embeddings: (B, E) float32.

        Args:
            feeds: input name -> array, of the dtypes and shapes of `specs`.

        Raises:
            DataError: an input is missing or of another dtype or shape, or its sizes fit no profile.
            ExportError: the engine failed.
        """
        sizes = self._check_feeds(feeds)
        with self._lock, self._cuda.active():
            plan = self._prepare(sizes, feeds)
            graph = self._record(plan, sizes)
            if graph is not None:
                self._cuda.launch(graph, self._stream)
            else:
                _start(self._steps(plan, sizes))
            self._cuda.synchronize(self._stream)
            if not plan.warm:
                plan.warm = True
                self._kernels.save()
            return self._read_output(plan)

    def time(self, feeds: Mapping[str, NDArray]) -> Timing:
        """The device's time for copying in, computing and copying out, one after the other and without a CUDA graph.

        Raises:
            DataError: as `run`.
            ExportError: as `run`.
        """
        sizes = self._check_feeds(feeds)
        with self._lock, self._cuda.active():
            plan = self._prepare(sizes, feeds)
            return Timing(*self._cuda.milliseconds(self._stream, *self._steps(plan, sizes)))

    def close(self) -> None:
        """Give the memory of the device back. A closed session cannot run."""
        with self._lock:
            self._close()

    def _check_feeds(self, feeds: Mapping[str, NDArray]) -> dict[str, int]:
        """The size of every varying axis, after checking that the arrays have them: TensorRT reads by these sizes,
        whatever the arrays hold."""
        sizes: dict[str, int] = {}
        for spec in self.specs:
            if spec.name not in feeds:
                raise DataError(f"{self.path.name} needs the input {spec.name}")
            array = feeds[spec.name]
            if array.dtype != np.dtype(spec.dtype) or array.ndim != len(spec.shape):
                raise DataError(
                    f"{spec.name} is {array.dtype} with {array.ndim} axes, but {self.path.name} takes {spec.dtype} "
                    f"with {len(spec.shape)}"
                )
            for axis, size in zip(spec.shape, array.shape, strict=True):
                if not isinstance(axis, int):
                    sizes.setdefault(axis.name, size)
            if array.shape != input_shape(spec, sizes):
                raise DataError(f"{spec.name} has shape {array.shape}, but it should be {input_shape(spec, sizes)}")
        return sizes

    def _prepare(self, sizes: dict[str, int], feeds: Mapping[str, NDArray]) -> _Plan:
        """The plan for these sizes, and the arrays in pinned memory."""
        if not self._close.alive:
            raise ExportError(f"the session of {self.path} is closed", "open it again")
        index = choose_profile(self.profiles, sizes, self.path.name)
        key = (index,) if self._api.is_rtx else (index, *sizes.values())
        plan = self._plans.get(key)
        if plan is None:
            plan = self._add_plan(key, index)
        self._plans.move_to_end(key)
        self._set_sizes(plan, sizes)
        for spec in self.specs:
            array = feeds[spec.name]
            host = self._buffers[spec.name].host[: array.nbytes]
            np.copyto(host.view(array.dtype).reshape(array.shape), array)
        return plan

    def _add_plan(self, key: tuple[int, ...], index: int) -> _Plan:
        while len(self._plans) >= MAX_PLANS:
            _, oldest = self._plans.popitem(last=False)
            if oldest.graph is not None:
                self._cuda.destroy_graph(oldest.graph)
        context: tensorrt.IExecutionContext = self._create_context()
        if context is None or not context.set_optimization_profile_async(index, self._stream):
            raise self._failed(f"profile {index} cannot be used")
        self._cuda.synchronize(self._stream)
        for name, buffer in self._buffers.items():
            if not context.set_tensor_address(name, buffer.device):
                raise self._failed(f"it takes no memory for {name}")
        self._plans[key] = plan = _Plan(context, {})
        return plan

    def _create_context(self) -> Any:
        trt = self._api.module
        engine: tensorrt.ICudaEngine = self._engine
        if self._api.is_rtx:
            return engine.create_execution_context(self._kernels.config)
        context: tensorrt.IExecutionContext = engine.create_execution_context(
            trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        if context is not None:
            context.set_device_memory(self._scratch[0], engine.device_memory_size_v2)
        return context

    def _set_sizes(self, plan: _Plan, sizes: dict[str, int]) -> None:
        if plan.sizes == sizes:
            return
        context: tensorrt.IExecutionContext = plan.context
        for spec in self.specs:
            if not context.set_input_shape(spec.name, input_shape(spec, sizes)):
                raise self._failed(f"it refuses {spec.name} of shape {input_shape(spec, sizes)}")
        missing = context.infer_shapes()
        if missing:
            raise self._failed(f"it lacks the shape of {', '.join(missing)}")
        plan.sizes = sizes

    def _steps(self, plan: _Plan, sizes: Mapping[str, int]) -> tuple[partial[None], partial[None], partial[None]]:
        """Copying in, computing, copying out: each starts its work on the stream and returns."""
        return partial(self._upload, sizes), partial(self._compute, plan), partial(self._download, plan)

    def _upload(self, sizes: Mapping[str, int]) -> None:
        for spec in self.specs:
            buffer = self._buffers[spec.name]
            self._cuda.upload(buffer.device, buffer.host[: _size(input_shape(spec, sizes), spec.dtype)], self._stream)

    def _compute(self, plan: _Plan) -> None:
        context: tensorrt.IExecutionContext = plan.context
        if not context.execute_async_v3(self._stream):
            raise self._failed("it cannot run")

    def _download(self, plan: _Plan) -> None:
        buffer = self._buffers[self._output]
        self._cuda.download(buffer.host[: _size(self._output_shape(plan), "float32")], buffer.device, self._stream)

    def _output_shape(self, plan: _Plan) -> tuple[int, ...]:
        context: tensorrt.IExecutionContext = plan.context
        return tuple(context.get_tensor_shape(self._output))

    def _read_output(self, plan: _Plan) -> NDArray[np.float32]:
        shape = self._output_shape(plan)
        host = self._buffers[self._output].host[: _size(shape, "float32")]
        return host.view(np.float32).reshape(shape).copy()

    def _record(self, plan: _Plan, sizes: Mapping[str, int]) -> Any:
        """The recorded graph of a plan; none yet for its first run, in which TensorRT still sets itself up."""
        if not self._graphs or self._api.is_rtx or not plan.warm:
            return None
        if not self._cuda.captures:
            log.warning("PyCUDA records no CUDA graphs: %s runs without (install cuda-python)", self.path.name)
            self._graphs = False
            return None
        if plan.graph is None:
            try:
                plan.graph = self._cuda.capture(self._stream, partial(_start, self._steps(plan, sizes)))
            except ExportError as error:
                log.warning("%s runs without a CUDA graph: %s", self.path.name, error.message)
                self._graphs = False
        return plan.graph

    def _allocate(self) -> None:
        """Memory for every tensor at its largest, so that addresses never change, and for TensorRT's own use."""
        engine: tensorrt.ICudaEngine = self._engine
        for spec in self.specs:
            shapes = [input_shape(spec, {name: r.max for name, r in profile.items()}) for profile in self.profiles]
            self._add_buffer(spec.name, max(shapes, key=math.prod), spec.dtype)
        most = max(profile["batch"].max for profile in self.profiles)
        shape = [most if size < 0 else size for size in engine.get_tensor_shape(self._output)]
        self._add_buffer(self._output, shape, "float32")
        if not self._api.is_rtx:  # which allocates for itself
            self._scratch.append(self._cuda.allocate(max(engine.device_memory_size_v2, 1)))

    def _add_buffer(self, name: str, shape: Sequence[int], dtype: str) -> None:
        size = _size(shape, dtype)
        self._buffers[name] = _Buffer(self._cuda.allocate_pinned(size), self._cuda.allocate(size))

    def _failed(self, what: str) -> ExportError:
        said = f": {' '.join(self._errors[-1].split())[:300]}" if self._errors else ""
        return ExportError(f"the engine {self.path} failed: {what}{said}", "build it again on this machine")


def _start(steps: Sequence[Callable[[], None]]) -> None:
    for step in steps:
        step()


def _size(shape: Sequence[int], dtype: str) -> int:
    """Bytes of an array."""
    return math.prod(shape) * np.dtype(dtype).itemsize


def _release(
    cuda: Cuda, stream: int, plans: dict[tuple[int, ...], _Plan], buffers: dict[str, _Buffer], scratch: list[int]
) -> None:
    with cuda.active():
        cuda.synchronize(stream)
        for plan in plans.values():
            if plan.graph is not None:
                cuda.destroy_graph(plan.graph)
        plans.clear()
        for buffer in buffers.values():
            cuda.free(buffer.device)
            cuda.free_pinned(buffer.host)
        for address in scratch:
            cuda.free(address)
        cuda.destroy_stream(stream)
