from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import yaml

from eao.errors import ExportError, ServingError
from eao.export.manifest import FileEntry, Manifest, ProfileEntry, load_manifest
from eao.export.runtime import Bundle
from eao.serve.triton.check import check_repository
from eao.serve.triton.engines import choose_engines
from eao.serve.triton.repository import write_repository
from eao.serve.triton.schema import messages, read_config

ENCODERS = ("text", "video", "audio", "text-video", "text-audio", "video-audio", "text-video-audio")
KIND = messages().ModelInstanceGroup.Kind


def test_every_encoder_has_a_model_and_an_ensemble(written: Path) -> None:
    names = {path.name for path in written.iterdir() if path.is_dir()}
    prepared = {"prepare-text", "prepare-video", "prepare-audio"}
    assert names == {*ENCODERS, *(f"embed-{encoder}" for encoder in ENCODERS), *prepared}


def test_the_model_of_an_encoder(written: Path, bundle: Path) -> None:
    manifest = load_manifest(bundle)
    config = read_config(written / "video-audio")
    assert (config.backend, config.max_batch_size) == ("onnxruntime", 64)
    assert [(x.name, list(x.dims)) for x in config.input] == [
        ("video", [-1, 98]),
        ("video_mask", [-1]),
        ("audio", [40, -1]),
        ("audio_mask", [-1]),
    ]
    assert [(x.name, list(x.dims)) for x in config.output] == [("embedding", [32])]
    assert list(config.dynamic_batching.preferred_batch_size) == [8, 64]
    assert config.dynamic_batching.max_queue_delay_microseconds > 0
    assert config.dynamic_batching.default_queue_policy.max_queue_size > 0
    assert config.version_policy.latest.num_versions == 1
    assert [(request.batch_size, set(request.inputs)) for request in config.model_warmup] == [
        (size, {"video", "video_mask", "audio", "audio_mask"}) for size in (1, 8)
    ]
    (group,) = config.instance_group
    assert (KIND.Name(group.kind), group.count) == ("KIND_CPU", 1)
    assert [(r.name, r.count) for r in group.rate_limiter.resources] == [("engine", 1)]
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    assert parameters["model_sha256"] == manifest.model_sha256
    assert (parameters["engine"], parameters["precision"]) == ("onnxruntime", "fp32")
    assert yaml.safe_load(parameters["config"])["model"]["video_dim"] == 98


def test_there_are_as_many_networks_as_asked_for_and_one_runs_at_a_time(bundle: Path, tmp_path: Path) -> None:
    write_repository(bundle, tmp_path / "out", encoders=["text"], instances=2)
    (group,) = read_config(tmp_path / "out" / "text").instance_group
    assert group.count == 2
    assert [(r.name, r.count) for r in group.rate_limiter.resources] == [("engine", 1)]
    assert read_config(tmp_path / "out" / "prepare-text").instance_group[0].count == 1


def test_sentences_go_before_clips(written: Path) -> None:
    def priority(encoder: str) -> int:
        return int(read_config(written / encoder).instance_group[0].rate_limiter.priority)

    assert priority("text") < priority("video")


def test_the_graphs_are_those_of_the_bundle(written: Path, bundle: Path) -> None:
    given = {"text": np.ones((2, 5, 6), np.float32), "text_mask": np.ones((2, 5), bool)}
    found = onnxruntime.InferenceSession(str(written / "text" / "1" / "model.onnx")).run(["embedding"], given)[0]
    wanted = onnxruntime.InferenceSession(str(bundle / "text.fp32.onnx")).run(None, given)[0]
    np.testing.assert_array_equal(found, wanted)


def test_on_a_gpu_engines_run_there_and_what_prepares_does_not(bundle: Path, tmp_path: Path) -> None:
    write_repository(bundle, tmp_path / "out", "gpu", encoders=["text"])

    def kind(name: str) -> tuple[str, int]:
        (group,) = read_config(tmp_path / "out" / name).instance_group
        return KIND.Name(group.kind), group.count

    assert kind("text") == ("KIND_GPU", 2)
    assert kind("prepare-text") == ("KIND_CPU", 1)


def test_for_tensorrt_a_graph_is_built_on_the_server(bundle: Path, tmp_path: Path) -> None:
    write_repository(bundle, tmp_path / "out", "tensorrt", encoders=["video"])
    config = read_config(tmp_path / "out" / "video")
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert (config.backend, accelerator.name) == ("onnxruntime", "tensorrt")
    assert accelerator.parameters["precision_mode"] == "FP32"
    shapes = [accelerator.parameters[f"trt_profile_{bound}_shapes"] for bound in ("min", "opt", "max")]
    assert shapes == [f"video:{b}x{n}x98,video_mask:{b}x{n}" for b, n in ((1, 1), (8, 4), (64, 4))]


