from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from eao.errors import ExportError
from eao.export.bundle import WrittenBundle
from eao.export.encoders import Axis, InputSpec
from eao.export.session import open_session, tensorrt_options
from eao.export.tensorrt.profiles import AxisRange

AVAILABLE = onnxruntime.get_available_providers()
FRAMES = Axis("spectrogram_frames", 64, 64)
SPECS = (
    InputSpec("audio", "float32", (Axis("batch"), 40, FRAMES)),
    InputSpec("audio_mask", "bool", (Axis("batch"), FRAMES)),
)
PROFILE = {"batch": AxisRange(1, 8, 64), "spectrogram_frames": AxisRange(64, 320, 640)}


@pytest.fixture
def graph(written: WrittenBundle) -> Path:
    return written.path / "text.fp32.onnx"


def feeds() -> dict[str, np.ndarray]:
    text = np.random.default_rng(0).standard_normal((3, 5, 12)).astype(np.float32)
    return {"text": text, "text_mask": np.ones((3, 5), bool)}


def test_the_cpu_is_the_default(graph: Path) -> None:
    session = open_session(graph, threads=1)
    assert session.get_providers() == ["CPUExecutionProvider"]
    assert session.run(None, feeds())[0].shape == (3, 8)


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cpu:0", "tensorrt:-1", ""])
def test_an_unknown_device_is_refused(device: str, graph: Path) -> None:
    with pytest.raises(ExportError, match=rf"cannot run on device '{device}'\n.*cpu, cuda, tensorrt"):
        open_session(graph, device=device)


@pytest.mark.parametrize(
    ("device", "provider"),
    [("cuda", "CUDAExecutionProvider"), ("cuda:1", "CUDAExecutionProvider"), ("tensorrt", "TensorrtExecutionProvider")],
)
def test_a_provider_that_this_onnxruntime_lacks_is_an_error(device: str, provider: str, graph: Path) -> None:
    if provider in AVAILABLE:
        pytest.skip(f"{provider} is built in")
    with pytest.raises(ExportError, match=rf"has no {provider}\n.*'\.\[gpu\]"):
        open_session(graph, device=device)


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is a GPU")
def test_a_provider_that_does_not_start_is_never_replaced_in_silence(
    device: str, graph: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """onnxruntime-gpu lists its providers on machines without a GPU, and then runs on the CPU with a warning."""
    everything = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: everything)
    with warnings.catch_warnings(), pytest.raises(ExportError, match="fell back to CPUExecutionProvider"):
        warnings.simplefilter("ignore")
        open_session(graph, device=device, engine_cache=tmp_path)


def test_a_session_does_not_move_to_the_cpu_later(graph: Path) -> None:
    assert open_session(graph)._enable_fallback is False


def test_tensorrts_sizes_are_given_up_front_and_its_engines_kept() -> None:
    assert tensorrt_options(PROFILE, SPECS, "cache") == {
        "trt_engine_cache_enable": True,
        "trt_engine_cache_path": "cache",
        "trt_timing_cache_enable": True,
        "trt_timing_cache_path": "cache",
        "trt_profile_min_shapes": "audio:1x40x64,audio_mask:1x64",
        "trt_profile_opt_shapes": "audio:8x40x320,audio_mask:8x320",
        "trt_profile_max_shapes": "audio:64x40x640,audio_mask:64x640",
    }


def test_the_engine_cache_is_that_of_engines_built_on_first_use(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    settings = tensorrt_options(None)
    assert settings["trt_engine_cache_path"] == str(tmp_path / "eao" / "engines" / "onnxruntime")
    assert not any(name.startswith("trt_profile") for name in settings)


def test_providers_get_the_device_and_their_settings(
    graph: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    opened: list[Any] = []

    class Session:
        def __init__(self, path: str, options: Any, providers: list[tuple[str, dict[str, Any]]]) -> None:
            opened.extend(providers)

        def get_providers(self) -> list[str]:
            return [name for name, _ in opened]

        def disable_fallback(self) -> None:
            opened.append("no fallback")

    everything = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: everything)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    open_session(graph, device="tensorrt:1", profile=PROFILE, specs=SPECS, engine_cache=tmp_path / "a" / "b")
    (first, settings), second, third, last = opened
    assert (first, settings["device_id"]) == ("TensorrtExecutionProvider", 1)
    assert settings["trt_profile_opt_shapes"].startswith("audio:8x40x320")
    assert second == ("CUDAExecutionProvider", {"device_id": 1})
    assert third == ("CPUExecutionProvider", {})
    assert last == "no fallback"
    assert (tmp_path / "a" / "b").is_dir()


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_devices_give_the_rows_of_the_cpu(device: str, graph: Path, tmp_path: Path) -> None:
    if device == "tensorrt" and importlib.util.find_spec("tensorrt") is None:
        pytest.skip("TensorRT is not installed")
    found = open_session(graph, device=device, engine_cache=tmp_path).run(None, feeds())[0]
    # Unit norm; TF32 in the matrix products of CUDA.
    np.testing.assert_allclose(found, open_session(graph).run(None, feeds())[0], atol=2e-3)
