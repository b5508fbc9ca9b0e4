"""Device memory, pinned memory, streams and CUDA graphs, by cuda-python or by PyCUDA. Unverified on GPU."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from eao.errors import ExportError, missing_dependency

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Gpu:
    """A GPU's name, and its compute capability as "8.6"."""

    name: str
    compute_capability: str


class Cuda(Protocol):
    """What the runner needs of CUDA. Addresses and streams are plain integers, as TensorRT takes them.

    All but `active` are called inside of `with cuda.active():`, which makes the device the calling thread's own.
    """

    captures: bool
    """Whether it can record CUDA graphs."""

    def active(self) -> contextlib.AbstractContextManager[None]: ...

    def gpu(self) -> Gpu: ...

    def allocate(self, size: int) -> int: ...

    def free(self, address: int) -> None: ...

    def allocate_pinned(self, size: int) -> Bytes: ...

    def free_pinned(self, memory: Bytes) -> None: ...

    def create_stream(self) -> int: ...

    def destroy_stream(self, stream: int) -> None: ...

    def upload(self, address: int, source: Bytes, stream: int) -> None:
        """Start copying to the device."""

    def download(self, target: Bytes, address: int, stream: int) -> None:
        """Start copying from the device."""

    def synchronize(self, stream: int) -> None:
        """Wait for everything started on a stream."""

    def capture(self, stream: int, work: Callable[[], None]) -> Any:
        """Record what `work` starts on a stream, without doing it."""

    def launch(self, graph: Any, stream: int) -> None:
        """Start everything that was recorded."""

    def destroy_graph(self, graph: Any) -> None: ...

    def milliseconds(self, stream: int, *works: Callable[[], None]) -> tuple[float, ...]:
        """Run pieces of work one after the other and give the time the device took for each."""


def open_cuda(device: int = 0) -> Cuda:
    """CUDA by cuda-python where it is installed, else by PyCUDA.

    Raises:
        MissingDependencyError: neither is installed.
        ExportError: there is no such device, or the driver does not work.
    """
    try:
        from cuda.bindings import runtime
    except ImportError:
        try:
            import pycuda.driver as driver
        except ImportError:
            raise missing_dependency("cuda-python", "trt", "running a TensorRT engine") from None
        return PyCuda(driver, device)
    return CudaPython(runtime, device)


class CudaPython:
    """CUDA by cuda-python's runtime API (`cuda.bindings.runtime`), where each call returns (error, results ...)."""

    captures = True

    def __init__(self, runtime: Any, device: int) -> None:
        self._runtime = runtime
        self._device = device
        try:
            count = self._check("cudaGetDeviceCount", *runtime.cudaGetDeviceCount())
        except (ExportError, RuntimeError) as error:  # no driver, or the runtime library itself does not load
            raise _no_device(device, str(error)) from None
        if device >= count:
            raise _no_device(device, f"{count} found")

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        self._check("cudaSetDevice", *self._runtime.cudaSetDevice(self._device))
        yield

    def gpu(self) -> Gpu:
        properties = self._check("cudaGetDeviceProperties", *self._runtime.cudaGetDeviceProperties(self._device))
        name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
        return Gpu(name.rstrip("\0"), f"{properties.major}.{properties.minor}")

    def allocate(self, size: int) -> int:
        return int(self._check(f"cudaMalloc of {size} bytes", *self._runtime.cudaMalloc(size)))

    def free(self, address: int) -> None:
        self._check("cudaFree", *self._runtime.cudaFree(address))

    def allocate_pinned(self, size: int) -> Bytes:
        flags = self._runtime.cudaHostAllocDefault
        address = int(self._check(f"cudaHostAlloc of {size} bytes", *self._runtime.cudaHostAlloc(size, flags)))
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def free_pinned(self, memory: Bytes) -> None:
        self._check("cudaFreeHost", *self._runtime.cudaFreeHost(memory.ctypes.data))

    def create_stream(self) -> int:
        # Not the default stream: TensorRT would synchronise the device around every run on it.
        flags = self._runtime.cudaStreamNonBlocking
        return int(self._check("cudaStreamCreateWithFlags", *self._runtime.cudaStreamCreateWithFlags(flags)))

    def destroy_stream(self, stream: int) -> None:
        self._check("cudaStreamDestroy", *self._runtime.cudaStreamDestroy(stream))

    def upload(self, address: int, source: Bytes, stream: int) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        copied = self._runtime.cudaMemcpyAsync(address, source.ctypes.data, source.nbytes, kind, stream)
        self._check("cudaMemcpyAsync to the device", *copied)

    def download(self, target: Bytes, address: int, stream: int) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        copied = self._runtime.cudaMemcpyAsync(target.ctypes.data, address, target.nbytes, kind, stream)
        self._check("cudaMemcpyAsync from the device", *copied)

    def synchronize(self, stream: int) -> None:
        self._check("cudaStreamSynchronize", *self._runtime.cudaStreamSynchronize(stream))

    def capture(self, stream: int, work: Callable[[], None]) -> Any:
        # Thread local: what other threads do on the device meanwhile must not spoil the recording.
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._check("cudaStreamBeginCapture", *self._runtime.cudaStreamBeginCapture(stream, mode))
        try:
            work()
        except BaseException:
            self._runtime.cudaStreamEndCapture(stream)
            raise
        graph = self._check("cudaStreamEndCapture", *self._runtime.cudaStreamEndCapture(stream))
        try:
            return self._check("cudaGraphInstantiate", *self._runtime.cudaGraphInstantiate(graph, 0))
        finally:
            self._check("cudaGraphDestroy", *self._runtime.cudaGraphDestroy(graph))

    def launch(self, graph: Any, stream: int) -> None:
        self._check("cudaGraphLaunch", *self._runtime.cudaGraphLaunch(graph, stream))

    def destroy_graph(self, graph: Any) -> None:
        self._check("cudaGraphExecDestroy", *self._runtime.cudaGraphExecDestroy(graph))

    def milliseconds(self, stream: int, *works: Callable[[], None]) -> tuple[float, ...]:
        events = [self._check("cudaEventCreate", *self._runtime.cudaEventCreate()) for _ in range(len(works) + 1)]
        try:
            self._check("cudaEventRecord", *self._runtime.cudaEventRecord(events[0], stream))
            for work, event in zip(works, events[1:], strict=True):
                work()
                self._check("cudaEventRecord", *self._runtime.cudaEventRecord(event, stream))
            self.synchronize(stream)
            return tuple(
                float(self._check("cudaEventElapsedTime", *self._runtime.cudaEventElapsedTime(start, end)))
                for start, end in itertools.pairwise(events)
            )
        finally:
            for event in events:
                self._check("cudaEventDestroy", *self._runtime.cudaEventDestroy(event))

    def _check(self, what: str, error: Any, *results: Any) -> Any:
        if error != self._runtime.cudaError_t.cudaSuccess:
            _, text = self._runtime.cudaGetErrorString(error)
            raise _failed(what, text.decode() if isinstance(text, bytes) else str(text))
        return results[0] if results else None


