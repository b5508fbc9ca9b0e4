"""Every name that the C++ library uses of TensorRT has a counterpart among the names of TensorRT's Python package.

NVIDIA's headers are not to be had here, and the stand-in that the source is compiled against could be wrong where the
source is.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ..export.tensorrt.conftest import read_names

SOURCE = Path(__file__).parents[2] / "serve" / "cpp" / "src" / "tensorrt_engine.cpp"
VERSIONS = ("10.13", "11.4")
_PROFILE_SHAPE = "ICudaEngine.get_tensor_profile_shape"
COUNTERPARTS = {
    "createInferRuntime": "Runtime",
    "IRuntime": "Runtime",
    "IRuntime.deserializeCudaEngine": "Runtime.deserialize_cuda_engine",
    "IRuntime.setEngineHostCodeAllowed": "Runtime.engine_host_code_allowed",
    "ILogger": "ILogger",
    "ILogger.log": "ILogger.log",
    "Severity.kERROR": "ILogger.ERROR",
    "ICudaEngine": "ICudaEngine",
    "ICudaEngine.createExecutionContext": "ICudaEngine.create_execution_context",
    "ICudaEngine.getIOTensorName": "ICudaEngine.get_tensor_name",
    "ICudaEngine.getNbIOTensors": "ICudaEngine.num_io_tensors",
    "ICudaEngine.getNbOptimizationProfiles": "ICudaEngine.num_optimization_profiles",
    "ICudaEngine.getProfileShape": _PROFILE_SHAPE,
    "ICudaEngine.getTensorDataType": "ICudaEngine.get_tensor_dtype",
    "ICudaEngine.getTensorIOMode": "ICudaEngine.get_tensor_mode",
    "IExecutionContext": "IExecutionContext",
    "IExecutionContext.enqueueV3": "IExecutionContext.execute_async_v3",
    "IExecutionContext.getOptimizationProfile": "IExecutionContext.active_optimization_profile",
    "IExecutionContext.getTensorShape": "IExecutionContext.get_tensor_shape",
    "IExecutionContext.setInputShape": "IExecutionContext.set_input_shape",
    "IExecutionContext.setOptimizationProfileAsync": "IExecutionContext.set_optimization_profile_async",
    "IExecutionContext.setTensorAddress": "IExecutionContext.set_tensor_address",
    "DataType": "DataType",
    "DataType.kFLOAT": "DataType.FLOAT",
    "TensorIOMode": "TensorIOMode",
    "TensorIOMode.kOUTPUT": "TensorIOMode.OUTPUT",
    # In Python, a profile's shapes are given all three at once, and a Dims is a sequence.
    "OptProfileSelector": _PROFILE_SHAPE,
    "OptProfileSelector.kMAX": _PROFILE_SHAPE,
    "OptProfileSelector.kMIN": _PROFILE_SHAPE,
    "Dims": "Dims",
    "Dims.d": "Dims",
    "Dims.nbDims": "Dims",
}
"""C++ -> Python; without `nvinfer1::` and `tensorrt.`."""


def used_names(source: str) -> set[str]:
    """`Class`, `Class.method`, `Enumeration.kVALUE` and functions of TensorRT that C++ code uses.

    Objects of TensorRT are known by their declaration. What is called by `->` on anything else has the class "?".
    """
    code = re.sub(r"//.*", "", source)
    names = set(re.findall(r"nvinfer1::(\w+)", code))
    names |= {f"{owner}.{value}" for owner, value in re.findall(r"(\w+)::(k[A-Z]\w*)", code)}
    names |= {f"{base}.{name}" for base in re.findall(r": public nvinfer1::(\w+)", code) for name in overrides(code)}
    objects = {name: kind for kind, name in re.findall(r"nvinfer1::(\w+)>?[&*]? (\w+)", code)}
    names |= {f"{objects.get(name, '?')}.{member}" for name, member in re.findall(r"(\w+)->(\w+)", code)}
    values = re.findall(r"\b(\w+)\.(\w+)", code)
    return names | {f"Dims.{member}" for name, member in values if objects.get(name) == "Dims"}


def overrides(code: str) -> list[str]:
    """The methods of TensorRT's own interfaces that are overridden: those that are noexcept."""
    return re.findall(r"(\w+)\([^)]*\) noexcept override", code)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_counterpart_exists(version: str) -> None:
    api = read_names(version)
    names = {*api, *(f"{owner}.{name}" for owner, members in api.items() for name in members)}
    assert set(COUNTERPARTS.values()) - names == set()


def test_the_source_uses_these_names_and_no_others() -> None:
    assert used_names(SOURCE.read_text(encoding="utf-8")) == set(COUNTERPARTS)


@pytest.mark.parametrize(
    ("code", "unknown"),
    [
        ("nvinfer1::IHostMemory* memory;", "IHostMemory"),
        ("nvinfer1::initPlugins();", "initPlugins"),
        ("std::unique_ptr<nvinfer1::ICudaEngine> engine_; engine_->getNbBindings();", "ICudaEngine.getNbBindings"),
        ("nvinfer1::IRuntime* runtime; runtime->destroy();", "IRuntime.destroy"),
        ("auto context = make(); context->enqueueV2();", "?.enqueueV2"),
        ("if (type == nvinfer1::DataType::kFP64) return;", "DataType.kFP64"),
        ("using nvinfer1::TensorIOMode; f(TensorIOMode::kIN);", "TensorIOMode.kIN"),
        ("void f(const nvinfer1::Dims& most) { most.size; }", "Dims.size"),
        ("class A : public nvinfer1::ILogger { void warn(int x) noexcept override; };", "ILogger.warn"),
    ],
)
def test_an_unknown_name_is_found(code: str, unknown: str) -> None:
    assert used_names(code) - set(COUNTERPARTS) == {unknown}