@pytest.fixture
def plan_bundle(bundle: Path, tmp_path: Path) -> Path:
    """A bundle with a TensorRT engine of the video encoder, as a machine with TensorRT would have made it."""
    folder = Path(shutil.copytree(bundle, tmp_path / "plan-bundle"))
    (folder / "video.tensorrt.fp16.engine").write_bytes(b"no machine without a GPU can open it")
    manifest = load_manifest(folder)
    axes = {"video_tokens": ProfileEntry(minimum=1, optimum=4, maximum=4)}
    batches = [ProfileEntry(minimum=1, optimum=1, maximum=1), ProfileEntry(minimum=1, optimum=16, maximum=32)]
    entry = manifest.of_encoder("video")[0].model_copy(
        update={
            "engine": "tensorrt",
            "precision": "fp16",
            "files": (FileEntry.of(folder / "video.tensorrt.fp16.engine"),),
            "profiles": tuple({"batch": batch, **axes} for batch in batches),
        }
    )
    values = manifest.model_dump()
    values["engines"][entry.key] = entry.model_dump()
    Manifest.model_validate(values).save(folder)
    return folder


def test_a_tensorrt_engine_is_served_under_the_encoders_name(plan_bundle: Path, tmp_path: Path) -> None:
    written = write_repository(plan_bundle, tmp_path / "out", "tensorrt", encoders=["video"])
    assert written.engines == {"video": "tensorrt fp16"}
    plan, around = (read_config(tmp_path / "out" / name) for name in ("video-plan", "video"))
    assert (plan.backend, plan.max_batch_size, list(plan.dynamic_batching.preferred_batch_size)) == (
        "tensorrt",
        32,
        [16, 32],
    )
    assert list(plan.instance_group[0].profile) == ["0", "1"]
    assert (around.platform, around.output[0].name) == ("ensemble", "embedding")
    assert around.parameters["engine"].string_value == "tensorrt"
    last = read_config(tmp_path / "out" / "embed-video").ensemble_scheduling.step[-1]
    assert (last.model_name, dict(last.output_map)) == ("video-plan", {"output": "embedding"})
    assert (tmp_path / "out" / "video-plan" / "1" / "model.plan").is_file()


def test_an_engine_that_the_target_cannot_run_is_refused(plan_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ServingError, match=r"no tensorrt engine of video for --target cpu; it has onnxruntime fp32, "):
        write_repository(plan_bundle, tmp_path / "out", "cpu", engine="trt", encoders=["video"])
    with pytest.raises(ServingError, match=r"TensorRT-RTX"):
        write_repository(plan_bundle, tmp_path / "out", "tensorrt", engine="trt-rtx")
    with pytest.raises(ServingError, match="no encoder 'smell'"):
        write_repository(plan_bundle, tmp_path / "out", encoders=["smell"])
    assert not (tmp_path / "out").exists()


def test_int8_whose_sums_would_overflow_is_refused_with_the_reason(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eao.probes.has_exact_int8", lambda: False)
    manifest = load_manifest(bundle)
    (entry,) = manifest.of_encoder("video")
    assert entry.parity is not None
    parity = entry.parity.model_copy(update={"exact_int8": True})
    moved = entry.model_copy(update={"engine": "openvino", "precision": "int8", "parity": parity})
    manifest = manifest.model_copy(update={"engines": {moved.key: moved}})
    with pytest.raises(ServingError, match=r"it has openvino int8 \(its parity was measured on a CPU with VNNI"):
        choose_engines(manifest, Bundle(bundle).config, "cpu", encoders=["video"])


def test_a_changed_engine_is_refused_and_nothing_is_written(bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    content = bytearray((folder / "video.fp32.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "video.fp32.onnx").unlink()
    (folder / "video.fp32.onnx").write_bytes(content)
    with pytest.raises(ExportError, match=r"video\.fp32\.onnx was changed"):
        write_repository(folder, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]


def test_a_bundle_without_the_words_facts_says_what_to_do(bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    values = json.loads((folder / "manifest.json").read_text())
    del values["sha256"]
    values["text"] = [entry for entry in values["text"] if not entry["file"].endswith("words.json")]
    (folder / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(ServingError, match="export the bundle again"):
        write_repository(folder, tmp_path / "out")
    write_repository(folder, tmp_path / "out", encoders=["video-audio"])


def test_a_repository_is_replaced_by_the_next(bundle: Path, repository: Path) -> None:
    write_repository(bundle, repository, encoders=["video"])
    assert set(check_repository(repository)) == {"video", "embed-video", "prepare-video"}


def test_what_is_not_ours_is_not_replaced(bundle: Path, repository: Path, tmp_path: Path) -> None:
    (repository / "my-model").mkdir()
    with pytest.raises(ServingError, match="holds my-model"):
        write_repository(bundle, repository)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "text").mkdir()  # the name of a model
    with pytest.raises(ServingError, match="holds text"):
        write_repository(bundle, tmp_path / "notes")
    (tmp_path / "file").write_text("")
    with pytest.raises(ServingError, match="is a file"):
        write_repository(bundle, tmp_path / "file")


@pytest.mark.parametrize("kind", ["minilm", "clip"])
def test_a_network_of_words_is_a_model_of_its_own(
    make_text_bundle: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    write_repository(make_text_bundle(kind), tmp_path / "out")
    config = read_config(tmp_path / "out" / "embed-text")
    assert [step.model_name for step in config.ensemble_scheduling.step] == ["prepare-text", "words", "text"]
    words = read_config(tmp_path / "out" / "words")
    ids = {"minilm": 9, "clip": 8}[kind]  # of seven words: with start and end, or with start only
    assert [list(x.dims) for x in words.input] == [[ids], [ids], [7]]
