from __future__ import annotations

import ast
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eao.errors import ExportError, MissingDependencyError
from eao.export.tensorrt import cuda
from eao.export.tensorrt.cuda import CudaPython, Gpu, PyCuda, open_cuda

NO_CUDA = importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.bindings") is None
needs_cuda_python = pytest.mark.skipif(NO_CUDA, reason="cuda-python is not installed")


class FakeRuntime:
    """Calls of the runtime API that succeed, each noted; one can be told to fail."""

    def __init__(self) -> None:
        constants = {
            "cudaError_t": types.SimpleNamespace(cudaSuccess=0),
            "cudaMemcpyKind": types.SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2),
            "cudaStreamCaptureMode": types.SimpleNamespace(cudaStreamCaptureModeThreadLocal=1),
            "cudaHostAllocDefault": 0,
            "cudaStreamNonBlocking": 1,
        }
        vars(self).update(constants)
        self.calls: list[tuple[Any, ...]] = []
        self.fails = ""
        self.host = np.zeros(64, np.uint8)

    def __getattr__(self, name: str) -> Any:
        results = {
            "cudaGetDeviceCount": (2,),
            "cudaMalloc": (4096,),
            "cudaHostAlloc": (self.host.ctypes.data,),
            "cudaStreamCreateWithFlags": (77,),
            "cudaStreamEndCapture": ("graph",),
            "cudaGraphInstantiate": ("executable",),
            "cudaEventCreate": ("event",),
            "cudaEventElapsedTime": (1.5,),
            "cudaGetDeviceProperties": (types.SimpleNamespace(name=b"NVIDIA L4\0\0", major=8, minor=9),),
            "cudaGetErrorString": (b"out of memory",),
        }

        def call(*args: Any) -> tuple[Any, ...]:
            self.calls.append((name, *args))
            if name == self.fails:
                return (2, None)[: 1 + len(results.get(name, ()))]
            return (0, *results.get(name, ()))

        return call

    def names(self) -> list[str]:
        return [call[0] for call in self.calls]


@pytest.fixture
def runtime() -> FakeRuntime:
    return FakeRuntime()


