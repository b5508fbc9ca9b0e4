"""The real names of TensorRT's classes, and a small TensorRT and CUDA in memory that have no other names.

The fake computes on memory that it was given the address of, does nothing before the stream is waited for, reads the
sizes that were set when the work was started, and refuses what TensorRT leaves undefined: a recorded graph whose
context has changed since, memory that was freed, a run without addresses.
"""

from __future__ import annotations

import contextlib
import json
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eao.errors import ExportError
from eao.export.encoders import Axis, InputSpec
from eao.export.tensorrt import api, runner
from eao.export.tensorrt.cuda import Gpu

GOLDEN = Path(__file__).parents[2] / "golden" / "trt-api"
FILES = {"10.13": "tensorrt-10.13.json", "11.4": "tensorrt-11.4.json", "rtx-1.7": "tensorrt-rtx-1.7.json"}
WIDTH = 4
BATCH, TOKENS = Axis("batch"), Axis("text_tokens")
TEXT_SPECS = (
    InputSpec("text", "float32", (BATCH, TOKENS, WIDTH)),
    InputSpec("text_mask", "bool", (BATCH, TOKENS)),
)
Limits = dict[str, tuple[tuple[int, ...], ...]]
PROFILES: tuple[Limits, ...] = (
    {"text": ((1, 1, 4), (1, 5, 4), (1, 9, 4)), "text_mask": ((1, 1), (1, 5), (1, 9))},
    {"text": ((1, 1, 4), (8, 5, 4), (16, 9, 4)), "text_mask": ((1, 1), (8, 5), (16, 9))},
)


def read_names(version: str) -> dict[str, list[str]]:
    return json.loads((GOLDEN / FILES[version]).read_text(encoding="utf-8"))["api"]


@pytest.fixture(scope="session")
def trt_names() -> Callable[[str], dict[str, list[str]]]:
    return read_names