class PyCuda:
    """CUDA by PyCUDA's driver API, in the device's primary context, which TensorRT uses too. Records no CUDA graphs."""

    captures = False

    def __init__(self, driver: Any, device: int) -> None:
        self._driver = driver
        try:
            driver.init()
            if device >= driver.Device.count():
                raise _no_device(device, f"{driver.Device.count()} found")
            self._device = driver.Device(device)
            self._context = self._device.retain_primary_context()
        except driver.Error as error:
            raise _no_device(device, str(error)) from None
        self._memory: dict[int, Any] = {}
        self._streams: dict[int, Any] = {}

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        self._context.push()
        try:
            yield
        except self._driver.Error as error:
            raise _failed("a call", str(error)) from error
        finally:
            self._context.pop()

    def gpu(self) -> Gpu:
        major, minor = self._device.compute_capability()
        return Gpu(self._device.name(), f"{major}.{minor}")

    def allocate(self, size: int) -> int:
        memory = self._driver.mem_alloc(size)
        self._memory[int(memory)] = memory
        return int(memory)

    def free(self, address: int) -> None:
        self._memory.pop(address).free()

    def allocate_pinned(self, size: int) -> Bytes:
        return self._driver.pagelocked_empty(size, np.uint8)

    def free_pinned(self, memory: Bytes) -> None:
        owner: Any = memory.base
        owner.free()

    def create_stream(self) -> int:
        stream = self._driver.Stream(1)  # CU_STREAM_NON_BLOCKING
        self._streams[stream.handle] = stream
        return stream.handle

    def destroy_stream(self, stream: int) -> None:
        del self._streams[stream]

    def upload(self, address: int, source: Bytes, stream: int) -> None:
        self._driver.memcpy_htod_async(address, source, self._streams[stream])

    def download(self, target: Bytes, address: int, stream: int) -> None:
        self._driver.memcpy_dtoh_async(target, address, self._streams[stream])

    def synchronize(self, stream: int) -> None:
        self._streams[stream].synchronize()

    def capture(self, stream: int, work: Callable[[], None]) -> Any:
        raise _failed("recording a CUDA graph", "PyCUDA is used without them; install cuda-python")

    def launch(self, graph: Any, stream: int) -> None:
        raise _failed("launching a CUDA graph", "PyCUDA is used without them; install cuda-python")

    def destroy_graph(self, graph: Any) -> None:
        raise _failed("freeing a CUDA graph", "PyCUDA is used without them; install cuda-python")

    def milliseconds(self, stream: int, *works: Callable[[], None]) -> tuple[float, ...]:
        events = [self._driver.Event() for _ in range(len(works) + 1)]
        events[0].record(self._streams[stream])
        for work, event in zip(works, events[1:], strict=True):
            work()
            event.record(self._streams[stream])
        events[-1].synchronize()
        return tuple(float(end.time_since(start)) for start, end in itertools.pairwise(events))


def _no_device(device: int, why: str) -> ExportError:
    return ExportError(
        f"CUDA device {device} cannot be used: {why}", "see that nvidia-smi lists it, and run `eao doctor`"
    )


def _failed(what: str, why: str) -> ExportError:
    return ExportError(f"CUDA: {what} failed: {why}", "smaller batches help where memory ran out; see `eao doctor`")