@needs_cuda_python
def test_every_name_of_cuda_python_exists() -> None:
    from cuda.bindings import runtime as real

    used = set()
    for node in ast.walk(ast.parse(Path(cuda.__file__).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and node.attr.startswith("cuda") and node.attr != "cuda":
            used.add(ast.unparse(node).split("runtime.", 1)[-1])
    assert len(used) > 20
    for name in sorted(used):
        value: Any = real
        for part in name.split("."):
            value = getattr(value, part)


@needs_cuda_python
@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is a GPU")
def test_without_a_device_the_real_library_says_so() -> None:
    with pytest.raises(ExportError, match=r"CUDA|cuda"):
        open_cuda()


def test_neither_package_is_an_error_that_names_the_better_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cuda", "cuda.bindings", "cuda.bindings.runtime", "pycuda", "pycuda.driver"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match=r"cuda-python.*\n.*'\.\[trt\]"):
        open_cuda()


def test_a_device_that_is_not_there_is_named(runtime: FakeRuntime) -> None:
    with pytest.raises(ExportError, match="CUDA device 2 cannot be used: 2 found"):
        CudaPython(runtime, 2)


def test_the_device_is_made_the_threads_own(runtime: FakeRuntime) -> None:
    with CudaPython(runtime, 1).active():
        assert runtime.calls[-1] == ("cudaSetDevice", 1)


def test_the_gpu_has_a_name_and_a_capability(runtime: FakeRuntime) -> None:
    assert CudaPython(runtime, 0).gpu() == Gpu("NVIDIA L4", "8.9")


def test_pinned_memory_is_a_view_of_what_cuda_gave(runtime: FakeRuntime) -> None:
    device = CudaPython(runtime, 0)
    memory = device.allocate_pinned(64)
    memory[:] = np.arange(64)
    assert runtime.host.tolist() == list(range(64))
    device.free_pinned(memory)
    assert runtime.calls[-1] == ("cudaFreeHost", runtime.host.ctypes.data)


def test_copies_take_as_many_bytes_as_the_slice_has(runtime: FakeRuntime) -> None:
    device, host = CudaPython(runtime, 0), np.zeros(64, np.uint8)
    device.upload(4096, host[:10], 77)
    assert runtime.calls[-1] == ("cudaMemcpyAsync", 4096, host.ctypes.data, 10, 1, 77)
    device.download(host[:12], 4096, 77)
    assert runtime.calls[-1] == ("cudaMemcpyAsync", host.ctypes.data, 4096, 12, 2, 77)


def test_a_recording_becomes_an_executable_graph_and_the_raw_one_is_freed(runtime: FakeRuntime) -> None:
    device = CudaPython(runtime, 0)
    graph = device.capture(77, lambda: runtime.calls.append(("work",)))
    assert graph == "executable"
    assert runtime.names()[1:] == [
        "cudaStreamBeginCapture",
        "work",
        "cudaStreamEndCapture",
        "cudaGraphInstantiate",
        "cudaGraphDestroy",
    ]


def test_a_recording_ends_when_its_work_fails(runtime: FakeRuntime) -> None:
    def fail() -> None:
        raise ExportError("no")

    with pytest.raises(ExportError, match="no"):
        CudaPython(runtime, 0).capture(77, fail)
    assert runtime.names()[-1] == "cudaStreamEndCapture"


def test_events_stand_between_the_pieces_of_work(runtime: FakeRuntime) -> None:
    work = [lambda i=i: runtime.calls.append((f"work {i}",)) for i in range(2)]
    assert CudaPython(runtime, 0).milliseconds(77, *work) == (1.5, 1.5)
    order = [n for n in runtime.names() if n.startswith(("work", "cudaEventRecord", "cudaStreamSync"))]
    assert order == [
        "cudaEventRecord",
        "work 0",
        "cudaEventRecord",
        "work 1",
        "cudaEventRecord",
        "cudaStreamSynchronize",
    ]
    assert runtime.names().count("cudaEventDestroy") == 3


def test_a_call_that_fails_is_an_error_with_cudas_words(runtime: FakeRuntime) -> None:
    runtime.fails = "cudaMalloc"
    with pytest.raises(ExportError, match="cudaMalloc of 10 bytes failed: out of memory"):
        CudaPython(runtime, 0).allocate(10)


class FakeDriver:
    """PyCUDA's driver module, as far as it is used."""

    class Error(Exception):
        pass

    def __init__(self) -> None:
        driver = self
        self.depth = 0
        self.log: list[Any] = []

        class Context:
            def push(self) -> None:
                driver.depth += 1

            def pop(self) -> None:
                driver.depth -= 1

        class Device:
            def __init__(self, number: int) -> None:
                self.number = number

            @staticmethod
            def count() -> int:
                return 1

            def retain_primary_context(self) -> Context:
                return Context()

            def name(self) -> str:
                return "NVIDIA L4"

            def compute_capability(self) -> tuple[int, int]:
                return 8, 9

        class Stream:
            def __init__(self, flags: int) -> None:
                self.handle = 77

            def synchronize(self) -> None:
                driver.log.append("waited")

        self.Device, self.Stream = Device, Stream

    def init(self) -> None:
        self.log.append("init")

    def memcpy_htod_async(self, target: int, source: np.ndarray, stream: Any) -> None:
        self.log.append((target, source.nbytes, stream.handle))


def test_pycuda_works_in_the_primary_context_and_leaves_it() -> None:
    driver = FakeDriver()
    device = PyCuda(driver, 0)
    with device.active():
        assert driver.depth == 1
        stream = device.create_stream()
        device.upload(4096, np.zeros(10, np.uint8), stream)
        device.synchronize(stream)
    assert driver.depth == 0
    assert driver.log == ["init", (4096, 10, 77), "waited"]
    assert device.gpu() == Gpu("NVIDIA L4", "8.9")
    assert not device.captures


def test_pycudas_errors_are_ours_and_the_context_is_left() -> None:
    driver = FakeDriver()
    device = PyCuda(driver, 0)
    with pytest.raises(ExportError, match="failed: out of memory"), device.active():
        raise FakeDriver.Error("out of memory")
    assert driver.depth == 0


@pytest.mark.gpu
@needs_cuda_python
def test_bytes_go_to_the_device_and_back() -> None:
    device = open_cuda()
    with device.active():
        stream, address = device.create_stream(), device.allocate(1000)
        source, target = device.allocate_pinned(1000), device.allocate_pinned(1000)
        source[:] = np.arange(1000) % 251
        device.upload(address, source, stream)
        device.download(target, address, stream)
        device.synchronize(stream)
        assert (target == source).all()
        device.free_pinned(source)
        device.free_pinned(target)
        device.free(address)
        device.destroy_stream(stream)