def embed(text: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(B, N, D), (B, N) -> (B, D): what the fake engine computes."""
    return (text * mask[..., None]).sum(1) + 1


class FakeCuda:
    """Memory by address, and streams whose work waits for `synchronize`."""

    captures = True

    def __init__(self) -> None:
        self.memory: dict[int, np.ndarray] = {}
        self.pinned: dict[int, np.ndarray] = {}
        self.queues: dict[int, list[Callable[[], None]]] = {}
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.recording: list[Callable[[], None]] | None = None
        self.launches = self.plain_runs = 0
        self.refuse_capture = False
        self._next = 1000
        self._active = False

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        self._active = True
        yield
        self._active = False

    def gpu(self) -> Gpu:
        return Gpu("NVIDIA Test GPU", "8.6")

    def _address(self) -> int:
        assert self._active, "the device is not the thread's own"
        self._next += 1 << 20
        return self._next

    def allocate(self, size: int) -> int:
        address = self._address()
        self.memory[address] = np.full(size, 0xAB, np.uint8)  # as in life, never zero
        return address

    def free(self, address: int) -> None:
        del self.memory[address]

    def allocate_pinned(self, size: int) -> np.ndarray:
        memory = np.full(size, 0xCD, np.uint8)
        self.pinned[memory.ctypes.data] = memory
        return memory

    def free_pinned(self, memory: np.ndarray) -> None:
        del self.pinned[memory.ctypes.data]

    def create_stream(self) -> int:
        stream = self._address()
        self.queues[stream] = []
        return stream

    def destroy_stream(self, stream: int) -> None:
        assert not self.queues.pop(stream)

    def start(self, stream: int, work: Callable[[], None]) -> None:
        assert self._active
        (self.recording if self.recording is not None else self.queues[stream]).append(work)

    def upload(self, address: int, source: np.ndarray, stream: int) -> None:
        assert any(source.ctypes.data == start for start in self.pinned), "not pinned"

        def copy() -> None:
            self.memory[address][: source.nbytes] = source

        self.start(stream, copy)

    def download(self, target: np.ndarray, address: int, stream: int) -> None:
        def copy() -> None:
            target[:] = self.memory[address][: target.nbytes]

        self.start(stream, copy)

    def synchronize(self, stream: int) -> None:
        assert self.recording is None, "waiting is not allowed while recording"
        queue, self.queues[stream] = self.queues[stream], []
        for work in queue:
            work()

    def capture(self, stream: int, work: Callable[[], None]) -> int:
        if self.refuse_capture:
            raise ExportError("CUDA: cudaStreamEndCapture failed: operation not permitted")
        self.recording = []
        work()
        graph = self._address()
        self.graphs[graph], self.recording = self.recording, None
        return graph

    def launch(self, graph: int, stream: int) -> None:
        self.launches += 1
        self.queues[stream].extend(self.graphs[graph])

    def destroy_graph(self, graph: int) -> None:
        del self.graphs[graph]

    def milliseconds(self, stream: int, *works: Callable[[], None]) -> tuple[float, ...]:
        for work in works:
            work()
        self.synchronize(stream)
        return tuple(float(i) for i in range(len(works)))


class FakeContext:
    """A set of sizes and addresses. Every change of it spoils what was recorded of it."""

    def __init__(self, cuda: FakeCuda, profiles: Sequence[Limits], needs_scratch: bool) -> None:
        self._cuda, self._profiles, self._scratch = cuda, profiles, None if needs_scratch else 0
        self._index = 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._changes = 0
        self._fails = False

    def set_device_memory(self, memory: int, size: int) -> None:
        assert self._cuda.memory[memory].nbytes >= size
        self._scratch = memory
        self._changes += 1

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self._index = profile_index
        self._shapes.clear()
        self._changes += 1
        return profile_index < len(self._profiles)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self._profiles[self._index][name]
        self._shapes[name] = shape
        self._changes += 1
        return all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True))

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        self._changes += 1
        return memory in self._cuda.memory

    def infer_shapes(self) -> list[str]:
        return [name for name in self._profiles[0] if name not in self._shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (self._shapes["text"][0], WIDTH) if name == "output" else self._shapes[name]

    def execute_async_v3(self, stream_handle: int) -> bool:
        if self._fails or self._scratch is None or len(self._addresses) < 3 or self.infer_shapes():
            return False
        shape, changes, recorded = self._shapes["text"], self._changes, self._cuda.recording is not None
        self._cuda.plain_runs += not recorded

        def compute() -> None:
            assert not recorded or changes == self._changes, "the context was changed after it was recorded"
            text = self._read("text", np.float32, shape)
            output = embed(text, self._read("text_mask", np.bool_, shape[:2])).astype(np.float32)
            self._cuda.memory[self._addresses["output"]][: output.nbytes] = output.reshape(-1).view(np.uint8)

        self._cuda.start(stream_handle, compute)
        return True

    def _read(self, name: str, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self._cuda.memory[self._addresses[name]][:size].view(dtype).reshape(shape)


class FakeEngine:
    device_memory_size_v2 = 512
    num_io_tensors = 3

    def __init__(self, trt: Any, cuda: FakeCuda, profiles: Sequence[Limits] = PROFILES) -> None:
        self._trt, self._cuda, self._profiles = trt, cuda, profiles
        self.num_optimization_profiles = len(profiles)
        self._contexts: list[FakeContext] = []

    def get_tensor_name(self, index: int) -> str:
        return ("text", "text_mask", "output")[index]

    def get_tensor_mode(self, name: str) -> Any:
        return self._trt.TensorIOMode.OUTPUT if name == "output" else self._trt.TensorIOMode.INPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return self._trt.DataType.BOOL if name == "text_mask" else self._trt.DataType.FLOAT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, WIDTH) if name == "output" else (-1, -1, WIDTH)[: 2 + (name == "text")]

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        return list(self._profiles[profile_index][name])

    def create_runtime_config(self) -> Any:
        return self._trt.IRuntimeConfig()

    def create_execution_context(self, how: Any) -> FakeContext:
        managed = how == self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = FakeContext(self._cuda, self._profiles, needs_scratch=managed)
        self._contexts.append(context)
        return context


class FakeRuntimeCache:
    def deserialize(self, blob: bytes) -> bool:
        self._content = blob
        return blob == b"kernels"

    def serialize(self) -> bytes:
        return b"kernels"


class FakeRuntimeConfig:
    def __init__(self) -> None:
        self.cuda_graph_strategy: Any = None

    def create_runtime_cache(self) -> FakeRuntimeCache:
        return FakeRuntimeCache()

    def set_runtime_cache(self, cache: FakeRuntimeCache) -> bool:
        self._cache = cache
        return True


class FakeLogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


def members(names: Sequence[str], cls: str) -> Any:
    """An enumeration with the real members."""
    return types.SimpleNamespace(**{name: types.SimpleNamespace(name=name, of=cls) for name in names})


FAKES: dict[str, Any] = {
    "ICudaEngine": FakeEngine,
    "IExecutionContext": FakeContext,
    "IRuntimeConfig": FakeRuntimeConfig,
    "IRuntimeCache": FakeRuntimeCache,
    "ILogger": FakeLogger,
}
ENUMS = ("TensorIOMode", "DataType", "ExecutionContextAllocationStrategy", "CudaGraphStrategy")


class Fake:
    """A version of TensorRT with one engine, and CUDA."""

    def __init__(self, version: str) -> None:
        names = read_names(version)
        self.cuda = FakeCuda()
        self.version = version
        fake = self

        class Runtime:
            def __init__(self, logger: Any) -> None:
                self.engine_host_code_allowed = False
                self._logger = logger
                fake.runtime = self

            def deserialize_cuda_engine(self, serialized: bytes) -> FakeEngine | None:
                if serialized == b"of another GPU":
                    self._logger.log(FakeLogger.ERROR, "The engine plan file is generated on an incompatible device")
                    return None
                fake.engine = FakeEngine(fake.trt, fake.cuda)
                return fake.engine

        self.runtime: Any = None
        self.engine: Any = None
        self.trt = types.SimpleNamespace(Runtime=Runtime)
        for name, cls in FAKES.items():
            if name in names and (name != "IRuntimeConfig" or "IRuntimeCache" in names):
                setattr(self.trt, name, cls)
        for name in ENUMS:
            if name in names:
                setattr(self.trt, name, members(names[name], name))
        self.api = api.TensorRT("tensorrt-rtx" if version.startswith("rtx") else "tensorrt", self.trt, version)

    @property
    def contexts(self) -> list[FakeContext]:
        return self.engine._contexts


@pytest.fixture
def make_fake(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Fake]:
    """A fake of a version, which sessions opened after it run on."""

    def make(version: str) -> Fake:
        fake = Fake(version)
        monkeypatch.setattr(runner, "load_tensorrt", lambda flavour: fake.api)
        monkeypatch.setattr(runner, "open_cuda", lambda device: fake.cuda)
        return fake

    return make


@pytest.fixture(scope="session")
def text_specs() -> tuple[InputSpec, ...]:
    return TEXT_SPECS


@pytest.fixture(scope="session")
def expected() -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    return embed


@pytest.fixture(scope="session")
def fake_classes() -> dict[str, Any]:
    return {**FAKES}
