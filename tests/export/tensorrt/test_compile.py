"""What TensorRT is told, against a recorder that has the names of one version and no others.

The real TensorRT-RTX builds in test_builder.py; TensorRT itself needs a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from eao.errors import ExportError
from eao.export.tensorrt.api import TensorRT
from eao.export.tensorrt.compile import compile_engine
from eao.export.tensorrt.profiles import AxisRange
from eao.export.tensorrt.request import BuildRequest, Job

PROFILES = (
    {"batch": AxisRange(1, 1, 1), "text_tokens": AxisRange(1, 5, 9)},
    {"batch": AxisRange(1, 8, 64), "text_tokens": AxisRange(1, 5, 9)},
)
VERSIONS = ("10.13", "11.4", "rtx-1.7")


class Recorder:
    """An object of a TensorRT class: takes any call that the class has, notes it, and gives what `answers` says."""

    def __init__(self, world: World, cls: str) -> None:
        object.__setattr__(self, "_world", world)
        object.__setattr__(self, "_cls", cls)

    def __getattr__(self, name: str) -> Any:
        self._known(name)
        answer = self._world.answers.get(f"{self._cls}.{name}")
        if answer is not None and not callable(answer):
            return answer

        def call(*args: Any) -> Any:
            self._world.calls.append((f"{self._cls}.{name}", args))
            return answer(*args) if answer is not None else True

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        self._known(name)
        self._world.calls.append((f"{self._cls}.{name}=", (value,)))

    def _known(self, name: str) -> None:
        assert name in self._world.names[self._cls], f"{self._cls} has no {name}"


class World:
    """A version of the package, and a network of one text encoder."""

    def __init__(self, names: dict[str, list[str]], version: str) -> None:
        self.names, self.calls = names, []
        self.cache = b"old"
        dtypes = SimpleNamespace(FLOAT=SimpleNamespace(name="FLOAT"), BOOL=SimpleNamespace(name="BOOL"))
        tensors = [
            SimpleNamespace(name="text", shape=(-1, -1, 4), dtype=dtypes.FLOAT),
            SimpleNamespace(name="text_mask", shape=(-1, -1), dtype=dtypes.BOOL),
            SimpleNamespace(name="output", shape=(-1, 8), dtype=dtypes.FLOAT),
        ]
        for tensor in tensors:
            tensor.get_dimension_name = lambda axis: ("batch", "text_tokens")[axis]
        make = {cls: (lambda *args, cls=cls: Recorder(self, cls)) for cls in names}
        self.answers: dict[str, Any] = {
            "Builder.create_network": make["INetworkDefinition"],
            "Builder.create_builder_config": make["IBuilderConfig"],
            "Builder.create_optimization_profile": make["IOptimizationProfile"],
            "Builder.build_serialized_network": lambda *args: b"plan",
            "INetworkDefinition.num_inputs": 2,
            "INetworkDefinition.num_outputs": 1,
            "INetworkDefinition.num_layers": 17,
            "INetworkDefinition.get_input": tensors.__getitem__,
            "INetworkDefinition.get_output": lambda i: tensors[2],
            "IBuilderConfig.add_optimization_profile": lambda profile: 0,
            "IBuilderConfig.create_timing_cache": make["ITimingCache"],
            "IBuilderConfig.get_timing_cache": make["ITimingCache"],
            "ITimingCache.serialize": lambda: b"times",
        }
        module: dict[str, Any] = {
            "Builder": make["Builder"],
            "OnnxParser": make["OnnxParser"],
            "ILogger": type("ILogger", (), {n: i for i, n in enumerate(["INTERNAL_ERROR", "ERROR", "VERBOSE"])}),
        }
        enums = ("BuilderFlag", "MemoryPoolType", "HardwareCompatibilityLevel", "ComputeCapability")
        for enum in (e for e in enums if e in names):
            module[enum] = SimpleNamespace(**{member: f"{enum}.{member}" for member in names[enum]})
        module["NetworkDefinitionCreationFlag"] = SimpleNamespace(STRONGLY_TYPED=1)
        assert set(module) <= set(names)
        flavour: Any = "tensorrt-rtx" if version.startswith("rtx") else "tensorrt"
        self.api = TensorRT(flavour, SimpleNamespace(**module), version)

    def arguments(self, call: str) -> list[tuple[Any, ...]]:
        return [args for name, args in self.calls if name == call]


@pytest.fixture
def make_world(trt_names: Callable[[str], dict[str, list[str]]]) -> Callable[[str], World]:
    return lambda version: World(trt_names(version), version)


def run(world: World, folder: Path, **settings: Any) -> Any:
    cache = settings.pop("timing_cache", None)
    request = BuildRequest(flavour=world.api.flavour, profiles=PROFILES, **settings)
    job = Job(request=request, graph=folder / "g.onnx", out=folder / "e.engine", timing_cache=cache)
    return compile_engine(world.api, job)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_builds_strongly_typed_without_tf32(
    version: str, make_world: Callable[[str], World], tmp_path: Path
) -> None:
    world = make_world(version)
    facts = run(world, tmp_path)
    assert (tmp_path / "e.engine").read_bytes() == b"plan"
    assert world.arguments("Builder.create_network") == [(1 << 1,)]
    assert world.arguments("IBuilderConfig.clear_flag") == [("BuilderFlag.TF32",)]
    assert world.arguments("IBuilderConfig.set_flag") == []
    assert world.arguments("OnnxParser.parse_from_file") == [(str(tmp_path / "g.onnx"),)]
    assert (facts.version, facts.layers, facts.timing_cache) == (version, 17, "none")
    assert [(t.name, t.dtype, t.shape) for t in facts.outputs] == [("output", "float", (-1, 8))]


@pytest.mark.parametrize("version", VERSIONS)
def test_profiles_become_shapes_of_every_input(
    version: str, make_world: Callable[[str], World], tmp_path: Path
) -> None:
    world = make_world(version)
    run(world, tmp_path)
    assert world.arguments("IOptimizationProfile.set_shape") == [
        ("text", (1, 1, 4), (1, 5, 4), (1, 9, 4)),
        ("text_mask", (1, 1), (1, 5), (1, 9)),
        ("text", (1, 1, 4), (8, 5, 4), (64, 9, 4)),
        ("text_mask", (1, 1), (8, 5), (64, 9)),
    ]


def test_rtx_is_told_its_targets(make_world: Callable[[str], World], tmp_path: Path) -> None:
    world = make_world("rtx-1.7")
    run(world, tmp_path, targets=("8.6", "12.0"))
    assert world.arguments("IBuilderConfig.num_compute_capabilities=") == [(2,)]
    assert world.arguments("IBuilderConfig.set_compute_capability") == [
        ("ComputeCapability.SM86", 0),
        ("ComputeCapability.SM120", 1),
    ]


@pytest.mark.parametrize("version", ["10.13", "11.4"])
def test_tensorrt_is_told_its_compatibility_and_workspace(
    version: str, make_world: Callable[[str], World], tmp_path: Path
) -> None:
    world = make_world(version)
    run(world, tmp_path, version_compatible=True, hardware_compatible=True, workspace=1 << 30)
    assert world.arguments("IBuilderConfig.set_flag") == [("BuilderFlag.VERSION_COMPATIBLE",)]
    assert world.arguments("IBuilderConfig.hardware_compatibility_level=") == [
        ("HardwareCompatibilityLevel.AMPERE_PLUS",)
    ]
    assert world.arguments("IBuilderConfig.set_memory_pool_limit") == [("MemoryPoolType.WORKSPACE", 1 << 30)]


@pytest.mark.parametrize("version", ["10.13", "11.4"])
def test_a_timing_cache_is_made_then_reused(version: str, make_world: Callable[[str], World], tmp_path: Path) -> None:
    cache = tmp_path / "t.cache"
    assert run(make_world(version), tmp_path, timing_cache=cache).timing_cache == "new"
    assert cache.read_bytes() == b"times"
    world = make_world(version)
    assert run(world, tmp_path, timing_cache=cache).timing_cache == "used"
    assert world.arguments("IBuilderConfig.create_timing_cache") == [(b"times",)]


def test_a_timing_cache_of_another_gpu_is_replaced(make_world: Callable[[str], World], tmp_path: Path) -> None:
    world, cache = make_world("10.13"), tmp_path / "t.cache"
    cache.write_bytes(b"of another GPU")
    world.answers["IBuilderConfig.set_timing_cache"] = lambda *_: (
        len(world.arguments("IBuilderConfig.create_timing_cache")) == 2
    )  # the second one, which is empty
    assert run(world, tmp_path, timing_cache=cache).timing_cache == "renewed"
    assert world.arguments("IBuilderConfig.create_timing_cache")[-1] == (b"",)
    assert cache.read_bytes() == b"times"


def test_a_build_that_gives_nothing_is_an_error_with_what_was_said(
    make_world: Callable[[str], World], tmp_path: Path
) -> None:
    world = make_world("10.13")

    def build(*_: Any) -> None:
        (logger,) = world.loggers
        logger.log(1, "out of memory")

    world.loggers = []
    real = world.api.module.Builder
    world.api.module.Builder = lambda logger: world.loggers.append(logger) or real(logger)
    world.answers["Builder.build_serialized_network"] = build
    with pytest.raises(ExportError, match=r"tensorrt 10\.13 cannot build .*g\.onnx: out of memory"):
        run(world, tmp_path)
    assert not (tmp_path / "e.engine").exists()


def test_a_builder_that_does_not_start_is_an_error(make_world: Callable[[str], World], tmp_path: Path) -> None:
    world = make_world("10.13")

    def refuse(logger: Any) -> None:
        logger.log(1, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    world.api.module.Builder = refuse
    with pytest.raises(ExportError, match=r"tensorrt 10\.13 cannot start: CUDA initialization failure"):
        run(world, tmp_path)


def test_a_target_that_is_refused_is_named(make_world: Callable[[str], World], tmp_path: Path) -> None:
    world = make_world("rtx-1.7")
    world.answers["IBuilderConfig.set_compute_capability"] = lambda capability, i: i == 0
    with pytest.raises(ExportError, match=r"refuses compute capability 8\.9"):
        run(world, tmp_path, targets=("8.6", "8.9"))
